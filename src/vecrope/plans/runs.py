"""Runs of placeholders as parts of groups: which group each is of, and how much of it is before."""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from vecrope.core import faults
from vecrope.core.items import Items
from vecrope.core.modality import IMAGE, VIDEO
from vecrope.core.search import search, spread
from vecrope.core.stream import Stream
from vecrope.forms.static import locate
from vecrope.plans.entries import GroupParts
from vecrope.spec import MRopeSpec


class Runs(NamedTuple):
    """Stretches of placeholders of one kind, in the order of the stream; (R,) each."""

    start: Tensor  # int64 index in the batch of the first token
    tokens: Tensor  # int64
    is_video: Tensor  # bool
    rows: Tensor  # int64


class Parts(NamedTuple):
    """Groups, or parts of groups, and what is needed to check them; (P,) each."""

    groups: GroupParts
    item: Tensor  # row of the table of items; that of text beyond the last grid
    area: Tensor  # tokens of the group
    rows: Tensor


def parts_of_runs(runs: Runs, items: Items) -> tuple[Parts, Tensor]:
    """Take each run for a part of one group; reads no value.

    Returns:
        The parts, and 0-d bool: a run reaches over the end of its group, or beyond the last grid.
    """
    parts = _parts(runs, _ranks(runs, items), items)
    over = runs.tokens > parts.area - parts.groups.before
    return parts, (over | (parts.item == items.text)).any()


def cut_at_groups(runs: Runs, items: Items) -> Parts:
    """Cut the runs where groups begin; reads values."""
    ranks = _ranks(runs, items)
    num_runs = ranks.shape[0]
    if not num_runs:
        return _parts(runs, ranks, items)
    # In the order of ranks: all images before all videos.
    ranks, order = ranks.sort()
    start, tokens, is_video, rows = (column[order] for column in runs)
    begins, of_run = start, torch.arange(num_runs, device="cpu")
    # Where groups begin inside a run.
    group_ranks = _group_ranks(items)
    run = (search(ranks, group_ranks) - 1).clamp_(min=0)
    into = group_ranks - ranks[run]
    inside = ((into > 0) & (into < tokens[run])).nonzero().view(-1)
    if inside.shape[0]:
        run = run[inside]
        begins, order = torch.cat((start, start[run] + into[inside])).sort()
        of_run = torch.cat((of_run, run))[order]
    else:
        begins, of_run = begins.sort()
    # A part ends where the next of its run begins.
    ends = (start + tokens)[of_run]
    ends[:-1] = torch.where(of_run[1:] == of_run[:-1], begins[1:], ends[:-1])
    parts = Runs(begins, ends - begins, is_video[of_run], rows[of_run])
    return _parts(parts, ranks[of_run] + begins - start[of_run], items)


def is_faulty(parts: Parts, runs: Runs, items: Items, spec: MRopeSpec) -> bool:
    """Say whether groups are not whole, or stand where the spec does not let them; synchronises."""
    in_videos = torch.where(runs.is_video, runs.tokens, 0).sum()
    found = torch.stack((runs.tokens.sum() - in_videos, in_videos))
    if bool((found != items.expected).any()):
        return True
    start, tokens, before = parts.groups[:3]
    # Of each kind on its own, a group goes on where its part before ends.
    kind = parts.item >= items.num_images
    order = kind.to(torch.uint8).argsort(stable=True)
    start, tokens, before, item, rows = (
        column[order] for column in (start, tokens, before, parts.item, parts.rows)
    )
    touches = (start[1:] == (start + tokens)[:-1]) & (rows[1:] == rows[:-1])
    touches &= item[1:] == item[:-1]
    if bool(((before[1:] > 0) & ~touches).any()):
        return True
    if spec.frames_may_touch:
        return False
    return bool((touches & (before[1:] == 0) & (item[1:] >= items.num_images)).any())


def raise_fault(
    runs: Runs, bounds: Tensor, images: Tensor, videos: Tensor, items: Items, spec: MRopeSpec
) -> NoReturn:
    """Raise the ValueError that says what of the runs does not fit the grids."""
    num_tokens = int(bounds[-1])
    if not num_tokens:
        faults.check_none_left_over(items)
    run = spread(runs.tokens, int(runs.tokens.sum()))
    place = torch.arange(run.shape[0], device=run.device)
    place += (runs.start - (runs.tokens.cumsum(0) - runs.tokens))[run]
    types = torch.zeros(num_tokens, dtype=torch.int64, device=run.device)
    types[place] = torch.where(runs.is_video, VIDEO, IMAGE)[run]
    # As by token types, which are believed: no marker is looked for.
    stream = Stream(types, types, None, bounds, (num_tokens,), exact=True)
    faults.raise_layout_fault(locate(stream, spec, items), images, videos, spec)


def _ranks(runs: Runs, items: Items) -> Tensor:
    """Return (R,) the rank of each run's first token, as `Items` ranks them."""
    in_videos = torch.where(runs.is_video, runs.tokens, 0)
    in_images = runs.tokens - in_videos
    return torch.where(
        runs.is_video,
        in_videos.cumsum(0) - in_videos + items.expected[0],
        in_images.cumsum(0) - in_images,
    )


def _group_ranks(items: Items) -> Tensor:
    """Return (G,) the rank of each group's first token; reads values."""
    first, tokens, width, height, frames, _ = items.table[:, : items.text].unbind()
    area = width * height * frames
    numbers = tokens // area.clamp(min=1)
    item = spread(numbers, int(numbers.sum()))
    number = torch.arange(item.shape[0], device="cpu") - (numbers.cumsum(0) - numbers)[item]
    return first[item] + number * area[item]


def _parts(runs: Runs, ranks: Tensor, items: Items) -> Parts:
    """Return runs, each in one group, as parts, from the ranks of their first tokens."""
    item = torch.full_like(ranks, items.text)
    if items.text:
        item = search(items.ends, ranks)
    first, _, width, height, frames, advance = items.table[:, item].unbind()
    area = width * height * frames
    before = (ranks - first) % area
    scale = torch.empty((0, item.shape[0]), device=item.device)
    if items.pace is not None:
        scale = items.pace[:, item]
    groups = GroupParts(
        runs.start, runs.tokens, before, height, width, advance, items.extent[item], scale
    )
    return Parts(groups, item, area, runs.rows)
