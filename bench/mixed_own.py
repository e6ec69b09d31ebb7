"""Prompts of many sizes for the families with a rule of their own, as their processors lay out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from bench import own
from bench.prompts import Workload
from vecrope import Convention
from vecrope.testing import Prompt

# The convention of each family's prompts, and whether they have clips.
_LAYOUTS: dict[str, tuple[str, Convention, bool]] = {
    "glm_image": ("glm_image", "transformers", False),
    "hunyuan_vl": ("hunyuan_vl", "transformers", False),
    "isaac": ("isaac", "vllm", False),
    "bailing_moe_v3_vl": ("bailing_moe_v3_vl", "sglang", True),
    # vLLM takes pictures alone, and numbers them otherwise.
    "bailing_moe_v3_vl-pictures": ("bailing_moe_v3_vl", "vllm", False),
    "minicpmv4_7": ("minicpmv4_7", "transformers", True),
}
BATCH_ROWS = 8
# Lines and columns of the slices of a picture of MiniCPM-V.
_SLICES = ((0, 0), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3))
_MIN_AREA = 12


class _Row:
    """A row under construction: its symbols, and the sizes of what it shows."""

    def __init__(self, model_type: str, clips: bool, length: int, rng: random.Random) -> None:
        self.symbols = ""
        self.images: list[list[int]] = []
        self.videos: list[list[int]] = []
        self._model_type, self._clips, self._length, self._rng = model_type, clips, length, rng
        left_out = 0
        while left_out < 3:
            self.symbols += "t" * round(self._between(4, max(5, min(128, length // 12))))
            left_out += not self._add_item()
        self.symbols = (self.symbols + "t" * length)[:length]

    def _add_item(self) -> bool:
        rng, most = self._rng, min(4096, max(2 * _MIN_AREA, self._length // 6))
        clip = self._clips and rng.random() < 1 / 3
        if self._model_type == "minicpmv4_7":
            symbols, sizes = self._frames() if clip else self._picture()
        elif clip:
            frames = rng.randint(2, 12 if self._length > 1000 else 4)
            height, width = self._sides(max(2 * _MIN_AREA, 2 * most // frames))
            symbols = f"[{'V' * (frames * height * width)}]"
            sizes = [[frames, 2 * height, 2 * width]]
        else:
            height, width = self._sides(most)
            # A line of HunYuan-VL ends in a token of its own, and two stand around the image.
            lines = height * (width + 1) + 2
            tokens = lines if self._model_type == "hunyuan_vl" else height * width
            patches = 1 if self._model_type == "glm_image" else 2
            symbols, sizes = f"<{'I' * tokens}>", [[1, patches * height, patches * width]]
        if len(self.symbols) + len(symbols) > self._length - 4:
            return False
        self.symbols += symbols
        (self.videos if clip else self.images).extend(sizes)
        return True

    def _picture(self) -> tuple[str, list[list[int]]]:
        most = max(_MIN_AREA, min(64, self._length // 30))
        lines, columns = self._rng.choice(_SLICES)
        height, width = self._sides(most)
        symbols, sizes = f"({'I' * (height * width)})", [[4 * height, 4 * width]]
        height, width = self._sides(most)
        line = f"<{'I' * (height * width)}>" * columns
        return symbols + "n".join([line] * lines), sizes + [[4 * height, 4 * width]] * (
            lines * columns
        )

    def _frames(self) -> tuple[str, list[list[int]]]:
        frames = self._rng.randint(2, 12 if self._length > 1000 else 4)
        height, width = self._sides(max(_MIN_AREA, min(64, self._length // 30)))
        return f"({'V' * (height * width)})n" * frames, [[4 * height, 4 * width]] * frames

    def _sides(self, most: float) -> tuple[int, int]:
        area, stretch = self._between(_MIN_AREA, most), math.sqrt(self._between(0.4, 2.5))
        return round(math.sqrt(area) * stretch), round(math.sqrt(area) / stretch)

    def _between(self, low: float, high: float) -> float:
        return math.exp(self._rng.uniform(math.log(low), math.log(max(low, high))))


def _mixed(name: str, layout: str, seq_len: int, *, batch: bool) -> Workload:
    """Return one prompt, or 8 of unlike lengths with padding at the left."""
    rng = random.Random(f"{name} {seq_len}")
    model_type, convention, clips = _LAYOUTS[layout]
    lengths = [seq_len]
    if batch:
        lengths += [rng.randint(seq_len // 4, seq_len) for _ in range(BATCH_ROWS - 1)]
    rows = [_Row(model_type, clips, length, rng) for length in lengths]
    images = [size for row in rows for size in row.images]
    videos = [size for row in rows for size in row.videos]
    given: dict[str, Any] = {"image_grid_thw": images or None, "video_grid_thw": videos or None}
    if model_type == "minicpmv4_7":
        given = {"target_sizes": images or None, "target_sizes_videos": videos or None}
    if model_type == "glm_image":
        for row in rows:
            row.images.append([1, 24, 32])  # to be generated
        given["image_grid_thw"] = [grid for row in rows for grid in row.images]
        given["images_per_sample"] = [len(row.images) for row in rows]
    prompt = Prompt.from_symbols(
        own.spec_of(model_type, convention),
        [row.symbols.rjust(seq_len, "t") for row in rows],
        mask=[("1" * length).rjust(seq_len, "0") for length in lengths] if batch else None,
        **given,
    )
    assert prompt.mm_token_type_ids is not None
    return Workload(
        name=name,
        input_ids=prompt.input_ids,
        attention_mask=prompt.attention_mask,
        mm_token_type_ids=prompt.mm_token_type_ids,
        image_grid_thw=prompt.image_grid_thw,
        video_grid_thw=prompt.video_grid_thw,
        target_sizes=prompt.target_sizes,
        target_sizes_videos=prompt.target_sizes_videos,
        images_per_sample=prompt.images_per_sample,
        model_type=model_type,
        convention=convention,
    )


_KINDS: dict[str, tuple[bool, tuple[int, ...]]] = {
    "mixed-own": (False, (300, 1000, 4000, 16384, 131072)),
    "mixed-own-batch": (True, (1000,)),
}
# The workloads of a kind, one for each family.
GROUPS: dict[str, tuple[str, ...]] = {
    kind: tuple(f"{kind}-{layout}" for layout in _LAYOUTS) for kind in _KINDS
}
SIZES: dict[str, tuple[int, ...]] = {
    name: sizes for kind, (_, sizes) in _KINDS.items() for name in GROUPS[kind]
}
MAKERS: dict[str, Callable[[int], Workload]] = {
    name: partial(_mixed, name, layout, batch=batch)
    for kind, (batch, _) in _KINDS.items()
    for name, layout in zip(GROUPS[kind], _LAYOUTS, strict=True)
}
