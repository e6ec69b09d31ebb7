"""The table of methods that were run, by their fingerprints: `known.json`.

`python -m tests.integrations.transformers.releases` writes it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TypedDict


class Entry(TypedDict, total=False):
    """What was found of one method.

    Attributes:
        rules: the name of its rules.
        refused: why it is not replaced; either this or `rules` is there.
        releases: those of transformers that have it.
    """

    rules: str
    refused: str
    releases: list[str]


def known(model_type: str, fingerprint: str | None) -> Entry | None:
    """Return what is known of a family's method, or None."""
    return _table().get(model_type, {}).get(fingerprint or "")


@cache
def _table() -> dict[str, dict[str, Entry]]:
    table: dict[str, dict[str, Entry]] = json.loads(
        Path(__file__).with_name("known.json").read_text(encoding="utf-8")
    )
    return table
