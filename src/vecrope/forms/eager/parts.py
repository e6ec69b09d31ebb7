"""Where groups stand in a batch, and masked tokens: runs held against what the grids describe."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, compress, pairwise, repeat
from operator import add, eq, mul, not_, sub
from typing import NamedTuple

from vecrope.core.modality import IMAGE, MASKED, VIDEO
from vecrope.forms.eager.items import Items
from vecrope.forms.eager.runs import START, Runs
from vecrope.spec import MRopeSpec

# Index of the first token and behind the last, item, and tokens of the group in its parts before.
Part = tuple[int, int, int, int]


class Parts(NamedTuple):
    """The groups of a batch, P parts in its order: one each, or more where masks interrupt it."""

    items: Items
    starts: Sequence[int]  # (P,) index of the first token
    stops: Sequence[int]  # (P,) index behind the last
    item: Sequence[int]  # (P,)
    before: Sequence[int]  # (P,) tokens of the group in its parts before
    # (P + 1,) by how much more than their tokens the parts before each move the running position.
    moved: Sequence[int]
    masked: tuple[Sequence[int], Sequence[int]] = ((), ())  # (M,) starts and stops of masked runs

    def running(self, at: Sequence[int]) -> list[int]:
        """Return the running positions at tokens outside of parts, as if there were one row."""
        moved = [self.moved[bisect_left(self.starts, index)] for index in at]
        return [*map(add, self.kept_before(at), moved)]

    def kept_before(self, at: Sequence[int]) -> list[int]:
        """Return how many unmasked tokens stand before ascending tokens."""
        return [*map(sub, at, self.masked_before(at))] if self.masked[0] else [*at]

    def bases(self) -> list[int]:
        """Return the running positions at which the parts' groups start, as `running` counts."""
        bases = [*map(add, self.starts, self.moved)]
        return [*map(sub, bases, self.masked_before(self.starts))] if self.masked[0] else bases

    def masked_before(self, at: Sequence[int]) -> list[int]:
        """Return how many masked tokens stand before ascending tokens outside of masked runs."""
        starts, stops = self.masked
        sums = accumulate(map(sub, stops, starts), initial=0)
        before = [0, *map(bisect_right, repeat(at), starts), len(at)]
        return [*chain.from_iterable(map(repeat, sums, map(sub, before[1:], before)))]


def make_parts(
    items: Items,
    starts: Sequence[int],
    stops: Sequence[int],
    item: Sequence[int],
    before: Sequence[int],
    masked: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> Parts:
    """Return parts that are given in the order of the batch."""
    if any(before):
        tokens = [*map(sub, stops, starts)]
        moves = map(items.advance.__getitem__, item)
        last = map(eq, map(add, before, tokens), map(items.area.__getitem__, item))
        further: Iterable[int] = map(sub, map(mul, moves, last), tokens)
    else:
        further = map([*map(sub, items.advance, items.area)].__getitem__, item)
    moved = [*accumulate(further, initial=0)]
    return Parts(items, starts, stops, item, before, moved, masked)


def find_parts(
    runs: Runs, items: Items, spec: MRopeSpec, *, by_types: bool, allow_unused_grids: bool
) -> Parts | None:
    """Return the groups of a batch; None where runs and grids misfit.

    Args:
        runs: of the batch.
        items: what its grids describe.
        spec: of the shared rule.
        by_types: whether `mm_token_type_ids` are believed instead of the ids.
        allow_unused_grids: whether items may be left over.
    """
    starts, stops, kinds = runs.of(IMAGE, VIDEO)
    item = items.in_order(kinds)
    before: Sequence[int] = [0] * len(item)
    fits = [*map(sub, stops, starts)] == [*map(items.area.__getitem__, item)]
    if not fits or (len(item) < sum(items.groups) and not allow_unused_grids):
        # Not every run is one group.
        parts: list[Part] = []
        for kind in (IMAGE, VIDEO):
            cut = _cut(runs, kind, items, allow_unused_grids=allow_unused_grids)
            if cut is None:
                return None
            parts += cut
        starts, stops, item, before = map(list, zip(*sorted(parts), strict=True))
    if spec.marker_rule == "adjacent" and not by_types:
        row_starts = {runs.starts[row] for row in runs.rows}
        marked = set(runs.of(START)[1]) - row_starts
        if not marked.issuperset(compress(starts, map(not_, before))):
            return None
    found = make_parts(items, starts, stops, item, before, runs.of(MASKED)[:2])
    touching = not spec.frames_may_touch and _has_touching_frames(found, runs)
    return None if touching else found


def _has_touching_frames(parts: Parts, runs: Runs) -> bool:
    columns = zip(parts.starts, parts.stops, parts.item, parts.before, strict=True)
    videos = [part for part in columns if part[2] >= parts.items.num_images]
    return any(
        item == last and not before and runs.continues(stop - 1, start)
        for (_, stop, last, _), (start, _, item, before) in pairwise(videos)
    )


def _cut(runs: Runs, kind: int, items: Items, *, allow_unused_grids: bool) -> list[Part] | None:
    """Cut the placeholders of images, or of videos, into groups; None where they misfit."""
    numbers = items.of_groups(kind)
    area = [*map(items.area.__getitem__, numbers)]
    starts, stops, _ = runs.of(kind)
    parts: list[Part] = []
    group = before = 0
    for start, stop in zip(starts, stops, strict=True):
        if before and not runs.continues(parts[-1][1] - 1, start):
            return None
        while start < stop:
            if group == len(area):
                return None
            end = min(stop, start + area[group] - before)
            parts.append((start, end, numbers[group], before))
            before += end - start
            if before == area[group]:
                group, before = group + 1, 0
            start = end
    return parts if not before and (allow_unused_grids or group == len(area)) else None
