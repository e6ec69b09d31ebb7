"""The buffers of a runner and its CUDA graphs, one for each bucket of shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.forms.triton.launch import Buffers, Launcher, make_buffers
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec


class Key(NamedTuple):
    """What tells a graph from the others."""

    num_rows: int  # or packed sequences
    num_tokens: int  # of a row, or of all packed sequences
    masked: bool
    packed: bool


class Memory:
    """The buffers of a runner, which all its buckets share.

    Args:
        spec: of the shared rule.
        limits: the most rows, tokens of a row, images and videos.
        dtype: of the ids.
        seconds_dtype: of the seconds of a temporal step.
        device: with Triton.
    """

    def __init__(
        self,
        spec: MRopeSpec,
        limits: dict[str, int],
        dtype: torch.dtype,
        seconds_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        rows, tokens = limits["rows"], limits["tokens"]
        num_items = limits["images"] + limits["videos"]
        self.input_ids = torch.zeros(rows * tokens, dtype=dtype, device=device)
        self.mask = torch.zeros(rows * tokens, dtype=torch.bool, device=device)
        self.bounds = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        self.images = torch.zeros((limits["images"], 3), dtype=torch.int64, device=device)
        self.videos = torch.zeros((limits["videos"], 3), dtype=torch.int64, device=device)
        self.seconds = None
        if spec.video_time == "seconds":
            default = spec.default_seconds or 0.0
            self.seconds = torch.full(
                (limits["videos"],), default, dtype=seconds_dtype, device=device
            )
        self.sizes = torch.zeros(1, dtype=torch.int64, device=device)
        # Padded rows have no more blocks than as many tokens in as many packed sequences.
        self.buffers = make_buffers((rows * tokens,), rows, num_items, dtype, self.input_ids)
        self.launch = Launcher(spec, self.input_ids.device)
        self._last_shape: tuple[int, ...] = ()
        self._last_buffers = self.buffers

    def buffers_for(self, shape: tuple[int, ...], num_rows: int) -> Buffers:
        """Return the part of the buffers that ids of this shape need."""
        if (*shape, num_rows) != self._last_shape:
            positions = self.buffers.position_ids.view(-1)[: 3 * math.prod(shape)]
            self._last_shape = (*shape, num_rows)
            self._last_buffers = self.buffers._replace(
                position_ids=positions.view(3, *shape),
                rope_deltas=self.buffers.rope_deltas[:num_rows],
            )
        return self._last_buffers


class Bucket:
    """A graph for prompts of up to so many rows and tokens, and its views of the memory."""

    def __init__(self, memory: Memory, key: Key) -> None:
        num_rows, num_tokens, masked, packed = key
        self.memory = memory
        shape = (num_tokens,) if packed else (num_rows, num_tokens)
        count = num_tokens if packed else num_rows * num_tokens
        self.input_ids = memory.input_ids[:count].view(shape)
        self.mask = memory.mask[:count].view(shape)
        self.bounds = memory.bounds[: num_rows + 1] if packed else None
        self.buffers = memory.buffers_for(shape, num_rows)
        inputs = self.inputs(num_rows, num_tokens, masked=masked)
        self.graph = capture(
            lambda: memory.launch(inputs, self.buffers, memory.sizes), memory.input_ids.device
        )

    def inputs(self, num_rows: int, num_tokens: int, *, masked: bool) -> Inputs:
        """Return the part of the memory that a prompt of this shape may be written to."""
        part = self._part(num_rows, num_tokens)
        return Inputs(
            self.input_ids[part],
            self.memory.images,
            self.memory.videos,
            self.mask[part] if masked else None,
            None if self.bounds is None else self.bounds[: num_rows + 1],
            second_per_grid_ts=self.memory.seconds,
        )

    def answer(self, num_rows: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return the part of the buffers that holds the answer to a prompt of this shape."""
        position_ids, rope_deltas, _ = self.buffers
        part = slice(None), *self._part(num_rows, num_tokens)
        return position_ids[part], rope_deltas[:num_rows]

    def _part(self, num_rows: int, num_tokens: int) -> tuple[slice, ...]:
        tokens = slice(num_tokens)
        return (slice(num_rows), tokens) if self.bounds is None else (tokens,)


def capture(launch: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """Return a CUDA graph of what `launch` launches."""
    with torch.cuda.device(device):
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            launch()  # compiles, which a capture must not
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch()
    return graph
