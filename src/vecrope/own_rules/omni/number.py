"""The positions of an omni prompt whose items are known on the host.

The running position goes from item to item on host numbers. What stands between two changes of the
rule is an entry: a run of text, of markers or of audio, along which all axes count up, or the
frames of an image or a video. Entries are spread to frames, frames to lines, and lines to tokens.
Each position is one sum of a base and a whole number, rounded where the positions are float32.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from operator import add, mul

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.search import spread
from vecrope.families.rules import OmniRule
from vecrope.own_rules.omni.find import Item
from vecrope.own_rules.omni.host import host_tensor
from vecrope.own_rules.omni.interleave import audio_before, chunk_length
from vecrope.own_rules.omni.media import float32
from vecrope.spec import MRopeSpec

# Up to so many lines or tokens lists are faster than tensors.
_FEW = 1024
# A run, a block of frames, or a block of frames and sound:
# base: the position of a run's first token, or that of a frame's first row and column, at time 0;
# width: tokens of a line; frames; height: lines of a frame;
# slope: by how much time and height count up along a line, 1 in runs;
# factor: by what the number of a frame is multiplied first; audio: tokens of it among the frames.
Entry = tuple[float, int, int, int, int, float, int]


def walk_items(
    items: list[Item], bounds: list[int], spec: MRopeSpec, rule: OmniRule
) -> tuple[list[Entry], list[float]]:
    """Follow the running position from item to item, rounding where the upstream does.

    Args:
        items: in the order of the prompt.
        bounds: (B + 1) where each row of unmasked tokens begins, and the last one ends.
        spec: the family's rules.
        rule: likewise.

    Returns:
        The entries of all tokens, and the largest position of each row, -1 without a token.
    """
    near: Callable[[float], float] = float32 if spec.position_dtype == "float32" else _same
    precise: Callable[[float], float] = float32 if spec.time_dtype == "float32" else _same
    assert spec.tokens_per_second is not None
    rate = precise(spec.tokens_per_second)
    entries: list[Entry] = []
    largest: list[float] = []
    last_item = len(items)
    number = 0
    for row, stop in enumerate(bounds[1:]):
        at, position, reached = bounds[row], 0.0 if near is float32 else 0, -1.0
        while number < last_item and items[number].row == row:
            _, start, _, markers, visual, _, frame_tokens, audio = items[number]
            number += 1
            lead, shared = markers, False
            if markers == 2:
                lead -= rule.sound_markers == "early"
                shared = rule.sound_markers == "shared"
            text = start - at
            if text:
                entries.append((position, text, 1, 1, 1, 0.0, 0))
            mark = near(position + text)
            _add_markers(entries, mark, lead, shared=shared)
            block = near(mark + (1 if shared else lead))
            highest = end = audio_end = near(block + (audio - 1))
            if visual is None:
                entries.append((block, audio, 1, 1, 1, 0.0, 0))
            else:
                _, frames, height, width, seconds, _, _ = visual
                if spec.time_order == "seconds":
                    factor = seconds
                    time = precise(precise((frames - 1) * factor) * rate)
                else:
                    factor = precise(seconds * rate)
                    time = precise((frames - 1) * factor)
                if rule.whole_times:
                    time = int(time)
                entries.append((block, width, frames, height, 0, factor, audio))
                visual_end = near(block + max(height - 1, width - 1, time))
                highest = end = max(visual_end, audio_end)
                if audio and rule.sound_end == "piece":
                    film_last = near(block + time) > audio_end
                    if rule.interleave != "merge":
                        chunk = chunk_length(spec, rule)
                        film_last = time // chunk > (audio - 1) // chunk
                    end = visual_end if film_last else audio_end
            end = near(end + 1)
            _add_markers(entries, end, lead, shared=shared)
            position = near(near(end + 1) + (0 if shared else lead - 1))
            reached = max(reached, highest, end + (lead - 1) * (not shared))
            at = start + 2 * lead + frame_tokens + audio
        if stop > at:
            entries.append((position, stop - at, 1, 1, 1, 0.0, 0))
            reached = max(reached, near(position + (stop - at - 1)))
        largest.append(reached)
    return entries, largest


def _same(value: float) -> float:
    return value


def _add_markers(entries: list[Entry], base: float, tokens: int, *, shared: bool) -> None:
    if shared:
        entries += [(base, 1, 1, 1, 1, 0.0, 0)] * tokens
    else:
        entries.append((base, tokens, 1, 1, 1, 0.0, 0))


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
    base, width, frames, height, slope, factor, audio = zip(*entries, strict=True)
    with_sound = any(audio)
    # Before each frame of a block with sound there is a line for the sound, and behind the last one
    # a frame without rows, before which the rest is heard.
    counts = [*map(add, frames, map(bool, audio))] if with_sound else [*frames]
    tall = [*map(add, height, map(bool, audio))] if with_sound else [*height]
    whole = spec.position_dtype != "float32"
    entry, frame = _members(counts, sum(counts))
    columns: list[Sequence[float]] = [width, slope, tall, audio, frames]
    numbers = _table("q", [*columns, base] if whole else columns, torch.int64)
    numbers = numbers.index_select(1, entry)
    code, time_dtype = (
        ("d", torch.float64) if spec.time_dtype == "float64" else ("f", torch.float32)
    )
    fractions = _table(code, [factor] if whole else [factor, base], time_dtype)
    fractions = fractions.index_select(1, entry)
    starts = numbers[-1] if whole else fractions[1]
    times = fractions[0].mul_(frame)
    if spec.time_order == "seconds":
        assert spec.tokens_per_second is not None
        times.mul_(spec.tokens_per_second)
    if rule.whole_times:
        times = times.trunc_().to(starts.dtype)
    times = times + starts

    num_lines = sum(map(mul, counts, tall))
    unit, line_number = _members(numbers[2], num_lines)
    time, start = torch.stack((times, starts)).index_select(1, unit)
    length, along = numbers[:2].index_select(1, unit)
    if with_sound:
        _, _, _, audios, last = numbers[:5]
        heard = _heard(times, starts, frame, audios, spec, rule)
        if heard is None:
            return None
        is_rest = frame == last
        heard = torch.where(is_rest, audios, heard)
        before = torch.where(frame > 0, pad(heard[:-1], (1, 0)), 0)
        sizes = torch.stack(((audios > 0).long(), heard - before, (~is_rest).long(), before))
        line_before, sound, is_frame, skipped = sizes.index_select(1, unit)
        line_number = line_number - line_before
        is_run = line_number < 0
        length = torch.where(is_run, sound, length * is_frame)
        skipped = skipped * is_run
        time = torch.where(is_run, start, time)
        along = torch.where(is_run, 1, along)
        line_number.clamp_(min=0)

    if num_tokens <= _FEW:
        line, offset = _members(length, num_tokens)
        if with_sound:
            offset = offset + skipped.index_select(0, line)
        positions = torch.stack((time, start + line_number, start)).index_select(1, line)
        offset = offset.to(positions.dtype)
        positions[2].add_(offset)
        positions[:2].add_(offset.mul_(along.index_select(0, line)))
        return positions
    # A base is spread as the sum of its changes: of the bits of float32, exactly.
    first = length.cumsum(0) - length
    bases = torch.stack((time, start + line_number, start))
    bits = bases if whole else bases.view(torch.int32)
    positions = _spread(bits, first, num_tokens).view(bases.dtype)
    steps = -pad(length[:-1], (1, 0), value=1)
    if with_sound:
        steps += skipped - pad(skipped[:-1], (1, 0))
    offset = torch.ones(num_tokens, dtype=bases.dtype, device="cpu")
    offset.index_add_(0, first, steps.to(bases.dtype)).cumsum_(0)
    positions[2].add_(offset)
    offset.mul_(_spread(along.to(torch.int8).unsqueeze(0), first, num_tokens)[0])
    positions[:2].add_(offset)
    return positions


def _spread(values: Tensor, first: Tensor, num_tokens: int) -> Tensor:
    """Return, for each of N tokens, the values (A, L) of the line that it stands on.

    Args:
        values: integers, of which sums may wrap.
        first: (L,) the first token of each line, ascending; a line may be of no size.
        num_tokens: N.
    """
    changes = values.diff(dim=1, prepend=values.new_zeros((values.shape[0], 1)))
    spread_out = values.new_zeros((values.shape[0], num_tokens))
    return spread_out.index_add_(1, first, changes).cumsum_(1)


def _table(code: str, columns: list[Sequence[float]], dtype: torch.dtype) -> Tensor:
    values = array(code, chain.from_iterable(columns))
    return torch.frombuffer(values, dtype=dtype).view(len(columns), -1)


def _members(sizes: Sequence[int] | Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Return, of each of the `total` members of groups, its group and its number in it."""
    if isinstance(sizes, Tensor):
        if total > _FEW:
            group = spread(sizes, total)
            first = (sizes.cumsum(0) - sizes).index_select(0, group)
            return group, torch.arange(total, device="cpu") - first
        sizes = sizes.tolist()
    groups = chain.from_iterable(map(repeat, range(len(sizes)), sizes))
    return host_tensor(groups), host_tensor(chain.from_iterable(map(range, sizes)))


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
