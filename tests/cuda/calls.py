"""Calls on a CUDA device."""

import pytest
import torch
from hypothesis import settings
from support import (
    CONVENTIONS,
    spec_of,
)

from vecrope.testing import Prompt

SPECS = {convention: spec_of("glm4v", convention) for convention in CONVENTIONS}
each_convention = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
few_examples = settings(max_examples=25, deadline=None)


def on_cuda(arguments):
    return {name: None if value is None else value.cuda() for name, value in arguments.items()}


def moved(arguments):
    tensors = {name: value for name, value in arguments.items() if torch.is_tensor(value)}
    return arguments | on_cuda(tensors)


def packed(prompt):
    """Return the arguments that make a prompt's rows packed sequences, an empty one behind."""
    batch, seq_len = prompt.input_ids.shape
    bounds = [*range(0, batch * seq_len + 1, seq_len), batch * seq_len]
    arguments = {**prompt.arguments(), "cu_seqlens": torch.tensor(bounds, dtype=torch.int32)}
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if arguments[name] is not None:
            arguments[name] = arguments[name].flatten()
    return arguments


def a_prompt(spec=SPECS["sglang"]):
    return Prompt.from_symbols(
        spec,
        ["t<IIIIII>tt", "[<II>t<II>]", "tIIttttt[tt"],
        mask=["1" * 11, "1" * 11, "01111111110"],
        image_grid_thw=[[1, 4, 6], [0, 0, 0], [1, 2, 4]],
        video_grid_thw=[[2, 2, 4]],
    )
