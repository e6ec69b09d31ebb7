"""Positions for a serving engine: static buffers, and CUDA graphs of buckets of shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vecrope import checks
from vecrope.forms.select import fused_pipeline
from vecrope.inputs import Inputs
from vecrope.rope_index import get_rope_index
from vecrope.spec import MRopeSpec

_LEAST_TOKENS = 64
_Key = tuple[int, int, bool]
# The ids, the grids of images and of videos, and the mask.
_Arguments = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


class RunnerInputs(NamedTuple):
    """A runner's own buffers, to be filled before `RopeIndexRunner.replay`.

    Attributes:
        input_ids: (B, T) in the runner's dtype.
        attention_mask: (B, T) bool.
        image_grid_thw: (max_images, 3) int64; rows of zeros are no image.
        video_grid_thw: (max_videos, 3) int64.
    """

    input_ids: Tensor
    attention_mask: Tensor
    image_grid_thw: Tensor
    video_grid_thw: Tensor


class _Replay(NamedTuple):
    """What it takes to replay a graph for prompts of one shape."""

    key: _Key  # B, T and whether there is a mask
    graph: torch.cuda.CUDAGraph
    arguments: _Arguments
    answer: tuple[Tensor, Tensor]


class RopeIndexRunner:
    """`get_rope_index` for one spec, within limits, without allocation or synchronisation.

    On a CUDA device the runner owns the buffers that a call writes, and launches two kernels (three
    by transformers' rule). It owns buffers for prompts as well: what has been written there, see
    `inputs`, is answered by replaying a CUDA graph, which takes the least time. There is one graph
    for each bucket: the numbers of rows and of tokens are rounded up to powers of two, and prompts
    with a mask have their own. On a CPU a call is `get_rope_index`, with the same limits.

    Args:
        spec: the family's rules.
        max_rows: the largest B.
        max_tokens: the largest T.
        max_images: the most rows of `image_grid_thw`, for all rows of a batch together.
        max_videos: likewise of `video_grid_thw`.
        device: of the arguments and the answers.
        dtype: of `input_ids` and the positions, int64 or int32.

    Raises:
        TypeError: if `dtype` is another.
        ValueError: if a limit is less than 1 (rows, tokens) or 0 (images, videos), or if together
            they allow 2**30 tokens; for a family that is numbered by more than these arguments; on
            a CUDA device for one that its kernels do not know; or if the upstream's positions are
            always int64 and `dtype` is not.
        RuntimeError: on a CUDA device without Triton, which comes with torch's builds for CUDA.

    Example:
        >>> import torch, vecrope
        >>> spec = vecrope.MRopeSpec.for_model("glm4v", convention="sglang")
        >>> runner = vecrope.RopeIndexRunner(
        ...     spec, max_rows=1, max_tokens=64, max_images=2, max_videos=0, device="cpu"
        ... )
        >>> seconds = runner.warm_up()
        >>> image = spec.image_token_id
        >>> position_ids, rope_deltas = runner(
        ...     torch.tensor([[7, 151339, image, image, 151340, 8]]),
        ...     image_grid_thw=torch.tensor([[1, 2, 4]]),
        ... )
        >>> position_ids[2]
        tensor([[0, 1, 2, 3, 4, 5]])
    """

    def __init__(
        self,
        spec: MRopeSpec,
        *,
        max_rows: int,
        max_tokens: int,
        max_images: int,
        max_videos: int,
        device: torch.device | str,
        dtype: torch.dtype = torch.int64,
    ) -> None:
        limits = {
            "rows": max_rows,
            "tokens": max_tokens,
            "images": max_images,
            "videos": max_videos,
        }
        for what, limit in limits.items():
            least = int(what in ("rows", "tokens"))
            if limit < least:
                raise ValueError(f"max_{what} must be at least {least}, got {limit}")
        if max_rows * max_tokens >= 2**30:
            raise ValueError(
                f"max_rows {max_rows} times max_tokens {max_tokens} must be less than 2**30"
            )
        if dtype not in (torch.int64, torch.int32):
            raise TypeError(f"dtype must be torch.int64 or torch.int32, got {dtype}")
        if spec.arguments:
            names = ", ".join(sorted(spec.arguments))
            raise ValueError(
                f"a runner takes no {names}, which {spec.model_type!r} is numbered by; "
                "use get_rope_index"
            )
        if spec.position_dtype == "int64" and dtype != torch.int64:
            raise ValueError(
                f"dtype must be torch.int64 under convention {spec.convention!r}, got {dtype}"
            )
        self.spec = spec
        self.device = torch.device(device)
        self.dtype = dtype
        self._limits = limits
        self._buckets: dict[_Key, _Bucket] = {}
        self._memory: _Memory | None = None
        if self.device.type == "cuda":
            if not spec.frames_by_markers or spec.mask_rule != "skip":
                raise ValueError(
                    f"a runner on a CUDA device knows the families whose frames stand between "
                    f"markers, such as glm4v, got {spec.model_type!r} under convention "
                    f"{spec.convention!r}; use get_rope_index"
                )
            self._memory = _Memory(spec, limits, dtype, self.device)
            self.device = self._memory.input_ids.device  # with its number
        self._last_replay: _Replay | None = None
        self._last_arguments: _Arguments | None = None  # of a call or a replay

    @property
    def num_graphs(self) -> int:
        """How many CUDA graphs have been captured."""
        return len(self._buckets)

    def warm_up(self, shapes: Iterable[tuple[int, int]] | None = None) -> float:
        """Compile the kernels, and capture the graphs of some buckets.

        The kernels are compiled for grids of int64, and for no mask and masks of bool and of int64;
        for others, by the first call that brings them. A bucket that is not warmed up is captured
        by the first use of its buffers.

        Args:
            shapes: (B, T) of replays to expect; None: those of every bucket.

        Returns:
            The seconds that it took; 0 on a CPU.
        """
        if self._memory is None:
            return 0.0
        start = time.perf_counter()
        if shapes is None:
            rows = _powers(1, self._limits["rows"])
            shapes = product(rows, _powers(_LEAST_TOKENS, self._limits["tokens"]))
        for (num_rows, seq_len), masked in product(shapes, (False, True)):
            self._check_limit("rows", num_rows)
            self._check_limit("tokens", seq_len)
            self._bucket(num_rows, seq_len, masked)
        ids = self._memory.input_ids[:1].view(1, 1)
        for mask in (None, ids.bool(), ids.long()):
            self(ids, attention_mask=mask)
        _wait(self.device)
        return time.perf_counter() - start

    def inputs(self, num_rows: int, num_tokens: int) -> RunnerInputs:
        """Return the buffers that a prompt of this shape may be written to, on a CUDA device.

        The grids' buffers are those of every shape. What an earlier prompt left there stands until
        it is overwritten; so it does in the other buffers, which shapes share.

        Raises:
            RuntimeError: on a CPU, where the runner has no buffers.
            ValueError: if the shape is beyond the limits.
        """
        if self._memory is None:
            raise RuntimeError("a runner has buffers on a CUDA device only")
        self._check_limit("rows", num_rows)
        self._check_limit("tokens", num_tokens)
        bucket = self._bucket(num_rows, num_tokens, masked=False)
        return RunnerInputs(
            bucket.input_ids[:num_rows, :num_tokens],
            bucket.mask[:num_rows, :num_tokens],
            self._memory.images,
            self._memory.videos,
        )

    def replay(
        self, num_rows: int, num_tokens: int, *, masked: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Answer the prompt that has been written to the buffers of `inputs`, on a CUDA device.

        Nothing is copied, and nothing is checked but the shape.

        Args:
            num_rows: B.
            num_tokens: T.
            masked: whether the buffer of the mask is to be read.

        Returns:
            What a call returns, and with the same limits of its life.

        Raises:
            RuntimeError: on a CPU, where the runner has no buffers.
            ValueError: if the shape is beyond the limits.
        """
        replay = self._last_replay
        if replay is None or replay.key != (num_rows, num_tokens, masked):
            replay = self._prepare_replay(num_rows, num_tokens, masked)
        self._last_arguments = replay.arguments
        replay.graph.replay()
        return replay.answer

    def __call__(
        self,
        input_ids: Tensor,
        *,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the position ids and the offsets that decoding continues from.

        On a CUDA device the answers are views of the runner's buffers, which the next call or
        replay writes again; `clone()` what is to outlast it. Values are not checked, see `check`.
        On a CPU they are checked, and the answers are the caller's own.

        Args:
            input_ids: (B, T) in the runner's dtype and on its device.
            image_grid_thw: (num_images, 3) integers in patches, on the runner's device.
            video_grid_thw: (num_videos, 3) likewise.
            attention_mask: (B, T) bool or integers, 1 or True for a token.

        Returns:
            `position_ids` (3, B, T) in the runner's dtype, and `rope_deltas` (B, 1) int64.

        Raises:
            TypeError: for an argument of the wrong type or dtype.
            ValueError: for an argument of the wrong shape, on another device or beyond the limits.
        """
        checks.check_metadata(
            Inputs(input_ids, image_grid_thw, video_grid_thw, attention_mask), self.spec
        )
        num_rows, seq_len = input_ids.shape
        self._check_limit("rows", num_rows)
        self._check_limit("tokens", seq_len)
        if image_grid_thw is not None:
            self._check_limit("images", image_grid_thw.shape[0])
        if video_grid_thw is not None:
            self._check_limit("videos", video_grid_thw.shape[0])
        if input_ids.dtype != self.dtype:
            raise TypeError(
                f"input_ids must be {self.dtype}, as the runner is, got {input_ids.dtype}"
            )
        if input_ids.device != self.device:
            raise ValueError(
                f"input_ids must be on {self.device}, as the runner is, got {input_ids.device}"
            )
        memory = self._memory
        if memory is None or not input_ids.numel():
            return get_rope_index(
                input_ids,
                self.spec,
                image_grid_thw=image_grid_thw,
                video_grid_thw=video_grid_thw,
                attention_mask=attention_mask,
                validate=memory is None,
            )
        arguments = (input_ids, image_grid_thw, video_grid_thw, attention_mask)
        buffers = memory.buffers_for(num_rows, seq_len)
        memory.launch(*arguments, None, buffers)
        self._last_arguments = arguments
        return buffers.position_ids, buffers.rope_deltas

    def check(self) -> None:
        """Raise if the values of the last call or replay did not fit, as `get_rope_index` does.

        The arguments of the call are kept until the next one. If they did not fit, they are read
        again, and must not have been written since. On a CUDA device this synchronises. On a CPU
        there is nothing left to check.

        Raises:
            ValueError: for grids that do not fit the placeholders; the message names the row, the
                item, what was expected and what was found.
        """
        memory, arguments = self._memory, self._last_arguments
        if memory is None or arguments is None:
            return
        # The kernels do not see whether frames touch.
        if self.spec.frames_may_touch and not any(memory.buffers.faults.tolist()):
            return
        input_ids, images, videos, mask = arguments
        get_rope_index(
            input_ids,
            self.spec,
            image_grid_thw=images,
            video_grid_thw=videos,
            attention_mask=mask,
        )

    def _prepare_replay(self, num_rows: int, seq_len: int, masked: bool) -> _Replay:
        memory, inputs = self._memory, self.inputs(num_rows, seq_len)
        assert memory is not None
        bucket = self._bucket(num_rows, seq_len, masked)
        memory.sizes.fill_((num_rows << 32) + seq_len)
        position_ids, rope_deltas, _ = bucket.buffers
        self._last_replay = _Replay(
            (num_rows, seq_len, masked),
            bucket.graph,
            (
                inputs.input_ids,
                inputs.image_grid_thw,
                inputs.video_grid_thw,
                inputs.attention_mask if masked else None,
            ),
            (position_ids[:, :num_rows, :seq_len], rope_deltas[:num_rows]),
        )
        return self._last_replay

    def _check_limit(self, what: str, number: int) -> None:
        limit = self._limits[what]
        if number > limit:
            raise ValueError(f"the runner was built for at most {limit} {what}, got {number}")

    def _bucket(self, num_rows: int, seq_len: int, masked: bool) -> _Bucket:
        rows = min(_power_from(num_rows), self._limits["rows"])
        tokens = min(_power_from(max(seq_len, _LEAST_TOKENS)), self._limits["tokens"])
        key = (rows, tokens, masked)
        bucket = self._buckets.get(key)
        if bucket is None:
            assert self._memory is not None
            bucket = self._buckets[key] = _Bucket(self._memory, *key)
        return bucket


class _Memory:
    """The buffers of a runner on a CUDA device, which all its buckets share."""

    def __init__(
        self, spec: MRopeSpec, limits: dict[str, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        pipeline = fused_pipeline()
        if pipeline is None:
            raise RuntimeError(
                "a runner on a CUDA device needs Triton, which comes with torch's builds for CUDA"
            )
        rows, tokens = limits["rows"], limits["tokens"]
        num_items = limits["images"] + limits["videos"]
        self.input_ids = torch.zeros(rows * tokens, dtype=dtype, device=device)
        self.mask = torch.zeros(rows * tokens, dtype=torch.bool, device=device)
        self.images = torch.zeros((limits["images"], 3), dtype=torch.int64, device=device)
        self.videos = torch.zeros((limits["videos"], 3), dtype=torch.int64, device=device)
        self.sizes = torch.zeros(1, dtype=torch.int64, device=device)
        self.buffers = pipeline.make_buffers((rows, tokens), num_items, dtype, device)
        self.launch = pipeline.Launcher(spec, self.input_ids.device)
        self._last_shape = (rows, tokens)
        self._last_buffers = self.buffers

    def buffers_for(self, num_rows: int, seq_len: int) -> Any:
        """Return the part of the buffers that ids of this shape need."""
        if (num_rows, seq_len) != self._last_shape:
            positions = self.buffers.position_ids.view(-1)[: 3 * num_rows * seq_len]
            self._last_shape = (num_rows, seq_len)
            self._last_buffers = self.buffers._replace(
                position_ids=positions.view(3, num_rows, seq_len),
                rope_deltas=self.buffers.rope_deltas[:num_rows],
            )
        return self._last_buffers


class _Bucket:
    """A graph for prompts of up to so many rows and tokens, and its views of the memory."""

    def __init__(self, memory: _Memory, num_rows: int, seq_len: int, masked: bool) -> None:
        num_tokens = num_rows * seq_len
        self.input_ids = memory.input_ids[:num_tokens].view(num_rows, seq_len)
        self.mask = memory.mask[:num_tokens].view(num_rows, seq_len)
        self.buffers = memory.buffers_for(num_rows, seq_len)

        def launch() -> None:
            memory.launch(
                self.input_ids,
                memory.images,
                memory.videos,
                self.mask if masked else None,
                None,
                self.buffers,
                memory.sizes,
            )

        self.graph = _capture(launch, memory.input_ids.device)


def _capture(launch: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
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


def _wait(device: torch.device) -> None:
    torch.cuda.synchronize(device)


def _power_from(number: int) -> int:
    """Return the least power of two that is not less."""
    return 1 << max(number - 1, 0).bit_length()


def _powers(least: int, limit: int) -> list[int]:
    """Return the powers of two from `least` to below `limit`, and `limit`."""
    return [least << shift for shift in range(limit.bit_length()) if least << shift < limit] + [
        limit
    ]
