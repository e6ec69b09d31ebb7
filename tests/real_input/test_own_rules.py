"""Real input: pictures through transformers' own processors of HunYuan-VL and GLM-Image.

The models are transformers', on the meta device: of them nothing but their positions is asked.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import assert_same
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GlmImageConfig,
    GlmImageProcessor,
    HunYuanVLConfig,
    HunYuanVLProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil
from transformers.models.glm_image.modeling_glm_image import GlmImageModel
from transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl import (
    HunYuanVLImageProcessorPil,
)
from transformers.models.hunyuan_vl.modeling_hunyuan_vl import HunYuanVLModel

from vecrope import MRopeSpec, get_decode_position_ids, get_rope_index

# Said by NumPy 2 where transformers turns rows of a tensor into arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def picture(height, width):
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (255 * np.stack((x, y, x * y), axis=-1)).astype(np.uint8)


WIDE, TALL, SMALL = picture(64, 160), picture(192, 64), picture(64, 64)
SIZE = {"shortest_edge": 32 * 32, "longest_edge": 256 * 256}


def make_tokenizer(side, **special):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", *special.values()],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(["Describe the picture.", "Is this smaller?"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", extra_special_tokens=special, padding_side=side
    )


each_side = pytest.mark.parametrize("side", ["left", "right"])


# HunYuan-VL

IMAGE = "<start><image><end>"


@pytest.mark.parametrize("cat_extra_token", [True, False], ids=["wrapped", "bare"])
@pytest.mark.parametrize("num_axes", [3, 4])
@each_side
def test_hunyuan_pictures_are_numbered_as_by_the_model(side, num_axes, cat_extra_token):
    tokenizer = make_tokenizer(
        side, image_token="<image>", image_start_token="<start>", image_end_token="<end>"
    )
    processor = HunYuanVLProcessor(
        HunYuanVLImageProcessorPil(size=SIZE), tokenizer, cat_extra_token=cat_extra_token
    )
    batch = processor(
        images=[WIDE, TALL, SMALL],
        text=[f"Describe {IMAGE}.", "Hello.", f"{IMAGE}Is {IMAGE} smaller?"],
        padding=True,
        return_tensors="pt",
    )
    sections = [8 - num_axes + 1] + [1] * (num_axes - 1)
    text = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": sections,
        },
    }
    config = HunYuanVLConfig(
        image_token_id=tokenizer.image_token_id,
        text_config=text,
        vision_config={"num_hidden_layers": 1},
    )
    with torch.device("meta"):
        model = HunYuanVLModel(config)
    names = ("input_ids", "attention_mask", "image_grid_thw", "mm_token_type_ids")
    arguments = {name: batch[name] for name in names}
    theirs = model.get_rope_index(**arguments)
    assert theirs[0].shape[0] == num_axes
    assert bool((theirs[0] != theirs[0][:, :1]).any())
    spec = MRopeSpec.from_config(config, convention="transformers")
    assert_same(get_rope_index(spec=spec, **arguments), theirs)
    del arguments["mm_token_type_ids"]
    assert_same(get_rope_index(spec=spec, **arguments), theirs)


# GLM-Image


@pytest.fixture(scope="module")
def glm_tokenizer():
    tokenizer = make_tokenizer(
        "left",
        image_token="<image>",
        grid_bos_token="<sop>",
        grid_eos_token="<eop>",
        image_end_token="<end>",
        bos_token="<start>",
    )
    tokenizer.bos_token = "<start>"
    return tokenizer


@pytest.fixture(scope="module")
def glm_model(glm_tokenizer):
    ids = glm_tokenizer.convert_tokens_to_ids(["<image>", "<start>", "<end>"])
    config = GlmImageConfig(
        image_token_id=ids[0],
        image_start_token_id=ids[1],
        image_end_token_id=ids[2],
        text_config={"num_hidden_layers": 1},
        vision_config={"depth": 1},
    )
    with torch.device("meta"):
        return GlmImageModel(config)


@pytest.fixture
def glm_spec(glm_model):
    return MRopeSpec.from_config(glm_model.config, convention="transformers")


SOURCE = "<start><image><end>"
TEXTS = {
    "text to image": ([], ["A disc.", "A disc on a slope."]),
    "image to image": ([WIDE, TALL], [f"{SOURCE}As a disc.", f"Make {SOURCE} look like a slope."]),
    "images to image": (
        [WIDE, TALL, SMALL, WIDE],
        [f"{SOURCE}{SOURCE}Which?", f"Make {SOURCE} look like {SOURCE} but smaller."],
    ),
}


@pytest.mark.parametrize("kind", TEXTS)
@each_side
def test_glm_image_prompts_and_what_they_generate_are_numbered_as_by_the_model(
    glm_tokenizer, glm_model, glm_spec, kind, side
):
    glm_tokenizer.padding_side = side
    image_processor = GlmImageImageProcessorPil(size=SIZE, patch_size=16, merge_size=1)
    processor = GlmImageProcessor(image_processor, glm_tokenizer)
    images, text = TEXTS[kind]
    batch = processor(
        images=images or None,
        text=text,
        target_h=256,
        target_w=192,
        padding=True,
        return_tensors="pt",
    )
    names = ("input_ids", "attention_mask", "image_grid_thw", "images_per_sample")
    arguments = {name: batch[name] for name in names}
    assert int(arguments["attention_mask"].min()) == 0
    theirs = glm_model.get_rope_index(**arguments)
    assert_same(get_rope_index(spec=glm_spec, **arguments), theirs)
    positions, lengths = get_decode_position_ids(spec=glm_spec, **arguments)
    assert_same([positions], [glm_model._cached_decode_position_ids])
    assert lengths.tolist() == [positions.shape[2]] * 2

    # What the model takes from there, at the first and at the last step.
    batch_size, seq_len = arguments["input_ids"].shape
    glm_model.rope_deltas = theirs[1]
    for step in (0, positions.shape[2] - 1):
        cache = SimpleNamespace(get_seq_length=lambda length=seq_len + step: length)
        taken = glm_model.compute_3d_position_ids(
            arguments["input_ids"][:, -1:],
            None,
            None,
            torch.empty(batch_size, 1, 1),
            arguments["attention_mask"],
            cache,
        )
        assert torch.equal(taken, positions[:, :, step : step + 1].permute(1, 0, 2))
