"""Arguments as upstreams take them, made into those that vecrope takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

_NARROW = (torch.int16, torch.int8, torch.uint8)


def as_grids(grids: Tensor | None) -> Tensor | None:
    """Return grids in a dtype whose products do not overflow."""
    if isinstance(grids, Tensor) and grids.dtype in _NARROW:
        return grids.long()
    return grids


def as_seconds(seconds: Any) -> Tensor | Sequence[float] | None:
    """Return the seconds of videos as a tensor with an axis, or as a list of numbers.

    Upstreams iterate over them: a NumPy array, a list of its scalars, a list of tensors of one
    element and a tensor of shape (num_videos, 1) mean the same as the list of numbers and the
    tensor of shape (num_videos,). What else there is comes back as it is, to be refused.
    """
    if isinstance(seconds, Tensor):
        return seconds.reshape(-1) if seconds.ndim == 2 and seconds.shape[1] == 1 else seconds
    if hasattr(seconds, "tolist"):
        return as_seconds(seconds.tolist())
    if not isinstance(seconds, list | tuple):
        return seconds  # type: ignore[no-any-return]
    if seconds and all(isinstance(each, Tensor) and each.numel() == 1 for each in seconds):
        return torch.stack([each.reshape(()) for each in seconds])
    return [each.item() if hasattr(each, "item") else each for each in seconds]


def without_left_over(
    answer: Callable[[Inputs], tuple[Tensor, Tensor]], inputs: Inputs, spec: MRopeSpec
) -> tuple[Tensor, Tensor]:
    """Answer, and if that is refused, once more without the grids that no token asks for.

    They are ignored, so that it does not matter whether they are sound.
    """
    try:
        return answer(inputs)
    except ValueError as error:
        used = _used_grids(inputs, spec)
        if used is None:
            raise
        try:
            return answer(used)
        except ValueError:
            raise error from None


def _used_grids(inputs: Inputs, spec: MRopeSpec) -> Inputs | None:
    """Return the inputs less the grids behind the last one used, or None if all are."""
    grids = (inputs.image_grid_thw, inputs.video_grid_thw)
    tensors = [each for each in (inputs.input_ids, *grids) if each is not None]
    if not all(isinstance(each, Tensor) for each in tensors) or not inputs.allow_unused_grids:
        return None
    counts = count_placeholders(inputs, spec)
    used: dict[str, Any] = {}
    for name, grid, count, merge_t in zip(
        ("image_grid_thw", "video_grid_thw"),
        grids,
        counts,
        (1, spec.temporal_merge_size),
        strict=True,
    ):
        if grid is None or grid.ndim != 2 or grid.shape[1] != 3:
            continue
        number = int((tokens_before(grid, spec, merge_t)[:-1] < count).sum())
        if number < grid.shape[0]:
            used[name] = grid[:number]
    seconds = inputs.second_per_grid_ts
    if "video_grid_thw" in used and seconds is not None:
        used["second_per_grid_ts"] = seconds[: used["video_grid_thw"].shape[0]]
    return inputs._replace(**used) if used else None


def tokens_before(grids: Tensor, spec: MRopeSpec, merge_t: int = 1) -> Tensor:
    """Return (items + 1,) numbers of tokens of the grids before each one; none of unsound ones."""
    divisor = grids.new_tensor((merge_t, spec.spatial_merge_size, spec.spatial_merge_size))
    sizes = grids.div(divisor, rounding_mode="floor").clamp(min=0).double().prod(1)
    return torch.nn.functional.pad(sizes.cumsum(0), (1, 0))


def count_placeholders(inputs: Inputs, spec: MRopeSpec) -> tuple[int, int]:
    """Return the numbers of unmasked image tokens and video tokens; reads values."""
    types, ids, mask = inputs.mm_token_type_ids, inputs.input_ids, inputs.attention_mask
    kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device).bool()
    if types is not None:
        flags = [types.to(ids.device) == number for number in (1, 2)]
    else:
        flags = [
            ids == token if token is not None else torch.zeros_like(kept)
            for token in (spec.image_token_id, spec.video_token_id)
        ]
    images, videos = (int((each & kept).sum()) for each in flags)
    return images, videos
