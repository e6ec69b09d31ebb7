"""The tokens of an omni prompt numbered, a video and its sound interleaved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.search import search
from vecrope.families.rules import OmniRule
from vecrope.own_rules.omni.bases import rounded_bases, whole_bases
from vecrope.own_rules.omni.interleave import audio_before, chunk_length
from vecrope.own_rules.omni.items import SOUND, OmniItems, Tokens
from vecrope.spec import MRopeSpec


@dataclass(frozen=True)
class _Places:
    """Where each token stands, (N,) each: by its item, or by its row where no item is before it."""

    item: Tensor  # row of the item table, I where there is none
    offset: Tensor  # tokens since the item, or the row, began
    rank: Tensor  # the same, since the item's block began
    audio: Tensor  # audio tokens of the item
    visual: Tensor  # tokens of its frames
    tail: Tensor  # trailing markers
    sound: Tensor  # bool: in a block of a video and its sound
    in_block: Tensor  # bool
    block_start: Tensor  # place of the block's first token
    # Read as if the token were the `rank`-th of the frames.
    frame: Tensor
    row: Tensor
    column: Tensor
    time: Tensor  # temporal offset, in the dtype of positions


def number(
    tokens: Tokens, items: OmniItems, spec: MRopeSpec, rule: OmniRule, *, use_audio_in_video: bool
) -> tuple[Tensor, Tensor]:
    """Number the tokens, at least one.

    Returns:
        Positions (3, N), and the largest of each row (B,), -1 for a row without tokens. They are
        int64, or, where the spec's are float32, float64 to be rounded.
    """
    rounds = spec.position_dtype == "float32"
    places = _locate(tokens, items, spec, rule, rounds)
    chunk = None
    if use_audio_in_video and rule.interleave != "merge":
        chunk = _chunks(places, rule, chunk_length(spec, rule))

    last_time = _times(items.frames - 1, items.seconds, spec, rule, rounds)
    last_time = torch.where(items.frames > 0, last_time, -1)
    visual_reach = torch.maximum(torch.maximum(items.height, items.width) - 1, last_time)
    reach = torch.maximum(visual_reach, items.audio - 1)
    if rounds:
        bases = rounded_bases(tokens, items, last_time.float(), visual_reach.float())
    else:
        span = reach + 1
        if chunk is not None and rule.sound_end == "piece":
            last = (items.starts + items.lead + items.visual - 1).clamp(0, chunk.shape[0] - 1)
            ends_in_sound = chunk[last] <= (items.audio - 1) // chunk_length(spec, rule)
            span = torch.where((items.kind == SOUND) & ends_in_sound, items.audio, span)
        bases = whole_bases(tokens, items, rule, span)

    table = torch.stack((bases.mark, bases.block, bases.end, bases.after))
    mark, block, end, after = pad(table, (0, 1))[:, places.item]
    grid = torch.stack((places.time, places.row.to(block.dtype), places.column.to(block.dtype)))
    visual, rank = places.in_block & (places.rank < places.visual), places.rank
    if use_audio_in_video:
        if chunk is not None:
            heard = (chunk * chunk_length(spec, rule)).minimum(places.audio)
        else:
            start = block.float() if rounds else block
            heard = audio_before((places.time + block).to(start.dtype), start)
            heard = heard.minimum(places.audio)
        visual, rank, source = _interleave(places, visual, heard)
        grid = grid[:, source]

    shared = rule.sound_markers == "shared"
    offset = torch.where(places.in_block, rank, 0 if shared else places.offset)
    behind = places.rank - (places.visual + places.audio)
    offset = torch.where(behind >= 0, 0 if shared else behind, offset)
    base = torch.where(places.in_block, block, torch.where(behind >= 0, end, mark))
    text = behind >= places.tail
    offset = torch.where(text, behind - places.tail, offset).to(block.dtype)
    base = torch.where(text, after, base)
    positions = torch.where(visual, grid, offset) + base

    counts = tokens.bounds[1:] - tokens.bounds[:-1]
    last_token = positions[:, (tokens.bounds[1:] - 1).clamp(min=0)].amax(0)
    largest = torch.where(counts > 0, last_token, -1)
    highest = torch.where(items.kind > 0, bases.block + reach, -1)
    largest = largest.scatter_reduce(0, items.rows, highest, "amax")
    return positions, largest


def _locate(
    tokens: Tokens, items: OmniItems, spec: MRopeSpec, rule: OmniRule, rounds: bool
) -> _Places:
    num_items = items.starts.shape[0]
    index = torch.arange(tokens.ids.shape[0], device=tokens.ids.device)
    row_start = tokens.bounds[tokens.row_of(index)]
    item = search(items.starts, index) - 1
    start = pad(items.starts, (1, 0), value=-1)[item + 1]
    inside = start >= row_start
    item = torch.where(inside, item, num_items)
    offset = index - torch.where(inside, start, row_start)

    columns = torch.stack(
        (
            items.lead,
            items.audio,
            items.visual,
            items.tail,
            items.kind,
            items.height * items.width,
            items.width,
        )
    )
    lead, audio, visual, tail, kind, in_frame, width = pad(columns, (0, 1))[:, item]
    seconds = pad(items.seconds, (0, 1))[item]
    rank = offset - lead
    in_block = (rank >= 0) & (rank < visual + audio)
    in_frame, width = in_frame.clamp(min=1), width.clamp(min=1)
    frame = rank // in_frame
    cell = rank - frame * in_frame
    row = cell // width
    return _Places(
        item=item,
        offset=offset,
        rank=rank,
        audio=audio,
        visual=visual,
        tail=tail,
        sound=in_block & (kind == SOUND),
        in_block=in_block,
        block_start=(index - rank).clamp(0, index.shape[0] - 1),
        frame=frame,
        row=row,
        column=cell - row * width,
        time=_times(frame, seconds, spec, rule, rounds),
    )


def _times(
    frames: Tensor, seconds: Tensor, spec: MRopeSpec, rule: OmniRule, rounds: bool
) -> Tensor:
    """Return temporal offsets in the dtype of positions, rounded in the order of the upstream."""
    assert spec.tokens_per_second is not None
    if spec.time_order == "seconds":
        times = frames.to(seconds.dtype) * seconds * spec.tokens_per_second
    else:
        times = frames.to(seconds.dtype) * (seconds * spec.tokens_per_second)
    if rule.whole_times:
        times = times.trunc()
    # In float64, so that no compiler contracts this product and the sum that follows.
    return times.to(torch.float64 if rounds else torch.int64)


def _chunks(places: _Places, rule: OmniRule, length: int) -> Tensor:
    """Return the number of the chunk that each video token with sound falls into, by its time."""
    filmed = places.sound & (places.rank < places.visual)
    chunk = places.time // length
    if rule.interleave == "count":
        moves_on = filmed & (places.rank > 0) & (chunk != pad(chunk[:-1], (1, 0)))
        moved = moves_on.cumsum(0)
        return moved - moved[places.block_start]
    # One token takes at most one step: chunk[r] = min(time[r] // length, chunk[r - 1] + 1), which
    # is r + min(time[q] // length - q) over the tokens q up to r. Each item's keys lie far below
    # those of the item before, so that one running minimum serves all.
    item_base = places.item * 2**40
    keys = torch.where(filmed, chunk - places.rank - item_base, 2**62)
    return places.rank + keys.cummin(0).values + item_base


def _interleave(places: _Places, visual: Tensor, heard: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the video tokens behind the audio that comes before them; audio takes what is left.

    Args:
        places: of N tokens.
        visual: (N,) bool: the tokens of images and videos, as if each video came before its sound.
        heard: (N,) audio tokens that come before each of them.

    Returns:
        For each place: whether a visual token stands there, else the number of its audio token
        within the block, and which visual token it is, by its place in `visual`.
    """
    index = torch.arange(visual.shape[0], device=visual.device)
    moving = visual & places.sound
    target = torch.where(moving, (index + heard).clamp(max=visual.shape[0]), visual.shape[0])
    source = index.new_full((visual.shape[0] + 1,), -1).scatter(0, target, index)[:-1]
    taken = source >= 0
    # The block's first token is always a frame's.
    passed = taken.cumsum(0)
    passed = passed - passed[places.block_start] + 1
    rank = torch.where(places.sound, places.rank - passed, places.rank)
    return torch.where(places.sound, taken, visual), rank, torch.where(taken, source, index)
