"""Where the placeholders stand: the first and the last token of every group.

Two finders serve one writer. `find_by_tokens` looks at every placeholder, and takes any layout.
`find_by_runs` looks at where placeholders begin and end, in passes over single bytes, which is
faster for long input; it takes layouts in which every run of placeholders is one group.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, chain, compress
from operator import not_
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.modality import set_indices
from vecrope.core.search import search
from vecrope.forms.eager.batch import Batch
from vecrope.forms.eager.groups import Groups, host_tensor, make_groups
from vecrope.forms.eager.items import Items
from vecrope.spec import MRopeSpec

# What a marker is: where a row begins, no video goes on.
_ROW, _START, _END = range(3)
# Token index and kind of each, and how many placeholders, or runs of them, stand before it.
Markers = list[tuple[int, int, int]]


class Found(NamedTuple):
    """The groups of a batch, and where they stand."""

    groups: Groups
    first: Tensor  # (G,) int64 index of each group's first token
    last: Tensor  # (G,)
    # (P,) index of every placeholder, in the order of the groups; None: groups have no gaps.
    placeholders: Tensor | None
    # (N,) bool: the tokens that are no placeholders; None: `placeholders` tells.
    text: Tensor | None
    rows: Tensor | None = None  # (G,) row of each group's first token, in a batch of several

    def token(self, begin: Tensor) -> Tensor:
        """Return the indices of tokens (n,) that are given by index, or by rank."""
        return begin if self.placeholders is None else self.placeholders[begin]

    def reaches(self, index: int) -> bool:
        """Say whether a group ends right before this token index."""
        few = self.groups.many is None
        return (max(self.last.tolist()) if few else int(self.last.amax())) == index - 1


def holds_placeholders(batch: Batch, spec: MRopeSpec) -> bool:
    """Say whether any unmasked token is a placeholder."""
    key, ids = _keys(batch, spec)
    return bool(_hits(batch, key, ids).any()) if ids else False


def find_by_tokens(batch: Batch, spec: MRopeSpec, items: Items, *, lenient: bool) -> Found | None:
    """Find the groups among all placeholders, or None where their number is not the grids'."""
    key, ids = _keys(batch, spec)
    if not ids:
        return None
    by_markers = _by_markers(batch, spec)
    wanted = [*spec.markers] if by_markers else ids
    dtype = torch.int64 if batch.token_types is not None else key.dtype
    hit = key == torch.tensor([[value] for value in wanted], dtype=dtype, device="cpu")
    if batch.kept is not None:
        hit.logical_and_(batch.kept)
    where = hit.nonzero()
    first_kind = sum(items.tokens) if by_markers else items.tokens[0]
    if not _splits_at(where, first_kind):
        first_kind = int((where[:, 0] == 0).sum())
    ranges: list[tuple[int, int]] = []
    if by_markers:
        number = first_kind
        markers = _markers_among_tokens(batch, hit[0], where[number:].tolist())
        ranges = _inside_videos(spec, markers, number)
        num_videos = sum(stop - start for start, stop in ranges)
    else:
        number = where.shape[0]
        only_videos = batch.token_types is None and spec.image_token_id is None
        num_videos = number if only_videos else number - first_kind
    tokens = (number - num_videos, num_videos)
    fitting = items
    if tokens != items.tokens:
        trimmed = items.first(tokens) if lenient else None
        if trimmed is None:
            return None
        fitting = trimmed
    groups = make_groups(fitting)
    if ranges and tokens[0]:
        order = _in_stream_order(fitting, ranges, number)
        if order is None:
            return None
        groups = groups.reordered(order)
    index = (where if number == where.shape[0] else where[:number])[:, 1]
    if not groups.number:
        return Found(groups, index, index, index, None)
    begins, ends = groups.rank_bounds()
    return Found(groups, index[begins], index[ends], index, None)


def find_by_runs(batch: Batch, spec: MRopeSpec, items: Items) -> Found | None:
    """Find the groups among the runs of placeholders, or None where a run is not a group.

    A run goes on over the ends of rows and from an image into a video: such a run is no group.
    """
    key, ids = _keys(batch, spec)
    if not ids:
        return None
    hit = _hits(batch, key, ids)
    padded = pad(hit, (1, 1))
    # Runs begin and end by turns.
    edges = set_indices(padded[1:] != padded[:-1])
    num_groups, num_images = sum(items.groups), sum(items.groups[: items.num_images])
    if edges.shape[0] != 2 * num_groups:
        return None
    first, end = edges.view(-1, 2).unbind(1)
    groups = make_groups(items)
    if _by_markers(batch, spec):
        markers = _markers_among_runs(batch, spec, first)
        ranges = _inside_videos(spec, markers, num_groups)
        if sum(stop - start for start, stop in ranges) != num_groups - num_images:
            return None
        if ranges and num_images:
            groups = groups.reordered(_alternate(num_images, ranges, num_groups))
    elif len(ids) > 1:
        video = (key[first] == ids[1]).tolist()
        if sum(video) != num_groups - num_images:
            return None
        if num_images not in (0, num_groups):
            images = compress(range(num_groups), map(not_, video))
            order = host_tensor(chain(images, compress(range(num_groups), video)))
            first, end = first[order], end[order]
    text = hit.logical_not_()
    if batch.kept is not None:
        text.logical_and_(batch.kept)
    return Found(groups, first, end - 1, None, text)


def _by_markers(batch: Batch, spec: MRopeSpec) -> bool:
    return batch.token_types is None and spec.marker_rule in ("last", "count")


def _keys(batch: Batch, spec: MRopeSpec) -> tuple[Tensor, list[int]]:
    """Return what tells placeholders apart (N,), and its values: images', then videos'."""
    if batch.token_types is not None:
        return batch.token_types, [1, 2]
    if _by_markers(batch, spec):
        return batch.input_ids, [spec.markers[0]]
    ids = (spec.image_token_id, spec.video_token_id)
    return batch.input_ids, [token_id for token_id in ids if token_id is not None]


def _hits(batch: Batch, key: Tensor, ids: list[int]) -> Tensor:
    """Return (N,) bool: the unmasked placeholders."""
    hit = key == ids[0]
    if len(ids) > 1:
        hit.logical_or_(key == ids[1])
    return hit if batch.kept is None else hit.logical_and_(batch.kept)


def _splits_at(where: Tensor, at: int) -> bool:
    """Say whether the ascending kinds in `where` (K, 2) are 0 in front of `at` and not behind."""
    if where.shape[0] < at:
        return False
    around = [kind for kind, _ in where[max(at - 1, 0) : at + 1].tolist()]
    return not (at and around.pop(0)) and all(around)


def _markers_among_runs(batch: Batch, spec: MRopeSpec, first: Tensor) -> Markers:
    """Return the markers, with how many runs (G,) begin before each."""
    _, start, end = spec.markers
    hit = (batch.input_ids == start).logical_or_(batch.input_ids == end)
    places = set_indices(hit if batch.kept is None else hit.logical_and_(batch.kept))
    kinds = [_START if token == start else _END for token in batch.input_ids[places].tolist()]
    markers = _with_row_starts(batch, [*zip(kinds, places.tolist(), strict=True)])
    if not markers:
        return []
    at = host_tensor(place - 1 for _, place in markers)
    before = search(first, at).tolist()
    return [(place, kind, rank) for (kind, place), rank in zip(markers, before, strict=True)]


def _markers_among_tokens(batch: Batch, hit: Tensor, where: list[list[int]]) -> Markers:
    """Return the markers `where`, with how many placeholders, `hit` (N,), stand before each."""
    if not where:
        return []
    markers = _with_row_starts(batch, [(kind, place) for kind, place in where])
    at = host_tensor(place - 1 for _, place in markers)
    before = hit.cumsum(0)[at].tolist()
    return [
        (place, kind, rank if place else 0)
        for (kind, place), rank in zip(markers, before, strict=True)
    ]


def _with_row_starts(batch: Batch, markers: list[tuple[int, int]]) -> list[tuple[int, int]]:
    inner = [start for start in batch.bounds[1:-1] if start < batch.num_tokens]
    return markers + [(_ROW, start) for start in inner] if markers else markers


def _inside_videos(spec: MRopeSpec, markers: Markers, number: int) -> list[tuple[int, int]]:
    """Return the ranges of placeholders, or of runs of them, that stand inside a video.

    Args:
        spec: its `marker_rule`.
        markers: in any order.
        number: how many placeholders, or runs, there are in all.

    Returns:
        Start and stop of each range, ascending; none is empty.
    """
    inside, depth, start = False, 0, 0
    ranges: list[tuple[int, int]] = []
    for _, kind, rank in [*sorted(markers), (0, _ROW, number)]:
        if inside and rank > start:
            ranges.append((start, rank))
        start = rank
        depth = 0 if kind == _ROW else depth + (1 if kind == _START else -1)
        inside = kind == _START if spec.marker_rule == "last" else depth > 0
    return ranges


def _in_stream_order(items: Items, ranges: list[tuple[int, int]], number: int) -> list[int] | None:
    """Return (G,) which group, images' before videos', each of the stream is.

    None if a range of placeholders, of images or of videos, ends inside a group.

    Args:
        items: what the groups are.
        ranges: of placeholders of videos.
        number: how many placeholders there are in all.
    """
    ends = [*accumulate(items.per_group(items.area))]
    num_images = items.tokens[0]
    order: list[int] = []
    at, taken = 0, [0, num_images]
    for start, stop in [*ranges, (number, number)]:
        for kind, tokens in ((0, start - at), (1, stop - start)):
            first = bisect_right(ends, taken[kind])
            taken[kind] += tokens
            after = bisect_right(ends, taken[kind])
            if tokens and ends[after - 1] != taken[kind]:
                return None
            order.extend(range(first, after))
        at = stop
    return order


def _alternate(num_images: int, ranges: list[tuple[int, int]], number: int) -> list[int]:
    """Return (G,) which group each run is, where the `ranges` of the runs are videos'."""
    order: list[int] = []
    at, images, videos = 0, 0, num_images
    for start, stop in [*ranges, (number, number)]:
        order.extend(range(images, images + start - at))
        order.extend(range(videos, videos + stop - start))
        images, videos, at = images + start - at, videos + stop - start, stop
    return order
