"""Where packed samples of linear attention cannot be kept apart, `collate` and the check say so."""

import sys
from importlib import invalidate_caches
from types import SimpleNamespace

import pytest
from oracles import spec_of
from own_support import SPECS

from vecrope import collate, packing_obstacles

PACKAGES = {"fla": "flash-linear-attention", "causal_conv1d": "causal-conv1d"}
warn_of_obstacles = sys.modules["vecrope.collate.packing"].warn_of_obstacles


@pytest.fixture(params=[(), ("fla",), ("causal_conv1d",), tuple(PACKAGES)], ids="+".join)
def missing(request, monkeypatch, tmp_path):
    """Plant these modules, and return the packages of the others."""
    for module in PACKAGES:
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for module in request.param:
        (tmp_path / f"{module}.py").touch()
    invalidate_caches()
    warn_of_obstacles.cache_clear()
    yield [package for module, package in PACKAGES.items() if module not in request.param]
    warn_of_obstacles.cache_clear()


@pytest.mark.parametrize("model_type", ["qwen3_5", "qwen3_5_moe", "qwen4_exp", "qwen3_vl"])
def test_collate_warns_once_of_a_family_with_linear_attention(model_type, missing, recwarn):
    spec = spec_of(model_type, "transformers")
    collate([{"input_ids": [1, 2]}], spec, pad_token_id=0)
    assert not recwarn.list
    for _ in range(2):
        collate([{"input_ids": [1, 2]}], spec, pad_token_id=0, packed=True)
    needed = " and ".join(missing) if model_type != "qwen3_vl" else ""
    assert [warning.category for warning in recwarn.list] == [UserWarning] * bool(needed)
    for warning in recwarn.list:
        assert f"{model_type} has layers of linear attention" in str(warning.message)
        assert f"which need {needed} to keep" in str(warning.message)
        assert warning.filename == __file__


def test_the_check_beside_the_model_says_the_same(missing):
    layers = ["linear_attention", "full_attention"]
    config = SimpleNamespace(text_config=SimpleNamespace(layer_types=layers, use_cache=False))
    sentences = packing_obstacles(config)
    assert len(sentences) == bool(missing)
    for sentence in sentences:
        assert f"which needs {' and '.join(missing)} to keep samples apart" in sentence
    config.text_config.layer_types = ["full_attention"] * 2
    assert packing_obstacles(config) == []


@pytest.mark.parametrize(("kernel", "obstacles"), [("sdpa", 1), ("flash_attention_2", 0)])
def test_a_model_without_a_text_row_needs_flash_attention(kernel, obstacles):
    config = SimpleNamespace(model_type="hunyuan_vl", _attn_implementation=kernel)
    sentences = packing_obstacles(SimpleNamespace(config=config))
    assert len(sentences) == obstacles
    assert all(sentence.endswith("its attention is 'sdpa'") for sentence in sentences)


def test_a_cache_hides_where_samples_begin():
    (sentence,) = packing_obstacles(SimpleNamespace(use_cache=True))
    assert sentence.startswith("use_cache is on in its text model")


def test_collate_warns_of_a_model_without_a_text_row():
    warn_of_obstacles.cache_clear()
    spec = SPECS["hunyuan_vl of 3 axes"]
    with pytest.warns(UserWarning, match="hunyuan_vl: transformers' model takes no row of text"):
        collate([{"input_ids": [1, 2]}], spec, pad_token_id=0, packed=True)
    warn_of_obstacles.cache_clear()


def test_a_name_is_no_model():
    with pytest.raises(TypeError, match="model must be a model or its configuration, got 'glm4v'"):
        packing_obstacles("glm4v")
