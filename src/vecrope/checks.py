"""What the arguments must satisfy by themselves, and the messages that say where they do not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from vecrope.core.faults import MAX_TOKENS
from vecrope.families.names import nearest
from vecrope.families.registry import FAMILIES
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

INTEGRAL = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class RowError(ValueError):
    """A ValueError about a row of a batch, which a caller can tell of whatever that row is to it.

    Its message is the row's name and `problem`, such as ", image 2: its grid ..." or " holds ...".
    """

    problem = ""

    @classmethod
    def of(cls, row: int, problem: str) -> RowError:
        """Return the error about a row."""
        error = cls(f"row {row}{problem}")
        error.problem = problem
        return error


def check_metadata(inputs: Inputs, spec: MRopeSpec, max_groups: int | None = None) -> None:
    """Check types, shapes, dtypes and limits; reads no value of any tensor."""
    check_spec(spec)
    input_ids, cu_seqlens = inputs.input_ids, inputs.cu_seqlens
    check_tensor("input_ids", input_ids)
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"input_ids must be int64 or int32, got {input_ids.dtype}")
    if cu_seqlens is None and input_ids.dim() != 2:
        raise ValueError(
            f"input_ids must have shape (B, T), got {tuple(input_ids.shape)}; "
            "packed input of shape (N,) needs cu_seqlens"
        )
    if cu_seqlens is not None:
        check_integral("cu_seqlens", cu_seqlens)
        if input_ids.dim() != 1:
            raise ValueError(
                f"input_ids must have shape (N,) with cu_seqlens, got {tuple(input_ids.shape)}"
            )
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
            raise ValueError(
                f"cu_seqlens must have shape (num_sequences + 1,), got {tuple(cu_seqlens.shape)}"
            )
    if input_ids.dtype == torch.int32 and input_ids.shape[-1] > 2**31:
        raise ValueError(
            f"{input_ids.shape[-1]} tokens in a row overflow the positions' dtype torch.int32; "
            "use int64 input_ids"
        )
    for name in ("attention_mask", "mm_token_type_ids"):
        values = getattr(inputs, name)
        if values is None:
            continue
        check_integral(name, values)
        if values.shape != input_ids.shape:
            raise ValueError(
                f"{name} must have the shape of input_ids {tuple(input_ids.shape)}, "
                f"got {tuple(values.shape)}"
            )
    check_grid_shapes(inputs.image_grid_thw, inputs.video_grid_thw)
    num_videos = 0 if inputs.video_grid_thw is None else inputs.video_grid_thw.shape[0]
    check_seconds_argument(inputs.second_per_grid_ts, num_videos, spec)
    for name in ("audio_seqlens", "images_per_sample", "target_sizes", "target_sizes_videos"):
        if getattr(inputs, name) is not None and name not in spec.arguments:
            raise ValueError(f"{name} must be None: it is not used by {spec.model_type}")
    with_sound = inputs.use_audio_in_video
    if (
        with_sound is not None
        and with_sound is not False
        and "use_audio_in_video" not in spec.arguments
    ):
        raise ValueError(f"use_audio_in_video must be False: {spec.model_type} does not take audio")
    if max_groups is not None:
        check_int("max_groups", max_groups, 1, MAX_TOKENS)


def check_spec(spec: object) -> None:
    """Check that an argument is a spec, and otherwise name what makes one of it."""
    if isinstance(spec, MRopeSpec):
        return
    found, remedy = type(spec).__name__, ""
    if isinstance(spec, str):
        model_type = next(map(repr, nearest(spec, FAMILIES)), "model_type")
        found, remedy = repr(spec), f"; use MRopeSpec.for_model({model_type}, convention=...)"
    elif hasattr(spec, "model_type") or isinstance(spec, dict):
        remedy = "; use MRopeSpec.from_config(config, convention=...)"
    raise TypeError(f"spec must be an MRopeSpec, got {found}{remedy}")


def check_grid_shapes(image_grid_thw: Tensor | None, video_grid_thw: Tensor | None) -> None:
    """Check the types and shapes of grids."""
    for name, grids in (("image_grid_thw", image_grid_thw), ("video_grid_thw", video_grid_thw)):
        if grids is None:
            continue
        check_integral(name, grids)
        if grids.dim() != 2 or grids.shape[1] != 3:
            raise ValueError(
                f"{name} must have shape (num_{name.split('_')[0]}s, 3), got {tuple(grids.shape)}"
            )


def check_seconds_argument(
    seconds: Tensor | Sequence[float] | None, num_videos: int, spec: MRopeSpec
) -> None:
    """Check the type and the shape of the seconds of videos."""
    if seconds is None:
        return
    if "second_per_grid_ts" not in spec.arguments:
        raise ValueError(
            f"second_per_grid_ts must be None: {spec.model_type} does not space its frames in time"
        )
    check_seconds_type("second_per_grid_ts", seconds)
    check_one_per_video("second_per_grid_ts", seconds, num_videos)


def check_one_per_video(name: str, values: Tensor | Sequence[Any], num_videos: int) -> None:
    """Check that there is a value for each video."""
    shape = tuple(values.shape) if isinstance(values, Tensor) else (len(values),)
    if shape != (num_videos,):
        raise ValueError(
            f"{name} must have shape ({num_videos},), one for each row of video_grid_thw, "
            f"got {shape}"
        )


def check_seconds_type(name: str, seconds: object) -> None:
    """Check that seconds are a dense tensor, or a sequence, of numbers that fit a float."""
    if isinstance(seconds, Tensor):
        check_tensor(name, seconds)
        if seconds.dtype not in (*_FLOATING, *INTEGRAL[:-1]):
            raise TypeError(
                f"{name} must be of a floating-point or integer dtype, got {seconds.dtype}"
            )
    elif isinstance(seconds, Sequence) and not isinstance(seconds, str):
        for value in seconds:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must hold numbers, got {value!r}")
            if isinstance(value, int) and abs(value) > sys.float_info.max:
                raise ValueError(
                    f"{name} must hold numbers that fit a float, got a whole number of "
                    f"{value.bit_length()} bits"
                )
    else:
        raise TypeError(
            f"{name} must be a tensor or a sequence of floats, got {type(seconds).__name__}"
            + conversion(name, seconds)
        )


def check_index_range(input_ids: Tensor) -> None:
    """Check that the static form, whose indices have 32 bits, can number the tokens."""
    if input_ids.numel() >= 2**31:
        raise ValueError(
            f"input_ids must hold fewer than 2**31 tokens, got {input_ids.numel()}; "
            "the eager form takes more"
        )


def least_code(name: str, values: Tensor, allowed: int | None, kept: Tensor | None = None) -> int:
    """Return the least of `values`, at least one; synchronises.

    Unless `allowed` is None, check that they are among 0 .. `allowed` wherever `kept`.
    """
    if values.dtype == torch.bool:
        values = values.view(torch.uint8)
    low, high = map(int, values.aminmax())
    if allowed is None or 0 <= low <= high <= allowed:
        return low
    faults = (values < 0) | (values > allowed)
    if kept is not None:
        faults &= kept.to(faults.device)
    for at in faults.nonzero()[:1].tolist():
        value = int(values[tuple(at)])
        expected = " or ".join(map(str, range(allowed + 1)))
        many = value > allowed and name == "attention_mask" and len(at) == 2
        remedy = "; the numbers of several sequences are sequence_ids" if many else ""
        problem = f"token {at[-1]}: {name} must hold {expected}, got {value}{remedy}"
        raise RowError.of(at[0], f", {problem}") if len(at) == 2 else ValueError(problem)
    return low


def check_cu_seqlens(cu_seqlens: Tensor, num_tokens: int) -> None:
    """Check that the sequences cover the tokens, in order."""
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != num_tokens:
        raise ValueError(
            f"cu_seqlens must run from 0 to the number of tokens {num_tokens}, "
            f"got {bounds[0]} to {bounds[-1]}"
        )
    for at, (start, stop) in enumerate(pairwise(bounds)):
        if stop < start:
            raise ValueError(
                f"cu_seqlens must not decrease, got {start} then {stop} at sequence {at}"
            )


def check_tensor(name: str, value: object) -> None:
    """Check that an argument is a dense tensor; reads metadata only."""
    if not isinstance(value, Tensor):
        found = type(value).__name__ + conversion(name, value)
        raise TypeError(f"{name} must be a tensor, got {found}")
    if value.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {value.layout}")
    if value.is_quantized:
        raise TypeError(f"{name} must not be quantized, got {value.dtype}")


def conversion(name: str, value: object) -> str:
    """Return, for a message, what makes a tensor of a list or an array."""
    if isinstance(value, list | tuple):
        makes = "cat" if any(isinstance(each, Tensor) for each in value) else "tensor"
        return f"; torch.{makes}({name}) makes one"
    return f"; torch.as_tensor({name}) makes one" if hasattr(value, "__array__") else ""


def check_readable(name: str, value: object) -> None:
    """Check that an argument is a dense tensor whose values can be read."""
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    check_has_values(name, value)


def check_has_values(name: str, value: Tensor) -> None:
    """Check that the values of a tensor can be read."""
    if value.is_meta or isinstance(value, FakeTensor):
        kind = "a fake tensor" if isinstance(value, FakeTensor) else "on the meta device"
        raise ValueError(
            f"{name} must hold values, which are read here, got a tensor that has none: it is "
            f"{kind}"
        )


def check_have_values(inputs: Inputs) -> None:
    """Check that the values of every tensor can be read."""
    for name, value in zip(Inputs._fields, inputs, strict=True):
        if isinstance(value, Tensor):
            check_has_values(name, value)


def check_beside(name: str, value: Tensor, other: Tensor) -> None:
    """Check that the values of a tensor can be read if those of another can."""
    if not other.is_meta and not isinstance(other, FakeTensor):
        check_has_values(name, value)


def check_int(name: str, value: object, least: int | None = None, below: int = 2**63) -> None:
    """Check that an argument is an int, no bool, and within bounds."""
    if not isinstance(value, int | torch.SymInt) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if value >= below:
        power = below.bit_length() - 1
        raise ValueError(f"{name} must be less than 2**{power}, got {value}")


def check_choice(name: str, value: object, choices: Any) -> None:
    """Check that an argument is one of the texts of a `Literal`."""
    *known, last = get_args(choices)
    if not isinstance(value, str) or value not in (*known, last):
        listed = ", ".join(map(repr, known)) + f" or {last!r}"
        raise ValueError(f"{name} must be {listed}, got {value!r}")


def check_integral(name: str, value: Tensor) -> None:
    """Check that an argument is a tensor of integers."""
    check_tensor(name, value)
    if value.dtype not in INTEGRAL:
        raise TypeError(
            f"{name} must be of a signed integer dtype, uint8 or bool, got {value.dtype}"
        )
