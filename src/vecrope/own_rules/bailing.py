"""Bailing under SGLang: cells centred on the position of their frame, and frames two apart."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.checks import RowError
from vecrope.core import faults
from vecrope.core.faults import invalidate
from vecrope.core.items import Items, make_items
from vecrope.core.locations import TokenLocations
from vecrope.core.stream import Stream
from vecrope.families.rules import Bailing
from vecrope.forms.eager.rope_index import find_groups, raise_misfit
from vecrope.forms.static import locate
from vecrope.inputs import Inputs
from vecrope.own_rules.common import Tokens, grids_of, open_stream, positions_dtype
from vecrope.own_rules.layout import Layout
from vecrope.spec import MRopeSpec

_FRAME_STEP = 2


def bailing_rope_index(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> tuple[Tensor, Tensor]:
    """Return the positions of `vecrope.get_rope_index` by the rule `Bailing`.

    Frame f of an image or a video stands at the running position plus 2 f, and so do the rows and
    columns around its middle: they are counted from there in both directions, and may be negative.
    What follows goes on past the last frame. Images and videos follow their start markers; with
    `spec.separate_frames` each frame of a video follows the one of images.

    Returns:
        `position_ids` (3, B, T) in the dtype that the spec names, or (3, N); and `rope_deltas`
        (B, 1) in that dtype, or (num_sequences, 1): measured on the temporal axis alone.

    Raises:
        ValueError: with `validate`, if markers, placeholders and grids do not fit each other, or if
            a position is outside of what the rule says that the checkpoint has room for.

    The rule is that of SGLang's
    `BailingMRotaryEmbedding.bailing_3drope_get_input_positions_tensor`.
    """
    rule = spec.own_rule
    assert isinstance(rule, Bailing)
    dtype = positions_dtype(inputs, spec)
    stream = open_stream(inputs, spec, validate=validate)
    images = grids_of(stream, inputs.image_grid_thw)
    videos = grids_of(stream, inputs.video_grid_thw)
    tracing = torch.compiler.is_compiling()
    if validate and not tracing:
        faults.check_grids(images, videos, spec)
    items = _scaled(make_items(images, videos, spec, stream.index_dtype))
    if stream.num_tokens == 0:
        if validate and not tracing:
            faults.check_none_left_over(items)
        rope_deltas = torch.zeros((stream.num_rows, 1), dtype=dtype, device=images.device)
        return torch.empty((3, *stream.shape), dtype=dtype, device=images.device), rope_deltas
    locations = locate(stream, spec, items)
    fault = None
    if validate:
        fault = locations.fault()
        missing = _missing_marker(locations, spec)
        if not tracing and bool(fault):
            raise_misfit(inputs, spec)
        if not tracing and bool(missing.any()):
            _raise_missing_marker(locations, spec, missing)
        fault = fault | missing.any()
    # A token's row and column, counted from the middle of its frame.
    time, row, column = locations.offsets().unbind()
    time = time + locations.base
    if stream.kept is not None:
        time = time.masked_fill(~stream.kept, spec.padding_value)
    row, column = row - (locations.height - 1) // 2, column - (locations.width - 1) // 2
    positions = torch.stack((time, time + row, time + column))
    if fault is not None:
        outside = _outside(positions, rule)
        if not tracing and bool(outside.any()):
            _raise_outside(stream, positions, outside, rule)
        fault = fault | outside.any()
    position_ids = positions.to(dtype).view(3, *stream.shape)
    rope_deltas = locations.ends_of_rows()[1].to(dtype)
    if fault is not None and tracing:
        return invalidate(fault, position_ids, rope_deltas)
    return position_ids, rope_deltas


def lay_out_bailing(tokens: Tokens, spec: MRopeSpec) -> Layout | None:
    """Lay a batch out by the same rule; None if anything does not fit."""
    rule, inputs, bounds = spec.own_rule, tokens.inputs, tokens.bounds
    assert isinstance(rule, Bailing)
    try:
        items, starts, stops, numbers, *_ = find_groups(inputs, spec).parts
    except ValueError:  # which counts unmasked tokens alone
        return None
    if inputs.mm_token_type_ids is None:
        markers = [spec.vision_start_token_id, spec.video_start_token_id]
        if spec.separate_frames:
            markers[1] = markers[0]
        expected = [markers[item >= items.num_images] for item in numbers]
        before = torch.tensor(starts, dtype=torch.int64, device="cpu") - 1
        if tokens.ids[before].tolist() != expected or not {*starts}.isdisjoint(bounds):
            return None
    layout, part = Layout(tokens), 0
    layout.media += zip(starts, stops, numbers, strict=True)
    least = most = 0
    for at, end in pairwise(bounds):
        now, done = 0, at
        while part < len(starts) and starts[part] < end:
            start, item = starts[part], numbers[part]
            layout.count(now, start - done)
            now += start - done
            top, left = now - (items.height[item] - 1) // 2, now - (items.width[item] - 1) // 2
            frames, height, width = items.depth[item], items.height[item], items.width[item]
            for shift in range(0, _FRAME_STEP * frames, _FRAME_STEP):
                rows = range(top + shift, top + shift + height)
                layout.cells(now + shift, rows, range(left + shift, left + shift + width))
            now += _FRAME_STEP * (frames - 1) + 1
            least, most = min(least, top, left), max(most, now - 1 + max(height, width) // 2)
            done, part = stops[part], part + 1
        layout.count(now, end - done)
        now += end - done
        most = max(most, now - 1)
        layout.ends.append(now)
    outside = rule.least_position is not None and least < rule.least_position
    if outside or (rule.position_limit is not None and most >= rule.position_limit):
        return None
    return layout


def _scaled(items: Items) -> Items:
    """Set the frames of all items apart."""
    time_scale = torch.stack(
        (torch.full_like(items.extent, _FRAME_STEP), torch.ones_like(items.extent))
    )
    span = _FRAME_STEP * (items.table[4] - 1) + 1
    # Masked tokens have their own span, and a grid of zeros has no frame.
    span = torch.where(items.table[5] > 0, span, items.table[5])
    return replace(
        items, table=torch.cat((items.table[:5], span.unsqueeze(0))), time_scale=time_scale
    )


def _missing_marker(locations: TokenLocations, spec: MRopeSpec) -> Tensor:
    """Return (N,) bool: an image, video or frame begins here without its marker before it."""
    begins, stream, rows = locations.begins, locations.stream, locations.rows
    if stream.token_types is not None:
        return torch.zeros_like(begins)
    marked = _is(stream.input_ids, spec.vision_start_token_id)
    if not spec.separate_frames and locations.video is not None:
        of_videos = _is(stream.input_ids, spec.video_start_token_id)
        marked = torch.where(locations.video, _shifted(of_videos), _shifted(marked))
    else:
        marked = _shifted(marked)
    same_row = rows == pad(rows[:-1], (1, 0), value=-1)
    return begins & ~(marked & same_row)


def _shifted(flags: Tensor) -> Tensor:
    return pad(flags[:-1], (1, 0))


def _is(ids: Tensor, marker: int | None) -> Tensor:
    return torch.zeros_like(ids, dtype=torch.bool) if marker is None else ids.eq(marker)


def _raise_missing_marker(locations: TokenLocations, spec: MRopeSpec, missing: Tensor) -> NoReturn:
    stream = locations.stream
    start, stop = locations.run_at(int(missing.nonzero()[0]))
    row, kind = int(locations.rows[start]), "image" if bool(locations.image[start]) else "video"
    what, marker = "an image", spec.vision_start_token_id
    if kind == "video":
        what = "each frame of a video" if spec.separate_frames else "a video"
        marker = marker if spec.separate_frames else spec.video_start_token_id
    place = start - int(stream.row_bounds[row])
    raise RowError.of(
        row,
        f", token {place}: {what} must follow a start marker, expected the id {marker} right "
        f"before each, got a run of {stop - start} {kind} tokens"
        + (f" after {int(stream.input_ids[start - 1])}" if place else " without one"),
    )


def _outside(positions: Tensor, rule: Bailing) -> Tensor:
    positions = positions.long()  # a limit may be more than narrower numbers can be compared with
    outside = torch.zeros_like(positions, dtype=torch.bool)
    if rule.least_position is not None:
        outside = outside | (positions < rule.least_position)
    if rule.position_limit is not None:
        outside = outside | (positions >= rule.position_limit)
    return outside


def _raise_outside(stream: Stream, positions: Tensor, outside: Tensor, rule: Bailing) -> None:
    axis, token = outside.nonzero()[0].tolist()
    row = int(stream.token_rows()[token])
    raise RowError.of(
        row,
        f", token {token - int(stream.row_bounds[row])}: its position "
        f"{int(positions[axis, token])} must be at least {rule.least_position} and less than "
        f"{rule.position_limit}, which is all that the checkpoint has room for",
    )
