"""The positions of a prompt of which an engine's host knows where each group stands."""

from __future__ import annotations

from collections.abc import Sequence
from operator import add, mul, sub

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.faults import MAX_TOKENS
from vecrope.forms.eager.groups import make_parts
from vecrope.forms.eager.items import Items, TimeScale, steps_of_frames
from vecrope.forms.eager.write import write_positions

# One grid of positions (an image, a separate frame, or a video that is one block): the index of its
# first token, frames, rows and columns in tokens, and positions from one frame to the next; 1 if
# left out.
Group = tuple[int, int, int, int] | tuple[int, int, int, int, float]


def positions_of_groups(
    num_tokens: int, groups: Sequence[Group], *, dtype: torch.dtype = torch.int64
) -> tuple[Tensor, int]:
    """Return the M-RoPE positions of a prompt of text and of groups.

    Everything is plain numbers on the host: no token is looked at, and no spec is needed. The
    running position moves past the largest position of a group, as in SGLang and vLLM.

    Args:
        num_tokens: tokens of the prompt, N, at least one.
        groups: tuples of offset, frames, height, width and, for what is spaced in time, positions
            from one frame to the next, whose multiples are rounded down. Ascending, and none
            reaches into the next.
        dtype: of the positions.

    Returns:
        (3, N) in `dtype` on the CPU, and the row's largest position plus one, less N.

    Raises:
        TypeError: for arguments of wrong types.
        ValueError: for groups that do not fit the prompt, or no tokens.

    Example:
        >>> import vecrope
        >>> position_ids, delta = vecrope.positions_of_groups(6, [(1, 2, 1, 2, 1.5)])
        >>> position_ids
        tensor([[0, 1, 1, 2, 2, 3],
                [0, 1, 1, 1, 1, 3],
                [0, 1, 2, 1, 2, 3]])
        >>> delta
        -2
    """
    checks.check_int("num_tokens", num_tokens, below=2**31)
    if dtype is not torch.int64 and dtype is not torch.int32:
        raise TypeError(f"dtype must be torch.int64 or torch.int32, got {dtype!r}")
    if not isinstance(groups, Sequence):
        raise TypeError(f"groups must be a sequence of tuples, got {type(groups).__name__}")
    if num_tokens < 1:
        raise ValueError(f"a prompt must have one token at least, got {num_tokens}")
    if not groups:
        return torch.arange(num_tokens, dtype=dtype, device="cpu").repeat(3, 1), 0
    try:
        offset, depth, height, width = (
            [*map(int, numbers)] for numbers in zip(*(group[:4] for group in groups), strict=True)
        )
        # One frame has no next one to be spaced from.
        scales = [float(group[4]) if len(group) == 5 and group[1] > 1 else 1.0 for group in groups]
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            "groups must hold tuples of an offset, frames, a height, a width and maybe positions "
            f"from one frame to the next, got {groups!r}"
        ) from error
    area = [*map(mul, map(mul, depth, height), width)]
    ends, least = [*map(add, offset, area)], 0
    columns = zip(offset, ends, depth, height, width, scales, strict=True)
    for at, (start, stop, frames, tall, wide, step) in enumerate(columns):
        if frames < 1 or tall < 1 or wide < 1:
            asked, found = "have at least one frame, row and column", f"{(frames, tall, wide)}"
        elif not least <= start < stop <= num_tokens:
            asked = f"lie between tokens {least} and {num_tokens}"
            found = f"tokens {start} to {stop}"
        elif not 0 <= step * frames < MAX_TOKENS:
            asked = "have a step in time of at least 0 that keeps its positions below 2**30"
            found = f"{step} for {frames} frames"
        else:
            least = stop
            continue
        raise ValueError(f"group {at} must {asked}, got {found}")
    extent = depth
    between: Sequence[Sequence[int]] = [()] * len(depth)
    if any(scale != 1.0 for scale in scales):
        in_doubles = TimeScale(torch.float64, scales, [1.0] * len(scales))
        extent, between = steps_of_frames(depth, in_doubles)
    advance = [*map(max, height, width, extent)]
    ones = [1] * len(groups)
    items = Items(len(groups), ones, depth, height, width, area, advance, extent, between, None)
    parts = make_parts(items, offset, ends, range(len(groups)), [0] * len(groups))
    return write_positions(parts, [0, num_tokens], dtype), sum(map(sub, advance, area))
