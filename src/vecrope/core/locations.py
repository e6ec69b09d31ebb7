"""Where every token of a batch stands: its item, its group in it, and its place in that."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.items import Items, temporal_offset
from vecrope.core.modality import MASKED, VIDEO
from vecrope.core.search import search
from vecrope.core.stream import Stream, value_at_last
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
    spec: MRopeSpec
    rows: Tensor  # (N,) int64: row of the batch, or packed sequence
    masked: Tensor | None  # (N,) bool; None: no token is
    image: Tensor  # (N,) bool: unmasked placeholders of images
    video: Tensor | None  # (N,) bool: likewise of videos; None: there can be none
    visual: Tensor  # (N,) bool: of both
    # (N,) markers that are open up to and with each token, above 0 in a video, where these tell.
    open_markers: Tensor | None
    # (N,) number among the batch's placeholders, as `Items` ranks them; meaningless elsewhere.
    ranks: Tensor
    item: Tensor  # (N,) row of the table of items
    place: Tensor  # (N,) number of the token in its group
    base: Tensor  # (N,) running position at which its group starts
    row_moved: Tensor  # (B,) by how much all groups of a row move the running position
    # The columns of `Items.table`, (N,) each.
    start: Tensor
    group_tokens: Tensor
    width: Tensor
    height: Tensor
    in_group: Tensor
    span: Tensor

    @property
    def begins(self) -> Tensor:
        """(N,) bool: the first tokens of groups of images and videos."""
        return self.visual & (self.place == 0)

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
        area = self.width * self.height
        time, cell = self.place // area, self.place % area
        if self.items.time_scale is not None:
            time = temporal_offset(time, self.items.time_scale[:, self.item])
        return torch.stack((time, cell // self.width, cell % self.width))

    def positions(self) -> Tensor:
        """Return the (3, N) positions by the shared rule."""
        positions = self.offsets() + self.base
        if self.masked is None:
            return positions
        return positions.masked_fill(self.masked, self.spec.padding_value)

    def fault(self, *, allow_unused_grids: bool = False) -> Tensor:
        """Return, as a 0-d bool, whether placeholders and grids fail to fit; does not synchronise.

        If `allow_unused_grids`, grids may be left over behind the last whole group.
        """
        stream, spec, items = self.stream, self.spec, self.items
        key = self.item + self.rows * items.table.shape[1]
        if stream.kept is None:
            previous = pad(key[:-1], (1, 0), value=-1)
        else:
            previous = value_at_last(stream.kept, key, -1, before=True)
        follows = key == previous
        # Of placeholders: the place of every other token is 0.
        later = self.place > 0
        faulty = later & ~follows
        if spec.marker_rule == "adjacent" and stream.token_types is None:
            assert spec.vision_start_token_id is not None
            marked = pad(stream.input_ids.eq(spec.vision_start_token_id)[:-1], (1, 0))
            before = False if stream.open_markers is None else stream.open_markers[self.rows] > 0
            same_row = self.rows == pad(self.rows[:-1], (1, 0), value=-1)
            faulty = faulty | (self.visual & ~(torch.where(same_row, marked, before) | later))
        if not spec.frames_may_touch and self.video is not None:
            touching = self.video & follows & ~later
            faulty = faulty | (touching & (self.item < items.text))
        images = self.image.sum(dtype=stream.index_dtype)
        videos = torch.zeros_like(images)
        if self.video is not None:
            videos = self.video.sum(dtype=stream.index_dtype)
        found = torch.stack((images, videos))
        wrong = found != items.expected
        if allow_unused_grids:
            wrong = found > items.expected
            if items.text:  # Triton 3.6 compiles no search among nothing
                # Of the next image token, and of the next video token.
                ranks = torch.stack((images, videos + items.image_tokens))
                start, group_tokens, *_ = items.table[:, search(items.ends, ranks)].unbind()
                wrong = wrong | ((ranks - start) % group_tokens != 0)
        return faulty.any() | wrong.any()
