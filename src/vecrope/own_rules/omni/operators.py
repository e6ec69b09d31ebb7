"""What an omni batch is in a graph: one operator on the host, or one Triton program and tensors.

Every sum of positions is rounded where they are float32, so that the order of the sums matters and
no prefix sum gives the same. Both operators go through the items one after the other, so that a
graph neither depends on their number nor contracts the sums.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vecrope import checks
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.omni.host import number_on_host
from vecrope.own_rules.omni.media import Dtypes, chunk_length, float32, seconds_of, sound_of
from vecrope.spec import MRopeSpec

# Entries that an item takes at most; a row takes one more.
_ENTRIES = 6


_spec_of = lru_cache(MRopeSpec.from_text)


def traced_rope_index(inputs: Inputs, spec: MRopeSpec) -> tuple[Tensor, Tensor]:
    """Return what `number_on_host` does, as one node of a graph; a misfit has no answer."""
    num_videos = 0 if inputs.video_grid_thw is None else inputs.video_grid_thw.shape[0]
    seconds = inputs.second_per_grid_ts
    if seconds is not None:
        seconds = seconds_of(inputs, spec, num_videos)
    answer: tuple[Tensor, Tensor] = omni_rope_index(
        *inputs[:5], seconds, inputs.audio_seqlens, sound_of(inputs, num_videos),
        inputs.allow_unused_grids, inputs.round_grid_sides, spec.as_text,
    )  # fmt: skip
    return answer


@torch.library.custom_op(
    "vecrope::omni_rope_index",
    mutates_args=(),
    schema="(Tensor input_ids, Tensor? image_grid_thw, Tensor? video_grid_thw, "
    "Tensor? attention_mask, Tensor? cu_seqlens, Tensor? second_per_grid_ts, "
    "Tensor? audio_seqlens, Tensor has_sound, bool allow_unused_grids, bool round_grid_sides, "
    "str spec) -> (Tensor, Tensor)",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def omni_rope_index(*given: Any) -> tuple[Tensor, Tensor]:
    """Return what `number_on_host` does, or for a misfit -1s and the least int64 as deltas."""
    ids, images, videos, mask, bounds, seconds, lengths, sound, unused, rounded, text = given
    inputs = Inputs(
        ids, images, videos, mask, bounds, None, seconds, lengths, sound,
        allow_unused_grids=unused, round_grid_sides=rounded,
    )  # fmt: skip
    spec = _spec_of(text)
    assert isinstance(spec.own_rule, OmniRule)
    try:
        if bounds is not None:
            checks.check_cu_seqlens(bounds, ids.shape[0])
        return number_on_host(inputs, spec, spec.own_rule)
    except ValueError:
        positions, rope_deltas = _no_answer(*given)
        return positions.fill_(-1), rope_deltas.fill_(torch.iinfo(torch.int64).min)


@omni_rope_index.register_fake
def _no_answer(*given: Any) -> tuple[Tensor, Tensor]:
    input_ids, *_, bounds, _, _, _, _, _, text = given
    spec = _spec_of(text)
    assert isinstance(spec.own_rule, OmniRule)
    dtypes = Dtypes.of(Inputs(*given[:3]), spec, spec.own_rule)
    num_rows = input_ids.shape[0] if bounds is None else bounds.shape[0] - 1
    return (
        input_ids.new_empty((3, *input_ids.shape), dtype=dtypes.positions),
        input_ids.new_empty((num_rows, 1), dtype=dtypes.deltas),
    )


@torch.library.custom_op(
    "vecrope::omni_entries",
    mutates_args=(),
    schema="(Tensor at, Tensor ids, Tensor marked, Tensor bounds, Tensor grids, SymInt num_images, "
    "Tensor seconds, Tensor has_sound, Tensor lengths, str spec) -> (Tensor, Tensor, Tensor)",
)
def omni_entries(
    at: Tensor,
    ids: Tensor,
    marked: Tensor,
    bounds: Tensor,
    grids: Tensor,
    num_images: int,
    seconds: Tensor,
    has_sound: Tensor,
    lengths: Tensor,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return where positions count from, in one launch of Triton.

    Args:
        at: (I,) int64, ascending: the place of the first placeholder of an image or a video, or of
            the audio start of an audio or of a video with sound; N where there is none.
        ids: (I,) the id that stands there.
        marked: (I,) bool: whether a vision start of the same row stands before it.
        bounds: (B + 1,) int64: where each row begins, then N or less.
        grids: (num_visuals, 3) int64, those of images first.
        num_images: how many are of images.
        seconds: (num_visuals,) float64: of a frame, rounded to the time dtype.
        has_sound: (num_visuals,) bool: which videos have sound.
        lengths: (num_audios,) int64: the mel frames.
        spec: the rules, as text.

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

    of = _spec_of(spec)
    rule, rate = of.own_rule, of.tokens_per_second
    assert isinstance(rule, OmniRule)
    assert rate is not None
    if of.time_dtype == "float32":
        rate = float32(rate)
    flags = marked.to(torch.uint8), has_sound.to(torch.uint8)
    values = at, ids, flags[0], bounds, grids, seconds, flags[1], lengths
    entries, largest, needs = _unwritten(*values)
    kernel[(1,)](
        *(v.contiguous() for v in values), at.new_full((1,), rate, dtype=torch.float64),
        entries, largest, needs,
        len(at), len(largest), num_images, len(grids), len(lengths), entries.shape[1],
        IMAGE=of.image_token_id, VIDEO=of.video_token_id, MERGE=of.spatial_merge_size,
        WINDOW=2 * (rule.n_window or 0), CHUNK=chunk_length(of, rule),
        ROUNDS=of.position_dtype == "float32", F32=of.time_dtype == "float32",
        SECONDS_FIRST=of.time_order == "seconds", WHOLE=rule.whole_times,
        INTERLEAVE=("merge", "walk", "count").index(rule.interleave),
        MARKERS=("own", "shared", "early").index(rule.sound_markers),
        PIECE=rule.sound_end == "piece",
    )  # fmt: skip
    return entries, largest, needs


@omni_entries.register_fake
def _unwritten(at: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    num_items, num_rows = at.shape[0], given[2].shape[0] - 1
    size = 6, num_rows + _ENTRIES * num_items
    entries = at.new_full(size, torch.inf, dtype=torch.float64)
    return entries, entries.new_empty(num_rows), at.new_zeros((6, num_items + 1))
