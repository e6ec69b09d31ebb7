"""The grid rows as a table of items: what each image and video needs and how it is laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.spec import MRopeSpec


@dataclass(frozen=True)
class Items:
    """I items in encounter order, all images before all videos, as columns in the index dtype.

    Placeholders are ranked in the same order: an item owns the ranks up to its end. Two rows follow
    the items: text, a sequence of 1 x 1 frames that are groups of span 1; and masked tokens, the
    same of span 0. So every token is placed by the same arithmetic.
    """

    # (6, I + 2): first rank, tokens of a group, width, height, frames in a group, span
    table: Tensor
    extent: Tensor  # (I + 2,) temporal positions that a group takes; 0 of text
    # (2, I + 2) factors that make the number of a frame in its group its temporal offset, by
    # `temporal_offset`; None: the number is the offset.
    time_scale: Tensor | None
    tokens: Tensor  # (I,)
    ends: Tensor  # (I,) the rank behind the last
    num_images: int
    image_tokens: Tensor  # 0-d, that the grids describe

    @property
    def expected(self) -> Tensor:
        """(2,) image tokens and video tokens that the grids describe."""
        video_tokens = self.tokens[self.num_images :].sum(dtype=self.tokens.dtype)
        return torch.stack((self.image_tokens, video_tokens))

    @property
    def text(self) -> int:
        """The row that stands for text."""
        return self.table.shape[1] - 2

    @property
    def masked(self) -> int:
        """The row that stands for masked tokens."""
        return self.table.shape[1] - 1


def make_items(
    image_grid_thw: Tensor,
    video_grid_thw: Tensor,
    spec: MRopeSpec,
    index_dtype: torch.dtype,
    seconds: Tensor | Sequence[float] | None = None,
) -> Items:
    """Build the table from (num_images, 3) and (num_videos, 3) grids, in patches.

    `seconds` are those of a temporal step of each video, where the family spaces videos in time.
    """
    num_images, num_videos = image_grid_thw.shape[0], video_grid_thw.shape[0]
    # A negative size, refused where values are checked, must not disorder the ranks elsewhere.
    grids = torch.cat((image_grid_thw, video_grid_thw)).to(index_dtype).clamp(min=0)
    height, width = (grids[:, 1:] // spec.spatial_merge_size).unbind(1)
    in_group = frames = grids[:, 0]
    of_images, of_videos = frames[:num_images], frames[num_images:]
    if spec.temporal_merge_size > 1:
        in_group = frames = torch.cat((of_images, of_videos // spec.temporal_merge_size))
    elif spec.separate_frames:  # an image, whatever its temporal extent, is one group
        in_group = torch.cat((of_images, torch.ones_like(of_videos)))
    area = height * width
    group_tokens = tokens = frames * area
    if spec.separate_frames:
        group_tokens = in_group * area
    ends = tokens.cumsum(0, dtype=index_dtype)
    time_scale, extent = None, in_group
    if has_time_scale(spec):
        device = video_grid_thw.device
        if spec.video_time == "seconds":
            factors = video_time_scale(num_videos, spec, seconds, device)
        else:
            factors = torch.ones((2, num_videos), dtype=torch.float32, device=device)
        time_scale = pad(factors, (num_images, 2), value=1)
        if spec.image_time == "none":
            time_scale[0, :num_images].fill_(0)
        extent = temporal_offset(in_group - 1, time_scale[:, :-2]).clamp(min=0) + 1
    span = torch.maximum(height, width)
    if spec.span_rule == "thw":
        span = torch.maximum(span, extent)
    table = torch.stack((ends - tokens, group_tokens, width, height, in_group, span))
    table = pad(table, (0, 2), value=1)
    # Filled, not assigned: that would copy the number from the host.
    table[5, -1].fill_(0)
    image_tokens = tokens[:num_images].sum(dtype=index_dtype)
    return Items(table, pad(extent, (0, 2)), time_scale, tokens, ends, num_images, image_tokens)


def grids_of(grid_thw: Tensor | None, device: torch.device) -> Tensor:
    """Return (I, 3) grids on a device: none where none are given."""
    if grid_thw is None:
        return torch.empty((0, 3), dtype=torch.int64, device=device)
    return grid_thw.to(device)


def temporal_offset(frame: Tensor, time_scale: Tensor) -> Tensor:
    """Return the temporal offsets of frames by their numbers, each product rounded as upstream."""
    step, scale = time_scale.unbind()
    return (frame.to(time_scale.dtype) * step * scale).to(frame.dtype)


def has_time_scale(spec: MRopeSpec) -> bool:
    """Say whether items have a time scale: a frame's number is not always its position."""
    return spec.video_time == "seconds" or spec.image_time != "frames"


def video_time_scale(
    num_videos: int,
    spec: MRopeSpec,
    seconds: Tensor | Sequence[float] | None,
    device: torch.device,
) -> Tensor:
    """Return the factors (2, num_videos) of a family that spaces videos in time."""
    rate = spec.tokens_per_second
    assert rate is not None
    dtype, counted = time_dtypes(seconds, spec)
    if seconds is None:
        default = spec.default_seconds or 0.0
        seconds = torch.full((num_videos,), default, dtype=dtype, device=device)
    elif not isinstance(seconds, Tensor):
        seconds = torch.tensor(seconds, dtype=dtype, device="cpu")
    seconds = seconds.to(device, dtype)
    if spec.time_dtype == "int64":
        seconds = seconds.trunc()
    step, scale = (seconds * rate, 1) if spec.time_order == "rate" else (seconds, rate)
    step = step.to(counted)
    return torch.stack((step, torch.full_like(step, scale)))


def time_dtypes(
    seconds: Tensor | Sequence[float] | None, spec: MRopeSpec
) -> tuple[torch.dtype, torch.dtype]:
    """Return the precision of the seconds of a step, and that in which steps are counted."""
    if spec.time_dtype != "given":
        dtype = torch.float32 if spec.time_dtype == "float32" else torch.float64
    elif not isinstance(seconds, Tensor):
        return torch.float64, torch.float32
    else:
        dtype = seconds.dtype if seconds.is_floating_point() else torch.float64
    return dtype, dtype
