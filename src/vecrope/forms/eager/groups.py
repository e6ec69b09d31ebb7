"""Where groups stand in a batch: its runs held against what the grids describe, and what misfits.

A group has one part, or more where masked tokens interrupt it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, compress, pairwise, repeat
from operator import add, eq, mul, not_, sub
from typing import NamedTuple

from vecrope.checks import RowError
from vecrope.core.modality import IMAGE, MASKED, VIDEO
from vecrope.forms.eager.items import Items
from vecrope.forms.eager.runs import START, Runs
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

PATCH_SIZES = (14, 16)
Ints = Sequence[int]
Masked = tuple[Ints, Ints]


class Parts(NamedTuple):
    """The P parts of the groups of a batch, in its order."""

    items: Items
    starts: Ints  # (P,) index of the first token
    stops: Ints  # (P,) index behind the last
    item: Ints  # (P,)
    before: Ints  # (P,) tokens of the group in its parts before
    # (P + 1,) by how much more than their tokens the parts before each move the running position.
    moved: Ints
    masked: Masked = ((), ())  # (M,) starts and stops of masked runs

    def running(self, at: Ints) -> list[int]:
        """Return the running positions at tokens outside of parts, as if there were one row."""
        moved = [self.moved[bisect_left(self.starts, index)] for index in at]
        return [*map(add, self.kept_before(at), moved)]

    def kept_before(self, at: Ints) -> list[int]:
        """Return how many unmasked tokens stand before ascending tokens outside of masked runs."""
        starts, stops = self.masked
        if not starts:
            return [*at]
        sums = accumulate(map(sub, stops, starts), initial=0)
        before = [0, *map(bisect_right, repeat(at), starts), len(at)]
        masked = chain.from_iterable(map(repeat, sums, map(sub, before[1:], before)))
        return [*map(sub, at, masked)]

    def bases(self) -> list[int]:
        """Return the running positions at which the parts' groups start, as `running` counts."""
        return [*map(add, self.kept_before(self.starts), self.moved)]


def make_parts(
    items: Items, starts: Ints, stops: Ints, item: Ints, before: Ints, masked: Masked = ((), ())
) -> Parts:
    """Return parts that are given in the order of the batch."""
    if any(before):
        tokens = [*map(sub, stops, starts)]
        moves = map(items.advance.__getitem__, item)
        last = map(eq, map(add, before, tokens), map(items.area.__getitem__, item))
        further: Iterable[int] = map(sub, map(mul, moves, last), tokens)
    else:
        further = map([*map(sub, items.advance, items.area)].__getitem__, item)
    return Parts(items, starts, stops, item, before, [*accumulate(further, initial=0)], masked)


def find_parts(runs: Runs, items: Items, inputs: Inputs, spec: MRopeSpec) -> Parts:
    """Return the groups of a batch.

    Raises:
        ValueError: where its runs and what its grids describe do not fit each other.
    """
    misfit = _Misfit(runs, items, inputs, spec)
    starts, stops, kinds = runs.of(IMAGE, VIDEO)
    item = items.in_order(kinds)
    before: Ints = [0] * len(item)
    fits = [*map(sub, stops, starts)] == [*map(items.area.__getitem__, item)]
    if not fits or (len(item) < sum(items.groups) and not inputs.allow_unused_grids):
        # Not every run is one group.
        parts = _cut(runs, items, inputs, misfit)
        starts, stops, item, before = map(list, zip(*parts, strict=True))
    if spec.marker_rule == "adjacent" and inputs.mm_token_type_ids is None:
        # In their rows.
        firsts = [*map(runs.starts.__getitem__, runs.rows)]
        behind_marker = {*runs.of(START)[1]}.difference(firsts)
        if inputs.open_markers is not None:
            behind_marker.update(compress(firsts, (inputs.open_markers > 0).tolist()))
        if not behind_marker.issuperset(starts):
            at = next(at for at, start in enumerate(starts) if start not in behind_marker)
            where = "right before its tokens"
            if items.groups[item[at]] > 1:
                where = "before each of its frames"
            raise misfit.of_item(
                starts[at],
                item[at],
                f"needs a vision_start_token_id {spec.vision_start_token_id} {where}, got another "
                "token; SGLang would number them as text",
            )
    if not spec.frames_may_touch:
        frames = (at for at, number in enumerate(item) if number >= items.num_images)
        for last, at in pairwise(frames):
            again = before[at] or item[at] != item[last]
            if not again and runs.continues(stops[last] - 1, starts[at]):
                # Behind masked tokens it is named itself, otherwise the frame that it touches.
                named = at + (stops[last] != starts[at])
                frame = [*compress(item[:named], map(not_, before))].count(item[at]) - 1
                raise misfit.of_item(
                    starts[at],
                    item[at],
                    f"needs something between its frames, got nothing at frame {frame}; "
                    f"{spec.convention} would number the video as a block",
                )
    return make_parts(items, starts, stops, item, before, runs.of(MASKED)[:2])


def _cut(runs: Runs, items: Items, inputs: Inputs, misfit: _Misfit) -> list[tuple[int, ...]]:
    """Return start, stop, item and `before` of the parts of groups, in the order of the batch."""
    area, numbers = items.area, {kind: items.of_groups(kind) for kind in (IMAGE, VIDEO)}
    parts: list[tuple[int, ...]] = []
    # Of each kind the group that is not full, its tokens by now, and the index behind these.
    reached = dict.fromkeys(numbers, (0, 0, 0))
    for start, stop, kind in zip(*runs.of(IMAGE, VIDEO), strict=True):
        group, before, done = reached[kind]
        is_broken = before and not runs.continues(done - 1, start)
        while start < stop:
            if is_broken or group == len(numbers[kind]):
                raise misfit.of_runs(kind, start, group, before, done)
            item = numbers[kind][group]
            done = min(stop, start + area[item] - before)
            parts.append((start, done, item, before))
            before += done - start
            if before == area[item]:
                group, before = group + 1, 0
            start = done
        reached[kind] = group, before, done
    for kind, (group, before, done) in reached.items():
        if before or (group < len(numbers[kind]) and not inputs.allow_unused_grids):
            raise misfit.of_runs(kind, done, group, before, done)
    return parts


def none_found(kind: int, spec: MRopeSpec, *, by_types: bool) -> str:
    """Return the remark, in parentheses, on grids of a kind that has no placeholder in a batch."""
    if by_types:
        return f" (mm_token_type_ids holds no {kind})"
    if kind == VIDEO and spec.video_token_id is None:
        return (
            f" (no image_token_id {spec.image_token_id} follows a video_start_token_id "
            f"{spec.video_start_token_id} in input_ids)"
        )
    name = "image_token_id" if kind == IMAGE else "video_token_id"
    return f" ({name} {getattr(spec, name)} does not occur in input_ids)"


def in_pixels(name: str, fits: Iterable[bool]) -> str:
    """Return the remark, in parentheses, on sizes that fit if divided by one of `PATCH_SIZES`."""
    return f" ({name} seems to count pixels; it counts patches)" if any(fits) else ""


def why_short(name: str, remark: str, *, unexpanded: bool) -> str:
    """Return why an item may have too few tokens, or the remark if there is one."""
    or_not = ", or never expanded by the processor" if unexpanded else ""
    return remark or f"; was the prompt truncated inside the {name}{or_not}?"


class _Misfit(NamedTuple):
    """What is said of placeholders that do not fit their grids."""

    runs: Runs
    items: Items
    inputs: Inputs
    spec: MRopeSpec

    def of_runs(self, kind: int, token: int, group: int, before: int, done: int) -> ValueError:
        """Say that a kind has too many tokens, or too few of a group or of all groups.

        `token` is the first that no group has; `group` the one that is not full, which has `before`
        tokens up to `done`.
        """
        items, name = self.items, "image" if kind == IMAGE else "video"
        numbers, grids = items.of_groups(kind), getattr(self.inputs, f"{name}_grid_thw")
        num_grids = 0 if grids is None else len(grids)
        expected = sum(map(items.area.__getitem__, numbers))
        starts, stops, _ = self.runs.of(kind)
        found = sum(stops) - sum(starts)
        if not found:
            by_types = self.inputs.mm_token_type_ids is not None
            hint = none_found(kind, self.spec, by_types=by_types)
        elif not num_grids:
            hint = f" ({name}_grid_thw was not given)"
        else:
            hint = in_pixels(f"{name}_grid_thw", (expected == found * s**2 for s in PATCH_SIZES))
        if group == len(numbers):
            return RowError.of(
                self.runs.row_of(token),
                f" holds {name} tokens beyond the last grid: expected {expected} for the "
                f"{num_grids} rows of {name}_grid_thw, got {found} in all{hint}",
            )
        item = numbers[group]
        frame = group - bisect_left(numbers, item)
        if not before:
            _, row, grid = self._grid(item)
            after = f" after {frame} of its frames" if frame else ""
            return ValueError(
                f"{name}_grid_thw row {row} {grid} is left over{after}: expected {expected} {name} "
                f"tokens in all, got {found}{hint}"
            )
        in_frame = kind == VIDEO and self.spec.separate_frames
        unexpanded = before == 1 and found == num_grids
        problem = f"needs {items.area[item]} tokens, got {before} in one run"
        problem += why_short(name, hint, unexpanded=unexpanded)
        return self.of_item(done - 1, item, problem, part=f"frame {frame} of " * in_frame)

    def of_item(self, token: int, item: int, problem: str, part: str = "") -> RowError:
        """Return the error about an item, or a part of it, in the row of a token."""
        name, row, grid = self._grid(item)
        of_item = f"{part}{name} {row}: its grid {grid}"
        return RowError.of(self.runs.row_of(token), f", {of_item} {problem}")

    def _grid(self, item: int) -> tuple[str, int, tuple[int, ...]]:
        """Return the kind of an item, its row among the grids of that kind, and its grid."""
        is_video = item >= self.items.num_images
        name, row = ("image", "video")[is_video], item - is_video * self.items.num_images
        return name, row, tuple(getattr(self.inputs, f"{name}_grid_thw")[row].tolist())
