"""What the positions of a request cost in SGLang, with vecrope and without.

`python -m bench.sglang_requests --sglang WHEEL` takes the functions, and the method that numbers
requests with images alone, out of a wheel, and calls them as SGLang's processors do: as they are,
and as `install` replaces them.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.omni import configuration
from bench.prompts import Row
from bench.requests import Engine, Positions, main
from bench.upstreams import hf_config
from bench.wheels import Wheel, load
from vecrope.integrations import sglang as ours
from vecrope.integrations.sglang import pictures
from vecrope.integrations.sglang.installing import replacement
from vecrope.integrations.sglang.known import HELPERS, MODEL_TYPES

_MODULE = "sglang/srt/layers/rotary_embedding/mrope_rope_index.py"
_PICTURES_MODULE = f"{pictures.MODULE.replace('.', '/')}.py"
FUNCTIONS = {
    "qwen2_vl": "get_rope_index",
    "qwen2_5_vl": "get_rope_index",
    "qwen3_vl": "get_rope_index",
    "qwen3_omni_moe": "get_rope_index",
    "glm4v": "get_rope_index_glm4v",
    "ernie4_5_vl_moe": "get_rope_index_ernie45",
}


class _Image(NamedTuple):
    """What the method for images reads of a `MultimodalDataItem`."""

    offsets: list[tuple[int, int]]
    model_specific_data: dict[str, Tensor]

    def is_image(self) -> bool:
        return True


def load_calls(wheel: Wheel, model_type: str) -> Callable[[Row], tuple[Positions, Positions]]:
    """Return what makes the calls of a request of a family: vecrope's, and SGLang's own."""
    names = {*FUNCTIONS.values(), *HELPERS, *itertools.chain(*HELPERS.values())}
    functions = load(wheel, _MODULE, *sorted(names), torch=torch, itertools=itertools)
    processor = load_processor(wheel)
    name = FUNCTIONS[model_type]
    own = functions[name]
    numbers = frozenset().union(*MODEL_TYPES.values()) if name == "get_rope_index" else None
    new = replacement(own, numbers, ours=getattr(ours, name), strict=False)

    def calls_of(row: Row) -> tuple[Positions, Positions]:
        if processor.model_type == model_type and row.images and not row.videos:
            return calls_by_places(processor, row)
        return call_by_ids(new, row), call_by_ids(own, row)

    return calls_of


def load_processor(wheel: Wheel) -> Any:
    """Return an object of Qwen3-VL with the methods of SGLang's processor that number images."""
    names = [f"{pictures.OWNER}.{name}" for name in (pictures.METHOD, *pictures.HELPERS)]
    methods = load(wheel, _PICTURES_MODULE, *names, torch=torch)
    static = {name: staticmethod(methods[name]) for name in pictures.HELPERS}
    return processor_of({**methods, **static})


def processor_of(methods: dict[str, Any]) -> Any:
    """Return an object of Qwen3-VL with the given methods of SGLang's processor."""
    processor = type(pictures.OWNER, (), methods)()
    processor.model_type, processor._spatial_merge_size = "qwen3_vl", 2  # type: ignore[attr-defined]
    return processor


def calls_by_places(processor: Any, row: Row) -> tuple[Positions, Positions]:
    """Return vecrope's call and SGLang's own for a prompt with images alone."""
    own = getattr(type(processor), pictures.METHOD)
    items = [
        _Image([(start, stop - 1)], {"image_grid_thw": torch.tensor([grid])})
        for (start, stop, _), grid in zip(row.runs, row.images, strict=True)
    ]
    new = pictures.replacement(own, frozenset({processor.model_type}))
    device = torch.device("cpu")
    arguments = {"input_len": len(row), "mm_items": items, "dtype": torch.int64, "device": device}
    return partial(new, processor, **arguments), partial(own, processor, **arguments)


def call_by_ids(function: Callable[..., Any], row: Row) -> Positions:
    """Return the call of a function, with the arguments that SGLang's processor has for it."""
    spec = row.layout.spec
    images, videos = (torch.tensor(grids) if grids else None for grids in (row.images, row.videos))
    arguments: dict[str, Any] = {
        "input_ids": torch.tensor([row.ids]),
        "image_grid_thw": images,
        "video_grid_thw": videos,
    }
    if spec.model_type in ("glm4v", "ernie4_5_vl_moe"):
        arguments["hf_config"] = hf_config(spec.model_type)
        if spec.model_type == "glm4v":
            arguments["attention_mask"] = torch.ones_like(arguments["input_ids"])
        return partial(function, **arguments)
    config: Any = SimpleNamespace()
    timed = spec.video_time == "seconds" or spec.model_type == "qwen3_omni_moe"
    if spec.model_type == "qwen3_omni_moe":
        config = configuration(spec)
        arguments |= {
            "use_audio_in_video": False,
            "audio_seqlens": None,
            "audio_token_id": config.audio_token_id,
            "audio_start_token_id": config.audio_start_token_id,
            "position_id_per_seconds": config.position_id_per_seconds,
        }
    return partial(
        function,
        spatial_merge_size=spec.spatial_merge_size,
        image_token_id=spec.image_token_id,
        video_token_id=spec.video_token_id,
        vision_start_token_id=spec.vision_start_token_id,
        model_type=spec.model_type,
        tokens_per_second=spec.tokens_per_second,
        second_per_grid_ts=torch.tensor(row.seconds) if timed and row.seconds else None,
        **arguments,
    )


ENGINE = Engine("SGLang", tuple(FUNCTIONS), load_calls)

if __name__ == "__main__":
    sys.exit(main(ENGINE, __doc__))
