"""The signatures of transformers 4.49 to 5.1, where ids and markers say what a token is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Module

from vecrope.core.search import spread
from vecrope.inputs import Inputs
from vecrope.integrations.arguments import (
    answer,
    as_inputs,
    count_placeholders,
    number_text,
    ones_of,
    tokens_before,
)
from vecrope.spec import MRopeSpec


def by_ids(
    model: Module,  # noqa: ARG001
    spec: MRopeSpec,
    validate: bool,
    /,
    input_ids: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Answer as the families did that number by ids."""
    inputs = as_inputs(
        input_ids, image_grid_thw, video_grid_thw, attention_mask=ones_of(attention_mask)
    )
    return _answer(inputs, spec, validate, attention_mask)


def by_ids_and_seconds(
    model: Module,  # noqa: ARG001
    spec: MRopeSpec,
    validate: bool,
    /,
    input_ids: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Tensor | Sequence[float] | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Answer as qwen2_5_vl did."""
    inputs = as_inputs(
        input_ids,
        image_grid_thw,
        video_grid_thw,
        second_per_grid_ts,
        attention_mask=ones_of(attention_mask),
    )
    return _answer(inputs, spec, validate, attention_mask)


def by_optional_types(
    model: Module,  # noqa: ARG001
    spec: MRopeSpec,
    validate: bool,
    /,
    input_ids: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    attention_mask: Tensor | None = None,
    mm_token_type_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Answer as ernie4_5_vl_moe did, to which without types every token was text."""
    if mm_token_type_ids is None and isinstance(input_ids, Tensor):
        mm_token_type_ids = torch.zeros_like(input_ids)
    inputs = as_inputs(
        input_ids,
        image_grid_thw,
        video_grid_thw,
        attention_mask=ones_of(attention_mask),
        mm_token_type_ids=mm_token_type_ids,
    )
    return _answer(inputs, spec, validate, attention_mask)


def _answer(
    inputs: Inputs, spec: MRopeSpec, validate: bool, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    if inputs.image_grid_thw is None and inputs.video_grid_thw is None:
        return number_text(inputs.input_ids, attention_mask)
    position_ids, rope_deltas = answer(inputs, spec, validate=validate)
    needs_markers = spec.marker_rule == "none" and inputs.mm_token_type_ids is None
    if needs_markers and validate and not torch.compiler.is_compiling():
        _check_markers(inputs, spec)
    return position_ids, rope_deltas


def _check_markers(inputs: Inputs, spec: MRopeSpec) -> None:
    """Check that a vision start stands before every image and video, or separate frame.

    Placeholders without one were text. The positions are known to fit the grids.
    """
    ids, mask = inputs.input_ids, inputs.attention_mask
    kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device)
    rows = torch.arange(ids.shape[0], device=ids.device)[:, None].expand_as(ids)[kept]
    tokens = ids[kept]
    marked = (tokens[:-1] == spec.vision_start_token_id) & (rows[:-1] == rows[1:])
    counts = count_placeholders(inputs, spec)
    for kind, grids, count, token in zip(
        ("image", "video"),
        (inputs.image_grid_thw, inputs.video_grid_thw),
        counts,
        (spec.image_token_id, spec.video_token_id),
        strict=True,
    ):
        if not count:
            continue
        assert grids is not None
        if kind == "video" and spec.separate_frames:
            frames = grids[:, 0].clamp(min=0)
            grids = grids[spread(frames, int(frames.sum()))]
            grids[:, 0] = 1
        expected = int((tokens_before(grids, spec)[:-1] < count).sum())
        found = int((marked & (tokens[1:] == token)).sum())
        if found != expected:
            what = "separate frame" if kind == "video" and spec.separate_frames else kind
            raise ValueError(
                f"every {what} must follow a vision start, id {spec.vision_start_token_id}, in "
                f"this release of transformers, which numbers others as text: expected {expected} "
                f"of them, got {found}"
            )
