"""The grid rows as a table of items: what each image and video needs and how it is laid out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vecrope.spec import MRopeSpec


@dataclass(frozen=True)
class Items:
    """I items in encounter order, all images before all videos, as columns in the index dtype.

    Placeholder tokens are ranked the same way: image tokens over the whole batch first, then video
    tokens. An item owns the ranks `start <= rank < start + tokens`. Two rows follow the items:
    text, which is a sequence of 1 x 1 frames, each a group of span 1; and masked tokens, the same
    with span 0. So every segment is expanded by the same arithmetic.
    """

    table: Tensor  # (6, I + 2): start, tokens, width, height, frames in a group, span
    ends: Tensor  # (I,) start + tokens
    num_images: int
    expected: Tensor  # (2,) image tokens and video tokens that the grids describe

    @property
    def text(self) -> int:
        """The row that stands for text."""
        return self.table.shape[1] - 2

    @property
    def masked(self) -> int:
        """The row that stands for masked tokens."""
        return self.table.shape[1] - 1


def make_items(
    image_grid_thw: Tensor, video_grid_thw: Tensor, spec: MRopeSpec, index_dtype: torch.dtype
) -> Items:
    """Build the table from (num_images, 3) and (num_videos, 3) grids, in patches."""
    num_images = image_grid_thw.shape[0]
    # A negative size, refused where values are checked, must not disorder the ranks elsewhere.
    grids = torch.cat((image_grid_thw, video_grid_thw)).to(index_dtype).clamp(min=0)
    frames = grids[:, 0]
    height, width = (grids[:, 1:] // spec.spatial_merge_size).unbind(1)
    tokens = frames * height * width
    ends = tokens.cumsum(0, dtype=index_dtype)
    # A video's frames are groups of their own; an image, whatever its temporal extent, is one.
    in_group = torch.cat((frames[:num_images], torch.ones_like(frames[num_images:])))
    span = torch.maximum(height, width)
    if spec.span_rule == "thw":
        span = torch.maximum(span, in_group)
    table = torch.stack((ends - tokens, tokens, width, height, in_group, span))
    table = torch.nn.functional.pad(table, (0, 2), value=1)
    # Filled, not assigned: that would copy the number from the host.
    table[5, -1].fill_(0)
    expected = torch.stack((tokens[:num_images].sum(), tokens[num_images:].sum()))
    return Items(table, ends, num_images, expected.to(index_dtype))
