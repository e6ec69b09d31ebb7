"""Where groups stand in a batch, and masked tokens: runs held against what the grids describe."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise, repeat
from operator import add, mul, sub
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
        running = [index + self.moved[bisect_left(self.starts, index)] for index in at]
        return [*map(sub, running, self.masked_before(at))] if self.masked[0] else running

    def bases(self) -> list[int]:
        """Return the running positions at which the parts' groups start, as `running` counts."""
        bases = [*map(add, self.starts, self.moved)]
        return [*map(sub, bases, self.masked_before(self.starts))] if self.masked[0] else bases

    def masked_before(self, at: Sequence[int]) -> list[int]:
        """Return how many masked tokens stand before tokens, of which none is inside a run."""
        starts, stops = self.masked
        sums = [0, *accumulate(map(sub, stops, starts))]
        return [sums[bisect_left(starts, index)] for index in at]


def make_parts(
    items: Items,
    parts: Iterable[Part],
    masked: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> Parts:
    """Return parts that are given in the order of the batch."""
    starts, stops, item, before = [*zip(*parts, strict=True)] or ((),) * 4
    moves = map(items.advance.__getitem__, item)
    tokens = [*map(sub, stops, starts)]
    if any(before):
        last = (
            done + number == items.area[at]
            for done, number, at in zip(before, tokens, item, strict=True)
        )
        moves = map(mul, moves, last)
    return Parts(
        items, starts, stops, item, before, [0, *accumulate(map(sub, moves, tokens))], masked
    )


def find_parts(
    runs: Runs, items: Items, spec: MRopeSpec, *, by_types: bool, lenient: bool
) -> Parts | None:
    """Return the groups of a batch; None where runs and grids misfit.

    Args:
        runs: of the batch.
        items: what its grids describe.
        spec: of the shared rule.
        by_types: whether `mm_token_type_ids` are believed instead of the ids.
        lenient: whether items may be left over.
    """
    images, videos = (_cut(runs, kind, items, lenient=lenient) for kind in (IMAGE, VIDEO))
    if images is None or videos is None:
        return None
    groups = images + videos
    if spec.marker_rule == "adjacent" and not by_types:
        row_starts = {runs.starts[row] for row in runs.rows}
        marked = set(runs.of(START)[1]) - row_starts
        if not marked.issuperset(start for start, *_, before in groups if not before):
            return None
    if not spec.frames_may_touch and any(
        item == last and not before and runs.continues(stop - 1, start)
        for (_, stop, last, _), (start, _, item, before) in pairwise(videos)
    ):
        return None
    return make_parts(items, sorted(groups), runs.of(MASKED))


def _cut(runs: Runs, kind: int, items: Items, *, lenient: bool) -> list[Part] | None:
    """Cut the placeholders of images, or of videos, into groups; None where they misfit."""
    numbers = items.of_groups(kind)
    area = [*map(items.area.__getitem__, numbers)]
    starts, stops = runs.of(kind)
    if [*map(sub, stops, starts)] == area:
        return [*zip(starts, stops, numbers, repeat(0))]
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
    return parts if not before and (lenient or group == len(area)) else None
