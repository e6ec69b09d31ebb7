"""The layout that nearly every prompt has, expanded on a CPU with one addition a token and axis.

A layout is regular where every run of placeholders is exactly one frame, an image's or a video's,
and no row ends in one. Then no base position is needed: within a grid line, a text run or a masked
run each axis has a constant slope of 0 or 1, and what happens where a line starts and behind a
frame depends on that frame's grid alone. The positions are the cumulative sum of these increments,
row by row. Whatever is not regular (frames that touch, masked tokens inside an image, grids that do
not fit) is left to the segment table.

A short prompt costs what its operators cost to dispatch, so this file is sparing with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope.frames import find_frame_runs
from vecrope.spec import MRopeSpec


def regular_rope_index(
    input_ids: Tensor,
    spec: MRopeSpec,
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    kept: Tensor | None,
    token_types: Tensor | None,
) -> tuple[Tensor, Tensor] | None:
    """Return the positions and deltas of a regular layout, or None if it is not one.

    An answer means that the grids are well-formed and fit: they need no further check.

    Args:
        input_ids: (B, T), on a CPU, at least one token.
        spec: the family's rules.
        image_grid_thw: (num_images, 3), or None.
        video_grid_thw: (num_videos, 3), or None.
        kept: (B, T) bool, True = token; None: every one is.
        token_types: (B, T), to be read instead of the ids.

    Returns:
        (3, B, T) in the dtype of `input_ids`, and (B, 1) int64.
    """
    num_rows, seq_len = input_ids.shape
    patches = _frame_patches(num_rows * seq_len, spec, image_grid_thw, video_grid_thw)
    positions = input_ids.new_empty((3, num_rows, seq_len))
    runs = find_frame_runs(input_ids, spec, kept, token_types, scratch=positions[0])
    if patches is None or runs is None or patches.shape[0] != runs.starts.shape[0]:
        return None
    starts, lengths = runs.starts, runs.lengths
    num_images = 0 if image_grid_thw is None else image_grid_thw.shape[0]
    num_videos = 0 if runs.is_video is None else int(runs.is_video.sum())
    if num_images + num_videos != starts.shape[0]:
        return None
    if runs.is_video is not None and num_images:
        # Into the order of the grids: all images, then all videos.
        order = runs.is_video.argsort(stable=True)
        starts, lengths = starts.index_select(0, order), lengths.index_select(0, order)
    sizes = patches // spec.spatial_merge_size
    _, height, width = sizes.unbind(1)
    if not torch.equal(height * width, lengths):
        return None
    if not torch.equal(sizes * spec.spatial_merge_size, patches):
        return None

    # Within a frame time and height stand still from token to token, width does not.
    positions[:2].copy_(runs.steps if kept is None else runs.steps & kept)
    tokens = positions.view(3, -1)
    ends = starts + lengths
    # Behind a frame: from the position of its last token to the running position.
    behind = (torch.maximum(height, width) - sizes.t()).to(tokens.dtype)
    first = 0 if kept is None else kept[:, 0].to(tokens.dtype) - 1
    axes = tokens
    aside = last = None
    if runs.masked is not None:
        # In a run of masked tokens all three axes stand at the running position.
        axes = tokens[1:]
        tokens[0].index_add_(0, ends, behind[0])
        positions[0, :, 0] = first
        running = torch.cumsum(positions[0], 1, out=positions[2])
        last = running[:, -1:].to(torch.int64, copy=True)
        aside = spec.padding_value - running.view(-1).index_select(0, runs.masked[0])

    positions[2] = 1 if kept is None else kept
    if starts.shape[0]:
        line_starts, line_widths = _later_lines(starts, height, width)
        tokens[1].index_fill_(0, line_starts, 1)
        tokens[2].index_copy_(0, line_starts, (1 - line_widths).to(tokens.dtype))
        axes.index_add_(1, ends, behind[-axes.shape[0] :])
    positions[:, :, 0] = first
    if runs.masked is not None and aside is not None:
        _step_aside(tokens, *runs.masked, aside, seq_len)
    positions.cumsum_(2)

    # No row ends in a frame, so its last token, masked or not, is at its largest position.
    if last is None:
        last = positions[0, :, -1:].to(torch.int64)
    if kept is None or spec.delta_length == "padded":
        return positions, last - (seq_len - 1)
    return positions, last + 1 - kept.sum(1, keepdim=True)


def _frame_patches(
    num_tokens: int, spec: MRopeSpec, image_grid_thw: Tensor | None, video_grid_thw: Tensor | None
) -> Tensor | None:
    """Return the (F, 3) sizes of all frames, images first, in patches; a frame is one token deep.

    None if a grid is not positive or larger than the batch, or if an image has a temporal extent.
    """
    images, videos = (
        None if grids is None or not grids.shape[0] else grids
        for grids in (image_grid_thw, video_grid_thw)
    )
    if images is None and videos is None:
        return torch.empty((0, 3), dtype=torch.int64, device="cpu")
    grids = torch.cat([grids for grids in (images, videos) if grids is not None]).to(torch.int64)
    least, most = grids.aminmax()
    if int(least) < 1 or int(most) > num_tokens * spec.spatial_merge_size:
        return None
    if images is not None and int(images[:, 0].amax()) > 1:
        return None
    if videos is not None:
        ends = grids[:, 0].cumsum(0)
        if int(ends[-1]) > num_tokens:
            return None
        grids = grids.index_select(0, _expand(ends))
    grids[:, 0].fill_(spec.spatial_merge_size)
    return grids


def _later_lines(starts: Tensor, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first token and the width of each line of each frame, the first lines left out."""
    ends = (height - 1).cumsum(0)
    frame = _expand(ends)
    widths = width.index_select(0, frame)
    # Line k of all those, counted in its own frame, is k less the lines of the frames before.
    origin = torch.addcmul(starts, height - ends, width)
    number = torch.arange(frame.shape[0], device=frame.device)
    return torch.addcmul(origin.index_select(0, frame), number, widths), widths


def _step_aside(tokens: Tensor, starts: Tensor, ends: Tensor, aside: Tensor, seq_len: int) -> None:
    """Move all axes by `aside` (M,) where masked runs start, and back where they end.

    To fill masked tokens one by one takes longer.
    """
    # Behind a run that ends its row, at the next row's first token, there is nothing to undo.
    back = aside.masked_fill(ends % seq_len == 0, 0)
    tokens.index_add_(1, starts, aside.expand(3, -1))
    tokens.index_add_(1, ends % tokens.shape[1], back.expand(3, -1), alpha=-1)


def _expand(ends: Tensor) -> Tensor:
    """Return for each of `ends[-1]` places how many of the ascending `ends` are at or before it.

    This is `repeat_interleave`, which wakes every thread however short its input is.
    """
    total = int(ends[-1])
    marks = ends.new_zeros(total + 1).index_add_(0, ends, torch.ones_like(ends))
    return marks[:total].cumsum(0)
