"""The part of a collated batch that one rank of a context-parallel group holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from vecrope import checks
from vecrope.collate import fields
from vecrope.plans.shards import ShardLayout, shard_indices

_OF_TOKENS = frozenset((*fields.TOKENS, "shift_labels", "position_ids", "seq_idx"))


def shard_batch(
    batch: Mapping[str, Any],
    rank: int,
    world_size: int,
    layout: ShardLayout = "zigzag",
) -> dict[str, Any]:
    """Return the tokens, labels, positions and boundaries that one rank holds.

    Args:
        batch: of `vecrope.collate`, padded or packed.
        rank: of this process in the group, from 0.
        world_size: number of ranks in the group.
        layout: as of `vecrope.shard_indices`. `"zigzag_sequences"` takes the bounds of packed
            samples from the batch, which `pad_sequences_to_multiple_of=2 * world_size` has padded.

    Returns:
        The batch with `input_ids`, `labels`, `attention_mask`, types, `seq_idx` and `position_ids`
        reduced to the rank's tokens. If there are labels, also `shift_labels`: the label that each
        token predicts, because the next token may belong to another rank. Under
        `"zigzag_sequences"` the bounds (`cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q` and
        `max_length_k`) are those of the rank's tokens; `cu_seqlens_q_padded` stays that of the
        whole batch, as TransformerEngine takes it. All else is unchanged.

    Raises:
        TypeError: for what is no batch, or holds something else than dense tensors for its tokens.
        ValueError: for a length that the layout cannot divide, for another number of tokens, and
            for `"zigzag_sequences"` without bounds.

    Example:
        >>> import vecrope
        >>> spec = vecrope.MRopeSpec.for_model("qwen2_vl", convention="transformers")
        >>> samples = [{"input_ids": [1, 2, 3, 4]}, {"input_ids": [5, 6, 7, 8, 9, 10, 11, 12]}]
        >>> batch = vecrope.collate(samples, spec, pad_token_id=0, packed=True)
        >>> shard = vecrope.shard_batch(batch, 0, 2, "zigzag_sequences")
        >>> shard["input_ids"], shard["cu_seq_lens_q"]
        (tensor([[ 1,  4,  5,  6, 11, 12]]), tensor([0, 2, 6], dtype=torch.int32))
    """
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(ids, Tensor) or ids.is_nested or ids.dim() != 2:
        raise TypeError("batch must be what collate returns, with input_ids of shape (B, T)")
    for name in _OF_TOKENS & batch.keys():
        checks.check_readable(name, batch[name])
        if batch[name].shape[-1:] != ids.shape[1:]:
            raise ValueError(
                f"{name} must have the {ids.shape[1]} tokens of input_ids, got shape "
                f"{tuple(batch[name].shape)}"
            )
    checks.check_choice("layout", layout, ShardLayout)
    bounds = batch.get("cu_seq_lens_q") if layout == "zigzag_sequences" else None
    columns = shard_indices(
        ids.shape[1], rank, world_size, layout, cu_seqlens=bounds, device=ids.device
    )
    whole = dict(batch)
    if "labels" in batch:
        following = pad(batch["labels"][..., 1:].long(), (0, 1), value=fields.IGNORED_LABEL)
        whole["shift_labels"] = following
    shard = {
        name: value[..., columns] if name in _OF_TOKENS else value for name, value in whole.items()
    }
    if bounds is not None:
        own = bounds.floor_divide(world_size)
        longest = int(own.diff().max())
        shard.update(cu_seq_lens_q=own, cu_seq_lens_k=own)
        shard.update(max_length_q=longest, max_length_k=longest)
    return shard
