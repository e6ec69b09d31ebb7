"""What the input must satisfy, and the messages that say where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from vecrope.inputs import Inputs
from vecrope.items import Items
from vecrope.modality import IMAGE, MASKED, VIDEO
from vecrope.segments import Segments
from vecrope.spec import MRopeSpec

_KINDS = ("image", "video")
_INTEGRAL = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_MAX_TOKENS = 2**30


def check_metadata(inputs: Inputs, spec: MRopeSpec, max_segments: int | None = None) -> None:
    """Check types, shapes, dtypes and limits; reads no value of any tensor."""
    if not isinstance(spec, MRopeSpec):
        raise TypeError(f"spec must be an MRopeSpec, got {type(spec).__name__}")
    input_ids, cu_seqlens = inputs.input_ids, inputs.cu_seqlens
    _check_tensor("input_ids", input_ids)
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"input_ids must be int64 or int32, got {input_ids.dtype}")
    if cu_seqlens is None and input_ids.dim() != 2:
        raise ValueError(
            f"input_ids must have shape (B, T), got {tuple(input_ids.shape)}; "
            "packed input of shape (N,) needs cu_seqlens"
        )
    if cu_seqlens is not None:
        _check_integral("cu_seqlens", cu_seqlens)
        if input_ids.dim() != 1:
            raise ValueError(
                f"input_ids must have shape (N,) with cu_seqlens, got {tuple(input_ids.shape)}"
            )
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
            raise ValueError(
                f"cu_seqlens must have shape (num_sequences + 1,), got {tuple(cu_seqlens.shape)}"
            )
    if input_ids.dtype == torch.int32 and input_ids.shape[-1] > 2**31:
        raise ValueError(
            f"{input_ids.shape[-1]} tokens in a row overflow the positions' dtype torch.int32; "
            "use int64 input_ids"
        )
    for name in ("attention_mask", "mm_token_type_ids"):
        values = getattr(inputs, name)
        if values is None:
            continue
        _check_integral(name, values)
        if values.shape != input_ids.shape:
            raise ValueError(
                f"{name} must have the shape of input_ids {tuple(input_ids.shape)}, "
                f"got {tuple(values.shape)}"
            )
    for name in ("image_grid_thw", "video_grid_thw"):
        grids = getattr(inputs, name)
        if grids is None:
            continue
        _check_integral(name, grids)
        if grids.dim() != 2 or grids.shape[1] != 3:
            raise ValueError(
                f"{name} must have shape (num_{name.split('_')[0]}s, 3), got {tuple(grids.shape)}"
            )
    if inputs.second_per_grid_ts is not None:
        _check_seconds(inputs, spec)
    for name in ("audio_seqlens", "images_per_sample", "target_sizes", "target_sizes_videos"):
        if getattr(inputs, name) is not None and name not in spec.arguments:
            raise ValueError(f"{name} must be None: {spec.model_type} has no use for it")
    if inputs.use_audio_in_video and "use_audio_in_video" not in spec.arguments:
        raise ValueError(f"use_audio_in_video must be False: {spec.model_type} hears no audio")
    if max_segments is not None:
        if not isinstance(max_segments, int) or isinstance(max_segments, bool):
            raise TypeError(f"max_segments must be an int, got {max_segments!r}")
        if max_segments < 1:
            raise ValueError(f"max_segments must be at least 1, got {max_segments}")


def _check_seconds(inputs: Inputs, spec: MRopeSpec) -> None:
    seconds = inputs.second_per_grid_ts
    if "second_per_grid_ts" not in spec.arguments:
        raise ValueError(
            f"second_per_grid_ts must be None: {spec.model_type} does not space its frames in "
            f"time under convention {spec.convention!r}"
        )
    if isinstance(seconds, Tensor):
        if seconds.dtype not in (torch.float32, torch.float64, *_INTEGRAL[:-1]):
            raise TypeError(
                f"second_per_grid_ts must be float32, float64 or integers, got {seconds.dtype}"
            )
        shape = tuple(seconds.shape)
    elif isinstance(seconds, Sequence) and not isinstance(seconds, str):
        for value in seconds:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"second_per_grid_ts must hold numbers, got {value!r}")
        shape = (len(seconds),)
    else:
        raise TypeError(
            "second_per_grid_ts must be a tensor or a sequence of floats, "
            f"got {type(seconds).__name__}"
        )
    num_videos = 0 if inputs.video_grid_thw is None else inputs.video_grid_thw.shape[0]
    if shape != (num_videos,):
        raise ValueError(
            f"second_per_grid_ts must have shape ({num_videos},), one for each row of "
            f"video_grid_thw, got {shape}"
        )


def check_index_range(input_ids: Tensor) -> None:
    """Check that the static form, whose indices have 32 bits, can number the tokens."""
    if input_ids.numel() >= 2**31:
        raise ValueError(
            f"input_ids must hold fewer than 2**31 tokens, got {input_ids.numel()}; "
            "on a CPU and without max_segments there may be more"
        )


def check_codes(name: str, values: Tensor, allowed: int, kept: Tensor | None = None) -> None:
    """Check that `values`, at least one, are among 0 .. `allowed` wherever `kept`; synchronises."""
    if values.dtype == torch.bool:
        return
    # Of int64 the least value is slow to find, but the upper half of a negative one is negative.
    flat = values.reshape(-1)
    wide = flat.dtype == torch.int64 and flat.stride(0) == 1
    low = int((flat.view(torch.int32) if wide else flat).amin())
    if low >= 0 and int(flat.amax()) <= allowed:
        return
    faults = (values < 0) | (values > allowed)
    if kept is not None:
        faults &= kept.to(faults.device)
    for at in faults.nonzero()[:1].tolist():
        where = f"row {at[0]}, token {at[1]}" if len(at) == 2 else f"token {at[0]}"
        value = int(values[tuple(at)])
        expected = " or ".join(map(str, range(allowed + 1)))
        raise ValueError(f"{name} must hold {expected}, got {value} in {where}")


def all_set(flags: Tensor) -> bool:
    """Return whether every one of `flags`, at least one bool, is set; synchronises."""
    return bool(flags.view(torch.uint8).amin())


def check_cu_seqlens(cu_seqlens: Tensor, num_tokens: int) -> None:
    """Check that the sequences cover the tokens, in order."""
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != num_tokens:
        raise ValueError(
            f"cu_seqlens must run from 0 to the number of tokens {num_tokens}, "
            f"got {bounds[0]} to {bounds[-1]}"
        )
    falls = (cu_seqlens[1:] < cu_seqlens[:-1]).nonzero()
    if falls.shape[0]:
        at = int(falls[0])
        raise ValueError(
            f"cu_seqlens must not decrease, got {bounds[at]} then {bounds[at + 1]} at sequence {at}"
        )


def check_grids(image_grid_thw: Tensor, video_grid_thw: Tensor, spec: MRopeSpec) -> None:
    """Check that every grid row is all zeros, or positive and divisible by the merge size."""
    merge = spec.spatial_merge_size
    for kind, grids in zip(_KINDS, (image_grid_thw, video_grid_thw), strict=True):
        unsound = (grids <= 0).any(1) & (grids != 0).any(1)
        indivisible = (grids[:, 1:] % merge != 0).any(1)
        # In floating point, where no product wraps; no sum of what remains does in 32 bits.
        too_large = (grids.double().prod(1) / merge**2).cumsum(0) >= _MAX_TOKENS
        wrong = unsound | indivisible | too_large
        frames = grids[:, 0]
        if kind == "image" and not spec.multi_frame_images:
            wrong |= frames > 1
        if kind == "video" and spec.temporal_merge_size > 1:
            wrong |= (frames > 0) & (frames < spec.temporal_merge_size)
        faults = wrong.nonzero()
        if not faults.shape[0]:
            continue
        at = int(faults[0])
        grid = tuple(grids[at].tolist())
        if bool(unsound[at]):
            raise ValueError(
                f"{kind}_grid_thw row {at} must be positive, or all zeros for no {kind}, got {grid}"
            )
        if bool(indivisible[at]):
            raise ValueError(
                f"{kind}_grid_thw row {at} must have a height and width divisible by "
                f"spatial_merge_size {merge}, got {grid}"
            )
        if bool(too_large[at]):
            raise ValueError(
                f"{kind}_grid_thw must describe fewer than 2**30 tokens, row {at} {grid} exceeds "
                "that"
            )
        if kind == "image":
            raise ValueError(
                f"image_grid_thw row {at} must have one frame, as {spec.convention} asks of "
                f"{spec.model_type}, got {grid}"
            )
        raise ValueError(
            f"video_grid_thw row {at} must have at least temporal_merge_size "
            f"{spec.temporal_merge_size} frames, got {grid}"
        )


def check_seconds(
    seconds: Tensor | Sequence[float] | None, video_grid_thw: Tensor, spec: MRopeSpec
) -> None:
    """Check that the seconds of every video are sound; synchronises where there are any."""
    if spec.video_time != "seconds" or not video_grid_thw.shape[0]:
        return
    if seconds is None:
        if spec.default_seconds is None:
            raise ValueError(
                f"second_per_grid_ts must be given for the videos of {spec.model_type}, got None"
            )
        return
    values = torch.as_tensor(seconds, dtype=torch.float64).to(video_grid_thw.device)
    assert spec.tokens_per_second is not None
    offsets = values * (spec.tokens_per_second * video_grid_thw[:, 0])
    unsound = ~(values.isfinite() & (values >= 0))
    faults = (unsound | ~(offsets.cumsum(0) < _MAX_TOKENS)).nonzero()
    for at in faults[:1, 0].tolist():
        if bool(unsound[at]):
            raise ValueError(
                f"second_per_grid_ts must be finite and not negative, got {values[at].item()} for "
                f"video {at}"
            )
        raise ValueError(
            f"second_per_grid_ts must keep all positions below 2**30, got {values[at].item()} for "
            f"video {at} of {int(video_grid_thw[at, 0])} frames"
        )


def check_none_left_over(items: Items) -> None:
    """Check that there are no grids, where there are no tokens."""
    expected = items.expected.tolist()
    if any(expected):
        raise ValueError(
            f"the grids describe {expected[0]} image tokens and {expected[1]} video tokens, "
            "input_ids hold none"
        )


def check_layout(
    items: Items,
    segments: Segments,
    image_grid_thw: Tensor,
    video_grid_thw: Tensor,
    spec: MRopeSpec,
    max_segments: int | None,
) -> None:
    """Check that every run of placeholders holds exactly its grids; synchronises."""
    if max_segments is not None and segments.runs.count is not None:
        count = int(segments.runs.count)
        if count > max_segments:
            raise ValueError(
                f"max_segments must be at least {count} for this input, got {max_segments}"
            )
    if bool(layout_fault(items, segments)):
        raise_layout_fault(items, segments, image_grid_thw, video_grid_thw, spec)


def layout_fault(items: Items, segments: Segments) -> Tensor:
    """Return, as a 0-d bool, whether placeholders and grids fail to fit; does not synchronise."""
    fault = _broken(segments).any() | (segments.runs.total != items.expected).any()
    if segments.unannounced is not None:
        fault = fault | segments.unannounced.any()
    return fault


def raise_layout_fault(
    items: Items,
    segments: Segments,
    image_grid_thw: Tensor,
    video_grid_thw: Tensor,
    spec: MRopeSpec,
) -> NoReturn:
    """Raise the ValueError that describes the first fault found by `layout_fault`."""
    grids = (image_grid_thw, video_grid_thw)
    found, expected = segments.runs.total.tolist(), items.expected.tolist()
    visual = (segments.modality == IMAGE) | (segments.modality == VIDEO)
    owner = torch.where(segments.items < items.num_images, IMAGE, VIDEO)
    surplus = visual & ((owner != segments.modality) | (segments.items == items.text))
    faults = (_broken(segments) | surplus).nonzero()
    if faults.shape[0]:
        at = int(faults[0])
        if not bool(surplus[at]):
            same = ((segments.items == segments.items[at]) & visual)[:at].nonzero()
            _raise_cut_short(int(same[-1]), items, segments, grids, spec)
        _raise_surplus(int(segments.modality[at]) - IMAGE, at, segments, grids, expected, found)
    if segments.unannounced is not None and found == expected:
        _raise_unannounced(items, segments, grids, spec)
    kind = int(found[0] == expected[0])
    if found[kind] > expected[kind]:
        # The surplus follows the last item in one run, and so was not cut from it.
        run = int(torch.searchsorted(segments.runs.found[kind], expected[kind], right=True))
        at = int(torch.searchsorted(segments.starts, segments.runs.starts[run], right=True)) - 1
        _raise_surplus(kind, at, segments, grids, expected, found)
    # What the prompt holds is sound, but it ends before its grids do.
    of_kind = (visual & (segments.modality == IMAGE + kind)).nonzero()
    if of_kind.shape[0]:
        last = int(of_kind[-1])
        if _tokens_into_group(segments, last):
            _raise_cut_short(last, items, segments, grids, spec)
    rank = found[kind] + kind * expected[0]
    item = int(torch.searchsorted(items.ends, rank, right=True))
    start, _, width, height, _, _ = items.table[:, item].tolist()
    at = item - kind * items.num_images
    raise ValueError(
        f"{_KINDS[kind]}_grid_thw row {at} {tuple(grids[kind][at].tolist())} is left over"
        + (f" after {(rank - start) // (width * height)} of its frames" if rank > start else "")
        + f": expected {expected[kind]} {_KINDS[kind]} tokens in the batch, got {found[kind]}"
    )


def _raise_surplus(
    kind: int,
    at: int,
    segments: Segments,
    grids: tuple[Tensor, Tensor],
    expected: list[int],
    found: list[int],
) -> NoReturn:
    raise ValueError(
        f"row {int(segments.rows[at])} holds {_KINDS[kind]} tokens beyond the last grid: "
        f"expected {expected[kind]} for the {grids[kind].shape[0]} rows of "
        f"{_KINDS[kind]}_grid_thw, got {found[kind]} in the batch"
    )


def _raise_unannounced(
    items: Items, segments: Segments, grids: tuple[Tensor, Tensor], spec: MRopeSpec
) -> NoReturn:
    assert segments.unannounced is not None
    at = int(segments.unannounced.nonzero()[0])
    item = int(segments.items[at])
    kind = int(item >= items.num_images)
    row = item - kind * items.num_images
    alone = int(segments.lengths[at]) <= _group_tokens(segments, at)
    what = "right before its tokens" if alone else "before each of its frames"
    raise ValueError(
        f"row {int(segments.rows[at])}, {_KINDS[kind]} {row}: its grid "
        f"{tuple(grids[kind][row].tolist())} needs a vision_start_token_id "
        f"{spec.vision_start_token_id} {what}, got another token; SGLang would number them as text"
    )


def _raise_cut_short(
    at: int, items: Items, segments: Segments, grids: tuple[Tensor, Tensor], spec: MRopeSpec
) -> NoReturn:
    item = int(segments.items[at])
    kind = int(item >= items.num_images)
    row = item - kind * items.num_images
    group_tokens = _group_tokens(segments, at)
    what = f"{_KINDS[kind]} {row}"
    if kind and spec.separate_frames:
        end = int(segments.starts[at] + segments.lengths[at] - segments.origin[at])
        what = f"frame {end // group_tokens} of {what}"
    raise ValueError(
        f"row {int(segments.rows[at])}, {what}: its grid {tuple(grids[kind][row].tolist())} needs "
        f"{group_tokens} tokens, got {_tokens_into_group(segments, at)} in one run; was the prompt "
        f"truncated inside the {_KINDS[kind]}?"
    )


def _broken(segments: Segments) -> Tensor:
    """Return (S,) bool: the segment starts inside a group that does not run on up to it."""
    masked = segments.modality == MASKED
    number = torch.arange(masked.shape[0], dtype=segments.starts.dtype, device=masked.device)
    before = number.masked_fill(masked, -1).cummax(0).values
    before = torch.nn.functional.pad(before[:-1], (1, 0), value=-1)
    previous = before.clamp(min=0)
    runs_on = (
        (before >= 0)
        & (segments.items[previous] == segments.items)
        & (segments.rows[previous] == segments.rows)
    )
    return segments.interrupted & ~masked & ~runs_on


def _tokens_into_group(segments: Segments, at: int) -> int:
    end = int(segments.starts[at] + segments.lengths[at] - segments.origin[at])
    return end % _group_tokens(segments, at)


def _group_tokens(segments: Segments, at: int) -> int:
    return int(segments.width[at] * segments.height[at] * segments.in_group[at])


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def _check_integral(name: str, value: Tensor) -> None:
    _check_tensor(name, value)
    if value.dtype not in _INTEGRAL:
        raise TypeError(
            f"{name} must be of a signed integer dtype, uint8 or bool, got {value.dtype}"
        )
