"""Whether the placeholders of a segment table fit its grids, and where they do not."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from vecrope.core.items import Items
from vecrope.core.modality import IMAGE, MASKED, VIDEO
from vecrope.segments import Segments, previous_of
from vecrope.spec import MRopeSpec

_KINDS = ("image", "video")


def check_layout(
    items: Items,
    segments: Segments,
    image_grid_thw: Tensor,
    video_grid_thw: Tensor,
    spec: MRopeSpec,
    max_segments: int | None,
    *,
    lenient: bool = False,
) -> None:
    """Check that every run of placeholders holds exactly its grids; synchronises.

    If `lenient`, grids may be left over.
    """
    if max_segments is not None and segments.runs.count is not None:
        count = int(segments.runs.count)
        if count > max_segments:
            raise ValueError(
                f"max_segments must be at least {count} for this input, got {max_segments}"
            )
    if bool(layout_fault(items, segments, lenient=lenient)):
        raise_layout_fault(items, segments, image_grid_thw, video_grid_thw, spec, lenient=lenient)


def layout_fault(items: Items, segments: Segments, *, lenient: bool = False) -> Tensor:
    """Return, as a 0-d bool, whether placeholders and grids fail to fit; does not synchronise."""
    fault = _broken(segments).any() | _misfit(items, segments, lenient).any()
    for flags in (segments.unannounced, segments.joined):
        if flags is not None:
            fault = fault | flags.any()
    return fault


def raise_layout_fault(
    items: Items,
    segments: Segments,
    image_grid_thw: Tensor,
    video_grid_thw: Tensor,
    spec: MRopeSpec,
    *,
    lenient: bool = False,
) -> NoReturn:
    """Raise the ValueError that describes the first fault found by `layout_fault`."""
    grids = (image_grid_thw, video_grid_thw)
    found, expected = segments.runs.total.tolist(), items.expected.tolist()
    visual = (segments.modality == IMAGE) | (segments.modality == VIDEO)
    owner = torch.where(segments.items < items.num_images, IMAGE, VIDEO)
    surplus = visual & ((owner != segments.modality) | (segments.items == items.text))
    faults = (_broken(segments) | surplus).nonzero()
    if faults.shape[0]:
        at = int(faults[0])
        if not bool(surplus[at]):
            same = ((segments.items == segments.items[at]) & visual)[:at].nonzero()
            _raise_cut_short(int(same[-1]), items, segments, grids, spec)
        _raise_surplus(int(segments.modality[at]) - IMAGE, at, segments, grids, expected, found)
    misfit = _misfit(items, segments, lenient).tolist()
    if not any(misfit):
        if segments.joined is not None and bool(segments.joined.any()):
            _raise_joined(segments.joined, items, segments, grids, spec)
        _raise_unannounced(items, segments, grids, spec)
    kind = int(not misfit[0])
    if found[kind] > expected[kind]:
        # The surplus follows the last item in one run, and so was not cut from it.
        run = int(torch.searchsorted(segments.runs.found[kind], expected[kind], right=True))
        at = int(torch.searchsorted(segments.starts, segments.runs.starts[run], right=True)) - 1
        _raise_surplus(kind, at, segments, grids, expected, found)
    # What the prompt holds is sound, but it ends before its grids do.
    of_kind = (visual & (segments.modality == IMAGE + kind)).nonzero()
    if of_kind.shape[0]:
        last = int(of_kind[-1])
        if _tokens_into_group(segments, last):
            _raise_cut_short(last, items, segments, grids, spec)
    rank = found[kind] + kind * expected[0]
    item = int(torch.searchsorted(items.ends, rank, right=True))
    start, _, width, height, _, _ = items.table[:, item].tolist()
    at = item - kind * items.num_images
    raise ValueError(
        f"{_KINDS[kind]}_grid_thw row {at} {tuple(grids[kind][at].tolist())} is left over"
        + (f" after {(rank - start) // (width * height)} of its frames" if rank > start else "")
        + f": expected {expected[kind]} {_KINDS[kind]} tokens in the batch, got {found[kind]}"
    )


def _misfit(items: Items, segments: Segments, lenient: bool) -> Tensor:
    """Return (2,) bool: there are too many or too few image tokens, and video tokens.

    If `lenient` they are too few only where the last image, video or separate frame lacks some.
    """
    total = segments.runs.total
    if not lenient:
        return total != items.expected
    # Of the next image token, and of the next video token.
    ranks = torch.stack((total[0], total[1] + items.expected[0]))
    start, _, width, height, in_group, _ = items.table[
        :, torch.searchsorted(items.ends, ranks, right=True)
    ].unbind()
    return (total > items.expected) | ((ranks - start) % (width * height * in_group) != 0)


def _raise_surplus(
    kind: int,
    at: int,
    segments: Segments,
    grids: tuple[Tensor, Tensor],
    expected: list[int],
    found: list[int],
) -> NoReturn:
    raise ValueError(
        f"row {int(segments.rows[at])} holds {_KINDS[kind]} tokens beyond the last grid: "
        f"expected {expected[kind]} for the {grids[kind].shape[0]} rows of "
        f"{_KINDS[kind]}_grid_thw, got {found[kind]} in the batch"
    )


def _raise_unannounced(
    items: Items, segments: Segments, grids: tuple[Tensor, Tensor], spec: MRopeSpec
) -> NoReturn:
    assert segments.unannounced is not None
    at = int(segments.unannounced.nonzero()[0])
    item = int(segments.items[at])
    kind = int(item >= items.num_images)
    row = item - kind * items.num_images
    alone = int(segments.lengths[at]) <= _group_tokens(segments, at)
    what = "right before its tokens" if alone else "before each of its frames"
    raise ValueError(
        f"row {int(segments.rows[at])}, {_KINDS[kind]} {row}: its grid "
        f"{tuple(grids[kind][row].tolist())} needs a vision_start_token_id "
        f"{spec.vision_start_token_id} {what}, got another token; SGLang would number them as text"
    )


def _raise_joined(
    joined: Tensor,
    items: Items,
    segments: Segments,
    grids: tuple[Tensor, Tensor],
    spec: MRopeSpec,
) -> NoReturn:
    at = int(joined.nonzero()[0])
    row = int(segments.items[at]) - items.num_images
    grid = tuple(grids[1][row].tolist())
    frame = int(segments.starts[at] - segments.origin[at]) // _group_tokens(segments, at)
    raise ValueError(
        f"row {int(segments.rows[at])}, video {row}: its grid {grid} needs something between its "
        f"frames, got nothing at frame {frame}; {spec.convention} would number the video as a block"
    )


def _raise_cut_short(
    at: int, items: Items, segments: Segments, grids: tuple[Tensor, Tensor], spec: MRopeSpec
) -> NoReturn:
    item = int(segments.items[at])
    kind = int(item >= items.num_images)
    row = item - kind * items.num_images
    group_tokens = _group_tokens(segments, at)
    what = f"{_KINDS[kind]} {row}"
    if kind and spec.separate_frames:
        end = int(segments.starts[at] + segments.lengths[at] - segments.origin[at])
        what = f"frame {end // group_tokens} of {what}"
    raise ValueError(
        f"row {int(segments.rows[at])}, {what}: its grid {tuple(grids[kind][row].tolist())} needs "
        f"{group_tokens} tokens, got {_tokens_into_group(segments, at)} in one run; was the prompt "
        f"truncated inside the {_KINDS[kind]}?"
    )


def _broken(segments: Segments) -> Tensor:
    """Return (S,) bool: the segment starts inside a group that does not run on up to it."""
    masked = segments.modality == MASKED
    before = previous_of(~masked, segments.starts.dtype)
    previous = before.clamp(min=0)
    runs_on = (
        (before >= 0)
        & (segments.items[previous] == segments.items)
        & (segments.rows[previous] == segments.rows)
    )
    return segments.interrupted & ~masked & ~runs_on


def _tokens_into_group(segments: Segments, at: int) -> int:
    end = int(segments.starts[at] + segments.lengths[at] - segments.origin[at])
    return end % _group_tokens(segments, at)


def _group_tokens(segments: Segments, at: int) -> int:
    return int(segments.width[at] * segments.height[at] * segments.in_group[at])
