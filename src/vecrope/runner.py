"""Positions for a serving engine: static buffers, and CUDA graphs of buckets of shapes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vecrope import checks
from vecrope.forms.select import HAS_TRITON
from vecrope.inputs import Inputs
from vecrope.rope_index import rope_index_of
from vecrope.spec import MRopeSpec

if TYPE_CHECKING:
    from vecrope.forms.triton.graphs import Bucket, Key, Memory

_LEAST_TOKENS = 64


class RunnerInputs(NamedTuple):
    """A runner's own buffers, to be filled before `RopeIndexRunner.replay`.

    Attributes:
        input_ids: (B, T) in the runner's dtype, or packed (N,).
        attention_mask: (B, T) or (N,) bool.
        image_grid_thw: (max_images, 3) int64; rows of zeros are no image.
        video_grid_thw: (max_videos, 3) int64.
        cu_seqlens: (num_sequences + 1,) int32 of packed prompts, otherwise None.
        second_per_grid_ts: (max_videos,) in the runner's `seconds_dtype`, at first the family's
            default; None for a family that does not space its videos in time.
    """

    input_ids: Tensor
    attention_mask: Tensor
    image_grid_thw: Tensor
    video_grid_thw: Tensor
    cu_seqlens: Tensor | None
    second_per_grid_ts: Tensor | None


class _Replay(NamedTuple):
    """What it takes to replay a graph for prompts of one shape."""

    key: tuple[int, int, bool, bool]  # rows, tokens, whether there is a mask, whether packed
    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    answer: tuple[Tensor, Tensor]


class RopeIndexRunner:
    """`get_rope_index` for one spec, within limits, without allocation or synchronisation.

    On a CUDA device a call launches two kernels (three if markers are counted), which write into
    buffers of the runner. The runner also has buffers for prompts, see `inputs`. If a prompt was
    written there, the runner answers it by replaying a CUDA graph, which is fastest. There is one
    graph for each bucket: the numbers of rows and of tokens are rounded up to powers of two, and
    prompts with a mask and packed prompts have graphs of their own. On a CPU a call is
    `get_rope_index`, with the same limits. As calls share buffers, a runner is for one thread and
    one stream at a time.

    Args:
        spec: the family's rules.
        max_rows: the largest B, and the most packed sequences.
        max_tokens: the largest T; packed sequences may have `max_rows` times as many together.
        max_images: the most rows of `image_grid_thw`, for all rows of a batch together.
        max_videos: likewise of `video_grid_thw`.
        device: of the arguments and the answers.
        dtype: of `input_ids` and the positions, int64 or int32.
        seconds_dtype: of the buffer of `second_per_grid_ts`; it decides how seconds are rounded.

    Raises:
        TypeError: if a limit is no int, or `dtype` is another.
        ValueError: if a limit is less than 1 (rows, tokens) or 0 (images, videos), or together they
            allow 2**30 tokens; if the family needs other arguments than these; on a CUDA device, if
            it has a rule of its own; or if the upstream's positions are always int64 and `dtype` is
            not.
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
        seconds_dtype: torch.dtype = torch.float32,
    ) -> None:
        limits = {
            "rows": max_rows,
            "tokens": max_tokens,
            "images": max_images,
            "videos": max_videos,
        }
        for what, limit in limits.items():
            checks.check_int(f"max_{what}", limit, int(what in ("rows", "tokens")))
        if max_rows * max_tokens >= 2**30:
            raise ValueError(
                f"max_rows {max_rows} times max_tokens {max_tokens} must be less than 2**30"
            )
        if dtype not in (torch.int64, torch.int32):
            raise TypeError(f"dtype must be torch.int64 or torch.int32, got {dtype}")
        checks.check_spec(spec)
        if spec.arguments - {"second_per_grid_ts"}:
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
        self._buckets: dict[Key, Bucket] = {}
        self._memory: Memory | None = None
        if self.device.type == "cuda":
            if spec.own_rule is not None:
                raise ValueError(
                    f"a runner on a CUDA device knows the families that share a rule, got "
                    f"{spec.model_type!r}, which has one of its own; use get_rope_index"
                )
            if not HAS_TRITON:
                raise RuntimeError(
                    "a runner on a CUDA device needs Triton, which comes with torch's builds for "
                    "CUDA"
                )
            from vecrope.forms.triton.graphs import Memory

            self._memory = Memory(spec, limits, dtype, seconds_dtype, self.device)
            self.device = self._memory.input_ids.device  # with its number
        self._last_replay: _Replay | None = None
        self._last_inputs: Inputs | None = None  # of a call or a replay

    @property
    def num_graphs(self) -> int:
        """How many CUDA graphs have been captured."""
        return len(self._buckets)

    def warm_up(
        self, shapes: Iterable[tuple[int, int]] | None = None, *, packed: bool = False
    ) -> float:
        """Compile the kernels, and capture the graphs of some buckets.

        The kernels are compiled for grids of int64, and for no mask and masks of bool and of int64;
        for others, by the first call that brings them. A bucket that is not warmed up is captured
        by the first use of its buffers.

        Args:
            shapes: (B, T) of replays to expect, or number of sequences and N of packed ones; None:
                those of every bucket.
            packed: whether the buckets are those of packed prompts.

        Returns:
            The seconds that it took; 0 on a CPU.
        """
        if self._memory is None:
            return 0.0
        start = time.perf_counter()
        if shapes is None:
            rows = _powers(1, self._limits["rows"])
            shapes = product(rows, _powers(_LEAST_TOKENS, self._most_tokens(packed)))
        for (num_rows, num_tokens), masked in product(shapes, (False, True)):
            self._bucket(num_rows, num_tokens, masked, packed)
        ids = self._memory.input_ids[:1].view(1, 1)
        for mask in (None, ids.bool(), ids.long()):
            self(ids, attention_mask=mask)
        _wait(self.device)
        return time.perf_counter() - start

    def inputs(self, num_rows: int, num_tokens: int, *, packed: bool = False) -> RunnerInputs:
        """Return the buffers that a prompt of this shape may be written to, on a CUDA device.

        The buffers of grids and seconds are those of every shape. What an earlier prompt left there
        stands until it is overwritten; so it does in the other buffers, which shapes share.

        Args:
            num_rows: B, or the number of packed sequences.
            num_tokens: T, or the tokens of all packed sequences.
            packed: whether the prompt is packed.

        Raises:
            RuntimeError: on a CPU, where the runner has no buffers.
            ValueError: if the shape is beyond the limits.
        """
        bucket = self._bucket(num_rows, num_tokens, False, packed)
        memory, inputs = bucket.memory, bucket.inputs(num_rows, num_tokens, masked=True)
        assert inputs.attention_mask is not None
        return RunnerInputs(
            inputs.input_ids,
            inputs.attention_mask,
            memory.images,
            memory.videos,
            inputs.cu_seqlens,
            memory.seconds,
        )

    def replay(
        self, num_rows: int, num_tokens: int, *, masked: bool = False, packed: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Answer the prompt that has been written to the buffers of `inputs`, on a CUDA device.

        Nothing is copied, and nothing is checked but the shape.

        Args:
            num_rows: B, or the number of packed sequences.
            num_tokens: T, or the tokens of all packed sequences.
            masked: whether the buffer of the mask is to be read.
            packed: whether the prompt is packed.

        Returns:
            What a call returns: views, which the next call or replay overwrites.

        Raises:
            RuntimeError: on a CPU, where the runner has no buffers.
            ValueError: if the shape is beyond the limits.
        """
        replay = self._last_replay
        if replay is None or replay.key != (num_rows, num_tokens, masked, packed):
            replay = self._prepare_replay(num_rows, num_tokens, masked, packed)
        self._last_inputs = replay.inputs
        replay.graph.replay()
        return replay.answer

    def __call__(
        self,
        input_ids: Tensor,
        *,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        second_per_grid_ts: Tensor | Sequence[float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the position ids and the offsets that decoding continues from.

        On a CUDA device the answers are views of the runner's buffers, which the next call or
        replay overwrites; `clone()` what you want to keep. Values are not checked, see `check`. On
        a CPU they are checked, and the answers are new tensors.

        Args:
            input_ids: (B, T) in the runner's dtype and on its device, or (N,) with `cu_seqlens`.
            image_grid_thw: (num_images, 3) integers in patches, on the runner's device.
            video_grid_thw: (num_videos, 3) likewise.
            attention_mask: (B, T) or (N,) bool or integers, 1 or True for a token.
            cu_seqlens: (num_sequences + 1,) integers from 0 to N, for packed `input_ids`.
            second_per_grid_ts: (num_videos,) as `get_rope_index` takes it; a list is copied to the
                device, which synchronises.

        Returns:
            `position_ids` (3, B, T) or (3, N) in the runner's dtype, and `rope_deltas` (B, 1) or
            (num_sequences, 1) int64.

        Raises:
            TypeError: for an argument of the wrong type or dtype.
            ValueError: for an argument of the wrong shape, on another device or beyond the limits.
        """
        inputs = Inputs(
            input_ids,
            image_grid_thw,
            video_grid_thw,
            attention_mask,
            cu_seqlens,
            second_per_grid_ts=second_per_grid_ts,
        )
        checks.check_metadata(inputs, self.spec)
        shape = tuple(input_ids.shape)
        num_rows = shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self._check_limit("rows", num_rows)
        self._check_tokens(shape[-1], packed=cu_seqlens is not None)
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
            return rope_index_of(inputs, self.spec, validate=memory is None)
        buffers = memory.buffers_for(shape, num_rows)
        memory.launch(inputs, buffers)
        self._last_inputs = inputs
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
        memory, inputs = self._memory, self._last_inputs
        if memory is None or inputs is None or not any(memory.buffers.faults.tolist()):
            return
        rope_index_of(inputs, self.spec)

    def _prepare_replay(
        self, num_rows: int, num_tokens: int, masked: bool, packed: bool
    ) -> _Replay:
        bucket = self._bucket(num_rows, num_tokens, masked, packed)
        bucket.memory.sizes.fill_((num_rows << 32) + num_tokens)
        self._last_replay = _Replay(
            (num_rows, num_tokens, masked, packed),
            bucket.graph,
            bucket.inputs(num_rows, num_tokens, masked=masked),
            bucket.answer(num_rows, num_tokens),
        )
        return self._last_replay

    def _check_limit(self, what: str, number: int) -> None:
        limit = self._limits[what]
        if number > limit:
            raise ValueError(f"the runner was built for at most {limit} {what}, got {number}")

    def _check_tokens(self, number: int, *, packed: bool) -> None:
        limit = self._most_tokens(packed)
        if number > limit:
            what = "tokens of packed sequences" if packed else "tokens"
            raise ValueError(f"the runner was built for at most {limit} {what}, got {number}")

    def _most_tokens(self, packed: bool) -> int:
        return self._limits["tokens"] * (self._limits["rows"] if packed else 1)

    def _bucket(self, num_rows: int, num_tokens: int, masked: bool, packed: bool) -> Bucket:
        if self._memory is None:
            raise RuntimeError("a runner has buffers on a CUDA device only")
        from vecrope.forms.triton.graphs import Bucket, Key

        self._check_limit("rows", num_rows)
        self._check_tokens(num_tokens, packed=packed)
        rows = min(_power_from(num_rows), self._limits["rows"])
        tokens = min(_power_from(max(num_tokens, _LEAST_TOKENS)), self._most_tokens(packed))
        key = Key(rows, tokens, masked, packed)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._memory, key)
        return bucket


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
