"""HunYuan-VL: the plain index, and on the last three axes the cells of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.checks import RowError
from vecrope.core.items import grids_of
from vecrope.core.modality import IMAGE
from vecrope.core.search import search
from vecrope.core.stream import Stream, make_stream
from vecrope.families.rules import Hunyuan
from vecrope.forms.eager.groups import PATCH_SIZES, in_pixels, none_found, why_short
from vecrope.forms.eager.items import read_items
from vecrope.forms.eager.runs import read_runs
from vecrope.forms.static import placeholders
from vecrope.inputs import Inputs
from vecrope.own_rules.common import (
    Tokens,
    finish,
    refuse_videos,
)
from vecrope.own_rules.layout import Layout
from vecrope.spec import MRopeSpec

# Two tokens around an image, which have its placeholder and keep their index.
_WRAPPERS = 2


@dataclass(frozen=True)
class _Images:
    """The runs of placeholders in the batch, and the grids that they take, both in order."""

    run: Tensor  # (N,) number of the run that a placeholder stands in
    place: Tensor  # (N,) its place in the run
    lengths: Tensor  # (I + 1,) tokens in each run; the last is of all runs without a grid
    starts: Tensor  # (N,) bool: the first token of each run
    real: Tensor  # (I,) grids so far that are not all zeros
    grid: Tensor  # (I + 1,) row of the grid of each run
    height: Tensor  # (I + 1,) rows, in tokens; 0 for a run without a grid
    width: Tensor  # (I + 1,) columns, with that of the line ends
    first: Tensor  # (I + 1,) place of the grid's first token

    @property
    def misfit(self) -> Tensor:
        """Whether runs and grids do not fit each other, a 0-d bool."""
        expected = self.height * self.width + self.first * _WRAPPERS
        odd = (self.lengths != expected)[:-1].any()
        return odd | (self.starts.sum() != pad(self.real, (1, 0))[-1])


def hunyuan_rope_index(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> tuple[Tensor, Tensor]:
    """Return the positions of `vecrope.get_rope_index` by the rule `Hunyuan`.

    Every unmasked token has its index among those of its row. An image is a run of placeholders;
    each line of it ends in a token of its own. On the last three axes its tokens have their column,
    their row and the number of the image in the batch. A run may have one more token at both ends,
    which keep their index, as the processor's `cat_extra_token` asks for. Without any grid all
    tokens are text.

    Returns:
        `position_ids` (A, B, T) in the dtype of `input_ids`, or (A, N), for the A axes of the rule;
        and `rope_deltas` (B, 1) in that dtype, or (num_sequences, 1): 0 but where the row's largest
        index is an image's. With `validate` runs and grids that do not fit each other have no
        answer, as `invalidate` says.

    The rule is that of transformers' `HunYuanVLModel.get_rope_index`.
    """
    rule = spec.own_rule
    assert isinstance(rule, Hunyuan)
    refuse_videos(inputs, spec)
    stream = make_stream(inputs, spec)
    grids = grids_of(inputs.image_grid_thw, stream.input_ids.device)
    rows, kept = stream.token_rows(), stream.kept
    if kept is None:
        kept = torch.ones_like(stream.input_ids, dtype=torch.bool)
    count, valid = stream.running_sums(kept, rows)
    index = count - 1
    positions = index.expand(rule.num_axes, -1)
    fault = None
    if inputs.image_grid_thw is not None:
        placeholder, _, _ = placeholders(stream, spec, rows)
        images = _find_images(stream, placeholder, rows, grids, spec.spatial_merge_size)
        fault = images.misfit if validate else None
        positions = torch.cat((positions[:-3], _cells(images, placeholder, index)))
    largest = torch.full_like(valid, -1).scatter_reduce(
        0, rows.long(), torch.where(kept, positions.amax(0), -1), "amax"
    )
    return finish(stream, inputs, spec, positions, largest + 1 - valid, fault)


def lay_out_hunyuan(tokens: Tokens, spec: MRopeSpec) -> Layout:
    """Lay a batch out by the same rule.

    Raises:
        ValueError: for the first run, or the first grid, that does not fit.
    """
    rule, inputs = spec.own_rule, tokens.inputs
    assert isinstance(rule, Hunyuan)
    refuse_videos(inputs, spec)
    starts: list[int] = []
    stops: list[int] = []
    grids: list[tuple[int, int, int]] = []
    if inputs.image_grid_thw is not None:
        starts, stops, _ = read_runs(inputs, spec, tokens.bounds).of(IMAGE)
        items = read_items(inputs, spec)
        sizes = enumerate(zip(items.groups, items.height, items.width, strict=True))
        grids = [(at, height, width + 1) for at, (real, height, width) in sizes if real]
    _check_runs(tokens, spec, starts, stops, grids)
    layout = Layout(tokens, index_axes=rule.num_axes - 3)
    layout.media += [
        (start, stop, number)
        for start, stop, (number, _, _) in zip(starts, stops, grids, strict=True)
    ]
    begin = 0
    for end, own in layout.rows(starts):
        for run in own:
            _, height, width = grids[run]
            # Text has its index, in front of an image too.
            layout.text(starts[run] + (stops[run] - starts[run] - height * width) // 2)
            layout.reach = max(layout.reach, height, width, run + 1, layout.now)
            layout.frame(run, range(height), range(width))
            layout.now = layout.at - begin
        # Of three axes none has the index of an image's tokens.
        if layout.at == end and rule.num_axes == 3:
            layout.now = 0
        begin = end
    return layout


def _check_runs(
    tokens: Tokens,
    spec: MRopeSpec,
    starts: Sequence[int],
    stops: Sequence[int],
    grids: Sequence[tuple[int, int, int]],
) -> None:
    given = [] if tokens.inputs.image_grid_thw is None else tokens.inputs.image_grid_thw.tolist()
    for start, stop, (number, height, width) in zip(starts, stops, grids, strict=False):
        found, expected = stop - start, height * width
        if found - expected not in (0, _WRAPPERS):
            # Of the tokens found, less those around, one a line ends it: what is left is whole.
            cells = expected - height
            fits = (
                (found - around) * size**2 - size * height == cells
                for size in PATCH_SIZES
                for around in (0, _WRAPPERS)
            )
            remark = in_pixels("image_grid_thw", fits)
            raise RowError.of(
                tokens.row_of(start),
                f", image {number}: its grid {tuple(given[number])} needs {expected} tokens, or "
                f"{expected + _WRAPPERS} with those around it, got {found} in one run"
                + why_short("image", remark, unexpanded=found == 1),
            )
    if len(starts) < len(grids):
        number = grids[len(starts)][0]
        by_types = tokens.inputs.mm_token_type_ids is not None
        raise ValueError(
            f"image_grid_thw row {number} {tuple(given[number])} is left over: expected "
            f"{len(grids)} runs of image tokens in all, got {len(starts)}"
            + ("" if starts else none_found(IMAGE, spec, by_types=by_types))
        )
    if len(starts) > len(grids):
        raise RowError.of(
            tokens.row_of(starts[len(grids)]),
            f" holds image tokens beyond the last grid: expected {len(grids)} runs of them for the "
            f"{len(given)} rows of image_grid_thw, got {len(starts)} in all",
        )


def _find_images(
    stream: Stream, placeholder: Tensor, rows: Tensor, grids: Tensor, merge: int
) -> _Images:
    index_dtype, num_grids = stream.index_dtype, grids.shape[0]
    other = ~placeholder if stream.kept is None else stream.kept > placeholder
    # Grows with every other token and with every row: what two placeholders of a run share.
    key = other.cumsum(0, dtype=index_dtype) + rows
    before = pad(torch.where(placeholder, key, -1).cummax(0).values[:-1], (1, 0), value=-1)
    starts = placeholder & (before != key)
    run = starts.cumsum(0, dtype=index_dtype) - 1
    rank = placeholder.cumsum(0, dtype=index_dtype) - 1
    place = rank - torch.where(starts, rank, -1).cummax(0).values
    numbered = torch.where(placeholder, run, num_grids).clamp(max=num_grids)
    lengths = torch.zeros(num_grids + 1, dtype=index_dtype, device=run.device)
    lengths = lengths.scatter_add(0, numbered.long(), placeholder.to(index_dtype))

    real = grids.any(1).cumsum(0, dtype=index_dtype)
    wanted = torch.arange(1, num_grids + 2, dtype=index_dtype, device=run.device)
    grid = search(real, wanted, right=False)
    # A negative size, refused where values are checked, must not make a width of 0.
    sides = grids[:, 1:].to(index_dtype).clamp(min=0) // merge
    sides = pad(sides, (0, 0, 0, 1))[grid]
    height, width = sides[:, 0], sides[:, 1] + 1
    return _Images(
        run=numbered,
        place=place,
        lengths=lengths,
        starts=starts,
        real=real,
        grid=grid,
        height=height,
        width=width,
        first=(lengths == height * width + _WRAPPERS).to(index_dtype),
    )


def _cells(images: _Images, placeholder: Tensor, index: Tensor) -> Tensor:
    """Return (3, N) the column, the row and the number of the image, or the index outside of it."""
    table = torch.stack((images.first, images.width, images.height * images.width))
    first, width, area = table[:, images.run].unbind()
    place = images.place - first
    inside = placeholder & (place >= 0) & (place < area)
    return torch.where(inside, torch.stack((place % width, place // width, images.run)), index)
