"""The comparison of a function with the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vecrope.testing.prompt import Prompt
from vecrope.testing.reference import Refusal


def assert_matches(
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    prompt: Prompt,
    *,
    allow_left_over: bool = False,
) -> None:
    """Assert that a function answers a prompt exactly as the reference does.

    Where the reference refuses the prompt, the function has to raise, whatever it raises. Where the
    reference answers, an exception of the function is passed on as it is.

    Args:
        function: called with `prompt.arguments()` as keywords; returns `position_ids`, (3, B, T) in
            the dtype of `input_ids`, and `rope_deltas`, (B, 1) int64. Wrap a function that takes
            fewer or other arguments in a lambda.
        prompt: what to call it with.
        allow_left_over: whether the function ignores grids that no token asks for, as the upstreams
            do, and is to be held to its answer. Otherwise it has to raise.

    Raises:
        AssertionError: naming the first row, token and axis that differ, or a dtype or shape, or
            what is returned in place of two tensors.

    Example:
        >>> import torch, vecrope
        >>> spec = vecrope.MRopeSpec.for_model("glm4v", convention="sglang")
        >>> prompt = Prompt.from_symbols(spec, ["tt", "tI"], image_grid_thw=[[1, 4, 2]])
        >>> def text_only(input_ids, **unused):
        ...     batch, seq_len = input_ids.shape
        ...     position_ids = torch.arange(seq_len).expand(3, batch, seq_len)
        ...     return position_ids, torch.zeros(batch, 1, dtype=torch.int64)
        >>> assert_matches(text_only, prompt)
        Traceback (most recent call last):
            ...
        AssertionError: the reference refuses this prompt (row 1 ends a run inside
            image_grid_thw[0] = (1, 4, 2): 1 of 2 tokens) and the function does not raise
            for Prompt.from_symbols(MRopeSpec.for_model('glm4v', convention='sglang'),
            ['tt', 'tI'], image_grid_thw=[[1, 4, 2]])
    """
    __tracebackhide__ = True
    try:
        expected = prompt.expected(allow_left_over=allow_left_over)
    except Refusal as refusal:
        try:
            function(**prompt.arguments())
        except Exception:
            return
        raise AssertionError(
            f"the reference refuses this prompt ({refusal}) and the function does not raise\n"
            f"for {prompt!r}"
        ) from None

    names = ("position_ids", "rope_deltas")
    answer = function(**prompt.arguments())
    if not isinstance(answer, tuple | list) or len(answer) != len(names):
        is_many = isinstance(answer, tuple | list)
        found = f"{len(answer)} values" if is_many else type(answer).__name__
        raise AssertionError(f"the function must return {' and '.join(names)}, got {found}")
    for name, want, got in zip(names, expected, answer, strict=True):
        what = difference(name, want, got)
        if what is not None:
            raise AssertionError(f"{what}\nfor {prompt!r}")


def difference(name: str, want: torch.Tensor, got: Any) -> str | None:
    """Describe where an answer first differs; its first line says it all."""
    if not isinstance(got, torch.Tensor):
        return f"{name} must be a tensor, got {type(got).__name__}"
    if got.dtype != want.dtype:
        return f"{name} must have dtype {want.dtype}, got {got.dtype}"
    if got.shape != want.shape:
        return f"{name} must have shape {tuple(want.shape)}, got {tuple(got.shape)}"
    if torch.equal(got, want):
        return None
    if name == "rope_deltas":
        row = int((want != got).any(dim=1).nonzero()[0])
        return (
            f"rope_deltas differ in row {row}: expected {want[row].item()}, got {got[row].item()}"
        )
    row, token, axis = (want != got).permute(1, 2, 0).nonzero()[0].tolist()
    return (
        f"position_ids differ in row {row}, first at token {token}, axis {'THW'[axis]}: "
        f"expected {want[axis, row, token].item()}, got {got[axis, row, token].item()}\n"
        f"  expected {want[axis, row].tolist()}\n"
        f"  got      {got[axis, row].tolist()}"
    )
