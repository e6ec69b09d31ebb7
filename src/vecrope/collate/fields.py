"""What a sample may hold, by the names that transformers' processors give it: data only."""

from __future__ import annotations

IGNORED_LABEL = -100  # of transformers' and torch's losses

# One value for each token, and what stands for it at padding; ids are padded with an argument.
TOKEN_PADDING = {
    "labels": IGNORED_LABEL,
    "attention_mask": 0,
    "mm_token_type_ids": 0,
    "moe_mm_token_type_ids": 0,
}
TOKENS = ("input_ids", *TOKEN_PADDING)
NUMBERING: tuple[str, ...] = ("input_ids", "mm_token_type_ids")  # what positions follow from

GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
CROPS = {"image": "target_sizes", "video": "target_sizes_videos"}
# The same for one thing: seconds between the temporal steps of each video.
SECONDS = ("second_per_grid_ts", "second_per_grids", "video_second_per_grid")
# Mel frames: (num_audios, mel bins, frames), a mask (num_audios, frames), and how many are real.
AUDIO = ("input_features", "feature_attention_mask", "audio_seqlens")
MEDIA = (
    *GRIDS.values(),
    *SECONDS,
    *PIXELS.values(),
    *CROPS.values(),
    "images_per_sample",
    *AUDIO,
)
# Positions of a sample that was numbered before.
NUMBERED = ("position_ids", "rope_deltas")
# What no model takes, although processors return the second: it is not handed on.
READ_ONLY = ("use_audio_in_video", "video_metadata")
# What a packed batch says of its sequences; a batch of one sample is a sample again.
BOUNDARIES = (
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"),
    *("cu_seqlens_q", "cu_seqlens_q_padded", "use_cache"),
)

NAMES = (*TOKENS, *MEDIA, *NUMBERED, *READ_ONLY)
# What a prompt is before a processor has made a sample of it.
UNPROCESSED = frozenset(
    (
        *("audio", "audios", "image", "images", "video", "videos"),
        *("conversations", "messages", "prompt", "text"),
    )
)

# Families whose text models mix linear attention in, which text positions do not reach.
LINEAR_ATTENTION = frozenset(("qwen3_5", "qwen3_5_moe", "qwen4_exp", "minicpmv4_7"))
# Families whose model in transformers refuses a text row, although it reads one (5.23).
NO_TEXT_ROW = frozenset(("hunyuan_vl",))
