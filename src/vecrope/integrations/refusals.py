"""What vecrope refuses and an engine answers by itself: counted, and warned of once a kind."""

from __future__ import annotations

import re
from collections import Counter
from logging import Logger
from threading import Lock

# What differs between two prompts with the same fault: numbers, and lists of them.
_NUMBERS = re.compile(r"[-+]?\d[\d.e+-]*(?:[\[\](), ]+[-+]?\d[\d.e+-]*)*")


class Refusals:
    """Counts the requests that an engine's own functions answered, by their fault.

    Args:
        engine: the name of the engine.
        logger: takes a warning for the first request of each fault.
    """

    def __init__(self, engine: str, logger: Logger) -> None:
        self._engine = engine
        self._logger = logger
        self._counts: Counter[str] = Counter()
        self._lock = Lock()

    def note(self, error: Exception) -> None:
        """Count a request, and warn if its fault was not seen before."""
        fault = _NUMBERS.sub("#", f"{type(error).__name__}: {error}")
        with self._lock:
            self._counts[fault] += 1
            is_first = self._counts[fault] == 1
        if is_first:
            self._logger.warning(
                "vecrope refuses a request, which %s's own function answers (%s); further requests "
                "with this fault are counted and not logged",
                self._engine,
                error,
            )

    def counts(self) -> dict[str, int]:
        """Return the number of requests of each fault, numbers left out of its description."""
        return dict(self._counts)

    def clear(self) -> None:
        """Forget all requests."""
        self._counts.clear()
