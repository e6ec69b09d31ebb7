"""What is not text: the runs of placeholders cut into groups, and masked runs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise, repeat
from operator import sub
from typing import NamedTuple

from vecrope.core.modality import IMAGE, MASKED, VIDEO
from vecrope.forms.eager.items import Items
from vecrope.forms.eager.runs import START, Runs
from vecrope.spec import MRopeSpec

# Index of the first token and behind the last, item, and tokens of the group in its parts before.
Part = tuple[int, int, int, int]
# In place of an item.
MASKED_RUN = -1


class Parts(NamedTuple):
    """Groups and masked runs, P in the order of the batch. What stands in between is text.

    A group is one part, or several where masked tokens interrupt it.
    """

    items: Items
    starts: Sequence[int]  # (P,) index of the first token
    stops: Sequence[int]  # (P,) index behind the last
    item: Sequence[int]  # (P,) of the group, or `MASKED_RUN`
    before: Sequence[int]  # (P,) tokens of the group in its parts before
    # (P + 1,) how far the parts before each, and all, move the running position, less their tokens.
    moved: Sequence[int]

    def running(self, at: Iterable[int]) -> list[int]:
        """Return the running position at tokens outside of parts, over all rows."""
        return [index + self.moved[bisect_left(self.starts, index)] for index in at]

    def masked_before(self, at: Iterable[int]) -> list[int]:
        """Return how many masked tokens stand before tokens outside of masked runs."""
        runs = zip(self.item, self.starts, self.stops, strict=True)
        sums = [0, *accumulate(stop - start if item < 0 else 0 for item, start, stop in runs)]
        return [sums[bisect_left(self.starts, index)] for index in at]


def make_parts(items: Items, parts: Iterable[Part]) -> Parts:
    """Return parts in the order of the batch."""
    starts, stops, item, before = [*zip(*parts, strict=True)] or ((),) * 4
    advance, area = [*items.advance, 0], [*items.area, 0]  # the last are those of `MASKED_RUN`
    moves = (
        (advance[number] if done + stop - start == area[number] else 0) - (stop - start)
        for start, stop, number, done in zip(starts, stops, item, before, strict=True)
    )
    return Parts(items, starts, stops, item, before, [0, *accumulate(moves)])


def find_parts(
    runs: Runs, items: Items, spec: MRopeSpec, *, by_types: bool, lenient: bool
) -> Parts | None:
    """Return the groups of a batch and its masked runs; None where runs and grids misfit.

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
        marked = {runs.starts[at + 1] for at in runs.of(START)} - row_starts
        if not marked.issuperset(start for start, *_, before in groups if not before):
            return None
    if not spec.frames_may_touch and any(
        item == last and not before and runs.continues(stop - 1, start)
        for (_, stop, last, _), (start, _, item, before) in pairwise(videos)
    ):
        return None
    masked = ((*runs.starts[at : at + 2], MASKED_RUN, 0) for at in runs.of(MASKED))
    return make_parts(items, sorted([*groups, *masked]))


def _cut(runs: Runs, kind: int, items: Items, *, lenient: bool) -> list[Part] | None:
    """Cut the placeholders of images, or of videos, into groups; None where they misfit."""
    numbers = items.of_groups(kind)
    area = [*map(items.area.__getitem__, numbers)]
    at = runs.of(kind)
    starts = [*map(runs.starts.__getitem__, at)]
    stops = [runs.starts[number + 1] for number in at]
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
