"""The running position at each item of an omni prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.search import search
from vecrope.families.rules import OmniRule
from vecrope.forms.select import fused_pipeline
from vecrope.own_rules.omni.items import OmniItems, Tokens


@dataclass(frozen=True)
class Bases:
    """The positions that the parts of each item count from, (I,) each.

    They are int64, or, where positions are fractional, float64 that hold float32 values.
    """

    mark: Tensor  # of the leading markers
    block: Tensor  # of the block
    end: Tensor  # of the trailing markers
    after: Tensor  # of the text behind


def whole_bases(tokens: Tokens, items: OmniItems, rule: OmniRule, span: Tensor) -> Bases:
    """Sum up how far each item moves the running position on.

    Args:
        tokens: the tokens.
        items: I items.
        rule: whether two markers share a position.
        span: (I,) positions from the block's first to that of its trailing markers.
    """
    step_in, step_out = items.lead, items.tail
    if rule.sound_markers == "shared":
        step_in, step_out = step_in.clamp(max=1), step_out.clamp(max=1)
    num_tokens = items.lead + items.visual + items.audio + items.tail
    gained = pad((step_in + span + step_out - num_tokens).cumsum(0), (1, 0))
    row_start = tokens.bounds[items.rows]
    first = search(items.starts, row_start, right=False)
    mark = items.starts - row_start + gained[:-1] - gained[first]
    block = mark + step_in
    end = block + span
    return Bases(mark, block, end, end + step_out)


def rounded_bases(
    tokens: Tokens, items: OmniItems, last_time: Tensor, visual_reach: Tensor
) -> Bases:
    """Follow the running position in float32, from item to item, rounding where upstream does.

    The markers after a video with sound follow the last piece of the two, which is what remains of
    one when the other is at its end.

    Args:
        tokens: the tokens.
        items: I items.
        last_time: (I,) float32 temporal offset of the last frame, -1 without frames.
        visual_reach: (I,) float32 largest offset of the frames on any axis, -1 without frames.
    """
    ends = items.starts + items.lead + items.visual + items.audio + items.tail
    row_start = tokens.bounds[items.rows]
    before = pad(ends[:-1], (1, 0))
    begins_row = before <= row_start
    text = items.starts - torch.where(begins_row, row_start, before)
    steps = torch.stack(((~begins_row).float(), text.float(), items.lead.float()))
    reach = torch.stack((last_time, visual_reach, (items.audio - 1).float()))
    return Bases(*chain(steps, reach).double().unbind(1))


@torch.library.custom_op(
    "vecrope::omni_chain", mutates_args=(), schema="(Tensor steps, Tensor reach) -> Tensor"
)
def chain(steps: Tensor, reach: Tensor) -> Tensor:
    """Return the positions of each item, one after the other.

    Every sum is rounded to float32, so that the order of the sums matters and no prefix sum gives
    the same. This is a sequence over items; one operator, so that a compiled graph neither depends
    on their number nor contracts the sums. On a CUDA device with Triton it is one program.

    Args:
        steps: (3, I) float32: 0 where a row begins and 1 elsewhere, tokens of text before the
            item, its leading markers.
        reach: (3, I) float32: offsets from the block's base of the last frame, of the largest
            visual position, and of the last audio token.

    Returns:
        (I, 4) float32: the columns of `Bases`.
    """
    if steps.is_cuda and fused_pipeline() is not None:
        return chain_in_one_program(steps, reach)
    position = steps.new_zeros(())
    columns: list[Tensor] = []
    for (goes_on, text, markers), offsets in zip(
        (column.unbind() for column in steps.unbind(1)), reach.unbind(1), strict=True
    ):
        mark = position * goes_on + text
        block = mark + markers
        last_frame, visual, audio = (block + offsets).unbind()
        end = torch.where(last_frame > audio, visual, audio) + 1
        position = end + 1 + (markers - 1)
        columns += (mark, block, end, position)
    return torch.stack(columns).view(-1, 4) if columns else steps.new_empty((0, 4))


def chain_in_one_program(steps: Tensor, reach: Tensor) -> Tensor:
    """Return what `chain` does, in one launch of Triton."""
    from vecrope.own_rules.omni.chain_kernel import follow

    num_items = steps.shape[1]
    positions = steps.new_empty((num_items, 4))
    follow[(1,)](steps.contiguous(), reach.contiguous(), positions, num_items)
    return positions


@chain.register_fake
def _(steps: Tensor, reach: Tensor) -> Tensor:  # noqa: ARG001
    return steps.new_empty((steps.shape[1], 4))
