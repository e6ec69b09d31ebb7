"""The rule on any device: pieces by scans and one program of Triton; no value is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.modality import TEXT, VIDEO
from vecrope.core.search import search
from vecrope.core.stream import Stream, make_stream
from vecrope.families.rules import MiniCPMV47
from vecrope.inputs import Inputs
from vecrope.own_rules.common import finish, pair_markers, unmasked_first
from vecrope.own_rules.minicpmv4_7.sizes import IDS, MAX_SIDE, NAMES
from vecrope.spec import MRopeSpec

_COLUMNS = 11  # of the table of `place_tokens`
_UNUSED = 2**62


def minicpmv4_7_rope_index(inputs: Inputs, spec: MRopeSpec) -> tuple[Tensor, Tensor]:
    """Return the positions of prompts with pictures on canvases, and their deltas.

    Text counts up on all axes. A picture, an image or a frame of a video, is a thumbnail and the
    slices that were cut from it, if any, tiled line by line. All of it has one temporal position;
    its height and width are measured from there on a canvas as large as all slices, over which the
    thumbnail is spread, or as large as the thumbnail. Markers stand at corners of what they mark.
    The text after a picture goes on past the larger side of its canvas, and a step further.

    Returns:
        `position_ids` (3, B, T) or (3, N), in the spec's dtype, and `rope_deltas` (B, 1) int64,
        neither an alias of an input: the largest position of the row, masked tokens included,
        which are at 0 for that, plus one, less the row's length. As transformers has it, it is 1
        for a row of masked tokens only.

    The rule is that of transformers' `MiniCPMV4_7Model.get_rope_index`, of the `minicpmv4_7`
    processor of SGLang and of vLLM's `MiniCPMV4_7ForConditionalGeneration`.
    """
    rule = spec.own_rule
    assert isinstance(rule, MiniCPMV47)
    mask = None if spec.mask_rule == "ignore" else inputs.attention_mask
    # Every table has a size fixed by shapes, in 64 bits.
    given = make_stream(
        inputs.input_ids, mask, inputs.cu_seqlens, inputs.mm_token_type_ids, exact=True
    )
    images, videos = (
        torch.empty((0, 2), dtype=torch.int64, device=given.input_ids.device)
        if sizes is None
        else sizes.to(given.input_ids.device, torch.int64)
        for sizes in (getattr(inputs, name) for name in NAMES)
    )
    sizes = torch.cat((images, videos))
    stream, slot = unmasked_first(given)
    crops, video = _find_crops(stream, spec, rule, sizes)
    # What comes before the first token of a row is not its neighbour.
    previous = pad(crops, (1, 0)).index_fill(0, stream.row_bounds[:-1], 0)[:-1]
    # One crop more, so that a surplus has a place.
    numbers = torch.arange(1, sizes.shape[0] + 2, device=sizes.device)
    at = search(crops.gt(previous).cumsum(0), numbers, right=False)
    table = find_pieces(
        at, stream.input_ids, video, stream.row_bounds, sizes, images.shape[0], spec.as_text
    )
    positions = place_tokens(table, slot)
    if given.kept is not None:
        positions = positions.masked_fill(~given.kept, 0)
    lengths = given.row_bounds.diff()
    ends = torch.zeros_like(lengths)
    ends = ends.scatter_reduce(0, given.token_rows(), positions.amax(0) + 1, "amax")
    if given.kept is not None and spec.delta_length == "valid":
        lengths = given.row_sums(given.kept)
    return finish(given, inputs, spec, positions, ends - lengths, None)


def _find_crops(
    stream: Stream, spec: MRopeSpec, rule: MiniCPMV47, sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (N,) bool each: the tokens of crops, and those of videos."""
    ids, types = stream.input_ids, stream.token_types
    if types is not None:
        return types != TEXT, types == VIDEO
    # None is the id of no token.
    video = ids == (-1 if spec.video_token_id is None else spec.video_token_id)
    crops = video | (ids == spec.image_token_id)
    if rule.crop_rule == "markers":
        opens = (ids == rule.image_start_id) | (ids == rule.slice_start_id)
        closes = (ids == rule.image_end_id) | (ids == rule.slice_end_id)
        inside = pair_markers(stream, stream.token_rows(), opens, closes).inside
        crops = torch.where(sizes.any(), inside, crops)
    return crops, video


@torch.library.custom_op("vecrope::minicpmv4_7_pieces", mutates_args=())
def find_pieces(
    at: Tensor,
    ids: Tensor,
    video: Tensor,
    bounds: Tensor,
    sizes: Tensor,
    num_images: int,
    spec: str,
) -> Tensor:
    """Return the pieces that a batch consists of, in one launch of Triton.

    Args:
        at: (C,) int64, ascending: the first tokens of crops; N where there is none.
        ids: (N,) integers.
        video: (N,) bool: the tokens of videos.
        bounds: (B + 1,) int64: where each row begins, then N or less.
        sizes: (S, 2) int64, those of images first.
        num_images: how many are of images.
        spec: the rules, as text.

    Returns:
        (11, E) int64, the table of `place_tokens`.
    """
    from vecrope.own_rules.minicpmv4_7.crop_kernel import walk

    rule = MRopeSpec.from_text(spec).own_rule
    assert isinstance(rule, MiniCPMV47)
    table: Tensor = _unwritten(at, ids, video, bounds)
    values = at, ids, video.view(torch.uint8), bounds, sizes
    walk[(1,)](
        *(value.contiguous() for value in values), table,
        len(at), len(bounds) - 1, num_images, len(sizes), table.shape[1],
        *(getattr(rule, name) for name in IDS), rule.newline_closes, rule.downsample_factor,
        MAX_SIDE,
    )  # fmt: skip
    return table


@find_pieces.register_fake
def _unwritten(at: Tensor, *others: Any) -> Tensor:
    # Of each row its first text; of each crop four, and the text behind its picture.
    num_pieces = 5 * at.shape[0] + others[2].shape[0] - 1
    return at.new_full((_COLUMNS, num_pieces), _UNUSED)


def place_tokens(table: Tensor, slot: Tensor) -> Tensor:
    """Return the (3, N) positions of tokens.

    Args:
        table: (11, E) int64, for each piece: its first token, in ascending order; the position in
            time, row and column of that; tokens of a line, at least 1; and what `rounded_linspace`
            takes, for lines and the tokens of a line: `reach`, `half` and `last`, which is -1 for
            text, that counts up on all axes.
        slot: (N,) number of each token.
    """
    steps = (table[9:].double() / table[5:7].clamp(min=1)).float()
    piece = search(table[0], slot) - 1
    columns = table[:, piece]
    base, width, (reach, half, last) = columns[1:4], columns[4], columns[5:].view(3, 2, -1)
    along = slot - columns[0]
    index = torch.stack((along // width, along % width))
    cells = base + pad(rounded_linspace(index, reach, half, last, steps[:, piece]), (0, 0, 1, 0))
    return torch.where(last[0] < 0, base + along, cells)


def rounded_linspace(
    index: Tensor, reach: Tensor, half: Tensor, last: Tensor, step: Tensor
) -> Tensor:
    """Return where places lie: `torch.linspace(0, last, reach + 1)[index].round()`, int64.

    It is that bit for bit, as float32 gives it on a CPU: multiples of the rounded step from the
    nearer end, rounded too, and then half to even. A sum of exact fractions would differ where a
    place lies halfway between two others. Products and sums are rounded by a conversion each, which
    no compiler fuses.

    Args:
        index: int64, from 0 to `reach`.
        reach: int64. `last * reach` must be below `LIMIT`, or both equal and below 2**16.
        half: int64, the first index that is measured from the end: half of `reach + 1`, at least 1.
        last: int64.
        step: `last / reach` in float32; 0 where `reach` is.
    """
    from_end = index >= half
    way = (index - from_end * reach) * step
    return (way.double() + from_end * last).float().round().long()
