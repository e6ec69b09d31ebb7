"""An omni batch numbered by tensor operators that read no value, on a device with Triton."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.search import search
from vecrope.core.stream import make_stream
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.omni.media import (
    MOST_FLOAT,
    Dtypes,
    chunk_length,
    float32,
    seconds_of,
    sound_of,
)
from vecrope.spec import MRopeSpec

# Entries that an item takes at most; a row takes one more.
_ENTRIES = 6


def static_rope_index(
    inputs: Inputs, spec: MRopeSpec, rule: OmniRule, *, validate: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Number a batch of at least one token.

    Returns:
        The positions and deltas; and with `validate`, 0-d bool, whether something does not fit.
    """
    dtypes = Dtypes.of(inputs, spec, rule)
    stream = make_stream(
        inputs.input_ids, inputs.attention_mask, inputs.cu_seqlens, None, exact=True
    )
    ids, bounds, num_tokens = stream.input_ids, stream.row_bounds, stream.num_tokens
    kept = length = bounds.diff()
    place = None
    if stream.kept is not None:
        # Masked tokens leave their places, which are unused at the end.
        ranks = stream.kept.cumsum(0)
        place = (ranks - 1).masked_fill(~stream.kept, num_tokens)
        ids = ids.new_full((num_tokens + 1,), -1).scatter(0, place, ids)[:-1]
        bounds = pad(ranks, (1, 0))[bounds]
        kept = bounds.diff()
    has_grids = inputs.image_grid_thw is not None or inputs.video_grid_thw is not None
    reads_audio = has_grids or inputs.audio_seqlens is not None
    entries, largest, needs = _follow(ids, bounds, inputs, spec, rule, reads_audio=reads_audio)
    has_sound = inputs.use_audio_in_video is not False
    positions = _positions(entries, num_tokens, spec, rule, has_sound=has_sound)
    fault = None
    if validate:
        assert spec.image_token_id is not None
        assert spec.video_token_id is not None
        of_kinds = spec.image_token_id, spec.video_token_id, rule.audio_token_id
        placeholders = torch.stack([ids.eq(token) for token in of_kinds])
        first = pad(ids, (0, 1))[needs[0].clamp(max=num_tokens)]
        # A video comes before its sound.
        late = (needs[3] > 0) & first.ne(spec.video_token_id)
        fault = _misfit(placeholders, needs, reads_audio=reads_audio) | late.any()
        fault = fault | needs[5, : -1 if inputs.allow_unused_grids else None].any()
        if spec.position_dtype == "float32":
            fault = fault | (largest >= MOST_FLOAT).any()
    positions, largest = positions.to(dtypes.positions), largest.to(dtypes.deltas)
    if place is not None:
        positions = pad(positions, (0, 1), value=dtypes.padding)[:, place]
        if dtypes.counts_padding:
            largest = torch.where(kept < length, largest.clamp(min=dtypes.padding), largest)
    taken = length if spec.delta_length == "padded" else kept
    rope_deltas = (largest + 1 - taken.to(dtypes.deltas)).unsqueeze(1)
    return positions.view(3, *inputs.input_ids.shape), rope_deltas, fault


def _misfit(placeholders: Tensor, needs: Tensor, *, reads_audio: bool) -> Tensor:
    """Return, 0-d bool, whether items lack tokens (3, N) of their own, or others have some."""
    begin, stop = needs[:2].clamp(max=placeholders.shape[1])
    upto = pad(placeholders.cumsum(1), (1, 0))
    found = upto[:, stop] - upto[:, begin] != needs[2:5]
    stray = upto[:, -1] != needs[2:5].sum(1)
    return found.any() | stray[: None if reads_audio else 2].any()


def _follow(
    ids: Tensor,
    bounds: Tensor,
    inputs: Inputs,
    spec: MRopeSpec,
    rule: OmniRule,
    *,
    reads_audio: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return where positions count from, in one launch of Triton.

    Returns:
        Entries (6, E), float64, ascending: place of the first token, infinite where there is none;
        its position; tokens of frames (0: the tokens count up), of a frame, of its width; seconds
        of a frame. The tokens of a sound follow the frames, as if it came last.

        The largest position of each row (B,), float64; -1 without a token.

        What each item needs (6, I + 1) int64: places of its first placeholder and behind the last;
        image, video and audio tokens; and, 0 or 1, whether it has no medium, or does not end in its
        row and before the next item. In the last column whether media are left over.
    """
    from vecrope.own_rules.omni.chain_kernel import follow as kernel

    # What comes before the first token of a row is not its neighbour.
    previous = torch.cat((ids.new_full((1,), -1), ids)).index_fill(0, bounds[:-1], -1)[:-1]
    assert spec.image_token_id is not None
    assert spec.video_token_id is not None
    assert spec.vision_start_token_id is not None
    rate = spec.tokens_per_second
    assert rate is not None
    if spec.time_dtype == "float32":
        rate = float32(rate)
    marked = previous.eq(spec.vision_start_token_id)
    begins = marked & (ids.eq(spec.image_token_id) | ids.eq(spec.video_token_id))
    heard = ids.eq(rule.audio_start_token_id)
    begins = begins | (heard if reads_audio else heard & marked)
    none = torch.empty(0, dtype=torch.int64, device=ids.device)
    images, videos, lengths = (
        none.view(shape) if values is None else values.to(ids.device, torch.int64)
        for values, shape in (
            (inputs.image_grid_thw, (0, 3)),
            (inputs.video_grid_thw, (0, 3)),
            (inputs.audio_seqlens, (0,)),
        )
    )
    num_images, num_videos = images.shape[0], videos.shape[0]
    seconds = seconds_of(inputs, spec, num_videos).to(ids.device, torch.float64)
    has_sound = sound_of(inputs, num_videos).to(ids.device)
    # One item more, so that a surplus shows.
    numbers = torch.arange(1, num_images + num_videos + lengths.shape[0] + 2, device=ids.device)
    at = search(begins.cumsum(0), numbers, right=False)
    inside = at.clamp(max=ids.shape[0] - 1)
    values = (
        at, ids[inside], marked[inside].view(torch.uint8), bounds, torch.cat((images, videos)),
        pad(seconds, (num_images, 0), value=1.0), pad(has_sound.view(torch.uint8), (num_images, 0)),
        lengths, at.new_full((1,), rate, dtype=torch.float64),
    )  # fmt: skip
    num_items, num_rows = at.shape[0], bounds.shape[0] - 1
    num_entries = num_rows + _ENTRIES * num_items
    entries = at.new_full((6, num_entries), torch.inf, dtype=torch.float64)
    largest, needs = entries.new_empty(num_rows), at.new_zeros((6, num_items + 1))
    kernel[(1,)](
        *(v.contiguous() for v in values), entries, largest, needs,
        num_items, num_rows, num_images, num_images + num_videos, len(lengths), num_entries,
        IMAGE=spec.image_token_id, VIDEO=spec.video_token_id, MERGE=spec.spatial_merge_size,
        WINDOW=2 * (rule.n_window or 0), CHUNK=chunk_length(spec, rule),
        ROUNDS=spec.position_dtype == "float32", F32=spec.time_dtype == "float32",
        SECONDS_FIRST=spec.time_order == "seconds", WHOLE=rule.whole_times,
        INTERLEAVE=("merge", "walk", "count").index(rule.interleave),
        MARKERS=("own", "shared", "early").index(rule.sound_markers),
        PIECE=rule.sound_end == "piece",
    )  # fmt: skip
    return entries, largest, needs


def _positions(
    entries: Tensor, num_tokens: int, spec: MRopeSpec, rule: OmniRule, *, has_sound: bool
) -> Tensor:
    """Return the positions (3, N), float32, or float64 that hold whole numbers."""
    index = torch.arange(num_tokens, dtype=torch.float64, device=entries.device)
    entry = search(entries[0], index) - 1
    start, base, area, in_frame, width, seconds = entries[:, entry].unbind()
    offset = index - start
    frame = offset.div(in_frame, rounding_mode="floor")
    cell = offset.remainder(in_frame)
    row = cell.div(width, rounding_mode="floor")
    time = _times(frame, seconds, spec, rule)
    of_frame, heard = offset < area, offset - area
    grid = torch.stack((time, row, cell.remainder(width)))
    positions = torch.where(of_frame, grid, heard) + base
    if spec.position_dtype == "float32":
        positions = positions.float()
    if not has_sound:
        return positions
    # How many tokens of the sound come before each token of the frames.
    if rule.interleave == "merge":
        before = (positions[0].double() - base).ceil()
        if spec.position_dtype == "float32":
            # Rounding moves a token of the sound by less than one: it may join the frame.
            before = before - ((base + (before - 1)).float() == positions[0]).double()
    else:
        before = _chunks(time, offset, entry, start, spec, rule) * chunk_length(spec, rule)
    keys = torch.where(of_frame, 2 * before, 2 * heard + 1).long() + entry * 2**40
    return positions[:, keys.argsort(stable=True)]


def _times(frame: Tensor, seconds: Tensor, spec: MRopeSpec, rule: OmniRule) -> Tensor:
    """Return temporal offsets (N,), rounded in the order of the upstream."""
    rate = spec.tokens_per_second
    assert rate is not None
    dtype = torch.float32 if spec.time_dtype == "float32" else torch.float64
    frame, seconds = frame.to(dtype), seconds.to(dtype)
    times = frame * seconds * rate if spec.time_order == "seconds" else frame * (seconds * rate)
    if rule.whole_times:
        # None is negative. For `trunc` a CPU starts threads from some 100 values on.
        times = times.floor()
    # In float64, so that no compiler contracts this product and the sum that follows.
    return times.double()


def _chunks(
    time: Tensor, offset: Tensor, entry: Tensor, start: Tensor, spec: MRopeSpec, rule: OmniRule
) -> Tensor:
    """Return the number of the chunk that each token of a frame falls into, by its time."""
    chunk = time.div(chunk_length(spec, rule), rounding_mode="floor")
    if rule.interleave == "count":
        begun = ((offset > 0) & (chunk != pad(chunk[:-1], (1, 0)))).cumsum(0)
        return (begun - begun[start.long()]).double()
    # One token takes at most one step: chunk[r] = min(time[r] // length, chunk[r - 1] + 1), which
    # is r + min(time[q] // length - q) over the tokens q up to r. Each entry's keys lie far below
    # those of the entry before, so that one running minimum serves all.
    floor = entry * 2**40
    return ((chunk - offset).long() - floor).cummin(0).values + floor + offset
