"""The omni families: images, videos and audio, and videos with their sound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.common import OPERANDS, from_operands, operands_of, zero_answer
from vecrope.own_rules.omni.media import Dtypes
from vecrope.own_rules.omni.static import static_rope_index
from vecrope.spec import MRopeSpec


def omni_rope_index(inputs: Inputs, spec: MRopeSpec) -> tuple[Tensor, Tensor]:
    """Return the M-RoPE position ids and deltas of a batch of an omni family.

    Text and audio count up on all three axes, images and videos read row and column off their
    grids, frames are spaced in time, and the next token follows the largest position so far. The
    tokens of a video with its sound take turns, in an order that follows from the times alone;
    the markers behind it follow the last piece of video or sound.

    Where positions are float32 (qwen3_omni_moe) each sum is rounded, so that the items of the batch
    are gone through one after the other; the tokens are not.

    Args:
        inputs: at least one token, on a device with Triton; types and shapes have been checked.
        spec: with an `OmniRule`.

    Returns:
        `position_ids` (3, B, T) or (3, N), of `spec.position_dtype`, or of `text_dtype` in a batch
        without any grid; `rope_deltas` (B, 1) float32 where positions are, else int64.

    The rules are those of transformers' `get_rope_index` of both families, of SGLang's
    `get_rope_index_qwen3_omni` and of vLLM's `get_mrope_input_positions` of both.
    """
    answer: tuple[Tensor, Tensor] = omni_operator(*operands_of(inputs, spec))
    return answer


@torch.library.custom_op("vecrope::omni_rope_index", mutates_args=(), schema=OPERANDS)
def omni_operator(*given: Any) -> tuple[Tensor, Tensor]:
    """Number a batch as one node of a graph, in which no compiler fuses roundings."""
    inputs, spec = from_operands(given)
    assert isinstance(spec.own_rule, OmniRule)
    return static_rope_index(inputs, spec, spec.own_rule)


@omni_operator.register_fake
def unnumbered(*given: Any) -> tuple[Tensor, Tensor]:
    """Return positions and deltas of the shapes and dtypes of an answer."""
    inputs, spec = from_operands(given)
    assert isinstance(spec.own_rule, OmniRule)
    dtypes = Dtypes.of(inputs, spec, spec.own_rule)
    return zero_answer(inputs, dtypes.positions, dtypes.deltas)
