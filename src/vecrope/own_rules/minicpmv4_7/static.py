"""On any device: every token finds its crop and its place there; no value is read.

Tokens stand in slots, row after row, without those that are masked. A slot of no token precedes
each row, as a marker precedes a crop, and begins a picture without a size: the text of the row
follows it as text follows any other picture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.modality import TEXT, VIDEO
from vecrope.core.search import search
from vecrope.core.stream import Stream
from vecrope.families.rules import MiniCPMV47
from vecrope.inputs import Inputs
from vecrope.own_rules.minicpmv4_7.sizes import LIMIT, MAX_SIDE, are_unsound
from vecrope.spec import MRopeSpec

# What a flag is in a slot of no token.
_NONE = 2


class _Slots(NamedTuple):
    """The slots of N tokens; each flag is 0 for what it names, 1 for others, 2 for no token."""

    place: Tensor  # (N,) slot of each token; masked ones share one
    in_crop: Tensor  # (n,) uint8
    slice_start: Tensor  # (n,) uint8
    video: Tensor  # (n,) uint8
    closing: Tensor  # (n,) uint8: what still belongs to a picture behind its last crop
    between: Tensor | None  # (n,) uint8: a marker or newline; None: those are the closing ones
    unpaired: Tensor | None  # 0-d bool: markers do not enclose crops one after the other


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
    kept, rows = stream.kept, stream.token_rows()
    # The first row is no size.
    table = torch.cat((sizes[0].new_zeros((1, 2)), *sizes))
    given = table.any(1).cumsum(0)
    slots = _fill_slots(stream, spec, rule, rows, given[-1])
    place = slots.place

    # Entries: one for each row and each crop, one in front and one behind. A crop's is found by
    # the marker before it.
    begins = slots.in_crop[:-2] > slots.in_crop[1:-1]
    entry_at = begins.cumsum(0)
    number = torch.arange(stream.num_rows + table.shape[0] + 1, device=rows.device)
    begin = search(entry_at, number, right=False)
    start = begin + 1
    is_row = slots.in_crop[begin] == _NONE
    # What follows the start of a row is a thumbnail, whatever its marker says.
    is_slice = (slots.slice_start[begin] == 0) & ~is_row.roll(1)
    heads = (~is_slice).cumsum(0)
    first, last = search(heads, heads, right=False), search(heads, heads) - 1

    # All crops of a picture take the sizes of its thumbnail's kind.
    of_video = slots.video[start[first]] == 0
    crops, videos = (~is_row).cumsum(0), (of_video & ~is_row).cumsum(0)
    given_images = given[sizes[0].shape[0]]
    rank = torch.where(of_video, videos + given_images, crops - videos).masked_fill(is_row, 0)
    size_row = search(given, rank, right=False) % table.shape[0]
    size = (table[size_row] // rule.downsample_factor).clamp(min=0, max=MAX_SIDE - 1).t()
    area = size.prod(0)
    end = (begin + area).clamp(max=slots.in_crop.shape[0] - 1)  # the last cell

    # Slices are tiled line by line: the first one with more than its two markers behind it ends a
    # line, and so all lines. Lines of different lengths are taken for one.
    slices, behind = last - first, number - first - 1
    breaks = (behind > 0) & (begin - end.roll(1) > 2)
    columns = torch.where(breaks, behind, slices)
    columns = slices.scatter_reduce(0, first, columns, "amin")[first].clamp(min=1)
    columns = torch.where(slices % columns > 0, slices, columns)
    lines = (slices // columns).clamp(min=1)
    # All are placed by the size of the first.
    unit = size[:, torch.minimum(first + 1, last)]
    canvas = torch.stack((lines, columns)) * unit
    behind = behind.clamp(min=0)
    corner = torch.stack((behind // columns, behind % columns)) * unit
    far = torch.where(is_slice, corner + size - 1, canvas)
    line_end = torch.stack((corner[0] + unit[0] - 1, canvas[1]))
    line_end = line_end * (is_slice & is_slice.roll(-1))

    # The running position: `shift` is what text behind a picture has more than its slot.
    free = slots.closing.cumsum(0)
    done = torch.minimum(search(free, free[end[last]]), begin.roll(-1)[last])
    done = torch.where(is_row, start, done)
    span = canvas.amax(0) + 1
    moves = span - done + begin
    if slots.between is not None:
        # Pictures with nothing but markers and newlines in between are frames of one video to
        # SGLang, and if there is any, a frame keeps its distance from it.
        free = slots.between.cumsum(0)
        apart = (done < begin.roll(-1)) & (search(free, free[end[last]]) >= begin.roll(-1))
        moves = moves + (apart & ~is_row).roll(1)
    shift = moves.masked_fill(is_slice, 0).cumsum(0)
    row_start = (shift + done).masked_fill(~is_row, 0).cummax(0).values
    shift = shift - row_start
    origin = shift + done - span

    at = entry_at[place].clamp(max=number.shape[0] - 1)
    reach = torch.where(is_slice, size, canvas)
    spacing, step = even_spacing(reach, size)
    columns_at = torch.stack((start, done, origin, shift, area - 1, size[1].clamp(min=1)))
    columns_at = torch.cat((columns_at, corner, far, line_end, spacing.flatten(0, 1)))[:, at]
    start_at, done_at, origin_at, shift_at, last_at, width_at = columns_at[:6]
    # Of the tokens of a crop the marker before it is -1, and those behind it are 1 and more.
    cell = place - start_at
    inner = torch.minimum(cell.clamp(min=0), last_at)
    cells = torch.stack((inner // width_at, inner % width_at))
    cells = rounded_linspace(cells, columns_at[12:].view(3, 2, -1), step[:, at])
    cells = cells + columns_at[6:8]
    cells = cells - ((cell < 0) > is_slice[at]).long()
    cells = torch.where(cell > last_at, columns_at[8:10], cells)
    cells = torch.where(cell > last_at + 1, columns_at[10:12], cells)
    positions = torch.where(
        place < done_at, origin_at + pad(cells, (0, 0, 1, 0)), place + shift_at
    ).clamp(min=0)
    if kept is not None:
        # 0 at masked tokens counts.
        positions = positions.masked_fill(~kept, 0)

    fault = None
    if validate:
        images_found = (crops - videos)[-1]
        found = torch.stack((images_found, videos[-1]))
        wanted = torch.stack((given_images, given[-1] - given_images))
        miscounted = found > wanted if inputs.allow_unused_grids else found != wanted
        in_crop = slots.in_crop[place] == 0
        misfits = in_crop != (cell == inner)
        if slots.unpaired is None:
            misfits = misfits | (in_crop & (slots.video[place] != slots.video[start[at]]))
        if kept is not None:
            misfits = misfits & kept
        unsound = are_unsound(table, rule, round_grid_sides=inputs.round_grid_sides)
        stretched = ((size - 1) * (reach - 1) >= LIMIT) & (size != reach).any(0)
        fault = miscounted.any() | misfits.any() | unsound.any() | stretched.any()
        if slots.unpaired is not None:
            fault = fault | slots.unpaired
    given_lengths = stream.row_bounds.diff()
    if len(stream.shape) == 2:
        largest = positions.view(3, *stream.shape).amax((0, 2))
    else:
        largest = torch.where(given_lengths > 0, 0, -1)
        largest = largest.scatter_reduce(0, rows, positions.amax(0), "amax")
    lengths = given_lengths
    if kept is not None and spec.delta_length == "valid":
        lengths = stream.row_sums(kept)
    if kept is not None and spec.padding_value:
        positions = positions.masked_fill(~kept, spec.padding_value)
    return positions, (largest + 1 - lengths).unsqueeze(1), fault


def _fill_slots(
    stream: Stream, spec: MRopeSpec, rule: MiniCPMV47, rows: Tensor, num_sizes: Tensor
) -> _Slots:
    types, kept = stream.token_types, stream.kept
    known = [rule.slice_start_id, rule.image_start_id, rule.image_end_id, rule.slice_end_id]
    known.append(rule.newline_id)
    # None is the id of no token.
    known += [
        -(2**63) if token is None else token
        for token in (spec.image_token_id, spec.video_token_id)
        if types is None
    ]
    ids = torch.empty((len(known), 1), dtype=torch.int64, device=rows.device)
    for each, token in zip(ids.unbind(), known, strict=True):
        each.fill_(token)
    other = stream.input_ids != ids
    outside = other[5:].all(0) if types is None else types == TEXT
    unpaired = None
    if types is None and rule.crop_rule == "markers":
        by_markers, wrong = _outside_markers(stream, ~other, rows)
        unpaired = (num_sizes > 0) & wrong
        outside = torch.where(num_sizes > 0, by_markers, outside)
    flags = [outside, other[0], other[6] if types is None else types != VIDEO, other[:4].all(0)]
    if rule.newline_closes:
        flags[3] = flags[3] & other[4]
    else:
        flags.append(flags[3] & other[4])
    last = stream.num_tokens + stream.num_rows
    if kept is None:
        place = torch.arange(1, stream.num_tokens + 1, device=rows.device) + rows
    else:
        # The slot behind all others takes what is masked.
        place = torch.where(kept, kept.cumsum(0) + rows, last)
    slots = torch.full((len(flags), last + 3), _NONE, dtype=torch.uint8, device=rows.device)
    slots.scatter_(1, place.expand(len(flags), -1), torch.stack(flags).to(torch.uint8))
    between = None if rule.newline_closes else slots[4]
    return _Slots(place, slots[0], slots[1], slots[2], slots[3], between, unpaired)


def _outside_markers(stream: Stream, found: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N,) bool, what is not between two markers, and if any of these is misplaced, 0-d.

    A row's k-th marker that opens a crop and its k-th that closes one enclose a crop, as far as
    there are both.
    """
    opens, closes = found[:2].any(0), found[2:4].any(0)
    if stream.kept is not None:
        opens, closes = opens & stream.kept, closes & stream.kept
    opened, all_opened = stream.running_sums(opens, rows)
    closed, all_closed = stream.running_sums(closes, rows)
    pairs = torch.minimum(all_opened, all_closed)[rows]
    inside = (opened - opens.long() > closed) & (closed < pairs)
    order = opened + closed
    wrong = (opens | closes) & (order <= 2 * pairs) & (opens != (order % 2 > 0))
    # Nor may two markers enclose nothing.
    empty = closes & ~wrong & (closed <= pairs) & ~pad(inside, (1, 0))[:-1]
    return ~inside, (wrong | empty).any()


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
