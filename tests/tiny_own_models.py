"""The same for families with a rule of their own: a model, and what a processor would give it."""

from functools import cache

import torch
from tiny_models import IDS, IMAGE, ROPE, TEXT, VISION, known, seeded_patches

_OPEN, _CLOSE, _SLICE, _END_SLICE, _NEWLINE = 13, 14, 15, 16, 17
_AUDIO, _AUDIO_START, _AUDIO_END = 17, 18, 19


@cache
def tiny_own_model(model_type):
    torch.manual_seed(0)
    return MODELS[model_type]().eval()


def own_inputs_of(model_type, kind="own rule"):
    return (INPUTS if kind == "own rule" else WITH_SOUND)[model_type]()


def _batch(*rows, right=False):
    """Return ids and a mask: rows padded with 0, on the left if not on the right."""
    width = max(map(len, rows))
    gaps = [[0] * (width - len(row)) for row in rows]
    pairs = zip(rows, gaps, strict=True) if right else zip(gaps, rows, strict=True)
    ids = torch.tensor([left + after for left, after in pairs])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def _with_types(batch):
    return {**batch, "mm_token_type_ids": (batch["input_ids"] == IMAGE).int()}


def _config(config_class, text, vision, **fields):
    default = config_class()
    text_class, vision_class = type(default.text_config), type(default.vision_config)
    return config_class(
        text_config=known(text_class, {**TEXT, "rope_parameters": dict(ROPE), **text}),
        vision_config=known(vision_class, {**VISION, **vision}),
        image_token_id=IMAGE,
        **fields,
    )


def _hunyuan():
    from transformers import HunYuanVLConfig, HunYuanVLForConditionalGeneration

    config = _config(
        HunYuanVLConfig,
        {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 1, 1]}},
        {
            "temporal_patch_size": 1,
            "text_hidden_size": 16,
            "max_image_size": 32,
            "min_image_size": 4,
            "img_max_token_num": 64,
            "max_vit_seq_len": 256,
        },
        im_start_id=_OPEN,
        im_end_id=_CLOSE,
        im_newline_id=_NEWLINE,
    )
    return HunYuanVLForConditionalGeneration(config)


def _hunyuan_inputs():
    # Two lines of two tokens and one more, and a token at both ends.
    image = [IMAGE] * 8
    return {
        **_with_types(_batch([20, *image, 21, *image, 22, 23], [24, *image, 25])),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 3),
        "pixel_values": seeded_patches(48, frames=1),
    }


def _glm_image():
    from transformers import GlmImageConfig, GlmImageForConditionalGeneration

    config = _config(
        GlmImageConfig,
        {"vision_vocab_size": 20},
        {"spatial_merge_size": 1},
        # Its codes take the place of the placeholders; none of them is a marker.
        vq_config={"embed_dim": 8, "num_embeddings": 8, "latent_channels": 16},
        image_start_token_id=_OPEN,
        image_end_token_id=_CLOSE,
    )
    return GlmImageForConditionalGeneration(config)


def _glm_image_inputs():
    # A source and a target in each row.
    return {
        **_batch(
            [20, 21, _OPEN, *[IMAGE] * 6, _CLOSE, 22, _OPEN],
            [23, _OPEN, *[IMAGE] * 4, _CLOSE, 24, _OPEN],
        ),
        "image_grid_thw": torch.tensor([[1, 2, 3], [1, 2, 2], [1, 2, 2], [1, 1, 2]]),
        "images_per_sample": torch.tensor([2, 2]),
        "pixel_values": seeded_patches(10, frames=1),
    }


def _minicpm():
    from transformers import MiniCPMV4_7Config, MiniCPMV4_7ForConditionalGeneration

    config = _config(
        MiniCPMV4_7Config,
        {"layer_types": ["full_attention"]},
        {"num_hidden_layers": 2, "image_size": 32, "insert_layer_id": 0},
        insert_layer_id=0,
        image_size=32,
        video_token_id=10,
        image_start_id=_OPEN,
        image_end_id=_CLOSE,
        slice_start_id=_SLICE,
        slice_end_id=_END_SLICE,
        newline_id=_NEWLINE,
    )
    return MiniCPMV4_7ForConditionalGeneration(config)


def _minicpm_inputs():
    thumbnail = [_OPEN, IMAGE, IMAGE, _CLOSE]
    slices = [_SLICE, *[IMAGE] * 2, _END_SLICE] * 2
    sizes = torch.tensor([[4, 8]] * 4)
    return {
        **_with_types(_batch([20, *thumbnail, *slices, 21, 22], [23, *thumbnail, 24])),
        "target_sizes": sizes,
        # Patches of all crops stand side by side.
        "pixel_values": seeded_patches(1, frames=1, shape=(3, 2, 2 * int(sizes.prod(1).sum()))),
    }


_AUDIO_TOWER = {
    "num_mel_bins": 8,
    "encoder_layers": 1,
    "num_hidden_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "d_model": 16,
    "output_dim": 16,
    "n_window": 50,
    "n_window_infer": 100,
    "max_source_positions": 200,
    "downsample_hidden_size": 8,
}
_OMNI_IDS = {
    **IDS,
    "image_token_index": IMAGE,
    "video_token_index": IDS["video_token_id"],
    "audio_token_id": _AUDIO,
    "audio_token_index": _AUDIO,
    "audio_start_token_id": _AUDIO_START,
    "audio_end_token_id": _AUDIO_END,
}


def _thinker(config_class, model_class):
    default = config_class().thinker_config
    sizes = {"position_id_per_seconds": 2, "seconds_per_chunk": 2}
    parts = {
        "text_config": {**TEXT, "rope_parameters": dict(ROPE)},
        "vision_config": VISION,
        "audio_config": _AUDIO_TOWER,
    }
    parts = {name: known(type(getattr(default, name)), part) for name, part in parts.items()}
    config = type(default)(**parts, **known(type(default), {**_OMNI_IDS, **sizes}))
    # Of which the class has no field, but every checkpoint.
    config.vision_start_token_id = IDS["vision_start_token_id"]
    return model_class(config)


def _qwen2_5_omni():
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniThinkerForConditionalGeneration

    return _thinker(Qwen2_5OmniConfig, Qwen2_5OmniThinkerForConditionalGeneration)


def _qwen3_omni():
    from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeThinkerForConditionalGeneration

    return _thinker(Qwen3OmniMoeConfig, Qwen3OmniMoeThinkerForConditionalGeneration)


def _media(*, num_audios):
    """Two images of two tokens, a clip of two frames of two, and audio of a second each."""
    generator = torch.Generator().manual_seed(0)
    return {
        "image_grid_thw": torch.tensor([[1, 2, 4]] * 2),
        "pixel_values": seeded_patches(16, frames=2),
        "video_grid_thw": torch.tensor([[2, 2, 4]]),
        "pixel_values_videos": seeded_patches(16, frames=2),
        "video_second_per_grid": torch.tensor([1.5]),
        "input_features": torch.randn(num_audios, 8, 100, generator=generator),
        "feature_attention_mask": torch.ones(num_audios, 100, dtype=torch.int64),
    }


def _thinker_inputs(audio_tokens):
    start, end = IDS["vision_start_token_id"], IDS["vision_end_token_id"]
    audio = [_AUDIO_START, *[_AUDIO] * audio_tokens, _AUDIO_END]
    image = [start, IMAGE, IMAGE, end]
    clip = [start, *[IDS["video_token_id"]] * 4, end]
    return {
        **_batch([20, *audio, 21, *image, 22], [23, *image, 24, *clip, 25]),
        **_media(num_audios=1),
    }


def _inputs_with_sound(audio_tokens, pieces):
    """Audio alone and a clip with its sound, in pieces, in one row; two images in the other."""
    start, end = IDS["vision_start_token_id"], IDS["vision_end_token_id"]
    audio = [_AUDIO_START, *[_AUDIO] * audio_tokens, _AUDIO_END]
    image = [start, IMAGE, IMAGE, end]
    ids = {"V": IDS["video_token_id"], "A": _AUDIO}
    clip = [start, _AUDIO_START, *(ids[piece] for piece in pieces), _AUDIO_END, end]
    return {
        **_batch([20, *audio, 21, *clip, 22], [23, *image, 24, *image, 25], right=True),
        **_media(num_audios=2),
        "use_audio_in_video": True,
    }


MODELS = {
    "hunyuan_vl": _hunyuan,
    "glm_image": _glm_image,
    "minicpmv4_7": _minicpm,
    "qwen2_5_omni_thinker": _qwen2_5_omni,
    "qwen3_omni_moe_thinker": _qwen3_omni,
}
INPUTS = {
    "hunyuan_vl": _hunyuan_inputs,
    "glm_image": _glm_image_inputs,
    "minicpmv4_7": _minicpm_inputs,
    "qwen2_5_omni_thinker": lambda: _thinker_inputs(25),
    "qwen3_omni_moe_thinker": lambda: _thinker_inputs(13),
}
# At two positions a second the frames are at 0 and 3: in one chunk of four, and merged by time.
WITH_SOUND = {
    "qwen2_5_omni_thinker": lambda: _inputs_with_sound(25, "V" * 4 + "A" * 25),
    "qwen3_omni_moe_thinker": lambda: _inputs_with_sound(13, "VVAAAVV" + "A" * 10),
}
