"""What a model type may have been meant to be."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_SIZE = re.compile(r"[-_]\d+(\.\d+)?[bB]\b|For[A-Z]")
_PARTS = ("_text", "_vision", "_audio")


def hint(given: object, known: Iterable[str], listed_by: str) -> str:
    """Return the end of a message about a name that is not known: the nearest, and where all are.

    Args:
        given: what was passed in a name's place.
        known: the names that there are.
        listed_by: what lists them.
    """
    near = nearest(given, known)
    meant = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{meant}{listed_by} lists what is known"


def nearest(given: object, known: Iterable[str]) -> list[str]:
    """Return at most three names of `known` like the given one, which may be that of a checkpoint.

    Example:
        >>> nearest("zai-org/GLM-4.1V-9B-Thinking", ["glm4v", "glm_ocr", "qwen2_5_vl"])
        ['glm4v']
    """
    if not isinstance(given, str):
        return []
    # Without the owner, and what follows the number of parameters.
    family = _SIZE.split(given.rsplit("/", 1)[-1])[0]
    plain = {_plain(name): name for name in known}
    return [plain[name] for name in get_close_matches(_plain(family), plain, n=3, cutoff=0.6)]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def whole_model_of(model_type: object, known: Iterable[str]) -> str | None:
    """Return the family whose text, vision or audio part has this model type, or None."""
    for part in _PARTS:
        if isinstance(model_type, str) and model_type.endswith(part):
            whole = model_type.removesuffix(part)
            return whole if whole in set(known) else None
    return None
