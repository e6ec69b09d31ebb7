"""The segment table: where each run starts, what it is, its grid, and its base position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.items import Items
from vecrope.core.modality import IMAGE, MASKED, VIDEO, compact, in_video, token_codes
from vecrope.core.stream import Stream
from vecrope.spec import MRopeSpec


@dataclass(frozen=True)
class Runs:
    """Maximal stretches of one modality within a row, as they stand in the token stream."""

    starts: Tensor  # (S,) ascending token indices; N for the unused rows of a static table
    lengths: Tensor  # (S,)
    modality: Tensor  # (S,) TEXT, IMAGE, VIDEO or MASKED
    ranks: Tensor  # (S,) rank of the first token among the batch's placeholders, as Items ranks
    # Image tokens and video tokens up to and with each run, (S,) each. Not two rows of one tensor:
    # Inductor (torch 2.11, CUDA) would search both in the first.
    found: tuple[Tensor, Tensor]
    count: Tensor | None  # 0-d: runs in the stream, where the table may be too small for them

    @property
    def total(self) -> Tensor:
        """(2,) image tokens and video tokens in all."""
        return torch.stack((self.found[0][-1], self.found[1][-1]))


@dataclass(frozen=True)
class Segments:
    """The runs cut at the items' boundaries, with all that is needed to expand them.

    The token at index `i` of segment `s` stands at place `r = i - origin[s]` of its item. Counting
    `r` in columns, rows, frames and groups of the item gives its position: the group's number times
    `span` plus `base`, and in addition the frame within the group, the row and the column.
    """

    starts: Tensor  # (S,) ascending token indices; N for the unused rows of a static table
    lengths: Tensor  # (S,)
    modality: Tensor  # (S,) TEXT, IMAGE, VIDEO or MASKED
    rows: Tensor  # (S,)
    items: Tensor  # (S,) row of the item table
    origin: Tensor  # (S,) token index that place 0 of the item would have
    base: Tensor  # (S,) position of the item's first group, as seen from this segment
    width: Tensor  # (S,) columns of a frame, in tokens
    height: Tensor  # (S,) rows of a frame, in tokens
    in_group: Tensor  # (S,) frames in a group
    span: Tensor  # (S,) how far a group moves the running position
    pace: Tensor | None  # (2, S) see Items
    interrupted: Tensor  # (S,) bool: starts inside a group, so that its beginning stands elsewhere
    # (S,) bool: an item or a frame in it starts without the marker that the spec asks for right
    # before; None: it asks for none.
    unannounced: Tensor | None
    # (S,) bool: a frame in it follows one of the same video, with no unmasked token in between,
    # where the spec forbids that; None: it does not.
    joined: Tensor | None
    runs: Runs
    next_positions: Tensor  # (B,) int64, one more than the largest position of each row
    rope_deltas: Tensor  # (B, 1) int64


def find_runs(stream: Stream, spec: MRopeSpec, items: Items, capacity: int | None) -> Runs:
    """Cut the stream where the modality or the row changes."""
    codes = token_codes(stream, spec)
    edges = torch.cat((codes.new_ones(1, dtype=torch.bool), codes[1:] != codes[:-1]))
    starts, count = compact(stream.mark_row_starts(edges), capacity, stream.index_dtype)
    lengths = _lengths(starts, stream)
    modality = codes[starts.clamp(max=stream.num_tokens - 1)]
    if stream.token_types is None and spec.marker_rule in ("last", "count"):
        video = in_video(stream, spec, starts, stream.row_bounds[stream.row_of(starts)])
        if video is not None:
            modality = torch.where((modality == IMAGE) & video, VIDEO, modality)
    ranks, found = ranks_of(modality, lengths, items, stream.index_dtype)
    return Runs(starts, lengths, modality, ranks, found, count)


def ranks_of(
    modality: Tensor, lengths: Tensor, items: Items, index_dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the ranks of the runs' first tokens and what has been found up to each; see `Runs`."""
    images = torch.where(modality == IMAGE, lengths, 0)
    videos = torch.where(modality == VIDEO, lengths, 0)
    found_images = images.cumsum(0, dtype=index_dtype)
    found_videos = videos.cumsum(0, dtype=index_dtype)
    ranks = torch.where(
        modality == VIDEO, found_videos - videos + items.expected[0], found_images - images
    )
    return ranks, (found_images, found_videos)


def build_segments(stream: Stream, spec: MRopeSpec, items: Items, runs: Runs) -> Segments:
    """Give every run its item, cut it where it holds several, and sum the spans to bases."""
    starts, lengths, modality, ranks = runs.starts, runs.lengths, runs.modality, runs.ranks
    item = _item_of(items, modality, ranks)
    if not stream.exact or _crosses_items(items, item, ranks, lengths):
        starts, run = _cut_at_items(stream, items, runs)
        lengths = _lengths(starts, stream)
        modality = torch.where(lengths > 0, runs.modality[run], MASKED)
        ranks = runs.ranks[run] + (starts - runs.starts[run])
        item = _item_of(items, modality, ranks)
    item_start, _, width, height, in_group, span = items.table[:, item].unbind()
    masked = modality == MASKED
    place = torch.where(item < items.text, ranks - item_start, 0)

    group_tokens = width * height * in_group
    first_group = _ceil_div(place, group_tokens)
    end_group = _ceil_div(place + lengths, group_tokens)
    advance = (end_group - first_group) * span
    valid = lengths.masked_fill(masked, 0)
    sums = torch.stack((advance, valid)).cumsum(1, dtype=stream.index_dtype)
    sums = pad(sums, (1, 0))  # exclusive
    at_rows = sums[:, torch.searchsorted(starts, stream.row_bounds)]
    rows = stream.row_of(starts)
    base = sums[0, :-1] - at_rows[0, rows] - first_group * span

    row_end, row_valid = at_rows[:, 1:] - at_rows[:, :-1]
    if spec.span_rule == "hw":
        # A block, which is one group, can reach further than it moves the running position.
        reach = base + items.extent[item]
        row_end = row_end.scatter_reduce(0, rows.long(), reach.masked_fill(masked, 0), "amax")
    if spec.delta_length == "valid":
        row_length = row_valid
    else:
        row_length = stream.row_bounds[1:] - stream.row_bounds[:-1]
    unannounced = None
    if spec.marker_rule == "adjacent" and stream.token_types is None:
        # Before the first token stands none; it starts its row.
        before = stream.input_ids[starts - 1]
        announced = (before == spec.vision_start_token_id) & (starts > stream.row_bounds[rows])
        alone = end_group - first_group <= 1
        visual = (modality == IMAGE) | (modality == VIDEO)
        unannounced = visual & ~(announced & alone)
    interrupted = first_group * group_tokens != place
    joined = None
    if not spec.frames_may_touch:
        key = torch.where(modality == VIDEO, item, -1) * stream.num_rows + rows
        joined = end_group - first_group > 1
        previous = previous_of(~masked, starts.dtype).clamp(min=0)
        joined |= ~interrupted & (place > 0) & (key == key[previous])
        joined &= modality == VIDEO
    return Segments(
        starts=starts,
        lengths=lengths,
        modality=modality,
        rows=rows,
        items=item,
        origin=starts - place,
        base=base.masked_fill(masked, spec.padding_value),
        width=width,
        height=height,
        in_group=in_group,
        span=span,
        pace=None if items.pace is None else items.pace[:, item],
        interrupted=interrupted,
        unannounced=unannounced,
        joined=joined,
        runs=runs,
        next_positions=row_end.to(torch.int64),
        rope_deltas=(row_end - row_length).to(torch.int64).unsqueeze(1),
    )


def segment_stream(
    stream: Stream, spec: MRopeSpec, items: Items, max_segments: int | None
) -> Segments:
    """Return the segment table of a stream of at least one token."""
    capacity = None if stream.exact else max_segments or stream.num_tokens
    return build_segments(stream, spec, items, find_runs(stream, spec, items, capacity))


def _lengths(starts: Tensor, stream: Stream) -> Tensor:
    return torch.cat((starts[1:], stream.row_bounds[-1:])) - starts


def _ceil_div(value: Tensor, divisor: Tensor) -> Tensor:
    return (value + divisor - 1) // divisor


def previous_of(kept: Tensor, index_dtype: torch.dtype) -> Tensor:
    """Return (S,) the number of the last segment before each that is `kept` (S,), -1 for none."""
    number = torch.arange(kept.shape[0], dtype=index_dtype, device=kept.device)
    before = number.masked_fill(~kept, -1).cummax(0).values
    return pad(before[:-1], (1, 0), value=-1)


def _item_of(items: Items, modality: Tensor, ranks: Tensor) -> Tensor:
    other = torch.where(modality == MASKED, items.masked, items.text)
    if items.text == 0:  # Triton 3.6 compiles no search among nothing
        return other
    # Past the last item searchsorted answers I, which is the row of text.
    item = torch.searchsorted(items.ends, ranks, right=True)
    return torch.where((modality == IMAGE) | (modality == VIDEO), item, other)


def _crosses_items(items: Items, item: Tensor, ranks: Tensor, lengths: Tensor) -> bool:
    tokens_left = items.table[:2, item].sum(0) - ranks
    return bool(((lengths > tokens_left) & (item < items.text)).any())


def _cut_at_items(stream: Stream, items: Items, runs: Runs) -> tuple[Tensor, Tensor]:
    """Return starts that include the items' first tokens, and the run that each lies in.

    An item that begins where a run does starts there twice: the first of the two has no token.
    """
    item_starts = items.table[0, : items.text]
    last = runs.starts.shape[0] - 1
    starts = runs.starts
    for kind, ranks in enumerate(
        (item_starts[: items.num_images], item_starts[items.num_images :] - items.expected[0])
    ):
        if ranks.shape[0] == 0:  # Triton 3.6 compiles no search among nothing
            continue
        found = runs.found[kind]
        run = torch.searchsorted(found, ranks, right=True)
        within = run.clamp(max=last)
        at = runs.starts[within] + ranks - (found[within] - runs.lengths[within])
        starts = _merge(starts, torch.where(run <= last, at, stream.num_tokens))
    return starts, torch.searchsorted(runs.starts, starts, right=True) - 1


def _merge(left: Tensor, right: Tensor) -> Tensor:
    """Merge two ascending tensors; Inductor would specialise a sort on its size."""
    merged = left.new_empty(left.shape[0] + right.shape[0])
    merged[torch.arange(left.shape[0], device=left.device) + torch.searchsorted(right, left)] = left
    place = torch.searchsorted(left, right, right=True)
    merged[torch.arange(right.shape[0], device=left.device) + place] = right
    return merged
