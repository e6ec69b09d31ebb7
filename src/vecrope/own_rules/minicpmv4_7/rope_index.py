"""The implementation of `MiniCPMV47`: pictures of a thumbnail and slices, each on a canvas."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.search import count_begun
from vecrope.core.stream import make_stream
from vecrope.families.rules import MiniCPMV47
from vecrope.inputs import Inputs
from vecrope.own_rules.minicpmv4_7.checks import (
    check_none_left_over,
    check_shapes,
    check_sizes,
    find_faults,
    raise_fault,
)
from vecrope.own_rules.minicpmv4_7.crops import Crops, Tokens, find_crops, gather_tokens
from vecrope.own_rules.minicpmv4_7.pictures import (
    Course,
    Pictures,
    arrange_pictures,
    run_course,
    slice_numbers,
)
from vecrope.own_rules.minicpmv4_7.rounded_linspace import spread
from vecrope.spec import MRopeSpec

_DTYPES = {"int64": torch.int64, "float32": torch.float32}


def minicpmv4_7_rope_index(
    inputs: Inputs, spec: MRopeSpec, *, validate: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the positions of prompts with pictures on canvases, and their deltas.

    Text counts up on all axes. A picture, an image or a frame of a video, is a thumbnail and the
    slices that were cut from it, if any, tiled line by line. All of it has one temporal position;
    its height and width are measured from there on a canvas as large as all slices, over which the
    thumbnail is spread, or as large as the thumbnail. Markers stand at corners of what they mark.
    The text after a picture goes on past the larger side of its canvas, and a step further.

    Args:
        inputs: of which are read `input_ids`, `attention_mask`, `cu_seqlens`, `mm_token_type_ids`
            (1 or 2 for the tokens of images and videos), `target_sizes` (num_crops, 2) and
            `target_sizes_videos`: height and width of each crop of images and of videos, in
            patches, in the order of the prompt, row by row. Rows of zeros are no crop.
        spec: with a `MiniCPMV47`.
        validate: as in `get_rope_index`.

    Returns:
        `position_ids` (3, B, T) or (3, N), in the spec's dtype, and `rope_deltas` (B, 1) int64,
        neither an alias of an input: the largest position of the row, masked tokens included,
        which are at 0 for that, plus one, less the row's length. As transformers has it, it is 1
        for a row of masked tokens only. Under tracing, `validate` turns what it cannot refuse into
        positions of -1 and deltas of the least int64.

    Raises:
        TypeError: for sizes of a wrong dtype.
        ValueError: for sizes of a wrong shape and, with `validate`, for crops that do not fit their
            sizes or their markers.

    The rule is that of transformers' `MiniCPMV4_7Model.get_rope_index`, of the `minicpmv4_7`
    processor of SGLang and of vLLM's `MiniCPMV4_7ForConditionalGeneration`.
    """
    rule = spec.own_rule
    assert isinstance(rule, MiniCPMV47)
    check_shapes(inputs, spec)
    ids = inputs.input_ids
    tracing = torch.compiler.is_compiling()
    images, videos = (
        ids.new_empty((0, 2), dtype=torch.int64)
        if sizes is None
        else sizes.to(ids.device, torch.int64)
        for sizes in (inputs.target_sizes, inputs.target_sizes_videos)
    )
    if validate and not tracing:
        check_sizes(images, videos, rule, round_grid_sides=inputs.round_grid_sides)
    mask = None if spec.mask_rule == "ignore" else inputs.attention_mask
    # Every table has a size fixed by shapes, in 64 bits.
    stream = make_stream(ids, mask, inputs.cu_seqlens, inputs.mm_token_type_ids, exact=True)
    dtype = _DTYPES.get(spec.position_dtype, ids.dtype)
    padded_lengths = stream.row_bounds.diff()
    sizes = torch.cat((images, videos))
    if stream.num_tokens == 0:
        if validate and not tracing and not inputs.allow_unused_grids:
            check_none_left_over(sizes)
        rope_deltas = torch.zeros_like(padded_lengths).view(-1, 1)
        return ids.new_empty((3, *ids.shape), dtype=dtype), rope_deltas

    tokens = gather_tokens(stream)
    crops = find_crops(tokens, spec, rule, sizes, images.shape[0])
    pictures = arrange_pictures(tokens, crops, rule)
    faults = None
    if validate:
        faults = find_faults(
            tokens,
            crops,
            pictures,
            sizes,
            rule,
            allow_unused_grids=inputs.allow_unused_grids,
            round_grid_sides=inputs.round_grid_sides,
        )
    if faults is not None and not tracing and bool(faults.any()):
        raise_fault(faults, stream, tokens, crops, pictures, images, videos)
    course = run_course(tokens, crops, pictures, rule)
    compacted = _positions(tokens, crops, pictures, course)

    positions = compacted[:, tokens.origin.clamp(max=stream.num_tokens - 1)]
    if stream.kept is not None:
        positions = positions.masked_fill(~stream.kept, 0)
    # 0 at masked tokens counts, where there are any.
    largest = torch.where(padded_lengths > 0, 0, -1)
    row = stream.row_of(torch.arange(stream.num_tokens, device=ids.device))
    largest = largest.scatter_reduce(0, row, positions.amax(0), "amax")
    valid_lengths = tokens.bounds[:-1].diff()
    lengths = valid_lengths if spec.delta_length == "valid" else padded_lengths
    rope_deltas = (largest + 1 - lengths).view(-1, 1)
    if stream.kept is not None:
        positions = positions.masked_fill(~stream.kept, spec.padding_value)
    positions = positions.to(dtype).view(3, *ids.shape)
    if faults is None or not tracing:
        return positions, rope_deltas
    fault = faults.any()
    return (
        torch.where(fault, -1, positions),
        torch.where(fault, torch.iinfo(torch.int64).min, rope_deltas),
    )


def _positions(tokens: Tokens, crops: Crops, pictures: Pictures, course: Course) -> Tensor:
    """Return (3, N) the positions of all tokens."""
    owners, is_slice = crops.pictures, crops.is_slice
    number = slice_numbers(crops, pictures.thumbnails)
    columns = pictures.columns[owners]
    line = torch.where(is_slice, number // columns, 0)
    column = torch.where(is_slice, number % columns, 0)
    # Height and width at once, for each crop and measured from the origin of its canvas.
    sizes = torch.stack((crops.height, crops.width))
    canvases = torch.stack((pictures.height, pictures.width))[:, owners]
    slice_sizes = torch.stack((pictures.slice_height, pictures.slice_width))[:, owners]
    corners = torch.stack((line, column)) * slice_sizes
    far_corners = torch.where(is_slice, corners + sizes - 1, canvases)
    extents = torch.where(is_slice, sizes, canvases)
    line_ends = torch.stack(((line + 1) * slice_sizes[0] - 1, columns * slice_sizes[1]))

    index = tokens.indices
    following = count_begun(crops.starts, tokens.number)
    at = (following - 1).clamp(min=0)
    ends, next_starts = crops.ends[at], crops.starts[following]
    cell = index - crops.starts[at]
    cell_width = crops.width[at].clamp(min=1)
    cells = torch.stack((cell // cell_width, cell % cell_width))
    cells = corners[:, at] + spread(cells, extents[:, at], sizes[:, at])
    between = is_slice[at] & is_slice[following] & (index > ends) & (index < next_starts - 1)
    origins = course.origins[course.pictures]

    offsets = torch.where(between, line_ends[:, at], 0)
    offsets = torch.where(index == ends, far_corners[:, at], offsets)
    offsets = torch.where((cell >= 0) & (index < ends), cells, offsets)
    opens_slice = is_slice[following] & (index == next_starts - 1)
    offsets = torch.where(opens_slice, corners[:, following], offsets)
    opens_picture = index == pictures.starts[course.pictures]
    offsets = torch.where(opens_picture, torch.where(origins > 0, -1, 0), offsets)
    on_canvas = origins + pad(offsets, (0, 0, 1, 0))
    return torch.where(course.in_picture, on_canvas, course.positions)
