"""Makes calls in a process of its own and says which operator starts threads that it must not.

Run as `python -m tests.threads.watch`. Torch starts its thread team once in a process, so nothing
that runs before may do it.
"""

import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.threads.calls import larger_calls, small_calls
from vecrope.core.search import PARALLEL_FROM

# What starts the team whatever the size, or nearly: how many elements each has to work on.
ELEMENTS = {
    "repeat_interleave": lambda _, result: result.numel(),
    "searchsorted": lambda args, result: args[0].numel() * result.numel(),
    "bucketize": lambda args, result: args[1].numel() * result.numel(),
    **dict.fromkeys(("max.dim", "min.dim"), lambda args, _: args[0].numel()),
    **dict.fromkeys(("tril", "triu", "trunc", "sqrt", "exp"), lambda _, result: result.numel()),
}


def threads():
    return len([*Path("/proc/self/task").iterdir()])


class Watch(TorchDispatchMode):
    """Raises for an operator that starts a thread, or one that does so whatever the size.

    Args:
        strict: whether any thread is too many, as for small calls.
    """

    def __init__(self, strict):
        super().__init__()
        self.strict = strict
        self.operators = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        before = threads()
        result = operator(*args, **(kwargs or {}))
        self.operators += 1
        name = operator.__name__
        shapes = [tuple(value.shape) for value in args if isinstance(value, torch.Tensor)]
        if self.strict and threads() > before:
            raise AssertionError(f"{operator} of {shapes} starts threads")
        count = ELEMENTS.get(name) or ELEMENTS.get(name.partition(".")[0])
        if count is not None and count(args, result) < PARALLEL_FROM:
            raise AssertionError(f"{operator} of {shapes} is for {PARALLEL_FROM} elements and more")
        return result


def watch(calls, strict):
    operators = number = 0
    for name, function in calls:
        before = threads()
        torch.set_num_threads(4)
        watching = Watch(strict)
        try:
            with watching:
                function()
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        finally:
            torch.set_num_threads(1)
        assert not strict or threads() == before, name
        operators += watching.operators
        number += 1
    return number, operators


def starts_threads(function):
    """Say whether a function makes the process's threads more; it can only once."""
    before = threads()
    torch.set_num_threads(4)
    function()
    torch.set_num_threads(1)
    return threads() > before


def main():
    torch.set_num_threads(1)
    numbers = watch(small_calls(), strict=True)
    # The team was not there before, so that it would have been seen.
    assert starts_threads(lambda: torch.repeat_interleave(torch.tensor([1, 1])))
    numbers += watch(larger_calls(), strict=False)
    sys.stdout.write(" ".join(map(str, numbers)))


if __name__ == "__main__":
    main()
