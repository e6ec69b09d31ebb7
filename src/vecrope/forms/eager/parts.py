"""Where groups stand in a batch, and masked tokens: runs held against what the grids describe."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, chain, compress, pairwise, repeat
from operator import add, eq, mul, not_, sub
from typing import NamedTuple

from torch import Tensor

from vecrope.core.modality import IMAGE, MASKED, VIDEO
from vecrope.forms.eager.cut import Placeholders
from vecrope.forms.eager.items import Items
from vecrope.forms.eager.runs import START, Runs
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec


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


def find_parts(runs: Runs, items: Items, inputs: Inputs, spec: MRopeSpec) -> Parts:
    """Return the groups of a batch.

    Raises:
        ValueError: where its runs and what its grids describe do not fit each other.
    """
    of = partial(Placeholders, runs, items, inputs, spec)
    starts, stops, kinds = runs.of(IMAGE, VIDEO)
    item = items.in_order(kinds)
    before: Sequence[int] = [0] * len(item)
    fits = [*map(sub, stops, starts)] == [*map(items.area.__getitem__, item)]
    if not fits or (len(item) < sum(items.groups) and not inputs.allow_unused_grids):
        # Not every run is one group.
        of_images, of_videos = of(IMAGE).cut(), of(VIDEO).cut()
        faults = [*filter(None, (of_images[1], of_videos[1]))]
        if faults:
            raise min(faults)[1]
        parts = sorted(of_images[0] + of_videos[0])
        starts, stops, item, before = map(list, zip(*parts, strict=True))
    found = make_parts(items, starts, stops, item, before, runs.of(MASKED)[:2])
    if spec.marker_rule == "adjacent" and inputs.mm_token_type_ids is None:
        marked = _behind_markers(runs, inputs.open_markers)
        if not marked.issuperset(starts):
            at = next(at for at, start in enumerate(starts) if start not in marked)
            kind = VIDEO if item[at] >= items.num_images else IMAGE
            raise of(kind).missing_marker(item[at], starts[at])
    if not spec.frames_may_touch:
        for last, at in pairwise(
            at for at, number in enumerate(item) if number >= items.num_images
        ):
            again = before[at] or item[at] != item[last]
            if not again and runs.continues(stops[last] - 1, starts[at]):
                # Behind masked tokens it is named itself, otherwise the frame that it touches.
                named = at + (stops[last] != starts[at])
                frame = [*compress(item[:named], map(not_, before))].count(item[at]) - 1
                raise of(VIDEO).touching(item[at], starts[at], frame)
    return found


def _behind_markers(runs: Runs, open_markers: Tensor | None) -> set[int]:
    """Return the tokens that have a start marker right before them, in their row."""
    rows = [*map(runs.starts.__getitem__, runs.rows)]
    marked = {*runs.of(START)[1]}.difference(rows)
    if open_markers is not None:
        marked.update(compress(rows, (open_markers > 0).tolist()))
    return marked
