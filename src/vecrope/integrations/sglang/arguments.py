"""Arguments as SGLang reads them: grids that no token asks for, odd sides, seconds of any kind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from vecrope.integrations.arguments import answer, as_inputs, check_rows
from vecrope.spec import MRopeSpec

Grids = Sequence[Sequence[int]] | Tensor | None


def remembered(make: Callable[..., MRopeSpec]) -> Callable[..., MRopeSpec]:
    """Return a function that makes the spec of the same plain values once, and not every request.

    Its arguments are given by position.
    """
    # Typed: 2 and 2.0 positions a second are rounded otherwise.
    cached = functools.lru_cache(maxsize=64, typed=True)(make)

    def spec_of(*values: Any) -> MRopeSpec:
        plain = all(isinstance(value, Hashable) for value in values)
        return cached(*values) if plain else make(*values)

    return spec_of


def rope_index_of_used(
    input_ids: Tensor,
    spec: MRopeSpec,
    image_grid_thw: Grids,
    video_grid_thw: Grids,
    seconds: Any = None,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """Return the answer to arguments of which the grids may be nested lists; see `answer`."""
    images = _grid_tensor("image_grid_thw", image_grid_thw)
    videos = _grid_tensor("video_grid_thw", video_grid_thw)
    return answer(as_inputs(input_ids, images, videos, seconds, **others), spec)


def text_rope_index(input_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what all of SGLang's functions but the one for GLM-4V answer without grids.

    Returns:
        (3, 1, T) and (1, 1) int64 whatever the number of rows: 0 to T - 1, and 0.

    Raises:
        TypeError: if `input_ids` is no tensor.
        ValueError: if it is not of shape (B, T).
    """
    ids = check_rows("input_ids", input_ids)
    seq_len = ids.shape[1]
    positions = torch.arange(seq_len, device=ids.device)
    return positions.expand(3, 1, seq_len), positions.new_zeros((1, 1))


def _grid_tensor(name: str, grids: Grids) -> Tensor | None:
    """Return grids, which may be nested lists, as a tensor."""
    if grids is None:
        return None
    try:
        tensor = torch.as_tensor(grids)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be a tensor of shape (n, 3) or nested lists, got {grids!r}"
        ) from error
    return tensor if tensor.numel() else torch.empty((0, 3), dtype=torch.int64)
