"""Calls of SGLang's function for GLM-4V."""

import inspect
from types import SimpleNamespace

import torch

from vecrope import MRopeSpec
from vecrope.integrations.sglang import get_rope_index_glm4v
from vecrope.testing import Prompt

SPEC = MRopeSpec.for_model("glm4v", convention="sglang")

NO_GRID = torch.empty((0, 3), dtype=torch.int64)


def config_of(spec):
    return SimpleNamespace(
        image_token_id=spec.image_token_id,
        video_start_token_id=spec.video_start_token_id,
        video_end_token_id=spec.video_end_token_id,
        vision_config=SimpleNamespace(spatial_merge_size=spec.spatial_merge_size),
    )


CONFIG = config_of(SPEC)


def rope_index(input_ids, *, image_grid_thw=None, video_grid_thw=None, attention_mask=None, **_):
    return get_rope_index_glm4v(input_ids, CONFIG, image_grid_thw, video_grid_thw, attention_mask)


def answer(prompt, function=rope_index):
    return function(**prompt.arguments())


def prompt_of(*rows, **arguments):
    return Prompt.from_symbols(SPEC, rows, **arguments)


def assert_same(got, expected):
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours.dtype, ours.device, ours.shape) == (theirs.dtype, theirs.device, theirs.shape)
        assert torch.equal(ours, theirs)


# The function


def parameters(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
