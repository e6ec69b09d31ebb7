"""Whether a prompt fits its grids, and the messages that say where it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.hints import likely_mistake
from vecrope.core.items import Items
from vecrope.core.locations import TokenLocations
from vecrope.core.modality import IMAGE, TEXT
from vecrope.core.search import search
from vecrope.core.stream import value_at_last
from vecrope.spec import MRopeSpec

_KINDS = ("image", "video")
_MAX_TOKENS = 2**30


def check_grids(
    image_grid_thw: Tensor,
    video_grid_thw: Tensor,
    spec: MRopeSpec,
    *,
    round_grid_sides: bool = False,
) -> None:
    """Check that every grid row is all zeros, or positive and divisible by the merge size.

    If `round_grid_sides` it is enough that no side is smaller.
    """
    merge = spec.spatial_merge_size
    for kind, grids in zip(_KINDS, (image_grid_thw, video_grid_thw), strict=True):
        tokens = 0
        for at, grid in enumerate(map(tuple, grids.tolist())):
            frames, *sides = grid
            tokens += frames * sides[0] * sides[1] // merge**2
            name = f"{kind}_grid_thw row {at}"
            if any(grid) and min(grid) <= 0:
                raise ValueError(f"{name} must be positive, or all zeros for no {kind}, got {grid}")
            if any(0 < side < merge if round_grid_sides else side % merge for side in sides):
                what = "of at least" if round_grid_sides else "divisible by"
                raise ValueError(
                    f"{name} must have a height and width {what} spatial_merge_size {merge}, "
                    f"got {grid}"
                )
            if tokens >= _MAX_TOKENS:
                raise ValueError(
                    f"{kind}_grid_thw must describe fewer than 2**30 tokens, row {at} {grid} "
                    "exceeds that"
                )
            if kind == "image" and frames > 1 and not spec.multi_frame_images:
                raise ValueError(
                    f"{name} must have one frame, as {spec.convention} asks of {spec.model_type}, "
                    f"got {grid}"
                )
            if kind == "video" and 0 < frames < spec.temporal_merge_size:
                raise ValueError(
                    f"{name} must have at least temporal_merge_size {spec.temporal_merge_size} "
                    f"frames, got {grid}"
                )


def check_seconds(
    seconds: Tensor | Sequence[float] | None, video_grid_thw: Tensor, spec: MRopeSpec
) -> None:
    """Check that the seconds of every video are sound; synchronises where there are any."""
    if spec.video_time != "seconds" or not video_grid_thw.shape[0]:
        return
    if seconds is None:
        if spec.default_seconds is None:
            raise ValueError(
                f"second_per_grid_ts must be given for the videos of {spec.model_type}, got None"
            )
        return
    values = seconds.tolist() if isinstance(seconds, Tensor) else seconds
    assert spec.tokens_per_second is not None
    limit, most, total = float(_MAX_TOKENS), "2**30", 0.0
    if (
        isinstance(seconds, Tensor)
        and seconds.dtype == torch.float16
        and spec.time_dtype == "given"
    ):
        limit, most = 65504, "65504, as torch.float16 asks"
    for at, (value, frames) in enumerate(zip(values, video_grid_thw[:, 0].tolist(), strict=True)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"second_per_grid_ts must be finite and not negative, got {float(value)} for "
                f"video {at}"
            )
        times = value * (spec.tokens_per_second * frames)
        total += times
        if not (times < limit and total < _MAX_TOKENS):
            raise ValueError(
                f"second_per_grid_ts must keep all positions below {most}, got {float(value)} for "
                f"video {at} of {frames} frames"
            )


def check_none_left_over(items: Items) -> None:
    """Check that there are no grids, where there are no tokens."""
    expected = items.expected.tolist()
    if any(expected):
        raise ValueError(
            f"the grids describe {expected[0]} image tokens and {expected[1]} video tokens, "
            "input_ids hold none"
        )


def layout_fault(
    locations: TokenLocations, spec: MRopeSpec, *, allow_unused_grids: bool = False
) -> Tensor:
    """Return, as a 0-d bool, whether placeholders and grids fail to fit; does not synchronise.

    If `allow_unused_grids`, grids may be left over.
    """
    faulty, missing, touching = _token_faults(locations, spec)
    for flags in (missing, touching):
        if flags is not None:
            faulty = faulty | flags
    return faulty.any() | _wrong_totals(locations, allow_unused_grids).any()


def raise_layout_fault(
    locations: TokenLocations,
    image_grid_thw: Tensor,
    video_grid_thw: Tensor,
    spec: MRopeSpec,
    *,
    allow_unused_grids: bool = False,
) -> NoReturn:
    """Raise the ValueError that describes the first fault found by `layout_fault`."""
    grids = (image_grid_thw, video_grid_thw)
    items = locations.items
    found, expected = locations.found.tolist(), items.expected.tolist()
    broken, missing, touching = _token_faults(locations, spec)
    surplus = _surplus(locations)
    # Placeholders beyond the last grid that follow its own in one run are named further down.
    kind = locations.kind
    starts = kind != pad(kind[:-1], (1, 0), value=TEXT)
    starts |= locations.rows != pad(locations.rows[:-1], (1, 0), value=-1)
    for at in (broken | (surplus & starts)).nonzero()[:1, 0].tolist():
        if bool(surplus[at]):
            _raise_surplus(at, locations, grids, spec)
        same = ((locations.item == locations.item[at]) & (kind == kind[at]))[:at].nonzero()
        _raise_cut_short(int(same[-1]), locations, grids, spec)
    wrong = _wrong_totals(locations, allow_unused_grids).tolist()
    if not any(wrong):
        if touching is not None and bool(touching.any()):
            _raise_touching(int(touching.nonzero()[0]), locations, grids, spec)
        assert missing is not None
        _raise_missing_marker(int(missing.nonzero()[0]), locations, grids, spec)
    which = int(not wrong[0])
    of_kind = kind == IMAGE + which
    if found[which] > expected[which]:
        at = int((of_kind & surplus).nonzero()[0])
        _raise_surplus(at, locations, grids, spec)
    # What the prompt holds is sound, but it ends before its grids do.
    if found[which]:
        last = int(of_kind.nonzero()[-1])
        if int(locations.place[last]) + 1 < int(locations.group_tokens[last]):
            _raise_cut_short(last, locations, grids, spec)
    rank = found[which] + which * expected[0]
    item = int((items.ends <= rank).sum())
    start, _, width, height, _, _ = items.table[:, item].tolist()
    at = item - which * items.num_images
    raise ValueError(
        f"{_KINDS[which]}_grid_thw row {at} {tuple(grids[which][at].tolist())} is left over"
        + (f" after {(rank - start) // (width * height)} of its frames" if rank > start else "")
        + f": expected {expected[which]} {_KINDS[which]} tokens in the batch, got {found[which]}"
        + _likely_mistake(which, locations, grids, spec)
    )


def _token_faults(
    locations: TokenLocations, spec: MRopeSpec
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return three times (N,) bool, the last two None where the spec does not ask for it.

    The token does not follow the one before it in its group; the group that begins here has no
    start marker right before it; the frame that begins here touches the one before it.
    """
    stream, rows = locations.stream, locations.rows
    key = locations.item + rows * locations.items.table.shape[1]
    if stream.kept is None:
        previous = pad(key[:-1], (1, 0), value=-1)
    else:
        previous = value_at_last(stream.kept, key, -1, before=True)
    follows = key == previous
    # Of placeholders: the place of every other token is 0.
    later = locations.place > 0
    broken = later & ~follows
    missing = touching = None
    if spec.marker_rule == "adjacent" and stream.token_types is None:
        assert spec.vision_start_token_id is not None
        marked = pad(stream.input_ids.eq(spec.vision_start_token_id)[:-1], (1, 0))
        before = False if stream.open_markers is None else stream.open_markers[rows] > 0
        marked = torch.where(rows == pad(rows[:-1], (1, 0), value=-1), marked, before)
        missing = locations.visual & ~(marked | later)
    if not spec.frames_may_touch and locations.video is not None:
        touching = locations.video & follows & ~later
        touching = touching & (locations.item < locations.items.text)
    return broken, missing, touching


def _wrong_totals(locations: TokenLocations, allow_unused_grids: bool) -> Tensor:
    """Return (2,) bool: there are too many or too few image tokens, and video tokens.

    If `allow_unused_grids` they are too few only where the last image, video or separate frame
    lacks some.
    """
    items, found = locations.items, locations.found
    if not allow_unused_grids:
        return found != items.expected
    # Of the next image token, and of the next video token.
    ranks = torch.stack((found[0], found[1] + items.expected[0]))
    if items.text == 0:  # Triton 3.6 compiles no search among nothing
        return found > items.expected
    start, _, width, height, in_group, _ = items.table[:, search(items.ends, ranks)].unbind()
    return (found > items.expected) | ((ranks - start) % (width * height * in_group) != 0)


def _surplus(locations: TokenLocations) -> Tensor:
    """Return (N,) bool: placeholders beyond the last grid of their kind."""
    items = locations.items
    surplus = locations.image & (locations.item >= items.num_images)
    if locations.video is None:
        return surplus
    return surplus | (locations.video & (locations.item == items.text))


def _raise_surplus(
    at: int, locations: TokenLocations, grids: tuple[Tensor, Tensor], spec: MRopeSpec
) -> NoReturn:
    kind = int(not bool(locations.image[at]))
    raise ValueError(
        f"row {int(locations.rows[at])} holds {_KINDS[kind]} tokens beyond the last grid: "
        f"expected {int(locations.items.expected[kind])} for the {grids[kind].shape[0]} rows of "
        f"{_KINDS[kind]}_grid_thw, got {int(locations.found[kind])} in the batch"
        + _likely_mistake(kind, locations, grids, spec)
    )


def _likely_mistake(
    which: int, locations: TokenLocations, grids: tuple[Tensor, Tensor], spec: MRopeSpec
) -> str:
    return likely_mistake(
        which,
        int(locations.found[which]),
        int(locations.items.expected[which]),
        grids[which].shape[0],
        spec,
        by_types=locations.stream.token_types is not None,
    )


def _raise_missing_marker(
    at: int, locations: TokenLocations, grids: tuple[Tensor, Tensor], spec: MRopeSpec
) -> NoReturn:
    what, grid = _name(at, locations, grids)
    start, stop = locations.run_at(at)
    alone = stop - start <= int(locations.group_tokens[at])
    where = "right before its tokens" if alone else "before each of its frames"
    raise ValueError(
        f"row {int(locations.rows[at])}, {what}: its grid {grid} needs a vision_start_token_id "
        f"{spec.vision_start_token_id} {where}, got another token; SGLang would number them as text"
    )


def _raise_touching(
    at: int, locations: TokenLocations, grids: tuple[Tensor, Tensor], spec: MRopeSpec
) -> NoReturn:
    what, grid = _name(at, locations, grids)
    frame = int(locations.group[locations.run_at(at)[0]])
    raise ValueError(
        f"row {int(locations.rows[at])}, {what}: its grid {grid} needs something between its "
        f"frames, got nothing at frame {frame}; {spec.convention} would number the video as a block"
    )


def _raise_cut_short(
    at: int, locations: TokenLocations, grids: tuple[Tensor, Tensor], spec: MRopeSpec
) -> NoReturn:
    """Raise the ValueError for a group of which the token `at` is the last that can be reached."""
    what, grid = _name(at, locations, grids)
    kind = what.split()[0]
    if kind == "video" and spec.separate_frames:
        what = f"frame {int(locations.group[at])} of {what}"
    which, got = _KINDS.index(kind), int(locations.place[at]) + 1
    why = f"; was the prompt truncated inside the {kind}?"
    if got == 1 and int(locations.found[which]) == grids[which].shape[0]:
        why = f"; was the prompt truncated inside the {kind}, or never expanded by the processor?"
    raise ValueError(
        f"row {int(locations.rows[at])}, {what}: its grid {grid} needs "
        f"{int(locations.group_tokens[at])} tokens, got {got} in one run"
        + (_likely_mistake(which, locations, grids, spec) or why)
    )


def _name(
    at: int, locations: TokenLocations, grids: tuple[Tensor, Tensor]
) -> tuple[str, tuple[int, ...]]:
    """Return what the item of a token is called, and its grid."""
    item = int(locations.item[at])
    kind = int(item >= locations.items.num_images)
    row = item - kind * locations.items.num_images
    return f"{_KINDS[kind]} {row}", tuple(grids[kind][row].tolist())


def invalidate(fault: Tensor, position_ids: Tensor, rope_deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Fill the answer with -1, and the deltas with their least value, where `fault` is set.

    Under tracing this stands for an exception. `fault` is a 0-d bool.
    """
    least = torch.iinfo(rope_deltas.dtype).min
    return position_ids.masked_fill(fault, -1), rope_deltas.masked_fill(fault, least)
