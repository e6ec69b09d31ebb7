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
from vecrope.forms.eager.runs import read_runs, runs_of_ids
from vecrope.own_rules.common import Tokens
from vecrope.own_rules.layout import Layout
from vecrope.own_rules.minicpmv4_7.sizes import IDS, LIMIT, NAMES, check_shapes, read_sizes
from vecrope.spec import MRopeSpec

_KINDS = {IMAGE: "image", VIDEO: "video"}
# Kinds of runs of markers, in the order of `IDS`; the last is a newline.
_MARKERS = frozenset(range(16, 21))
_OPENS, _CLOSES, _SLICE_START, _NEWLINE = (16, 18), (17, 19), 18, 20


class Crop(NamedTuple):
    """Tokens of a thumbnail or slice, their lines and columns, and where its size is given."""

    start: int
    stop: int
    height: int
    width: int
    kind: int  # modality: of which sizes
    row: int  # among them


class Picture(NamedTuple):
    """An image or a frame of a video: a thumbnail, and slices tiled line by line on a canvas."""

    crops: list[Crop]
    stop: int  # the token behind the markers that still belong to it
    # Nothing but markers and newlines part it from the picture before, and at least one: SGLang
    # takes the two for frames of one video, of which the later keeps its distance.
    apart: bool
    columns: int  # slices in a line
    height: int  # of the canvas, in tokens
    width: int


class Pictures:
    """The pictures of a batch, row by row.

    Args:
        tokens: of the batch, whose sizes have the right shapes.
        spec: of the family.

    Raises:
        ValueError: for the first thing that does not fit.
    """

    def __init__(self, tokens: Tokens, spec: MRopeSpec):
        rule, inputs, self._tokens = spec.own_rule, tokens.inputs, tokens
        assert isinstance(rule, MiniCPMV47)
        given, self._factor = read_sizes(inputs, rule), rule.downsample_factor
        self._sizes = dict(zip(_KINDS, map(iter, given), strict=True))
        types = inputs.mm_token_type_ids
        kinds = [(spec.image_token_id, IMAGE), (spec.video_token_id, VIDEO)]
        kinds += [(getattr(rule, name), kind) for kind, name in enumerate(IDS, 16)]
        self._runs = self._crops = runs_of_ids(tokens.ids, tuple(kinds), tokens.bounds)
        if types is not None:
            self._crops = read_runs(inputs, spec, tokens.bounds)
        by_markers = types is None and rule.crop_rule == "markers" and any(given)
        self._closing = _MARKERS if rule.newline_closes else _MARKERS - {_NEWLINE}
        self._unclosed: int | None = None
        self.rows: list[list[Picture]] = []
        for row in range(len(tokens.bounds) - 1):
            crops = self._between_markers(row) if by_markers else self._placeholders(row)
            self.rows.append([*self._pictures_of(row, crops)])
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
        kinds, starts, rows, _ = self._runs
        opens, closes = (
            [
                index
                for run in range(*rows[row : row + 2])
                if kinds[run] in of_markers
                for index in range(starts[run], starts[run + 1])
            ]
            for of_markers in (_OPENS, _CLOSES)
        )
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

    def _pictures_of(self, row: int, crops: Iterator[tuple[int, int, int]]) -> Iterator[Picture]:
        kinds, starts, *_ = self._runs
        start, row_end = self._tokens.bounds[row : row + 2]
        pictures: list[list[Crop]] = []
        previous = start
        for first, stop, kind in crops:
            if first <= previous:
                where = "at the start of its row" if first == start else "right after another crop"
                self._refuse(first, f"a crop must follow a marker, it is {where}")
            if not pictures or kinds[bisect_right(starts, first - 1) - 1] != _SLICE_START:
                pictures.append([])
            # All crops of a picture take the sizes of its thumbnail's kind.
            own = pictures[-1]
            own.append(self._sized(first, stop, own[0].kind if own else kind))
            previous = stop
        apart = False
        limits = [own[0].start - 1 for own in pictures[1:]] + [row_end]
        for own, limit in zip(pictures, limits, strict=False):
            stop = self._past(own[-1].stop, self._closing, limit)
            yield self._tiled(own, stop, apart=apart)
            apart = stop < limit == self._past(stop, _MARKERS, limit)

    def _sized(self, start: int, stop: int, kind: int) -> Crop:
        name, what = NAMES[kind == VIDEO], _KINDS[kind]
        at, *size = next(self._sizes[kind], (-1, 0, 0))
        height, width = (side // self._factor for side in size)
        if at < 0:
            self._refuse(start, f"a crop of {what}s is beyond the last size that {name} has")
        if stop - start != height * width:
            self._refuse(
                start,
                f"{name} row {at} {tuple(size)} needs {height * width} tokens, got {stop - start} "
                f"in one run; was the prompt truncated inside the {what}?",
            )
        return Crop(start, stop, height, width, kind, at)

    def _tiled(self, crops: list[Crop], stop: int, *, apart: bool) -> Picture:
        """Return a picture, whose first longer gap behind a slice ends a line, and so all lines."""
        (start, _, *size, _, _), *slices = crops
        columns = len(slices)
        if not slices:
            return Picture(crops, stop, apart, 1, *size)
        for at, (one, following) in enumerate(pairwise(slices), 1):
            if following.start - one.stop > 2:
                columns = at
                break
        if len(slices) % columns:  # lines of different lengths are taken for one
            columns = len(slices)
        canvas = [len(slices) // columns * slices[0].height, columns * slices[0].width]
        stretched = any((a - 1) * (b - 1) >= LIMIT for a, b in zip(size, canvas, strict=True))
        if stretched and size != canvas:
            self._refuse(
                start - 1,
                f"a thumbnail of {tuple(size)} tokens cannot be spread over slices of "
                f"{tuple(canvas)} in all; the product of both, less 1 each, must be below {LIMIT}",
            )
        return Picture(crops, stop, apart, columns, *canvas)

    def _past(self, index: int, kinds: frozenset[int], limit: int) -> int:
        """Return the first token from an index on that is of none of some kinds, or the limit."""
        run = bisect_right(self._runs.starts, index) - 1
        while index < limit and self._runs.kinds[run] in kinds:
            run += 1
            index = self._runs.starts[run]
        return min(index, limit)

    def _refuse(self, index: int, what: str) -> NoReturn:
        raise self._tokens.error(index, what)


def lay_out_minicpmv4_7(tokens: Tokens, spec: MRopeSpec) -> Layout:
    """Lay a batch out by the rule of `minicpmv4_7_rope_index`; the errors are of `Pictures`."""
    check_shapes(tokens.inputs, spec)
    layout = Layout(tokens)
    add = layout.pieces.append
    images = tokens.inputs.target_sizes
    num_images = 0 if images is None else len(images)
    given_rows = pairwise(tokens.given_bounds)
    of_rows = zip(pairwise(tokens.bounds), Pictures(tokens, spec).rows, given_rows, strict=True)
    for (done, end), pictures, (given, given_end) in of_rows:
        now = picture = 0
        for crops, stop, apart, per_line, tall, wide in pictures:
            marker = crops[0].start - 1
            layout.count(now, marker - done)
            now += marker - done + apart
            *_, unit_height, unit_width, _, _ = crops[:2][-1]
            picture = len(layout.pieces)
            ends = [*(crop.start - 1 for crop in crops[1:]), stop]
            for at, ((first, last, height, width, kind, number), following) in enumerate(
                zip(crops, ends, strict=True), -1
            ):
                line, column = divmod(max(at, 0), per_line)
                top, left = now + line * unit_height, now + column * unit_width
                before, further = (top, left), (now, now)
                behind = top + height - 1, left + width - 1
                rows: Sequence[int] = range(top, top + height)
                columns: Sequence[int] = range(left, left + width)
                if at < 0:  # a thumbnail
                    before, behind = (max(now - 1, 0),) * 2, (now + tall, now + wide)
                    rows = spread_over(height, tall, now)
                    columns = spread_over(width, wide, now)
                elif at < len(crops) - 2:
                    further = top + unit_height - 1, now + wide
                add((now, before[:1], before[1:]))
                add((now, rows, columns))
                if following > last:
                    add((now, behind[:1], behind[1:]))
                if following > last + 1:
                    add((now, further[:1], further[1:] * (following - last - 1)))
                layout.media.append((first, last, number + num_images * (kind == VIDEO)))
            now, done = now + max(tall, wide) + 1, stop
        layout.count(now, end - done)
        now += end - done
        if end == done and pictures:
            last_picture = layout.pieces[picture:]
            now = 1 + max(
                max(columns[-1], (rows or columns)[-1]) for _, rows, columns in last_picture
            )
        # Masked tokens are at 0 for that.
        layout.ends.append(max(now, given_end > given))
    return layout


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
