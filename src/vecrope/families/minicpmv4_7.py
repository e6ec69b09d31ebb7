"""MiniCPM-V 4.7."""

from __future__ import annotations

from functools import partial

from vecrope.families.conventions import FRAMES_BY_IDS, SGLANG, TRANSFORMERS, VLLM
from vecrope.families.family import Family
from vecrope.families.rules import canvas_rule


def _canvas() -> Family:
    upstreams = {"transformers": TRANSFORMERS, "sglang": SGLANG, "vllm": VLLM}
    # Patches per token are the rule's, which reads them off the mode.
    fields = {**FRAMES_BY_IDS, "spatial_merge_size": 1, "position_dtype": "int64"}
    markers = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
    others = ("downsample_mode", "uses_mrope_canvas", "mrope_mode")
    return Family(
        {name: {**rules, **fields} for name, rules in upstreams.items()},
        {"image_token_id": "image_token_id", "video_token_id": "video_token_id"},
        own_rule=partial(canvas_rule, "transformers"),
        own_rule_by_convention={name: partial(canvas_rule, name) for name in ("sglang", "vllm")},
        own_paths={name: name for name in (*markers, *others)},
        own_defaults={"downsample_mode": "16x", "uses_mrope_canvas": False, "mrope_mode": ""},
    )


FAMILIES: dict[str, Family] = {
    "minicpmv4_7": _canvas(),
}
