"""MiniCPM-V 4.7: SGLang's and vLLM's own functions, out of their wheels."""

import math
import os
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from own_support import minicpm_spec

from bench.wheels import Wheel, load
from vecrope import get_rope_index
from vecrope.testing import Prompt, conversations, token_soup
from vecrope.testing.reference.minicpmv4_7 import pictures_of
from vecrope.testing.rules import minicpm_rules

pytestmark = pytest.mark.wheels

NAMES = {
    "sglang": (
        "sglang/srt/multimodal/processors/minicpmv4_7.py",
        *("_llm_grid", "build_image_bounds", "_frame_end", "_group_frames", "_fill_text"),
        *("_fill_grid", "_place_frame", "compute_canvas_positions", "_rope_delta"),
    ),
    "vllm": (
        "vllm/model_executor/models/minicpmv4_7.py",
        *("compute_llm_grid", "build_image_bounds", "_compute_canvas_single", "_target_hw"),
        *("_CanvasLayout", "_canvas_layout", "_assign_canvas_span", "_compute_canvas_packed"),
        "canvas_rope_delta",
    ),
}
KEYS = ("im_start_id", "im_end_id", "slice_start_id", "slice_end_id")
each_upstream = pytest.mark.parametrize(
    "upstream",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                f"VECROPE_{name.upper()}_WHEEL" not in os.environ,
                reason=f"VECROPE_{name.upper()}_WHEEL does not name a wheel of {name}",
            ),
        )
        for name in NAMES
    ],
)


@cache
def functions(upstream):
    wheel = Wheel(Path(os.environ[f"VECROPE_{upstream.upper()}_WHEEL"]), upstream)
    return load(
        wheel,
        *NAMES[upstream],
        torch=torch,
        math=math,
        NamedTuple=NamedTuple,
        Any=Any,
        _STRUCTURAL_KEYS=KEYS,
    )


def upstream_rope_index(upstream, ids, sizes, token_ids):
    """Number one request; where this raises, or counts differ, an upstream counts tokens."""
    module = functions(upstream)
    bounds = module["build_image_bounds"](ids, token_ids)
    if not sizes and not len(bounds):
        return torch.arange(len(ids)).expand(3, -1), 0
    assert len(bounds) == len(sizes)
    if upstream == "sglang":
        positions = module["compute_canvas_positions"](ids, bounds, sizes, token_ids)
        return positions, int(module["_rope_delta"](positions))
    positions = module["_compute_canvas_single"](
        ids, torch.arange(len(ids)), bounds, torch.tensor(sizes), token_ids
    )
    return positions, module["canvas_rope_delta"](positions, len(ids))


def requests(prompt):
    """Yield each row's unmasked tokens with its sizes in the order of the prompt."""
    rules = minicpm_rules(prompt.spec)
    skips = prompt.attention_mask is not None and rules["mask_rule"] == "skip"
    images, videos = (
        iter([] if sizes is None else [size for size in sizes.tolist() if any(size)])
        for sizes in (prompt.target_sizes, prompt.target_sizes_videos)
    )
    names = ("image_token_id", "video_token_id", "markers")
    for row, ids in enumerate(prompt.input_ids):
        keep = prompt.attention_mask[row].bool() if skips else torch.ones_like(ids).bool()
        pictures = pictures_of(
            ids[keep].tolist(), by_markers=True, **{name: rules[name] for name in names}
        )
        kinds = chain.from_iterable([picture[0].kind] * len(picture) for picture in pictures)
        yield ids[keep], keep, [next(images if kind == 1 else videos) for kind in kinds]


@each_upstream
@pytest.mark.parametrize("mode", ["16x", "4x"])
@pytest.mark.parametrize("strategy", [conversations, token_soup], ids=lambda s: s.__name__)
def test_prompts_are_answered_as_by_the_upstream(upstream, mode, strategy):
    spec = minicpm_spec(upstream, mode)
    token_ids = dict(zip((*KEYS, "newline_id"), minicpm_rules(spec)["markers"], strict=True))

    @given(strategy(spec), st.booleans())
    def check(prompt, by_types):
        arguments = prompt.arguments()
        arguments["mm_token_type_ids"] = None
        try:
            position_ids, rope_deltas = get_rope_index(spec=spec, **arguments)
        except ValueError:
            return  # what is refused is held against the reference
        if not any(
            sizes is not None and len(sizes)
            for sizes in (prompt.target_sizes, prompt.target_sizes_videos)
        ):
            return  # a request without pictures does not get as far
        for row, (ids, keep, sizes) in enumerate(requests(prompt)):
            if not len(ids):
                continue
            theirs, delta = upstream_rope_index(upstream, ids, sizes, token_ids)
            assert torch.equal(position_ids[:, row, keep], theirs)
            assert position_ids.dtype == theirs.dtype
            assert int(rope_deltas[row]) == delta
        if by_types and strategy is conversations:
            arguments = prompt.arguments()
            assert torch.equal(get_rope_index(spec=spec, **arguments)[0], position_ids)

    check()


@each_upstream
def test_an_upstream_takes_what_is_between_markers_for_a_crop(upstream):
    """Another marker too: we refuse it."""
    spec = minicpm_spec(upstream)
    token_ids = dict(zip((*KEYS, "newline_id"), minicpm_rules(spec)["markers"], strict=True))
    prompt = Prompt.from_symbols(spec, ["t((I)t"], target_sizes=[[4, 4]])
    theirs, _ = upstream_rope_index(upstream, prompt.input_ids[0], [[4, 4]], token_ids)
    # Two tokens on a canvas of 2 x 1, of a picture of one token.
    assert theirs[1:].tolist() == [[0, 0, 1, 2, 3, 4], [0, 0, 1, 1, 2, 4]]
    with pytest.raises(ValueError, match="markers must open and close crops in turn"):
        get_rope_index(spec=spec, **{**prompt.arguments(), "mm_token_type_ids": None})
