"""The static form: every token finds its rank, its item and its position; no value is read.

Runs on any device, and no size depends on values, so that it can be traced and captured. Four steps
give all positions:

1. A cumulative sum numbers the placeholders of the batch, images and videos each on their own. That
   number is the rank of a placeholder.
2. A search among the numbers at which items end gives the item of each rank.
3. Groups, which are images, separate frames or videos that are one block, move the running position
   where they begin, and text moves it by 1. One more cumulative sum gives the position at which
   each group starts.
4. Division of a token's place in its group gives its frame, its row and its column.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.faults import invalidate, unsound
from vecrope.core.items import Items, grids_of, make_items, temporal_offset
from vecrope.core.modality import IMAGE, VIDEO
from vecrope.core.search import search
from vecrope.core.stream import Stream, make_stream, value_at_last
from vecrope.forms.eager.items import read_items
from vecrope.forms.eager.rope_index import raise_misfit
from vecrope.inputs import Inputs, positions_dtype
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
    item: Tensor  # (N,) row of the table of items
    place: Tensor  # (N,) number of the token in its group
    base: Tensor  # (N,) running position at which its group starts
    row_moved: Tensor  # (B,) by how much all groups of a row move the running position
    # Columns of `Items.table`, (N,) each.
    group_tokens: Tensor
    width: Tensor
    height: Tensor
    span: Tensor

    @property
    def begins(self) -> Tensor:
        """(N,) bool: the first tokens of groups of images and videos."""
        return self.visual & (self.place == 0)

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
            lengths = stream.kept_in_rows
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
        # Of placeholders: the place of every other token is 0.
        follows, later = key == previous, self.place > 0
        faulty = later & ~follows
        if spec.marker_rule == "adjacent" and stream.token_types is None:
            marked = pad(is_id(stream.input_ids, spec.vision_start_token_id)[:-1], (1, 0))
            before = False if stream.open_markers is None else stream.open_markers[self.rows] > 0
            same_row = self.rows == pad(self.rows[:-1], (1, 0), value=-1)
            faulty = faulty | (self.visual & ~(torch.where(same_row, marked, before) | later))
        if not spec.frames_may_touch and self.video is not None:
            faulty = faulty | (self.video & follows & ~later & (self.item < items.text))
        images = self.image.sum(dtype=stream.index_dtype)
        videos = torch.zeros_like(images)
        if self.video is not None:
            videos = self.video.sum(dtype=stream.index_dtype)
        found = torch.stack((images, videos))
        wrong = found > items.expected if allow_unused_grids else found != items.expected
        if allow_unused_grids and items.text:  # Triton 3.6 compiles no search among nothing
            # Of the next image token, and of the next video token.
            ranks = torch.stack((images, videos + items.image_tokens))
            start, group_tokens, *_ = items.table[:, search(items.ends, ranks)].unbind()
            wrong = wrong | ((ranks - start) % group_tokens != 0)
        return faulty.any() | wrong.any()


def static_rope_index(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> tuple[Tensor, Tensor]:
    """Return the positions and deltas of `vecrope.get_rope_index`, for a shared-rule family.

    The arguments are checked, and on one device. With `validate` a misfit raises a ValueError,
    which synchronises; under tracing it gives -1 at every token and the least int64 as every delta.
    """
    tokens, fault = locate_inputs(inputs, spec, validate=validate)
    position_ids = tokens.positions().to(positions_dtype(inputs, spec))
    if inputs.cu_seqlens is None:
        position_ids = position_ids.view(3, *inputs.input_ids.shape)
    _, rope_deltas = tokens.ends_of_rows()
    if fault is None:
        return position_ids, rope_deltas
    return invalidate(fault, position_ids, rope_deltas)


def locate_inputs(
    inputs: Inputs, spec: MRopeSpec, *, validate: bool
) -> tuple[TokenLocations, Tensor | None]:
    """Return where each token stands, and whether prompt and grids misfit, 0-d bool, if asked for.

    The arguments are those of `static_rope_index`. What can be raised is, and then there is None.
    """
    device = inputs.input_ids.device
    checked = validate and not torch.compiler.is_compiling()
    if checked:
        read_items(inputs, spec)
    images, videos = (
        grids_of(grids, device) for grids in (inputs.image_grid_thw, inputs.video_grid_thw)
    )
    stream = make_stream(inputs, spec)
    items = make_items(images, videos, spec, stream.index_dtype, inputs.second_per_grid_ts)
    tokens = locate(stream, spec, items)
    if not validate:
        return tokens, None
    fault = tokens.fault(allow_unused_grids=inputs.allow_unused_grids)
    if not checked:
        return tokens, fault | unsound(inputs, spec)
    if bool(fault):
        raise_misfit(inputs, spec)
    return tokens, None


def locate(
    stream: Stream, spec: MRopeSpec, items: Items, images: Tensor | None = None
) -> TokenLocations:
    """Return where each token of a stream of at least one token stands; reads no value.

    `images` (N,) bool are the unmasked placeholders, where those are known and no video is there.
    """
    index_dtype = stream.index_dtype
    rows = stream.token_rows()
    masked = None if stream.kept is None else ~stream.kept
    image, video, open_markers = (
        placeholders(stream, spec, rows) if images is None else (images, None, None)
    )
    visual, ranks = image, image.cumsum(0, dtype=index_dtype)
    if video is not None:
        visual = image | video
        video_ranks = video.cumsum(0, dtype=index_dtype) + items.image_tokens
        ranks = torch.where(video, video_ranks, ranks)
    ranks = ranks - 1
    if items.text == 0:  # Triton 3.6 compiles no search among nothing
        item = torch.zeros_like(ranks)
    else:
        # Beyond the last item the search answers I, which is the row of text.
        item = search(items.ends, ranks).masked_fill(~visual, items.text)
    if masked is not None:
        item = item.masked_fill(masked, items.masked)
    start, *columns, _, span = items.table[:, item].unbind()
    # That of text is 0: each of its tokens is a group.
    place = (ranks - start) % columns[0]

    moved, row_moved = stream.running_sums(span * (place == 0), rows)
    return TokenLocations(
        *(stream, items, spec, rows, masked, image, video, visual, open_markers),
        *(item, place, moved - span, row_moved, *columns, span),
    )


def placeholders(
    stream: Stream, spec: MRopeSpec, rows: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return (N,) bool: the unmasked placeholders of images, and of videos; and open markers."""
    ids, types, kept = stream.input_ids, stream.token_types, stream.kept
    video: Tensor | None
    if types is not None:
        image, video = types == IMAGE, types == VIDEO
    else:
        image = is_id(ids, spec.image_token_id)
        video = None if spec.video_token_id is None else ids == spec.video_token_id
    if kept is not None:
        image, video = image & kept, None if video is None else video & kept
    if types is not None or spec.marker_rule not in ("last", "count"):
        return image, video, None
    open_markers = _open_markers(stream, spec, rows)
    video = image & (open_markers > 0)
    return image ^ video, video, open_markers


def _open_markers(stream: Stream, spec: MRopeSpec, rows: Tensor) -> Tensor:
    """Return (N,) the markers that are open: above 0 a placeholder would be a video's."""
    _, video_start, video_end = spec.markers
    opens, closes = stream.input_ids == video_start, stream.input_ids == video_end
    before: Tensor | None = None
    if stream.open_markers is not None:
        before = stream.open_markers.to(stream.index_dtype)[rows]
    if stream.kept is not None:
        opens, closes = opens & stream.kept, closes & stream.kept
    if spec.marker_rule == "count":
        opened = opens.to(stream.index_dtype) - closes.to(stream.index_dtype)
        counted = stream.running_sums(opened, rows)[0]
        return counted if before is None else counted + before
    # The last marker so far, by its number: its row, and whether it is a start.
    markers = opens | closes
    number_of_end = 2 * rows
    last = value_at_last(markers, number_of_end + opens, default=-1) - number_of_end
    return last.clamp(min=0) if before is None else torch.where(last < 0, before, last)


def is_id(ids: Tensor, token_id: int | None) -> Tensor:
    """Return (N,) bool: the ids that are `token_id`, of which there are none if it is None."""
    return torch.zeros_like(ids, dtype=torch.bool) if token_id is None else ids == token_id
