"""The data of families that number their tokens by a rule of their own.

A spec whose `own_rule` is None is numbered by the pipeline that most families share. Every other
rule is the data of one room, which is named after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class OwnRule:
    """The data of a rule that is not the shared one."""

    # The arguments of `get_rope_index` that the rule reads and the shared one does not.
    arguments: ClassVar[frozenset[str]] = frozenset()
