"""On any device: every token finds its crop and its place there; no value is read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.modality import VIDEO
from vecrope.core.search import count_begun, search
from vecrope.core.stream import Stream
from vecrope.families.rules import MiniCPMV47
from vecrope.inputs import Inputs
from vecrope.own_rules.minicpmv4_7.sizes import LIMIT, MAX_SIDE, are_unsound
from vecrope.spec import MRopeSpec


class _Tokens(NamedTuple):
    """The n = N + 3 tokens: those that are not masked, behind one and before two that are none.

    Rows count from 1; 0 and B + 1 are those of what is no token.
    """

    codes: Tensor  # (n,) modality
    closing: Tensor  # (n,) 1 for what still belongs to a picture behind its last crop
    between: Tensor  # (n,) 1 for a marker or newline
    slice_starts: Tensor  # (n,) 1 or 0; and so the next two
    opens: Tensor
    closes: Tensor
    rows: Tensor  # (n,)
    bounds: Tensor  # (B + 3,) where each row starts, then 1
    place: Tensor | None  # (N,) where each token of the stream is; None: one further

    @property
    def number(self) -> int:
        return self.codes.shape[0]


class _Crops(NamedTuple):
    """C crops: an empty one in front of all, one for each size, one more, and none.

    What no crop takes starts behind the last token.
    """

    starts: Tensor  # (C,)
    ends: Tensor  # (C,)
    rows: Tensor  # (C,)
    is_slice: Tensor  # (C,) bool; a thumbnail otherwise
    same_row: Tensor  # (C,) bool: as the crop before
    first: Tensor  # (C,) the thumbnail of its picture
    last: Tensor  # (C,) the last crop of its picture
    size_rows: Tensor  # (C,) of the images' and then the videos', from 1 on; 0 is no size
    of_video: Tensor  # (C,) bool
    sizes: Tensor  # (2, C) lines and columns, in tokens


class _Tiling(NamedTuple):
    """Where crops lie on the canvas of their picture, (2, C) each, as height and width."""

    canvas: Tensor
    corner: Tensor
    far: Tensor  # of the token behind the crop
    line_end: Tensor  # of all further tokens behind it


def static_rope_index(
    inputs: Inputs,
    spec: MRopeSpec,
    rule: MiniCPMV47,
    stream: Stream,
    sizes: tuple[Tensor, Tensor],
    *,
    validate: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return positions (3, N) int64, deltas (B, 1) and whether anything does not fit.

    Args:
        inputs: types and shapes have been checked.
        spec: of the family.
        rule: the spec's.
        stream: of at least one token.
        sizes: (num_image_crops, 2) and (num_video_crops, 2) int64 on the device of the ids.
        validate: otherwise that is not asked, and None.
    """
    tokens = _gather_tokens(stream, spec, rule)
    crops, fault = _find_crops(tokens, rule, sizes, inputs, stream, validate=validate)
    tiling = _tile(crops)
    positions = _place(tokens, crops, tiling, rule)
    if tokens.place is None or stream.kept is None:
        positions = positions[:, 1:-2]
    else:
        positions = positions[:, tokens.place.clamp(max=tokens.number - 1)]
        # 0 at masked tokens counts.
        positions = positions.masked_fill(stream.kept.logical_not(), 0)
    given = stream.row_bounds.diff()
    if len(stream.shape) == 2:
        largest = positions.view(3, *stream.shape).amax((0, 2))
    else:
        largest = torch.where(given > 0, 0, -1)
        largest = largest.scatter_reduce(0, stream.token_rows(), positions.amax(0), "amax")
    lengths = tokens.bounds[1:-1].diff() if spec.delta_length == "valid" else given
    if stream.kept is not None and spec.padding_value:
        positions = positions.masked_fill(~stream.kept, spec.padding_value)
    if fault is not None:
        stretched = (crops.sizes[:, crops.first] - 1) * (tiling.canvas - 1) >= LIMIT
        fault = fault | ((crops.last > crops.first) & stretched.any(0)).any()
    return positions, (largest + 1 - lengths).unsqueeze(1), fault


def _gather_tokens(stream: Stream, spec: MRopeSpec, rule: MiniCPMV47) -> _Tokens:
    ids, types, kept = stream.input_ids.to(torch.int64), stream.token_types, stream.kept
    known = [rule.image_start_id, rule.slice_start_id, rule.image_end_id, rule.slice_end_id]
    known.append(rule.newline_id)
    if types is None:
        # None is the id of no token.
        given = (spec.image_token_id, spec.video_token_id)
        known += [-(2**63) if token is None else token for token in given]
    of_kind = torch.empty((len(known), 1), dtype=torch.int64, device=ids.device)
    for each, token in zip(of_kind.unbind(), known, strict=True):
        each.fill_(token)
    found = ids == of_kind
    between = found[:5].any(0)
    closing = between if rule.newline_closes else found[:4].any(0)
    codes = found[5].long().add(found[6], alpha=2) if types is None else types.long()
    by_markers = types is None and rule.crop_rule == "markers"
    opens, closes = (found[:2].any(0), found[2:4].any(0)) if by_markers else (closing, closing)
    columns = torch.stack((codes, closing, between, found[1], opens, closes))
    place, bounds, number = None, stream.row_bounds, stream.num_tokens
    if kept is None:
        columns = pad(columns, (1, 2))
    else:
        count = kept.cumsum(0)
        bounds = pad(count, (1, 0))[bounds]
        # The last place takes what is masked.
        place = torch.where(kept, count, number + 3)
        columns = columns.new_zeros((6, number + 4)).scatter(1, place.expand(6, -1), columns)
        columns = columns[:, :-1]
    bounds = bounds + 1
    rows = count_begun(bounds, number + 3)
    bounds = pad(bounds, (1, 1), value=1)
    codes, closing, between, slice_starts, opens, closes = columns.unbind()
    return _Tokens(codes, closing, between, slice_starts, opens, closes, rows, bounds, place)


def _find_crops(
    tokens: _Tokens,
    rule: MiniCPMV47,
    sizes: tuple[Tensor, Tensor],
    inputs: Inputs,
    stream: Stream,
    *,
    validate: bool,
) -> tuple[_Crops, Tensor | None]:
    """Tabulate the crops, and say whether they do not fit their sizes."""
    images, videos = sizes
    table = torch.cat((images.new_zeros((1, 2)), images, videos))
    capacity, outside = table.shape[0] + 2, tokens.number - 1
    number = torch.arange(capacity, device=table.device)
    in_crop = tokens.codes != 0
    key = torch.add(tokens.codes, tokens.rows, alpha=4)
    changes = key[1:] != key[:-1]
    # Inductor searches no views.
    begun, ended = (pad(changes & sides, (1, 0)).cumsum(0) for sides in (in_crop[1:], in_crop[:-1]))
    starts, ends = (search(counts, number, right=False) for counts in (begun, ended))
    total = begun[-1]
    given = table.any(1).cumsum(0)
    misplaced = None
    if stream.token_types is None and rule.crop_rule == "markers":
        has_sizes = given[-1] > 0
        marked = _marked_crops(tokens, number, validate=validate)
        starts = torch.where(has_sizes, marked[0], starts)
        ends = torch.where(has_sizes, marked[1], ends)
        total = torch.where(has_sizes, marked[2], total)
        misplaced = None if marked[3] is None else has_sizes & marked[3]
    starts, ends = starts.clamp(max=outside), ends.clamp(max=outside)
    rows = tokens.rows[starts]
    same_row = rows == rows.roll(1)
    is_slice = same_row & (tokens.slice_starts[starts - 1] > 0)
    heads = (~is_slice).cumsum(0)
    first, last = search(heads, heads, right=False), search(heads, heads) - 1

    # All crops of a picture take the sizes of its thumbnail's kind.
    of_video = tokens.codes[starts[first]] == VIDEO
    in_videos = of_video.cumsum(0)
    rank = torch.where(of_video, in_videos + given[images.shape[0]], number - in_videos)
    size_rows = search(given, rank, right=False) % table.shape[0]
    own = (table[size_rows] // rule.downsample_factor).clamp(min=0, max=MAX_SIDE - 1).t()
    crops = _Crops(starts, ends, rows, is_slice, same_row, first, last, size_rows, of_video, own)
    if not validate:
        return crops, None
    used = (number > 0) & (starts < outside)
    touches = same_row & (starts == ends.roll(1)) | (starts == tokens.bounds[rows])
    misfits = (ends - starts != own.prod(0)) | (of_video != (size_rows > images.shape[0]))
    unsound = are_unsound(table, rule, round_grid_sides=inputs.round_grid_sides)
    miscounted = total > given[-1] if inputs.allow_unused_grids else total != given[-1]
    fault = (used & (touches | misfits)).any() | unsound.any() | miscounted
    return crops, fault if misplaced is None else fault | misplaced


def _marked_crops(
    tokens: _Tokens, number: Tensor, *, validate: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return starts and ends of what is between two markers, how much, and if one is misplaced."""
    opens, closes = tokens.opens > 0, tokens.closes > 0
    index = torch.arange(tokens.number, device=opens.device)
    # The last marker up to each token, and whether it opens.
    state = torch.add(opens, index, alpha=2).masked_fill(~(opens | closes), -1).cummax(0).values
    before = state.roll(1)
    opened = (before % 2 == 1) & (before // 2 >= tokens.bounds[tokens.rows])
    ended = (closes & opened).cumsum(0)
    ends = search(ended, number, right=False)
    starts = before[ends.clamp(max=tokens.number - 1)] // 2 + 1
    # The first crop is an empty one in front of all.
    starts = starts.masked_fill(number > ended[-1], tokens.number).masked_fill(number == 0, 0)
    if not validate:
        return starts, ends, ended[-1], None
    row_ends = tokens.bounds[1:][tokens.rows] - 1
    counts = torch.stack((opens, closes)).cumsum(1)
    opened_later, closed_later = counts[:, row_ends] > counts
    nested = opens & opened & closed_later
    unopened = closes & ~opened & opened_later
    empty = closes & opened & (before // 2 == index - 1)
    return starts, ends, ended[-1], (nested | unopened | empty).any()


def _tile(crops: _Crops) -> _Tiling:
    """Lay out the slices of each picture line by line."""
    number = torch.arange(crops.starts.shape[0], device=crops.starts.device)
    is_slice, first, last = crops.is_slice, crops.first, crops.last
    # The first slice with more than its two markers behind it ends a line, and so all lines.
    ends_line = is_slice[1:] & (crops.starts[1:] - crops.ends[:-1] > 2)
    line_ends = pad(ends_line, (0, 1)).cumsum(0)
    line_end = search(line_ends, line_ends[first] + 1, right=False)
    slices = last - first
    columns = (torch.minimum(line_end, last) - first).clamp(min=1)
    # Lines of different lengths are taken for one.
    columns = torch.where(slices % columns > 0, slices, columns)
    lines = (slices // columns).clamp(min=1)
    # All are placed by the size of the first slice.
    lead = torch.minimum(first + 1, last)
    unit = crops.sizes[:, lead]
    canvas = torch.stack((lines, columns)) * unit
    place = (number - lead).clamp(min=0)
    corner = torch.stack((place // columns, place % columns)) * unit
    far = torch.where(is_slice, corner + crops.sizes - 1, canvas)
    behind = torch.stack((corner[0] + unit[0] - 1, canvas[1]))
    return _Tiling(canvas, corner, far, behind * (is_slice & is_slice.roll(-1)))


def _place(tokens: _Tokens, crops: _Crops, tiling: _Tiling, rule: MiniCPMV47) -> Tensor:
    """Return the (3, n) positions of all tokens."""
    starts, ends, is_slice = crops.starts, crops.ends, crops.is_slice
    before = starts - 1
    begin = before[crops.first]
    done = _next(1 - tokens.closing, ends[crops.last])
    # The next picture may start earlier.
    done = torch.minimum(
        done, torch.minimum(tokens.bounds[1:][crops.rows], before.roll(-1)[crops.last])
    )
    span = tiling.canvas.amax(0) + 1
    apart = None
    if not rule.newline_closes:
        # Pictures with nothing but markers and newlines in between are frames of one video to
        # SGLang, and if there is any, a frame keeps its distance from it.
        previous = done.roll(1)[crops.first]
        gap = (previous < begin) & (_next(1 - tokens.between, previous) >= begin)
        apart = gap & crops.same_row[crops.first]
        span = span + apart
    shift = (span - done + begin).masked_fill(is_slice, 0).cumsum(0)

    index = torch.arange(tokens.number, device=starts.device)
    at = count_begun(starts, tokens.number) - 1
    running = index + shift[at]
    # Text: one more than its position.
    running = running - running[tokens.bounds - 1][tokens.rows]
    origin = running[begin] - 1
    if apart is not None:
        origin = origin + apart

    leads = starts.roll(-1)[at] == index + 1
    at = at + leads
    # A thumbnail is spread over its canvas.
    spacing, step = even_spacing(torch.where(is_slice, crops.sizes, tiling.canvas), crops.sizes)
    table = torch.stack((starts, ends, done, origin, crops.sizes[1].clamp(min=1)))
    table = torch.cat((table, spacing.flatten(0, 1)))[:, at]
    start, end, stop, base, width = table[:5]
    cell = index - start
    cells = torch.stack((cell // width, cell % width))
    cells = rounded_linspace(cells, table[5:].view(3, 2, -1), step[:, at])
    # 0: right before the crop, 1: in it, 2: right behind it, 3: further behind.
    where = ((index - end).clamp(min=-1, max=1) + 2).masked_fill(leads, 0)
    halo = origin.clamp(max=1).masked_fill(is_slice, 0)
    offsets = torch.cat((tiling.corner - halo, tiling.corner, tiling.far, tiling.line_end), 1)
    offsets = offsets[:, torch.add(at, where, alpha=starts.shape[0])]
    offsets = offsets + cells.masked_fill(where != 1, 0)
    on_canvas = base + pad(offsets, (0, 0, 1, 0))
    return torch.where(index < stop, on_canvas, running - 1)


def even_spacing(extent: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `rounded_linspace` needs of `count` places among `extent`, both of one shape.

    Returns:
        (3, ...) int64: the last place, the first one that is measured from the last, and where that
        lies; and (...) float32, the step rounded to 24 bits.
    """
    reach, last = count - 1, extent - 1
    step = (last.double() / reach.clamp(min=1)).float()
    return torch.stack((reach, (count // 2).clamp(min=1), last)), step


def rounded_linspace(index: Tensor, spacing: Tensor, step: Tensor) -> Tensor:
    """Return where places lie: `torch.linspace(0, extent - 1, count)[index].round()`, int64.

    It is that bit for bit, as float32 gives it on a CPU: multiples of the rounded step from the
    nearer end, rounded too, and then half to even. A sum of exact fractions would differ where a
    place lies halfway between two others. Products and sums are rounded by a conversion each, which
    no compiler fuses.

    Args:
        index: int64, from 0 to `count - 1`.
        spacing: of `even_spacing`.
        step: likewise. `(extent - 1) * (count - 1)` must be below `LIMIT`, or `extent` and `count`
            equal and below 2**16.
    """
    reach, half, last = spacing.unbind()
    from_end = index >= half
    way = (index - from_end * reach) * step
    return (way.double() + from_end * last).float().round().long()


def _next(flags: Tensor, at: Tensor) -> Tensor:
    """Return the first token, from each on, of which the flag is 1; the last one is."""
    count = flags.cumsum(0)
    return search(count, (count + 1 - flags)[at], right=False)
