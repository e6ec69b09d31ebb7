"""On the host: the crops of a batch, the sizes that they take, and where they lie."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, NoReturn

from vecrope.core.modality import IMAGE, VIDEO
from vecrope.families.rules import MiniCPMV47
from vecrope.forms.eager.groups import PATCH_SIZES, in_pixels, why_short
from vecrope.forms.eager.runs import read_runs, runs_of_ids
from vecrope.own_rules.common import Tokens, tokens_of
from vecrope.own_rules.layout import Layout
from vecrope.own_rules.minicpmv4_7.sizes import IDS, LIMIT, NAMES, check_shapes, read_sizes
from vecrope.spec import MRopeSpec

_KINDS = {IMAGE: "image", VIDEO: "video"}
# Kinds of runs of markers, in the order of `IDS`; the last is a newline.
_MARKERS = frozenset(range(16, 21))
_OPENS, _CLOSES, _SLICE_START, _NEWLINE = (16, 18), (17, 19), 18, 20


class Crop(NamedTuple):
    """A thumbnail or slice: its tokens, their lines and columns, and the row of all sizes."""

    start: int
    stop: int
    height: int
    width: int
    number: int  # as of `Layout.media`


def lay_out_minicpmv4_7(tokens: Tokens, spec: MRopeSpec) -> Layout:
    """Lay a batch out by the rule of `minicpmv4_7_rope_index`.

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
        given, self._factor = read_sizes(inputs, rule), rule.downsample_factor
        self._sizes = dict(zip(_KINDS, map(iter, given), strict=True))
        self._num_images = 0 if inputs.target_sizes is None else len(inputs.target_sizes)
        kinds = [(spec.image_token_id, IMAGE), (spec.video_token_id, VIDEO)]
        kinds += [(getattr(rule, name), kind) for kind, name in enumerate(IDS, 16)]
        self._runs = self._crops = runs_of_ids(tokens.ids, tuple(kinds), tokens.bounds)
        if inputs.mm_token_type_ids is not None:
            self._crops = read_runs(inputs, spec, tokens.bounds)
        by_markers = inputs.mm_token_type_ids is None and rule.crop_rule == "markers" and any(given)
        self._closing = _MARKERS if rule.newline_closes else _MARKERS - {_NEWLINE}
        self._unclosed: int | None = None
        self.layout = Layout(tokens)
        for row, (end, _) in enumerate(self.layout.rows(())):
            crops = self._between_markers(row) if by_markers else self._placeholders(row)
            self._add_pictures(self._pictures_of(row, crops), end)
            # Masked tokens are at 0.
            given_at, given_end = tokens.given_bounds[row : row + 2]
            self.layout.reach = max(self.layout.reach, given_end > given_at)
        left = [(kind, *size) for kind, sizes in self._sizes.items() for size in sizes]
        if left and not inputs.allow_unused_grids:
            (kind, at, *size), total = left[0], sum(map(len, given))
            problem = (
                f"{NAMES[kind == VIDEO]} row {at} {tuple(size)} is left over: expected {total} "
                f"crops in all, one for each size, got {total - len(left)}"
            )
            if self._unclosed is None:
                raise ValueError(problem)
            self._refuse(self._unclosed, f"{problem}; is the prompt truncated? Here opens one more")

    def _placeholders(self, row: int) -> Iterator[tuple[int, int, int]]:
        """Yield where the runs of placeholders of a row start and stop, and the kind of each."""
        kinds, starts, rows, _ = self._crops
        for run in range(*rows[row : row + 2]):
            if kinds[run] in _KINDS:
                yield starts[run], starts[run + 1], kinds[run]

    def _between_markers(self, row: int) -> Iterator[tuple[int, int, int]]:
        """Yield the same of what is between two markers: the k-th of both sorts are a pair."""
        kinds, starts, *_ = self._runs
        opens, closes = (tokens_of(self._runs, row, markers) for markers in (_OPENS, _CLOSES))
        for at, (first, stop) in enumerate(zip(opens, closes, strict=False), 1):
            if not first + 1 < stop <= min(opens[at : at + 1], default=stop):
                pair = " and ".join(str(int(self._tokens.ids[at])) for at in (first, stop))
                self._refuse(
                    min(first, stop),
                    f"markers must open and close crops in turn, {pair} do not enclose one",
                )
            kind = kinds[bisect_right(starts, first + 1) - 1]
            yield first + 1, stop, kind if kind in _KINDS else IMAGE
        if len(opens) > len(closes):
            self._unclosed = opens[-1]

    def _pictures_of(self, row: int, crops: Iterator[tuple[int, int, int]]) -> list[list[Crop]]:
        """Return the crops of each image, or frame of a video: of a thumbnail and its slices."""
        kinds, starts, *_ = self._runs
        previous = first_of_row = self._tokens.bounds[row]
        pictures: list[list[Crop]] = []
        for first, stop, kind in crops:
            if first <= previous:
                at_start = first == first_of_row
                where = "at the start of its row" if at_start else "right after another crop"
                self._refuse(first, f"a crop must follow a marker, it is {where}")
            if not pictures or kinds[bisect_right(starts, first - 1) - 1] != _SLICE_START:
                pictures.append([])
                of_sizes = kind  # all crops of a picture take the sizes of its thumbnail's kind
            pictures[-1].append(self._sized(first, stop, of_sizes))
            previous = stop
        return pictures

    def _sized(self, start: int, stop: int, kind: int) -> Crop:
        name, what = NAMES[kind == VIDEO], _KINDS[kind]
        at, *size = next(self._sizes[kind], (-1, 0, 0))
        height, width = (side // self._factor for side in size)
        found = stop - start
        if at < 0:
            given = getattr(self._tokens.inputs, name) is not None
            remark = "" if given else f" ({name} was not given)"
            self._refuse(
                start, f"a crop of {what}s is beyond the last size that {name} has{remark}"
            )
        if found != height * width:
            fits = (found * patch**2 == height * width for patch in PATCH_SIZES)
            why = why_short(what, in_pixels(name, fits), unexpanded=found == 1)
            needs = f"{name} row {at} {tuple(size)} needs {height * width} tokens"
            self._refuse(start, f"{needs}, got {found} in one run{why}")
        return Crop(start, stop, height, width, at + (kind == VIDEO) * self._num_images)

    def _add_pictures(self, pictures: list[list[Crop]], end: int) -> None:
        """Add the pictures of a row that ends there, and the text before each."""
        layout, apart, first_piece = self.layout, False, 0
        limits = [own[0].start - 1 for own in pictures[1:]] + [end]
        for crops, limit in zip(pictures, limits, strict=False):
            layout.text(crops[0].start - 1)
            # Nothing but markers and newlines part it from the picture before, and at least one:
            # SGLang takes the two for frames of one video, of which the later keeps its distance.
            layout.now += apart
            first_piece = len(layout.pieces)
            stop = self._past(crops[-1].stop, self._closing, limit)
            self._add(crops, stop)
            apart = stop < limit == self._past(stop, _MARKERS, limit)
        if pictures and layout.at == end:
            last_picture = layout.pieces[first_piece:]
            layout.now = 1 + max(
                max(columns[-1], (rows or columns)[-1]) for _, rows, columns in last_picture
            )

    def _add(self, crops: list[Crop], stop: int) -> None:
        """Add a picture up to the token behind the markers that still belong to it."""
        layout, now = self.layout, self.layout.now
        add = layout.pieces.append
        (start, _, *thumbnail, _), *slices = crops
        # Slices are tiled line by line: the first longer gap ends a line, and so all lines.
        gaps = enumerate(pairwise(slices), 1)
        columns = next((at for at, (one, next_) in gaps if next_.start - one.stop > 2), 0)
        if not columns or len(slices) % columns:  # lines of different lengths are taken for one
            columns = len(slices) or 1
        _, _, unit_height, unit_width, _ = crops[:2][-1]
        tall, wide = max(len(slices) // columns, 1) * unit_height, columns * unit_width
        canvas = [tall, wide]
        stretched = any((a - 1) * (b - 1) >= LIMIT for a, b in zip(thumbnail, canvas, strict=True))
        if stretched and thumbnail != canvas:
            self._refuse(
                start - 1,
                f"a thumbnail of {tuple(thumbnail)} tokens cannot be spread over slices of "
                f"{(tall, wide)} in all; the product of both, less 1 each, must be below {LIMIT}",
            )
        following = [*(crop.start - 1 for crop in slices), stop]
        for at, ((first, last, height, width, number), end) in enumerate(
            zip(crops, following, strict=True), -1
        ):
            line, column = divmod(max(at, 0), columns)
            top, left = now + line * unit_height, now + column * unit_width
            before, further = (top, left), (now, now)
            behind = top + height - 1, left + width - 1
            rows: Sequence[int] = range(top, top + height)
            places: Sequence[int] = range(left, left + width)
            if at < 0:  # the thumbnail
                before, behind = (max(now - 1, 0),) * 2, (now + tall, now + wide)
                rows = spread_over(height, tall, now)
                places = spread_over(width, wide, now)
            elif at < len(slices) - 1:
                further = top + unit_height - 1, now + wide
            add((now, before[:1], before[1:]))
            add((now, rows, places))
            if end > last:
                add((now, behind[:1], behind[1:]))
            if end > last + 1:
                add((now, further[:1], further[1:] * (end - last - 1)))
            layout.media.append((first, last, number))
        layout.now, layout.at = now + max(tall, wide) + 1, stop

    def _past(self, index: int, kinds: frozenset[int], limit: int) -> int:
        """Return the first token from an index on that is of none of some kinds, or the limit."""
        run = bisect_right(self._runs.starts, index) - 1
        while index < limit and self._runs.kinds[run] in kinds:
            run += 1
            index = self._runs.starts[run]
        return min(index, limit)

    def _refuse(self, index: int, what: str) -> NoReturn:
        raise self._tokens.error(index, what)


def spread_over(count: int, extent: int, first: int) -> Sequence[int]:
    """Return `first + torch.linspace(0, extent - 1, count).round()`, as `rounded_linspace` does."""
    if count == extent:
        return range(first, first + count)
    return [first + place for place in _spread(count, extent - 1)]


@lru_cache(maxsize=1024)
def _spread(count: int, last: int) -> list[int]:
    half, (step,) = count // 2 or 1, array("f", (last / (count - 1 or 1),))
    from_start = array("f", [step * index for index in range(half)])
    from_end = array("f", [step * index for index in range(half + 1 - count, 1)])
    return [*map(round, from_start), *map(round, array("f", [way + last for way in from_end]))]
