"""What a model type may have been meant to be."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

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
        >>> nearest("Qwen/Qwen2.5-VL-7B-Instruct", ["glm4v", "qwen2_vl", "qwen2_5_vl"])
        ['qwen2_5_vl']
    """
    if not isinstance(given, str):
        return []
    names = list(known)
    plain = re.sub(r"\W", "_", given.rsplit("/", 1)[-1]).lower()
    beginnings = sorted((name for name in names if plain.startswith(name)), key=len, reverse=True)
    near = get_close_matches(plain, names, n=3, cutoff=0.6)
    return list(dict.fromkeys((*beginnings, *near)))[:3]


def whole_model_of(model_type: object, known: Iterable[str]) -> str | None:
    """Return the family whose text, vision or audio part has this model type, or None."""
    for part in _PARTS:
        if isinstance(model_type, str) and model_type.endswith(part):
            whole = model_type.removesuffix(part)
            return whole if whole in set(known) else None
    return None
