"""Samples of a data loader as one batch with its positions, padded or packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from vecrope.rope_index import get_rope_index
from vecrope.spec import MRopeSpec

_IGNORED_LABEL = -100  # of transformers' and torch's losses
_OF_TOKENS = {"labels": _IGNORED_LABEL, "attention_mask": 0, "mm_token_type_ids": 0}
_OF_ITEMS = ("image_grid_thw", "video_grid_thw")
_SECONDS = ("second_per_grid_ts", "second_per_grids")
_PIXELS = ("pixel_values", "pixel_values_videos")
_NAMES = ("input_ids", *_OF_TOKENS, *_OF_ITEMS, *_SECONDS, *_PIXELS)


def collate(
    samples: Sequence[Mapping[str, Any]],
    spec: MRopeSpec,
    *,
    pad_token_id: int,
    packed: bool = False,
    padding_side: Literal["left", "right"] = "right",
    pad_to_multiple_of: int | None = None,
    text_positions: bool | None = None,
) -> dict[str, Any]:
    """Return the samples of a batch padded to one length, or packed, with their positions.

    With everything but the samples bound, as by `functools.partial`, it is the `collate_fn` of a
    data loader, in its workers too. A sample is what a processor of transformers returns for one
    prompt.

    Args:
        samples: mappings, at least one, of these names. `input_ids`, and if given `labels`,
            `attention_mask` and `mm_token_type_ids`: T integers each, as a tensor, an array or a
            list, or in a batch of one, (1, T). `image_grid_thw` and `video_grid_thw`: (n, 3)
            integers. `second_per_grid_ts` or `second_per_grids`: n seconds, in all samples a tensor
            or in all a list. `pixel_values` and `pixel_values_videos`: tensors of patches. None
            counts as absent.
        spec: the family's rules and the convention of the upstream, `"transformers"` for its
            models.
        pad_token_id: the id that padding is written with.
        packed: put the samples one behind the other in a single row, instead of each in a row of
            its own.
        padding_side: where rows are padded, `"right"` or `"left"`; a packed row always is on the
            right.
        pad_to_multiple_of: pad rows up to a multiple of this many tokens.
        text_positions: put the row in front that transformers tells packed samples apart by. None:
            if `packed`.

    Returns:
        `input_ids`, (B, T) int64, or (1, N) if packed; `position_ids`, (3, B, T) or (4, B, T), and
        `rope_deltas`, (B, 1) int64, as `vecrope.get_rope_index` returns them; and what else the
        samples hold: `labels` with -100 at padding, and if packed at the first token of each sample
        too, which no token before it is to predict; `mm_token_type_ids`; grids, seconds and pixels
        in the order of the samples. A padded batch has an `attention_mask` (B, T) int64; a packed
        one has none, because with it transformers does not tell the samples apart.

    Raises:
        TypeError: for a name that is not known, and seconds of two types.
        ValueError: for no samples, samples that do not fit their grids, of two lengths in
            themselves, or of which only some have `labels` or `mm_token_type_ids`; and for masked
            tokens among those to be packed.

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
        >>> vecrope.collate(samples, spec, pad_token_id=0, packed=True)["position_ids"][:, 0]
        tensor([[0, 1, 2, 3, 0, 1],
                [0, 1, 1, 3, 0, 1],
                [0, 1, 1, 3, 0, 1],
                [0, 1, 2, 3, 0, 1]])
    """
    _check(samples, padding_side, pad_to_multiple_of)
    rows = {"input_ids": _token_rows(samples, "input_ids")}
    for name in _OF_TOKENS:
        rows[name] = _token_rows(samples, name, like=rows["input_ids"])
    masks = rows["attention_mask"] or [torch.ones_like(ids) for ids in rows["input_ids"]]
    if packed:
        masks = _sequence_numbers(masks)
        for labels in rows["labels"]:
            labels[0] = _IGNORED_LABEL
    rows["attention_mask"] = masks

    batch: dict[str, Any] = {}
    for name, tokens in rows.items():
        if tokens:
            value = _OF_TOKENS.get(name, pad_token_id)
            batch[name] = _joined(tokens, value, packed, padding_side, pad_to_multiple_of)
    for name in (*_OF_ITEMS, *_SECONDS, *_PIXELS):
        values = [sample.get(name) for sample in samples]
        found = [value for value in values if value is not None and len(value)]
        if found:
            batch[name] = _concatenated(name, found)
    mask = batch.pop("attention_mask") if packed else batch["attention_mask"]
    arguments: dict[str, Any] = {
        name: batch.get(name) for name in ("mm_token_type_ids", *_OF_ITEMS, *_SECONDS)
    }
    arguments["sequence_ids" if packed else "attention_mask"] = mask
    text_positions = packed if text_positions is None else text_positions
    batch["position_ids"], batch["rope_deltas"] = get_rope_index(
        batch["input_ids"], spec, **arguments, text_positions=text_positions
    )
    return batch


def _check(
    samples: Sequence[Mapping[str, Any]], padding_side: str, pad_to_multiple_of: int | None
) -> None:
    if not samples:
        raise ValueError("samples must hold at least one sample, got none")
    for index, sample in enumerate(samples):
        unknown = sorted(sample.keys() - set(_NAMES))
        if unknown:
            raise TypeError(
                f"sample {index} has {', '.join(unknown)}, which are none of {', '.join(_NAMES)}"
            )
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
    if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
        raise ValueError(f"pad_to_multiple_of must be at least 1, got {pad_to_multiple_of}")


def _token_rows(
    samples: Sequence[Mapping[str, Any]], name: str, like: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Return copies of one thing of all samples, (T,) int64 each; none if no sample has it."""
    given = [index for index, sample in enumerate(samples) if sample.get(name) is not None]
    if not given and like is not None:
        return []
    rows = []
    for index, sample in enumerate(samples):
        if index not in given:
            raise ValueError(f"sample {index} has no {name}: all samples must have them, or none")
        row = torch.as_tensor(sample[name])
        shape = tuple(row.shape)
        if len(shape) == 2 and shape[0] == 1:
            row = row[0]
        if row.dim() != 1 or row.numel() == 0:
            raise ValueError(
                f"{name} of sample {index} must have shape (T,) or (1, T) of at least one token, "
                f"got {shape}"
            )
        if like is not None and row.shape != like[index].shape:
            raise ValueError(
                f"{name} of sample {index} must have the {like[index].shape[0]} tokens of its "
                f"input_ids, got {row.shape[0]}"
            )
        if row.is_floating_point():
            raise TypeError(f"{name} of sample {index} must be integers, got {row.dtype}")
        rows.append(row.to(torch.int64, copy=True))
    return rows


def _sequence_numbers(masks: Sequence[Tensor]) -> list[Tensor]:
    for index, mask in enumerate(masks):
        if not bool((mask == 1).all()):
            raise ValueError(
                f"attention_mask of sample {index} must be 1 at every token to be packed: leave "
                "padding out of the sample"
            )
    return [mask * number for number, mask in enumerate(masks, start=1)]


def _joined(
    rows: list[Tensor],
    value: int,
    packed: bool,
    padding_side: Literal["left", "right"],
    pad_to_multiple_of: int | None,
) -> Tensor:
    """Return rows of tokens as one tensor, padded with a value."""
    if packed:
        joined, padding_side = torch.cat(rows).unsqueeze(0), "right"
    else:
        joined = pad_sequence(
            rows, batch_first=True, padding_value=value, padding_side=padding_side
        )
    room = -joined.shape[1] % (pad_to_multiple_of or 1)
    return pad(joined, (room, 0) if padding_side == "left" else (0, room), value=value)


def _concatenated(name: str, values: list[Any]) -> Any:
    """Return what is one thing for each image or video, in the order of the samples."""
    if name not in _SECONDS:
        return torch.cat([torch.as_tensor(value) for value in values])
    tensors = [isinstance(value, Tensor) for value in values]
    if all(tensors):
        return torch.cat(values)
    if any(tensors):
        raise TypeError(f"{name} must be tensors in all samples, or lists in all; got both")
    return [second for value in values for second in value]
