"""The workloads by name. Those of GLM-4V come in its own layout, and every provider takes them.

An image or a frame stands between an image-start and an image-end token, and behind a frame there
are six text tokens for its timestamp, as in GLM-4V's own prompts. So no two of them touch. The
workloads of other families are in their layouts. These are of pictures of one size; those of many
sizes are in `mixed`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch.nn.utils.rnn import pad_sequence

from bench import mixed, mixed_omni, mixed_own
from bench.prompts import TIMESTAMP_LEN, Layout, Row, Step, Workload, one_row, padded_rows
from vecrope import MRopeSpec

_PADDING_ID = 151329


def _image_and_frame(name: str, seq_len: int, side: int) -> Workload:
    """One image and one video of one frame, both `side` by `side` patches, and text."""
    row = Row()
    row.text(8)
    row.image(side, side)
    row.text(8)
    row.video(1, side, side)
    if len(row) > seq_len:
        row = Row()
    row.text(seq_len - len(row))
    return one_row(name, row)


def _seed(seq_len: int) -> Workload:
    """A 256-token image and a 256-token video frame in text; where they do not fit, text alone."""
    return _image_and_frame("seed", seq_len, 32)


def _short(seq_len: int) -> Workload:
    """A 64-token image and a 64-token video frame in a question of 300 tokens."""
    return _image_and_frame("short", seq_len, 16)


def _video(seq_len: int) -> Workload:
    """One video, of as many frames of 256 tokens as fit, with 8 text tokens between them."""
    row = Row()
    row.text(4)
    period = 1 + 256 + 1 + TIMESTAMP_LEN
    row.video((seq_len - len(row) - 2) // period, 32, 32)
    row.text(seq_len - len(row))
    return one_row("video", row)


def _batch(seq_len: int) -> Workload:
    """32 rows of unlike lengths, with images, videos and padding on both sides."""
    rng = random.Random(0)
    rows = []
    for _ in range(32):
        length = rng.randint(seq_len // 4, seq_len)
        row = _ragged_row(rng, length)
        rows.append((rng.randint(0, seq_len - length), row))
    return padded_rows("batch", seq_len, rows, _PADDING_ID)


def _ragged_row(rng: random.Random, length: int) -> Row:
    row = Row()
    row.text(rng.randint(8, 64))
    while True:
        height, width = 2 * rng.randint(4, 20), 2 * rng.randint(4, 20)
        frames = rng.choice((0, 0, 1, 4, 8))  # 0 for an image
        after = rng.randint(8, 128)
        per_frame = height * width // 4 + 2
        needed = per_frame if frames == 0 else frames * (per_frame + TIMESTAMP_LEN) + 2
        if len(row) + needed + after > length:
            row.text(length - len(row))
            return row
        if frames == 0:
            row.image(height, width)
        else:
            row.video(frames, height, width)
        row.text(after)


def _long(seq_len: int) -> Workload:
    """As `video`, in batches of millions of tokens."""
    return replace(_video(seq_len), name="long")


_QWEN_MARKS = (151652, 151653)
_LAYOUTS: dict[str, tuple[tuple[int, int], tuple[int, ...], tuple[int, int] | None]] = {
    "qwen2_5_vl": (_QWEN_MARKS, _QWEN_MARKS, None),
    "qwen3_vl": (_QWEN_MARKS, (), None),
    "ernie4_5_vl_moe": ((101304, 101305), (101306, 101307), None),
    # The markers of audio are those of the configuration's class.
    "qwen3_omni_moe": (_QWEN_MARKS, _QWEN_MARKS, (151647, 151648)),
}


def _family(model_type: str, seq_len: int) -> Workload:
    """A 256-token image, a video of 256-token steps in half of the row, and text.

    It is a block with seconds, a block, or frames with timestamps, as the family has it. A family
    with audio has some in an eighth of the row as well.
    """
    spec = MRopeSpec.for_model(model_type, convention="sglang")
    image_marks, video_marks, audio_marks = _LAYOUTS[model_type]
    row = Row(Layout(spec, image_marks, video_marks, True, audio_marks))
    row.text(8)
    row.image(32, 32)
    row.text(8)
    row.video(seq_len // 512 * spec.temporal_merge_size, 32, 32)
    if audio_marks is not None:
        row.text(8)
        row.audio(seq_len // 104)
    row.text(seq_len - len(row))
    workload = one_row(model_type, row)
    if spec.video_time == "seconds":
        return replace(workload, second_per_grid_ts=torch.tensor([0.5]))
    return workload


def _requests(name: str, seq_len: int, one_in: int) -> Workload:
    """256 requests, of which one in so many is in its prefill and has a chunk of at most 512."""
    rng = random.Random(0)
    rows, step = [], Step([], [], [])
    for _ in range(256):
        length = rng.randint(seq_len // 8, seq_len)
        row = _ragged_row(rng, length)
        rows.append((0, row))
        _add_request(step, one_row(name, row), rng, one_in)
    return replace(padded_rows(name, seq_len, rows, _PADDING_ID), step=step)


def _omni_requests(name: str, seq_len: int, one_in: int) -> Workload:
    """The same of Qwen3-Omni, each prompt with pictures, silent clips and audio of many sizes."""
    rng, step = random.Random(0), Step([], [], [])
    for number in range(256):
        length = rng.randint(seq_len // 8, seq_len)
        _add_request(step, mixed_omni.prompt(f"{name} {number}", length), rng, one_in)
    batch = replace(step.requests[0], name=name, step=step)
    ids = [request.input_ids[0] for request in step.requests]
    input_ids, mask = (
        pad_sequence(rows, batch_first=True, padding_value=value)
        for rows, value in ((ids, _PADDING_ID), ([*map(torch.ones_like, ids)], 0))
    )
    return replace(
        batch, input_ids=input_ids, attention_mask=mask, mm_token_type_ids=torch.zeros_like(mask)
    )


def _add_request(step: Step, request: Workload, rng: random.Random, one_in: int) -> None:
    """Add a request in its prefill or, if its number is none of one in so many, in decoding."""
    length = request.input_ids.shape[1]
    computed, scheduled = length + rng.randint(0, 1000), 1
    if one_in and len(step.requests) % one_in == 0:
        computed = rng.randrange(0, length, 512)
        scheduled = min(512, length - computed)
    step.requests.append(request)
    step.computed.append(computed)
    step.scheduled.append(scheduled)


_MAKERS: dict[str, Callable[[int], Workload]] = {
    **mixed.MAKERS,
    **mixed_omni.MAKERS,
    **mixed_own.MAKERS,
    "seed": _seed,
    "video": _video,
    "batch": _batch,
    "short": _short,
    "long": _long,
    **{model_type: partial(_family, model_type) for model_type in _LAYOUTS},
    "step": partial(_requests, "step", one_in=4),
    "step-decode": partial(_requests, "step-decode", one_in=0),
    "step-omni": partial(_omni_requests, "step-omni", one_in=4),
    "step-omni-decode": partial(_omni_requests, "step-omni-decode", one_in=0),
}

# The padded lengths T at which each workload is run.
SIZES: dict[str, tuple[int, ...]] = {
    **mixed.SIZES,
    **mixed_omni.SIZES,
    **mixed_own.SIZES,
    "seed": tuple(2**exponent for exponent in range(18)),
    "video": (4096, 32768, 131072),
    "batch": (4096,),
    "short": (300,),
    "long": (2**20, 2**21, 2**22, 2**23),
    **dict.fromkeys(_LAYOUTS, (1024, 16384, 131072)),
    **dict.fromkeys(("step", "step-decode", "step-omni", "step-omni-decode"), (4096,)),
}


@lru_cache(maxsize=8)
def make_workload(name: str, seq_len: int, device: str = "cpu") -> Workload:
    """Return the workload of that name and padded length; the same call gives the same object."""
    workload = _MAKERS[name](seq_len)
    return workload if device == "cpu" else workload.to(device)
