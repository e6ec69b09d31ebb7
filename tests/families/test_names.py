"""A name that is not that of a family is answered with the nearest ones."""

import re

import pytest

from vecrope import MRopeSpec
from vecrope.families.names import nearest

CHECKPOINTS = {
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2_5_vl",
    "Qwen/Qwen3-VL-8B-Thinking": "qwen3_vl",
    "Qwen/Qwen3-Omni-30B-A3B-Instruct": "qwen3_omni_moe",
    "zai-org/GLM-4.1V-9B-Thinking": "glm4v",
    "zai-org/GLM-4.6V": "glm46v",
    "baidu/ERNIE-4.5-VL-28B-A3B-PT": "ernie4_5_vl_moe",
    "PaddlePaddle/PaddleOCR-VL-0.9B": "paddleocr_vl",
    "Kwai-Keye/Keye-VL-1_5-8B": "keye_vl1_5",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
}


@pytest.mark.parametrize(("given", "first"), CHECKPOINTS.items(), ids=CHECKPOINTS)
def test_a_checkpoint_or_a_class_is_answered_with_its_family_first(given, first):
    expected = f"model_type {given!r} is not a family that vecrope knows: did you mean {first!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}.*list_families"):
        MRopeSpec.for_model(given, convention="sglang")


def test_a_name_like_no_other_is_not_answered_with_a_guess():
    expected = "'llama' is not a family that vecrope knows: vecrope.list_families() lists what is"
    with pytest.raises(ValueError, match=re.escape(expected)):
        MRopeSpec.for_model("llama", convention="sglang")


def test_an_unknown_field_is_answered_with_the_nearest():
    expected = "'image_token' is not a field of MRopeSpec; did you mean 'image_token_id'"
    with pytest.raises(TypeError, match=re.escape(expected)):
        MRopeSpec.for_model("glm4v", convention="sglang", image_token=9)


def test_what_is_no_name_is_like_none():
    assert nearest(None, ["glm4v"]) == []
