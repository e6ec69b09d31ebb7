"""An omni batch numbered by tensor operators that read no value, on a device with Triton."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.search import search
from vecrope.core.stream import Stream, make_stream
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.common import unmasked_first
from vecrope.own_rules.omni.media import Dtypes, chunk_length, float32, seconds_of
from vecrope.spec import MRopeSpec

# Entries that an item takes at most; a row takes one more.
_ENTRIES = 6


def static_rope_index(inputs: Inputs, spec: MRopeSpec, rule: OmniRule) -> tuple[Tensor, Tensor]:
    """Return the positions and deltas of a batch of at least one token that fits its media."""
    dtypes = Dtypes.of(inputs, spec, rule)
    stream = make_stream(
        inputs.input_ids, inputs.attention_mask, inputs.cu_seqlens, None, exact=True
    )
    masked = None if stream.kept is None else ~stream.kept
    lengths = taken = stream.row_bounds.diff()
    stream, slot = unmasked_first(stream)
    entries, largest = _follow(stream, inputs, spec, rule)
    has_sound = inputs.use_audio_in_video is not False
    positions = _positions(entries, stream.num_tokens, spec, rule, has_sound=has_sound)
    positions, largest = positions.to(dtypes.positions), largest.to(dtypes.deltas)
    if masked is not None:
        positions = positions[:, slot].masked_fill(masked, dtypes.padding)
        kept = stream.row_bounds.diff()
        if dtypes.counts_padding:
            largest = torch.where(kept < lengths, largest.clamp(min=dtypes.padding), largest)
        taken = lengths if spec.delta_length == "padded" else kept
    rope_deltas = (largest + 1 - taken.to(dtypes.deltas)).unsqueeze(1)
    return positions.view(3, *inputs.input_ids.shape), rope_deltas


def _follow(
    stream: Stream, inputs: Inputs, spec: MRopeSpec, rule: OmniRule
) -> tuple[Tensor, Tensor]:
    """Return where positions count from, in one launch of Triton.

    Returns:
        Entries (6, E), float64, ascending: place of the first token, infinite where there is none;
        its position; tokens of frames (0: the tokens count up), of a frame, of its width; seconds
        of a frame. The tokens of a sound follow the frames, as if it came last.

        The largest position of each row (B,), float64; -1 without a token.
    """
    from vecrope.own_rules.omni.chain_kernel import follow as kernel

    ids, bounds, rate = stream.input_ids, stream.row_bounds, spec.tokens_per_second
    assert spec.image_token_id is not None
    assert spec.video_token_id is not None
    assert spec.vision_start_token_id is not None
    assert rate is not None
    if spec.time_dtype == "float32":
        rate = float32(rate)
    # What comes before the first token of a row is not its neighbour.
    marked = pad(ids.eq(spec.vision_start_token_id), (1, 0)).index_fill(0, bounds[:-1], False)[:-1]
    begins = marked & (ids.eq(spec.image_token_id) | ids.eq(spec.video_token_id))
    heard = ids.eq(rule.audio_start_token_id)
    media = inputs.image_grid_thw, inputs.video_grid_thw, inputs.audio_seqlens
    begins = begins | (heard if any(value is not None for value in media) else heard & marked)
    none = torch.empty(0, dtype=torch.int64, device=ids.device)
    images, videos, lengths = (
        none.view(shape) if values is None else values.to(ids.device, torch.int64)
        for values, shape in zip(media, ((0, 3), (0, 3), (0,)), strict=True)
    )
    num_images, num_videos, num_audios = len(images), len(videos), len(lengths)
    num_items, num_rows = num_images + num_videos + num_audios, stream.num_rows
    numbers = torch.arange(1, num_items + 1, device=ids.device)
    at = search(begins.cumsum(0), numbers, right=False)
    num_entries = num_rows + _ENTRIES * num_items
    entries = at.new_full((6, num_entries), torch.inf, dtype=torch.float64)
    largest = entries.new_empty(num_rows)
    values = (
        at, ids, marked.view(torch.uint8), bounds, torch.cat((images, videos)),
        seconds_of(inputs, spec, num_videos).to(ids.device, torch.float64),
        lengths, entries.new_full((1,), rate),
    )  # fmt: skip
    kernel[(1,)](
        *(value.contiguous() for value in values), entries, largest,
        num_items, num_rows, num_images, num_images + num_videos, num_audios, num_entries,
        IMAGE=spec.image_token_id, VIDEO=spec.video_token_id, MERGE=spec.spatial_merge_size,
        WINDOW=2 * (rule.n_window or 0), CHUNK=chunk_length(spec, rule),
        ROUNDS=spec.position_dtype == "float32", F32=spec.time_dtype == "float32",
        SECONDS_FIRST=spec.time_order == "seconds", WHOLE=rule.whole_times,
        INTERLEAVE=("merge", "walk", "count").index(rule.interleave),
        MARKERS=("own", "shared", "early").index(rule.sound_markers),
        PIECE=rule.sound_end == "piece",
    )  # fmt: skip
    return entries, largest


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
