"""What a workload is, and how the row of one is put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vecrope import Convention, MRopeSpec
from vecrope.families.rules import OmniRule

MODEL_TYPE = "glm4v"
TEXT, IMAGE, VIDEO = 0, 1, 2
TIMESTAMP_LEN = 6


class Run(NamedTuple):
    """The placeholders of an image, of a frame, or of a video that is a block."""

    start: int
    stop: int
    kind: int


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
        use_audio_in_video: whether videos come with their sound.
        target_sizes: (num_image_crops, 2) int64, or None; of minicpmv4_7.
        target_sizes_videos: (num_video_crops, 2) int64, or None; likewise.
        images_per_sample: (B,) int64, or None; of glm_image.
        model_type: the family of models that the prompts are for.
        step: what to number, of prompts whose positions are known; None: the prompts.
        convention: the upstream whose processor laid the prompts out; None: any, they agree.
        sequences: the packed sequences, one row each, of which `input_ids` is the concatenation,
            (1, N); or None: the rows are not packed.
        cu_seqlens: (num_sequences + 1,) int32, where each begins and ends, or None.
        runs: of one row, its runs of placeholders in order.
        touching: whether there are pictures with nothing in between.
    """

    name: str
    input_ids: Tensor
    attention_mask: Tensor | None
    mm_token_type_ids: Tensor
    image_grid_thw: Tensor | None
    video_grid_thw: Tensor | None
    second_per_grid_ts: Tensor | None = None
    audio_seqlens: Tensor | None = None
    use_audio_in_video: bool = False
    target_sizes: Tensor | None = None
    target_sizes_videos: Tensor | None = None
    images_per_sample: Tensor | None = None
    model_type: str = MODEL_TYPE
    step: Step | None = None
    convention: Convention | None = None
    sequences: tuple[Workload, ...] | None = None
    cu_seqlens: Tensor | None = None
    runs: tuple[Run, ...] = ()
    touching: bool = False

    def to(self, device: str) -> Workload:
        """Return the workload with all of its tensors on a device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        step = self.step
        if step is not None:
            step = step._replace(requests=[request.to(device) for request in step.requests])
        sequences = self.sequences
        if sequences is not None:
            sequences = tuple(sequence.to(device) for sequence in sequences)
        moved = {name: value.to(device) for name, value in tensors.items()}
        return replace(self, **moved, step=step, sequences=sequences)


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
        self.seconds: list[float] = []
        self.runs: list[Run] = []
        self.touching = False

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

    def touching_images(self, sides: Sequence[tuple[int, int]]) -> None:
        """Add images of so many patches with nothing in between, all within one pair of marks."""
        start, end = self.layout.image_marks
        self._add([start], TEXT)
        for height, width in sides:
            self.images.append((1, height, width))
            self._visual(1, height, width, IMAGE, ())
        self._add([end], TEXT)
        self.touching = self.touching or len(sides) > 1

    def video(self, frames: int, height: int, width: int, seconds: float | None = None) -> None:
        """Add a video of so many frames and patches.

        Args:
            frames: of its grid.
            height: in patches.
            width: in patches.
            seconds: of a temporal step. A timestamp has a token more from ten seconds on, and from
                a hundred. None: not known, and all timestamps are as long.
        """
        layout = self.layout
        if seconds is not None:
            self.seconds.append(seconds)
        self.videos.append((frames, height, width))
        if not layout.spec.separate_frames:
            steps = frames // layout.spec.temporal_merge_size
            self._visual(steps, height, width, VIDEO, layout.video_marks)
            return
        self._add(layout.video_marks[:1], TEXT)
        for frame in range(frames):
            timestamp_len = TIMESTAMP_LEN - 1 + len(str(int(frame * (seconds or 0))))
            if layout.timestamp_first:
                self.text(timestamp_len)
            self._visual(1, height, width, VIDEO, layout.image_marks)
            if not layout.timestamp_first:
                self.text(timestamp_len)
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
        count = steps * height * width // spec.spatial_merge_size**2
        self.runs.append(Run(len(self), len(self) + count, kind))
        self._add([placeholder] * count, kind)
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
        **_items([row]),
        audio_seqlens=torch.tensor(row.audios) if row.audios else None,
        runs=tuple(row.runs),
        touching=row.touching,
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
    return Workload(name, input_ids, attention_mask, types, **_items([row for _, row in rows]))


def packed_rows(name: str, rows: Sequence[Row]) -> Workload:
    """Return a workload of rows as sequences that follow each other in one."""
    sequences = tuple(one_row(name, row) for row in rows)
    lengths = torch.tensor([0, *map(len, rows)])
    return Workload(
        name,
        torch.cat([sequence.input_ids for sequence in sequences], 1),
        None,
        torch.cat([sequence.mm_token_type_ids for sequence in sequences], 1),
        **_items(rows),
        sequences=sequences,
        cu_seqlens=lengths.cumsum(0).int(),
    )


def _items(rows: Sequence[Row]) -> dict[str, Any]:
    """Return a workload's grids and seconds, and the family that they are for."""
    spec = rows[0].layout.spec
    images = [grid for row in rows for grid in row.images]
    videos = [grid for row in rows for grid in row.videos]
    seconds = [value for row in rows for value in row.seconds]
    timed = seconds and spec.video_time == "seconds"
    return {
        "image_grid_thw": torch.tensor(images) if images else None,
        "video_grid_thw": torch.tensor(videos) if videos else None,
        "second_per_grid_ts": torch.tensor(seconds) if timed else None,
        "model_type": spec.model_type,
    }
