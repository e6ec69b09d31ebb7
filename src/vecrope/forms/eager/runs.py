"""What stands in a batch: its maximal runs of text, placeholders, markers and masked tokens."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, compress, pairwise, repeat
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.core.modality import IMAGE, MASKED, TEXT, UNKNOWN_MARKERS, VIDEO
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

# Markers: what videos, or by the rule "adjacent" images and frames, start with, and what ends them.
START, END = MASKED + 1, MASKED + 2

# For `bytes.translate`, as `_is_one_of`.
_AS_VIDEO = bytes.maketrans(bytes((IMAGE,)), bytes((VIDEO,)))


class Runs(NamedTuple):
    """K runs in the order of the batch. None goes on into another row, or packed sequence."""

    kinds: bytearray  # (K,)
    starts: list[int]  # (K + 1,) index of each run's first token, then N
    rows: list[int]  # (B + 1,) the first run of each row, then K
    # (B,) of what follows a row: by the rule "last" 1 if it is in a video, by "count" the starts
    # less the ends, by "adjacent" 1 if a start is right before it; otherwise 0.
    open_markers: list[int]

    def of(self, *kinds: int) -> tuple[list[int], list[int], list[int]]:
        """Return where the runs of some kinds start, where they stop, and the kind of each."""
        is_one, others = _is_one_of(kinds)
        found = [*self.kinds.translate(None, others)]
        if not found:
            return [], [], []
        of_kinds = self.kinds.translate(is_one)
        starts, stops = compress(self.starts, of_kinds), compress(self.starts[1:], of_kinds)
        return [*starts], [*stops], found

    def row_of(self, token: int) -> int:
        """Return the row of a token."""
        return bisect_right(self.rows, bisect_right(self.starts, token) - 1) - 1

    def continues(self, last: int, first: int) -> bool:
        """Say whether two tokens are of one row and have none but masked ones in between."""
        between = self.kinds[bisect_right(self.starts, last) : bisect_right(self.starts, first) - 1]
        return self.row_of(last) == self.row_of(first) and set(between) <= {MASKED}


def row_starts(inputs: Inputs) -> list[int]:
    """Return where each row begins in the batch, then N; reads `cu_seqlens`."""
    if inputs.cu_seqlens is not None:
        return list(inputs.cu_seqlens.tolist())
    num_rows, width = inputs.input_ids.shape
    return [row * width for row in range(num_rows + 1)]


def read_runs(inputs: Inputs, spec: MRopeSpec, bounds: list[int]) -> Runs:
    """Return the runs of a batch, of which each row starts at one of the bounds; then comes N."""
    types, mask, rule = inputs.mm_token_type_ids, inputs.attention_mask, spec.marker_rule
    if types is not None:
        of_types = ((IMAGE, IMAGE), (VIDEO, VIDEO))
        runs = runs_of_ids(types.to("cpu", torch.uint8), of_types, bounds, mask)
        markers = 0 if rule == "none" else UNKNOWN_MARKERS
        return runs._replace(open_markers=[markers] * (len(bounds) - 1))
    kinds = [(spec.image_token_id, IMAGE), (spec.video_token_id, VIDEO)]
    if rule in ("last", "count"):
        kinds += (spec.video_start_token_id, START), (spec.video_end_token_id, END)
    elif rule == "adjacent":
        kinds.append((spec.vision_start_token_id, START))
    runs = runs_of_ids(inputs.input_ids, tuple(kinds), bounds, mask)
    if rule == "none":
        return runs
    before = inputs.open_markers
    open_markers = runs.open_markers if before is None else before.tolist()
    if rule != "adjacent":
        return runs._replace(open_markers=_tell_videos(runs, open_markers, last=rule == "last"))
    for row, (first, stop) in enumerate(pairwise(runs.rows)):
        if first < stop:
            open_markers[row] = int(runs.kinds[stop - 1] == START)
    return runs._replace(open_markers=open_markers)


def runs_of_ids(
    ids: Tensor,
    given: tuple[tuple[int | None, int], ...],
    bounds: list[int],
    mask: Tensor | None = None,
) -> Runs:
    """Return the runs of a batch by its ids, at least one, on a CPU; or by types, uint8.

    `given` has ids, or None, and the kind of each; others are text. The mask is on any device.
    """
    rules = _codes(given, ids.dtype, masked=mask is not None)
    # Passes over bytes take a fraction of the time of passes over ids.
    codes = ids
    if ids.dtype != torch.uint8:
        codes = ids.clamp(rules.low, rules.high).to(rules.dtype)
    if mask is not None:
        codes = codes.sub(rules.shift).mul_(mask.to("cpu", torch.bool))
    values, lengths = torch.unique_consecutive(codes, return_counts=True)
    if rules.table:
        kinds = bytearray(values.tolist()).translate(rules.table)
    else:
        kinds = bytearray(map(rules.kinds.get, values.tolist(), repeat(TEXT)))
    starts = [*accumulate(lengths.tolist(), initial=0)]
    rows = [0]
    for bound in bounds[1:-1]:
        at = bisect_left(starts, bound)
        if starts[at] != bound:
            starts.insert(at, bound)
            kinds.insert(at, kinds[at - 1])
        rows.append(at)
    rows.append(len(kinds))
    return Runs(kinds, starts, rows, [0] * (len(rows) - 1))


def bytes_of_ids(ids: Tensor, given: Sequence[int]) -> tuple[bytearray, list[int]]:
    """Return a byte for each id, (N,) on a CPU, and the bytes of the given ids, which no other has.

    `bytearray.find` tells where an id stands in a fraction of the time of `runs_of_ids`.
    """
    found = bytearray(len(ids))
    rules = _codes(tuple((token, START) for token in given), ids.dtype, masked=False)
    if rules.table:
        bytes_of_given = [token % 2**8 for token in given]
    else:
        bytes_of_given = [*range(1, len(given) + 1)]
    if found:
        written = torch.frombuffer(found, dtype=torch.uint8)
        if rules.table:
            written.copy_(ids.clamp(rules.low, rules.high))
        else:
            for token, byte in zip(given, bytes_of_given, strict=True):
                written.masked_fill_(ids == token, byte)
    return found, bytes_of_given


def _tell_videos(runs: Runs, before: list[int], *, last: bool) -> list[int]:
    """Set the kind of placeholders in videos, by the last marker in front of them, or by count.

    `before` are the markers that are open before each row; returns `Runs.open_markers`.
    """
    kinds, starts, rows, _ = runs
    is_marker = kinds.translate(_is_one_of((START, END))[0])
    open_markers = []
    for (at, stop), depth in zip(pairwise(rows), before, strict=True):
        for marker in compress(range(at, stop), is_marker[at:stop]):
            if depth > 0:
                kinds[at:marker] = kinds[at:marker].translate(_AS_VIDEO)
            at, opens = marker, kinds[marker] == START
            number = starts[marker + 1] - starts[marker]
            depth = int(opens) if last else depth + (number if opens else -number)
        if depth > 0:
            kinds[at:stop] = kinds[at:stop].translate(_AS_VIDEO)
        open_markers.append(depth)
    return open_markers


@lru_cache
def _is_one_of(kinds: tuple[int, ...]) -> tuple[bytes, bytes]:
    """Return the table for `bytes.translate` that makes these kinds 1, others 0; and the others."""
    is_one = bytes(kind in kinds for kind in range(256))
    return is_one, bytes(kind for kind in range(256) if not is_one[kind])


# As what codes are kept, and how many numbers that holds.
_WIDTHS = ((torch.uint8, 2**8), (torch.int16, 2**16), (torch.int32, 2**32))


class _Codes(NamedTuple):
    """Numbers that tell tokens apart as far as that matters, of as few bytes as hold them."""

    low: int  # ids are clamped to these two, which are text
    high: int
    dtype: torch.dtype
    shift: int  # taken from the codes where masked tokens are to be 0
    kinds: dict[int, int]  # of codes; of every other it is text
    table: bytes  # the same of all codes, if each is a byte


@lru_cache
def _codes(given: tuple[tuple[int | None, int], ...], ids: torch.dtype, *, masked: bool) -> _Codes:
    """Return the codes of ids of a dtype."""
    kinds = {token: kind for token, kind in given if token is not None}
    low, high = min(kinds, default=0) - 1, max(kinds, default=0) + 1
    dtype, size = next(width for width in _WIDTHS if high - low < width[1] - 1)
    if not masked:
        high = low + size  # which is low again in these bits: text on either side is one run
    least, shift = torch.iinfo(dtype).min, low - 1 if masked else 0

    def code(token: int) -> int:
        return (token - least) % size + least

    codes = {code(token - shift): kind for token, kind in kinds.items()}
    if masked:
        codes[0] = MASKED
    table = b"" if size > 2**8 else bytes(codes.get(byte, TEXT) for byte in range(size))
    return _Codes(low, min(high, torch.iinfo(ids).max), dtype, code(shift), codes, table)
