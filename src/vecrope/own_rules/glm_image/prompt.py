"""GLM-Image: source images between markers, and the positions of the images to be generated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.items import grids_of, make_items
from vecrope.core.search import search
from vecrope.core.stream import Stream, make_stream
from vecrope.families.rules import GlmImage
from vecrope.forms.static import locate
from vecrope.inputs import Inputs
from vecrope.own_rules.common import finish, pair_markers
from vecrope.own_rules.glm_image.host import check_arguments
from vecrope.spec import MRopeSpec


@dataclass(frozen=True)
class Reading:
    """A batch as its markers say: which tokens are images, and what each grid is for."""

    stream: Stream
    inside: Tensor  # (N,) bool: the tokens of the images in the prompt
    grids: Tensor  # (G, 3) the rows' grids, row by row
    grid_rows: Tensor  # (G,) row of each
    real: Tensor  # (G,) bool: not all zeros, and of a row
    ordinals: Tensor  # (G,) number of each among its row's
    sources: Tensor  # (G,) bool: of an image in the prompt
    grids_in_row: Tensor  # (B,)
    num_closed: Tensor  # (B,) end markers
    misfit: Tensor | None  # 0-d bool: images and grids do not fit each other; None: not asked


def glm_image_rope_index(
    inputs: Inputs, spec: MRopeSpec, *, validate: bool
) -> tuple[Tensor, Tensor]:
    """Return the positions of `vecrope.get_rope_index` by the rule `GlmImage`.

    The tokens between the k-th start and the k-th end marker of a row are the image of the row's
    k-th grid, and numbered as one; all others are text, and so is everything without any grid.
    `images_per_sample` says how many grids are each row's; without it every row has all of them.

    Returns:
        `position_ids` (3, B, T) in the dtype that the spec names, or (3, N); and `rope_deltas`
        (B, 1) in that dtype, or (num_sequences, 1): 0, because what follows the prompt is numbered
        by `vecrope.get_decode_position_ids`. With `validate` markers, placeholders and grids that
        do not fit each other have no answer, as `invalidate` says.

    The rule is that of transformers' `GlmImageModel.get_rope_index` and of the method
    `_compute_glm_image_mrope_positions` of SGLang's `GlmImageProcessor`.
    """
    reading = read_markers(inputs, spec, validate=validate)
    stream = reading.stream
    # A grid of zeros is no image.
    images = torch.where(reading.sources.unsqueeze(1), reading.grids, 0)
    items = make_items(images, images[:0], spec, stream.index_dtype)
    locations = locate(stream, spec, items, reading.inside)
    positions = locations.offsets() + locations.base
    rope_deltas = torch.zeros(stream.num_rows, dtype=torch.int64, device=images.device)
    return finish(stream, inputs, spec, positions, rope_deltas, reading.misfit)


def read_markers(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> Reading:
    """Find the images of a batch, and the grids that are theirs; `validate` asks for the misfit."""
    rule = spec.own_rule
    assert isinstance(rule, GlmImage)
    stream = make_stream(inputs, spec)
    batch, per_row = stream.num_rows, inputs.images_per_sample
    check_arguments(inputs, spec, batch)
    grids = grids_of(inputs.image_grid_thw, stream.input_ids.device).to(stream.index_dtype)
    if per_row is None:
        bounds = torch.arange(batch + 1, dtype=stream.index_dtype, device=grids.device)
        bounds = bounds * grids.shape[0]
        grids = grids.repeat(batch, 1)
    else:
        bounds = pad(per_row.to(grids.device).cumsum(0, dtype=stream.index_dtype), (1, 0))
    number = torch.arange(grids.shape[0], dtype=stream.index_dtype, device=grids.device)
    grid_rows = search(bounds, number) - 1
    # Of the grids that belong to no row all are zeros.
    real = grids.any(1) & (grid_rows < batch)
    grid_rows = grid_rows.clamp(max=batch - 1)
    rank = pad(real.cumsum(0, dtype=stream.index_dtype), (1, 0))
    at_bounds = rank[bounds.clamp(max=grids.shape[0])]
    grids_in_row = at_bounds[1:] - at_bounds[:-1]
    ordinals = rank[:-1] - at_bounds[grid_rows]

    rows, kept, ids = stream.token_rows(), stream.kept, stream.input_ids
    opens, closes = ids == rule.image_start_token_id, ids == rule.image_end_token_id
    if kept is not None:
        opens, closes = opens & kept, closes & kept
    markers = pair_markers(stream, rows, opens, closes, grids_in_row)
    inside = markers.inside if kept is None else markers.inside & kept
    sources = real & (ordinals < markers.num_pairs[grid_rows])
    misfit = None
    if validate:
        # Of each source how many tokens it has, by its number among the grids that are not zeros.
        source = (grids_in_row.cumsum(0) - grids_in_row)[rows] + markers.closed
        source = source.masked_fill(~inside, grids.shape[0])
        lengths = torch.zeros_like(rank).scatter_add(0, source.long(), inside.to(rank.dtype))
        astray = inside & opens
        if inputs.image_grid_thw is not None:
            outside = ~inside if kept is None else kept > inside  # kept, and not inside
            astray = astray | (outside & (ids == spec.image_token_id))
        odd = sources & (lengths[rank[:-1]] != grids.prod(1))
        misfit = odd.any() | astray.any()
    return Reading(
        *(stream, inside, grids, grid_rows, real, ordinals, sources),
        *(grids_in_row, markers.num_closed, misfit),
    )
