"""What a workload is, and how the row of one is put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope import MRopeSpec
from vecrope.families.rules import OmniRule

MODEL_TYPE = "glm4v"
TEXT, IMAGE, VIDEO = 0, 1, 2
TIMESTAMP_LEN = 6


class Step(NamedTuple):
    """One step of a serving engine: its requests, and for each the tokens behind it and in it."""

    requests: list[Workload]
    computed: list[int]
    scheduled: list[int]


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
        second_per_grid_ts: (num_videos,) float32, or None.
        audio_seqlens: (num_audios,) int64, mel frames, or None.
        model_type: the family of models that the prompts are for.
        step: what to number, of prompts whose positions are known; None: the prompts.
    """

    name: str
    input_ids: Tensor
    attention_mask: Tensor | None
    mm_token_type_ids: Tensor
    image_grid_thw: Tensor | None
    video_grid_thw: Tensor | None
    second_per_grid_ts: Tensor | None = None
    audio_seqlens: Tensor | None = None
    model_type: str = MODEL_TYPE
    step: Step | None = None

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
        step = self.step
        if step is not None:
            step = step._replace(requests=[request.to(device) for request in step.requests])
        moved = {name: value.to(device) for name, value in tensors.items()}
        return replace(self, **moved, step=step)


class Layout(NamedTuple):
    """The tokens around images and videos in a family's prompts.

    A video is either a block between its markers, or frames, each with the marks of an image and a
    timestamp, between them.
    """

    spec: MRopeSpec
    image_marks: tuple[int, int]
    video_marks: tuple[int, ...]
    timestamp_first: bool = False
    audio_marks: tuple[int, int] | None = None


GLM4V = Layout(
    MRopeSpec.for_model(MODEL_TYPE, convention="sglang"), (151339, 151340), (151341, 151342)
)


class Row:
    """A prompt under construction: its tokens, their types and the grids that it uses."""

    def __init__(self, layout: Layout = GLM4V) -> None:
        self.layout = layout
        self.ids: list[int] = []
        self.types: list[int] = []
        self.images: list[tuple[int, int, int]] = []
        self.videos: list[tuple[int, int, int]] = []
        self.audios: list[int] = []

    def __len__(self) -> int:
        return len(self.ids)

    def text(self, length: int) -> None:
        """Add tokens of text."""
        start = len(self.ids)
        self._add((1000 + (start + index) % 5000 for index in range(length)), TEXT)

    def image(self, height: int, width: int) -> None:
        """Add an image of so many patches."""
        self.images.append((1, height, width))
        self._visual(1, height, width, IMAGE, self.layout.image_marks)

    def video(self, frames: int, height: int, width: int) -> None:
        """Add a video of so many frames and patches."""
        layout = self.layout
        self.videos.append((frames, height, width))
        if not layout.spec.separate_frames:
            steps = frames // layout.spec.temporal_merge_size
            self._visual(steps, height, width, VIDEO, layout.video_marks)
            return
        self._add(layout.video_marks[:1], TEXT)
        for _ in range(frames):
            if layout.timestamp_first:
                self.text(TIMESTAMP_LEN)
            self._visual(1, height, width, VIDEO, layout.image_marks)
            if not layout.timestamp_first:
                self.text(TIMESTAMP_LEN)
        self._add(layout.video_marks[1:], TEXT)

    def audio(self, seconds: int) -> None:
        """Add an audio: of each second's 100 mel frames the encoder makes 13 tokens."""
        rule = self.layout.spec.own_rule
        assert isinstance(rule, OmniRule)
        assert self.layout.audio_marks is not None
        start, end = self.layout.audio_marks
        self.audios.append(100 * seconds)
        self._add([start, *[rule.audio_token_id] * (13 * seconds), end], TEXT)

    def _visual(
        self, steps: int, height: int, width: int, kind: int, marks: tuple[int, ...]
    ) -> None:
        spec = self.layout.spec
        placeholder = spec.image_token_id
        if kind == VIDEO and spec.video_token_id is not None:
            placeholder = spec.video_token_id
        assert placeholder is not None
        self._add(marks[:1], TEXT)
        self._add([placeholder] * (steps * height * width // spec.spatial_merge_size**2), kind)
        self._add(marks[1:], TEXT)

    def _add(self, ids: Iterable[int], kind: int) -> None:
        self.ids += ids
        self.types += [kind] * (len(self.ids) - len(self.types))


def one_row(name: str, row: Row) -> Workload:
    """Return a workload of one row without padding."""
    return Workload(
        name=name,
        input_ids=torch.tensor([row.ids]),
        attention_mask=None,
        mm_token_type_ids=torch.tensor([row.types]),
        image_grid_thw=torch.tensor(row.images) if row.images else None,
        video_grid_thw=torch.tensor(row.videos) if row.videos else None,
        audio_seqlens=torch.tensor(row.audios) if row.audios else None,
        model_type=row.layout.spec.model_type,
    )


def padded_rows(
    name: str, seq_len: int, rows: Iterable[tuple[int, Row]], padding_id: int
) -> Workload:
    """Return a workload of rows, each with the number of columns of padding before it."""
    rows = list(rows)
    shape = (len(rows), seq_len)
    input_ids = torch.full(shape, padding_id)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    types = torch.zeros(shape, dtype=torch.int64)
    for number, (start, row) in enumerate(rows):
        stop = start + len(row)
        input_ids[number, start:stop] = torch.tensor(row.ids)
        types[number, start:stop] = torch.tensor(row.types)
        attention_mask[number, start:stop] = 1
    images = [grid for _, row in rows for grid in row.images]
    videos = [grid for _, row in rows for grid in row.videos]
    return Workload(
        name, input_ids, attention_mask, types, torch.tensor(images), torch.tensor(videos)
    )


def runs_of(workload: Workload) -> list[tuple[int, int, int]]:
    """Return start, stop and type of each run of placeholders in a workload's first row."""
    types = workload.mm_token_type_ids[0].cpu()
    bounds = torch.nn.functional.pad(types, (1, 1)).diff().nonzero().flatten().tolist()
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return [(start, stop, int(types[start])) for start, stop in pairs]
