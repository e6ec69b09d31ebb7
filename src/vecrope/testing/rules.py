"""A spec as the reference takes it: the one place that knows which field is which argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from vecrope.spec import MRopeSpec

# What names a spec or describes the tensors of an answer; every other field is a rule, and an
# argument of the reference by the same name.
_NO_RULES = ("model_type", "convention", "position_dtype", "own_rule")
_TYPE_RULES = (
    *("image_token_id", "video_token_id", "video_start_token_id", "video_end_token_id"),
    "marker_rule",
)


def rules_of(spec: MRopeSpec) -> dict[str, Any]:
    """Return the arguments of `reference.get_rope_index` that a spec stands for.

    Raises:
        ValueError: for a family with a rule of its own, which that reference does not know.
    """
    if spec.own_rule is not None:
        raise ValueError(
            f"{spec.model_type!r} is numbered by a rule of its own under convention "
            f"{spec.convention!r}: vecrope.testing.reference has the rule that families share"
        )
    names = (field.name for field in fields(spec) if field.name not in _NO_RULES)
    return {name: getattr(spec, name) for name in names}


def type_rules_of(spec: MRopeSpec) -> dict[str, Any]:
    """Return the arguments of `reference.token_types` that a spec stands for."""
    return {name: getattr(spec, name) for name in _TYPE_RULES}


def seconds_of(seconds: torch.Tensor | Sequence[float] | None) -> dict[str, Any]:
    """Return the arguments of `reference.get_rope_index` that say how long a temporal step is."""
    if seconds is None:
        return {}
    if not isinstance(seconds, torch.Tensor):
        return {"second_per_grid_ts": list(seconds)}
    seconds_type = "float64" if seconds.dtype == torch.float64 else "float32"
    return {"second_per_grid_ts": seconds.tolist(), "seconds_type": seconds_type}
