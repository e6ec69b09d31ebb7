"""Patched models of families with a rule of their own answer as they do by themselves."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from own_support import END, IMAGE, SPECS, START, hunyuan_spec, ids_of, minicpm_spec
from support import assert_same, grid_list, kept
from transformers.models.glm_image.modeling_glm_image import GlmImageModel
from transformers.models.hunyuan_vl.modeling_hunyuan_vl import HunYuanVLModel
from transformers.models.minicpmv4_7.modeling_minicpmv4_7 import MiniCPMV4_7Model

from tests.own_rules.minicpmv4_7.calls import IDS as MARKERS
from tests.own_rules.minicpmv4_7.calls import hostile, without_zeros
from vecrope.integrations.transformers import patched
from vecrope.testing import Prompt, conversations, token_soup

GLM_IMAGE = SPECS["glm_image, transformers"]


def bare(model_class, **config):
    """Return a module that has what positions are made from: a configuration, and no weights."""
    model = object.__new__(model_class)
    torch.nn.Module.__init__(model)
    model.config = SimpleNamespace(**config)
    return model


def hunyuan(num_axes=4):
    return bare(
        HunYuanVLModel,
        model_type="hunyuan_vl",
        image_token_id=IMAGE,
        text_config=SimpleNamespace(rope_parameters={"mrope_section": [1] * num_axes}),
        vision_config=SimpleNamespace(spatial_merge_size=2),
    )


def glm_image():
    return bare(
        GlmImageModel,
        model_type="glm_image",
        image_token_id=IMAGE,
        image_start_token_id=START,
        image_end_token_id=END,
    )


def minicpm(mode="16x"):
    rule = minicpm_spec("transformers").own_rule
    return bare(
        MiniCPMV4_7Model,
        model_type="minicpmv4_7",
        downsample_mode=mode,
        image_token_id=6,
        video_token_id=7,
        **{name: getattr(rule, name) for name in MARKERS},
    )


def both(module, **arguments):
    """Return (ours, theirs): each an answer, or the exception that was raised."""
    theirs = outcome(module, arguments)
    with patched(module):
        return outcome(module, arguments), theirs


def outcome(module, arguments):
    try:
        answer = module.get_rope_index(**arguments)
    except Exception as error:
        return error
    # What glm_image keeps is a part of its answer.
    kept = [vars(module).get(name) for name in ("_prefill_len", "_cached_decode_position_ids")]
    return *answer, *(torch.as_tensor(value) for value in kept if value is not None)


def has_an_empty_row(prompt):
    return not kept(prompt).any(1).all()


# hunyuan_vl


@pytest.mark.parametrize("num_axes", [3, 4])
def test_prompts_of_hunyuan(num_axes):
    module = hunyuan(num_axes)

    @given(conversations(hunyuan_spec(num_axes)))
    def check(prompt):
        types = (prompt.arguments()["input_ids"] == IMAGE).int()
        ours, theirs = both(module, mm_token_type_ids=types, **prompt.arguments())
        if not has_an_empty_row(prompt):
            assert_same(ours, theirs)

    check()


@pytest.mark.parametrize(
    ("grids", "answers"),
    [
        pytest.param([[1, 3, 5]], True, id="odd sides"),
        pytest.param([[1, 2, 4], [1, 2, 4]], False, id="left over"),
    ],
)
def test_grids_of_hunyuan(grids, answers):
    ids = ids_of("tIIIt")
    ours, theirs = both(
        hunyuan(),
        input_ids=ids,
        mm_token_type_ids=(ids == IMAGE).int(),
        image_grid_thw=torch.tensor(grids),
        pixel_values=None,
    )
    if answers:
        assert_same(ours, theirs)
    else:
        assert (type(ours), type(theirs)) == (ValueError, ValueError)


# glm_image


def test_prompts_of_glm_image():
    module = glm_image()

    @given(conversations(GLM_IMAGE))
    def check(prompt):
        ours, theirs = both(module, **prompt.arguments())
        assert_same(ours, theirs)

    check()


def test_misfits_of_glm_image_are_refused_or_answered_alike():
    module = glm_image()

    @given(token_soup(GLM_IMAGE))
    def check(prompt):
        ours, theirs = both(module, **prompt.arguments())
        grids = grid_list(prompt.image_grid_thw)
        if isinstance(ours, tuple) and all(map(any, grids)):
            assert_same(ours, theirs)
        else:
            assert isinstance(ours, tuple | ValueError)

    check()


def test_a_mask_of_another_width_is_none_to_glm_image():
    ids = ids_of("tt<")
    grids = torch.tensor([[1, 2, 3]])
    mask = torch.zeros((1, 5), dtype=torch.int64)
    ours, theirs = both(glm_image(), input_ids=ids, image_grid_thw=grids, attention_mask=mask)
    assert_same(ours, theirs)


def test_a_token_of_glm_image_is_where_the_mask_is_1():
    ours, theirs = both(
        glm_image(),
        input_ids=ids_of("ttt<"),
        image_grid_thw=torch.tensor([[1, 2, 3]]),
        attention_mask=torch.tensor([[0, 2, 1, 1]]),
    )
    assert_same(ours, theirs)


def test_without_grids_glm_image_forgets_what_it_kept():
    module = glm_image()
    with patched(module):
        module.get_rope_index(ids_of("t<"), torch.tensor([[1, 2, 3]]))
        assert module._cached_decode_position_ids.shape == (1, 3, 7)
        module.get_rope_index(ids_of("tt"), images_per_sample=torch.tensor([0]))
        assert module._cached_decode_position_ids is None


def test_glm_image_leaves_a_graph_as_its_own_method_does():
    module = glm_image()
    arguments = {"input_ids": ids_of("tt<"), "image_grid_thw": torch.tensor([[1, 2, 3]])}
    with patched(module):
        compiled = torch.compile(lambda: module.get_rope_index(**arguments), backend="eager")
        assert_same(compiled(), module.get_rope_index(**arguments))


# minicpmv4_7


@pytest.mark.parametrize("mode", ["16x", "4x"])
def test_prompts_of_minicpm(mode):
    module = minicpm(mode)

    @given(hostile(minicpm_spec("transformers", mode)), st.lists(st.just([8, 12]), max_size=2))
    def check(prompt, more):
        # Sizes of zeros are no crops to us alone.
        images, videos = map(without_zeros, (prompt.target_sizes, prompt.target_sizes_videos))
        if more:
            images = torch.tensor([*([] if images is None else images.tolist()), *more])
        changed = replace(prompt, target_sizes=images, target_sizes_videos=videos)
        ours, theirs = both(module, **changed.arguments())
        if isinstance(ours, tuple):
            assert_same(ours, theirs)
        else:
            assert isinstance(ours, ValueError)

    check()


@pytest.mark.parametrize(
    ("row", "sizes"),
    [
        pytest.param("t(I)t", [[4, 4], [4, 4]], id="left over"),
        pytest.param("t", [[4, 4]], id="no crop at all"),
        pytest.param("t(I)t", [[5, 7]], id="odd sides"),
    ],
)
def test_sizes_that_minicpm_does_not_mind(row, sizes):
    prompt = Prompt.from_symbols(minicpm_spec("transformers"), [row], target_sizes=sizes)
    ours, theirs = both(minicpm(), **prompt.arguments())
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("row", "sizes", "message"),
    [
        pytest.param("t(II)t", [[8, 8], [4, 4]], "truncated inside the image", id="cut"),
        pytest.param("t(I)(I)t", [[4, 4]], "beyond the last size", id="one too few"),
        pytest.param("t(I)t", [[3, 4]], "sides from 4 on", id="no token"),
    ],
)
def test_prompts_that_minicpm_has_no_positions_for(row, sizes, message):
    prompt = Prompt.from_symbols(minicpm_spec("transformers"), [row], target_sizes=sizes)
    ours, _ = both(minicpm(), **prompt.arguments())
    with pytest.raises(ValueError, match=message):
        raise ours


def test_the_mode_of_a_call_goes_before_that_of_minicpms_configuration():
    spec = minicpm_spec("transformers", "4x")
    prompt = Prompt.from_symbols(spec, ["t(II)t"], target_sizes=[[2, 4]])
    ours, theirs = both(minicpm(), downsample_mode="4x", **prompt.arguments())
    assert_same(ours, theirs)
