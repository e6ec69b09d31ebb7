"""HunYuan-VL: the plain index, and on the last three axes the cells of its images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.checks import RowError
from vecrope.core import faults
from vecrope.core.faults import invalidate
from vecrope.core.modality import IMAGE
from vecrope.core.search import search
from vecrope.core.stream import Stream
from vecrope.families.rules import Hunyuan
from vecrope.forms.eager.cut import none_found
from vecrope.forms.eager.items import read_grids
from vecrope.forms.eager.runs import read_runs
from vecrope.forms.static import placeholders
from vecrope.inputs import Inputs
from vecrope.own_rules.common import (
    Tokens,
    grids_of,
    kept_tokens,
    open_stream,
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
    def numbers(self) -> tuple[Tensor, Tensor]:
        """How many runs there are, and grids that are not all zeros, 0-d each."""
        return self.starts.sum(), pad(self.real, (1, 0))[-1]


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
        index is an image's.

    Raises:
        ValueError: with `validate`, if runs and grids do not fit each other.

    The rule is that of transformers' `HunYuanVLModel.get_rope_index`.
    """
    rule = spec.own_rule
    assert isinstance(rule, Hunyuan)
    refuse_videos(inputs, spec)
    stream = open_stream(inputs, spec, validate=validate)
    grids = grids_of(stream, inputs.image_grid_thw)
    tracing = torch.compiler.is_compiling()
    if validate and not tracing:
        faults.check_grids(grids, grids[:0], spec, round_grid_sides=inputs.round_grid_sides)
    rows, kept = stream.token_rows(), kept_tokens(stream)
    count, valid = stream.running_sums(kept, rows)
    index = count - 1
    positions = index.expand(rule.num_axes, -1)
    fault = None
    if inputs.image_grid_thw is not None and stream.num_tokens:
        placeholder, _, _ = placeholders(stream, spec, rows)
        images = _find_images(stream, placeholder, rows, grids, spec.spatial_merge_size)
        if validate:
            fault = _misfit(images)
            if not tracing and bool(fault):
                by_types = inputs.mm_token_type_ids is not None
                found = bool(placeholder.any())
                remark = "" if found else none_found(IMAGE, spec, by_types=by_types)
                _raise_misfit(images, placeholder, rows, grids, remark)
        positions = torch.cat((positions[:-3], _cells(images, placeholder, index)))
    largest = torch.full_like(valid, -1).scatter_reduce(
        0, rows.long(), torch.where(kept, positions.amax(0), -1), "amax"
    )
    rope_deltas = (largest + 1 - valid).to(inputs.input_ids.dtype).unsqueeze(1)
    position_ids = torch.where(kept, positions, spec.padding_value).to(inputs.input_ids.dtype)
    position_ids = position_ids.view(rule.num_axes, *stream.shape)
    if fault is None or not tracing:
        return position_ids, rope_deltas
    return invalidate(fault, position_ids, rope_deltas)


def lay_out_hunyuan(tokens: Tokens, spec: MRopeSpec) -> Layout | None:
    """Lay a batch out by the same rule; None if runs and grids misfit."""
    rule, inputs, bounds = spec.own_rule, tokens.inputs, tokens.bounds
    assert isinstance(rule, Hunyuan)
    refuse_videos(inputs, spec)
    starts: list[int] = []
    stops: list[int] = []
    grids: list[tuple[int, int, int]] = []
    if inputs.image_grid_thw is not None:
        starts, stops, _ = read_runs(inputs, spec, bounds).of(IMAGE)
        rows = inputs.image_grid_thw.tolist()
        if rows:
            exact = read_grids(rows, len(rows), spec, round_grid_sides=inputs.round_grid_sides)
            if exact is None:
                return None
            sizes = enumerate(zip(*exact[2:], strict=True))
            grids = [(at, height, width + 1) for at, (height, width, area) in sizes if area]
    if len(starts) != len(grids):
        return None
    layout, run = Layout(tokens, index_axes=rule.num_axes - 3), 0
    for at, end in pairwise(bounds):
        done, reach = at, 0
        while run < len(starts) and starts[run] < end:
            number, height, width = grids[run]
            around = stops[run] - starts[run] - height * width
            if around not in (0, _WRAPPERS):
                return None
            first = starts[run] + around // 2
            reach = max(reach, height, width, run + 1, first - at if first > done else 0)
            layout.count(done - at, first - done)
            layout.cells(run, range(height), range(width))
            layout.media.append((starts[run], stops[run], number))
            done, run = first + height * width, run + 1
        layout.count(done - at, end - done)
        # A fourth axis is the index of every token.
        has_index = end > done or rule.num_axes > 3
        layout.ends.append(max(reach, end - at) if has_index else reach)
    return layout


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


def _odd_lengths(images: _Images) -> Tensor:
    """Return (I,) bool: the runs that are not as long as their grids ask for."""
    expected = images.height * images.width + images.first * _WRAPPERS
    return (images.lengths != expected)[:-1]


def _misfit(images: _Images) -> Tensor:
    """Return, as a 0-d bool, whether runs and grids do not fit each other."""
    num_runs, num_grids = images.numbers
    return _odd_lengths(images).any() | (num_runs != num_grids)


def _cells(images: _Images, placeholder: Tensor, index: Tensor) -> Tensor:
    """Return (3, N) the column, the row and the number of the image, or the index outside of it."""
    table = torch.stack((images.first, images.width, images.height * images.width))
    first, width, area = table[:, images.run].unbind()
    place = images.place - first
    inside = placeholder & (place >= 0) & (place < area)
    return torch.where(inside, torch.stack((place % width, place // width, images.run)), index)


def _raise_misfit(
    images: _Images, placeholder: Tensor, rows: Tensor, grids: Tensor, remark: str
) -> NoReturn:
    """Raise the ValueError that describes the first run, or the first grid, that does not fit."""
    num_runs, num_grids = map(int, images.numbers)
    odd = _odd_lengths(images)[: min(num_runs, num_grids)].nonzero()
    if not odd.shape[0] and num_runs < num_grids:
        grid = int(images.grid[num_runs])
        raise ValueError(
            f"image_grid_thw row {grid} {tuple(grids[grid].tolist())} is left over: expected "
            f"{num_grids} runs of image tokens in all, got {num_runs}{remark}"
        )
    run = int(odd[0]) if odd.shape[0] else num_grids
    row = int(rows[(placeholder & (images.run == run)).nonzero()[0]])
    if run == num_grids:
        raise RowError.of(
            row,
            f" holds image tokens beyond the last grid: expected {num_grids} runs of them for the "
            f"{grids.shape[0]} rows of image_grid_thw, got {num_runs} in all",
        )
    grid, expected = int(images.grid[run]), int(images.height[run] * images.width[run])
    raise RowError.of(
        row,
        f", image {grid}: its grid {tuple(grids[grid].tolist())} needs {expected} tokens, or "
        f"{expected + _WRAPPERS} with those around it, got {int(images.lengths[run])} in one run; "
        "was the prompt truncated inside the image?",
    )
