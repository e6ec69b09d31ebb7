"""What the tests of families with a rule of their own share."""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import assert_same, grid_list, grid_tensor, kept

from bench.wheels import Wheel, load
from vecrope import MRopeSpec, get_rope_index
from vecrope.families.rules import Bailing, GlmImage, Hunyuan

TEXT, IMAGE, VIDEO, START, VIDEO_START, END = 0, 9, 10, 7, 8, 6
SYMBOLS = {"t": TEXT, "I": IMAGE, "V": VIDEO, "<": START, ">": END, "[": VIDEO_START}
_BAILING = {
    "convention": "sglang",
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "video_start_token_id": VIDEO_START,
}
_GLM = {"image_token_id": IMAGE, "own_rule": GlmImage(START, END)}


def hunyuan_spec(num_axes):
    return MRopeSpec.for_model(
        "hunyuan_vl",
        convention="transformers",
        image_token_id=IMAGE,
        own_rule=Hunyuan(num_axes),
    )


SPECS = {
    "hunyuan_vl of 3 axes": hunyuan_spec(3),
    "hunyuan_vl of 4 axes": hunyuan_spec(4),
    "hunyuan_vl of 5 axes": hunyuan_spec(5),
    "glm_image, transformers": MRopeSpec.for_model("glm_image", convention="transformers", **_GLM),
    "glm_image, sglang": MRopeSpec.for_model("glm_image", convention="sglang", **_GLM),
    "isaac": MRopeSpec.for_model(
        "isaac", convention="vllm", image_token_id=IMAGE, spatial_merge_size=2
    ),
    "bailing": MRopeSpec.for_model("bailing_moe_v3_vl", **_BAILING),
    "bailing with timestamps": MRopeSpec.for_model(
        "bailing_moe_v3_vl", **_BAILING, separate_frames=True
    ),
}
SHORT_CONTEXT = MRopeSpec.for_model("bailing_moe_v3_vl", **_BAILING, own_rule=Bailing(-1, 12))
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def minicpm_spec(convention, downsample_mode="16x"):
    """Return a spec of `minicpmv4_7` with small ids, for that family has no defaults."""
    markers = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
    config = {
        "model_type": "minicpmv4_7",
        "image_token_id": 20,
        "video_token_id": 21,
        "downsample_mode": downsample_mode,
        "uses_mrope_canvas": True,
        **dict(zip(markers, range(10, 15), strict=True)),
    }
    return MRopeSpec.from_config(config, convention=convention)


def ids_of(*rows):
    return torch.tensor([[SYMBOLS[symbol] for symbol in row] for row in rows], dtype=torch.int64)


def answer(prompt, function=get_rope_index, **changes):
    return function(spec=prompt.spec, **{**prompt.arguments(), **changes})


def assert_refused(spec, match, rows, error=ValueError, **arguments):
    """Assert that a call of which the message says why is refused."""
    tensors = {
        name: torch.tensor(value) if isinstance(value, list) else value
        for name, value in arguments.items()
    }
    with pytest.raises(error, match=match):
        get_rope_index(ids_of(*rows), spec, **tensors)


def assert_positions(spec, rows, position_ids, rope_deltas, **arguments):
    """Assert the (A, B, T) positions and the (B, 1) deltas of rows of symbols."""
    tensors = {name: torch.tensor(value) for name, value in arguments.items()}
    got = get_rope_index(ids_of(*rows), spec, **tensors)
    assert_same(got, (torch.tensor(position_ids), torch.tensor(rope_deltas)))


def positions_of_blocks(blocks):
    """Return the positions of `vecrope.own_rules.layout.Block`s, axis by axis."""
    tokens = [
        [
            base + (0, *divmod(place, width), place)[step]
            for base, step in zip(bases, steps, strict=True)
        ]
        for size, *bases, width, before, steps in blocks
        for place in range(before, before + size)
    ]
    return [list(axis) for axis in zip(*tokens, strict=True)]


def single_rows(prompt):
    """Yield the rows as prompts of their own, with the grids that they use."""
    images, videos = grid_list(prompt.image_grid_thw), grid_list(prompt.video_grid_thw)
    pending = {IMAGE: iter(images), VIDEO: iter(videos)}
    merge = prompt.spec.spatial_merge_size
    lines = prompt.spec.model_type == "hunyuan_vl"
    mask, per_row = prompt.attention_mask, prompt.images_per_sample
    done = 0
    for row, ids in enumerate(prompt.input_ids.tolist()):
        own = {IMAGE: [], VIDEO: []}
        if per_row is not None:
            own[IMAGE] = images[done : done + per_row[row]]
            done += per_row[row]
        elif lines:
            starts = [a != IMAGE == b for a, b in zip([TEXT, *ids], ids, strict=False)]
            own[IMAGE] = [next(pending[IMAGE]) for _ in range(sum(starts))]
        elif isinstance(prompt.spec.own_rule, GlmImage):
            own[IMAGE] = images
        else:
            for kind, taken in own.items():
                tokens = ids.count(kind)
                while tokens > 0:
                    t, h, w = next(pending[kind])
                    taken.append((t, h, w))
                    tokens -= t * (h // merge) * (w // merge)
        one = slice(row, row + 1)
        yield replace(
            prompt,
            input_ids=prompt.input_ids[one],
            mm_token_type_ids=prompt.mm_token_type_ids[one],
            image_grid_thw=None if prompt.image_grid_thw is None else grid_tensor(own[IMAGE]),
            video_grid_thw=None if prompt.video_grid_thw is None else grid_tensor(own[VIDEO]),
            attention_mask=None if mask is None else mask[one],
            images_per_sample=None if per_row is None else per_row[one],
        )


def unmasked(prompt):
    """Return the ids of a prompt of one row, less those that are masked."""
    return prompt.input_ids[kept(prompt)].tolist()


SGLANG_WHEEL = os.environ.get("VECROPE_SGLANG_WHEEL")
VLLM_WHEEL = os.environ.get("VECROPE_VLLM_WHEEL")


def needs_sglang(test):
    reason = "VECROPE_SGLANG_WHEEL does not name a wheel of SGLang"
    return pytest.mark.wheels(pytest.mark.skipif(SGLANG_WHEEL is None, reason=reason)(test))


def needs_vllm(test):
    reason = "VECROPE_VLLM_WHEEL does not name a wheel of vLLM"
    return pytest.mark.wheels(pytest.mark.skipif(VLLM_WHEEL is None, reason=reason)(test))


@cache
def from_sglang(member, *names, **namespace):
    wheel = Wheel(Path(SGLANG_WHEEL), "sglang")
    return SimpleNamespace(**load(wheel, f"sglang/srt/{member}", *names, **namespace))


@cache
def from_vllm(member, *names, **namespace):
    wheel = Wheel(Path(VLLM_WHEEL), "vllm")
    path = f"vllm/model_executor/models/{member}"
    return SimpleNamespace(**load(wheel, path, *names, **namespace))


def vllm_features(prompt):
    """Return the features of a prompt of one row with images alone, where its tokens are."""
    merge = prompt.spec.spatial_merge_size
    features, ids, at = [], unmasked(prompt), 0
    for t, h, w in grid_list(prompt.image_grid_thw):
        at = ids.index(IMAGE, at)
        data = {"image_grid_thw": SimpleNamespace(data=torch.tensor([t, h, w]))}
        position = SimpleNamespace(offset=at)
        features.append(SimpleNamespace(modality="image", mm_position=position, data=data))
        at += (h // merge) * (w // merge)
    return features


def spread(prompt, positions, padding_value=0):
    """Return (3, 1, T) positions of a row, of which (3, n) are those of its unmasked tokens."""
    position_ids = torch.full((3, *prompt.input_ids.shape), padding_value)
    position_ids[:, kept(prompt)] = positions
    return position_ids
