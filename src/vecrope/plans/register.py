"""Plans as pytrees, that pass through `torch.compile`, `torch.export`, `torch.save` and `load`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from vecrope.plans.plan import RopeIndexPlan

_PlanClass = TypeVar("_PlanClass", bound=type[RopeIndexPlan])


def register_plan(plan_class: _PlanClass) -> _PlanClass:
    """Register a class of plans as a pytree, whose leaves are its tensors and sizes."""
    constants = ("dtype", "padding_value")
    leaves = [field.name for field in fields(plan_class) if field.name not in constants]

    def flatten(plan: Any) -> tuple[list[Any], tuple[Any, ...]]:
        context = tuple(getattr(plan, name) for name in constants)
        return [getattr(plan, name) for name in leaves], context

    def flatten_with_keys(plan: Any) -> tuple[list[tuple[pytree.KeyEntry, Any]], tuple[Any, ...]]:
        values, context = flatten(plan)
        return list(zip(map(pytree.GetAttrKey, leaves), values, strict=True)), context

    def unflatten(values: Any, context: Any) -> RopeIndexPlan:
        named = zip((*leaves, *constants), (*values, *context), strict=True)
        return plan_class(**dict(named))

    pytree.register_pytree_node(
        plan_class,
        flatten,
        unflatten,
        serialized_type_name=f"vecrope.{plan_class.__name__}",
        to_dumpable_context=lambda context: [str(context[0]).removeprefix("torch."), context[1]],
        from_dumpable_context=lambda context: (getattr(torch, context[0]), context[1]),
        flatten_with_keys_fn=flatten_with_keys,
    )
    # So that `torch.load` and `torch.export.load` take plans without being told to trust the file.
    torch.serialization.add_safe_globals([plan_class])
    return plan_class
