"""The pictures: which tokens are theirs, how their slices are tiled, and where each canvas lies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.modality import compact
from vecrope.core.search import search
from vecrope.families.rules import MiniCPMV47
from vecrope.own_rules.minicpmv4_7.crops import MAX_SIDE, Crops, Tokens, append, next_index


class Pictures(NamedTuple):
    """C pictures in the order of the prompt, a thumbnail and its slices each.

    A row of the table that no picture takes starts and ends at N. Sizes are in tokens.
    """

    starts: Tensor  # (C,) the token before the thumbnail
    ends: Tensor  # (C,) past the markers after the last crop; the next picture may start earlier
    thumbnails: Tensor  # (C,) the crop
    slices: Tensor  # (C,) how many
    columns: Tensor  # (C,) slices in a line, at least 1
    slice_height: Tensor  # (C,) of the first slice, by which all are placed
    slice_width: Tensor  # (C,)
    height: Tensor  # (C,) of the canvas: of all lines, or of the thumbnail where there are none
    width: Tensor  # (C,)


class Course(NamedTuple):
    """The running position, on its way through texts and canvases."""

    pictures: Tensor  # (N,) the picture that each token belongs to, where it does
    in_picture: Tensor  # (N,) bool
    positions: Tensor  # (N,) of text
    origins: Tensor  # (C,) of each canvas


def arrange_pictures(tokens: Tokens, crops: Crops, rule: MiniCPMV47) -> Pictures:
    """Tabulate the pictures."""
    capacity = crops.starts.shape[0]
    thumbnails, _ = compact(~crops.is_slice, capacity, torch.int64)
    following = append(thumbnails[1:], capacity)
    slices = (following - thumbnails - 1).clamp(min=0)
    thumbnails = thumbnails.clamp(max=capacity - 1)

    # The first slice with more than its two markers after it ends a line, and so all lines.
    number, gaps = slice_numbers(crops, thumbnails), gaps_to_next(crops)
    ends_line = torch.where(gaps > 2, number + 1, capacity)
    columns = slices.scatter_reduce(0, crops.pictures, ends_line, "amin").clamp(min=1)
    lines = slices // columns
    # Lines of different lengths are taken for one.
    uneven = lines * columns != slices
    lines, columns = torch.where(uneven, 1, lines), torch.where(uneven, slices, columns)

    sliced = slices > 0
    first = torch.where(sliced, thumbnails + 1, thumbnails)
    slice_height, slice_width = crops.height[first], crops.width[first]
    height = slice_height * torch.where(sliced, lines, 1)
    width = slice_width * columns

    starts = (crops.starts[thumbnails] - 1).clamp(min=0)
    starts = torch.where(crops.starts[thumbnails] < tokens.number, starts, tokens.number)
    last_ends = crops.ends[thumbnails + slices]
    closing = tokens.is_any(*_closing(rule))
    row_ends = tokens.bounds[crops.rows[thumbnails] + 1]
    ends = torch.minimum(next_index(~closing)[last_ends], row_ends)
    return Pictures(
        starts, ends, thumbnails, slices, columns, slice_height, slice_width, height, width
    )


def run_course(tokens: Tokens, crops: Crops, pictures: Pictures, rule: MiniCPMV47) -> Course:
    """Walk the rows: a text token counts one, a picture the larger side of its canvas and one."""
    index = tokens.indices
    of_token = search(pictures.starts, index) - 1
    in_picture = index < pad(pictures.ends, (1, 0), value=-1)[of_token + 1]
    texts = pad((~in_picture).cumsum(0), (1, 0))

    # Pictures with nothing but markers and newlines in between are frames of one video to SGLang,
    # and if there is any, a frame keeps its distance from it.
    previous = pad(pictures.ends[:-1], (1, 0))
    rows = crops.rows[pictures.thumbnails]
    follows = rows == pad(rows[:-1], (1, 0), value=-1)
    breaks = next_index(~tokens.is_any(*_closing(rule), rule.newline_id))
    apart = follows & (previous < pictures.starts) & (breaks[previous] >= pictures.starts)

    span = torch.maximum(pictures.height, pictures.width).clamp(max=MAX_SIDE) + 1 + apart
    passed = pad(span.cumsum(0), (1, 0))
    row_starts = tokens.bounds[:-1]
    before_row = texts[row_starts] + passed[search(pictures.starts, row_starts - 1)]
    positions = texts[:-1] + passed[of_token + 1] - before_row[tokens.rows]
    origins = texts[pictures.starts] + passed[:-1] + apart - before_row[rows]
    return Course(of_token.clamp(min=0), in_picture, positions, origins)


def slice_numbers(crops: Crops, thumbnails: Tensor) -> Tensor:
    """Return (C,) the number of each slice in its picture, from 0 on; -1 for a thumbnail."""
    index = torch.arange(crops.starts.shape[0], device=crops.starts.device)
    return index - thumbnails[crops.pictures] - 1


def gaps_to_next(crops: Crops) -> Tensor:
    """Return (C,) the tokens between two slices of a picture, 0 where no two follow each other."""
    both = crops.is_slice[:-1] & crops.is_slice[1:]
    return pad(torch.where(both, crops.starts[1:] - crops.ends[:-1], 0), (0, 1))


def _closing(rule: MiniCPMV47) -> tuple[int | None, ...]:
    return (
        rule.image_start_id,
        rule.image_end_id,
        rule.slice_start_id,
        rule.slice_end_id,
        rule.newline_id if rule.newline_closes else None,
    )
