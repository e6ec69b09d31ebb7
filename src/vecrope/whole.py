"""One prompt whose runs of placeholders are whole frames: its segment table, and its positions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.blocks import Blocks
from vecrope.positions import fill_runs
from vecrope.regular import OneSize, Sizes, write_frames

# Placeholders are addressed one by one where they are less than this part of a prompt, or, if all
# frames have one size, not more than so many: fewer operators then count for more than passes over
# all tokens.
_FEW = 8
_ONE_BY_ONE = 16384


class WholeFrames(NamedTuple):
    """A prompt in which every run of placeholders is a frame or a block, and none at its end."""

    starts: Tensor  # (R,) int64, ascending index of each run's first token
    ends: Tensor  # (R,) int64, the first token behind
    num_placeholders: int
    size: OneSize | Sizes | Blocks
    order: Tensor | None  # (R,) which run each of `size` is the size of; None: they are in order


def table_of_frames(starts: Tensor, ends: Tensor, size: OneSize, dtype: torch.dtype) -> Tensor:
    """Return the segments of text and frames in turn, text, maybe empty, at both ends.

    Args:
        starts: (R,) int64, ascending index of each frame's first token.
        ends: (R,) int64, the first token behind.
        size: of the frames.
        dtype: of the table.

    Returns:
        (6, 2 R + 1), the table of `vecrope.positions.Layout`; its first row is that of the starts.
    """
    table = starts.new_ones((6, 2 * starts.shape[0] + 1), dtype=dtype)
    table[2:, 1::2] = table.new_tensor([[size.width], [size.height], [1], [size.span]])
    segments = table[0]
    segments[:1].zero_()
    segments[1:].view(-1, 2).copy_(torch.stack((starts, ends), 1))
    num_before = torch.arange(table.shape[1], dtype=dtype, device=table.device) >> 1
    torch.add(segments, num_before, alpha=size.span - size.area, out=table[1])
    return table


def positions_of_table(
    starts: Tensor, size: tuple[int, int], num_tokens: int, dtype: torch.dtype
) -> Tensor:
    """Return the (3, N) positions of a table that `table_of_frames` made, by its starts.

    Args:
        starts: (2 R + 1,) the starts of its segments.
        size: height and width of the frames, in tokens.
        num_tokens: N.
        dtype: of the positions.
    """
    height, width = size
    frame = OneSize(height, width, max(size))
    starts, ends = starts[1:].long().view(-1, 2).unbind(1)
    whole = WholeFrames(starts, ends, starts.shape[0] * frame.area, frame, None)
    return positions_of_frames(num_tokens, whole, dtype)


def positions_of_frames(num_tokens: int, whole: WholeFrames, dtype: torch.dtype) -> Tensor:
    """Return the (3, N) positions of a prompt of N tokens."""
    starts, ends, num_placeholders, size, order = whole
    if not num_placeholders:
        text = torch.arange(num_tokens, dtype=dtype, device=starts.device)
        return text.expand(3, -1).contiguous()
    positions = starts.new_empty((3, num_tokens), dtype=dtype)
    few = _FEW * num_placeholders < num_tokens
    if isinstance(size, OneSize) and (few or num_placeholders <= _ONE_BY_ONE):
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
    """Write positions (3, N) as those of text, on which all axes are alike, and add the frames.

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
