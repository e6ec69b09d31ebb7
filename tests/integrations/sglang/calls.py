"""Calls of SGLang's functions with a prompt."""

import itertools
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import omni_support
import torch
from oracles import ernie_configuration, families_of, spec_of
from own_support import SGLANG_WHEEL

from bench.wheels import Wheel, load
from vecrope.integrations import sglang as ours
from vecrope.testing import Prompt

NAMES = (
    *("get_rope_index", "get_rope_index_glm4v"),
    *("get_rope_index_ernie45", "get_rope_index_qwen3_omni"),
)
FAMILIES = [name for name in families_of("sglang") if not name.startswith(("glm", "qwen3_asr"))]

GRIDS = ("image_grid_thw", "video_grid_thw")


@cache
def wheel():
    helpers = ("_get_feat_extract_output_lengths", "_get_llm_pos_ids_for_vision")
    member = "sglang/srt/layers/rotary_embedding/mrope_rope_index.py"
    files = Wheel(Path(SGLANG_WHEEL), "sglang")
    assert files.version == "0.5.23"
    return SimpleNamespace(
        **load(files, member, *NAMES, *helpers, torch=torch, itertools=itertools)
    )


def spec_for(model_type):
    return spec_of(model_type, "sglang")


def call(prompt, functions=ours, *, model_type=None, **changes):
    """Call the function of the prompt's family, ours or SGLang's."""
    spec = prompt.spec
    arguments = {**prompt.arguments(), **changes}
    grids = {name: arguments[name] for name in GRIDS}
    if spec.model_type == "ernie4_5_vl_moe":
        config = ernie_configuration(spec)
        return functions.get_rope_index_ernie45(arguments["input_ids"], config, **grids)
    omni = {}
    if spec.own_rule is not None:
        omni = {
            "audio_token_id": spec.own_rule.audio_token_id,
            "audio_start_token_id": spec.own_rule.audio_start_token_id,
            "position_id_per_seconds": spec.tokens_per_second,
            **{name: arguments[name] for name in ("audio_seqlens", "use_audio_in_video")},
        }
    return functions.get_rope_index(
        spec.spatial_merge_size,
        spec.image_token_id,
        spec.video_token_id,
        spec.vision_start_token_id,
        model_type or spec.model_type,
        spec.tokens_per_second,
        arguments["input_ids"],
        *grids.values(),
        arguments.get("second_per_grid_ts", arguments.get("second_per_grids")),
        **omni,
    )


def prompt_of(model_type, *rows, **arguments):
    spec = spec_for(model_type)
    if spec.video_token_id is None:
        rows = [row.replace("V", "I") for row in rows]
    return Prompt.from_symbols(spec, rows, **arguments)


def omni_prompt(*rows, rate=2, **arguments):
    spec = omni_support.spec_of("qwen3_omni_moe", "sglang", rate)
    return Prompt.from_symbols(spec, rows, **arguments)
