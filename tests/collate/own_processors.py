"""Processors of transformers that are unlike the others, and prompts for them.

Three are of families with a rule of their own, beside which it is proven that their batches are
numbered as by the models.
"""

from dataclasses import dataclass

from real_support import MINICPM_TOKENS, clip, make_tokenizer, picture, video_processor_class
from transformers import Cosmos3EdgeProcessor, GlmImageProcessor, HunYuanVLProcessor
from transformers.models.cosmos3_edge.image_processing_pil_cosmos3_edge import (
    Cosmos3EdgeImageProcessorPil,
)
from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil
from transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl import (
    HunYuanVLImageProcessorPil,
)
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
    MiniCPMV4_6ImageProcessorPil,
)
from transformers.models.minicpmv4_7.processing_minicpmv4_7 import MiniCPMV4_7Processor

FPS = 4
_SIZE = {"shortest_edge": 32 * 32, "longest_edge": 256 * 256}
_WIDE, _TALL, _SMALL = picture(64, 160), picture(192, 64), picture(64, 64)
_LONG, _SHORT = clip(12, 64, 96), clip(8, 96, 64)


@dataclass(frozen=True)
class Prompt:
    """A text, with an I for each picture and a V for each clip, and these."""

    text: str
    images: tuple = ()
    videos: tuple = ()


@dataclass(frozen=True)
class Processing:
    """A processor, what stands for its pictures and clips, and what a configuration says of it."""

    processor: object
    config: dict
    prompts: tuple
    image: str
    video: str = ""
    options: tuple = ()  # of a call

    def __call__(self, prompts):
        """Return what the processor makes of prompts at once."""
        given = dict(self.options)
        videos = [video for prompt in prompts for video in prompt.videos]
        if videos:
            given["videos"] = videos
            given["videos_kwargs"] = {
                "video_metadata": [
                    {"fps": FPS, "total_num_frames": len(video), "duration": len(video) / FPS}
                    for video in videos
                ]
            }
        return self.processor(
            text=[p.text.replace("I", self.image).replace("V", self.video) for p in prompts],
            images=[image for prompt in prompts for image in prompt.images] or None,
            padding=True,
            padding_side=self.processor.tokenizer.padding_side,
            return_tensors="pt",
            **given,
        )


def hunyuan(side):
    tokens = {"image_token": "<image>", "image_start_token": "<s>", "image_end_token": "</s>"}
    tokenizer = _tokenizer(side, tokens)
    return Processing(
        HunYuanVLProcessor(HunYuanVLImageProcessorPil(size=_SIZE), tokenizer),
        {
            "model_type": "hunyuan_vl",
            "image_token_id": tokenizer.image_token_id,
            "text_config": {"rope_parameters": {"mrope_section": [5, 1, 1, 1]}},
            "vision_config": {"spatial_merge_size": 2},
        },
        (
            Prompt("describe I.", (_WIDE,)),
            Prompt("hello."),
            Prompt("which, I or I?", (_TALL, _SMALL)),
        ),
        "<s><image></s>",
    )


def glm_image(side):
    tokens = {
        "image_token": "<image>",
        "grid_bos_token": "<sop>",
        "grid_eos_token": "<eop>",
        "image_end_token": "<end>",
        "bos_token": "<start>",
    }
    tokenizer = _tokenizer(side, tokens)
    tokenizer.bos_token = "<start>"
    image_processor = GlmImageImageProcessorPil(size=_SIZE, patch_size=16, merge_size=1)
    return Processing(
        GlmImageProcessor(image_processor, tokenizer),
        {
            "model_type": "glm_image",
            "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
            "image_start_token_id": tokenizer.convert_tokens_to_ids("<start>"),
            "image_end_token_id": tokenizer.convert_tokens_to_ids("<end>"),
            "vision_config": {"spatial_merge_size": 1},
        },
        # Prompts of one batch have the same number of pictures.
        (
            Prompt("IIwhich?", (_WIDE, _SMALL)),
            Prompt("make I look like I but smaller.", (_TALL, _WIDE)),
        ),
        "<start><image><end>",
        options=(("target_h", 256), ("target_w", 192)),
    )


def cosmos3_edge(side):
    """It returns no types, and metadata of the clips, without which it raises."""
    tokens = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }
    tokenizer = _tokenizer(side, tokens)
    video_processor = video_processor_class("cosmos3_edge", "Cosmos3EdgeVideoProcessor")
    return Processing(
        _unchecked(Cosmos3EdgeProcessor)(
            Cosmos3EdgeImageProcessorPil(), tokenizer, video_processor(return_metadata=True)
        ),
        {
            "model_type": "cosmos3_edge",
            **{f"{name}_id": tokenizer.convert_tokens_to_ids(tokens[name]) for name in tokens},
            "vision_config": {"spatial_merge_size": 2},
        },
        (
            Prompt("describe I.", (_WIDE,)),
            Prompt("hello."),
            Prompt("which, I or I?", (_TALL, _SMALL)),
            Prompt("VVlonger?", videos=(_SHORT, _LONG)),
        ),
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|vision_start|><|video_pad|><|vision_end|>",
    )


def minicpm(side):
    tokenizer = _tokenizer(side, MINICPM_TOKENS)
    video_processor = video_processor_class("minicpmv4_6", "MiniCPMV4_6VideoProcessor")
    small = {"scale_resolution": 56}
    names = ("image_start", "image_end", "slice_start", "slice_end")
    (newline,) = tokenizer.encode("\n", add_special_tokens=False)
    return Processing(
        _unchecked(MiniCPMV4_7Processor)(
            MiniCPMV4_6ImageProcessorPil(**small), video_processor(**small), tokenizer
        ),
        {
            "model_type": "minicpmv4_7",
            "image_token_id": tokenizer.image_token_id,
            "video_token_id": tokenizer.video_token_id,
            "downsample_mode": "16x",
            "newline_id": newline,
            **{f"{name}_id": getattr(tokenizer, f"{name}_token_id") for name in names},
        },
        (
            Prompt("I\ndescribe.", (_WIDE,)),
            Prompt("hello."),
            Prompt("II\nand V\nI", (_SMALL, _TALL, _WIDE), (_LONG,)),
            Prompt("VVwhich?\n", videos=(_SHORT, _LONG)),
        ),
        MINICPM_TOKENS["image_token"],
        MINICPM_TOKENS["video_token"],
    )


def _unchecked(processor_class):
    """Return a processor that does not look for a class exported with torchvision only."""
    members = {"check_argument_for_proper_class": lambda *_: None}
    return type(processor_class.__name__, (processor_class,), members)


def _tokenizer(side, tokens):
    tokenizer = make_tokenizer(list(tokens.values()), **tokens)
    tokenizer.padding_side = side
    return tokenizer


FAMILIES = {
    "hunyuan_vl": hunyuan,
    "glm_image": glm_image,
    "cosmos3_edge": cosmos3_edge,
    "minicpmv4_7": minicpm,
}
