"""The omni families: images, videos and audio, and videos with their sound."""

from __future__ import annotations

from operator import sub
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.omni import checks
from vecrope.own_rules.omni.entries import Entry, write_entries
from vecrope.own_rules.omni.find import Tokens, find_items, unmasked_tokens
from vecrope.own_rules.omni.media import MOST_FLOAT, Traits, float32, read_media
from vecrope.own_rules.omni.number import follow
from vecrope.own_rules.omni.static import static_rope_index
from vecrope.spec import MRopeSpec


def omni_rope_index(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> tuple[Tensor, Tensor]:
    """Return the M-RoPE position ids and deltas of a batch of an omni family.

    Text and audio count up on all three axes, images and videos read row and column off their
    grids, frames are spaced in time, and the next token follows the largest position so far. The
    tokens of a video with its sound take turns, in an order that follows from the times alone;
    the markers behind it follow the last piece of video or sound.

    Positions of whole numbers are one cumulative sum over the items. Where they are float32
    (qwen3_omni_moe), each sum is rounded, so that the items of the batch are gone through one after
    the other, as one operator on their table; the tokens are not.

    Args:
        inputs: types, shapes and the mask's values have been checked.
        spec: with an `OmniRule`.
        validate: check that the tokens and the media fit; synchronises: on a device the media are
            read, and whether anything misfits. Under tracing a misfit gives -1 everywhere, and the
            least int64 as deltas.

    Returns:
        `position_ids` (3, B, T) or (3, N), of `spec.position_dtype`, or of `text_dtype` in a batch
        without any grid; `rope_deltas` (B, 1) float32 where positions are, else int64.

    Raises:
        TypeError: for a medium of the wrong type or dtype.
        ValueError: for media that are missing, of the wrong shape, or do not fit the tokens.

    The rules are those of transformers' `get_rope_index` of both families, of SGLang's
    `get_rope_index_qwen3_omni` and of vLLM's `get_mrope_input_positions` of both.
    """
    rule = spec.own_rule
    assert isinstance(rule, OmniRule)
    checks.check_media_types(inputs, spec, rule)
    tracing = torch.compiler.is_compiling()
    input_ids = inputs.input_ids
    without_grids = not _has_grids(inputs)
    dtypes = {"ids": input_ids.dtype, "int64": torch.int64, "float32": torch.float32}
    dtype = dtypes[rule.text_dtype if without_grids else spec.position_dtype]
    delta_dtype = torch.float32 if dtype == torch.float32 else torch.int64

    if validate and not tracing:
        if input_ids.is_cpu or not input_ids.numel():
            return _on_host(inputs, spec, rule, dtype)
        # On a device the tokens and their mask stay there; what describes the media is read, and
        # one fault.
        media = inputs._replace(input_ids=input_ids[:0], attention_mask=None, cu_seqlens=None)
        read_media(_copied_to_host(media), spec, rule)
    if not input_ids.numel():
        num_rows = input_ids.shape[0] if inputs.cu_seqlens is None else len(inputs.cu_seqlens) - 1
        rope_deltas = torch.zeros((num_rows, 1), dtype=delta_dtype, device=input_ids.device)
        return input_ids.new_empty((3, *input_ids.shape), dtype=dtype), rope_deltas
    tokens, positions, largest, fault = static_rope_index(inputs, spec, rule, validate=validate)
    if fault is not None and not tracing:
        if fault:
            return _on_host(inputs, spec, rule, dtype)  # which names it
        fault = None
    positions, largest = positions.to(dtype), largest.to(delta_dtype)
    kept, padded = tokens.bounds.diff(), tokens.padded_bounds.diff()
    if tokens.place is not None:
        padding = spec.padding_value
        if without_grids and rule.text_padding_value is not None:
            padding = rule.text_padding_value
            largest = torch.where(kept < padded, largest.clamp(min=padding), largest)
        masked = tokens.place == tokens.ids.shape[0]
        place = tokens.place.masked_fill(masked, 0)
        positions = positions[:, place].masked_fill(masked, padding)
    length = padded if spec.delta_length == "padded" else kept
    rope_deltas = (largest + 1 - length.to(delta_dtype)).unsqueeze(1)
    positions = positions.view(3, *input_ids.shape)
    if fault is None:
        return positions, rope_deltas
    least = torch.iinfo(torch.int64).min
    return torch.where(fault, -1, positions), torch.where(fault, least, rope_deltas)


class OnHost(NamedTuple):
    """A batch whose items have been followed on the host."""

    tokens: Tokens
    entries: list[Entry]  # of the unmasked tokens
    rope_deltas: Tensor  # (B, 1) on the CPU
    padding_value: int


def follow_on_host(inputs: Inputs, spec: MRopeSpec, rule: OmniRule) -> OnHost:
    """Find the items of a batch, and follow the running position over them.

    Args:
        inputs: types, shapes and the mask's values have been checked.
        spec: the family's rules.
        rule: likewise.

    Raises:
        ValueError: for media that are not sound, or do not fit the tokens.
    """
    host = inputs if inputs.input_ids.is_cpu else _copied_to_host(inputs)
    tokens, media = unmasked_tokens(host), read_media(host, spec, rule)
    items = find_items(tokens, media, host, spec, rule)
    entries, largest = follow(items, media, tokens.bounds, Traits.of(spec, rule))
    _check_range(largest, spec)
    padding = spec.padding_value
    num_kept, lengths = (
        [*map(sub, bounds[1:], bounds)] for bounds in (tokens.bounds, tokens.given_bounds)
    )
    dtype = torch.float32 if spec.position_dtype == "float32" else torch.int64
    if not _has_grids(inputs):
        dtype = torch.float32 if rule.text_dtype == "float32" else torch.int64
        if rule.text_padding_value is not None:
            padding = rule.text_padding_value
            largest = [
                max(most, padding) if length > kept else most
                for most, length, kept in zip(largest, lengths, num_kept, strict=True)
            ]
    near = float32 if dtype == torch.float32 else int
    taken = lengths if spec.delta_length == "padded" else num_kept
    deltas = [[near(near(most + 1) - length)] for most, length in zip(largest, taken, strict=True)]
    return OnHost(
        tokens, entries, torch.tensor(deltas, dtype=dtype, device="cpu").view(-1, 1), padding
    )


def _on_host(
    inputs: Inputs, spec: MRopeSpec, rule: OmniRule, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the answer from items on the host."""
    input_ids = inputs.input_ids
    tokens, entries, rope_deltas, padding = follow_on_host(inputs, spec, rule)
    positions = torch.empty((3, 0), dtype=dtype, device="cpu")
    if entries:
        laid_out = torch.float32 if spec.position_dtype == "float32" else torch.int64
        positions = write_entries(entries, laid_out).to(dtype)
    if tokens.given_index is not None:
        packed = positions
        positions = torch.full((3, input_ids.numel()), padding, dtype=dtype, device="cpu")
        positions.index_copy_(1, tokens.given_index, packed)
    positions = positions.view(3, *input_ids.shape)
    if input_ids.is_cpu:
        return positions, rope_deltas
    return positions.to(input_ids.device), rope_deltas.to(input_ids.device)


def _has_grids(inputs: Inputs) -> bool:
    """Say whether the upstreams would look at the ids at all."""
    return inputs.image_grid_thw is not None or inputs.video_grid_thw is not None


def _copied_to_host(inputs: Inputs) -> Inputs:
    """Return the arguments with every tensor copied to the CPU."""
    return Inputs._make(v.to("cpu") if isinstance(v, Tensor) else v for v in inputs)


def _check_range(largest: list[float], spec: MRopeSpec) -> None:
    """Check that float32 tells the positions of every row apart."""
    if spec.position_dtype != "float32" or max(largest, default=0) < MOST_FLOAT:
        return
    row, most = next((row, most) for row, most in enumerate(largest) if most >= MOST_FLOAT)
    raise ValueError(
        f"positions must stay below 2**24 in torch.float32, got {most:.0f} in row {row}; does "
        "second_per_grid_ts hold seconds?"
    )
