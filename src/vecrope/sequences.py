"""Rows that hold several sequences each, as one packed stream of all of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope import checks
from vecrope.core.search import compact
from vecrope.core.stream import make_stream
from vecrope.inputs import Inputs, num_axes_of
from vecrope.spec import MRopeSpec

SequenceNumbering = Literal["from_one", "from_zero"]
_FROM_ZERO = "where the first sequence has number 0, pass sequence_numbering='from_zero'"


def packed_sequences(
    inputs: Inputs,
    spec: MRopeSpec,
    sequence_ids: Tensor | None,
    max_sequences: int | None,
    sequence_numbering: SequenceNumbering = "from_one",
    *,
    validate: bool,
) -> tuple[Inputs, Tensor | None]:
    """Return the sequences that (B, T) rows hold, as one packed stream.

    Padding belongs to the sequence before it, and before the first sequence to that; it is masked.

    Returns:
        Flat ids, bounds, and a mask for padding; without `sequence_ids` what is given. And whether
        the answer is invalid, 0-d bool, where it may be.
    """
    if sequence_ids is None:
        if max_sequences is not None:
            raise ValueError(
                f"max_sequences must be None without sequence_ids, got {max_sequences}"
            )
        return inputs, None
    _check_metadata(inputs, spec, sequence_ids, max_sequences)
    checks.check_choice("sequence_numbering", sequence_numbering, SequenceNumbering)
    input_ids, tracing = inputs.input_ids, torch.compiler.is_compiling()
    if max_sequences is None and (tracing or not (validate or input_ids.is_cpu)):
        raise ValueError(
            "max_sequences must be given with sequence_ids where shapes must not depend on values: "
            "under tracing, and with validate=False on a device other than the CPU"
        )
    if (validate or max_sequences is None) and not tracing:
        checks.check_has_values("input_ids", input_ids)
        checks.check_has_values("sequence_ids", sequence_ids)
    sequence_ids = sequence_ids.to(input_ids.device)
    from_one = sequence_numbering == "from_one"
    if not from_one:
        # In 64 bits: the number after the largest one would wrap in few.
        sequence_ids = sequence_ids.to(torch.int64) + 1
    highest = sequence_ids.cummax(1).values
    if validate and not tracing:
        _check_values(sequence_ids, highest, offset=0 if from_one else 1)
        if from_one:
            _check_padding(inputs, spec, sequence_ids)
    kept = (sequence_ids > 0).view(-1)
    starts = (sequence_ids > pad(highest[:, :-1], (1, 0))).view(-1)
    if max_sequences is None:
        after_first = starts.nonzero().view(-1)[1:]
        bounds = pad(pad(after_first, (1, 0)), (0, 1), value=starts.shape[0])
        invalid = None
    else:
        bounds, count = compact(starts, max_sequences + 1, torch.int64)
        bounds[:1].fill_(0)
        # Of more sequences, which make the answer invalid, the next start would be here.
        bounds[-1:].fill_(starts.shape[0])
        if validate and not tracing and int(count) > max_sequences:
            raise ValueError(
                f"max_sequences must be at least {int(count)} for this input, got {max_sequences}"
            )
        invalid = count > max_sequences
        if validate and tracing:
            invalid = invalid | (count == 0) | _faults(sequence_ids, highest).any()
            if from_one:
                invalid = invalid | _left_out(inputs, spec, sequence_ids).any()

    types = inputs.mm_token_type_ids
    packed = inputs._replace(
        input_ids=input_ids.reshape(-1),
        attention_mask=kept,
        cu_seqlens=bounds,
        mm_token_type_ids=None if types is None else types.reshape(-1),
    )
    return packed, invalid


def deltas_of_sequences(inputs: Inputs, spec: MRopeSpec, rope_deltas: Tensor) -> Tensor:
    """Return deltas (num_sequences, 1) as measured against the unmasked tokens of each sequence."""
    if spec.delta_length == "valid":
        return rope_deltas
    kept, bounds = inputs.attention_mask, inputs.cu_seqlens
    assert kept is not None
    assert bounds is not None
    padding = pad((~kept).cumsum(0), (1, 0))[bounds].diff().unsqueeze(1)
    least = torch.iinfo(rope_deltas.dtype).min
    return torch.where(rope_deltas == least, least, rope_deltas + padding)


def _text_positions(inputs: Inputs, spec: MRopeSpec) -> Tensor:
    """Return how many unmasked tokens of its row stand before each token, 0 at masked ones.

    In the shape and the dtype of the ids; does not synchronise.
    """
    ids = inputs.input_ids
    stream = make_stream(inputs, spec)
    steps = ids.new_ones(stream.num_tokens + 1)
    if stream.kept is not None:
        steps[:-1] = stream.kept
    if ids.dim() == 1:
        # The token behind a sequence takes back what that has counted.
        steps.index_add_(0, stream.row_bounds[1:], -stream.kept_in_rows.to(ids.dtype))
    text = steps[:-1].view(ids.shape).cumsum(-1, dtype=ids.dtype).sub_(1)
    return text if stream.kept is None else text.masked_fill_(~stream.kept.view(ids.shape), 0)


def with_text_positions(position_ids: Tensor, inputs: Inputs, spec: MRopeSpec) -> Tensor:
    """Return positions with the row of text positions in front, unless it is there already."""
    if len(position_ids) > num_axes_of(spec):
        return position_ids
    text = _text_positions(inputs, spec).to(position_ids.dtype)
    return torch.cat((text.view(1, *position_ids.shape[1:]), position_ids))


def padded_width(width: int, multiple: int | None) -> int:
    """Return the number of columns up to a multiple; None for no padding."""
    if multiple is not None:
        checks.check_int("pad_to_multiple_of", multiple, 1, 2**31)
    return width if multiple is None else width + -width % multiple


def sequence_ids_from_position_ids(
    position_ids: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Return the number of each token's sequence, from text positions that start over in each one.

    A token starts a sequence if its position does not follow that of the unmasked token before it.
    transformers recognises packed rows in the same way. Does not synchronise.

    Args:
        position_ids: (B, T) integers, the text positions; or (4, B, T), with them as the first row.
            The three axes of M-RoPE are not enough: they also jump at images.
        attention_mask: (B, T) bool or integers, 0 or False at padding. None: all are tokens; each
            token of padding with zeros then counts as a sequence.

    Returns:
        (B, T) int64: 1, 2, ... in each row, 0 at padding. `vecrope.get_rope_index` takes it as
        `sequence_ids`.

    Raises:
        TypeError: for positions or a mask that are not integers.
        ValueError: for another shape.

    Example:
        >>> import torch, vecrope
        >>> vecrope.sequence_ids_from_position_ids(torch.tensor([[0, 1, 0, 1, 2, 0]]))
        tensor([[1, 1, 2, 2, 2, 3]])
    """
    _check_integers("position_ids", position_ids)
    shape = tuple(position_ids.shape)
    if len(shape) == 3 and shape[0] == 4:
        position_ids = position_ids[0]
    elif len(shape) != 2:
        raise ValueError(
            f"position_ids must have shape (B, T), or (4, B, T) with the text positions first, got "
            f"{shape}"
        )
    if attention_mask is None:
        kept = torch.ones_like(position_ids, dtype=torch.bool)
    else:
        checks.check_tensor("attention_mask", attention_mask)
        if attention_mask.is_floating_point():
            raise TypeError(
                f"attention_mask must hold integers or bools, got {attention_mask.dtype}"
            )
        if attention_mask.shape != position_ids.shape:
            raise ValueError(
                f"attention_mask must have shape {tuple(position_ids.shape)}, "
                f"got {tuple(attention_mask.shape)}"
            )
        if not torch.compiler.is_compiling():
            checks.check_beside("attention_mask", attention_mask, position_ids)
        kept = attention_mask.to(position_ids.device).bool()
    # In 64 bits: the position after the largest one would wrap in few.
    position_ids = position_ids.to(torch.int64)
    seq_len = position_ids.shape[1]
    if seq_len == 0:
        return kept.long()
    index = torch.arange(seq_len, device=position_ids.device)
    last_kept = torch.where(kept, index, -1).cummax(1).values
    before = pad(last_kept[:, :-1], (1, 0), value=-1)
    expected = position_ids.gather(1, before.clamp(min=0)) + 1
    starts = kept & ((before < 0) | (position_ids != expected))
    return torch.where(kept, starts.cumsum(1), 0)


def _check_metadata(
    inputs: Inputs, spec: MRopeSpec, sequence_ids: Tensor, max_sequences: int | None
) -> None:
    for name in ("attention_mask", "cu_seqlens"):
        if getattr(inputs, name) is not None:
            raise ValueError(
                f"{name} must be None with sequence_ids, which tell padding and sequences apart"
            )
    if spec.mask_rule != "skip":
        raise ValueError(
            f"sequence_ids must be None: {spec.model_type} under convention {spec.convention!r} "
            "leaves no token out; pack its sequences without padding, with cu_seqlens"
        )
    _check_integers("sequence_ids", sequence_ids)
    if sequence_ids.shape != inputs.input_ids.shape:
        raise ValueError(
            f"sequence_ids must have the shape of input_ids {tuple(inputs.input_ids.shape)}, "
            f"got {tuple(sequence_ids.shape)}"
        )
    if sequence_ids.numel() == 0:
        raise ValueError(
            f"sequence_ids must hold a sequence, got no token in shape {tuple(sequence_ids.shape)}"
        )
    if max_sequences is not None:
        checks.check_int("max_sequences", max_sequences, 1, 2**31)


def _check_integers(name: str, values: Tensor) -> None:
    checks.check_tensor(name, values)
    if values.dtype == torch.bool or values.dtype not in checks.INTEGRAL:
        raise TypeError(f"{name} must be of a signed integer dtype or uint8, got {values.dtype}")


def _faults(sequence_ids: Tensor, highest: Tensor) -> Tensor:
    return (sequence_ids < 0) | ((sequence_ids > 0) & (sequence_ids < highest))


def _left_out(inputs: Inputs, spec: MRopeSpec, sequence_ids: Tensor) -> Tensor:
    """Return (B, T) bool: placeholders that are numbered as padding."""
    padding = sequence_ids == 0
    if inputs.mm_token_type_ids is not None:
        return padding & (inputs.mm_token_type_ids.to(padding.device) > 0)
    placeholders = torch.zeros_like(padding)
    for token_id in (spec.image_token_id, spec.video_token_id):
        if token_id is not None:
            placeholders = placeholders | (inputs.input_ids == token_id)
    return padding & placeholders


def _check_padding(inputs: Inputs, spec: MRopeSpec, sequence_ids: Tensor) -> None:
    """Check that no image or video stands where padding is; synchronises."""
    for row, token in _left_out(inputs, spec, sequence_ids).nonzero()[:1].tolist():
        raise ValueError(
            f"sequence_ids must be 1 or more at images and videos, got 0, which is padding, at a "
            f"placeholder in row {row}, token {token}; {_FROM_ZERO}"
        )


def _check_values(sequence_ids: Tensor, highest: Tensor, offset: int) -> None:
    """Check that the numbers, less an offset, ascend in every row; synchronises."""
    for row, token in _faults(sequence_ids, highest).nonzero()[:1].tolist():
        value, most = (int(values[row, token]) - offset for values in (sequence_ids, highest))
        if value < -offset:
            raise ValueError(
                f"sequence_ids must not be {'negative' if not offset else 'less than -1'}, got "
                f"{value} in row {row}, token {token}"
            )
        raise ValueError(
            f"sequence_ids must not go back in a row, got {value} after {most} in row {row}, "
            f"token {token}"
        )
    if int(sequence_ids.amax()) == 0:
        remedy = "" if offset else f"; {_FROM_ZERO}"
        raise ValueError(f"sequence_ids must hold a sequence, got {-offset} at every token{remedy}")
