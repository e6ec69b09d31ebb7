"""The checks that come before any stage, and which form of the pipeline is to run."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vecrope import checks
from vecrope.inputs import Inputs, on_cpu, positions_dtype
from vecrope.spec import MRopeSpec


class Prepared(NamedTuple):
    """A call whose arguments are sound as far as can be told without the grids' fit."""

    inputs: Inputs  # grids on the device of the ids; no mask where it masks nothing
    exact: bool  # tables of exactly the size that the values ask for: eager, on a CPU
    tracing: bool
    dtype: torch.dtype  # of the positions


def on_host(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> Inputs | None:
    """Return the arguments on the CPU where the host answers for a device, or None.

    It does for a rule of a family's own where something can be raised. All is read there, so that
    no check is a further wait.
    """
    answers = spec.own_rule is not None and validate and not torch.compiler.is_compiling()
    if not answers or inputs.input_ids.is_cpu:
        return None
    checks.check_have_values(inputs)
    return on_cpu(inputs)


def prepare(
    inputs: Inputs,
    spec: MRopeSpec,
    validate: bool,
    max_groups: int | None = None,
    *,
    static: bool = False,
) -> Prepared:
    """Check the values of a call whose metadata have been checked, and bring them to one device.

    `static` or a capacity `max_groups` asks for the form that reads no value, also on a CPU.
    """
    input_ids, mask, types = inputs.input_ids, inputs.attention_mask, inputs.mm_token_type_ids
    tracing = torch.compiler.is_compiling()
    exact = max_groups is None and not static and input_ids.is_cpu and not tracing
    if not exact and not tracing:
        checks.check_index_range(input_ids)
    if (validate or exact) and not tracing:
        checks.check_have_values(inputs)
        if mask is not None and mask.numel():
            least = checks.least_code("attention_mask", mask, 1 if validate else None)
            mask = None if least > 0 or spec.mask_rule == "ignore" else mask.bool()
        if validate and types is not None and types.numel():
            checks.least_code("mm_token_type_ids", types, 2, mask)
        if validate and inputs.cu_seqlens is not None:
            checks.check_cu_seqlens(inputs.cu_seqlens, input_ids.shape[0])
    if spec.mask_rule == "ignore":
        mask = None
    # What does not change is not copied: of a short prompt's time that would be some percent.
    if mask is not inputs.attention_mask:
        inputs = inputs._replace(attention_mask=mask)
    device = input_ids.device
    images, videos = inputs.image_grid_thw, inputs.video_grid_thw
    if images is not None and images.device != device:
        inputs = inputs._replace(image_grid_thw=images.to(device))
    if videos is not None and videos.device != device:
        inputs = inputs._replace(video_grid_thw=videos.to(device))
    return Prepared(inputs, exact, tracing, positions_dtype(inputs, spec))
