"""An omni prompt by tensor operators that read no value: traced, or on a device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.search import search
from vecrope.core.stream import make_stream
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.omni.media import MOST_FLOAT, Traits
from vecrope.own_rules.omni.regions import regions
from vecrope.spec import MRopeSpec


class Packed(NamedTuple):
    """The unmasked tokens of the batch, one row after the other."""

    ids: Tensor  # (N,) -1 for the places that masked tokens leave unused, at the end
    bounds: Tensor  # (B + 1,) where each row begins, and the last one ends
    place: Tensor | None  # (N,) where each token of the input went, or N; None: nowhere else
    padded_bounds: Tensor  # (B + 1,) as `bounds`, in the input


def static_rope_index(
    inputs: Inputs, spec: MRopeSpec, rule: OmniRule, *, validate: bool
) -> tuple[Packed, Tensor, Tensor, Tensor | None]:
    """Number the unmasked tokens of a batch.

    Args:
        inputs: at least one token; types and shapes have been checked.
        spec: the family's rules.
        rule: likewise.
        validate: say whether media and tokens fit.

    Returns:
        The tokens; their positions (3, N), float32, or float64 that hold whole numbers; the largest
        of each row (B,), -1 for a row without tokens; and, 0-d bool, whether something does not
        fit, or None.
    """
    traits, tokens = Traits.of(spec, rule), _pack(inputs)
    ids, bounds = tokens.ids, tokens.bounds
    num_tokens = ids.shape[0]
    # What comes before the first token of a row is not its neighbour.
    previous = torch.cat((ids.new_full((1,), -1), ids)).index_fill(0, bounds[:-1], -1)[:-1]
    visual = [token for token in (spec.image_token_id, spec.video_token_id) if token is not None]
    assert spec.vision_start_token_id is not None
    marked = previous.eq(spec.vision_start_token_id)
    placeholders = [ids.eq(token) for token in visual]
    heard = ids == rule.audio_start_token_id
    begins = marked & (placeholders[0] | placeholders[1])
    has_grids = inputs.image_grid_thw is not None or inputs.video_grid_thw is not None
    reads_audio = has_grids or inputs.audio_seqlens is not None
    begins = begins | (heard if reads_audio else heard & marked)
    media = _media(inputs, spec, traits)
    # One item more, so that a surplus shows.
    capacity = sum(values.shape[0] for values in media[:2]) + media[3].shape[0] + 1
    numbers = torch.arange(1, capacity + 1, device=ids.device)
    at = search(begins.cumsum(0), numbers, right=False)
    inside = at.clamp(max=num_tokens - 1)
    entries, largest, needs, faults = regions(
        [at, ids[inside], marked[inside], bounds, *media],
        [*visual, spec.spatial_merge_size, rule.n_window or 0],
        *traits[-2:],
        " ".join(traits[:-2]),
    )
    positions = _positions(
        entries, num_tokens, traits, has_sound=inputs.use_audio_in_video is not False
    )
    fault = None
    if validate:
        placeholders.append(ids == rule.audio_token_id)
        fault = _misfit(ids, torch.stack(placeholders), needs, reads_audio, spec)
        fault = fault | (faults[:-1] if inputs.allow_unused_grids else faults).any()
        if traits.position_dtype == "float32":
            fault = fault | (largest >= MOST_FLOAT).any()
    return tokens, positions, largest, fault


def _misfit(
    ids: Tensor, placeholders: Tensor, needs: Tensor, reads_audio: bool, spec: MRopeSpec
) -> Tensor:
    """Return, 0-d bool, whether items lack tokens (3, N) of their own, or others have some."""
    begin, stop, *_ = needs.clamp(max=ids.shape[0]).unbind()
    upto = pad(placeholders.cumsum(1), (1, 0))
    found = upto[:, stop] - upto[:, begin] != needs[2:]
    stray = upto[:, -1] != needs[2:].sum(1)
    first = pad(ids, (0, 1))[begin]
    # A video comes before its sound.
    late = (needs[3] > 0) & (first != spec.video_token_id)
    counted = slice(None if reads_audio else 2)
    return found.any() | stray[counted].any() | late.any()


def _pack(inputs: Inputs) -> Packed:
    """Move masked tokens out of the way."""
    stream = make_stream(
        inputs.input_ids, inputs.attention_mask, inputs.cu_seqlens, None, exact=True
    )
    bounds, ids = stream.row_bounds, stream.input_ids
    if stream.kept is None:
        return Packed(ids, bounds, None, bounds)
    ranks = stream.kept.cumsum(0)
    place = (ranks - 1).masked_fill(~stream.kept, stream.num_tokens)
    packed = ids.new_full((stream.num_tokens + 1,), -1).scatter(0, place, ids)[:-1]
    return Packed(packed, pad(ranks, (1, 0))[bounds], place, bounds)


def _media(inputs: Inputs, spec: MRopeSpec, traits: Traits) -> tuple[Tensor, ...]:
    """Return grids of images and of videos, seconds, audio lengths, and which videos have sound."""
    device = inputs.input_ids.device
    none = torch.empty(0, dtype=torch.int64, device=device)
    images, videos, audio_seqlens = (
        none.view(shape) if values is None else values.to(device, torch.int64)
        for values, shape in (
            (inputs.image_grid_thw, (0, 3)),
            (inputs.video_grid_thw, (0, 3)),
            (inputs.audio_seqlens, (0,)),
        )
    )
    seconds = inputs.second_per_grid_ts
    if seconds is None:
        default = 1.0 if spec.default_seconds is None else spec.default_seconds
        seconds = torch.full((videos.shape[0],), default, dtype=torch.float64, device=device)
    elif not isinstance(seconds, Tensor):
        seconds = torch.tensor(seconds, dtype=torch.float64, device="cpu")
    if traits.time_dtype == "float32":
        seconds = seconds.float()
    flags = inputs.use_audio_in_video
    if isinstance(flags, bool):
        flags = torch.full((videos.shape[0],), flags, dtype=torch.bool, device=device)
    has_sound = torch.as_tensor(flags, dtype=torch.bool, device=device)
    return images, videos, seconds.to(device, torch.float64), audio_seqlens, has_sound


def _positions(entries: Tensor, num_tokens: int, traits: Traits, *, has_sound: bool) -> Tensor:
    """Return the positions (3, N), float64."""
    index = torch.arange(num_tokens, dtype=torch.float64, device=entries.device)
    entry = search(entries[0], index) - 1
    start, base, area, in_frame, width, seconds, audio = entries[:, entry].unbind()
    offset = index - start
    frame = offset.div(in_frame, rounding_mode="floor")
    cell = offset.remainder(in_frame)
    row = cell.div(width, rounding_mode="floor")
    time = _times(frame, seconds, traits)
    grid = torch.stack((time, row, cell.remainder(width)))
    of_frame = offset < area
    positions = torch.where(of_frame, grid, offset - area) + base
    if traits.position_dtype == "float32":
        positions = positions.float()
    if not has_sound:
        return positions
    moves, in_block = of_frame & (audio > 0), audio > 0
    if traits.interleave == "merge":
        before = (positions[0].double() - base).ceil()
        if traits.position_dtype == "float32":
            # Rounding moves a token of the sound by less than one: it may join the frame.
            before = before - ((base + (before - 1)).float() == positions[0]).double()
    else:
        before = _chunks(time, offset, moves, entry, start, traits) * traits.chunk_length
    place = (index + before.minimum(audio)).masked_fill(~moves, num_tokens).long()
    source = index.new_full((num_tokens + 1,), -1).scatter(0, place, index)[:-1]
    taken = source >= 0
    # A block begins with a frame. Its sound takes the places that are left.
    passed = taken.cumsum(0)
    passed = passed - passed[start.clamp(max=num_tokens - 1).long()] + 1
    source = torch.where(taken, source, index + (area - passed) * in_block)
    return positions[:, source.clamp(0, num_tokens - 1).long()]


def _times(frame: Tensor, seconds: Tensor, traits: Traits) -> Tensor:
    """Return temporal offsets (N,), rounded in the order of the upstream."""
    rate = traits.tokens_per_second
    dtype = torch.float32 if traits.time_dtype == "float32" else torch.float64
    frame, seconds = frame.to(dtype), seconds.to(dtype)
    times = frame * seconds * rate if traits.time_order == "seconds" else frame * (seconds * rate)
    if traits.whole_times:
        # None is negative. For `trunc` a CPU starts threads from some 100 values on.
        times = times.floor()
    # In float64, so that no compiler contracts this product and the sum that follows.
    return times.double()


def _chunks(
    time: Tensor, offset: Tensor, moves: Tensor, entry: Tensor, start: Tensor, traits: Traits
) -> Tensor:
    """Return the number of the chunk that each video token with sound falls into, by its time."""
    chunk = time.div(traits.chunk_length, rounding_mode="floor")
    if traits.interleave == "count":
        begins = moves & (offset > 0) & (chunk != pad(chunk[:-1], (1, 0)))
        begun = begins.cumsum(0)
        return (begun - begun[start.clamp(max=begun.shape[0] - 1).long()]).double()
    # One token takes at most one step: chunk[r] = min(time[r] // length, chunk[r - 1] + 1), which
    # is r + min(time[q] // length - q) over the tokens q up to r. Each block's keys lie far below
    # those of the block before, so that one running minimum serves all.
    floor = entry * 2**40
    keys = ((chunk - offset).long() - floor).masked_fill(~moves, 2**62)
    return (keys.cummin(0).values + floor) + offset
