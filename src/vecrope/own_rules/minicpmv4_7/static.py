"""On any device: the entries of a batch by scans and searches; no value is read.

Slots hold the tokens that are not masked, row after row. A slot of no token precedes each row, as a
marker precedes a crop: the text of the row follows it as text follows a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.modality import TEXT, VIDEO
from vecrope.core.search import search
from vecrope.core.stream import Stream
from vecrope.families.rules import MiniCPMV47
from vecrope.inputs import Inputs
from vecrope.own_rules.minicpmv4_7.sizes import IDS, LIMIT, MAX_SIDE, NAMES, is_sound
from vecrope.spec import MRopeSpec

# What a flag is in a slot of no token.
_NONE = 2


def static_entries(
    stream: Stream, inputs: Inputs, spec: MRopeSpec, rule: MiniCPMV47, *, validate: bool
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor | None]:
    """Return the arguments of `place_tokens`, and whether anything does not fit.

    Args:
        stream: of at least one token.
        inputs: the batch; types and shapes have been checked.
        spec: of the family.
        rule: the spec's.
        validate: otherwise that is not asked, and None.
    """
    device = stream.input_ids.device
    images, videos = (
        torch.empty((0, 2), dtype=torch.int64, device=device)
        if sizes is None
        else sizes.to(device, torch.int64)
        for sizes in (getattr(inputs, name) for name in NAMES)
    )
    sizes = torch.cat((images.new_zeros((1, 2)), images, videos))
    given = sizes.any(1).cumsum(0)
    slot, flags, unpaired = _fill_slots(stream, spec, rule, given[-1])
    # 0 for what they name, 1 for all else, `_NONE` for no token.
    in_crop, slice_start, video, closing, between = flags.unbind()

    # Each row and each crop begins an entry, at the slot in front of it.
    entry = (in_crop[:-2] > in_crop[1:-1]).cumsum(0)
    number = torch.arange(stream.num_rows + sizes.shape[0] + 1, device=device)
    begin = search(entry, number, right=False)
    start = begin + 1
    is_row = in_crop[begin] == _NONE
    # What follows the start of a row is a thumbnail, whatever its marker says.
    is_slice = (slice_start[begin] == 0) & ~is_row.roll(1)
    heads = (~is_slice).cumsum(0)
    first, last = search(heads, heads, right=False), search(heads, heads) - 1

    # All crops of a picture take the sizes of its thumbnail's kind.
    of_video = video[start[first]] == 0
    all_crops, of_videos = (~is_row).cumsum(0), (of_video & ~is_row).cumsum(0)
    given_images = given[images.shape[0]]
    rank = torch.where(of_video, of_videos + given_images, all_crops - of_videos)
    row = search(given, rank.masked_fill(is_row, 0), right=False) % sizes.shape[0]
    size = (sizes[row] // rule.downsample_factor).clamp(min=0, max=MAX_SIDE - 1).t()
    end = (begin + size.prod(0)).clamp(max=in_crop.shape[0] - 1)  # its last cell

    # Slices are tiled line by line: the first one with more than its two markers behind it ends a
    # line, and so all lines. Lines of different lengths are taken for one.
    slices, before = last - first, number - first - 1
    columns = torch.where((before > 0) & (begin - end.roll(1) > 2), before, slices)
    columns = slices.scatter_reduce(0, first, columns, "amin")[first].clamp(min=1)
    columns = torch.where(slices % columns > 0, slices, columns)
    # All are placed by the size of the first.
    unit = size[:, torch.minimum(first + 1, last)]
    canvas = torch.stack(((slices // columns).clamp(min=1), columns)) * unit
    before = before.clamp(min=0)
    corner = torch.stack((before // columns, before % columns)) * unit
    line_end = torch.stack((corner[0] + unit[0] - 1, canvas[1]))
    line_end = line_end * (is_slice & is_slice.roll(-1))

    # The running position: `shift` is what text behind a picture has more than its slot.
    following, free = begin.roll(-1), closing.cumsum(0)
    stop = torch.minimum(search(free, free[end[last]]), following[last])
    stop = torch.where(is_row, start, stop)
    span = canvas.amax(0) + 1
    moves = span - stop + begin
    if not rule.newline_closes:
        # Pictures with nothing but markers and newlines in between are frames of one video to
        # SGLang, and if there is any, a frame keeps its distance from it.
        free = between.cumsum(0)
        apart = (stop < following) & (search(free, free[end[last]]) >= following) & ~is_row
        moves = moves + apart.roll(1)
    shift = moves.masked_fill(is_slice, 0).cumsum(0)
    shift = shift - (shift + stop).masked_fill(~is_row, 0).cummax(0).values
    origin, extent = shift + stop - span, torch.where(is_slice, size, canvas)
    # Those of a thumbnail are one further out.
    out, reach, half = (~is_slice).long(), size - 1, (size // 2).clamp(min=1)
    table = torch.stack((start, stop, origin, shift, size.prod(0) - 1, size[1].clamp(min=1)))
    behind = corner + extent - 1 + out
    table = torch.cat((table, corner, corner - out, behind, line_end, reach, half, extent - 1))
    steps = ((extent - 1).double() / reach.clamp(min=1)).float()
    entry = entry[slot].clamp(max=number.shape[0] - 1)
    if not validate:
        return (table, steps, entry, slot), None

    wanted = torch.stack((given_images, given[-1] - given_images))
    found = torch.stack(((all_crops - of_videos)[-1], of_videos[-1]))
    miscounted = found > wanted if inputs.allow_unused_grids else found != wanted
    unsound = sizes.any(1) & ~is_sound(sizes, rule, inputs).all(1)
    stretched = (reach * (extent - 1) >= LIMIT) & (size != extent).any(0)
    has_place = (start[entry] <= slot) & (slot <= end[entry])
    misfits = has_place != (in_crop[slot] == 0)
    if unpaired is None:
        misfits = misfits | (has_place & (video[slot] != video[start[entry]]))
    if stream.kept is not None:
        misfits = misfits & stream.kept
    fault = miscounted.any() | unsound.any() | stretched.any() | misfits.any()
    return (table, steps, entry, slot), fault if unpaired is None else fault | unpaired


def _fill_slots(
    stream: Stream, spec: MRopeSpec, rule: MiniCPMV47, num_sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the slot (N,) of each token, flags (5, n) uint8 of the slots, and a fault.

    That is 0-d bool: the markers do not enclose one crop after the other. None: that is not asked.
    """
    rows, kept, types = stream.token_rows(), stream.kept, stream.token_types
    # None is the id of no token.
    known = [getattr(rule, name) for name in IDS]
    for token in (spec.image_token_id, spec.video_token_id) if types is None else ():
        known.append(-(2**63) if token is None else token)
    ids = torch.empty((len(known), 1), dtype=torch.int64, device=rows.device)
    for each, token in zip(ids.unbind(), known, strict=True):
        each.fill_(token)
    other = stream.input_ids != ids
    outside = other[5:].all(0) if types is None else types == TEXT
    video, unpaired = other[-1] if types is None else types != VIDEO, None
    if types is None and rule.crop_rule == "markers":
        by_markers, wrong = _outside_markers(stream, ~other, rows)
        outside, unpaired = torch.where(num_sizes > 0, by_markers, outside), (num_sizes > 0) & wrong
    between = other[:5].all(0)
    closing = between if rule.newline_closes else other[:4].all(0)
    flags = torch.stack((outside, other[2], video, closing, between))
    last = stream.num_tokens + stream.num_rows
    if kept is None:
        slot = torch.arange(1, stream.num_tokens + 1, device=rows.device) + rows
    else:
        # The slot behind all others takes what is masked.
        slot = torch.where(kept, kept.cumsum(0) + rows, last)
    slots = torch.full((5, last + 3), _NONE, dtype=torch.uint8, device=rows.device)
    return slot, slots.scatter_(1, slot.expand(5, -1), flags.to(torch.uint8)), unpaired


def _outside_markers(stream: Stream, found: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N,) bool, what is not between two markers, and if any of these is misplaced, 0-d.

    A row's k-th marker that opens a crop and its k-th that closes one enclose a crop, as far as
    there are both.
    """
    opens, closes = found[:4:2].any(0), found[1:4:2].any(0)
    if stream.kept is not None:
        opens, closes = opens & stream.kept, closes & stream.kept
    opened, all_opened = stream.running_sums(opens, rows)
    closed, all_closed = stream.running_sums(closes, rows)
    pairs = torch.minimum(all_opened, all_closed)[rows]
    inside = (opened > closed + opens) & (closed < pairs)
    order = opened + closed
    wrong = (opens | closes) & (order <= 2 * pairs) & (opens != (order % 2 > 0))
    # Nor may two markers enclose nothing.
    empty = closes & (closed <= pairs) & ~pad(inside, (1, 0))[:-1]
    return ~inside, (wrong | empty).any()
