"""The stages composed: `get_rope_index`."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope import checks
from vecrope.core.faults import invalidate
from vecrope.families.fields import check_bool
from vecrope.forms.eager import eager_rope_index
from vecrope.forms.select import FormChoice, choose_form, explain_choice, fused_pipeline
from vecrope.forms.static import static_rope_index
from vecrope.inputs import Inputs, on_device
from vecrope.own_rules.dispatch import own_rope_index
from vecrope.plans.build import plan_of_sequences
from vecrope.plans.plan import RopeIndexPlan
from vecrope.prepare import on_host, prepare
from vecrope.sequences import (
    SequenceNumbering,
    deltas_of_sequences,
    packed_sequences,
    padded_width,
    with_text_positions,
)
from vecrope.spec import MRopeSpec


def get_rope_index(
    input_ids: Tensor,
    spec: MRopeSpec,
    *,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    sequence_numbering: SequenceNumbering = "from_one",
    mm_token_type_ids: Tensor | None = None,
    second_per_grid_ts: Tensor | Sequence[float] | None = None,
    second_per_grids: Tensor | Sequence[float] | None = None,
    audio_seqlens: Tensor | None = None,
    use_audio_in_video: bool | Tensor | Sequence[bool] = False,
    images_per_sample: Tensor | None = None,
    target_sizes: Tensor | None = None,
    target_sizes_videos: Tensor | None = None,
    text_positions: bool = False,
    pad_to_multiple_of: int | None = None,
    validate: bool = True,
    max_sequences: int | None = None,
    form: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the M-RoPE position ids of a batch and the offsets that decoding continues from.

    Unmasked text tokens count up on all three axes. The tokens of an image or a video frame get
    their row and column from its grid. Masked tokens hold `spec.padding_value`. Images and videos
    consume their grids separately, in the order of the prompt, through all rows of the batch.

    Args:
        input_ids: (B, T) int64 or int32, on any device; or (N,) with `cu_seqlens`.
        spec: the family's rules and the upstream's convention.
        image_grid_thw: (num_images, 3) integers, in patches, in the order of the prompt. Rows of
            zeros are ignored, so that the tensor may be padded to a fixed capacity.
        video_grid_thw: (num_videos, 3) likewise.
        attention_mask: (B, T) bool or integers, 1 or True for a token; None: all are.
        cu_seqlens: (num_sequences + 1,) integers from 0 to N, for packed `input_ids`.
        sequence_ids: (B, T) integers, for rows that hold several sequences: 1, 2, ... in ascending
            order in each row, 0 at padding, as in `[1, 1, 2, 2, 2, 0]`. Positions start over in
            each sequence. They replace `attention_mask`. `vecrope.sequence_ids_from_position_ids`
            derives them from text positions.
        sequence_numbering: `"from_one"`; or `"from_zero"` for `sequence_ids` that are 0 in the
            first sequence, as transformers' `seq_idx`, and -1 at padding.
        mm_token_type_ids: (B, T) integers, 0 text, 1 image, 2 video. If given, they decide which
            tokens are placeholders, not `input_ids`.
        second_per_grid_ts: (num_videos,) seconds between the temporal steps of each video, of any
            floating-point dtype, or a list of floats, for families whose video time is in seconds.
            None: the family's default. Their type decides how they are rounded, as upstream.
        second_per_grids: the same, under the name that the omni families use.
        audio_seqlens: (num_audios,) integers, mel frames of each audio, for the omni families.
        use_audio_in_video: whether all videos have interleaved sound; or (num_videos,) bools, a
            tensor or a list, one for each video. For the omni families.
        images_per_sample: (B,) integers, the number of grids of each row, for glm_image.
        target_sizes: (num_crops, 2) integers, for minicpmv4_7.
        target_sizes_videos: the same for the frames of videos.
        text_positions: prepend a row that counts the unmasked tokens of each sequence and is 0 at
            masked tokens. transformers' text models use it to tell packed sequences apart, if they
            get neither an `attention_mask` nor a cache (`use_cache=False`).
        pad_to_multiple_of: pad with columns at the right, up to a multiple of this number.
        validate: check the values of the input. Off the CPU this synchronises; with the Triton
            kernels and valid input, once, and so with a rule of a family's own. With False nothing
            synchronises, but for the omni families and minicpmv4_7, which the host numbers in any
            case: once, where all arguments are on the device of the ids. The answer to invalid
            values is then unspecified, but in these families. There, and under tracing
            (`torch.compile`, `torch.export`), a prompt that does not fit its grids gets the answer
            described below, since nothing can be raised.
        max_sequences: the number of rows of `rope_deltas` with `sequence_ids`; rows beyond the last
            sequence hold 0. None: the exact number, which has to be read. Required under tracing,
            and with `validate=False` on a device other than the CPU.
        form: the implementation to use: `"eager"` (tensors on a CPU), `"static"` (any device, reads
            no value) or `"kernels"` (Triton). None: the fastest that can take the call;
            `vecrope.explain_form` says why. All return equal answers.

    Returns:
        `position_ids` (3, B, T) in the dtype of `input_ids`, or (3, N); and `rope_deltas` (B, 1)
        int64, or (num_sequences, 1) with `cu_seqlens` or `sequence_ids`: the row's largest position
        plus one (0 for a row without an unmasked token), less its padded or its valid length as
        `spec.delta_length` says; with `sequence_ids` its valid length. The axes are temporal,
        height and width, after a first row of `text_positions` if asked for. The answer never
        aliases an input. Families with a rule of their own may have other axes, and deltas in the
        dtype of `input_ids`, as the module of the family in `vecrope.own_rules` documents.

        Every position on the three axes is -1, and every delta the least int64, if `max_sequences`
        is too small where nothing can be raised (`validate=False`, or tracing), and if a prompt
        does not fit its grids under tracing with `validate`, or in an omni family without it.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes or values that do not fit; the message names the row, the item, what
            was expected and what was found. For a `form` that cannot take the call.
        RuntimeError: while a CUDA graph captures a call that the host answers: one of an omni
            family, or a checked one of another family with a rule of its own.

    Example:
        >>> import torch, vecrope
        >>> spec = vecrope.MRopeSpec.for_model("glm4v", convention="sglang")
        >>> image = spec.image_token_id
        >>> input_ids = torch.tensor([[7, 151339, image, image, image, image, 151340, 8]])
        >>> position_ids, rope_deltas = vecrope.get_rope_index(
        ...     input_ids, spec, image_grid_thw=torch.tensor([[1, 4, 4]])
        ... )
        >>> position_ids[:, 0]
        tensor([[0, 1, 2, 2, 2, 2, 4, 5],
                [0, 1, 2, 2, 3, 3, 4, 5],
                [0, 1, 2, 3, 2, 3, 4, 5]])
        >>> rope_deltas
        tensor([[-2]])

    The rules are those of the upstreams' own functions, such as SGLang's `get_rope_index_glm4v` and
    transformers' `Glm4vModel.get_rope_index`. On a CUDA device with Triton, families of the shared
    rule take two or three kernels, which are one operator under `torch.compile`.
    """
    inputs = Inputs(
        input_ids,
        image_grid_thw,
        video_grid_thw,
        attention_mask,
        cu_seqlens,
        mm_token_type_ids,
        _one_of(second_per_grid_ts, second_per_grids),
        audio_seqlens,
        use_audio_in_video,
        images_per_sample,
        target_sizes,
        target_sizes_videos,
    )
    checks.check_metadata(inputs, spec)
    width = padded_width(input_ids.shape[-1], pad_to_multiple_of)
    inputs, invalid = packed_sequences(
        inputs, spec, sequence_ids, max_sequences, sequence_numbering, validate=validate
    )
    check_bool("text_positions", text_positions)
    room = (0, width - input_ids.shape[-1])
    position_ids, rope_deltas = _number(
        inputs,
        spec,
        validate=validate,
        form=form,
        text_row=text_positions and not room[1] and invalid is None,
    )
    if sequence_ids is None and not text_positions and pad_to_multiple_of is None:
        return position_ids, rope_deltas
    if sequence_ids is not None:
        rope_deltas = deltas_of_sequences(inputs, spec, rope_deltas)
    if invalid is not None:
        position_ids, rope_deltas = invalidate(invalid, position_ids, rope_deltas)
    position_ids = position_ids.view(-1, *input_ids.shape)
    if text_positions:
        position_ids = with_text_positions(position_ids, inputs, spec)
    if room[1]:
        padded = pad(position_ids, room, value=spec.padding_value)
        if text_positions:
            padded[0, ..., -room[1] :].fill_(0)
        position_ids = padded
    return position_ids, rope_deltas


def rope_index_of(
    inputs: Inputs, spec: MRopeSpec, *, validate: bool = True
) -> tuple[Tensor, Tensor]:
    """Return what `get_rope_index` does for the arguments in `inputs`."""
    checks.check_metadata(inputs, spec)
    return _number(inputs, spec, validate=validate, form=None)


def _number(
    inputs: Inputs,
    spec: MRopeSpec,
    *,
    validate: bool,
    form: str | None,
    text_row: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the positions and deltas of inputs whose metadata have been checked.

    With `text_row` the row of text positions is in front where the eager form writes it with the
    others: where no token is masked.
    """
    if (copied := on_host(inputs, spec, validate=validate)) is not None:
        answer = _number(copied, spec, validate=True, form=form)
        return on_device(answer, inputs.input_ids.device)
    own_rule = spec.own_rule is not None
    chosen = choose_form(inputs, spec, form=form)
    if chosen == "kernels":
        if torch.compiler.is_compiling():
            from vecrope.forms.triton.operator import traced_rope_index  # imports Triton

            return traced_rope_index(inputs, spec, validate=validate)
        fused: tuple[Tensor, Tensor] | None = fused_pipeline().fused_rope_index(
            inputs, spec, validate=validate
        )
        if fused is not None:
            return fused
        # What is wrong there is found once more below, and named.
    prepared = prepare(
        inputs, spec, validate, static=chosen == "static" or (own_rule and not validate)
    )
    if own_rule:
        return own_rope_index(prepared.inputs, spec, validate=validate)
    if prepared.exact and inputs.input_ids.numel():
        try:
            text_row = text_row and prepared.inputs.attention_mask is None
            return eager_rope_index(prepared.inputs, spec, text_row=text_row)
        except ValueError:
            if validate:
                raise
    return static_rope_index(prepared.inputs, spec, validate=validate)


def explain_form(input_ids: Tensor, spec: MRopeSpec, **arguments: Any) -> FormChoice:
    """Return which form a call of `get_rope_index` uses, and why it does not use the others.

    Args:
        input_ids: this and all other arguments are those of `get_rope_index`.
        spec: of any family.
        **arguments: likewise.

    Returns:
        `form`, its name (`"own rule"` for families with a rule of their own), and `passed_over`,
        the reason for each other form by its name.

    Raises:
        TypeError: for an argument of the wrong type or dtype, or of an unknown name.
        ValueError: for shapes that do not fit, and for a `form` that cannot take the call.

    Example:
        >>> import torch, vecrope
        >>> spec = vecrope.MRopeSpec.for_model("glm4v", convention="sglang")
        >>> choice = vecrope.explain_form(torch.tensor([[7, 8]]), spec)
        >>> choice.form
        'eager'
        >>> choice.passed_over["kernels"]
        'input_ids are on the cpu device'
    """
    bound = signature(get_rope_index).bind(input_ids, spec, **arguments)
    bound.apply_defaults()
    given = bound.arguments
    seconds = _one_of(given["second_per_grid_ts"], given["second_per_grids"])
    own = {name: given[name] for name in Inputs._fields if name in given}
    inputs = Inputs(**{**own, "second_per_grid_ts": seconds})
    checks.check_metadata(inputs, spec)
    return explain_choice(inputs, spec, form=given["form"])


def plan_rope_index(
    input_ids: Tensor,
    spec: MRopeSpec,
    *,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    sequence_numbering: SequenceNumbering = "from_one",
    mm_token_type_ids: Tensor | None = None,
    second_per_grid_ts: Tensor | Sequence[float] | None = None,
    second_per_grids: Tensor | Sequence[float] | None = None,
    audio_seqlens: Tensor | None = None,
    use_audio_in_video: bool | Tensor | Sequence[bool] = False,
    images_per_sample: Tensor | None = None,
    target_sizes: Tensor | None = None,
    target_sizes_videos: Tensor | None = None,
    validate: bool = True,
    max_groups: int | None = None,
    max_sequences: int | None = None,
) -> RopeIndexPlan:
    """Return the positions of a batch as a plan: a few bytes per group, expanded where needed.

    The plan of a family with a rule of its own has an entry for each frame and each stretch of text
    where it is exact. A thumbnail of minicpmv4_7 has one or a few entries per line.

    Args:
        input_ids: this and all other arguments are those of `get_rope_index`.
        spec: of any family.
        image_grid_thw: (num_images, 3).
        video_grid_thw: (num_videos, 3).
        attention_mask: (B, T).
        cu_seqlens: (num_sequences + 1,).
        sequence_ids: (B, T).
        sequence_numbering: of `sequence_ids`.
        mm_token_type_ids: (B, T).
        second_per_grid_ts: (num_videos,).
        second_per_grids: the same.
        audio_seqlens: (num_audios,).
        use_audio_in_video: of the omni families.
        images_per_sample: (B,), of glm_image.
        target_sizes: (num_crops, 2).
        target_sizes_videos: likewise.
        validate: check the values of the input. With False nothing synchronises, where
            `get_rope_index` does not.
        max_groups: capacity of the plan, at least the number of its entries. Entries are images,
            separate frames, videos that are one block, masked runs, the parts of a group that
            masked tokens cut off, and sequences that begin with text. None: the exact number on a
            CPU, and on a device where values are checked; otherwise, and under tracing, the number
            of tokens, which makes the plan larger than the positions. With a capacity no operation
            depends on values. If the plan of a family with a rule of its own is not exact, it has
            as many entries as tokens.
        max_sequences: with `sequence_ids`, the number of rows of the plan.

    Returns:
        The plan, on the device of `input_ids`.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes or values that do not fit.

    Example:
        >>> import torch, vecrope
        >>> spec = vecrope.MRopeSpec.for_model("qwen2_vl", convention="vllm")
        >>> image = spec.image_token_id
        >>> plan = vecrope.plan_rope_index(
        ...     torch.tensor([[7, image, image, 8]]), spec, image_grid_thw=torch.tensor([[1, 2, 4]])
        ... )
        >>> plan.slice(2, 6)[:, 0]
        tensor([[1, 3, 4, 5],
                [1, 3, 4, 5],
                [2, 3, 4, 5]])
        >>> plan.decode(2)[0]
        tensor([[4, 5]])
    """
    inputs = Inputs(
        input_ids,
        image_grid_thw,
        video_grid_thw,
        attention_mask,
        cu_seqlens,
        mm_token_type_ids,
        _one_of(second_per_grid_ts, second_per_grids),
        audio_seqlens,
        use_audio_in_video,
        images_per_sample,
        target_sizes,
        target_sizes_videos,
    )
    checks.check_metadata(inputs, spec, max_groups)
    return plan_of_sequences(
        inputs,
        spec,
        sequence_ids,
        max_sequences,
        sequence_numbering,
        validate=validate,
        max_groups=max_groups,
    )


def _one_of(
    second_per_grid_ts: Tensor | Sequence[float] | None,
    second_per_grids: Tensor | Sequence[float] | None,
) -> Tensor | Sequence[float] | None:
    if second_per_grids is None:
        return second_per_grid_ts
    if second_per_grid_ts is not None:
        raise ValueError("second_per_grid_ts and second_per_grids are the same: give one of them")
    return second_per_grids
