"""The data of families that number their tokens by a rule of their own.

A spec whose `own_rule` is None is numbered by the pipeline that most families share. Every other
rule is the data of one room, which is named after it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OwnRule:
    """The data of a rule that is not the shared one."""


@dataclass(frozen=True)
class PlainIndex(OwnRule):
    """Every token has its index on all axes: what looks like M-RoPE, and is not."""
