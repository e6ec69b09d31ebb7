"""Arguments as SGLang reads them: grids that no token asks for, odd sides, seconds of any kind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from vecrope.checks import check_metadata, check_tensor
from vecrope.core.items import make_items
from vecrope.core.stream import make_stream
from vecrope.forms.static import locate
from vecrope.inputs import Inputs
from vecrope.rope_index import get_rope_index
from vecrope.spec import MRopeSpec

Grids = Sequence[Sequence[int]] | Tensor | None
Seconds = Any

# Integer types that vecrope's own functions do not take.
_SHORT = (torch.int16, torch.int8, torch.uint8)


def remembered(make: Callable[..., MRopeSpec]) -> Callable[..., MRopeSpec]:
    """Return a function that makes the spec of the same plain values once, and not every request.

    Its arguments are given by position.
    """
    # Typed: 2 and 2.0 positions a second are rounded otherwise.
    cached = functools.lru_cache(maxsize=64, typed=True)(make)

    def spec_of(*values: Any) -> MRopeSpec:
        plain = all(isinstance(value, Hashable) for value in values)
        return cached(*values) if plain else make(*values)

    return spec_of


def rope_index_of_used(
    input_ids: Tensor,
    spec: MRopeSpec,
    image_grid_thw: Grids,
    video_grid_thw: Grids,
    attention_mask: Tensor | None = None,
    seconds: Seconds = None,
) -> tuple[Tensor, Tensor]:
    """Return `vecrope.get_rope_index` of what SGLang reads of the arguments.

    It reads no grid, and no seconds, that no token asks for, and rounds sides down to what the
    merge size divides.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes or values that do not fit.
    """
    images = grid_tensor("image_grid_thw", image_grid_thw)
    videos = grid_tensor("video_grid_thw", video_grid_thw)
    seconds = seconds_of(seconds, videos)
    check_metadata(
        Inputs(input_ids, images, videos, attention_mask, second_per_grid_ts=seconds), spec
    )
    try:
        return get_rope_index(
            input_ids,
            spec,
            image_grid_thw=images,
            video_grid_thw=videos,
            attention_mask=attention_mask,
            second_per_grid_ts=seconds,
        )
    except ValueError:
        # What SGLang does not mind is rare: it costs nothing as long as it does not occur.
        images, videos = _used_grids(input_ids, spec, images, videos, attention_mask)
    return get_rope_index(
        input_ids,
        spec,
        image_grid_thw=images,
        video_grid_thw=videos,
        attention_mask=attention_mask,
        second_per_grid_ts=seconds_of(seconds, videos),
    )


def text_rope_index(input_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what all of SGLang's functions but the one for GLM-4V answer without grids.

    Returns:
        (3, 1, T) and (1, 1) int64 whatever the number of rows: 0 to T - 1, and 0.

    Raises:
        TypeError: if `input_ids` is no tensor.
        ValueError: if it is not of shape (B, T).
    """
    ids = check_rows("input_ids", input_ids)
    seq_len = ids.shape[1]
    positions = torch.arange(seq_len, device=ids.device)
    return positions.expand(3, 1, seq_len), positions.new_zeros((1, 1))


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


def grid_tensor(name: str, grids: Grids) -> Tensor | None:
    """Return grids, which may be nested lists or of a short integer type, as a tensor.

    Raises:
        ValueError: for lists that are not all of one length.
    """
    if grids is None:
        return None
    try:
        tensor = torch.as_tensor(grids)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be a tensor of shape (n, 3) or nested lists, got {grids!r}"
        ) from error
    if not tensor.numel():
        return torch.empty((0, 3), dtype=torch.int64)
    return tensor.long() if tensor.dtype in _SHORT else tensor


def seconds_of(seconds: Seconds, videos: Tensor | None) -> Sequence[float] | Tensor | None:
    """Return the seconds of as many videos as there are, as `read_seconds` gives them."""
    num_videos = 0 if videos is None else videos.shape[0]
    found = read_seconds(seconds)
    if found is None or (isinstance(found, Tensor) and found.dim() != 1):
        return found
    return found[:num_videos]


def read_seconds(seconds: Seconds) -> Sequence[float] | Tensor | None:
    """Return seconds as vecrope takes them.

    Args:
        seconds: a tensor of shape (n,) or (n, 1), or an array or a sequence of numbers, NumPy's
            among them, or of tensors of one number each.
    """
    if isinstance(seconds, Tensor):
        return seconds.squeeze(1) if seconds.dim() == 2 and seconds.shape[1] == 1 else seconds
    if seconds is None:
        return None
    steps = list(seconds)
    if steps and all(isinstance(step, Tensor) and step.numel() == 1 for step in steps):
        return torch.stack([step.reshape(()) for step in steps])
    # A product with a number of NumPy's is rounded as with the number that `item` gives.
    return [step.item() if hasattr(step, "item") else step for step in steps]


def whole_tokens(grid_thw: Tensor, merge_size: int) -> Tensor:
    """Return the grids with sides rounded down; those smaller than a token stay, to be refused."""
    sides = grid_thw[:, 1:]
    whole = torch.where(sides >= merge_size, sides // merge_size * merge_size, sides)
    return torch.cat((grid_thw[:, :1], whole), dim=1)


def _used_grids(
    input_ids: Tensor,
    spec: MRopeSpec,
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the grids less what no token asks for, with sides that the merge size divides.

    Grids that cannot be mended are left as they are, to be refused.
    """
    no_grid = torch.empty((0, 3), dtype=torch.int64)
    images, videos = (
        (no_grid if grids is None else grids).to(input_ids.device)
        for grids in (image_grid_thw, video_grid_thw)
    )
    stream = make_stream(input_ids, mask, None, None, exact=True)
    items = make_items(images, videos, spec, stream.index_dtype)
    found = items.expected.new_zeros(2)
    if stream.num_tokens:
        found = locate(stream, spec, items).found
    starts, _, width, height, _, _ = items.table[:, : items.text]
    image_left = found[0] - starts[: items.num_images]
    video_left = found[1] + items.expected[0] - starts[items.num_images :]

    if spec.separate_frames:
        frame_tokens = (width * height)[items.num_images :].clamp(min=1)
        frames = video_left // frame_tokens
        ends_in_a_frame = frames * frame_tokens != video_left
        frames = torch.where(ends_in_a_frame, videos[:, 0], torch.minimum(videos[:, 0], frames))
        videos = torch.cat((frames.unsqueeze(1), videos[:, 1:]), dim=1)
    return (
        whole_tokens(images[image_left > 0], spec.spatial_merge_size),
        whole_tokens(videos[video_left > 0], spec.spatial_merge_size),
    )
