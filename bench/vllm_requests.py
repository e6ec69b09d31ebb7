"""What the positions of a request cost in vLLM, with the plugin and without.

`python -m bench.vllm_requests --vllm WHEEL` takes the methods of vLLM's models, and the classes of
its features, out of a wheel, and calls the methods as vLLM's runner does: as they are, and as the
plugin replaces them. CPU time of one thread, each pair of calls one right after the other.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import UserDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from bench.prompts import VIDEO, Layout, Row
from bench.upstreams import hf_config
from bench.wheels import Wheel, load
from vecrope import MRopeSpec
from vecrope.integrations.vllm.models import CLASSES
from vecrope.integrations.vllm.plugin import replaced

SIZES = (300, 1000, 4000, 16000)
PICTURES = (1, 2, 8, 20, 32)
# What a request may cost more than in vLLM as it is.
SLACK, SLACK_US = 1.1, 15
_QWEN_MARKS = (151652, 151653)
_LAYOUTS = {
    "qwen2_vl": ("qwen2_vl", "Qwen2VLForConditionalGeneration", _QWEN_MARKS, _QWEN_MARKS),
    "qwen2_5_vl": ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", _QWEN_MARKS, _QWEN_MARKS),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLForConditionalGeneration", _QWEN_MARKS, ()),
    "glm4v": ("glm4_1v", "Glm4vForConditionalGeneration", (151339, 151340), (151341, 151342)),
    "ernie4_5_vl_moe": (
        "ernie45_vl",
        "Ernie4_5_VLMoeForConditionalGeneration",
        (101304, 101305),
        (101306, 101307),
    ),
}
FAMILIES = tuple(_LAYOUTS)


class Request(NamedTuple):
    """A prompt as vLLM's runner knows it, and a name for what is in it."""

    name: str
    tokens: list[int]
    features: list[Any]


class Cost(NamedTuple):
    """The median CPU time of a request's positions, in microseconds."""

    model_type: str
    request: Request
    with_plugin: float
    without: float

    @property
    def is_slower(self) -> bool:
        """Whether the plugin makes the request cost more than it may."""
        return self.with_plugin > max(self.without * SLACK, self.without + SLACK_US)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each request; return 1 if the plugin makes any slower, else 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.vllm_requests", description=__doc__)
    parser.add_argument("--vllm", type=Path, required=True, metavar="WHEEL", help="or a folder")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--size", nargs="+", type=int, default=SIZES, help="tokens of a prompt")
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    wheel = Wheel(options.vllm, "vllm")
    print(f"vLLM {wheel.version}; CPU microseconds a request\n")
    print(f"{'family':16}{'request':24}{'tokens':>8}{'plugin':>9}{'vLLM':>9}{'ratio':>7}")
    slower = 0
    for cost in measure(wheel, options.family, options.size, options.repeats):
        ratio = cost.with_plugin / cost.without
        print(
            f"{cost.model_type:16}{cost.request.name:24}{len(cost.request.tokens):8}"
            f"{cost.with_plugin:9.0f}{cost.without:9.0f}{ratio:7.2f}"
            f"{'  slower' if cost.is_slower else ''}",
            flush=True,
        )
        slower += cost.is_slower
    return int(slower > 0)


def measure(
    wheel: Wheel, families: Sequence[str], sizes: Sequence[int], repeats: int
) -> Iterator[Cost]:
    """Yield what each request of each family costs, after a comparison of the answers."""
    feature_classes = load_feature_classes(wheel)
    for model_type in families:
        model = load_model(wheel, model_type)
        own = type(model).get_mrope_input_positions
        ours = replaced(own, CLASSES[type(model).__module__][type(model).__name__])
        for size in sizes:
            for request in requests(model_type, size, feature_classes):
                yield Cost(model_type, request, *_compare(model, ours, own, request, repeats))


def _compare(
    model: Any, ours: Callable[..., Any], own: Callable[..., Any], request: Request, repeats: int
) -> tuple[float, float]:
    arguments = model, request.tokens, request.features
    (positions, delta), (expected, expected_delta) = ours(*arguments), own(*arguments)
    assert torch.equal(positions, expected), request.name
    assert delta == expected_delta, request.name
    pairs: list[tuple[Callable[..., Any], list[float]]] = [(ours, []), (own, [])]
    for _ in range(repeats):
        # In turns: the second of a pair finds the caches warm.
        pairs.reverse()
        for function, taken in pairs:
            start = time.thread_time()
            function(*arguments)
            taken.append(1e6 * (time.thread_time() - start))
    if repeats % 2:
        pairs.reverse()
    return median(pairs[0][1]), median(pairs[1][1])


def requests(model_type: str, size: int, feature_classes: SimpleNamespace) -> Iterator[Request]:
    """Yield requests of `size` tokens, about half of them placeholders."""
    yield _request("text", model_type, size, feature_classes, lambda _: None)
    for count in PICTURES:
        side = _side(size // 2 // count)

        def add_picture(row: Row, side: int = side) -> None:
            row.image(2 * side, 2 * side + 2)

        name = f"{count} picture{'s' * (count > 1)}"
        yield _request(name, model_type, size, feature_classes, *[add_picture] * count)
    spec = _layout(model_type).spec
    shapes = ((1, 4), (1, 16), (1, 64)) if spec.separate_frames else ((1, 4), (1, 16), (8, 4))
    for count, frames in shapes:
        side = _side(size // 2 // count // frames)
        if side * frames * count * (side + 10) > size:
            continue

        def add_video(row: Row, side: int = side, frames: int = frames) -> None:
            row.video(frames * spec.temporal_merge_size, 2 * side, 2 * side + 2, 0.5)

        name = f"{count} video{'s' * (count > 1)} of {frames} frames"
        yield _request(name, model_type, size, feature_classes, *[add_video] * count)


def _request(
    name: str,
    model_type: str,
    size: int,
    feature_classes: SimpleNamespace,
    *items: Callable[[Row], None],
) -> Request:
    row = Row(_layout(model_type))
    for add in items:
        row.text(4)
        add(row)
    row.text(max(4, size - len(row)))
    return Request(name, row.ids, list(_features(row, feature_classes)))


def _side(area: int) -> int:
    return max(1, int(area**0.5))


def _layout(model_type: str) -> Layout:
    _, _, image_marks, video_marks = _LAYOUTS[model_type]
    spec = MRopeSpec.for_model(model_type, convention="vllm")
    return Layout(spec, image_marks, video_marks, timestamp_first=model_type == "qwen3_vl")


def _features(row: Row, classes: SimpleNamespace) -> Iterator[Any]:
    """Describe the items of a row as vLLM's processors do, in vLLM's own objects."""
    spec = row.layout.spec
    runs, videos, images = iter(row.runs), iter(row.videos), iter(row.images)
    for start, stop, kind in runs:
        is_embed, seconds = None, None
        if kind == VIDEO:
            modality, grid = "video", next(videos)
            if spec.separate_frames:
                for _ in range(grid[0] - 1):
                    _, stop, _ = next(runs)
                is_embed = torch.tensor(row.types[start:stop]) == VIDEO
                # Of Qwen3-VL the marker before the first frame belongs to the video.
                if not row.layout.video_marks:
                    start -= 1
                    is_embed = torch.cat((torch.tensor([False]), is_embed))
            elif spec.video_time == "seconds":
                seconds = torch.tensor(row.seconds[0])
        else:
            modality, grid = "image", next(images)
        fields = {f"{modality}_grid_thw": torch.tensor(grid)}
        if seconds is not None:
            fields["second_per_grid_ts"] = seconds
        data = {key: classes.MultiModalFieldElem(value, None) for key, value in fields.items()}
        yield classes.MultiModalFeatureSpec(
            data=classes.MultiModalKwargsItem(data),
            modality=modality,
            identifier=f"{modality} at {start}",
            mm_position=classes.PlaceholderRange(start, stop - start, is_embed),
        )


@cache
def load_feature_classes(wheel: Wheel) -> SimpleNamespace:
    """Return vLLM's classes of features."""
    names = ("PlaceholderRange", "MultiModalFeatureSpec", "MultiModalFieldElem")
    return SimpleNamespace(
        **load(
            wheel,
            "vllm/multimodal/inputs.py",
            *names,
            "MultiModalKwargsItem",
            torch=torch,
            dataclass=dataclass,
            cached_property=cached_property,
            UserDict=_Subscriptable,
            MultiModalFieldElem=None,
        )
    )


class _Subscriptable(UserDict):  # type: ignore[type-arg]
    """A `UserDict` whose type arguments are not looked at."""

    def __class_getitem__(cls, _: Any) -> type:
        return cls


def load_model(wheel: Wheel, model_type: str) -> Any:
    """Return an object of a class that has the methods of vLLM's model which number prompts."""
    module, name, _, _ = _LAYOUTS[model_type]
    home = f"vllm.model_executor.models.{module}"
    member = f"{home.replace('.', '/')}.py"
    import numpy as np

    names = ["get_mrope_input_positions"]
    static = ["_iter_mm_grid_hw", "_get_mrope_input_positions"] if module == "qwen3_vl" else []
    names += static or ["iter_mm_grid_thw"]
    owner = type(name, (), {"__module__": home})
    given = {"torch": torch, "np": np, name: owner}
    for key, method in load(wheel, member, *(f"{name}.{key}" for key in names), **given).items():
        setattr(owner, key, staticmethod(method) if key in static else method)
    # Where the plugin looks for the functions that a model shares with others.
    sys.modules[home] = SimpleNamespace(**{name: owner})  # type: ignore[assignment]
    model = owner()
    model.config = hf_config(model_type)  # type: ignore[attr-defined]
    if model.config.vision_config.tokens_per_second is None:  # type: ignore[attr-defined]
        del model.config.vision_config.tokens_per_second  # type: ignore[attr-defined]
    return model


if __name__ == "__main__":
    sys.exit(main())
