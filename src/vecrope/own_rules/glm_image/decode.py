"""The positions of the tokens that GLM-Image generates: the images that are still to be drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.faults import unsound
from vecrope.families.rules import GlmImage
from vecrope.inputs import Inputs, on_cpu, on_device
from vecrope.own_rules.common import unmasked_tokens
from vecrope.own_rules.glm_image.generated import Tail, positions_on_tail
from vecrope.own_rules.glm_image.host import decode_positions, read_rows
from vecrope.own_rules.glm_image.prompt import Reading, read_markers
from vecrope.prepare import prepare
from vecrope.spec import MRopeSpec


def get_decode_position_ids(
    input_ids: Tensor,
    spec: MRopeSpec,
    *,
    image_grid_thw: Tensor | None = None,
    images_per_sample: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    validate: bool = True,
    max_decode_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the positions of the tokens that will follow the prompts of a batch.

    The grids of a row that are left after its complete images are those of the images to be
    generated, and the last grid is generated first. These images are numbered like any image, from
    the running position at the end of the prompt. One more token, the end, follows the last image.
    Column 0 is the first token after the prompt and its padding.

    Args:
        input_ids: (B, T) int64 or int32, or (N,) with `cu_seqlens`.
        spec: the rules of `glm_image`, under either convention.
        image_grid_thw: (num_images, 3) integers, in tokens, row by row: of the images in the
            prompt, then of those to be generated. Rows of zeros are no image. None: nothing is
            generated.
        images_per_sample: (B,) integers, the grids of each row; None: every row has all of them.
        attention_mask: (B, T) bool or integers, 1 or True for a token; None: all are.
        cu_seqlens: (num_sequences + 1,) integers from 0 to N, for packed `input_ids`.
        validate: check the values of the input, which synchronises on a device other than the CPU.
        max_decode_tokens: D, at least the largest number of tokens that a row generates. None: that
            number, which reads values; under tracing, and with `validate=False` on a device other
            than the CPU, it has to be given.

    Returns:
        `decode_position_ids` (B, 3, D) int64, where a shorter row repeats its last position, and
        `decode_lengths` (B,) int64, the number of columns that a row really has. It is 0 for a row
        without grids. For a row whose grids are all in the prompt it is 0 under `"sglang"`, and 1
        under `"transformers"`, the end.

        If `max_decode_tokens` is too small where nothing can be raised (`validate=False`, or
        tracing), every position and every length is -1; likewise if a prompt does not fit its grids
        under tracing with `validate`.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for another family, and for shapes or values that do not fit.

    Example:
        >>> import torch, vecrope
        >>> spec = vecrope.MRopeSpec.for_model("glm_image", convention="transformers")
        >>> positions, lengths = vecrope.get_decode_position_ids(
        ...     torch.tensor([[5, 6, 7, 16384]]), spec,
        ...     image_grid_thw=torch.tensor([[1, 2, 3], [1, 1, 2]]),
        ... )
        >>> positions
        tensor([[[4, 4, 6, 6, 6, 6, 6, 6, 9],
                 [4, 4, 6, 6, 6, 7, 7, 7, 9],
                 [4, 5, 6, 7, 8, 6, 7, 8, 9]]])
        >>> lengths
        tensor([9])

    The rule is that of transformers' `GlmImageModel.get_rope_index`, which keeps these positions to
    itself, and of SGLang's `GlmImageProcessor`, which appends them to those of the prompt.
    """
    inputs = Inputs(
        input_ids,
        image_grid_thw=image_grid_thw,
        attention_mask=attention_mask,
        cu_seqlens=cu_seqlens,
        images_per_sample=images_per_sample,
    )
    checks.check_metadata(inputs, spec)
    # With a capacity nothing is read, as with one of segments.
    prepared = prepare(inputs, spec, validate, None if max_decode_tokens is None else 1)
    if not isinstance(spec.own_rule, GlmImage):
        raise ValueError(f"spec must be one of glm_image, got one of {spec.model_type}")
    tracing = prepared.tracing
    _check_capacity(max_decode_tokens, not tracing and (validate or input_ids.is_cpu))
    if validate and not tracing:
        on_host = prepared.inputs if input_ids.is_cpu else on_cpu(prepared.inputs)
        rows = read_rows(unmasked_tokens(on_host), spec)
        return on_device(decode_positions(rows, spec, max_decode_tokens), input_ids.device)
    reading = read_markers(prepared.inputs, spec, validate=validate)
    tail = tail_of(reading, spec)
    lengths = tail.rows[1]
    if max_decode_tokens is None:
        max_decode_tokens = int(lengths.max())
    numbers = torch.arange(lengths.shape[0], device=lengths.device).unsqueeze(1)
    column = torch.arange(max_decode_tokens, device=lengths.device)
    positions = positions_on_tail(tail, numbers, column).transpose(0, 1)
    fault = lengths.max() > max_decode_tokens
    if reading.misfit is not None:
        fault = fault | reading.misfit | unsound(prepared.inputs, spec)
    invalid = lengths.new_full((), -1)
    return torch.where(fault, invalid, positions), torch.where(fault, invalid, lengths)


def _check_capacity(max_decode_tokens: int | None, may_read: bool) -> None:
    if max_decode_tokens is None:
        if not may_read:
            raise ValueError(
                "max_decode_tokens must be given where values cannot be read: under tracing, and "
                "with validate=False on a device other than the CPU"
            )
        return
    checks.check_int("max_decode_tokens", max_decode_tokens, below=2**30)
    if max_decode_tokens < 0:
        raise ValueError(f"max_decode_tokens must not be negative, got {max_decode_tokens}")


def tail_of(reading: Reading, spec: MRopeSpec) -> Tail:
    """Return what the rows of a batch generate: their images that are not complete, last first."""
    frames, height, width = reading.grids.long().unbind(1)
    side, area = torch.maximum(height, width), height * width
    targets = reading.real & (reading.ordinals >= reading.num_closed[reading.grid_rows])
    # Tokens that each grid generates, how far these move the position, and how much farther an
    # image in the prompt moves it than its tokens.
    of_grids = torch.stack((area, side, side - frames * area))
    of_grids = of_grids * torch.stack((targets, targets, reading.sources))
    of_rows = of_grids.new_zeros(3, reading.stream.num_rows)
    of_rows.index_add_(1, reading.grid_rows, of_grids)
    generated, taken, gain = of_rows.unbind()
    start = reading.stream.kept_in_rows.long() + gain
    ends = generated if spec.convention == "sglang" else reading.grids_in_row
    count = (generated + 1) * (ends > 0)

    # Backwards through the whole batch, every row's last target is its first.
    first, before = _sums_behind(of_grids[:2])
    begin, taken_behind = _sums_behind(of_rows[:2])
    base = (start - taken_behind)[reading.grid_rows] + before
    # A grid without tokens, of no columns maybe, begins where the next does and is not found.
    images = torch.stack((first, base, width)).flip(1)
    last = torch.stack((generated.sum(), *start.new_ones(2)))
    rows = torch.stack((begin, count, start + taken))
    return Tail(torch.cat((images, last.unsqueeze(1)), 1), rows)


def _sums_behind(values: Tensor) -> tuple[Tensor, ...]:
    """Return the sums of what stands behind each of `values` (2, n), row by row."""
    sums = values.cumsum(1)
    return (sums[:, -1:] - sums).unbind()
