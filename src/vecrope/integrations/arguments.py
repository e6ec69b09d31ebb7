"""Arguments as upstreams take them, made into those that vecrope takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vecrope.checks import check_metadata
from vecrope.core.stream import make_stream
from vecrope.forms.static import placeholders
from vecrope.inputs import Inputs
from vecrope.rope_index import rope_index_of
from vecrope.spec import MRopeSpec

_NARROW = (torch.int16, torch.int8, torch.uint8, torch.bool)


def as_grids(grids: Tensor | None) -> Tensor | None:
    """Return grids in a dtype whose products do not overflow."""
    if isinstance(grids, Tensor) and grids.dtype in _NARROW:
        return grids.long()
    return grids


def as_seconds(seconds: Any, video_grid_thw: Any) -> Any:
    """Return the seconds of as many videos as there are, as a tensor with an axis or a list.

    Upstreams iterate over them: a NumPy array, a list of its scalars, a list of tensors of one
    element and what has the shape (num_videos, 1) mean the same as the list of numbers and the
    tensor of shape (num_videos,). What else there is comes back as it is, to be refused.
    """
    if getattr(seconds, "ndim", 0) == 2 and seconds.shape[1] == 1:
        seconds = seconds.reshape(-1)
    if hasattr(seconds, "tolist") and not isinstance(seconds, Tensor):
        seconds = seconds.tolist()
    if isinstance(seconds, list | tuple):
        if seconds and all(isinstance(each, Tensor) and each.numel() == 1 for each in seconds):
            seconds = torch.stack([each.reshape(()) for each in seconds])
        else:
            # A product with a number of NumPy's is rounded as with the number that `item` gives.
            seconds = [each.item() if hasattr(each, "item") else each for each in seconds]
    if _has_items(seconds):
        return seconds[: len(video_grid_thw) if _has_items(video_grid_thw) else 0]
    return seconds


def _has_items(values: object) -> bool:
    return values.ndim > 0 if isinstance(values, Tensor) else isinstance(values, Sequence)


def answer(inputs: Inputs, spec: MRopeSpec, *, validate: bool = True) -> tuple[Tensor, Tensor]:
    """Answer, whatever the grids hold that no token asks for: where that is refused, once more."""
    if torch.compiler.is_compiling():
        return rope_index_of(inputs, spec, validate=validate)
    try:
        return rope_index_of(inputs, spec, validate=validate)
    except ValueError as error:
        refused = error
    try:
        check_metadata(inputs, spec)
        return rope_index_of(_used_grids(inputs, spec), spec, validate=validate)
    except ValueError:
        raise refused from None


def _used_grids(inputs: Inputs, spec: MRopeSpec) -> Inputs:
    """Return the inputs, whose metadata have been checked, less the grids behind the last used."""
    counts = count_placeholders(inputs, spec)
    used: dict[str, Any] = {}
    for name, grid, count, merge_t in zip(
        ("image_grid_thw", "video_grid_thw"),
        (inputs.image_grid_thw, inputs.video_grid_thw),
        counts,
        (1, spec.temporal_merge_size),
        strict=True,
    ):
        if grid is not None:
            used[name] = grid[: int((tokens_before(grid, spec, merge_t)[:-1] < count).sum())]
    seconds = inputs.second_per_grid_ts
    if "video_grid_thw" in used and seconds is not None:
        used["second_per_grid_ts"] = seconds[: used["video_grid_thw"].shape[0]]
    return inputs._replace(**used)


def tokens_before(grids: Tensor, spec: MRopeSpec, merge_t: int = 1) -> Tensor:
    """Return (items + 1,) numbers of tokens of the grids before each one; none of unsound ones."""
    divisor = grids.new_tensor((merge_t, spec.spatial_merge_size, spec.spatial_merge_size))
    sizes = grids.div(divisor, rounding_mode="floor").clamp(min=0).double().prod(1)
    return torch.nn.functional.pad(sizes.cumsum(0), (1, 0))


def count_placeholders(inputs: Inputs, spec: MRopeSpec) -> tuple[int, int]:
    """Return the numbers of unmasked image tokens and video tokens; reads values."""
    stream = make_stream(
        inputs.input_ids, inputs.attention_mask, None, inputs.mm_token_type_ids, exact=True
    )
    image, video, _ = placeholders(stream, spec, stream.token_rows())
    return int(image.sum()), 0 if video is None else int(video.sum())
