"""The positions of an omni prompt whose items are known on the host.

The running position goes from item to item on host numbers. What stands between two changes of the
rule is an entry: a run of text, of markers or of audio, along which all axes count up, or the
frames of an image or a video. Entries are spread to frames, frames to lines, and lines to tokens.
Each position is one sum of a base and a whole number, rounded where the positions are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from operator import add, mul
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.search import spread
from vecrope.families.rules import OmniRule
from vecrope.forms.eager.groups import host_tensor
from vecrope.own_rules.omni.find import Item
from vecrope.own_rules.omni.interleave import audio_before
from vecrope.own_rules.omni.media import float32
from vecrope.spec import MRopeSpec


class Entry(NamedTuple):
    """A run, a block of frames, or a block of frames and sound."""

    base: float  # position of a run's first token, of a frame's first row and column at time 0
    width: int  # tokens of a line
    frames: int = 1
    height: int = 1  # lines of a frame
    counts_up: int = 1  # whether time and height count up along a line: in runs
    factor: float = 0.0  # by what the number of a frame is multiplied first
    audio: int = 0  # audio tokens, among frames


class Rows(NamedTuple):
    """What the walk over the items leaves."""

    entries: list[Entry]
    largest: list[float]  # position of each row, -1 without a token


def walk_items(items: list[Item], bounds: list[int], spec: MRopeSpec, rule: OmniRule) -> Rows:
    """Follow the running position from item to item, rounding where the upstream does.

    Args:
        items: in the order of the prompt.
        bounds: (B + 1) where each row of unmasked tokens begins, and the last one ends.
        spec: the family's rules.
        rule: likewise.
    """
    near: Callable[[float], float] = float32 if spec.position_dtype == "float32" else _same
    pair = rule.sound_markers
    entries: list[Entry] = []
    largest: list[float] = []
    upcoming = iter([*items, None])
    item = next(upcoming)
    for row, (at, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        position: float = 0
        reached: float = -1
        while item is not None and item.row == row:
            markers = item.markers
            early = markers == 2 and pair == "early"
            lead = markers - early
            mark = near(position + (item.start - at))
            shared = markers == 2 and pair == "shared"
            block = near(mark + (1 if shared else lead))
            _add_run(entries, position, item.start - at)
            _add_markers(entries, mark, lead, shared=shared)
            last_time, length = _add_block(entries, item, block, spec, rule)
            visual, audio = item.visual, item.audio.audio if item.audio else 0
            video_end = -1 if visual is None else near(block + last_time)
            visual_end = -1.0
            if visual is not None:
                side = max(visual.height, visual.width) - 1
                visual_end = near(block + max(side, last_time))
            audio_end = near(block + (audio - 1))
            highest = max(visual_end, audio_end)
            end = highest
            if visual is not None and audio and rule.sound_end == "piece":
                end = visual_end if video_end > audio_end else audio_end
                if rule.interleave != "merge":
                    chunk = chunk_length(spec, rule)
                    is_last = (audio - 1) // chunk < last_time // chunk
                    end = visual_end if is_last else audio_end
            end = near(end + 1)
            _add_markers(entries, end, lead, shared=shared)
            position = near(near(end + 1) + (0 if shared else lead - 1))
            reached = max(reached, highest)
            at = item.start + lead + length + lead
            item = next(upcoming)
        _add_run(entries, position, stop - at)
        if stop > at:
            reached = max(reached, near(position + (stop - at - 1)))
        elif entries and stop > bounds[row]:
            reached = max(reached, near(entries[-1].base + (entries[-1].width - 1)))
        largest.append(reached)
    return Rows(entries, largest)


def chunk_length(spec: MRopeSpec, rule: OmniRule) -> int:
    """Return the positions of a chunk."""
    assert spec.tokens_per_second is not None
    assert rule.seconds_per_chunk is not None
    return int(spec.tokens_per_second * rule.seconds_per_chunk)


def _same(value: float) -> float:
    return value


def _add_run(entries: list[Entry], base: float, tokens: int) -> None:
    if tokens:
        entries.append(Entry(base, tokens))


def _add_markers(entries: list[Entry], base: float, tokens: int, *, shared: bool) -> None:
    entries += [Entry(base, 1)] * tokens if shared else [Entry(base, tokens)]


def _add_block(
    entries: list[Entry], item: Item, base: float, spec: MRopeSpec, rule: OmniRule
) -> tuple[float, int]:
    """Add the placeholders of an item; return the last frame's time, and how many they are."""
    visual, audio = item.visual, item.audio.audio if item.audio else 0
    if visual is None:
        entries.append(Entry(base, audio))
        return -1, audio
    frames, height, width = visual.frames, visual.height, visual.width
    precise: Callable[[float], float] = float32 if spec.time_dtype == "float32" else _same
    assert spec.tokens_per_second is not None
    rate = precise(spec.tokens_per_second)
    if spec.time_order == "seconds":
        factor = visual.seconds
        last_time = precise(precise((frames - 1) * factor) * rate)
    else:
        factor = precise(visual.seconds * rate)
        last_time = precise((frames - 1) * factor)
    if rule.whole_times:
        last_time = int(last_time)
    entries.append(Entry(base, width, frames, height, 0, factor, audio))
    return last_time, frames * height * width + audio


def write_entries(
    entries: list[Entry], num_tokens: int, spec: MRopeSpec, rule: OmniRule
) -> Tensor | None:
    """Return the positions (3, N), int64 or float32.

    None where a video that is cut into chunks has frames further apart than a chunk is long, so
    that the upstream cuts single tokens off a frame.

    Args:
        entries: of all tokens, in their order.
        num_tokens: N, at least one.
        spec: the family's rules.
        rule: likewise.
    """
    base, width, frames, height, counts_up, factor, audio = zip(*entries, strict=True)
    with_sound = any(audio)
    # Behind its last frame a block with sound has one without rows, before which the rest is heard.
    counts = [*map(add, frames, map(bool, audio))]
    tall = [*map(add, height, map(bool, audio))]
    whole = spec.position_dtype != "float32"
    table = host_tensor(chain(width, height, counts_up, tall, audio, frames)).view(6, -1)
    bases = torch.tensor(base, dtype=torch.int64 if whole else torch.float32)
    # Of frames.
    entry = host_tensor(chain.from_iterable(map(repeat, range(len(entries)), counts)))
    frame = host_tensor(chain.from_iterable(map(range, counts)))
    widths, heights, slopes, lines, audios, last = table[:, entry]
    bases = bases[entry]
    time_dtype = torch.float64 if spec.time_dtype == "float64" else torch.float32
    times = torch.tensor(factor, dtype=time_dtype)[entry] * frame
    if spec.time_order == "seconds":
        times *= spec.tokens_per_second
    times = (times.trunc() if rule.whole_times else times).to(bases.dtype).add_(bases)
    # Of lines.
    num_lines = sum(map(mul, counts, tall))
    unit = spread(lines, num_lines)
    number = torch.arange(num_lines) - (lines.cumsum(0) - lines)[unit]
    time, start = torch.stack((times, bases))[:, unit]
    length, slope = torch.stack((widths, slopes))[:, unit]
    skipped: Tensor | int = 0
    if with_sound:
        heard = _heard(times, bases, frame, audios, spec, rule)
        if heard is None:
            return None
        is_rest = frame == last
        heard = torch.where(is_rest, audios, heard)
        before = torch.where(frame > 0, pad(heard[:-1], (1, 0)), 0)
        number -= (audios > 0).long()[unit]
        is_run = number < 0
        length = torch.where(is_run, (heard - before)[unit], length * ~is_rest[unit])
        skipped = torch.where(is_run, before[unit], 0)
        time = torch.where(is_run, start, time)
        slope = torch.where(is_run, 1, slope)
        number.clamp_(min=0)
    # Of tokens.
    origin = length.cumsum(0) - length - skipped
    line = spread(length, num_tokens)
    positions = torch.stack((time, start + number, start))[:, line]
    offset = torch.arange(num_tokens) - origin[line]
    positions[2] += offset
    positions[:2] += offset * slope[line]
    return positions


def _heard(
    times: Tensor, bases: Tensor, frame: Tensor, audio: Tensor, spec: MRopeSpec, rule: OmniRule
) -> Tensor | None:
    """Return how many audio tokens of its block come before each frame (U,), or None, as above.

    Args:
        times: the frame's position in time.
        bases: that of its block.
        frame: its number in the block.
        audio: audio tokens of the block.
        spec: the family's rules.
        rule: likewise.
    """
    if rule.interleave == "merge":
        return audio_before(times, bases).minimum(audio)
    length = chunk_length(spec, rule)
    chunk = (times - bases) // length
    steps = torch.where((frame > 0) & (audio > 0), chunk - pad(chunk[:-1], (1, 0)), 0)
    if rule.interleave == "count":
        moved = (steps != 0).cumsum(0)
        chunk = moved - moved[torch.arange(len(frame)) - frame]
    elif bool((steps > 1).any()):
        return None
    return (chunk * length).minimum(audio)
