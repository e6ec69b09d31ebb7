"""On a device with Triton: the entries of a batch by scans and one program; no value is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.modality import TEXT, VIDEO
from vecrope.core.search import search
from vecrope.core.stream import Stream
from vecrope.families.rules import MiniCPMV47
from vecrope.inputs import Inputs
from vecrope.own_rules.common import unmasked_first
from vecrope.own_rules.minicpmv4_7.sizes import IDS, LIMIT, MAX_SIDE, NAMES, is_sound
from vecrope.spec import MRopeSpec

_COLUMNS = 20  # of the table of `place_tokens`
_UNUSED = 2**62


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
    device, kept = stream.input_ids.device, stream.kept
    images, videos = (
        torch.empty((0, 2), dtype=torch.int64, device=device)
        if sizes is None
        else sizes.to(device, torch.int64)
        for sizes in (getattr(inputs, name) for name in NAMES)
    )
    sizes = torch.cat((images, videos))
    stream, slot = unmasked_first(stream)
    ids, types, unpaired = stream.input_ids, stream.token_types, None
    # None is the id of no token.
    video = ids == (-1 if spec.video_token_id is None else spec.video_token_id)
    if types is None:
        in_crop = video | (ids == spec.image_token_id)
        if rule.crop_rule == "markers":
            by_markers, wrong = _inside_markers(stream, rule, validate=validate)
            has_sizes = sizes.any()
            in_crop = torch.where(has_sizes, by_markers, in_crop)
            unpaired = None if wrong is None else has_sizes & wrong
    else:
        in_crop, video = types != TEXT, types == VIDEO

    # What comes before the first token of a row is not its neighbour.
    previous = pad(in_crop, (1, 0)).index_fill(0, stream.row_bounds[:-1], False)[:-1]
    # One crop more, so that a surplus shows.
    numbers = torch.arange(1, sizes.shape[0] + 2, device=device)
    at = search(in_crop.gt(previous).cumsum(0), numbers, right=False)
    begins, table, faults = find_entries(
        at, ids, video, stream.row_bounds, sizes, images.shape[0], spec.as_text
    )
    steps = (table[18:].double() / table[14:16].clamp(min=1)).float()
    entry = search(begins, slot)
    if not validate:
        return (table, steps, entry, slot), None

    start, last = table[0][entry], table[4][entry]
    has_place = (start <= slot) & (slot - start <= last)
    misfits = has_place != in_crop[slot]
    if unpaired is None:
        of_video = video[start.clamp(max=stream.num_tokens - 1)]
        misfits = misfits | (has_place & (video[slot] != of_video))
    if kept is not None:
        misfits = misfits & kept
    unsound = sizes.any(1) & ~is_sound(sizes, rule, inputs).all(1)
    fault = misfits.any() | unsound.any() | faults[: 1 if inputs.allow_unused_grids else 2].any()
    return (table, steps, entry, slot), fault if unpaired is None else fault | unpaired


def _inside_markers(
    stream: Stream, rule: MiniCPMV47, *, validate: bool
) -> tuple[Tensor, Tensor | None]:
    """Return (N,) bool, what is between two markers; and 0-d, if any of these is misplaced.

    A row's k-th marker that opens a crop and its k-th that closes one enclose a crop, as far as
    there are both.
    """
    ids, rows, bounds = stream.input_ids, stream.token_rows(), stream.row_bounds
    opens = (ids == rule.image_start_id) | (ids == rule.slice_start_id)
    closes = (ids == rule.image_end_id) | (ids == rule.slice_end_id)
    total = pad(torch.stack((opens, closes)).cumsum(1), (1, 0))
    at_bounds = total[:, bounds]
    opened, closed = (total[:, 1:] - at_bounds[:, rows]).unbind()
    pairs = at_bounds.diff(dim=1).amin(0)[rows]
    inside = (opened > closed + opens) & (closed < pairs)
    if not validate:
        return inside, None
    order = opened + closed
    wrong = (opens | closes) & (order <= 2 * pairs) & (opens != (order % 2 > 0))
    # Nor may two markers enclose nothing.
    empty = closes & (closed <= pairs) & ~pad(inside, (1, 0))[:-1]
    return inside, (wrong | empty).any()


@torch.library.custom_op("vecrope::minicpmv4_7_entries", mutates_args=())
def find_entries(
    at: Tensor,
    ids: Tensor,
    video: Tensor,
    bounds: Tensor,
    sizes: Tensor,
    num_images: int,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return where tokens belong, in one launch of Triton: to a row's start, or to a crop.

    Args:
        at: (C,) int64, ascending: the first tokens of crops; N where there is none.
        ids: (N,) integers.
        video: (N,) bool: the tokens of videos.
        bounds: (B + 1,) int64: where each row begins, then N or less.
        sizes: (S, 2) int64, those of images first.
        num_images: how many are of images.
        spec: the rules, as text.

    Returns:
        (E,) int64, ascending: the first token of each entry, which of a crop is the marker before
        it; (20, E + 1) int64, the table of `place_tokens`, the first column of no entry, so that a
        search among the begins gives the column; and (2,) int64: how many crops have no size,
        no token before them or a thumbnail too large for its canvas, and whether sizes are left
        over.
    """
    from vecrope.own_rules.minicpmv4_7.crop_kernel import walk

    rule = MRopeSpec.from_text(spec).own_rule
    assert isinstance(rule, MiniCPMV47)
    begins, table, faults = _unwritten(at, ids, video, bounds)
    values = at, ids, video.view(torch.uint8), bounds, sizes
    walk[(1,)](
        *(value.contiguous() for value in values), begins, table, faults,
        len(at), len(bounds) - 1, num_images, len(sizes), table.shape[1],
        *(getattr(rule, name) for name in IDS), rule.newline_closes, rule.downsample_factor,
        MAX_SIDE, LIMIT,
    )  # fmt: skip
    return begins, table, faults


@find_entries.register_fake
def _unwritten(at: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    num_entries = at.shape[0] + others[2].shape[0] - 1
    begins = at.new_full((num_entries,), _UNUSED)
    return begins, at.new_ones((_COLUMNS, num_entries + 1)), at.new_empty(2)
