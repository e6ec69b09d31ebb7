"""The implementation of `MiniCPMV47`: pictures of a thumbnail and slices, each on a canvas."""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope.core.faults import invalidate
from vecrope.core.stream import make_stream
from vecrope.families.rules import MiniCPMV47
from vecrope.inputs import Inputs, positions_dtype
from vecrope.own_rules.minicpmv4_7.positions import place_tokens
from vecrope.own_rules.minicpmv4_7.sizes import check_shapes
from vecrope.own_rules.minicpmv4_7.static import static_entries
from vecrope.spec import MRopeSpec


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
        validate: as in `get_rope_index`, under tracing alone: `lay_out_minicpmv4_7` checks values.
            On a device without Triton that answers unchecked and traced calls, too, which
            synchronises.

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
    rule, ids = spec.own_rule, inputs.input_ids
    assert isinstance(rule, MiniCPMV47)
    check_shapes(inputs, spec)
    mask = None if spec.mask_rule == "ignore" else inputs.attention_mask
    # Every table has a size fixed by shapes, in 64 bits.
    stream = make_stream(ids, mask, inputs.cu_seqlens, inputs.mm_token_type_ids, exact=True)
    kept = stream.kept
    lengths: Tensor | int
    dtype = positions_dtype(inputs, spec)
    if not stream.num_tokens:
        return ids.new_empty((3, *ids.shape), dtype=dtype), torch.zeros_like(
            stream.row_bounds[1:]
        ).view(-1, 1)
    entries, fault = static_entries(stream, inputs, spec, rule, validate=validate)
    positions = place_tokens(*entries)
    if kept is not None:
        # 0 at masked tokens counts.
        positions = positions.masked_fill(~kept, 0)
    if ids.dim() == 2:
        largest, lengths = positions.view(3, *ids.shape).amax((0, 2)), ids.shape[1]
    else:
        lengths = stream.row_bounds.diff()
        largest = torch.where(lengths > 0, 0, -1)
        largest = largest.scatter_reduce(0, stream.token_rows(), positions.amax(0), "amax")
    if kept is not None and spec.delta_length == "valid":
        lengths = stream.row_sums(kept)
    if kept is not None and spec.padding_value:
        positions = positions.masked_fill(~kept, spec.padding_value)
    position_ids = positions.to(dtype).view(3, *ids.shape)
    rope_deltas = (largest + 1 - lengths).unsqueeze(1)
    return (
        (position_ids, rope_deltas)
        if fault is None
        else invalidate(fault, position_ids, rope_deltas)
    )
