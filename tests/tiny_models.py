"""Models of transformers, randomly initialised and as small as their classes allow."""

from functools import cache

import torch

from vecrope import MRopeSpec
from vecrope.testing import Prompt

# The tensors are small and test processes share the cores: more threads only cost time.
torch.set_num_threads(1)

IDS = {
    "image_token_id": 9,
    "video_token_id": 10,
    "vision_start_token_id": 11,
    "vision_end_token_id": 12,
    "image_start_token_id": 13,
    "image_end_token_id": 14,
    "video_start_token_id": 15,
    "video_end_token_id": 16,
}
IMAGE = IDS["image_token_id"]
_VOCABULARY = 48
FIRST_TEXT_ID = 20
_PATCH = 2

ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
# A class takes those that it has.
TEXT = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 512,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "n_routed_experts": 2,
    "first_k_dense_replace": 0,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "moe_num_experts": 2,
    "moe_k": 1,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
VISION = {
    "depth": 1,
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "embed_dim": 16,
    "out_hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "num_attention_heads": 2,
    "patch_size": _PATCH,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "image_size": 16,
    "num_position_embeddings": 16,
    "num_patches": 16,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
    "window_size": 8,
}
_TEXT_OF = {
    "cohere_compass": {"rope_parameters": {"full_attention": ROPE}},
    "glm4v_moe": {"rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}},
    "ernie4_5_vl_moe": {"moe_intermediate_size": [8, 8]},
    "qwen3_5": {"layer_types": ["full_attention"]},
    "qwen3_5_moe": {"layer_types": ["full_attention"]},
    "qwen4_exp": {
        "layer_types": ["full_attention"],
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
}

# What each is called with. GLM's cannot tell a clip's placeholders from images' where both are
# given, and PaddleOCR-VL's takes no clip.
_ALL = ("images", "clips", "both")
LAYOUTS = {
    "qwen2_vl": _ALL,
    "qwen2_5_vl": _ALL,
    "paddleocr_vl": ("images",),
    "qwen3_vl": _ALL,
    "qwen3_vl_moe": _ALL,
    "qwen3_5": _ALL,
    "qwen3_5_moe": _ALL,
    "qwen4_exp": _ALL,
    "cosmos3_omni": _ALL,
    "cosmos3_edge": _ALL,
    "cohere_compass": _ALL,
    "ernie4_5_vl_moe": _ALL,
    "glm4v": ("images", "clips"),
    "glm4v_moe": ("images", "clips"),
    "glm46v": ("images", "clips"),
    "glm_ocr": ("images", "clips"),
}


def tiny_config(model_type):
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    config_class = getattr(transformers, CONFIG_MAPPING_NAMES[model_type])
    default = config_class()
    parts = {
        "text_config": {**TEXT, "rope_parameters": dict(ROPE), **_TEXT_OF.get(model_type, {})},
        "vision_config": VISION,
    }
    parts = {name: known(type(getattr(default, name)), part) for name, part in parts.items()}
    return config_class(**parts, **known(config_class, IDS))


def known(config_class, fields):
    names = {
        name for base in config_class.__mro__ for name in vars(base).get("__annotations__", ())
    }
    return {name: value for name, value in fields.items() if name in names}


@cache
def tiny_model(model_type):
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES,
    )

    torch.manual_seed(0)
    return getattr(transformers, NAMES[model_type])(tiny_config(model_type)).eval()


def spec_of_model(model_type):
    return MRopeSpec.from_config(tiny_config(model_type), convention="transformers")


def inputs_of(model_type, layout):
    """Return what a processor would: two rows, the second padded on the left."""
    spec = spec_of_model(model_type)
    clip, clip_grid = _clip(spec)
    rows, images, clips = {
        "images": (["tt<II>t<I>tt", "t<IIII>tt"], [[1, 2, 4], [1, 2, 2], [1, 4, 4]], []),
        "clips": ([f"tt{clip}tt", f"t{clip}t"], [], [clip_grid] * 2),
        "both": (
            [f"t<II>t{clip}tt<I>t", "t<IIII>tt"],
            [[1, 2, 4], [1, 2, 2], [1, 4, 4]],
            [clip_grid],
        ),
    }[layout]
    width = max(map(len, rows))
    prompt = Prompt.from_symbols(
        spec,
        [row.rjust(width, "t") for row in rows],
        mask=[("1" * len(row)).rjust(width, "0") for row in rows],
        image_grid_thw=images or None,
        video_grid_thw=clips or None,
    )
    generator = torch.Generator().manual_seed(0)
    ids = prompt.input_ids
    text = torch.randint(FIRST_TEXT_ID, _VOCABULARY, ids.shape, generator=generator)
    ids = torch.where(torch.isin(ids, torch.tensor(list(IDS.values()))), ids, text)
    item = "image" if spec.marker_rule == "count" or model_type == "ernie4_5_vl_moe" else "vision"
    for symbol, marker in (("<", f"{item}_start_token_id"), (">", f"{item}_end_token_id")):
        at = [[other == symbol for other in row.rjust(width, "t")] for row in rows]
        ids = ids.masked_fill(torch.tensor(at), IDS[marker])
    inputs = {
        "input_ids": ids.masked_fill(prompt.attention_mask == 0, 0),
        "attention_mask": prompt.attention_mask,
        "mm_token_type_ids": prompt.mm_token_type_ids.int(),
    }
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        grids = getattr(prompt, f"{kind}_grid_thw")
        if grids is not None:
            inputs[f"{kind}_grid_thw"] = grids
            inputs[pixels] = _patches(model_type, int(grids.prod(1).sum()), generator)
    if model_type == "qwen2_5_vl" and clips:
        inputs["second_per_grid_ts"] = torch.full((len(clips),), 2 / 3)
    if model_type == "ernie4_5_vl_moe":
        inputs["moe_mm_token_type_ids"] = inputs["mm_token_type_ids"]
    return inputs


def _clip(spec):
    if spec.video_token_id is None:
        return "[<II>t<II>]", [2, 2, 4]
    if spec.separate_frames:
        return "<VV>t<VV>", [2, 2, 4]
    return "<VVVV>", [2 * spec.temporal_merge_size, 2, 4]


def _patches(model_type, number, generator):
    if model_type == "paddleocr_vl":
        return torch.randn(number, 3, _PATCH, _PATCH, generator=generator)
    frames = 1 if model_type in ("cosmos3_edge", "ernie4_5_vl_moe") else 2
    return torch.randn(number, 3 * frames * _PATCH**2, generator=generator)


def seeded_patches(number, *, frames, shape=None):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, *(shape or (3 * frames * _PATCH**2,)), generator=generator)
