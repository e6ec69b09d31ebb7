"""Checks of single fields of specs and of rules."""

from __future__ import annotations

from collections.abc import Collection


def check_int(name: str, value: object, least: int | None = None) -> None:
    """Check that a field is an int, no bool, and with `least` from there to 2**31 - 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if least is not None and not least <= value < 2**31:
        raise ValueError(f"{name} must be from {least} to 2**31 - 1, got {value}")


def check_bool(name: str, value: object) -> None:
    """Check that a field, or an argument, is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r}")


def check_one_of(name: str, value: object, known: Collection[object]) -> None:
    """Check that a field has one of the values that are known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
