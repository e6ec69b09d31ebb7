"""What `patch` and `unpatch` refuse."""

from importlib import import_module
from types import MethodType

import pytest
import torch
from tiny_models import spec_of_model
from transformers.models.glm4v.modeling_glm4v import Glm4vForConditionalGeneration, Glm4vModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from tests.integrations.transformers.modules import new_module
from vecrope.integrations.transformers import admission, patch, unpatch
from vecrope.testing import Prompt


def test_a_method_that_is_known_to_be_wrong(monkeypatch):
    monkeypatch.setattr(admission, "known", lambda *_: {"refused": "rows begin at the first grid"})
    with pytest.raises(RuntimeError, match=r"Qwen2VLModel.* is not replaced: rows begin at the"):
        patch(new_module())


def test_a_method_that_answers_what_vecrope_refuses(monkeypatch):
    def lenient(
        self, input_ids, mm_token_type_ids, image_grid_thw=None, video_grid_thw=None,  # noqa: ARG001
        attention_mask=None,  # noqa: ARG001
    ):  # fmt: skip
        return input_ids.expand(3, *input_ids.shape), input_ids[:, :1]

    cut = Prompt.from_symbols(spec_of_model("qwen2_vl"), ["tI"], image_grid_thw=[[1, 2, 4]])
    prompts = import_module("vecrope.integrations.transformers.self_check_prompts")
    monkeypatch.setattr(prompts, "self_check_prompts", lambda *_: [cut.arguments()])
    module = new_module()
    module.get_rope_index = MethodType(lenient, module)
    with pytest.raises(RuntimeError, match=r"vecrope refuses .*image 0"):
        patch(module, check="always")


def test_an_unknown_check():
    with pytest.raises(ValueError, match="check must be 'known', 'self' or 'always', got 'never'"):
        patch(Qwen2VLModel, check="never")


def test_a_family_that_is_not_known():
    module = new_module()
    module.config.model_type = "qwen9_vl"
    with pytest.raises(ValueError, match=r"model types glm4v, .*, got 'qwen9_vl'"):
        patch(module)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        pytest.param(3, "must be a model or a class of models, got 3", id="no model"),
        pytest.param(int, "must be a model or a class of models, got <class 'int'>", id="no class"),
        pytest.param(torch.nn.Linear(1, 1), "Linear has no get_rope_index", id="another module"),
        pytest.param(
            Glm4vForConditionalGeneration,
            "Glm4vForConditionalGeneration has no get_rope_index.* the class that has it",
            id="the class around it",
        ),
    ],
)
@pytest.mark.parametrize("function", [patch, unpatch])
def test_targets_without_the_method(function, target, message):
    with pytest.raises(TypeError, match=message):
        function(target)


def test_unpatching_what_is_not_patched():
    for target in (Glm4vModel, Qwen2_5_VLModel, new_module()):
        with pytest.raises(ValueError, match=r"Model is not patched"):
            unpatch(target)
