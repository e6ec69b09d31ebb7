"""Bailing under SGLang: cells centred on the position of their frame, and frames two apart."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.items import Items, grids_of, make_items
from vecrope.core.stream import make_stream
from vecrope.families.rules import Bailing
from vecrope.forms.eager.rope_index import find_groups
from vecrope.forms.static import TokenLocations, is_id, locate
from vecrope.inputs import Inputs
from vecrope.own_rules.common import Tokens, finish
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
        (B, 1) in that dtype, or (num_sequences, 1): measured on the temporal axis alone. With
        `validate` there is no answer, as `invalidate` says, if markers, placeholders and grids do
        not fit each other, or if a position is outside of what the rule says that the checkpoint
        has room for.

    The rule is that of SGLang's
    `BailingMRotaryEmbedding.bailing_3drope_get_input_positions_tensor`.
    """
    rule = spec.own_rule
    assert isinstance(rule, Bailing)
    stream = make_stream(inputs, spec)
    images = grids_of(inputs.image_grid_thw, stream.input_ids.device)
    videos = grids_of(inputs.video_grid_thw, stream.input_ids.device)
    items = _scaled(make_items(images, videos, spec, stream.index_dtype))
    locations = locate(stream, spec, items)
    # A token's row and column, counted from the middle of its frame.
    time, row, column = locations.offsets().unbind()
    time = time + locations.base
    row, column = row - (locations.height - 1) // 2, column - (locations.width - 1) // 2
    positions = torch.stack((time, time + row, time + column))
    fault = None
    if validate:
        outside = _outside(positions, rule)
        if stream.kept is not None:
            outside = outside & stream.kept
        missing = _missing_marker(locations, spec)
        fault = locations.fault() | missing.any() | outside.any()
    rope_deltas = locations.ends_of_rows()[1]
    return finish(stream, inputs, spec, positions, rope_deltas, fault)


def lay_out_bailing(tokens: Tokens, spec: MRopeSpec) -> Layout:
    """Lay a batch out by the same rule.

    Raises:
        ValueError: for the first thing that does not fit.
    """
    rule, inputs = spec.own_rule, tokens.inputs
    assert isinstance(rule, Bailing)
    items, starts, stops, numbers, *_ = find_groups(inputs, spec).parts
    if starts and inputs.mm_token_type_ids is None:
        _check_markers(tokens, spec, starts, [item >= items.num_images for item in numbers])
    layout = Layout(tokens)
    layout.media += zip(starts, stops, numbers, strict=True)
    least = most = 0
    for _, own in layout.rows(starts):
        for at in own:
            layout.text(starts[at])
            now, item = layout.now, numbers[at]
            frames, height, width = items.depth[item], items.height[item], items.width[item]
            top, left = now - (height - 1) // 2, now - (width - 1) // 2
            for shift in range(0, _FRAME_STEP * frames, _FRAME_STEP):
                rows = range(top + shift, top + shift + height)
                layout.frame(now + shift, rows, range(left + shift, left + shift + width))
            layout.now = now + _FRAME_STEP * (frames - 1) + 1
            least = min(least, top, left)
            most = max(most, layout.now - 1 + max(height, width) // 2)
    most = max([most, *(end - 1 for end in layout.ends)])
    too_low = rule.least_position is not None and least < rule.least_position
    if too_low or (rule.position_limit is not None and most >= rule.position_limit):
        positions = layout.positions()
        axis, token = _outside(positions, rule).nonzero()[0].tolist()
        raise tokens.error(
            token,
            f"its position {int(positions[axis, token])} must be at least {rule.least_position} "
            f"and less than {rule.position_limit}, which is all that the checkpoint has room for",
        )
    return layout


def _check_markers(
    tokens: Tokens, spec: MRopeSpec, starts: Sequence[int], of_videos: Iterable[bool]
) -> None:
    """Check that the groups that start at some tokens have their start markers before them."""
    marker_of = {False: spec.vision_start_token_id, True: spec.video_start_token_id}
    if spec.separate_frames:
        marker_of[True] = marker_of[False]
    first_of_rows = {*tokens.bounds}
    in_front = array("q", [max(start - 1, 0) for start in starts])
    before = tokens.ids.index_select(0, torch.frombuffer(in_front, dtype=torch.int64)).tolist()
    for start, of_video, found in zip(starts, of_videos, before, strict=True):
        if found != marker_of[of_video] or start in first_of_rows:
            video = "each frame of a video" if spec.separate_frames else "a video"
            raise tokens.error(
                start,
                f"{video if of_video else 'an image'} must follow a start marker, expected the id "
                f"{marker_of[of_video]} right before it, got "
                + ("no token" if start in first_of_rows else f"the id {found}"),
            )


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
    marked = is_id(stream.input_ids, spec.vision_start_token_id)
    if not spec.separate_frames and locations.video is not None:
        of_videos = is_id(stream.input_ids, spec.video_start_token_id)
        marked = torch.where(locations.video, _shifted(of_videos), _shifted(marked))
    else:
        marked = _shifted(marked)
    same_row = rows == pad(rows[:-1], (1, 0), value=-1)
    return begins & ~(marked & same_row)


def _shifted(flags: Tensor) -> Tensor:
    return pad(flags[:-1], (1, 0))


def _outside(positions: Tensor, rule: Bailing) -> Tensor:
    positions = positions.long()  # a limit may be more than narrower numbers can be compared with
    outside = torch.zeros_like(positions, dtype=torch.bool)
    if rule.least_position is not None:
        outside = outside | (positions < rule.least_position)
    if rule.position_limit is not None:
        outside = outside | (positions >= rule.position_limit)
    return outside
