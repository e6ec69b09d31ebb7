"""Where the placeholders stand: the first and the last token of every group.

Two finders serve one writer. `find_by_tokens` looks at every placeholder, and takes any layout.
`find_by_runs` looks at the runs of placeholders, in passes over single bytes, which is faster for
long input; it takes layouts in which every run is one group.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.forms.eager.batch import Batch
from vecrope.forms.eager.items import FEW, Items
from vecrope.spec import MRopeSpec

# Words of eight flags from which on it pays to look for those that are not 0 first.
_WORDS_FROM = 4096


class Found(NamedTuple):
    """The groups of the batch, all images before all videos, each in the order of the prompt."""

    items: Items  # without those that are left over
    first: Tensor  # (G,) int64 index of each group's first token
    last: Tensor  # (G,)
    area: Tensor  # (G,) tokens that the group needs
    # (P,) index of every placeholder, in the order of the groups; None: groups are contiguous.
    placeholders: Tensor | None
    # (N,) bool: the tokens that are no placeholders; None: `placeholders` tells.
    text: Tensor | None


def holds_placeholders(batch: Batch, spec: MRopeSpec) -> bool:
    """Say whether any unmasked token is a placeholder."""
    key, ids = _keys(batch, spec)
    if _by_markers(batch, spec):
        ids = ids[:1]
    return any(_occurs(batch, key == token_id) for token_id in ids)


def _occurs(batch: Batch, hit: Tensor) -> bool:
    return bool((hit if batch.kept is None else hit.logical_and_(batch.kept)).any())


def find_by_tokens(batch: Batch, spec: MRopeSpec, items: Items, *, lenient: bool) -> Found | None:
    """Find the groups among all placeholders, or None where their number is not the grids'."""
    key, ids = _keys(batch, spec)
    dtype = torch.int64 if batch.token_types is not None else key.dtype
    hit = key == torch.tensor(ids, dtype=dtype, device="cpu").unsqueeze(1)
    if batch.kept is not None:
        hit.logical_and_(batch.kept)
    at = None
    if _by_markers(batch, spec):
        at = hit.any(0).nonzero().view(-1)
        token = key[at]
        hit = _kinds_by_markers(batch, spec, token == ids[0], token == ids[1], token == ids[2], at)
    kind, index = _kinds(batch, spec, hit)
    if at is not None:
        index = at[index]
    of_images, of_videos = items.tokens
    fitting: Items | None = items
    if kind.shape[0] != of_images + of_videos or not _splits_at(kind, of_images):
        num_videos = int(kind.sum())
        fitting = items.first((kind.shape[0] - num_videos, num_videos)) if lenient else None
    if fitting is None:
        return None
    if not any(fitting.groups):
        return Found(fitting, index, index, index, index, None)
    begins, ends, area = _rank_bounds(fitting).unbind()
    return Found(fitting, index[begins], index[ends], area, index, None)


def find_by_runs(batch: Batch, spec: MRopeSpec, items: Items) -> Found | None:
    """Find the groups among the runs of placeholders, or None where a run is not a group."""
    key, ids = _keys(batch, spec)
    # 0 is everything else, 1 and so on are the ids: images, then videos or markers.
    codes = (key == ids[0]).view(torch.uint8)
    for number, token_id in enumerate(ids[1:], 2):
        codes.add_((key == token_id).view(torch.uint8), alpha=number)
    if batch.kept is not None:
        codes.mul_(batch.kept)
    change = codes[1:] != codes[:-1]
    batch.mark_row_starts(change)
    starts = torch.cat((change.new_zeros(1, dtype=torch.int64), set_indices(change).add_(1)))
    ends = torch.cat((starts[1:], starts.new_full((1,), batch.num_tokens)))
    values = codes[starts]
    if _by_markers(batch, spec):
        text = codes.ne_(1).view(torch.bool)
        image, opens, closes = values == 1, values == 2, values == 3
        hit = _kinds_by_markers(batch, spec, image, opens, closes, starts, ends - starts)
    else:
        text = codes.logical_not()
        hit = torch.stack([values == number for number in range(1, len(ids) + 1)])
    kind, run = _kinds(batch, spec, hit)
    num_groups, num_images = sum(items.groups), sum(items.groups[: items.num_images])
    if run.shape[0] != num_groups or not _splits_at(kind, num_images):
        return None
    if batch.kept is not None:
        text.logical_and_(batch.kept)
    return Found(items, starts[run], ends[run] - 1, items.spread([items.area])[0], None, text)


def _rank_bounds(items: Items) -> Tensor:
    """Return (3, G): ranks of every group's first and last placeholder, and how many it has."""
    if sum(items.groups) <= FEW:
        stops = [*accumulate(items.per_group(items.area))]
        begins, lasts = [0, *stops[:-1]], [stop - 1 for stop in stops]
        return torch.tensor([begins, lasts, items.per_group(items.area)], device="cpu")
    area = items.spread([items.area])[0]
    ends = area.cumsum(0)
    return torch.stack((ends - area, ends - 1, area))


def set_indices(flags: Tensor) -> Tensor:
    """Return the ascending indices at which `flags` (N,) bool is set."""
    num_words = flags.shape[0] // 8
    if num_words < _WORDS_FROM:
        return flags.nonzero().view(-1)
    # Most flags are not set, and eight at a time are passed over faster.
    whole = flags[: num_words * 8]
    words = whole.view(torch.int64).nonzero().view(-1)
    word, place = whole.view(-1, 8).index_select(0, words).nonzero().unbind(1)
    tail = flags[num_words * 8 :].nonzero().view(-1)
    return torch.cat((words.index_select(0, word) * 8 + place, tail + num_words * 8))


def _by_markers(batch: Batch, spec: MRopeSpec) -> bool:
    return batch.token_types is None and spec.marker_rule in ("last", "count")


def _keys(batch: Batch, spec: MRopeSpec) -> tuple[Tensor, list[int]]:
    """Return what tells tokens apart (N,), and the values that matter."""
    if batch.token_types is not None:
        return batch.token_types, [1, 2]
    if _by_markers(batch, spec):
        return batch.input_ids, [*spec.markers]
    ids = (spec.image_token_id, spec.video_token_id)
    return batch.input_ids, [token_id for token_id in ids if token_id is not None]


def _kinds(batch: Batch, spec: MRopeSpec, hit: Tensor) -> tuple[Tensor, Tensor]:
    """Return (P,) kinds, 0 for images and 1 for videos, ascending, and (P,) where each stands."""
    kind, index = hit.nonzero().unbind(1)
    only_videos = batch.token_types is None and spec.image_token_id is None
    return (kind + 1 if only_videos else kind), index


def _kinds_by_markers(
    batch: Batch,
    spec: MRopeSpec,
    image: Tensor,
    opens: Tensor,
    closes: Tensor,
    at: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """Return (2, K) bool: placeholders of images, and placeholders inside a video.

    Args:
        batch: whose rows end what their markers begin.
        spec: its `marker_rule`.
        image: (K,) bool: placeholders, among tokens or runs of equal ones.
        opens: (K,) bool: start markers.
        closes: (K,) bool: end markers.
        at: (K,) ascending index of each one's first token.
        lengths: (K,) tokens of each run.
    """
    number = torch.arange(at.shape[0], device="cpu")
    row = batch.row_of(at) if batch.num_rows > 1 else None
    if spec.marker_rule == "last":
        # The number of the last marker up to each.
        last = (number * (opens | closes)).cummax(0).values
        inside = opens[last]
        if row is not None:
            inside = inside & (row[last] == row)
    else:
        step = opens.to(torch.int64) - closes.to(torch.int64)
        if lengths is not None:
            step = step * lengths
        depth = step.cumsum(0)
        inside = depth > 0
        if row is not None:
            begins = torch.cat((row.new_ones(1, dtype=torch.bool), row[1:] != row[:-1]))
            row_start = (number * begins).cummax(0).values
            inside = depth > (depth - step)[row_start]
    return torch.stack((image & ~inside, image & inside))


def _splits_at(kind: Tensor, at: int) -> bool:
    """Say whether `kind` (P,), ascending, is 0 in front of `at` and 1 from there on."""
    around = kind[max(at - 1, 0) : at + 1].tolist()
    return around == [0, 1][int(at == 0) : 1 + int(at < kind.shape[0])]
