"""The plugin of vLLM for the families with a rule of their own, on stand-ins and on its wheel."""

import math
from types import MethodType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import omni_support
import own_support
import pytest
import torch
from hypothesis import assume, given
from omni_support import rows_of, vllm_model
from own_support import from_vllm, minicpm_spec, needs_vllm, single_rows, unmasked
from support import assert_same

from tests.integrations.vllm.models import has_other_audio, omni_model
from vecrope import get_rope_index
from vecrope.integrations.vllm.own_rules import answer_minicpmv4_7, answer_omni
from vecrope.testing import Prompt, conversations
from vecrope.testing.reference.minicpmv4_7 import pictures_of
from vecrope.testing.rules import minicpm_rules

ISAAC = own_support.SPECS["isaac"]
MINICPM = minicpm_spec("vllm")
each_omni = pytest.mark.parametrize("model_type", ["qwen2_5_omni", "qwen3_omni_moe"])


def assert_row(answer, position_ids, rope_deltas):
    """Compare a plugin's answer with (3, 1, N) positions and a (1, 1) delta."""
    positions, delta = answer
    assert type(delta) is int
    assert_same([positions.unsqueeze(1), torch.tensor([[delta]])], [position_ids, rope_deltas])


# Isaac, whose method is not replaced


@needs_vllm
def test_isaac_is_answered_as_by_vllm():
    model_class = "IsaacForConditionalGeneration"
    names = (f"{model_class}.{name}" for name in ("iter_mm_grid_hw", "get_mrope_input_positions"))
    methods = from_vllm("isaac.py", *names, torch=torch, np=np)
    vision = SimpleNamespace(pixel_shuffle_scale_factor=ISAAC.spatial_merge_size)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.iter_mm_grid_hw = MethodType(methods.iter_mm_grid_hw, model)

    @given(conversations(ISAAC))
    def check(prompt):
        for single in single_rows(prompt):
            tokens, features = unmasked(single), own_support.vllm_features(single)
            assume(tokens)
            grids = single.arguments().get("image_grid_thw")
            ours = get_rope_index(torch.tensor([tokens]), ISAAC, image_grid_thw=grids)
            assert_row(methods.get_mrope_input_positions(model, tokens, features), *ours)

    check()


# Omni


@each_omni
@pytest.mark.parametrize("sound", [False, True])
def test_omni_prompts_are_answered_as_by_their_tokens(model_type, sound):
    spec = omni_support.spec_of(model_type, "vllm", 13)

    @given(conversations(spec, use_audio_in_video=sound, max_rows=1))
    def check(prompt):
        (row,) = rows_of(prompt)
        tokens = row.input_ids[0].tolist()
        assume(tokens)
        features = omni_support.vllm_features(row)
        if has_other_audio(row):
            with pytest.raises(ValueError, match="all videos must have their sound and no other"):
                answer_omni(model_type, omni_model(spec), tokens, features)
            return
        for given_features in (features, features[::-1]):
            answer = answer_omni(model_type, omni_model(spec), tokens, given_features)
            assert_row(answer, *row.expected())

    check()


@each_omni
@pytest.mark.parametrize("symbols", ["t<VVVV>t", "t<(VVVVA)>t"])
def test_seconds_have_the_default_of_vllm(model_type, symbols):
    spec = omni_support.spec_of(model_type, "vllm", 2)
    prompt = Prompt.from_symbols(
        spec,
        [symbols],
        video_grid_thw=[[4, 2, 2]],
        audio_seqlens=[4] if "(" in symbols else None,
        use_audio_in_video="(" in symbols,
    )
    features = omni_support.vllm_features(prompt)
    assert all("second_per_grid_ts" not in feature.data for feature in features)
    answer = answer_omni(model_type, omni_model(spec), prompt.input_ids[0].tolist(), features)
    assert_row(answer, *prompt.expected())


@needs_vllm
@each_omni
def test_omni_prompts_are_answered_as_by_vllm(model_type):
    spec = omni_support.spec_of(model_type, "vllm", 13)

    @given(conversations(spec))
    def check(prompt):
        for row in rows_of(prompt):
            tokens, features = row.input_ids[0].tolist(), omni_support.vllm_features(row)
            model = vllm_model(row)
            assume(tokens)
            try:
                ours = answer_omni(model_type, model, tokens, features)
            except ValueError:
                assert has_other_audio(row)
                continue
            positions, delta = model.get_mrope_input_positions(tokens, features)
            assert_row(ours, positions.unsqueeze(1), torch.tensor([[delta]]))

    check()


# MiniCPM-V 4.7


def minicpm_model(**attributes):
    rule = MINICPM.own_rule
    names = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
    config = SimpleNamespace(
        model_type="minicpmv4_7",
        image_token_id=MINICPM.image_token_id,
        video_token_id=MINICPM.video_token_id,
        uses_mrope_canvas=True,
        downsample_mode=rule.downsample_mode,
        **{name: getattr(rule, name) for name in names},
    )
    return SimpleNamespace(config=config, _uses_canvas_mrope=True, **attributes)


def picture_features(prompt):
    """Yield a feature for each picture of a prompt of one row without padding."""
    rules = minicpm_rules(prompt.spec)
    images, videos = (
        iter([] if sizes is None else [size for size in sizes if any(size)])
        for sizes in (prompt.target_sizes, prompt.target_sizes_videos)
    )
    names = ("image_token_id", "video_token_id", "markers")
    ids = prompt.input_ids[0].tolist()
    pictures = pictures_of(ids, by_markers=True, **{name: rules[name] for name in names})
    for picture in pictures:
        key, sizes = ("tgt_sizes", images) if picture[0].kind == 1 else ("video_tgt_sizes", videos)
        field = SimpleNamespace(data=torch.stack([next(sizes) for _ in picture]))
        yield SimpleNamespace(
            modality="image" if picture[0].kind == 1 else "video",
            data={key: field},
            mm_position=SimpleNamespace(offset=picture[0].start),
        )


def test_pictures_are_answered_as_by_their_tokens():
    @given(conversations(MINICPM, max_rows=1, masks=False))
    def check(prompt):
        tokens, features = prompt.input_ids[0].tolist(), [*picture_features(prompt)]
        assume(features)
        answer = answer_minicpmv4_7(minicpm_model(), tokens, features[::-1])
        assert_row(answer, *prompt.expected())

    check()


def test_without_a_canvas_or_pictures_tokens_are_counted():
    prompt = Prompt.from_symbols(MINICPM, ["t(I)t"], target_sizes=[[4, 4]])
    tokens, features = prompt.input_ids[0].tolist(), [*picture_features(prompt)]
    model = minicpm_model()
    assert answer_minicpmv4_7(model, tokens, features)[0].tolist() != [[*range(5)]] * 3
    model._uses_canvas_mrope = False
    for given_features in (features, []):
        positions, delta = answer_minicpmv4_7(model, tokens, given_features)
        assert (positions.tolist(), delta) == ([[*range(5)]] * 3, 0)
        model._uses_canvas_mrope = True


def test_pictures_that_do_not_fit_are_refused():
    prompt = Prompt.from_symbols(MINICPM, ["t(I)t"], target_sizes=[[4, 4]])
    tokens, features = prompt.input_ids[0].tolist(), [*picture_features(prompt)]
    features[0].data["tgt_sizes"].data = torch.tensor([[4, 8]])
    with pytest.raises(ValueError, match="target_sizes"):
        answer_minicpmv4_7(minicpm_model(), tokens, features)
    # Data that a cache holds is not sent again.
    features[0].data = None
    with pytest.raises(ValueError, match="target_sizes"):
        answer_minicpmv4_7(minicpm_model(), tokens, features)


@needs_vllm
def test_pictures_are_answered_as_by_vllm():
    module = "minicpmv4_7.py"
    functions = ("compute_llm_grid", "build_image_bounds", "_compute_canvas_single", "_target_hw")
    functions += ("_CanvasLayout", "_canvas_layout", "_assign_canvas_span", "_as_hw_pairs")
    functions += ("_compute_canvas_packed", "canvas_rope_delta", "_sequential_positions")
    keys = ("im_start_id", "im_end_id", "slice_start_id", "slice_end_id")
    namespace = {"torch": torch, "math": math, "NamedTuple": NamedTuple, "Any": Any}
    helpers = vars(from_vllm(module, *functions, _STRUCTURAL_KEYS=keys, **namespace))
    name = "MiniCPMV4_7ForConditionalGeneration.get_mrope_input_positions"
    method = from_vllm(module, name, torch=torch, **{key: helpers[key] for key in functions})
    ids = dict(zip((*keys, "newline_id"), minicpm_rules(MINICPM)["markers"], strict=True))
    model = minicpm_model(_canvas_special_ids=ids)

    @given(conversations(MINICPM, max_rows=1, masks=False))
    def check(prompt):
        tokens, features = prompt.input_ids[0].tolist(), [*picture_features(prompt)]
        positions, delta = method.get_mrope_input_positions(model, tokens, features)
        ours = answer_minicpmv4_7(model, tokens, features)
        assert_row(ours, positions.unsqueeze(1), torch.tensor([[int(delta)]]))

    check()
