"""Any spec at all, and seconds of every dtype."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    each_rule,
    spec_of,
    transformers_rope_index,
)
from support import (
    assert_same,
    rope_index,
)

from tests.families.prompts import FORMS, any_prompt, by_ids, each_form
from vecrope import MRopeSpec
from vecrope.testing import Prompt, assert_matches

# Any spec at all


@st.composite
def any_spec(draw):
    """Draw the rules of a family that may not exist."""
    marker_rule = draw(st.sampled_from(["none", "last", "count", "adjacent"]))
    by_markers = marker_rule in ("last", "count")
    separate = draw(st.booleans())
    fields = {"frames_may_touch": draw(st.booleans())}
    if not separate:
        fields["temporal_merge_size"] = draw(st.integers(1, 3))
        if draw(st.booleans()):
            fields["video_time"] = "seconds"
            fields["tokens_per_second"] = draw(st.sampled_from([1, 2, 4, 25, 0.1, 1 / 3, 2.5]))
            fields["default_seconds"] = draw(st.none() | st.sampled_from([1.0, 0.08, 2 / 3]))
    return MRopeSpec(
        model_type="invented",
        convention=draw(st.sampled_from(["sglang", "transformers", "vllm"])),
        image_token_id=5 if by_markers else draw(st.sampled_from([5, 5, None])),
        video_token_id=None if by_markers else draw(st.sampled_from([6, 6, None])),
        video_start_token_id=7 if by_markers else None,
        video_end_token_id=8 if by_markers else None,
        vision_start_token_id=9 if marker_rule == "adjacent" else draw(st.sampled_from([9, None])),
        spatial_merge_size=draw(st.integers(1, 3)),
        marker_rule=marker_rule,
        separate_frames=separate,
        image_time=draw(st.sampled_from(["frames", "none"])),
        time_order=draw(st.sampled_from(["rate", "seconds"])),
        time_dtype=draw(st.sampled_from(["given", "float32", "float64"])),
        multi_frame_images=draw(st.booleans()),
        span_rule=draw(st.sampled_from(["thw", "hw"])),
        mask_rule="ignore"
        if marker_rule == "adjacent"
        else draw(st.sampled_from(["skip", "ignore"])),
        padding_value=draw(st.sampled_from([0, 1, -100])),
        delta_length=draw(st.sampled_from(["padded", "valid"])),
        position_dtype=draw(st.sampled_from(["ids", "int64"])),
        **fields,
    )


@given(any_spec(), st.data())
def test_any_spec_at_all_is_numbered_as_the_loop_numbers_it(spec, data):
    prompt = data.draw(any_prompt(spec))
    for form in FORMS.values():
        assert_matches(by_ids(spec, **form), prompt)


# Seconds


@pytest.mark.parametrize("order", ["rate", "seconds"])
@pytest.mark.parametrize("dtype", ["given", "float32", "float64"])
@pytest.mark.parametrize(
    "kind", [list, partial(torch.tensor, dtype=torch.float32), torch.DoubleTensor]
)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_seconds_of_every_rate_are_rounded_as_the_loop_rounds_them(order, dtype, kind, form):
    frames = 60
    for rate in (1, 2, 4, 25, 0.1, 1 / 3):
        spec = replace(
            spec_of("qwen2_5_vl", "transformers"),
            tokens_per_second=rate,
            time_order=order,
            time_dtype=dtype,
        )
        seconds = [2 / fps for fps in (0.3, 1, 1.7, 3, 7, 23.976, 25, 29.97, 30)] + [0.0, 0.08]
        prompt = Prompt.from_symbols(
            spec,
            ["<" + "V" * frames + ">"] * len(seconds),
            video_grid_thw=[[frames, 2, 2]] * len(seconds),
            second_per_grid_ts=kind(seconds),
        )
        assert_same(rope_index(prompt, **form), prompt.expected())


@pytest.mark.parametrize("order", ["rate", "seconds"])
@pytest.mark.parametrize("dtype", ["given", "float32", "float64"])
@pytest.mark.parametrize("rate", [2, 25, 0.1])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_default_seconds_are_rounded_as_a_number_is(rate, order, dtype, form):
    for seconds in (0.08, 2 / 0.3, 1.0):
        spec = replace(
            spec_of("qwen2_5_vl", "transformers"),
            tokens_per_second=rate,
            time_order=order,
            time_dtype=dtype,
            default_seconds=seconds,
        )
        prompt = Prompt.from_symbols(spec, [f"<{'V' * 60}>"], video_grid_thw=[[60, 2, 2]])
        given = rope_index(prompt, second_per_grid_ts=[seconds], **form)
        assert_same(rope_index(prompt, **form), given)
        assert_same(given, prompt.expected())


@each_form
@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64],
    ids=str,
)
def test_seconds_of_any_dtype_are_rounded_as_transformers_rounds_them(dtype, form):
    for rate in (2, 25, 0.5):
        spec = replace(spec_of("qwen2_5_vl", "transformers"), tokens_per_second=rate)
        for seconds in (2 / 0.3, 2 / 23.976, 3.0):
            prompt = Prompt.from_symbols(
                spec,
                [f"<{'V' * 60}>"],
                video_grid_thw=[[60, 2, 2]],
                second_per_grid_ts=torch.tensor([seconds]).to(dtype),
            )
            assert_same(rope_index(prompt, **form), transformers_rope_index(prompt))


@each_rule
def test_a_wrong_type_is_found_wherever_it_is_read(spec):
    prompt = Prompt.from_symbols(spec, ["ttt"], mask=["011"])
    types = torch.tensor([[7, 0, 0]])
    if spec.mask_rule == "skip":
        assert_same(rope_index(prompt, mm_token_type_ids=types), prompt.expected())
        return
    with pytest.raises(ValueError, match=r"row 0, .* must hold 0 or 1 or 2, got 7"):
        rope_index(prompt, mm_token_type_ids=types)
