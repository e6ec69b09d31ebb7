"""Real input: pictures and clips through the processors of the families that share the core.

The processors are transformers', and so are the functions of the models, of which nothing but their
positions is asked. As in `test_glm4v.py`, a few pixel operations stand in for torchvision's.
"""

from dataclasses import dataclass, field

import pytest
import torch
from oracles import transformers_classes, transformers_function
from real_support import clip, make_tokenizer, picture, video_processor_class
from support import assert_same
from transformers import (
    CohereCompassProcessor,
    Ernie4_5_VLMoeProcessor,
    Glm4vProcessor,
    Glm46VProcessor,
    PaddleOCRVLProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
)
from transformers.models.cohere_compass.image_processing_pil_cohere_compass import (
    CohereCompassImageProcessorPil,
)
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import (
    Ernie4_5_VLMoeImageProcessorPil,
)
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import (
    PaddleOCRVLImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vecrope import MRopeSpec, get_rope_index

# Said by NumPy 2 where transformers turns rows of a tensor into arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@dataclass(frozen=True)
class Layout:
    """A family's processors and what stands for its pictures and clips in a text."""

    processor: type
    image_processor: type
    image: str
    video_processor: tuple = ()
    video: str = ""
    ids: dict = field(default_factory=dict)  # fields of the configuration, and their tokens
    named: dict = field(default_factory=dict)  # attributes of the tokenizer, and their tokens
    options: dict = field(default_factory=dict)  # of the video processor


QWEN = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
COHERE = {
    "image_token_id": "<|IMAGE_PAD|>",
    "video_token_id": "<|VIDEO_PAD|>",
    "vision_start_token_id": "<|VISION_START|>",
    "vision_end_token_id": "<|VISION_END|>",
}
ERNIE = {
    "image_token_id": "<|IMAGE_PLACEHOLDER|>",
    "video_token_id": "<|VIDEO_PLACEHOLDER|>",
    "image_start_token_id": "<|IMAGE_START|>",
    "image_end_token_id": "<|IMAGE_END|>",
    "video_start_token_id": "<|VIDEO_START|>",
    "video_end_token_id": "<|VIDEO_END|>",
}
GLM = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}
GLM_IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"
GLM_VIDEO = "<|begin_of_video|><|video|><|end_of_video|>"
PADDLE = {"image_token_id": "<|IMAGE_PLACEHOLDER|>", "vision_start_token_id": "<|IMAGE_START|>"}
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"

LAYOUTS = {
    "glm4v": Layout(
        Glm4vProcessor,
        Glm4vImageProcessorPil,
        GLM_IMAGE,
        ("glm4v", "Glm4vVideoProcessor"),
        GLM_VIDEO,
        GLM,
    ),
    "glm46v": Layout(
        Glm46VProcessor,
        Glm46VImageProcessorPil,
        GLM_IMAGE,
        ("glm46v", "Glm46VVideoProcessor"),
        GLM_VIDEO,
        GLM,
    ),
    "qwen2_vl": Layout(
        Qwen2VLProcessor,
        Qwen2VLImageProcessorPil,
        QWEN_IMAGE,
        ("qwen2_vl", "Qwen2VLVideoProcessor"),
        QWEN_VIDEO,
        QWEN,
        options={"cap_pixels_per_frame": False},
    ),
    "qwen2_5_vl": Layout(
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessorPil,
        QWEN_IMAGE,
        ("qwen2_vl", "Qwen2VLVideoProcessor"),
        QWEN_VIDEO,
        QWEN,
        options={"cap_pixels_per_frame": False},
    ),
    "qwen3_vl": Layout(
        Qwen3VLProcessor,
        Qwen2VLImageProcessorPil,
        QWEN_IMAGE,
        ("qwen3_vl", "Qwen3VLVideoProcessor"),
        QWEN_VIDEO,
        QWEN,
        options={"cap_pixels_per_frame": False},
    ),
    "cohere_compass": Layout(
        CohereCompassProcessor,
        CohereCompassImageProcessorPil,
        "<|VISION_START|><|IMAGE_PAD|><|VISION_END|>",
        ("cohere_compass", "CohereCompassVideoProcessor"),
        "<|VISION_START|><|VIDEO_PAD|><|VISION_END|>",
        COHERE,
        options={"cap_pixels_per_frame": False},
    ),
    "ernie4_5_vl_moe": Layout(
        Ernie4_5_VLMoeProcessor,
        Ernie4_5_VLMoeImageProcessorPil,
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        ("ernie4_5_vl_moe", "Ernie4_5_VLMoeVideoProcessor"),
        "<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>",
        ERNIE,
        {name.removesuffix("_id"): token for name, token in ERNIE.items()},
        # Frames without the time written on them, which takes a font.
        {
            "draw_on_frames": False,
            "size": {"shortest_edge": 56 * 56, "longest_edge": 200 * 28 * 28},
        },
    ),
    "paddleocr_vl": Layout(
        PaddleOCRVLProcessor,
        PaddleOCRVLImageProcessorPil,
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        ids=PADDLE,
        named={"image_token": "<|IMAGE_PLACEHOLDER|>"},
    ),
}
FPS = 4
WIDE, TALL, SMALL = picture(100, 150), picture(190, 70), picture(64, 64)
LONG, SHORT = clip(12, 64, 96), clip(4, 96, 64)


def make_processor(model_type, padding_side):
    """Return a processor and a configuration of its ids."""
    layout = LAYOUTS[model_type]
    special = [*layout.ids.values(), "<|IMAGE_END|>"]
    tokenizer = make_tokenizer(dict.fromkeys(special), **layout.named)
    tokenizer.padding_side = padding_side
    parts = [layout.image_processor(), tokenizer]
    if layout.video_processor:
        parts.append(video_processor_class(*layout.video_processor)(**layout.options))
    processor_class = type(
        layout.processor.__name__,
        (layout.processor,),
        {"check_argument_for_proper_class": lambda *_: None},
    )
    config_class, _ = transformers_classes(model_type)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in layout.ids.items()}
    return processor_class(*parts), config_class(**ids)


def prompts(model_type):
    """Return texts with their images and clips."""
    layout = LAYOUTS[model_type]
    found = [
        (f"{layout.image}Describe the picture.", [WIDE], []),
        ("Hello.", [], []),
        (f"Is this {layout.image} smaller? {layout.image}", [TALL, SMALL], []),
    ]
    if layout.video_processor:
        found.append((f"{layout.video}Is {layout.video} longer?", [], [LONG, SHORT]))
        found.append((f"What happens? {layout.video}", [], [LONG]))
    return found


def process(processor, texts, images, videos):
    """Return what a processor makes of prompts and their media."""
    clips = {}
    if videos:
        clips = {
            "videos": videos,
            "video_metadata": [
                {"fps": FPS, "total_num_frames": len(video), "duration": len(video) / FPS}
                for video in videos
            ],
        }
    return processor(images=images or None, text=texts, padding=True, return_tensors="pt", **clips)


def prepare(model_type, padding_side):
    """Return a batch of four rows of pictures, clips and text, and a configuration of its ids."""
    processor, config = make_processor(model_type, padding_side)
    texts, images, videos = zip(*prompts(model_type), strict=True)
    media = ([medium for own in media for medium in own] for media in (images, videos))
    return process(processor, list(texts), *media), config


@pytest.fixture(scope="module", params=LAYOUTS)
def model_type(request):
    return request.param


@pytest.fixture(scope="module", params=["left", "right"])
def prepared(request, model_type):
    return prepare(model_type, request.param)


# Frames of 12 and 4 pictures, patched in pairs; ERNIE's grids count the pictures.
FRAMES = {
    "glm4v": [3, 1, 3],
    "glm46v": [6, 2, 6],
    "qwen2_vl": [6, 2, 6],
    "qwen2_5_vl": [6, 2, 6],
    "qwen3_vl": [3, 2, 3],
    "cohere_compass": [3, 2, 3],
    "ernie4_5_vl_moe": [12, 4, 12],
    "paddleocr_vl": None,
}


def test_the_processor_lays_out_pictures_and_clips(model_type, prepared):
    batch, _ = prepared
    assert (batch["image_grid_thw"][:, 0] == 1).all()
    assert len(batch["image_grid_thw"]) == 3
    if FRAMES[model_type] is None:
        kinds = [0, 1]
    else:
        kinds = [0, 1, 2]
        assert batch["video_grid_thw"][:, 0].tolist() == FRAMES[model_type]
    assert batch["mm_token_type_ids"].unique().tolist() == kinds
    assert batch["attention_mask"].unique().tolist() == [0, 1]
    if model_type == "qwen2_5_vl":
        assert batch["second_per_grid_ts"].dtype == torch.float32
        assert batch["second_per_grid_ts"].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("by_types", [False, True], ids=["by ids", "by token types"])
@pytest.mark.parametrize("form", [{}, {"form": "static"}], ids=["exact", "static"])
def test_positions_equal_the_models_own(model_type, prepared, by_types, form):
    batch, config = prepared
    names = ("attention_mask", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    given = {name: batch[name] for name in names if name in batch}
    ids, types = batch["input_ids"], batch["mm_token_type_ids"]
    theirs = transformers_function(model_type, config)(ids, mm_token_type_ids=types, **given)
    spec = MRopeSpec.from_config(config, convention="transformers")
    ours = get_rope_index(ids, spec, mm_token_type_ids=types if by_types else None, **given, **form)
    assert_same(ours, theirs)
    assert not torch.equal(theirs[0][0], theirs[0][2])
