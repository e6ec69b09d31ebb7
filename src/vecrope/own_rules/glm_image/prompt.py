"""GLM-Image: source images between markers, and the positions of the images to be generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope import checks
from vecrope.core import faults
from vecrope.core.faults import invalidate
from vecrope.core.items import make_items
from vecrope.core.search import search
from vecrope.core.stream import Stream
from vecrope.families.rules import GlmImage
from vecrope.forms.static import locate
from vecrope.inputs import Inputs
from vecrope.own_rules.common import (
    grids_of,
    kept_tokens,
    open_stream,
    positions_dtype,
    refuse_videos,
)
from vecrope.spec import MRopeSpec


@dataclass(frozen=True)
class Reading:
    """A batch as its markers say: which tokens are images, and what each grid is for."""

    stream: Stream
    inside: Tensor  # (N,) bool: the tokens of the images in the prompt
    grids: Tensor  # (G, 3) the rows' grids, row by row
    grid_rows: Tensor  # (G,) row of each
    ordinals: Tensor  # (G,) number of each among its row's
    ranks: Tensor  # (G + 1,) number of each among the grids that are not all zeros, then all
    sources: Tensor  # (G,) bool: of an image in the prompt
    grids_in_row: Tensor  # (B,)
    opens: Tensor  # (N,) bool: the start markers
    closed: Tensor  # (N,) end markers in the row so far
    num_closed: Tensor  # (B,) end markers
    image_token_id: int | None  # None without any grid: then placeholders are text

    @property
    def valid(self) -> Tensor:
        """(B,) unmasked tokens."""
        return self.stream.row_sums(kept_tokens(self.stream))

    @property
    def targets(self) -> Tensor:
        """(G,) bool: the grids of images to be generated."""
        real = self.ranks[1:] > self.ranks[:-1]
        return real & (self.ordinals >= self.num_closed[self.grid_rows])

    @property
    def lengths(self) -> Tensor:
        """(G,) tokens between the markers of a source."""
        before = self.grids_in_row.cumsum(0) - self.grids_in_row
        number = before[self.stream.token_rows()] + self.closed
        number = number.masked_fill(~self.inside, self.grids.shape[0])
        lengths = torch.zeros_like(self.ranks)
        lengths = lengths.scatter_add(0, number.long(), self.inside.to(lengths.dtype))
        return lengths[self.ranks[:-1]]

    @property
    def astray(self) -> Tensor:
        """(N,) bool: placeholders outside of the sources, or a start inside of one."""
        astray = self.inside & self.opens
        if self.image_token_id is None:
            return astray
        outside = kept_tokens(self.stream) & ~self.inside
        return astray | (outside & (self.stream.input_ids == self.image_token_id))

    @property
    def misfit(self) -> Tensor:
        """Whether images and grids do not fit each other, a 0-d bool."""
        return self.odd.any() | self.astray.any()

    @property
    def odd(self) -> Tensor:
        """(G,) bool: sources of another length than their grid asks for."""
        return self.sources & (self.lengths != self.grids.prod(1))


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
        by `vecrope.get_decode_position_ids`.

    Raises:
        ValueError: with `validate`, if markers, placeholders and grids do not fit each other.

    The rule is that of transformers' `GlmImageModel.get_rope_index` and of the method
    `_compute_glm_image_mrope_positions` of SGLang's `GlmImageProcessor`.
    """
    reading = read_markers(inputs, spec, validate=validate)
    stream = reading.stream
    # A grid of zeros is no image.
    images = torch.where(reading.sources.unsqueeze(1), reading.grids, 0)
    items = make_items(images, images[:0], spec, stream.index_dtype)
    dtype = positions_dtype(inputs, spec)
    rope_deltas = torch.zeros((stream.num_rows, 1), dtype=dtype, device=images.device)
    if stream.num_tokens == 0:
        return torch.empty((3, *stream.shape), dtype=dtype, device=images.device), rope_deltas
    positions = locate(stream, spec, items, reading.inside).positions()
    position_ids = positions.to(dtype).view(3, *stream.shape)
    if validate and torch.compiler.is_compiling():
        return invalidate(reading.misfit, position_ids, rope_deltas)
    return position_ids, rope_deltas


def read_markers(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> Reading:
    """Find the images of a batch, and the grids that are theirs; `validate` refuses misfits."""
    rule = spec.own_rule
    assert isinstance(rule, GlmImage)
    refuse_videos(inputs, spec)
    if inputs.mm_token_type_ids is not None:
        raise ValueError(
            f"mm_token_type_ids must be None: {spec.model_type} reads its images off their markers"
        )
    tracing = torch.compiler.is_compiling()
    stream = open_stream(inputs, spec, validate=validate)
    grids = grids_of(stream, inputs.image_grid_thw)
    per_row = inputs.images_per_sample
    _check_shape(per_row, stream)
    if validate and not tracing:
        faults.check_grids(grids, grids[:0], spec)
        if per_row is not None:
            _check_images_per_sample(per_row, grids)
    grids = grids.to(stream.index_dtype)
    batch = stream.num_rows
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

    rows, kept = stream.token_rows(), kept_tokens(stream)
    opens = kept & (stream.input_ids == rule.image_start_token_id)
    closes = kept & (stream.input_ids == rule.image_end_token_id)
    opened, num_opened = stream.running_sums(opens, rows)
    closed, num_closed = stream.running_sums(closes, rows)
    num_sources = torch.minimum(torch.minimum(num_opened, num_closed), grids_in_row)
    inside = kept & (opened > closed + opens) & (closed < num_sources[rows])
    sources = real & (ordinals < num_sources[grid_rows])
    reading = Reading(
        stream=stream,
        inside=inside,
        grids=grids,
        grid_rows=grid_rows,
        ordinals=ordinals,
        ranks=rank,
        sources=sources,
        grids_in_row=grids_in_row,
        opens=opens,
        closed=closed,
        num_closed=num_closed,
        image_token_id=None if inputs.image_grid_thw is None else spec.image_token_id,
    )
    if validate and not tracing and bool(reading.misfit):
        _raise_misfit(reading, rows)
    return reading


def _check_shape(per_row: Tensor | None, stream: Stream) -> None:
    if per_row is None:
        return
    checks.check_integral("images_per_sample", per_row)
    if per_row.shape != (stream.num_rows,):
        raise ValueError(
            f"images_per_sample must have shape ({stream.num_rows},), got {tuple(per_row.shape)}"
        )


def _check_images_per_sample(per_row: Tensor, grids: Tensor) -> None:
    negative = (per_row < 0).nonzero()
    if negative.shape[0]:
        row = int(negative[0])
        raise ValueError(
            f"images_per_sample must not be negative, got {int(per_row[row])} for row {row}"
        )
    total = int(per_row.sum())
    if total > grids.shape[0] or bool(grids[total:].any()):
        raise ValueError(
            f"images_per_sample must sum to the {grids.shape[0]} rows of image_grid_thw, of which "
            f"only zeros may be left, got {total}"
        )


def _raise_misfit(reading: Reading, rows: Tensor) -> NoReturn:
    astray = reading.astray.nonzero()
    at = int(astray[0]) if astray.shape[0] else -1
    if at >= 0 and bool(reading.inside[at]):
        row = int(rows[at])
        place = at - int(reading.stream.row_bounds[row])
        raise checks.RowError.of(
            row, f", token {place}: an image starts inside of another, which has not ended"
        )
    odd = reading.odd.nonzero()
    if odd.shape[0]:
        image = int(odd[0])
        grid = tuple(reading.grids[image].tolist())
        raise checks.RowError.of(
            int(reading.grid_rows[image]),
            f", image {int(reading.ordinals[image])}: its grid {grid} needs "
            f"{int(reading.grids[image].prod())} tokens between its markers, got "
            f"{int(reading.lengths[image])}; was the prompt truncated inside the image?",
        )
    row = int(rows[at])
    place = at - int(reading.stream.row_bounds[row])
    complete = int((reading.sources & (reading.grid_rows == row)).sum())
    raise checks.RowError.of(
        row,
        f", token {place}: an image token must stand between the markers of an image that has a "
        f"grid, got one outside of the {complete} such images; was the prompt truncated inside the "
        "image?",
    )
