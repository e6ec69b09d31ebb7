"""On the host: the crops of a prompt, the pictures that they make, and their positions in turn."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from vecrope.core.modality import IMAGE, TEXT, VIDEO
from vecrope.families.rules import MiniCPMV47
from vecrope.forms.eager.runs import Runs, row_starts, runs_of_ids
from vecrope.inputs import Inputs
from vecrope.own_rules.layout import Layout
from vecrope.own_rules.minicpmv4_7.sizes import LIMIT, NAMES, check_sizes
from vecrope.spec import MRopeSpec

_KINDS = {IMAGE: "image", VIDEO: "video"}
# Kinds of runs of markers, in the order of `MiniCPMV47`; the last is a newline.
_MARKERS = range(16, 21)
_OPENS, _CLOSES, _SLICE_START, _NEWLINE = _MARKERS[0:4:2], _MARKERS[1:4:2], 18, 20

Size = tuple[int, int]


class Crop(NamedTuple):
    """Tokens of a thumbnail or slice, their lines and columns, and where its size is given."""

    start: int
    stop: int
    height: int
    width: int
    kind: int  # modality: of which sizes
    row: int  # among them


class _Prompt:
    """A batch of unmasked tokens, row after row, as runs."""

    def __init__(self, inputs: Inputs, spec: MRopeSpec, rule: MiniCPMV47, mask: Tensor | None):
        self.mask, self.given_bounds = mask, row_starts(inputs)
        ids, types = (
            None if tokens is None else tokens.to("cpu").flatten()
            for tokens in (inputs.input_ids, inputs.mm_token_type_ids)
        )
        assert ids is not None
        self.bounds = self.given_bounds
        if mask is not None:
            found = [0, *mask.cumsum(0).tolist()]
            self.bounds = [found[bound] for bound in self.given_bounds]
            ids, types = ids[mask], None if types is None else types[mask]
        self.ids, self.num_tokens = ids, ids.shape[0]
        self.closing = frozenset(_MARKERS if rule.newline_closes else _MARKERS[:-1])
        names = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
        markers = [(getattr(rule, name), kind) for name, kind in zip(names, _MARKERS, strict=True)]
        crops = [(spec.image_token_id, IMAGE), (spec.video_token_id, VIDEO)]
        self.runs = self.crop_runs = Runs(bytearray(), [0], [0] * len(self.bounds), [])
        if self.num_tokens:
            self.runs = self.crop_runs = runs_of_ids(ids, (*crops, *markers), self.bounds)
        if self.num_tokens and types is not None:
            codes = (IMAGE, IMAGE), (VIDEO, VIDEO)
            self.crop_runs = runs_of_ids(types.to(torch.uint8), codes, self.bounds)

    def kind_at(self, index: int) -> int:
        """Return the kind of the run of a token."""
        return self.runs.kinds[bisect_right(self.runs.starts, index) - 1]

    def past(self, index: int, kinds: frozenset[int], limit: int) -> int:
        """Return the first token from an index on that is of none of some kinds, or the limit."""
        run = bisect_right(self.runs.starts, index) - 1
        while index < limit and self.runs.kinds[run] in kinds:
            run += 1
            index = self.runs.starts[run]
        return min(index, limit)

    def crops_of(self, row: int) -> Iterator[tuple[int, int, int]]:
        """Yield where the crops of a row start and stop, and the kind of each."""
        runs = self.crop_runs
        for run in range(runs.rows[row], runs.rows[row + 1]):
            if runs.kinds[run] in _KINDS:
                yield runs.starts[run], runs.starts[run + 1], runs.kinds[run]

    def marked_crops_of(self, row: int) -> Iterator[tuple[int, int, int]]:
        """Yield the same of all that is between two markers, as some upstreams have it."""
        runs = self.runs
        markers = [
            (index, runs.kinds[run] in _OPENS)
            for run in range(runs.rows[row], runs.rows[row + 1])
            if runs.kinds[run] in (*_OPENS, *_CLOSES)
            for index in range(runs.starts[run], runs.starts[run + 1])
        ]
        last = {opens: at for at, (_, opens) in enumerate(markers)}
        opened = None
        for at, (index, opens) in enumerate(markers):
            # Surplus markers at the end of a row are paired with none.
            if opens and opened is not None and at < last.get(False, -1):
                self.refuse_marker(index, "opens a crop inside of another")
            if not opens and opened is None and at < last.get(True, -1):
                self.refuse_marker(index, "closes a crop that none opens")
            if not opens and opened == index - 1:
                self.refuse_marker(index, "closes a crop that holds no token")
            if not opens and opened is not None:
                kind = self.kind_at(opened + 1)
                yield opened + 1, index, kind if kind in _KINDS else IMAGE
            opened = index if opens else None

    def place(self, index: int) -> str:
        """Say where in the input a token is."""
        row = bisect_right(self.bounds, index) - 1
        if self.mask is not None:
            index = int(self.mask.nonzero()[index])
        return f"row {row}, token {index - self.given_bounds[row]}"

    def refuse_marker(self, index: int, what: str) -> NoReturn:
        raise ValueError(f"{self.place(index)}: the marker {int(self.ids[index])} {what}")


def host_rope_index(
    inputs: Inputs, spec: MRopeSpec, rule: MiniCPMV47, sizes: Sequence[list[list[int]]]
) -> tuple[Tensor, Tensor]:
    """Return positions (3, N) and deltas (B, 1), both int64, of a batch on any device.

    Args:
        inputs: types, shapes and the mask's values have been checked.
        spec: of the family.
        rule: the spec's.
        sizes: of crops of images, and of videos; rows of zeros are no crop.

    Raises:
        ValueError: for the first thing that does not fit.
    """
    found = _Found(inputs, spec, rule, sizes)
    prompt = found.prompt
    layout = Layout(prompt.num_tokens)
    deltas = []
    for row, (start, stop) in enumerate(pairwise(prompt.bounds)):
        pictures = found.pictures_of(row)
        layout.largest = 0 if prompt.given_bounds[row + 1] > prompt.given_bounds[row] else -1
        _number_row(prompt, layout, pictures, start, stop)
        length = prompt.given_bounds[row + 1] - prompt.given_bounds[row]
        deltas.append(
            layout.largest + 1 - (stop - start if spec.delta_length == "valid" else length)
        )
    found.check_left_over()
    positions = layout.positions()
    if prompt.mask is not None:
        spread = torch.full(
            (3, prompt.mask.shape[0]), spec.padding_value, dtype=torch.int64, device="cpu"
        )
        spread[:, prompt.mask] = positions
        positions = spread
    return positions, torch.tensor(deltas, dtype=torch.int64, device="cpu").view(-1, 1)


class _Found:
    """The pictures of a batch, found row by row, each of which takes the sizes of its crops."""

    def __init__(
        self,
        inputs: Inputs,
        spec: MRopeSpec,
        rule: MiniCPMV47,
        sizes: Sequence[list[list[int]]],
    ):
        check_sizes(sizes, rule, round_grid_sides=inputs.round_grid_sides)
        mask = None if spec.mask_rule == "ignore" else inputs.attention_mask
        mask = None if mask is None else mask.to("cpu", torch.bool).flatten()
        self.prompt, self.rule = _Prompt(inputs, spec, rule, mask), rule
        given = [[(row, size) for row, size in enumerate(rows) if any(size)] for rows in sizes]
        self.given = dict(zip(_KINDS, given, strict=True))
        self.pending = {kind: iter(rows) for kind, rows in self.given.items()}
        self.expected, self.total = sum(map(len, given)), 0
        self.may_be_left_over = inputs.allow_unused_grids
        if self.expected and not inputs.input_ids.numel() and not self.may_be_left_over:
            raise ValueError(f"there are sizes of {self.expected} crops, input_ids hold no tokens")
        self.by_markers = bool(
            inputs.mm_token_type_ids is None and rule.crop_rule == "markers" and self.expected
        )

    def pictures_of(self, row: int) -> list[list[Crop]]:
        """Return the crops of each picture of a row, the next one that was not asked for."""
        prompt, pictures = self.prompt, list[list[Crop]]()
        start, kind = prompt.bounds[row], TEXT
        previous = start
        crops = (prompt.marked_crops_of if self.by_markers else prompt.crops_of)(row)
        for first, stop, own in crops:
            if first <= previous:
                where = (
                    "at the start of its row" if first == start else "right after the crop before"
                )
                raise ValueError(
                    f"{prompt.place(first)}: a crop must follow a marker, it is {where}"
                )
            if not pictures or prompt.kind_at(first - 1) != _SLICE_START:
                pictures.append([])
                kind = own
            pictures[-1].append(self._crop(first, stop, kind))
            previous = stop
        self.total += sum(map(len, pictures))
        return pictures

    def _crop(self, start: int, stop: int, kind: int) -> Crop:
        name, what = NAMES[kind == VIDEO], _KINDS[kind]
        row, size = next(self.pending[kind], (-1, [0, 0]))
        if row < 0:
            raise ValueError(
                f"{self.prompt.place(start)}: a crop of {what}s is beyond the last size: {name} "
                f"has {len(self.given[kind])}, and none is left"
            )
        height, width = (side // self.rule.downsample_factor for side in size)
        if stop - start != height * width:
            raise ValueError(
                f"{self.prompt.place(start)}: {name} row {row} {tuple(size)} needs "
                f"{height * width} tokens, got {stop - start} in one run; was the prompt truncated "
                f"inside the {what}?"
            )
        return Crop(start, stop, height, width, kind, row)

    def check_left_over(self) -> None:
        """Refuse sizes that no crop of the rows has taken, unless they may be left over."""
        if self.total == self.expected or self.may_be_left_over:
            return
        prompt, runs = self.prompt, self.prompt.runs
        for first, stop in pairwise(runs.rows) if self.by_markers else ():
            markers = [run for run in range(first, stop) if runs.kinds[run] in (*_OPENS, *_CLOSES)]
            if markers and runs.kinds[markers[-1]] in _OPENS:
                prompt.refuse_marker(
                    runs.starts[markers[-1] + 1] - 1,
                    "opens a crop that none closes; was the prompt truncated inside the crop?",
                )
        name, (row, size) = next(
            (name, left)
            for name, sizes in zip(NAMES, self.pending.values(), strict=True)
            for left in sizes
        )
        raise ValueError(
            f"{name} row {row} {tuple(size)} is left over: expected {self.expected} crops in the "
            f"batch, one for each size, got {self.total}"
        )


def find_pictures(
    inputs: Inputs, spec: MRopeSpec, rule: MiniCPMV47, sizes: Sequence[list[list[int]]]
) -> list[list[Crop]]:
    """Return the crops of each picture of one row; the arguments are those of `host_rope_index`.

    Tokens are counted without those that the mask leaves out.

    Raises:
        ValueError: for the first thing that does not fit.
    """
    found = _Found(inputs, spec, rule, sizes)
    pictures = found.pictures_of(0)
    found.check_left_over()
    return pictures


def _number_row(
    prompt: _Prompt, layout: Layout, pictures: list[list[Crop]], done: int, stop: int
) -> None:
    now = 0
    for number, (thumbnail, *slices) in enumerate(pictures):
        start = thumbnail.start - 1
        layout.count(now, start - done)
        now += start - done
        # SGLang takes pictures with nothing but markers and newlines in between for frames of one
        # video, and if there is any, keeps the next frame's distance from it.
        if number and done < start == prompt.past(done, frozenset(_MARKERS), start):
            now += 1
        lines, columns = _lines_of(slices)
        first = slices[0] if slices else thumbnail
        canvas = lines * first.height, columns * first.width
        _check_stretch(prompt, thumbnail, canvas)
        done = prompt.past((slices or [thumbnail])[-1].stop, prompt.closing, stop)
        if number + 1 < len(pictures):
            done = min(done, pictures[number + 1][0].start - 1)
        layout.token(now, max(now - 1, 0), max(now - 1, 0))
        layout.cells(
            now, *(_spread(now, *sides) for sides in zip(canvas, thumbnail[2:4], strict=True))
        )
        far, line_end = (now + canvas[0], now + canvas[1]), (now, now)
        place = thumbnail.stop
        for at, crop in enumerate(slices):
            line, column = divmod(at, columns)
            top, left = now + line * first.height, now + column * first.width
            _between(layout, now, crop.start - 1 - place, far, line_end)
            layout.token(now, top, left)
            layout.cells(now, range(top, top + crop.height), range(left, left + crop.width))
            far = top + crop.height - 1, left + crop.width - 1
            line_end = now + (line + 1) * first.height - 1, now + canvas[1]
            place = crop.stop
        _between(layout, now, done - place, far, (now, now))
        now += max(canvas) + 1
    layout.count(now, stop - done)


def _lines_of(slices: Sequence[Crop]) -> Size:
    """Return in how many lines and columns slices are tiled; 1 and 1 if there are none."""
    count = columns = max(len(slices), 1)
    for at, (one, following) in enumerate(pairwise(slices), 1):
        if following.start - one.stop > 2:
            columns = at
            break
    # Lines of different lengths are taken for one.
    return (count // columns, columns) if count % columns == 0 else (1, count)


def _between(layout: Layout, now: int, tokens: int, far: Size, line_end: Size) -> None:
    """Add the tokens behind a crop: one at its far corner, then those that end its line."""
    for token in range(tokens):
        layout.token(now, *(line_end if token else far))


def _check_stretch(prompt: _Prompt, thumbnail: Crop, canvas: Size) -> None:
    size = thumbnail.height, thumbnail.width
    stretched = any((a - 1) * (b - 1) >= LIMIT for a, b in zip(size, canvas, strict=True))
    if stretched and size != canvas:
        raise ValueError(
            f"{prompt.place(thumbnail.start - 1)}: a thumbnail of {size} tokens cannot be spread "
            f"over slices of {canvas} in all; the product of both, less one each, must be below "
            f"{LIMIT}"
        )


def _spread(first: int, extent: int, count: int) -> Sequence[int]:
    """Return where each of `count` positions lies among `extent` from the first on."""
    if extent == count:
        return range(first, first + count)
    return [first + place for place in _linspace(extent, count)]


@lru_cache(maxsize=1024)
def _linspace(extent: int, count: int) -> list[int]:
    return [*map(int, torch.linspace(0, extent - 1, count, device="cpu").round().tolist())]
