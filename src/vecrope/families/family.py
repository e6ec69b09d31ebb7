"""What the registry knows of a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vecrope.families.rules import OwnRule

Fields = Mapping[str, Any]
# Dotted paths of a configuration, the first one that is there to be read.
Path = str | tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One model family, as its configuration describes it and each upstream numbers it.

    A new family is an entry of the `FAMILIES` of a file: `paths` says where a configuration keeps
    the fields of the spec that differ from checkpoint to checkpoint, `defaults` what they are in
    the class of the configuration, and `rules`, by convention, the other fields.
    """

    rules: Mapping[str, Fields]
    paths: Mapping[str, Path]
    defaults: Fields = field(default_factory=dict)
    # Paths that one convention reads elsewhere, or besides, and their defaults.
    paths_by_convention: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    defaults_by_convention: Mapping[str, Fields] = field(default_factory=dict)
    # Makes the data of a rule of the family's own from the values found by `own_paths`, under every
    # convention but those in `shared_in`.
    own_rule: Callable[..., OwnRule] | None = None
    shared_in: Sequence[str] = ()
    own_rule_by_convention: Mapping[str, Callable[..., OwnRule]] = field(default_factory=dict)
    own_paths: Mapping[str, Path] = field(default_factory=dict)
    own_defaults: Fields = field(default_factory=dict)
