"""Writes a model of random weights, as small as an engine takes it: tiny_checkpoint.py FAMILY OUT.

The weights are large enough for positions to matter to the tokens that are generated.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

QWEN_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
GLM_TOKENS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>"),
    *("<|assistant|>", "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>"),
    *("<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>"),
)
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
GLM_TEMPLATE = (
    "[gMASK]<sop>{% for m in messages %}<|{{m.role}}|>\n{{m.content}}{% endfor %}<|assistant|>\n"
)
HIDDEN, VOCABULARY = 64, 320
# The prefix of transformers' classes, sides of a patch, sections of M-RoPE, and image processor.
FAMILIES = {
    "qwen2_vl": ("Qwen2VL", 14, [4, 6, 6], "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VL", 14, [4, 6, 6], "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("Qwen3VL", 16, [4, 6, 6], "Qwen2VLImageProcessorFast", "Qwen3VLVideoProcessor"),
    "glm4v": ("Glm4v", 14, [2, 3, 3], "Glm4vImageProcessor", "Glm4vVideoProcessor"),
}
_BLOCKS = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": HIDDEN}
VISION = {
    "qwen2_vl": {"embed_dim": 32, "num_heads": 2, "hidden_size": HIDDEN, "mlp_ratio": 2},
    "qwen2_5_vl": {**_BLOCKS, "window_size": 112, "fullatt_block_indexes": [1]},
    "qwen3_vl": {**_BLOCKS, "num_position_embeddings": 256, "deepstack_visual_indexes": [0]},
    "glm4v": {**_BLOCKS, "image_size": 112},
}


def main(family, out):
    out.mkdir(parents=True, exist_ok=True)
    glm = family.startswith("glm")
    ids = write_tokenizer(out, GLM_TOKENS if glm else QWEN_TOKENS, glm)
    write_model(out, family, ids, glm)
    write_processors(out, family)
    (out / "chat_template.jinja").write_text(GLM_TEMPLATE if glm else QWEN_TEMPLATE)


def write_tokenizer(out, special, glm):
    """Write a tokenizer of bytes and of the special tokens, and return their ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: at for at, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=list(special),
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>" if glm else "<|im_end|>",
    )
    fast.save_pretrained(out)
    file = out / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    if glm:
        config |= {"image_token": "<|image|>", "video_token": "<|video|>"}
    else:
        config |= {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
        config |= {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
    file.write_text(json.dumps(config))
    return {token: tokenizer.token_to_id(token) for token in special}


def write_model(out, family, ids, glm):
    prefix, patch, section, *_ = FAMILIES[family]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section}
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids["<|endoftext|>"]],
        "rope_parameters": rope,
    }
    if family == "qwen3_vl":
        rope["mrope_interleaved"] = True
        text["head_dim"] = 32
    if glm:
        rope["partial_rotary_factor"] = 0.5
        text["pad_token_id"] = ids["<|endoftext|>"]
    names = dict(zip(("image", "video"), ("image_pad", "video_pad"), strict=True))
    given = {f"{kind}_token_id": ids[f"<|{kind if glm else names[kind]}|>"] for kind in names}
    for side, word in (("start", "begin"), ("end", "end")):
        if glm:
            given |= {f"{kind}_{side}_token_id": ids[f"<|{word}_of_{kind}|>"] for kind in names}
        else:
            given[f"vision_{side}_token_id"] = ids[f"<|vision_{side}|>"]
    config = getattr(transformers, f"{prefix}Config")(
        text_config=text,
        vision_config={"depth": 2, "patch_size": patch, **VISION[family]},
        tie_word_embeddings=False,
        **given,
    )
    config.text_config.tie_word_embeddings = False
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config).float()
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            inputs = weight.shape[-1] if weight.dim() > 1 else 64
            weight.data.normal_(0, 1.2 / inputs**0.5, generator=generator)
    model.save_pretrained(out)
    file = out / "config.json"
    if family in ("qwen2_vl", "qwen2_5_vl"):  # real checkpoints have it, and SGLang reads it
        saved = json.loads(file.read_text())
        saved["vision_config"] |= {"in_chans": 3, "spatial_patch_size": patch}
        file.write_text(json.dumps(saved))


def write_processors(out, family):
    prefix, patch, _, image, video = FAMILIES[family]
    unit = (2 * patch) ** 2
    common = {
        "patch_size": patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        **dict.fromkeys(("do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True),
        **dict.fromkeys(("image_mean", "image_std"), [0.5] * 3),
        "rescale_factor": 1 / 255,
        "resample": 3,
        "processor_class": f"{prefix}Processor",
    }
    pixels = {"shortest_edge": 4 * unit, "longest_edge": 200 * unit}
    limits = {"min_pixels": 4 * unit, "max_pixels": 200 * unit}
    images = common | {"image_processor_type": image, "size": pixels} | limits
    pixels = {"shortest_edge": 8 * unit, "longest_edge": 400 * unit}
    videos = common | {"video_processor_type": video, "size": pixels, "fps": 2}
    (out / "preprocessor_config.json").write_text(json.dumps(images))
    (out / "video_preprocessor_config.json").write_text(
        json.dumps(videos | {"do_sample_frames": False})
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
