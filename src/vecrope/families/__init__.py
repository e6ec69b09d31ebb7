"""Every family as data: default ids, fields of configurations, and each upstream's rules.

A file holds a family or a few that are alike; `registry` lists them all, and `rules` has the data
of the rules that are a family's own.
"""

from vecrope.families.family import Family
from vecrope.families.registry import FAMILIES, NOT_MROPE, class_defaults, read_config

__all__ = ["FAMILIES", "NOT_MROPE", "Family", "class_defaults", "read_config"]
