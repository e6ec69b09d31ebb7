"""The rule of MiniCPM-V 4.7: images are thumbnails with slices, laid over one another.

The rules are those of transformers' `MiniCPMV4_7Model`, of SGLang's `minicpmv4_7` processor and of
vLLM's model; `crop_rule` and `newline_closes` choose among them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import groupby
from typing import Literal, NamedTuple

from vecrope.testing.reference.rows import (
    IMAGE,
    TEXT,
    VIDEO,
    Answer,
    Position,
    Refusal,
    float32,
    next_position,
    number_rows,
)

__all__ = ["Crop", "get_rope_index", "pictures_of"]


class Crop(NamedTuple):
    """The tokens `start` to `end - 1` of a row: a thumbnail or a slice, of an image or a video."""

    start: int
    end: int
    kind: int


class Markers(NamedTuple):
    """The ids around crops, and after pictures."""

    image_start_id: int
    image_end_id: int
    slice_start_id: int
    slice_end_id: int
    newline_id: int


def get_rope_index(
    input_ids: Sequence[Sequence[int]],
    *,
    image_token_id: int | None,
    video_token_id: int | None,
    markers: Sequence[int],
    downsample_factor: int,
    newline_closes: bool,
    crop_rule: Literal["runs", "markers"],
    mask_rule: Literal["skip", "ignore"],
    padding_value: int,
    delta_length: Literal["padded", "valid"],
    target_sizes: Sequence[Sequence[int]] = (),
    target_sizes_videos: Sequence[Sequence[int]] = (),
    attention_mask: Sequence[Sequence[int]] | None = None,
    mm_token_type_ids: Sequence[Sequence[int]] | None = None,
) -> Answer:
    """Return the position of every token on every axis, and how far decoding is shifted.

    Args:
        input_ids: B rows of T token ids.
        image_token_id: the placeholder of images.
        video_token_id: that of videos.
        markers: the ids of `<image>`, `</image>`, `<slice>`, `</slice>` and the newline.
        downsample_factor: patches per token along each side.
        newline_closes: whether newlines right after a picture are part of it.
        crop_rule: whether crops are `"runs"` of placeholders or what `"markers"` enclose.
        mask_rule: whether masked tokens are skipped or numbered.
        padding_value: the position of masked tokens.
        delta_length: what deltas are measured against.
        target_sizes: one `(h, w)` in patches for each crop of an image, in the order of the tokens,
            row by row. Zeros are no crop.
        target_sizes_videos: the same for videos.
        attention_mask: B rows of T values, 1 for a token and 0 for none. Absent: all are tokens.
        mm_token_type_ids: B rows of T types, 0 text, 1 image, 2 video, of which runs are crops.

    Returns:
        The positions, 3 axes (temporal, height, width) of B rows of T, and the deltas, B rows of 1.

    Raises:
        Refusal: if tokens, markers and sizes do not fit each other.

    Example:
        >>> position_ids, rope_deltas = get_rope_index(
        ...     [[9, 2, 1, 1, 3, 9]], image_token_id=1, video_token_id=None,
        ...     markers=(2, 3, 4, 5, 6), downsample_factor=4, newline_closes=True,
        ...     crop_rule="runs", mask_rule="skip", padding_value=0, delta_length="valid",
        ...     target_sizes=[(4, 8)],
        ... )
        >>> position_ids
        [[[0, 1, 1, 1, 1, 4]], [[0, 0, 1, 1, 2, 4]], [[0, 0, 1, 2, 3, 4]]]
        >>> rope_deltas
        [[-1]]
    """
    names = Markers(*markers)
    closing = set(names if newline_closes else names[:-1])
    pending = {
        IMAGE: _sizes("target_sizes", target_sizes, downsample_factor),
        VIDEO: _sizes("target_sizes_videos", target_sizes_videos, downsample_factor),
    }
    by_markers = crop_rule == "markers" and any(pending.values())

    def number_row(row: int, kept: list[int], ids: list[int]) -> tuple[list[Position], int]:
        types = mm_token_type_ids
        pictures = pictures_of(
            ids,
            None if types is None else [types[row][index] for index in kept],
            image_token_id=image_token_id,
            video_token_id=video_token_id,
            markers=markers,
            by_markers=by_markers,
        )
        positions = _walk(ids, pictures, pending, names, closing)
        # What is masked counts as at 0.
        return positions, max(next_position(positions), min(len(input_ids[row]), 1))

    answer = number_rows(
        input_ids,
        attention_mask if mask_rule == "skip" else None,
        number_row,
        padding_value=padding_value,
        delta_length=delta_length,
    )
    if any(pending.values()):
        raise Refusal("sizes are left over: no crop in any row takes them")
    return answer


def pictures_of(
    ids: Sequence[int],
    types: Sequence[int] | None = None,
    *,
    image_token_id: int | None,
    video_token_id: int | None,
    markers: Sequence[int],
    by_markers: bool,
) -> list[list[Crop]]:
    """Return the pictures of a row, a thumbnail and the slices that follow it each.

    Raises:
        Refusal: if a crop follows nothing, or markers do not enclose crops one after the other.
    """
    names = Markers(*markers)
    if types is None:
        placeholders = {image_token_id: IMAGE, video_token_id: VIDEO}
        types = [placeholders.get(token, IMAGE if by_markers else TEXT) for token in ids]
    else:
        by_markers = False
    crops: list[Crop] = []
    if by_markers:
        opening = [i for i, token in enumerate(ids) if token in (names[0], names[2])]
        ending = [i for i, token in enumerate(ids) if token in (names[1], names[3])]
        # The k-th of one with the k-th of the other, as far as there are both.
        for start, end in zip(opening, ending, strict=False):
            if end <= start + 1 or any(start < other < end for other in opening):
                raise Refusal(f"tokens {start} and {end} do not enclose one crop")
            crops.append(Crop(start + 1, end, types[start + 1]))
    else:
        start = 0
        for kind, run in groupby(types):
            end = start + len(list(run))
            if kind != TEXT:
                if start == 0 or types[start - 1] != TEXT:
                    raise Refusal(f"no marker stands before the crop at token {start}")
                crops.append(Crop(start, end, kind))
            start = end
    pictures: list[list[Crop]] = []
    for crop in crops:
        if pictures and ids[crop.start - 1] == names.slice_start_id:
            pictures[-1].append(crop)
        else:
            pictures.append([crop])
    return pictures


def _sizes(name: str, sizes: Sequence[Sequence[int]], factor: int) -> deque[tuple[int, int]]:
    pending: deque[tuple[int, int]] = deque()
    for index, (h, w) in enumerate(sizes):
        if h == w == 0:
            continue
        if min(h, w) < 1 or h % factor or w % factor:
            raise Refusal(f"{name}[{index}] = ({h}, {w}) must be positive multiples of {factor}")
        pending.append((h // factor, w // factor))
    return pending


def _walk(
    ids: Sequence[int],
    pictures: Sequence[Sequence[Crop]],
    pending: dict[int, deque[tuple[int, int]]],
    names: Markers,
    closing: set[int],
) -> list[Position]:
    """Number the tokens of a row, taking sizes off `pending`."""
    positions: list[Position] = [(0, 0, 0)] * len(ids)
    position = done = 0
    for number, picture in enumerate(pictures):
        start, end = picture[0].start - 1, picture[-1].end
        while end < len(ids) and ids[end] in closing:
            end += 1
        for index in range(done, start):
            positions[index] = (position,) * 3
            position += 1
        if number and start > done and all(token in names for token in ids[done:start]):
            # Frames of one video; the next one keeps its distance.
            position += 1
        kind = picture[0].kind
        sizes = []
        for crop in picture:
            size = pending[kind].popleft() if pending[kind] else (0, 0)
            if size[0] * size[1] != crop.end - crop.start:
                raise Refusal(f"a crop of {crop.end - crop.start} tokens takes the size {size}")
            sizes.append(size)
        position += _write_picture(positions, picture, sizes, end, position)
        done = end
    for index in range(done, len(ids)):
        positions[index] = (position,) * 3
        position += 1
    return positions


def _write_picture(
    positions: list[Position],
    picture: Sequence[Crop],
    sizes: Sequence[tuple[int, int]],
    end: int,
    origin: int,
) -> int:
    """Write the positions of one picture, the later over the earlier; return what it advances."""
    thumbnail, *slices = picture
    ends = (n for n in range(1, len(slices)) if slices[n].start - slices[n - 1].end > 2)
    columns = next(ends, len(slices))
    lines = len(slices) // columns if slices else 0
    if lines * columns != len(slices):
        lines, columns = 1, len(slices)
    cell_h, cell_w = sizes[1] if slices else (0, 0)
    whole = (lines * cell_h, columns * cell_w) if slices else sizes[0]

    def write(index: int, h: int, w: int) -> None:
        positions[index] = (origin, origin + h, origin + w)

    for index in range(thumbnail.start - 1, end):
        write(index, 0, 0)
    before = max(origin - 1, 0) - origin
    write(thumbnail.start - 1, before, before)
    if thumbnail.end < end:
        write(thumbnail.end, *whole)
    h, w = sizes[0]
    for index in range(thumbnail.start, thumbnail.end):
        y, x = divmod(index - thumbnail.start, w)
        write(index, _rounded_linspace(y, whole[0], h), _rounded_linspace(x, whole[1], w))
    for number, (crop, (h, w)) in enumerate(zip(slices, sizes[1:], strict=True)):
        top, left = number // columns * cell_h, number % columns * cell_w
        write(crop.start - 1, top, left)
        if crop.end < end:
            write(crop.end, top + h - 1, left + w - 1)
        for index in range(crop.start, crop.end):
            y, x = divmod(index - crop.start, w)
            write(index, top + y, left + x)
    for number in range(len(slices) - 1):
        for index in range(slices[number].end + 1, slices[number + 1].start - 1):
            write(index, (number // columns + 1) * cell_h - 1, columns * cell_w)
    return max(whole) + 1


def _rounded_linspace(index: int, extent: int, count: int) -> int:
    """Return `torch.linspace(0, extent - 1, count)[index].round()`."""
    if count == 1:
        return 0
    step = float32((extent - 1) / (count - 1))
    if index < count // 2:
        return round(float32(step * index))
    return round(float32(extent - 1 - float32(step * (count - 1 - index))))
