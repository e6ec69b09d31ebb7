"""Workloads of pictures and clips that all differ in size, as each family's processor lays out.

Within a prompt no two pictures or clips have the same sides, and none is a square: their areas are
drawn evenly on a logarithmic scale, and so are the lengths of the text between them. The drawing is
seeded by the workload's name and size, so that a workload is the same in every run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from bench.prompts import Layout, Row, Step, Workload, one_row, packed_rows, padded_rows
from vecrope import MRopeSpec

FAMILIES = ("glm4v", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "ernie4_5_vl_moe")
# How many prompts a batch and a packed row have, by the length of the longest.
BATCH_ROWS = {1000: 8, 4000: 32}
PACKED_ROWS = {1000: 16, 4000: 32}

_QWEN_MARKS = (151652, 151653)
# Marks of images, marks of videos, whether a timestamp stands before its frame, and the padding.
_LAYOUTS: dict[str, tuple[tuple[int, int], tuple[int, ...], bool, int]] = {
    "glm4v": ((151339, 151340), (151341, 151342), False, 151329),
    "qwen2_vl": (_QWEN_MARKS, _QWEN_MARKS, False, 151643),
    "qwen2_5_vl": (_QWEN_MARKS, _QWEN_MARKS, False, 151643),
    "qwen3_vl": (_QWEN_MARKS, (), True, 151643),
    "ernie4_5_vl_moe": ((101304, 101305), (101306, 101307), False, 0),
}
# Tokens of the smallest picture, and of the largest for a prompt of any length.
_MIN_AREA = 12
_MAX_AREA = 4096


class Drawing:
    """A prompt under construction, and the sizes that it has had.

    Args:
        model_type: one of `FAMILIES`.
        length: tokens that the prompt is to have.
        rng: the source of all that is drawn.
    """

    def __init__(self, model_type: str, length: int, rng: random.Random) -> None:
        image_marks, video_marks, timestamp_first, _ = _LAYOUTS[model_type]
        spec = MRopeSpec.for_model(model_type, convention="transformers")
        self.row = Row(Layout(spec, image_marks, video_marks, timestamp_first))
        self._length = length
        self._rng = rng
        self._max_area = min(_MAX_AREA, max(2 * _MIN_AREA, length // 6))
        self._drawn: set[tuple[int, int]] = set()

    def prompt(self, next_item: Callable[[int], bool]) -> Row:
        """Add text and items in turns until one does not fit, then text up to the length.

        Args:
            next_item: adds the item of that number, or returns False if there is no space for it.
        """
        self._text(64)
        number = 0
        while next_item(number):
            self._text(128)
            number += 1
        self.row.text(self._length - len(self.row))
        return self.row

    def picture_or_clip(self, number: int) -> bool:
        """Add a picture, then a clip, and from then on two pictures for a clip on the average."""
        if number == 1 or (number > 1 and self._rng.random() < 1 / 3):
            return self._clip()
        return self.picture(number)

    def picture(self, _number: int) -> bool:
        """Add a picture."""
        height, width = self._sides(self._max_area)
        if not self._fits(height * width + 2):
            return False
        self.row.image(2 * height, 2 * width)
        return True

    def touching_pictures(self, _number: int) -> bool:
        """Add two to four pictures with nothing in between."""
        sides = [self._sides(self._max_area) for _ in range(self._rng.randint(2, 4))]
        if not self._fits(sum(height * width for height, width in sides) + 2):
            return False
        self.row.touching_images([(2 * height, 2 * width) for height, width in sides])
        return True

    def _clip(self) -> bool:
        steps = self._rng.randint(2, 12 if self._length > 1000 else 4)
        seconds = round(2 / self._rng.uniform(0.5, 4), 4)
        height, width = self._sides(max(2 * _MIN_AREA, 2 * self._max_area // steps))
        spec = self.row.layout.spec
        per_step = height * width + (10 if spec.separate_frames else 0)
        if not self._fits(steps * per_step + 2):
            return False
        self.row.video(steps * spec.temporal_merge_size, 2 * height, 2 * width, seconds)
        return True

    def _sides(self, max_area: int) -> tuple[int, int]:
        """Draw the sides of an item, in tokens."""
        while True:
            area = self._log_uniform(_MIN_AREA, max_area)
            stretch = math.sqrt(self._log_uniform(0.4, 2.5))
            side = math.sqrt(area)
            height, width = round(side * stretch), round(side / stretch)
            if height != width and height * width <= max_area:
                if (height, width) not in self._drawn:
                    self._drawn.add((height, width))
                    return height, width
                max_area += 1  # there may be no other size as small

    def _text(self, most: int) -> None:
        length = round(self._log_uniform(4, max(5, min(most, self._length // 12))))
        self.row.text(min(length, self._length - len(self.row)))

    def _fits(self, length: int) -> bool:
        return len(self.row) + length <= self._length

    def _log_uniform(self, low: float, high: float) -> float:
        return math.exp(self._rng.uniform(math.log(low), math.log(high)))


def _mixed(name: str, model_type: str, seq_len: int) -> Workload:
    """One prompt of pictures, clips and text."""
    return _laid_out(one_row(name, _draw(name, model_type, [seq_len])[0]))


def _mixed_batch(name: str, model_type: str, seq_len: int) -> Workload:
    """Prompts of unlike lengths, padded to the longest: at the left if they are few."""
    rows = _draw(name, model_type, _lengths(name, seq_len, BATCH_ROWS[seq_len]))
    at_left = len(rows) < 16
    placed = [(seq_len - len(row) if at_left else 0, row) for row in rows]
    return _laid_out(padded_rows(name, seq_len, placed, _LAYOUTS[model_type][3]))


def _mixed_packed(name: str, model_type: str, seq_len: int) -> Workload:
    """Prompts of unlike lengths, packed."""
    lengths = _lengths(name, seq_len, PACKED_ROWS[seq_len])
    return _laid_out(packed_rows(name, _draw(name, model_type, lengths)))


def _mixed_touching(name: str, model_type: str, seq_len: int) -> Workload:
    """One prompt of text and groups of pictures with nothing in between."""
    drawing = Drawing(model_type, seq_len, _rng(name, seq_len))
    return _laid_out(one_row(name, drawing.prompt(drawing.touching_pictures)))


def _pictures(name: str, model_type: str, seq_len: int) -> Workload:
    """One prompt of two pictures."""
    return _laid_out(one_row(name, _few_pictures(name, model_type, [seq_len], 2)[0]))


def _pictures_batch(name: str, model_type: str, seq_len: int) -> Workload:
    """Two padded prompts of one picture each."""
    rows = _few_pictures(name, model_type, [seq_len, seq_len - 60], 1)
    placed = [(seq_len - len(row), row) for row in rows]
    return _laid_out(padded_rows(name, seq_len, placed, _LAYOUTS[model_type][3]))


def _pictures_packed(name: str, model_type: str, seq_len: int) -> Workload:
    """The same, packed."""
    rows = _few_pictures(name, model_type, [seq_len, seq_len - 60], 1)
    return _laid_out(packed_rows(name, rows))


def _pictures_step(name: str, model_type: str, seq_len: int) -> Workload:
    """A step of two requests of one picture each, one with a chunk of its prompt, one decoding."""
    rows = _few_pictures(name, model_type, [seq_len, seq_len - 60], 1)
    requests = [one_row(name, row) for row in rows]
    batch = padded_rows(name, seq_len, [(0, row) for row in rows], _LAYOUTS[model_type][3])
    return replace(batch, step=Step(requests, [seq_len // 2, seq_len + 20], [seq_len // 4, 1]))


def _few_pictures(name: str, model_type: str, lengths: list[int], count: int) -> list[Row]:
    rng = _rng(name, lengths[0])
    rows = []
    for length in lengths:
        drawing = Drawing(model_type, length, rng)
        rows.append(drawing.prompt(lambda n, draw=drawing: n < count and draw.picture(n)))
    return rows


def _draw(name: str, model_type: str, lengths: list[int]) -> list[Row]:
    rng = _rng(name, lengths[0])
    drawings = [Drawing(model_type, length, rng) for length in lengths]
    return [drawing.prompt(drawing.picture_or_clip) for drawing in drawings]


def _lengths(name: str, longest: int, count: int) -> list[int]:
    """Draw the lengths of prompts, of which the first is the longest."""
    rng = _rng(f"{name} lengths", longest)
    return [longest, *(rng.randint(longest // 4, longest) for _ in range(count - 1))]


def _rng(name: str, seq_len: int) -> random.Random:
    return random.Random(f"{name} {seq_len}")


def _laid_out(workload: Workload) -> Workload:
    """Note the convention of `Drawing`'s layouts, and of the masks and types of these workloads."""
    return replace(
        workload,
        convention="transformers",
        sequences=workload.sequences and tuple(map(_laid_out, workload.sequences)),
    )


_KINDS: dict[str, tuple[Callable[[str, str, int], Workload], tuple[int, ...]]] = {
    "mixed": (_mixed, (400, 1000, 4000, 16384, 131072)),
    "mixed-batch": (_mixed_batch, tuple(BATCH_ROWS)),
    "mixed-packed": (_mixed_packed, tuple(PACKED_ROWS)),
    "mixed-touching": (_mixed_touching, (2000, 16384)),
    "pictures": (_pictures, (300,)),
    "pictures-batch": (_pictures_batch, (300,)),
    "pictures-packed": (_pictures_packed, (300,)),
    "pictures-step": (_pictures_step, (300,)),
}
# The workloads of a kind, one for each family.
GROUPS: dict[str, tuple[str, ...]] = {
    kind: tuple(f"{kind}-{model_type}" for model_type in FAMILIES) for kind in _KINDS
}
SIZES: dict[str, tuple[int, ...]] = {
    name: sizes for kind, (_, sizes) in _KINDS.items() for name in GROUPS[kind]
}
MAKERS: dict[str, Callable[[int], Workload]] = {
    name: partial(maker, name, model_type)
    for kind, (maker, _) in _KINDS.items()
    for name, model_type in zip(GROUPS[kind], FAMILIES, strict=True)
}
