"""The comparison of a function with the reference."""

from __future__ import annotations

from collections.abc import Callable

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
        AssertionError: naming the first row, token and axis that differ, or a dtype or shape.

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

    for name, want, got in zip(
        ("position_ids", "rope_deltas"), expected, function(**prompt.arguments()), strict=True
    ):
        found = difference(name, want, got)
        if found is not None:
            raise AssertionError(f"{found}\nfor {prompt!r}")


def difference(name: str, want: torch.Tensor, got: torch.Tensor) -> str | None:
    """Describe where an answer first differs; its first line says it all."""
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
