"""Prompts by their runs of placeholders, and what they have to answer."""

from dataclasses import dataclass
from itertools import groupby

import pytest
import torch
from hypothesis import strategies as st
from oracles import spec_of
from support import grid_tensor

from vecrope import (
    get_rope_index,
    get_rope_index_from_placeholders,
    plan_from_placeholders,
)

SPECS = {
    "glm4v-sglang": spec_of("glm4v", "sglang"),
    "glm4v-transformers": spec_of("glm4v", "transformers"),
    "qwen2_5_vl-transformers": spec_of("qwen2_5_vl", "transformers"),
    "qwen2_5_vl-vllm": spec_of("qwen2_5_vl", "vllm"),
    "qwen3_vl-sglang": spec_of("qwen3_vl", "sglang"),
    "qwen3_vl-vllm": spec_of("qwen3_vl", "vllm"),
    "ernie4_5_vl_moe-vllm": spec_of("ernie4_5_vl_moe", "vllm"),
    "ernie4_5_vl_moe-transformers": spec_of("ernie4_5_vl_moe", "transformers"),
}


each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


QWEN = spec_of("qwen2_vl", "vllm")


IMAGE, VIDEO = 1, 2


integers = torch.tensor


each_function = pytest.mark.parametrize(
    "function", [plan_from_placeholders, get_rope_index_from_placeholders]
)


@dataclass
class Request:
    """Prompts by their runs of placeholders, and what they have to give."""

    num_tokens: int | list[int]
    arguments: dict
    want: tuple[torch.Tensor, torch.Tensor]
    by_ids: tuple[torch.Tensor, torch.Tensor]


def groups_of(spec, images, videos):
    """Yield, for each kind, the tokens of each image, each block and each separate frame."""
    area = spec.spatial_merge_size**2
    frames = [(t // spec.temporal_merge_size, h * w // area) for t, h, w in videos]
    blocks = (t * size for t, size in frames)
    apart = (size for t, size in frames for _ in range(t))
    return (
        iter(filter(None, (t * h * w // area for t, h, w in images))),
        iter(filter(None, apart if spec.separate_frames else blocks)),
    )


def runs_of(prompts, spec, images, videos, *, apart):
    """Return (R, 4): offset, length, kind and prompt of each run; `apart`, of each group."""
    groups = groups_of(spec, images, videos)
    runs = []
    for row, prompt in enumerate(prompts):
        offset = 0
        for kind, tokens in groupby(prompt.mm_token_type_ids[0].tolist()):
            end = offset + len(list(tokens))
            while kind and offset < end:
                length = next(groups[kind - 1]) if apart else end - offset
                runs.append((offset, length, kind, row))
                offset += length
            assert offset == end or not kind
            offset = end
    return integers(runs, dtype=torch.int64).reshape(-1, 4)


def arguments_of(runs, images, videos, seconds, integer_dtype, dtype):
    offsets, lengths, modalities, rows = runs.to(integer_dtype).unbind(1)
    return {
        "offsets": offsets,
        "lengths": lengths,
        "modalities": modalities,
        "rows": rows,
        "image_grid_thw": None if images is None else grid_tensor(images),
        "video_grid_thw": None if videos is None else grid_tensor(videos),
        "second_per_grid_ts": seconds,
        "dtype": dtype,
    }


int_dtypes = st.sampled_from([torch.int64, torch.int32])


def request_of(spec, prompts, images, videos, seconds, apart, integer_dtype, dtype):
    runs = runs_of(prompts, spec, images or [], videos or [], apart=apart)
    answers = [prompt.expected() for prompt in prompts]
    want = (
        torch.cat([positions.squeeze(1) for positions, _ in answers], 1).to(dtype),
        torch.cat([deltas for _, deltas in answers]),
    )
    arguments = arguments_of(runs, images, videos, seconds, integer_dtype, dtype)
    counts = [prompt.input_ids.shape[1] for prompt in prompts]
    positions, deltas = get_rope_index(
        torch.cat([prompt.input_ids[0] for prompt in prompts]),
        spec,
        cu_seqlens=integers([0, *counts]).cumsum(0),
        image_grid_thw=arguments["image_grid_thw"],
        video_grid_thw=arguments["video_grid_thw"],
        second_per_grid_ts=seconds,
    )
    return Request(counts, arguments, want, (positions.to(dtype), deltas))


NO_RUN = dict.fromkeys(("offsets", "lengths", "modalities"), torch.zeros(0, dtype=torch.int64))


def runs(*rows, dtype=torch.int64, **arguments):
    """Take runs of an offset, a length, a modality and, if there are several prompts, a row."""
    names = ("offsets", "lengths", "modalities", "rows")[: len(rows[0])]
    columns = integers(rows, dtype=dtype).unbind(1)
    return {**dict(zip(names, columns, strict=True)), **arguments}


def answer_of(num_tokens, spec, arguments):
    plan = plan_from_placeholders(num_tokens, spec, **arguments, validate=False)
    positions, deltas = get_rope_index_from_placeholders(
        num_tokens, spec, **arguments, validate=False
    )
    return positions, deltas, plan.position_ids(), plan.slice(2, 12)
