"""A method of transformers against the one that is to take its place, prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from vecrope.integrations.transformers.calls import Call
from vecrope.spec import MRopeSpec
from vecrope.testing.stand_in import StandIn


def first_difference(
    original: Callable[..., Any],
    cls: type,
    config: Any,
    call: Call,
    spec: MRopeSpec,
    prompts: Iterable[dict[str, Any]],
) -> str | None:
    """Return the first prompt on which two methods differ, in words, or None.

    Both run on the CPU with a stand-in for the model, which has its configuration and the methods
    of its class: no parameter is read, nothing is written on the model, and no global state is
    other than before. What they write on the stand-in has to be equal, too.

    Args:
        original: the method of transformers, as a function.
        cls: the class of the model.
        config: its configuration.
        call: what is to take the method's place.
        spec: the rules that it is called with.
        prompts: the arguments of both; those that the method does not take are left out.
    """
    names = _names(original)
    with _quiet():
        for prompt in prompts:
            arguments = {name: value for name, value in prompt.items() if name in names}
            # The omni families read the merge size off the model.
            models = [
                StandIn(cls, config, spatial_merge_size=spec.spatial_merge_size) for _ in range(2)
            ]
            try:
                theirs = original(models[0], **_copies(arguments))
            except Exception as error:
                return f"transformers raises {error!r} on {_described(arguments)}"
            try:
                ours = call(models[1], spec, True, **_copies(arguments))
            except ValueError as error:
                return f"vecrope refuses {_described(arguments)}: {error}"
            expected, got = (
                {"position_ids": answer[0], "rope_deltas": answer[1], **vars(model)}
                for answer, model in zip((theirs, ours), models, strict=True)
            )
            for name in dict.fromkeys((*expected, *got)):
                if not _equal(expected.get(name), got.get(name)):
                    return (
                        f"{name} differ: transformers {_value(expected.get(name))}, vecrope "
                        f"{_value(got.get(name))}, for {_described(arguments)}"
                    )
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Run on the CPU, without gradients, and put the random state back."""
    state = torch.get_rng_state()
    try:
        with torch.device("cpu"), torch.no_grad():
            yield
    finally:
        torch.set_rng_state(state)


def _names(original: Callable[..., Any]) -> set[str]:
    parameters = signature(original).parameters.values()
    return {each.name for each in parameters if each.kind is not Parameter.VAR_KEYWORD}


def _copies(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def _equal(expected: object, got: object) -> bool:
    if not isinstance(expected, Tensor) or not isinstance(got, Tensor):
        return expected is got or (type(expected), expected) == (type(got), got)
    return expected.dtype == got.dtype and torch.equal(expected, got)


def _described(arguments: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}={_value(value)}" for name, value in arguments.items() if value is not None
    )


def _value(value: object) -> str:
    return str(value.tolist() if isinstance(value, Tensor) else value)
