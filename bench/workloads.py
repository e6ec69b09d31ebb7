"""The prompts, in GLM-4V's layout, so that every provider can take them.

An image or a frame stands between an image-start and an image-end token, and behind a frame there
are six text tokens for its timestamp, as in GLM-4V's own prompts. So no two of them touch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from vecrope import MRopeSpec

MODEL_TYPE = "glm4v"
TEXT, IMAGE, VIDEO = 0, 1, 2

_SPEC = MRopeSpec.for_model(MODEL_TYPE, convention="sglang")
_IMAGE_START_ID, _IMAGE_END_ID, _PADDING_ID = 151339, 151340, 151329
_TIMESTAMP_LEN = 6


@dataclass(frozen=True, eq=False)
class Workload:
    """A batch of prompts, ready for every provider.

    Attributes:
        name: of the family of workloads.
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64, 1 for a token and 0 for padding, or None: no padding.
        mm_token_type_ids: (B, T) int64, 0 text, 1 image, 2 video, 0 at padding.
        image_grid_thw: (num_images, 3) int64, or None.
        video_grid_thw: (num_videos, 3) int64, or None.
    """

    name: str
    input_ids: Tensor
    attention_mask: Tensor | None
    mm_token_type_ids: Tensor
    image_grid_thw: Tensor | None
    video_grid_thw: Tensor | None

    @property
    def num_segments(self) -> int:
        """How many runs of text, images, videos and padding there are, row by row."""
        codes = self.mm_token_type_ids
        if self.attention_mask is not None:
            codes = codes.masked_fill(self.attention_mask == 0, -1)
        return int((codes[:, 1:] != codes[:, :-1]).sum()) + codes.shape[0]

    def to(self, device: str) -> Workload:
        """Return the workload with all of its tensors on a device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device) for name, value in tensors.items()})


class _Row:
    """A prompt under construction: its tokens, their types and the grids that it uses."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.types: list[int] = []
        self.images: list[tuple[int, int, int]] = []
        self.videos: list[tuple[int, int, int]] = []

    def __len__(self) -> int:
        return len(self.ids)

    def text(self, length: int) -> None:
        start = len(self.ids)
        self._add((1000 + (start + index) % 5000 for index in range(length)), TEXT)

    def image(self, height: int, width: int) -> None:
        self.images.append((1, height, width))
        self._visual(height, width, IMAGE)

    def video(self, frames: int, height: int, width: int) -> None:
        self.videos.append((frames, height, width))
        self._add([_SPEC.video_start_token_id], TEXT)
        for _ in range(frames):
            self._visual(height, width, VIDEO)
            self.text(_TIMESTAMP_LEN)
        self._add([_SPEC.video_end_token_id], TEXT)

    def _visual(self, height: int, width: int, kind: int) -> None:
        num_tokens = height * width // _SPEC.spatial_merge_size**2
        self._add([_IMAGE_START_ID], TEXT)
        self._add([_SPEC.image_token_id] * num_tokens, kind)
        self._add([_IMAGE_END_ID], TEXT)

    def _add(self, ids: Iterable[int], kind: int) -> None:
        self.ids += ids
        self.types += [kind] * (len(self.ids) - len(self.types))


def _one_row(name: str, row: _Row) -> Workload:
    return Workload(
        name=name,
        input_ids=torch.tensor([row.ids]),
        attention_mask=None,
        mm_token_type_ids=torch.tensor([row.types]),
        image_grid_thw=torch.tensor(row.images) if row.images else None,
        video_grid_thw=torch.tensor(row.videos) if row.videos else None,
    )


def _image_and_frame(name: str, seq_len: int, side: int) -> Workload:
    """One image and one video of one frame, both `side` by `side` patches, and text."""
    row = _Row()
    row.text(8)
    row.image(side, side)
    row.text(8)
    row.video(1, side, side)
    if len(row) > seq_len:
        row = _Row()
    row.text(seq_len - len(row))
    return _one_row(name, row)


def _seed(seq_len: int) -> Workload:
    """A 256-token image and a 256-token video frame in text; where they do not fit, text alone."""
    return _image_and_frame("seed", seq_len, 32)


def _short(seq_len: int) -> Workload:
    """A 64-token image and a 64-token video frame in a question of 300 tokens."""
    return _image_and_frame("short", seq_len, 16)


def _video(seq_len: int) -> Workload:
    """One video, of as many frames of 256 tokens as fit, with 8 text tokens between them."""
    row = _Row()
    row.text(4)
    period = 1 + 256 + 1 + _TIMESTAMP_LEN
    row.video((seq_len - len(row) - 2) // period, 32, 32)
    row.text(seq_len - len(row))
    return _one_row("video", row)


def _batch(seq_len: int) -> Workload:
    """32 rows of unlike lengths, with images, videos and padding on both sides."""
    rng = random.Random(0)
    batch = 32
    input_ids = torch.full((batch, seq_len), _PADDING_ID)
    attention_mask = torch.zeros((batch, seq_len), dtype=torch.int64)
    types = torch.zeros((batch, seq_len), dtype=torch.int64)
    images: list[tuple[int, int, int]] = []
    videos: list[tuple[int, int, int]] = []
    for number in range(batch):
        length = rng.randint(seq_len // 4, seq_len)
        row = _ragged_row(rng, length)
        start = rng.randint(0, seq_len - length)
        stop = start + length
        input_ids[number, start:stop] = torch.tensor(row.ids)
        types[number, start:stop] = torch.tensor(row.types)
        attention_mask[number, start:stop] = 1
        images += row.images
        videos += row.videos
    return Workload(
        "batch", input_ids, attention_mask, types, torch.tensor(images), torch.tensor(videos)
    )


def _ragged_row(rng: random.Random, length: int) -> _Row:
    row = _Row()
    row.text(rng.randint(8, 64))
    while True:
        height, width = 2 * rng.randint(4, 20), 2 * rng.randint(4, 20)
        frames = rng.choice((0, 0, 1, 4, 8))  # 0 for an image
        after = rng.randint(8, 128)
        per_frame = height * width // 4 + 2
        needed = per_frame if frames == 0 else frames * (per_frame + _TIMESTAMP_LEN) + 2
        if len(row) + needed + after > length:
            row.text(length - len(row))
            return row
        if frames == 0:
            row.image(height, width)
        else:
            row.video(frames, height, width)
        row.text(after)


def _long(seq_len: int) -> Workload:
    """As `video`, in batches of millions of tokens."""
    return replace(_video(seq_len), name="long")


_MAKERS: dict[str, Callable[[int], Workload]] = {
    "seed": _seed,
    "video": _video,
    "batch": _batch,
    "short": _short,
    "long": _long,
}

# The padded lengths T at which each workload is run.
SIZES: dict[str, tuple[int, ...]] = {
    "seed": tuple(2**exponent for exponent in range(18)),
    "video": (4096, 32768, 131072),
    "batch": (4096,),
    "short": (300,),
    "long": (2**20, 2**21, 2**22, 2**23),
}


@lru_cache(maxsize=8)
def make_workload(name: str, seq_len: int, device: str = "cpu") -> Workload:
    """Return the workload of that name and padded length; the same call gives the same object."""
    workload = _MAKERS[name](seq_len)
    return workload if device == "cpu" else workload.to(device)
