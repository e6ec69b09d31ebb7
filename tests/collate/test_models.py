"""Packed samples in every model that transformers can run: each is what it is alone.

The model is called with a sample alone and numbers it itself, and with both packed. Logits are
compared, and the gradients of each sample's logits. The same comparison has to fail where the
bounds are taken away.
"""

import sys
from copy import deepcopy

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from tiny_own_models import MODELS, WITH_SOUND, tiny_own_model

from tests.collate import varlen
from tests.collate.model_samples import samples_of
from vecrope import MRopeSpec, collate, packing_obstacles

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
# One layout of each: the one with the most in it.
LAYOUT = {
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v", "glm_ocr"), "clips"),
    "paddleocr_vl": "images",
}
SHARED = [
    *("qwen2_vl", "qwen2_5_vl", "paddleocr_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5"),
    *("qwen3_5_moe", "qwen4_exp", "cosmos3_omni", "cosmos3_edge", "cohere_compass"),
    *("ernie4_5_vl_moe", "glm4v", "glm4v_moe", "glm46v", "glm_ocr"),
]
CASES = [
    *((model_type, LAYOUT.get(model_type, "both")) for model_type in SHARED),
    *((model_type, "own rule") for model_type in MODELS),
    *((model_type, "sound") for model_type in WITH_SOUND),
]
# All that transformers 5.23 has.
LINEAR = {
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen4_exp"), "both"),
    "minicpmv4_7": "own rule",
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.* has layers of linear attention", "ignore:hunyuan"
)


def model_of(model_type, layout):
    own = layout in ("own rule", "sound")
    return (tiny_own_model if own else tiny_model)(model_type)


def packed_batch(model, samples, **options):
    spec = MRopeSpec.from_config(model.config, convention="transformers")
    options = {"packed": True, "pad_to_multiple_of": 16, **options}
    return collate(samples, spec, pad_token_id=0, **options)


def logits_of(model, batch):
    return model(**{**batch, "labels": None, "use_cache": False}).logits[0]


def logits_alone(model, sample):
    """Return the logits of a sample that the model numbers itself."""
    mask = torch.ones_like(sample["input_ids"])
    if model.config.model_type == "glm_image":
        sample = {**sample, "images_per_sample": torch.tensor([len(sample["image_grid_thw"])])}
    return logits_of(model, {**sample, "attention_mask": mask})


def gradients(model, logits):
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    parameters = [value for value in model.parameters() if value.requires_grad]
    return torch.autograd.grad(
        (logits * weights).sum(), parameters, retain_graph=True, allow_unused=True
    )


def assert_as_alone(model, samples, batch, tolerance=TOLERANCE, alone_in=None):
    alone_in = alone_in or model
    packed, start = logits_of(model, batch), 0
    for sample in samples:
        length = sample["input_ids"].shape[1]
        own = packed[start : start + length]
        start += length
        alone = logits_alone(alone_in, sample)
        torch.testing.assert_close(own, alone, **tolerance)
        for got, want in zip(gradients(model, own), gradients(alone_in, alone), strict=True):
            # Alone, a tower without pixels is not called at all.
            if got is None or want is None:
                assert all(value is None or not value.any() for value in (got, want))
            else:
                torch.testing.assert_close(got, want, **tolerance)


def assert_leaks(model, samples, batch, tolerance=TOLERANCE, alone_in=None):
    with pytest.raises(AssertionError, match="not close"):
        assert_as_alone(model, samples, batch, tolerance, alone_in)


def without(batch, *names):
    return {name: value for name, value in batch.items() if name not in names}


@pytest.mark.parametrize(("model_type", "layout"), CASES)
def test_packed_samples_are_apart(model_type, layout):
    model, samples = model_of(model_type, layout), samples_of(model_type, layout)
    batch = packed_batch(model, samples)
    text_row = model_type != "hunyuan_vl"  # of which the first axis takes its place
    leaking = without(batch, *ARGUMENTS)
    if text_row:
        leaking["position_ids"] = leaking["position_ids"][1:]
    for implementation in ("eager", "sdpa") if text_row else ():
        model.set_attn_implementation(implementation)
        assert_as_alone(model, samples, batch)
    assert_leaks(model, samples, leaking)
    if model_type == "qwen4_exp":  # whose attention among chosen tokens needs a mask
        return
    try:
        model.set_attn_implementation({"text_config": "varlen"})
        # The bounds alone are enough.
        assert_as_alone(
            model, samples, {**leaking, **{n: batch[n] for n in ARGUMENTS if n in batch}}
        )
        assert_leaks(model, samples, leaking)
        assert not logits_of(model, batch).isnan().any()
    finally:
        model.set_attn_implementation("eager")


def linear_model(model_type, **sizes):
    """Return a tiny model of two layers, the first with linear attention."""
    own = model_type in MODELS
    config = deepcopy(tiny_own_model(model_type).config) if own else tiny_config(model_type)
    text = config.text_config
    text.num_hidden_layers = 2
    text.layer_types = ["linear_attention", text.layer_types[0]]
    for name, size in sizes.items():
        setattr(text, name, size)
    model_class = type((tiny_own_model if own else tiny_model)(model_type))
    torch.manual_seed(0)
    model = model_class(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("A_log"):
            # States decay slowly, so that one that leaks is seen.
            parameter.data.fill_(-3)
    return model


@pytest.mark.parametrize(("model_type", "layout"), LINEAR.items())
def test_linear_attention_keeps_samples_apart_by_their_bounds(model_type, layout, monkeypatch):
    model, samples = linear_model(model_type), samples_of(model_type, layout)
    batch = packed_batch(model, samples)
    with pytest.raises(ValueError, match="can't keep packed sequences apart"):
        logits_of(model, batch)
    varlen.patch_linear_attention(language_module(model), monkeypatch)
    assert_as_alone(model, samples, batch)
    # The text row does not reach these layers.
    for name in ("cu_seq_lens_q", "seq_idx"):
        assert_leaks(model, samples, without(batch, name))


def language_module(model):
    """Return the module of a model's text model, which has its linear attention."""
    return sys.modules[type(model.model.language_model).__module__]


def test_obstacles_to_packing():
    config = tiny_config("qwen3_5")
    config.text_config.use_cache = False
    assert packing_obstacles(config) == []
    config.text_config.layer_types = ["linear_attention", "full_attention"]
    assert [line[:26] for line in packing_obstacles(config)] == ["1 of its 2 layers are line"]
