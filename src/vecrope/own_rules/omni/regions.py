"""The operator that follows the running position over the items of a batch.

Every sum of positions is rounded where they are float32, so that the order of the sums matters and
no prefix sum gives the same. This is a sequence over items: one operator, so that a compiled graph
neither depends on their number nor contracts the sums. On a device with Triton it is one program;
elsewhere what describes the items is copied to the host, which waits for it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vecrope.forms.select import triton_takes
from vecrope.own_rules.omni.media import Media, Traits, audio_tokens, float32
from vecrope.own_rules.omni.number import follow

# Entries that an item takes at most; a row takes one more.
ENTRIES = 6

_Regions = tuple[Tensor, Tensor, Tensor, Tensor]
_DTYPES = torch.float64, torch.float64, torch.int64, torch.int64


@torch.library.custom_op(
    "vecrope::omni_regions",
    mutates_args=(),
    schema="(Tensor[] values, int[] sizes, float rate, float chunk, str traits) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def regions(
    values: Sequence[Tensor], sizes: Sequence[int], rate: float, chunk: float, traits: str
) -> _Regions:
    """Return where positions count from.

    Args:
        values: on one device

            - (I,) int64, ascending: the place of the first placeholder of an image or a video, or
              of the audio start of an audio or of a video with sound; N where there is none;
            - (I,) the id that stands there;
            - (I,) bool: whether a vision start of the same row stands before it;
            - (B + 1,) int64: where each row begins, then N;
            - (num_images, 3) and (num_videos, 3) int64 grids;
            - (num_videos,) float64: the seconds, rounded to the time dtype;
            - (num_audios,) int64: the mel frames;
            - (num_videos,) bool: which videos have sound.
        sizes: ids of image and video tokens, `spatial_merge_size`, and `n_window` of `OmniRule`, 0
            for None.
        rate: positions a second.
        chunk: seconds of a chunk.
        traits: the rest of `Traits`, joined by spaces.

    Returns:
        Entries (7, E), float64, ascending: place of the first token (N where there is none), its
        position, tokens of frames (0: the tokens count up), tokens of a frame, of its width,
        seconds of a frame, and tokens of the sound behind the frames, as if it came last.

        The largest position of each row (B,), float64; -1 without a token.

        What each item needs (5, I) int64: places of its first placeholder and behind the last, and
        image, video and audio tokens.

        Faults (I + 1,) int64, 0 or 1: of an item that has no medium, or does not end in its row and
        before the next item; at the end, whether media are left over.
    """
    device = values[0].device
    if triton_takes(device):
        return in_one_program(values, sizes, rate, chunk, traits)
    answer = _on_host([v.tolist() for v in values], sizes, Traits.parse(traits, rate, chunk))
    entries, largest, needs, faults = (
        torch.tensor(column, dtype=dtype, device="cpu").to(device)
        for column, dtype in zip(answer, _DTYPES, strict=True)
    )
    return entries, largest, needs, faults


def in_one_program(
    values: Sequence[Tensor], sizes: Sequence[int], rate: float, chunk: float, traits: str
) -> _Regions:
    """Return what `regions` does, in one launch of Triton."""
    from vecrope.own_rules.omni.chain_kernel import follow as kernel

    at, _, _, bounds, images, videos, _, lengths, has_sound = values
    image, video, merge, n_window = sizes
    of = Traits.parse(traits, rate, chunk)
    entries, largest, needs, faults = _empty(at, bounds)
    if of.time_dtype == "float32":
        rate = float32(rate)
    given = [
        v.contiguous().view(torch.uint8) if v.dtype == torch.bool else v.contiguous()
        for v in values
    ]
    kernel[(1,)](
        *given, at.new_full((1,), rate, dtype=torch.float64), entries, largest, needs, faults,
        *(len(v) for v in (at, bounds[1:], images, videos, lengths, has_sound)), entries.shape[1],
        IMAGE=image, VIDEO=video, MERGE=merge, WINDOW=2 * n_window, CHUNK=of.chunk_length,
        ROUNDS=of.position_dtype == "float32", F32=of.time_dtype == "float32",
        SECONDS_FIRST=of.time_order == "seconds", WHOLE=bool(of.whole_times),
        INTERLEAVE=("merge", "walk", "count").index(of.interleave),
        MARKERS=("own", "shared", "early").index(of.sound_markers), PIECE=of.sound_end == "piece",
    )  # fmt: skip
    return entries, largest, needs, faults


@regions.register_fake
def _(values: Sequence[Tensor], *_: object) -> _Regions:
    return _empty(values[0], values[3])


def _empty(at: Tensor, bounds: Tensor) -> _Regions:
    num_items, num_rows = at.shape[0], bounds.shape[0] - 1
    shapes = (7, num_rows + ENTRIES * num_items), (num_rows,), (5, num_items), (num_items + 1,)
    entries, largest, needs, faults = (
        at.new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, _DTYPES, strict=True)
    )
    return entries, largest, needs, faults


def _tokens_of(mel_frames: int, n_window: int) -> int:
    return max(audio_tokens(mel_frames, n_window or None), 0) if mel_frames > 0 else 0


def _on_host(
    values: list[list[Any]], sizes: Sequence[int], traits: Traits
) -> tuple[list[Any], ...]:
    """Return what `regions` does, of its arguments as lists."""
    at, token, marked, bounds, images, videos, seconds, lengths, has_sound = values
    image, video, merge, n_window = sizes
    audio = [*(_tokens_of(length, n_window) for length in lengths), 0]
    num_tokens = bounds[-1]
    # The last medium of each kind stands for what is not there.
    depth, height, width = (
        [max(side, 0) // by for side in sides]
        for sides, by in zip(
            zip(*images, *videos, (0, 0, 0), strict=True), (1, merge, merge), strict=True
        )
    )
    area = [t * h * w for t, h, w in zip(depth, height, width, strict=True)]
    none, nothing = len(area) - 1, len(audio) - 1
    seconds = [1.0] * len(images) + seconds + [1.0]
    media = Media(len(images), [max(t, 1) for t in depth], height, width, area, seconds, [], audio)
    left = [
        iter([number for number in numbers if sizes[number]])
        for numbers, sizes in (
            (range(len(images)), area),
            (range(len(images), none), area),
            (range(nothing), audio),
        )
    ]
    items, needs, faults = [], [], []
    starts = [place - is_marked for place, is_marked in zip(at, marked, strict=True)]
    for number, (place, of, is_marked) in enumerate(zip(at, token, marked, strict=True)):
        if place >= num_tokens:
            needs.append((num_tokens, num_tokens, 0, 0, 0))
            faults.append(False)
            continue
        is_image, is_video = of == image, of == video
        is_heard = not (is_image or is_video)
        visual = next(left[0 if is_image else 1], none) if is_marked else -1
        sound = next(left[2], nothing) if is_heard else -1
        markers, start = 1 + (is_marked and is_heard), starts[number]
        row = bisect_right(bounds, start) - 1
        items.append((row, start, markers, visual, sound))
        frames, heard = area[visual] if is_marked else 0, audio[sound] if is_heard else 0
        begin = start + markers
        stop = begin + frames + heard
        needs.append((begin, stop, frames * is_image, frames * (not is_image), heard))
        limit = min((bounds[row + 1], *starts[number + 1 : number + 2]))
        of_video = is_marked and not is_image and visual < none
        faults.append(
            (is_marked and not frames)
            or (is_heard and not heard)
            or stop + markers > limit
            or bool(of_video and has_sound[visual - len(images)] != is_heard)
        )
    faults.append(any(next(rest, None) is not None for rest in left))
    entries, largest = follow(items, media, bounds, traits)
    blocks = iter([item[3] for item in items if item[3] >= 0 and height[item[3]]])
    table, place = [], 0
    for base, tokens, rows, columns, times, cuts in entries:
        frames = len(times) * rows * columns
        table.append((
            place, base, frames, max(rows * columns, 1), max(columns, 1),
            seconds[next(blocks)] if rows else 1.0, cuts[-1][1] if cuts else 0,
        ))  # fmt: skip
        place += tokens
    num_entries = len(bounds) - 1 + ENTRIES * len(at)
    table += [(num_tokens, 0, 0, 1, 1, 1.0, 0)] * (num_entries - len(table))
    return [*zip(*table, strict=True)], largest, [*zip(*needs, strict=True)] or [[]] * 5, faults
