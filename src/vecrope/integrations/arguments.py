"""Arguments as upstreams take them, made into those that vecrope takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vecrope.checks import check_metadata, check_tensor
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


def ones_of(attention_mask: Tensor | None) -> Tensor | None:
    """Return a mask as upstreams read it to which a token is a 1, and whatever else is none."""
    return attention_mask == 1 if isinstance(attention_mask, Tensor) else attention_mask


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


def as_inputs(
    input_ids: Tensor | None,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    seconds: Any = None,
    **others: Any,
) -> Inputs:
    """Return arguments as upstreams read them.

    They read no grid, and no seconds, that no token asks for, and round sides down to what the
    merge size divides.
    """
    return Inputs(
        input_ids,  # type: ignore[arg-type]  # checked with the others
        as_grids(image_grid_thw),
        as_grids(video_grid_thw),
        second_per_grid_ts=as_seconds(seconds, video_grid_thw),
        allow_unused_grids=True,
        round_grid_sides=True,
        **others,
    )


def answer(inputs: Inputs, spec: MRopeSpec, *, validate: bool = True) -> tuple[Tensor, Tensor]:
    """Answer, whatever the grids hold that no token asks for.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes or values that do not fit.
    """
    if torch.compiler.is_compiling():
        return rope_index_of(inputs, spec, validate=validate)
    try:
        return rope_index_of(inputs, spec, validate=validate)
    except ValueError as error:
        refused = error
    # Once more without the grids behind the last used, which may not be sound.
    try:
        check_metadata(inputs, spec)
        return rope_index_of(_used_grids(inputs, spec), spec, validate=validate)
    except ValueError:
        raise refused from None


def number_text(input_ids: Tensor | None, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Number a batch without grids where the padding's 1 counts as a position, too.

    Returns:
        (3, B, T), one tensor seen three times over, and (B, 1): int64, or without a mask zeros of
        the dtype of `input_ids`.

    Raises:
        TypeError: if there is neither a tensor of ids nor one of a mask.
        ValueError: if one of them is not of shape (B, T).
    """
    if input_ids is not None or attention_mask is None:
        input_ids = check_rows("input_ids", input_ids)
    if attention_mask is None:
        assert input_ids is not None
        batch, seq_len = input_ids.shape
        positions = torch.arange(seq_len, device=input_ids.device)
        return positions.expand(3, batch, seq_len), input_ids.new_zeros((batch, 1))
    mask = check_rows("attention_mask", attention_mask)
    batch, seq_len = mask.shape
    positions = mask.cumsum(1, dtype=torch.int64).sub_(1).masked_fill_(mask == 0, 1)
    if not seq_len:
        return positions.expand(3, -1, -1), positions.new_zeros((batch, 1))
    deltas = positions.amax(1, keepdim=True).add_(1 - seq_len)
    return positions.expand(3, batch, seq_len), deltas


def check_rows(name: str, tensor: object) -> Tensor:
    """Return what must be a tensor of shape (B, T).

    Raises:
        TypeError: if it is no tensor.
        ValueError: if it has another shape.
    """
    check_tensor(name, tensor)
    assert isinstance(tensor, Tensor)
    if tensor.dim() != 2:
        raise ValueError(f"{name} must have shape (B, T), got {tuple(tensor.shape)}")
    return tensor


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
    stream = make_stream(inputs, spec)
    image, video, _ = placeholders(stream, spec, stream.token_rows())
    return int(image.sum()), 0 if video is None else int(video.sum())
