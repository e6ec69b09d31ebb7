"""The function of sglang-omni, a server of omni models: NumPy blocks, put together by a loop."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.omni import MODEL_TYPE, prepare_sglang
from bench.provider import Provider
from bench.wheels import Wheel, load

_MODULE = "sglang_omni/models/qwen3_omni/mrope_positions.py"


def sglang_omni_provider(path: Path) -> Provider:
    """Return the function of an sglang-omni wheel."""
    import numpy as np

    wheel = Wheel(path, "sglang_omni")
    names = (
        "get_rope_index_qwen3_omni_vectorized",
        "feat_extract_output_lengths",
        "linear_pos_ids",
        "vision_t_index",
        "vision_pos_ids",
        "merge_audio_in_video",
    )
    function = load(wheel, _MODULE, *names, np=np, torch=torch)[names[0]]
    return Provider(
        f"sglang-omni-{wheel.version}",
        wheel.version,
        "sglang",
        prepare_sglang(function),
        one_row_only=True,
        families=(MODEL_TYPE,),
    )
