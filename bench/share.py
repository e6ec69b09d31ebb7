"""What share of a model's step its position ids take: `python -m bench.share --size 7b`.

A model of transformers with random weights runs the same step again and again, in turns with its
own `get_rope_index` and patched: the prefill of one prompt up to the first logits, or forward and
backward of a padded batch, with gradient checkpointing. The prompts are those of the mixed
workloads.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.prompts import Workload
from bench.runner import describe_environment
from bench.workloads import make_workload
from vecrope.integrations.transformers import patch, unpatch

# Glm4v takes no prompt with both pictures and clips.
_MODELS = {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
# Of the language model: layers, width, width of the feed-forward layers, heads, heads of keys. A
# head has 128 channels.
_SIZES = {
    "tiny": (2, 256, 512, 2, 1),
    "3b": (36, 2048, 11008, 16, 2),
    "7b": (28, 3584, 18944, 28, 4),
}
_MODES = {"prefill": "mixed", "train": "mixed-batch"}
_COLUMNS = (
    *("model", "parameters", "step", "rows", "tokens"),
    *("own_step_ms", "own_positions_ms", "patched_step_ms", "patched_positions_ms"),
)


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.share", description=__doc__)
    parser.add_argument("--model", choices=_MODELS, nargs="+", default=[*_MODELS])
    parser.add_argument("--size", choices=_SIZES, default="tiny")
    parser.add_argument("--mode", choices=_MODES, nargs="+", default=[*_MODES])
    parser.add_argument("--tokens", type=int, help="of the longest prompt; default: 4000, or 1000")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=7, help="steps of each kind")
    parser.add_argument("--csv", type=Path, help="file for the rows")
    options = parser.parse_args()
    environment = asdict(describe_environment(options.device, torch.get_num_threads()))
    with (options.csv or Path("/dev/null")).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*_COLUMNS, *environment], lineterminator="\n")
        writer.writeheader()
        for model_type in options.model:
            model = _make_model(model_type, options.size, options.device)
            size = sum(values.numel() for values in model.parameters())
            for mode in options.mode:
                tokens = options.tokens or (4000 if mode == "prefill" else 1000)
                workload = make_workload(f"{_MODES[mode]}-{model_type}", tokens, options.device)
                times = _time(model, _step(model, workload, mode), options.repeats)
                what = (model_type, size, mode, len(workload.input_ids), _num_tokens(workload))
                row = dict(zip(_COLUMNS, (*what, *times), strict=True))
                print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
                writer.writerow({**row, **environment})
                file.flush()
            del model
    return 0


def _num_tokens(workload: Workload) -> int:
    mask = workload.attention_mask
    return workload.input_ids.numel() if mask is None else int(mask.sum())


def _make_model(model_type: str, size: str, device: str) -> Any:
    """Return a model with random weights, in bfloat16 on a GPU."""
    import transformers

    layers, width, inner, heads, key_heads = _SIZES[size]
    prefix = _MODELS[model_type]
    config = getattr(transformers, f"{prefix}Config")()
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = layers, width, inner
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = heads, key_heads, 128
    text.vocab_size = 152064
    text.rope_parameters = {**(text.rope_parameters or {}), "mrope_section": [16, 24, 24]}
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1] * layers
    vision.out_hidden_size = width
    if model_type == "qwen2_5_vl":
        vision.hidden_size = 1280
    if size == "tiny":
        vision.depth, vision.hidden_size, vision.intermediate_size = 2, 128, 256
        if hasattr(vision, "deepstack_visual_indexes"):
            vision.deepstack_visual_indexes = [0, 1]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model_class = getattr(transformers, f"{prefix}ForConditionalGeneration")
    torch.manual_seed(0)
    with torch.device("meta"):
        model = model_class(config).to(dtype)
    model.to_empty(device=device)
    with torch.no_grad():
        for values in model.parameters():
            values.normal_(0, 0.02)
        for module in model.modules():
            if next(module.buffers(recurse=False), None) is not None:
                model._init_weights(module)  # the frequencies of rotary embeddings
    return model


def _step(model: Any, workload: Workload, mode: str) -> Callable[[], Tensor]:
    """Return the step to time."""
    grids_of = {"image": workload.image_grid_thw, "video": workload.video_grid_thw}
    vision = model.config.vision_config
    channels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    given: dict[str, Any] = {
        "input_ids": workload.input_ids,
        "attention_mask": workload.attention_mask,
        "mm_token_type_ids": workload.mm_token_type_ids,
    }
    for kind, grids in grids_of.items():
        if grids is None:
            continue
        name = "pixel_values" if kind == "image" else "pixel_values_videos"
        patches = int(grids.prod(1).sum())
        given[name] = torch.randn(patches, channels, device=grids.device, dtype=model.dtype)
        given[f"{kind}_grid_thw"] = grids
    if workload.second_per_grid_ts is not None:
        given["second_per_grid_ts"] = workload.second_per_grid_ts

    def prefill() -> Tensor:
        model.eval()
        with torch.no_grad():
            model.model.rope_deltas = None
            return model(**given, use_cache=True, logits_to_keep=1).logits

    def train() -> Tensor:
        model.train()
        model.gradient_checkpointing_enable()
        model.model.rope_deltas = None
        model.zero_grad(set_to_none=True)
        loss = model(**given, labels=workload.input_ids, use_cache=False).loss
        loss.backward()
        return loss

    return prefill if mode == "prefill" else train


def _time(model: Any, step: Callable[[], Tensor], repeats: int) -> list[float]:
    """Return the median milliseconds of a step and of the positions in it: its own, and patched.

    The positions are timed within the step, from when the device has nothing else to do until it
    has them.
    """
    times: list[list[float]] = [[], [], [], []]
    for number in range(-1, repeats):
        for which in range(2):
            if which:
                patch(type(model.model))
            in_positions = _time_method(model.model)
            try:
                begin = time.perf_counter()
                if not bool(step().isfinite().all()):  # which waits for the device
                    raise RuntimeError("a step gave numbers that are not finite")
                seconds = time.perf_counter() - begin
            finally:
                del model.model.get_rope_index
                if which:
                    unpatch(type(model.model))
            if number >= 0:
                times[2 * which].append(seconds)
                times[2 * which + 1].append(sum(in_positions))
    return [round(1e3 * statistics.median(seconds), 3) for seconds in times]


def _time_method(model: Any) -> list[float]:
    """Put a clock around a model's `get_rope_index` and return the list of its seconds."""
    method, seconds = model.get_rope_index, []

    def timed(*args: Any, **kwargs: Any) -> Any:
        _wait()
        begin = time.perf_counter()
        answer = method(*args, **kwargs)
        _wait()
        seconds.append(time.perf_counter() - begin)
        return answer

    model.get_rope_index = timed
    return seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
