"""`collate`: the stages composed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import sub
from typing import Any

import torch
from torch import Tensor

from vecrope import checks
from vecrope.collate import fields
from vecrope.collate.alike import check_masks
from vecrope.collate.boundaries import (
    bounds_of,
    flash_attention_arguments,
    sequence_index,
    text_row_of,
)
from vecrope.collate.join import (
    Extra,
    Padding,
    PaddingSide,
    join_extra,
    join_media,
)
from vecrope.collate.number import number
from vecrope.collate.packing import warn_of_obstacles
from vecrope.collate.read import read_dummy, read_samples
from vecrope.collate.samples import Sample, Samples
from vecrope.families.fields import check_bool
from vecrope.families.rules import GlmImage
from vecrope.spec import MRopeSpec


def collate(
    samples: Sequence[Mapping[str, Any]],
    spec: MRopeSpec,
    *,
    pad_token_id: int,
    packed: bool = False,
    padding_side: PaddingSide = "right",
    pad_to_multiple_of: int | None = None,
    pad_sequences_to_multiple_of: int | None = None,
    text_positions: bool | None = None,
    batch_first: bool = False,
    return_flash_attn_kwargs: bool = True,
    return_seq_idx: bool | None = None,
    return_use_cache: bool = True,
    extra: Extra | None = None,
    dummy_image: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the samples of a batch padded to one length, or packed, with their positions.

    Bind all arguments but the samples, for example with `functools.partial`, to get the
    `collate_fn` of a data loader or the `data_collator` of transformers' `Trainer`. A sample is
    what a processor of transformers returns for one prompt. The media of each sample are compared
    with that sample's own tokens, and an error gives the number of the sample.

    Args:
        samples: mappings, at least one, with these keys. `input_ids`, and optionally `labels`,
            `attention_mask`, `mm_token_type_ids` and `moe_mm_token_type_ids`: T integers each, as a
            tensor, an array or a list, or in a batch of one, (1, T). `image_grid_thw` and
            `video_grid_thw`: (n, 3) integers. `pixel_values` and `pixel_values_videos`: the patches
            that the grids count. `second_per_grid_ts`, `second_per_grids` or
            `video_second_per_grid`: n seconds, in all samples a tensor or in all a list.
            `input_features`, `feature_attention_mask` and `audio_seqlens`: audio.
            `use_audio_in_video`: a bool. `images_per_sample`, `target_sizes` and
            `target_sizes_videos`. `position_ids` and `rope_deltas`, as this function returned them
            for the sample alone; they are then not computed again. None counts as absent.
        spec: the family's rules and the convention of the upstream, `"transformers"` for its
            models.
        pad_token_id: the id of padding tokens.
        packed: put all samples into one row, one after the other, instead of one row per sample.
        padding_side: `"right"` or `"left"`; a packed row is always padded on the right.
        pad_to_multiple_of: pad rows up to a multiple of this many tokens. After packed samples this
            padding forms one more sequence.
        pad_sequences_to_multiple_of: pad each packed sample on its own, for context parallelism
            that shards within sequences.
        text_positions: prepend the row by which transformers tells packed samples apart. None: if
            `packed`, except for hunyuan_vl, whose model refuses it.
        batch_first: return positions as (B, 3, T) or (B, 4, T), for frameworks that slice by rows.
        return_flash_attn_kwargs: return the bounds of packed samples.
        return_seq_idx: return the number of each packed token's sample. None: for the families
            that need it, those with linear attention.
        return_use_cache: return `use_cache=False` with packed samples. With a cache, eager and sdpa
            attention ignore the text row; transformers' `Trainer` (5.23) turns the cache off in the
            model's own configuration, but not in that of its text model.
        extra: what to do with other keys: `"stack"` their values as tensors of one shape, keep a
            `"list"` with one entry per sample, or `"drop"` them. None: refuse them.
        dummy_image: what `vecrope.dummy_image` returns. It is put after the last token of a batch
            without images and videos, so that the vision tower runs on every rank.

    Returns:
        `input_ids`, (B, T) int64, or (1, N) if packed; `position_ids`, (3, B, T) or (4, B, T), and
        `rope_deltas`, (B, 1), as `vecrope.get_rope_index` returns them for each sample (images of
        hunyuan_vl are counted per sample, while its model counts through a padded batch). The rest
        of the samples: `labels`, with -100 at padding and, if packed, at the first token of each
        sample, which must not be predicted from another sample; types; grids, seconds, pixels and
        audio in the order of the samples; for `glm_image` also `images_per_sample`, (B,) int64, or
        (B + 1,) with a dummy picture. Pixels and features stay on their device; all else is on the
        CPU.

        A padded batch has an `attention_mask` (B, T) int64. A packed batch has none, because with a
        mask transformers does not tell the samples apart. It has `cu_seq_lens_q` and
        `cu_seq_lens_k`, (num_sequences + 1,) int32, which are one tensor, as in transformers' own
        collator; `max_length_q` and `max_length_k`, ints; `seq_idx`, (1, N) int32 from 0; and
        `use_cache`, False. Padding after the samples is the last of these sequences: it counts up
        from 0 in the text row, holds `spec.padding_value` on the other axes, and has no row of
        `rope_deltas`. With `pad_sequences_to_multiple_of` the bounds are those of the padded
        samples, and TransformerEngine takes `cu_seqlens_q` and `cu_seqlens_q_padded`, both int32.
        TRL's `SFTTrainer` (1.16) logs a packed batch as one token, because it takes the second
        dimension of `position_ids` for the length.

    Raises:
        TypeError: for a name that is not known, and for values of a wrong type.
        ValueError: for no samples; for a sample, or a dummy picture, that does not fit its own
            media; for what only some samples have; and for masked tokens among those to be packed.

    Warns:
        UserWarning: once, for packed samples of a family whose linear attention needs kernels that
            are not installed here, and of hunyuan_vl; see `vecrope.packing_obstacles`.

    Example:
        >>> import vecrope
        >>> spec = vecrope.MRopeSpec.for_model("qwen2_vl", convention="transformers")
        >>> image = spec.image_token_id
        >>> samples = [
        ...     {"input_ids": [7, image, image, 8], "image_grid_thw": [[1, 2, 4]]},
        ...     {"input_ids": [5, 6]},
        ... ]
        >>> vecrope.collate(samples, spec, pad_token_id=0)["position_ids"][0]
        tensor([[0, 1, 1, 3],
                [0, 1, 0, 0]])
        >>> batch = vecrope.collate(samples, spec, pad_token_id=0, packed=True)
        >>> batch["position_ids"][:, 0]
        tensor([[0, 1, 2, 3, 0, 1],
                [0, 1, 1, 3, 0, 1],
                [0, 1, 1, 3, 0, 1],
                [0, 1, 2, 3, 0, 1]])
        >>> batch["cu_seq_lens_q"]
        tensor([0, 4, 6], dtype=torch.int32)
    """
    checks.check_spec(spec)
    if pad_token_id is None:
        raise TypeError(
            "pad_token_id must be an int, got None: a tokenizer without a padding token pads with "
            "its eos_token_id"
        )
    checks.check_int("pad_token_id", pad_token_id, 0)
    checks.check_choice("padding_side", padding_side, PaddingSide)
    if extra is not None:
        checks.check_choice("extra", extra, Extra)
    flags = {
        "packed": packed,
        "text_positions": text_positions,
        "batch_first": batch_first,
        "return_flash_attn_kwargs": return_flash_attn_kwargs,
        "return_seq_idx": return_seq_idx,
        "return_use_cache": return_use_cache,
    }
    for name, flag in flags.items():
        if flag is not None or name not in ("text_positions", "return_seq_idx"):
            check_bool(name, flag)
    multiples = {
        "pad_to_multiple_of": pad_to_multiple_of,
        "pad_sequences_to_multiple_of": pad_sequences_to_multiple_of,
    }
    for name, value in multiples.items():
        if value is not None:
            checks.check_int(name, value, 1, 2**31)
    multiple, own_multiple = pad_to_multiple_of or 1, pad_sequences_to_multiple_of or 1
    if pad_sequences_to_multiple_of is not None and not packed:
        raise ValueError("pad_sequences_to_multiple_of must be None without packed=True")

    read = read_samples(samples, spec, keep_extra=extra is not None)
    media = join_media(read.media, read.joined)
    dummy = None
    if dummy_image is not None and not _have_pictures(read, spec):
        dummy = read_dummy(dummy_image, read, spec)
    if packed:
        warn_of_obstacles(spec.model_type)
        if text_positions is None:
            text_positions = spec.model_type not in fields.NO_TEXT_ROW
        if return_seq_idx is None:
            return_seq_idx = spec.model_type in fields.LINEAR_ATTENTION
        batch = _packed(
            read, dummy, media, spec, pad_token_id, multiple, own_multiple, text_positions
        )
        lengths = batch.pop("lengths")
        if return_flash_attn_kwargs:
            batch.update(flash_attention_arguments(lengths))
        if return_seq_idx:
            batch["seq_idx"] = sequence_index(lengths)
        if return_use_cache:
            batch["use_cache"] = False
        if pad_sequences_to_multiple_of is not None:
            batch["cu_seqlens_q_padded"] = bounds_of(lengths)
            batch["cu_seqlens_q"] = bounds_of([*read.lengths, *lengths[len(read) :]])
    else:
        batch = _padded(
            read, dummy, media, spec, pad_token_id, multiple, padding_side, text_positions
        )
    if batch_first:
        batch["position_ids"] = batch["position_ids"].transpose(0, 1)
    counts = read.counts["image"]
    if dummy is not None:
        for name, value in dummy.media.items():
            read.media.setdefault(name, {})[len(read)] = value
        media, counts = join_media(read.media, {}), [*counts, dummy.counts["image"]]
    batch.update(media)
    if "images_per_sample" in spec.arguments:
        batch["images_per_sample"] = torch.tensor(counts, device="cpu")
    batch.update(join_extra(read, extra or "drop"))
    return batch


def _packed(
    read: Samples,
    dummy: Sample | None,
    media: Mapping[str, Any],
    spec: MRopeSpec,
    pad_token_id: int,
    multiple: int,
    own_multiple: int,
    text_positions: bool,
) -> dict[str, Any]:
    """Return tokens and positions of one row, and the `lengths` of its sequences."""
    if masks := read.tokens.get("attention_mask"):
        check_masks(read, torch.cat([*masks.values()]), packed=True)
    own = [*read.lengths] if dummy is None else [*read.lengths, dummy.length]
    lengths = [length + -length % own_multiple for length in own]
    room = -sum(lengths) % multiple
    behind = [*map(sub, lengths, own)]
    behind[-1] += room
    padding = Padding([0] * len(own), behind)
    joined: dict[str, Tensor] = {}
    for name, column in read.tokens.items():
        if name != "attention_mask":
            rows = [*column.values()] if dummy is None else [*column.values(), dummy.tokens[name]]
            joined[name] = padding.join(rows, fields.TOKEN_PADDING.get(name, pad_token_id))
    num_tokens = sum(read.lengths)
    flat: dict[str, Tensor] = {
        name: joined[name][:num_tokens]
        if own_multiple == 1
        else torch.cat([*read.tokens[name].values()])
        for name in fields.NUMBERING
        if name in joined
    }
    flat["cu_seqlens"] = bounds_of(read.lengths)
    is_padded = any(behind) or dummy is not None
    positions, deltas = number(read, spec, flat, media, text_row=text_positions and not is_padded)
    if room:
        lengths.append(room)
    if is_padded:
        parts = [*torch.split(positions, own[: len(read)], 2)]
        if dummy is not None and dummy.numbered is not None:
            parts.append(dummy.numbered[0])
        positions = padding.join(parts, spec.padding_value)
        if text_positions:
            positions = torch.cat((text_row_of(lengths).to(positions.dtype), positions))
    batch: dict[str, Any] = {name: row[None] for name, row in joined.items()}
    if "labels" in batch:
        batch["labels"][0, bounds_of(lengths)[:-1]] = fields.IGNORED_LABEL
    return {**batch, "position_ids": positions, "rope_deltas": deltas, "lengths": lengths}


def _padded(
    read: Samples,
    dummy: Sample | None,
    media: Mapping[str, Any],
    spec: MRopeSpec,
    pad_token_id: int,
    multiple: int,
    side: PaddingSide,
    text_positions: bool | None,
) -> dict[str, Any]:
    """Return tokens and positions of padded rows; a dummy stands in the padding of the last."""
    own, extra = read.lengths, 0 if dummy is None else dummy.length
    width = max(own) + extra if side == "left" else max(*own, own[-1] + extra)
    width += -width % multiple
    behind = [extra if side == "left" else width - length for length in own]
    before = [width - length - right for length, right in zip(own, behind, strict=True)]
    padding = Padding(before, behind)
    batch: dict[str, Any] = {}
    masks = read.tokens.get("attention_mask", {})
    if len(masks) < len(own):  # they may be of some samples only
        ones = torch.ones(max(own), dtype=torch.int64, device="cpu")
        masks = {index: masks.get(index, ones[:length]) for index, length in enumerate(own)}
    for name, column in {**read.tokens, "attention_mask": masks}.items():
        value = fields.TOKEN_PADDING.get(name, pad_token_id)
        batch[name] = padding.join([*column.values()], value).view(len(read), width)
    check_masks(read, batch["attention_mask"], packed=False)
    tokens = {name: batch[name] for name in fields.NUMBERING if name in batch}
    tokens["attention_mask"] = batch["attention_mask"].bool()
    positions, deltas = number(
        read, spec, tokens, media, padding=padding, text_row=bool(text_positions)
    )
    if dummy is not None:
        start = before[-1] + own[-1]
        for name in ("input_ids", "mm_token_type_ids", "moe_mm_token_type_ids"):
            if name in batch:
                batch[name][-1, start : start + extra] = dummy.tokens[name]
    return {**batch, "position_ids": positions, "rope_deltas": deltas}


def _have_pictures(read: Samples, spec: MRopeSpec) -> bool:
    if isinstance(spec.own_rule, GlmImage):  # whose last grid is of a picture to be generated
        return max(read.counts["image"]) > 1 or "pixel_values" in read.media
    return any(name in read.media for name in (*fields.GRIDS.values(), *fields.CROPS.values()))
