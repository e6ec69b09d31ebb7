"""Patched models of the omni families answer as they do by themselves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omni_support import configuration, kept, spec_of, without_zeros
from support import assert_same
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniTalkerForConditionalGeneration,
    Qwen2_5OmniThinkerForConditionalGeneration,
)
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeTalkerForConditionalGeneration,
    Qwen3OmniMoeThinkerForConditionalGeneration,
)

from tests.integrations.transformers.test_own_rules import both
from vecrope.integrations.transformers import patch
from vecrope.testing import conversations, token_soup

CLASSES = {
    "qwen2_5_omni_thinker": Qwen2_5OmniThinkerForConditionalGeneration,
    "qwen2_5_omni_talker": Qwen2_5OmniTalkerForConditionalGeneration,
    "qwen3_omni_moe_thinker": Qwen3OmniMoeThinkerForConditionalGeneration,
}
each_part = pytest.mark.parametrize("model_type", CLASSES)


def spec_of_part(model_type):
    return spec_of(model_type.rsplit("_", 1)[0], "transformers", 13)


def bare(model_type, model_class=None):
    """Return a module that has what positions are made from, and no weights."""
    spec = spec_of_part(model_type)
    model = object.__new__(model_class or CLASSES[model_type])
    torch.nn.Module.__init__(model)
    model.config = configuration(spec)
    model.config.model_type = model_type
    model.config.spatial_merge_size = model.spatial_merge_size = spec.spatial_merge_size
    return model


def arguments_of(prompt):
    """Return the arguments, with the mask that transformers cannot do without."""
    mask = kept(prompt).long() if prompt.attention_mask is None else prompt.attention_mask
    return {**without_zeros(prompt).arguments(), "attention_mask": mask}


def has_a_row_without_tokens(prompt):
    return not bool(kept(prompt).any(1).all())


@each_part
def test_conversations(model_type):
    module = bare(model_type)

    @given(conversations(spec_of_part(model_type)))
    def check(prompt):
        assert_same(*both(module, **arguments_of(prompt)))

    check()


@each_part
def test_media_left_over(model_type):
    module = bare(model_type)

    @given(conversations(spec_of_part(model_type)), st.integers(1, 2))
    def check(prompt, more):
        arguments = arguments_of(prompt)
        extra = {
            "image_grid_thw": [2, 5, 4],
            "video_grid_thw": [1, 4, 6],
            "audio_seqlens": 40,
            "second_per_grids": 0.5,
        }
        for name, value in extra.items():
            values = arguments[name]
            if values is not None:
                added = values.new_tensor([value] * more)
                arguments[name] = torch.cat((values, added))
        assert_same(*both(module, **arguments))

    check()


@each_part
def test_soup_is_answered_alike_or_refused(model_type):
    module = bare(model_type)

    @given(token_soup(spec_of_part(model_type)))
    def check(prompt):
        ours, theirs = both(module, **arguments_of(prompt))
        if isinstance(ours, tuple) and isinstance(theirs, tuple):
            assert_same(ours, theirs)
        else:
            assert isinstance(ours, tuple | ValueError)

    check()


def test_without_grids_audio_is_not_looked_at():
    spec = spec_of_part("qwen3_omni_moe_thinker")
    ids = torch.tensor([[5, spec.own_rule.audio_start_token_id, spec.own_rule.audio_token_id]])
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    module = bare("qwen3_omni_moe_thinker")
    for lengths in (None, torch.tensor([100])):
        ours, theirs = both(
            module, **arguments, audio_seqlens=lengths, use_audio_in_video=lengths is not None
        )
        assert_same(ours, theirs)


@pytest.mark.skipif(
    not hasattr(modeling_qwen2_5_omni, "Qwen2_5OmniThinkerModel"),
    reason="this release of transformers has no model within a thinker",
)
def test_the_model_in_a_thinker_is_patched_as_well():
    module = bare("qwen2_5_omni_thinker")
    module.model = bare("qwen2_5_omni_thinker", modeling_qwen2_5_omni.Qwen2_5OmniThinkerModel)
    patch(module)
    assert all("get_rope_index" in vars(each) for each in (module, module.model))


def test_a_part_that_is_not_known_has_the_whole_refused():
    module = bare("qwen3_omni_moe_thinker", Qwen3OmniMoeTalkerForConditionalGeneration)
    module.config.model_type = ""
    with pytest.raises(ValueError, match=r"Talker.* must have one of the model types"):
        patch(module)
