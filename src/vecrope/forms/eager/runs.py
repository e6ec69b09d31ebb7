"""What stands in a batch: its maximal runs of text, placeholders, markers and masked tokens."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import lru_cache
from itertools import compress, pairwise, repeat
from typing import NamedTuple

import torch

from vecrope.core.modality import IMAGE, MASKED, TEXT, UNKNOWN_MARKERS, VIDEO
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

# Markers: what videos, or by the rule "adjacent" images and frames, start with, and what ends them.
START, END = MASKED + 1, MASKED + 2


class Runs(NamedTuple):
    """K runs in the order of the batch. None goes on into another row, or packed sequence."""

    kinds: list[int]  # (K,)
    starts: list[int]  # (K + 1,) index of each run's first token, then N
    rows: list[int]  # (B + 1,) the first run of each row, then K
    # (B,) of what follows a row: by the rule "last" 1 if it is in a video, by "count" the starts
    # less the ends, by "adjacent" 1 if a start is right before it; otherwise 0.
    open_markers: list[int]

    def of(self, kind: int) -> tuple[list[int], list[int]]:
        """Return where the runs of a kind start, and where they stop."""
        of_kind = [other == kind for other in self.kinds]
        return [*compress(self.starts, of_kind)], [*compress(self.starts[1:], of_kind)]

    def continues(self, last: int, first: int) -> bool:
        """Say whether two tokens are of one row and have none but masked ones in between."""
        before, after = (bisect_right(self.starts, token) - 1 for token in (last, first))
        same_row = bisect_right(self.rows, before) == bisect_right(self.rows, after)
        return same_row and all(kind == MASKED for kind in self.kinds[before + 1 : after])


def read_runs(inputs: Inputs, spec: MRopeSpec, bounds: list[int]) -> Runs:
    """Return the runs of a batch.

    Args:
        inputs: as for `eager_rope_index`.
        spec: of the shared rule.
        bounds: where each row starts in the batch, then N.
    """
    ids, types, mask = inputs.input_ids, inputs.mm_token_type_ids, inputs.attention_mask
    rules = _codes(spec, ids.dtype if types is None else None, masked=mask is not None)
    # Passes over bytes take a fraction of the time of passes over ids.
    codes = ids.clamp(rules.low, rules.high) if types is None else types.to("cpu")
    codes = codes.to(rules.dtype)
    if mask is not None:
        codes = codes.sub(rules.shift).mul_(mask.to("cpu", torch.bool))
    values, lengths = torch.unique_consecutive(codes, return_counts=True)
    kinds = [*map(rules.kinds.get, values.tolist(), repeat(TEXT))]
    starts = [0, *lengths.cumsum(0).tolist()]
    rows = [0]
    for bound in bounds[1:-1]:
        at = bisect_left(starts, bound)
        if starts[at] != bound:
            starts.insert(at, bound)
            kinds.insert(at, kinds[at - 1])
        rows.append(at)
    rows.append(len(kinds))
    open_markers = [0] * (len(rows) - 1)
    if types is not None and spec.marker_rule != "none":
        open_markers = [UNKNOWN_MARKERS] * len(open_markers)
    elif spec.marker_rule == "adjacent":
        open_markers = [
            int(first < stop and kinds[stop - 1] == START) for first, stop in pairwise(rows)
        ]
    elif spec.marker_rule != "none":
        open_markers = _tell_videos(kinds, starts, rows, last=spec.marker_rule == "last")
    return Runs(kinds, starts, rows, open_markers)


def _tell_videos(kinds: list[int], starts: list[int], rows: list[int], *, last: bool) -> list[int]:
    """Set the kind of placeholders in videos, by the last marker in front of them, or by count.

    Returns `Runs.open_markers`.
    """
    open_markers = []
    for first, stop in pairwise(rows):
        depth = 0
        for at in compress(range(first, stop), kinds[first:stop]):
            kind = kinds[at]
            if kind == IMAGE:
                if depth > 0:
                    kinds[at] = VIDEO
            elif kind != MASKED:
                if last:
                    depth = int(kind == START)
                else:
                    number = starts[at + 1] - starts[at]
                    depth += number if kind == START else -number
        open_markers.append(depth)
    return open_markers


class _Codes(NamedTuple):
    """Numbers that tell tokens apart as far as that matters, of a byte each if that is enough."""

    low: int  # ids are clamped to these two, which are text
    high: int
    dtype: torch.dtype
    shift: int  # taken from the codes where masked tokens are to be 0
    kinds: dict[int, int]  # of codes; of every other it is text


@lru_cache
def _codes(spec: MRopeSpec, ids: torch.dtype | None, *, masked: bool) -> _Codes:
    """Return the codes of ids of a dtype, or of types."""
    given: dict[int | None, int] = {spec.image_token_id: IMAGE, spec.video_token_id: VIDEO}
    if ids is None:
        given = {IMAGE: IMAGE, VIDEO: VIDEO}
    elif spec.marker_rule in ("last", "count"):
        given |= {spec.video_start_token_id: START, spec.video_end_token_id: END}
    elif spec.marker_rule == "adjacent":
        given[spec.vision_start_token_id] = START
    kinds = {token: kind for token, kind in given.items() if token is not None}
    low, high = min(kinds, default=0) - 1, max(kinds, default=0) + 1
    narrow = high - low < 255
    shift = low - 1 if masked else 0
    dtype, size = (torch.uint8, 256) if narrow else (torch.int32, 2**32)
    kinds = {(token - shift) % size: kind for token, kind in kinds.items()}
    if masked:
        kinds[0] = MASKED
    if ids is not None:
        high = min(high, torch.iinfo(ids).max)
    return _Codes(low, high, dtype, shift % size if narrow else shift, kinds)
