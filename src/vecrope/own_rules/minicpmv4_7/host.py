"""On the host: the crops of a batch as they are found, and the sizes that they take."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from operator import mul, sub
from struct import Struct
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from vecrope.core.modality import IMAGE, VIDEO
from vecrope.core.stream import Stream
from vecrope.families.rules import MiniCPMV47
from vecrope.forms.eager.runs import Runs, runs_of_ids
from vecrope.inputs import Inputs
from vecrope.own_rules.minicpmv4_7.sizes import IDS, LIMIT, NAMES, read_sizes
from vecrope.spec import MRopeSpec

_pack = Struct("q").pack
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
    """The pictures of a batch, row by row; tokens are counted without those that are masked.

    Args:
        stream: of a batch on any device.
        inputs: the batch; types, shapes and the mask's values have been checked.
        spec: of the family.
        rule: the spec's.

    Raises:
        ValueError: for the first thing that does not fit.
    """

    def __init__(self, stream: Stream, inputs: Inputs, spec: MRopeSpec, rule: MiniCPMV47):
        given, self._factor = read_sizes(inputs, rule), rule.downsample_factor
        self._sizes = dict(zip(_KINDS, map(iter, given), strict=True))
        self._ids, types, self._kept = stream.input_ids.to("cpu"), stream.token_types, None
        self.bounds = self._given_bounds = stream.row_bounds.tolist()
        if stream.kept is not None:
            self._kept = stream.kept.to("cpu")
            found = [0, *self._kept.cumsum(0).tolist()]
            self.bounds = [found[bound] for bound in self._given_bounds]
            self._ids = self._ids[self._kept]
            types = None if types is None else types.to("cpu")[self._kept]
        kinds = [(spec.image_token_id, IMAGE), (spec.video_token_id, VIDEO)]
        kinds += [(getattr(rule, name), kind) for kind, name in enumerate(IDS, 16)]
        self._runs = self._crops = Runs(bytearray(), [0], [0] * len(self.bounds), [])
        if len(self._ids):
            self._runs = self._crops = runs_of_ids(self._ids, tuple(kinds), self.bounds)
        if len(self._ids) and types is not None:
            codes = types.to("cpu", torch.uint8)
            self._crops = runs_of_ids(codes, ((IMAGE, IMAGE), (VIDEO, VIDEO)), self.bounds)
        by_markers = types is None and rule.crop_rule == "markers" and any(given)
        self._closing = _MARKERS if rule.newline_closes else _MARKERS - {_NEWLINE}
        self._unclosed = ""
        self.rows: list[list[Picture]] = []
        for row in range(len(self.bounds) - 1):
            crops = self._between_markers(row) if by_markers else self._placeholders(row)
            self.rows.append([*self._pictures_of(row, crops)])
        left = [(kind, *size) for kind, sizes in self._sizes.items() for size in sizes]
        if left and not inputs.allow_unused_grids:
            (kind, at, *size), total = left[0], sum(map(len, given))
            raise ValueError(
                f"{NAMES[kind == VIDEO]} row {at} {tuple(size)} is left over: expected {total} "
                f"crops in the batch, one for each size, got {total - len(left)}{self._unclosed}"
            )

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
                self._refuse(
                    min(first, stop),
                    f"markers must open and close crops in turn, {int(self._ids[first])} and "
                    f"{int(self._ids[stop])} do not enclose one",
                )
            kind = kinds[bisect_right(starts, first + 1) - 1]
            yield first + 1, stop, kind if kind in _KINDS else IMAGE
        if len(opens) > len(closes):
            self._unclosed = f"; is the prompt truncated, {self._place(opens[-1])} opens one more?"

    def _pictures_of(self, row: int, crops: Iterator[tuple[int, int, int]]) -> Iterator[Picture]:
        kinds, starts, *_ = self._runs
        start, row_end = self.bounds[row : row + 2]
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

    def _place(self, index: int) -> str:
        row = bisect_right(self.bounds, index) - 1
        if self._kept is not None:
            index = int(self._kept.nonzero()[index])
        return f"row {row}, token {index - self._given_bounds[row]}"

    def _refuse(self, index: int, what: str) -> NoReturn:
        raise ValueError(f"{self._place(index)}: {what}")


def host_entries(
    stream: Stream, inputs: Inputs, spec: MRopeSpec, rule: MiniCPMV47
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the arguments of `place_tokens`; those of this, and the errors, are of `Pictures`."""
    pictures, device = Pictures(stream, inputs, spec, rule), stream.input_ids.device
    # An entry in front of all.
    begins, columns, steps = [0], array("q", (0,) * 20), array("f", (0, 0))
    for start, row in zip(pictures.bounds, pictures.rows, strict=False):
        begins.append(start)
        columns.extend((start, start, 0, -start, -1, 1, *(0,) * 14))
        steps.extend((0, 0))
        shift = -start
        for crops, stop, apart, per_line, tall, wide in row:
            origin = crops[0].start - 1 + shift + apart
            shift = origin + max(tall, wide) + 1 - stop
            *_, unit_height, unit_width, _, _ = crops[:2][-1]
            for at, (first, end, height, width, _, _) in enumerate(crops, -1):
                line, column = divmod(max(at, 0), per_line)
                top, left = line * unit_height, column * unit_width
                bottom, right = top + height - 1, left + width - 1
                y, x = height - 1, width - 1
                before, further = (top, left), (0, 0)
                if at < 0:  # a thumbnail
                    before, bottom, right, y, x = (-1, -1), tall, wide, tall - 1, wide - 1
                elif at < len(crops) - 2:
                    further = top + unit_height - 1, wide
                begins.append(first - 1)
                columns.extend(
                    (
                        *(first, stop, origin, shift, end - first - 1, width, top, left, *before),
                        *(bottom, right, *further, height - 1, width - 1),
                        *(height // 2 or 1, width // 2 or 1, y, x),
                    )
                )
                steps.extend((y / (height - 1 or 1), x / (width - 1 or 1)))
    ends = [*begins[1:], pictures.bounds[-1] + 1]  # one token more, should all be masked
    numbers = map(_pack, range(len(begins)))
    entry = torch.frombuffer(
        bytearray().join(map(mul, numbers, map(sub, ends, begins))), dtype=torch.int64
    )
    if stream.kept is None:
        entry = entry[:-1]
        slot = torch.arange(stream.num_tokens, device="cpu")
    else:
        slot = (stream.kept.to("cpu").cumsum(0) - 1).clamp(min=0)
        entry = entry[slot]
    table = torch.frombuffer(columns, dtype=torch.int64).view(-1, 20).t()
    of_steps = torch.frombuffer(steps, dtype=torch.float32).view(-1, 2).t()
    return table.to(device), of_steps.to(device), entry.to(device), slot.to(device)
