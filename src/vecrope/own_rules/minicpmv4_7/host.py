"""On the host: the crops of a batch, the sizes that they take, and where they lie."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import le, lt, mul, sub
from typing import NoReturn

from vecrope.core.modality import IMAGE, VIDEO
from vecrope.families.rules import MiniCPMV47
from vecrope.forms.eager.groups import PATCH_SIZES, in_pixels, why_short
from vecrope.forms.eager.runs import read_runs, runs_of_ids
from vecrope.own_rules.common import Tokens
from vecrope.own_rules.minicpmv4_7.canvas import CanvasLayout
from vecrope.own_rules.minicpmv4_7.sizes import IDS, LIMIT, NAMES, check_shapes, read_sizes
from vecrope.spec import MRopeSpec

_KINDS = {IMAGE: "image", VIDEO: "video"}
# Kinds of runs of markers, in the order of `IDS`; the last is a newline.
_MARKERS = frozenset(range(16, 21))
_OPENS, _CLOSES, _SLICE_START, _NEWLINE = (16, 18), (17, 19), 18, 20
# Where crops start and stop, and the kind of each.
_Crops = tuple[Sequence[int], Sequence[int], Sequence[int]]
_NO_SIZE = -1, 0, 0


def lay_out_minicpmv4_7(tokens: Tokens, spec: MRopeSpec) -> CanvasLayout:
    """Lay a batch out by the rule of MiniCPM-V 4.7.

    Text counts up on all axes. A picture, an image or a frame of a video, is a thumbnail and the
    slices that were cut from it, if any, tiled line by line. All of it has one temporal position;
    its height and width are measured from there on a canvas as large as all slices, over which the
    thumbnail is spread, or as large as the thumbnail. Markers stand at corners of what they mark.
    The text after a picture goes on past the larger side of its canvas, and a step further. Masked
    tokens are at 0, from where deltas count too.

    The rule is that of transformers' `MiniCPMV4_7Model.get_rope_index`, of the `minicpmv4_7`
    processor of SGLang and of vLLM's `MiniCPMV4_7ForConditionalGeneration`.

    Raises:
        ValueError: for the first thing that does not fit.
    """
    check_shapes(tokens.inputs, spec)
    return _Walk(tokens, spec).layout


class _Walk:
    """The walk over the crops of a batch, row by row."""

    def __init__(self, tokens: Tokens, spec: MRopeSpec):
        rule, inputs, self._tokens = spec.own_rule, tokens.inputs, tokens
        assert isinstance(rule, MiniCPMV47)
        given = read_sizes(inputs, rule)
        self._sizes = dict(zip(_KINDS, map(iter, given), strict=True))
        self._num_images = 0 if inputs.target_sizes is None else len(inputs.target_sizes)
        kinds = [(spec.image_token_id, IMAGE), (spec.video_token_id, VIDEO)]
        kinds += [(getattr(rule, name), kind) for kind, name in enumerate(IDS, 16)]
        self._runs = runs_of_ids(tokens.ids, tuple(kinds), tokens.bounds)
        self._slices = {*self._tokens_of(_SLICE_START)}
        self._closing = _MARKERS if rule.newline_closes else _MARKERS - {_NEWLINE}
        self._unclosed: int | None = None
        self.layout = layout = CanvasLayout(tokens)
        by_markers = inputs.mm_token_type_ids is None and rule.crop_rule == "markers" and any(given)
        rows = self._between_markers() if by_markers else self._placeholders(spec)
        for row, (end, crops) in enumerate(rows):
            self._add_pictures(row, crops, end)
            # Masked tokens are at 0.
            given_at, given_end = tokens.given_bounds[row : row + 2]
            layout.reach = max(layout.reach, given_end > given_at)
        left = [(kind, number) for kind, sizes in self._sizes.items() for number, *_ in sizes]
        if left and not inputs.allow_unused_grids:
            total = sum(map(len, given))
            problem = (
                f"{self._row_of_size(*left[0])} is left over: expected {total} crops in all, one "
                f"for each size, got {total - len(left)}"
            )
            if self._unclosed is None:
                raise ValueError(problem)
            self._refuse(self._unclosed, f"{problem}; is the prompt truncated? Here opens one more")

    def _placeholders(self, spec: MRopeSpec) -> Iterator[tuple[int, _Crops]]:
        """Yield the end of each row, and its runs of placeholders."""
        runs, inputs = self._runs, self._tokens.inputs
        if inputs.mm_token_type_ids is not None:
            runs = read_runs(inputs, spec, self._tokens.bounds)
        starts, stops, kinds = runs.of(*_KINDS)
        for end, own in self.layout.rows(starts):
            at = slice(own.start, own.stop)
            yield end, (starts[at], stops[at], kinds[at])

    def _between_markers(self) -> Iterator[tuple[int, _Crops]]:
        """Yield the same of what is between two markers: the k-th of both sorts are a pair."""
        opens, closes = self._tokens_of(*_OPENS), self._tokens_of(*_CLOSES)
        videos, closed = {*self._runs.of(VIDEO)[0]}, 0
        for end, own in self.layout.rows(opens):
            first, closed = closed, bisect_left(closes, end, closed)
            before, stops = opens[own.start : own.stop], closes[first:closed]
            starts = [token + 1 for token in before[: len(stops)]]
            stops = stops[: len(starts)]
            if not (all(map(lt, starts, stops)) and all(map(le, stops, before[1:]))):
                self._refuse_pair(before, stops)
            if len(before) > len(starts):
                self._unclosed = before[-1]
            yield end, (starts, stops, [VIDEO if at in videos else IMAGE for at in starts])

    def _tokens_of(self, *kinds: int) -> list[int]:
        starts, stops, _ = self._runs.of(*kinds)
        return [*chain.from_iterable(map(range, starts, stops))]

    def _add_pictures(self, row: int, crops: _Crops, end: int) -> None:
        """Add the pictures of a row that ends there, and the text before each.

        A picture is an image, or a frame of a video: a thumbnail and its slices.
        """
        firsts, stops, kinds = crops
        if not firsts:
            return
        layout, slices = self.layout, self._slices
        begins = [at for at, first in enumerate(firsts) if first - 1 not in slices or not at]
        ends = [*begins[1:], len(firsts)]
        if len(begins) < len(firsts):
            # All crops of a picture take the sizes of its thumbnail's kind.
            pictures = zip(begins, ends, strict=True)
            kinds = [*chain.from_iterable([kinds[at]] * (to - at) for at, to in pictures)]
        sizes = [next(self._sizes[kind], _NO_SIZE) for kind in kinds]
        numbers, heights, widths = zip(*sizes, strict=True)
        found, previous = [*map(sub, stops, firsts)], (self._tokens.bounds[row], *stops[:-1])
        if [*map(mul, heights, widths)] != found or not all(map(lt, previous, firsts)):
            self._refuse_first((firsts, stops, kinds), sizes, previous)
        layout.media += zip(firsts, stops, numbers, strict=True)
        between = [first - 1 - stop for first, stop in zip(firsts[1:], stops, strict=False)]
        limits = [*(firsts[at] - 1 for at in ends[:-1]), end]
        apart, first_entry = False, 0
        for at, to, limit in zip(begins, ends, limits, strict=True):
            first_entry, last = len(layout.entries), stops[to - 1]
            stop, goes_on = self._behind(last, limit)
            gaps = [*between[at : to - 1], stop - last]
            self._add(firsts[at] - 1, heights[at:to], widths[at:to], gaps, apart)
            layout.at, apart = stop, goes_on
        if layout.at == end:
            layout.now = 1 + layout.largest(first_entry)

    def _add(
        self,
        start: int,
        heights: Sequence[int],
        widths: Sequence[int],
        gaps: Sequence[int],
        apart: int,
    ) -> None:
        """Add a picture, and the text in front of it.

        Args:
            start: its first marker.
            heights: of its crops.
            widths: of its crops.
            gaps: the tokens behind each.
            apart: by how much it is further from what is in front.
        """
        layout, add = self.layout, self.layout.entries.extend
        tall, wide = height, width = heights[0], widths[0]
        text, at = start - layout.at, layout.now
        now, gap = at + text + apart, gaps[0]
        num_slices = len(heights) - 1
        if num_slices:
            # Slices are tiled line by line: the first longer gap ends a line, and so all lines.
            columns = next((at for at, gap in enumerate(gaps[1:-1], 1) if gap > 1), num_slices)
            if num_slices % columns:  # lines of different lengths are taken for one
                columns = num_slices
            below, beside = heights[1], widths[1]
            tall, wide = num_slices // columns * below, columns * beside
            stretched = (height - 1) * (tall - 1) >= LIMIT or (width - 1) * (wide - 1) >= LIMIT
            if stretched and (height, width) != (tall, wide):
                self._refuse(
                    start,
                    f"a thumbnail of {(height, width)} tokens cannot be spread over slices of "
                    f"{(tall, wide)} in all; the product of both, less 1 each, must be below "
                    f"{LIMIT}",
                )
        # A marker, and other tokens behind it.
        marker, rest = (1, gap - 1) if gap else (0, 0)
        add((text, at, now, now, now, height, width, tall, wide, marker, rest, now, now))
        for at in range(num_slices):
            line, column = divmod(at, columns)
            top, left, gap = now + line * below, now + column * beside, gaps[at + 1]
            marker, rest = (1, gap - 1) if gap else (0, 0)
            is_last = at + 1 == num_slices
            corner = (now, now) if is_last else (top + below - 1, now + wide)
            size = high, broad = heights[at + 1], widths[at + 1]
            add((0, 0, now, top, left, *size, 0, 0, marker, rest, *corner))
            if size != (below, beside):  # it can reach beyond the canvas
                layout.reach = max(layout.reach, top + high, left + broad)
        layout.now = now + max(tall, wide) + 1

    def _behind(self, index: int, limit: int) -> tuple[int, bool]:
        """Return the first token that does not belong to a picture, which ends at the index.

        Also, whether nothing but markers and newlines part it from the next one, and at least one:
        SGLang takes the two for frames of one video, of which the later keeps its distance.
        """
        kinds, starts, *_ = self._runs
        run = bisect_right(starts, index) - 1
        while index < limit and kinds[run] in self._closing:
            run += 1
            index = starts[run]
        if index >= limit:
            return limit, False
        stop = index
        while index < limit and kinds[run] in _MARKERS:
            run += 1
            index = starts[run]
        return stop, index >= limit

    def _row_of_size(self, kind: int, number: int) -> str:
        name = NAMES[kind == VIDEO]
        at = number - (kind == VIDEO) * self._num_images
        size = getattr(self._tokens.inputs, name)[at].tolist()
        return f"{name} row {at} {tuple(size)}"

    def _refuse_first(
        self, crops: _Crops, sizes: Sequence[tuple[int, int, int]], previous: Sequence[int]
    ) -> NoReturn:
        """Refuse the first crop that follows no marker, has no size, or not that of its tokens."""
        for start, stop, kind, (number, height, width), before in zip(
            *crops, sizes, previous, strict=True
        ):
            name, what, found = NAMES[kind == VIDEO], _KINDS[kind], stop - start
            if start <= before:
                at_start = start in self._tokens.bounds
                where = "at the start of its row" if at_start else "right after another crop"
                self._refuse(start, f"a crop must follow a marker, it is {where}")
            if number < 0:
                given = getattr(self._tokens.inputs, name) is not None
                remark = "" if given else f" ({name} was not given)"
                self._refuse(
                    start, f"a crop of {what}s is beyond the last size that {name} has{remark}"
                )
            if found != height * width:
                fits = (found * patch**2 == height * width for patch in PATCH_SIZES)
                why = why_short(what, in_pixels(name, fits), unexpanded=found == 1)
                needs = f"{self._row_of_size(kind, number)} needs {height * width} tokens"
                self._refuse(start, f"{needs}, got {found} in one run{why}")
        raise AssertionError("a crop is refused")

    def _refuse_pair(self, opens: Sequence[int], closes: Sequence[int]) -> NoReturn:
        """Refuse the first two of as many markers that do not enclose a crop."""
        following = [*opens[1:], closes[-1]]
        open_, close = next(
            pair
            for *pair, next_ in zip(opens, closes, following, strict=False)
            if not pair[0] + 1 < pair[1] <= next_
        )
        ids = self._tokens.ids
        self._refuse(
            min(open_, close),
            f"markers must open and close crops in turn, {int(ids[open_])} and {int(ids[close])} "
            "do not enclose one",
        )

    def _refuse(self, index: int, what: str) -> NoReturn:
        raise self._tokens.error(index, what)
