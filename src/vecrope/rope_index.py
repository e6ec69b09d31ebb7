"""The stages composed: `get_rope_index`."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from vecrope import checks
from vecrope.items import make_items
from vecrope.positions import positions_at
from vecrope.regular import regular_rope_index
from vecrope.segments import segment_stream
from vecrope.short import short_rope_index
from vecrope.spec import MRopeSpec
from vecrope.stream import make_stream


def get_rope_index(
    input_ids: Tensor,
    spec: MRopeSpec,
    *,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    mm_token_type_ids: Tensor | None = None,
    second_per_grid_ts: Tensor | None = None,
    validate: bool = True,
    max_segments: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the M-RoPE position ids of a batch and the offsets that decoding continues from.

    Unmasked text tokens count up on all three axes; the tokens of an image or a video frame read
    their row and column off its grid; masked tokens hold `spec.padding_value`. Image and video
    grids are consumed in the order of the prompt, row by row, each kind on its own, on across rows.

    Args:
        input_ids: (B, T) int64 or int32, on any device; or (N,) with `cu_seqlens`.
        spec: the family's rules and the upstream's convention.
        image_grid_thw: (num_images, 3) integers, in patches, in the order of the prompt. Rows of
            zeros are no image, so that the tensor may be padded to a fixed capacity.
        video_grid_thw: (num_videos, 3) likewise.
        attention_mask: (B, T) bool or integers, 1 or True for a token; None: all are.
        cu_seqlens: (num_sequences + 1,) integers from 0 to N, for packed `input_ids`.
        mm_token_type_ids: (B, T) integers, 0 text, 1 image, 2 video, to be believed instead of the
            ids in `input_ids`.
        second_per_grid_ts: (num_videos,) seconds a temporal step; None for a family without it.
        validate: check the values of the input. On a device other than the CPU this synchronises:
            once, where the kernels of `vecrope.kernels` answer, if the values are good.
            False promises no synchronisation; what invalid values then give is not specified.
            Under tracing (`torch.compile`, `torch.export`) nothing can be raised: there a prompt
            that does not fit its grids gets the answer described below.
        max_segments: capacity of the segment table, at least the number of runs of text, images,
            videos and masked tokens in the batch. None: on a CPU the exact number, elsewhere and
            under tracing the number of tokens, which always suffices. With a capacity given no
            operation depends on values.

    Returns:
        `position_ids` (3, B, T) in the dtype of `input_ids`, or (3, N); and `rope_deltas` (B, 1)
        int64, or (num_sequences, 1): the row's largest position plus one (0 for a row without an
        unmasked token), less its padded or its valid length as `spec.delta_length` says. The axes
        are temporal, height, width. Neither aliases an input.

        If `max_segments` is too small and cannot be refused (`validate=False`, or tracing), or if
        under tracing `validate` finds a misfit, every position is -1 and every delta the least
        int64: no valid answer, and never a plausible one.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes or values that do not fit; the message names the row, the item, what
            was expected and what was found.

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

    The rules are those of SGLang's `get_rope_index_glm4v` and of transformers'
    `Glm4vModel.get_rope_index`. On a CUDA device with Triton a padded batch takes the two or three
    kernels of `vecrope.kernels`; the other forms are tensor operators.
    """
    checks.check_metadata(
        input_ids,
        spec,
        image_grid_thw=image_grid_thw,
        video_grid_thw=video_grid_thw,
        attention_mask=attention_mask,
        cu_seqlens=cu_seqlens,
        mm_token_type_ids=mm_token_type_ids,
        second_per_grid_ts=second_per_grid_ts,
        max_segments=max_segments,
    )
    device = input_ids.device
    tracing = torch.compiler.is_compiling()
    exact = max_segments is None and input_ids.is_cpu and not tracing
    if not exact and not tracing:
        checks.check_index_range(input_ids)
    pipeline = None
    if not tracing and cu_seqlens is None and max_segments is None:
        pipeline = _pipeline_for(input_ids)
    if pipeline is not None:
        fused: tuple[Tensor, Tensor] | None = pipeline.fused_rope_index(
            input_ids,
            spec,
            image_grid_thw,
            video_grid_thw,
            attention_mask,
            mm_token_type_ids,
            validate=validate,
        )
        if fused is not None:
            return fused
        # What is wrong is found once more below, and named.
    if (validate or exact) and not tracing:
        if attention_mask is not None and attention_mask.numel():
            if validate:
                checks.check_codes("attention_mask", attention_mask, 1)
            attention_mask = attention_mask.bool()
            if checks.all_set(attention_mask):
                attention_mask = None
        if validate and mm_token_type_ids is not None and mm_token_type_ids.numel():
            checks.check_codes("mm_token_type_ids", mm_token_type_ids, 2, attention_mask)
        if validate and cu_seqlens is not None:
            checks.check_cu_seqlens(cu_seqlens, input_ids.shape[0])
    if image_grid_thw is not None and image_grid_thw.device != device:
        image_grid_thw = image_grid_thw.to(device)
    if video_grid_thw is not None and video_grid_thw.device != device:
        video_grid_thw = video_grid_thw.to(device)
    if exact and cu_seqlens is None and input_ids.numel():
        answer = None
        if attention_mask is None and mm_token_type_ids is None:
            answer = short_rope_index(input_ids, spec, image_grid_thw, video_grid_thw)
        if answer is None:
            kept = None if attention_mask is None else attention_mask.to(device)
            types = None if mm_token_type_ids is None else mm_token_type_ids.to(device)
            answer = regular_rope_index(
                input_ids, spec, image_grid_thw, video_grid_thw, kept, types
            )
        if answer is not None:
            return answer

    stream = make_stream(input_ids, attention_mask, cu_seqlens, mm_token_type_ids, exact=exact)
    no_grid = torch.empty((0, 3), dtype=torch.int64, device=device)
    images = no_grid if image_grid_thw is None else image_grid_thw
    videos = no_grid if video_grid_thw is None else video_grid_thw
    if validate and not tracing:
        checks.check_grids(images, videos, spec)
    items = make_items(images, videos, spec, stream.index_dtype)
    if stream.num_tokens == 0:
        if validate and not tracing:
            checks.check_none_left_over(items)
        rope_deltas = torch.zeros((stream.num_rows, 1), dtype=torch.int64, device=device)
        return input_ids.new_empty((3, *input_ids.shape)), rope_deltas
    segments = segment_stream(stream, spec, items, max_segments)
    if validate and not tracing:
        checks.check_layout(items, segments, images, videos, max_segments)
    index = torch.arange(stream.num_tokens, dtype=stream.index_dtype, device=device)
    positions = positions_at(segments, index).to(input_ids.dtype).view(3, *input_ids.shape)
    if segments.runs.count is None:
        return positions, segments.rope_deltas
    invalid = segments.runs.count > segments.runs.starts.shape[0]
    if tracing and validate:
        invalid = invalid | checks.layout_fault(items, segments)
    return (
        torch.where(invalid, -1, positions),
        torch.where(invalid, torch.iinfo(torch.int64).min, segments.rope_deltas),
    )


def _pipeline_for(input_ids: Tensor) -> ModuleType | None:
    """Return `vecrope.fused` if its kernels can take these ids."""
    pipeline = fused_pipeline() if input_ids.is_cuda else None
    if pipeline is None or not 0 < input_ids.numel() < pipeline.kernels.MAX_TOKENS:
        return None
    return pipeline


@lru_cache
def fused_pipeline() -> ModuleType | None:
    """Return `vecrope.fused`, or None where Triton is not installed."""
    try:
        from vecrope import fused
    except ImportError:
        return None
    return fused
