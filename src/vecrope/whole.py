"""One prompt whose runs of placeholders are whole frames: its segment table, and its positions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.blocks import Blocks
from vecrope.positions import fill_runs
from vecrope.regular import OneSize, Sizes, write_frames

# A frame's tokens are written one by one where they are less than this part of a prompt's.
_FEW = 8


class WholeFrames(NamedTuple):
    """A prompt in which every run of placeholders is a frame or a block, and none at its end."""

    starts: Tensor  # (R,) int64, ascending index of each run's first token
    ends: Tensor  # (R,) int64, the first token behind
    num_placeholders: int
    size: OneSize | Sizes | Blocks
    order: Tensor | None  # (R,) which run each of `size` is the size of; None: they are in order


def table_of_frames(whole: WholeFrames, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the segments of text and frames in turn, text, maybe empty, at both ends.

    Args:
        whole: the frames, none of which is a block.
        dtype: of the table.

    Returns:
        (2 R + 1,) and (6, 2 R + 1), as `vecrope.positions.Layout` has them, and (1,) how much
        further the positions behind the last frame are than the tokens' indices.
    """
    starts, ends, _, size, order = whole
    assert not isinstance(size, Blocks)
    segments = pad(torch.stack((starts, ends), 1).view(-1), (1, 0)).to(dtype)
    num_before = torch.arange(segments.shape[0], dtype=dtype, device=segments.device) >> 1
    table = segments.new_ones((6, segments.shape[0]))
    if isinstance(size, OneSize):
        table[2:, 1::2] = table.new_tensor([[size.width], [size.height], [1], [size.span]])
        moved = num_before * (size.span - size.area)
    else:
        height, width, span = size[:3]
        if order is not None:
            by_run = order.argsort()
            height, width, span = height[by_run], width[by_run], span[by_run]
        table[2:, 1::2] = torch.cat((width, height, torch.ones_like(width), span), 1).t()
        moved = pad((span - height * width).view(-1).cumsum(0), (1, 0)).to(dtype)[num_before]
    table[0] = segments
    table[1] = segments + moved
    return segments, table, moved[-1:]


def positions_of_table(
    starts: Tensor, table: Tensor, num_tokens: int, dtype: torch.dtype
) -> Tensor:
    """Return the (3, N) positions of a table that `table_of_frames` made; reads values."""
    starts, ends = starts[1:].long().view(-1, 2).unbind(1)
    width, height, _, span = table[2:, 1::2].unbind()
    size: OneSize | Sizes = OneSize(1, 1, 1)
    if starts.shape[0]:
        least, most = (extreme.tolist() for extreme in torch.aminmax(table[2:4, 1::2], dim=1))
        if least == most:
            size = OneSize(most[1], most[0], max(most))
        else:
            sizes = torch.stack((height, width, span)).long().unsqueeze(2)
            height, width, span = sizes.unbind()
            size = Sizes(height, width, span, most[1])
    whole = WholeFrames(starts, ends, int((ends - starts).sum()), size, None)
    return positions_of_frames(num_tokens, whole, dtype)


def positions_of_frames(num_tokens: int, whole: WholeFrames, dtype: torch.dtype) -> Tensor:
    """Return the (3, N) positions of a prompt of N tokens."""
    starts, ends, num_placeholders, size, order = whole
    if not num_placeholders:
        text = torch.arange(num_tokens, dtype=dtype, device=starts.device)
        return text.expand(3, -1).contiguous()
    positions = starts.new_empty((3, num_tokens), dtype=dtype)
    few = _FEW * num_placeholders < num_tokens
    if few and isinstance(size, OneSize):
        write_few_frames(positions, starts, ends, size)
        return positions
    positions[2].fill_(1)
    if few:
        positions[:2].fill_(1)
        fill_runs(positions[:2], starts, ends - starts, num_placeholders, 0)
    else:
        edges = pad(torch.stack((starts, ends), 1).view(-1), (1, 0))
        steps = positions.new_ones(edges.shape[0])
        steps[1::2] = 0
        runs = pad(edges, (0, 1), value=num_tokens).diff()
        positions[:2].copy_(steps.repeat_interleave(runs, output_size=num_tokens))
    if order is not None:
        starts, ends = starts[order], ends[order]
    write_frames(positions, starts.unsqueeze(1), ends.unsqueeze(1), size)
    positions[:, 0].zero_()
    return positions.cumsum_(1)


def write_few_frames(positions: Tensor, starts: Tensor, ends: Tensor, size: OneSize) -> None:
    """Write positions (3, N) where nearly all tokens are text, on which all axes are alike.

    Args:
        positions: written, whatever is in it.
        starts: (R,) int64, index of each frame's first token.
        ends: (R,) int64, the first token behind, which is in the prompt.
        size: of the frames.
    """
    frames = starts.unsqueeze(1) + torch.arange(size.area, device=starts.device)
    frames = frames.view(-1)
    time = positions[0]
    time.fill_(1)
    time.index_fill_(0, frames, 0)
    time.index_fill_(0, starts, 1)
    time.index_add_(0, ends, torch.full_like(ends, size.span - 1, dtype=time.dtype))
    time[:1].zero_()
    time.cumsum_(0)
    positions[1:].copy_(time)
    cells = positions.new_empty((2, starts.shape[0], size.height, size.width))
    cells[0] = torch.arange(size.height, device=starts.device).unsqueeze(1)
    cells[1] = torch.arange(size.width, device=starts.device)
    positions[1:].index_add_(1, frames, cells.view(2, -1))
