"""The plugin's answers against vLLM's own methods, out of its wheel."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import spec_of, vllm_class, vllm_function, vllm_rope_index
from own_support import VLLM_WHEEL, needs_vllm
from support import assert_same

from bench.wheels import Wheel
from tests.integrations.vllm.models import ALL, FAMILIES
from vecrope.integrations.fingerprint import fingerprint_of
from vecrope.integrations.vllm import features as features_of
from vecrope.integrations.vllm import models
from vecrope.integrations.vllm.plugin import replacement
from vecrope.testing import conversations, token_soup

# vLLM looks for frames, and for videos of a temporal merge size, where its processors put them.
WHOLE = ("qwen2_vl", "qwen2_5_vl", "paddleocr_vl", "bailing_moe_v3_vl")
PROMPTS = [
    *((model_type, conversations) for model_type in FAMILIES),
    *((model_type, token_soup) for model_type in WHOLE),
]


@pytest.fixture
def with_qwen3_vl(monkeypatch):
    name = "Qwen3VLForConditionalGeneration"
    module = SimpleNamespace(**{name: vllm_class("qwen3_vl")})
    monkeypatch.setattr(features_of, "import_module", lambda _: module)


def assert_equal_answers(model, tokens, features):
    """Compare what vecrope answers with what vLLM does, and return it."""
    known = models.CLASSES[type(model).__module__][type(model).__name__]
    ours = known.answer(model, tokens, features)
    theirs = vllm_function(model, tokens, features)
    assert_same(ours[:1], theirs[:1])
    assert (type(ours[1]), ours[1]) == (type(theirs[1]), theirs[1])
    return ours


@needs_vllm
@pytest.mark.parametrize(
    ("model_type", "strategy"), PROMPTS, ids=lambda value: getattr(value, "__name__", value)
)
@pytest.mark.usefixtures("with_qwen3_vl")
def test_prompts_get_vllms_answer(model_type, strategy):
    spec = spec_of(model_type, "vllm")

    @given(strategy(spec))
    def check(prompt):
        if prompt.attention_mask is not None and not prompt.attention_mask.any(1).all():
            return  # a row without tokens, at which vLLM fails
        vllm_rope_index(prompt, assert_equal_answers)

    check()


COUNTS = st.lists(st.sampled_from([0, 4, 4, 8, 12, 3, 5]), min_size=1, max_size=4)


@needs_vllm
@given(counts=COUNTS)
def test_pruned_videos_get_vllms_answer(counts):
    """Frames may have lost all of their tokens, or hold those of others; in part is an accident."""
    config = SimpleNamespace(
        video_token_id=5,
        vision_start_token_id=6,
        vision_end_token_id=7,
        vision_config=SimpleNamespace(spatial_merge_size=2),
    )
    tokens = [1, *(token for count in counts for token in (2, 6, *[5] * count, 7)), 1]
    grid = SimpleNamespace(data=torch.tensor([len(counts), 4, 4]))
    place = SimpleNamespace(offset=1)
    features = [SimpleNamespace(modality="video", data={"video_grid_thw": grid}, mm_position=place)]
    owner = vllm_class("qwen3_vl")
    model = owner()
    model.config = config
    module = SimpleNamespace(Qwen3VLForConditionalGeneration=owner)
    known = models.CLASSES[owner.__module__][owner.__name__]
    method = replacement(owner.get_mrope_input_positions, known._replace(min_groups=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features_of, "import_module", lambda _: module)
        ours = method(model, tokens, features)
        if all(count % 4 == 0 for count in counts):
            assert_equal_answers(model, tokens, features)
    theirs = vllm_function(model, tokens, features)
    assert_same(ours[:1], theirs[:1])
    assert ours[1] == theirs[1]


@needs_vllm
def test_the_wheel_has_the_classes_and_methods_with_this_signature():
    wheel = Wheel(Path(VLLM_WHEEL), "vllm")
    assert '"vllm.general_plugins"' in wheel.source("vllm/plugins/__init__.py")
    for module, name in ALL:
        source = wheel.source(module.replace(".", "/") + ".py")
        _, _, body = source.partition(f"\nclass {name}(")
        _, _, method = body.partition("\n    def get_mrope_input_positions(")
        names = [line.strip().partition(":")[0].rstrip(",") for line in method.splitlines()[1:4]]
        assert names == ["self", "input_tokens", "mm_features"], name


@needs_vllm
@pytest.mark.parametrize(("module", "name"), ALL)
def test_the_wheels_methods_are_known(module, name):
    wheel = Wheel(Path(VLLM_WHEEL), "vllm")
    model = models.CLASSES[module][name]
    fingerprints = {
        fingerprint_of(
            definition(wheel, module, name, each)
            for each in ("get_mrope_input_positions", *model.helpers)
        )
    }
    assert fingerprints <= model.fingerprints


def definition(wheel, module, owner, name):
    """Return a method of a class, or a function of its module, or a method of a class elsewhere."""
    other, _, method = name.rpartition(".")
    if other:
        return definition(wheel, "vllm.model_executor.models.qwen3_vl", other, method)
    body = ast.parse(wheel.source(f"{module.replace('.', '/')}.py")).body
    (methods,) = (node.body for node in body if getattr(node, "name", None) == owner)
    return next(node for node in (*methods, *body) if getattr(node, "name", None) == name)
