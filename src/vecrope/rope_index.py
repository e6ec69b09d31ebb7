"""The stages composed: `get_rope_index`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from vecrope import checks
from vecrope.canvas import canvas_rope_index
from vecrope.inputs import Inputs
from vecrope.items import make_items
from vecrope.positions import all_positions, positions_at
from vecrope.regular import regular_rope_index
from vecrope.rules import CanvasRule, OwnRule
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
    second_per_grid_ts: Tensor | Sequence[float] | None = None,
    second_per_grids: Tensor | Sequence[float] | None = None,
    audio_seqlens: Tensor | None = None,
    use_audio_in_video: bool = False,
    images_per_sample: Tensor | None = None,
    target_sizes: Tensor | None = None,
    target_sizes_videos: Tensor | None = None,
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
        second_per_grid_ts: (num_videos,) seconds between the temporal steps of each video, float32
            or float64, or a list of floats, for families that space videos in time. None: the
            family's default. The upstreams round by its type, and so does this.
        second_per_grids: the same, by the name that the omni families give it.
        audio_seqlens: (num_audios,) integers, mel frames of each audio; of the omni families.
        use_audio_in_video: whether videos come with their sound, interleaved; of the same.
        images_per_sample: (B,) integers, grids of each row; of glm_image.
        target_sizes: (num_crops, 2) integers, of minicpmv4_7.
        target_sizes_videos: likewise, of the frames of videos.
        validate: check the values of the input. On a device other than the CPU this synchronises.
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
    `Glm4vModel.get_rope_index`.
    """
    if second_per_grids is not None:
        if second_per_grid_ts is not None:
            raise ValueError("give second_per_grid_ts or second_per_grids, which is the same")
        second_per_grid_ts = second_per_grids
    inputs = Inputs(
        input_ids,
        image_grid_thw,
        video_grid_thw,
        attention_mask,
        cu_seqlens,
        mm_token_type_ids,
        second_per_grid_ts,
        audio_seqlens,
        use_audio_in_video,
        images_per_sample,
        target_sizes,
        target_sizes_videos,
    )
    checks.check_metadata(inputs, spec, max_segments)
    device = input_ids.device
    tracing = torch.compiler.is_compiling()
    exact = max_segments is None and input_ids.is_cpu and not tracing
    if not exact and not tracing:
        checks.check_index_range(input_ids)
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
    if spec.mask_rule == "ignore":
        attention_mask = None
    if image_grid_thw is not None and image_grid_thw.device != device:
        image_grid_thw = image_grid_thw.to(device)
    if video_grid_thw is not None and video_grid_thw.device != device:
        video_grid_thw = video_grid_thw.to(device)
    if spec.own_rule is not None:
        inputs = inputs._replace(
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            attention_mask=attention_mask,
        )
        return _ROOMS[type(spec.own_rule)](inputs, spec, validate=validate)
    dtype = input_ids.dtype if spec.position_dtype == "ids" else torch.int64
    frames_by_markers = _numbers_frames_by_markers(spec)
    if exact and frames_by_markers and cu_seqlens is None and input_ids.numel():
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
            return answer[0].to(dtype), answer[1]
    pipeline = None if tracing else _pipeline_for(input_ids)
    if pipeline is not None and frames_by_markers and cu_seqlens is None and max_segments is None:
        if validate and image_grid_thw is not None and not spec.multi_frame_images:
            checks.check_grids(image_grid_thw, image_grid_thw[:0], spec)
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
            return fused[0].to(dtype), fused[1]

    stream = make_stream(input_ids, attention_mask, cu_seqlens, mm_token_type_ids, exact=exact)
    no_grid = torch.empty((0, 3), dtype=torch.int64, device=device)
    images = no_grid if image_grid_thw is None else image_grid_thw
    videos = no_grid if video_grid_thw is None else video_grid_thw
    if validate and not tracing:
        checks.check_grids(images, videos, spec)
        checks.check_seconds(second_per_grid_ts, videos, spec)
    items = make_items(images, videos, spec, stream.index_dtype, second_per_grid_ts)
    if stream.num_tokens == 0:
        if validate and not tracing:
            checks.check_none_left_over(items)
        rope_deltas = torch.zeros((stream.num_rows, 1), dtype=torch.int64, device=device)
        return input_ids.new_empty((3, *input_ids.shape), dtype=dtype), rope_deltas
    segments = segment_stream(stream, spec, items, max_segments)
    if validate and not tracing:
        checks.check_layout(items, segments, images, videos, spec, max_segments)
    if stream.exact:
        positions = all_positions(segments, dtype).view(3, *input_ids.shape)
        return positions, segments.rope_deltas
    index = torch.arange(stream.num_tokens, dtype=stream.index_dtype, device=device)
    positions = positions_at(segments, index).to(dtype).view(3, *input_ids.shape)
    assert segments.runs.count is not None
    invalid = segments.runs.count > segments.runs.starts.shape[0]
    if tracing and validate:
        invalid = invalid | checks.layout_fault(items, segments)
    return (
        torch.where(invalid, -1, positions),
        torch.where(invalid, torch.iinfo(torch.int64).min, segments.rope_deltas),
    )


_ROOMS: dict[type[OwnRule], Callable[..., tuple[Tensor, Tensor]]] = {CanvasRule: canvas_rope_index}


def _numbers_frames_by_markers(spec: MRopeSpec) -> bool:
    """Whether the faster forms, for a CPU and for CUDA, know the family's rules."""
    return (
        spec.marker_rule in ("last", "count")
        and spec.separate_frames
        and spec.image_time == "frames"
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
