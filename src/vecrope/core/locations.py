"""Where every token of a batch stands: its item, its group in it, and its place in that."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vecrope.core.items import Items, temporal_offset
from vecrope.core.modality import MASKED, VIDEO
from vecrope.core.stream import Stream
from vecrope.spec import MRopeSpec


@dataclass(frozen=True)
class TokenLocations:
    """The N tokens of a batch, each with its item and its place there.

    A token of text counts as a group of its own, of the item `items.text`, and a masked token as
    one of `items.masked`, which moves nothing. A placeholder beyond the last grid of its kind has
    an item that is not of its kind.
    """

    stream: Stream
    items: Items
    image: Tensor  # (N,) bool: unmasked placeholders of images
    video: Tensor | None  # (N,) bool: likewise of videos; None: there can be none
    visual: Tensor  # (N,) bool: of both
    # (N,) markers that are open up to and with each token, above 0 in a video, where these tell.
    open_markers: Tensor | None
    masked: Tensor | None  # (N,) bool; None: no token is
    rows: Tensor  # (N,) int64: row of the batch, or packed sequence
    # (N,) number among the batch's placeholders, as `Items` ranks them; meaningless elsewhere.
    ranks: Tensor
    item: Tensor  # (N,) row of the table of items
    start: Tensor  # (N,) rank of the item's first token
    place: Tensor  # (N,) number of the token in its group
    base: Tensor  # (N,) running position at which its group starts
    # Of the group: columns, rows, frames, columns times rows, tokens, and how far it moves the
    # running position, (N,) each.
    width: Tensor
    height: Tensor
    in_group: Tensor
    area: Tensor
    group_tokens: Tensor
    span: Tensor
    num_images: Tensor  # 0-d, image tokens in the batch
    num_videos: Tensor  # 0-d, video tokens in the batch
    row_moved: Tensor  # (B,) by how much all groups of a row move the running position
    spec: MRopeSpec

    @property
    def begins(self) -> Tensor:
        """(N,) bool: the first tokens of groups of images and videos."""
        return self.visual & (self.place == 0)

    @property
    def found(self) -> Tensor:
        """(2,) image tokens and video tokens in the batch."""
        return torch.stack((self.num_images, self.num_videos))

    @property
    def group(self) -> Tensor:
        """(N,) number of the group in its item; 0 elsewhere."""
        return ((self.ranks - self.start) // self.group_tokens).masked_fill(~self.visual, 0)

    @property
    def kind(self) -> Tensor:
        """(N,) uint8: TEXT, IMAGE, VIDEO or MASKED."""
        kind = self.image.to(torch.uint8)
        if self.video is not None:
            kind = kind.masked_fill(self.video, VIDEO)
        return kind if self.masked is None else kind.masked_fill(self.masked, MASKED)

    def ends_of_rows(self) -> tuple[Tensor, Tensor]:
        """Return one more than the largest position of each row (B,), and deltas (B, 1), int64."""
        stream, ends = self.stream, self.row_moved
        if self.spec.span_rule == "hw":
            # A block, which is one group, can reach further than it moves the running position.
            reached = self.base + self.items.extent[self.item]
            ends = ends.scatter_reduce(0, self.rows, reached, "amax")
        ends = ends.to(torch.int64)
        lengths: Tensor | int = stream.shape[-1]
        if self.spec.delta_length == "valid" and stream.kept is not None:
            lengths = stream.row_sums(stream.kept)
        elif len(stream.shape) == 1:
            lengths = stream.row_bounds.diff()
        return ends, (ends - lengths).unsqueeze(1)

    def offsets(self) -> Tensor:
        """Return the (3, N) frame, row and column of every token, the first as time; 0 for text."""
        time, cell = self.place // self.area, self.place % self.area
        if self.items.time_scale is not None:
            time = temporal_offset(time, self.items.time_scale[:, self.item])
        return torch.stack((time, cell // self.width, cell % self.width))

    def positions(self, padding_value: int) -> Tensor:
        """Return the (3, N) positions by the shared rule, `padding_value` at masked tokens."""
        positions = self.offsets() + self.base
        return (
            positions if self.masked is None else positions.masked_fill(self.masked, padding_value)
        )

    def run_at(self, at: int) -> tuple[int, int]:
        """Return where the run of one item's tokens that holds the token `at` starts and stops."""
        other = (self.item != self.item[at]) | (self.rows != self.rows[at])
        before, after = other[:at].nonzero(), other[at:].nonzero()
        start = int(before[-1]) + 1 if before.shape[0] else 0
        return start, at + int(after[0]) if after.shape[0] else other.shape[0]
