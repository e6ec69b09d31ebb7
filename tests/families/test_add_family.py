"""A family that does not exist, added as the README of `vecrope.families` says."""

import re
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from support import rope_index

from vecrope import MRopeSpec, get_rope_index
from vecrope.families import registry
from vecrope.testing import Prompt, assert_matches, conversations, token_soup

README = (Path(registry.__file__).parent / "README.md").read_text(encoding="utf-8")
CONFIG = {
    "model_type": "invented_vl",
    "image_token_id": 5,
    "video_token_id": 6,
    "vision_config": {"spatial_merge_size": 3},
}


@pytest.fixture
def invented(monkeypatch):
    """Run the file that the README shows, and register what it makes."""
    (code,) = re.findall(r"( *from vecrope.families.conventions.*?\n)   ```", README, re.DOTALL)
    file = {}
    exec(textwrap.dedent(code), file)
    assert list(file["FAMILIES"]) == ["invented_vl"]
    monkeypatch.setattr(registry, "FAMILIES", registry.FAMILIES | file["FAMILIES"])


def built(convention, **rules):
    return MRopeSpec(
        model_type="invented_vl",
        convention=convention,
        image_token_id=9,
        video_token_id=10,
        spatial_merge_size=2,
        marker_rule="none",
        separate_frames=True,
        padding_value=0,
        delta_length="valid",
        **rules,
    )


SPECS = {
    "transformers": built("transformers", span_rule="hw"),
    "vllm": built("vllm", span_rule="thw", multi_frame_images=False, position_dtype="int64"),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def upstream_rope_index(input_ids, video_grid_thw, image_grid_thw, attention_mask, **_):
    """Stand for the function of an upstream: token by token, by the ids."""
    items = {9: image_grid_thw, 10: video_grid_thw}
    frames = {
        token: iter(
            [
                (1, h, w) if token == 10 else (t, h, w)
                for t, h, w in ([] if grids is None else grids.tolist())
                for _ in range(t if token == 10 else 1)
            ]
        )
        for token, grids in items.items()
    }
    position_ids = torch.zeros(3, *input_ids.shape, dtype=torch.int64)
    rope_deltas = torch.zeros(len(input_ids), 1, dtype=torch.int64)
    for row, tokens in enumerate(input_ids.tolist()):
        at, position, largest = 0, 0, -1
        kept = range(len(tokens))
        if attention_mask is not None:
            kept = attention_mask[row].nonzero().flatten().tolist()
        while at < len(kept):
            t = h = w = 1
            if tokens[kept[at]] in frames:
                t, h, w = next(frames[tokens[kept[at]]])
                h, w = h // 2, w // 2
            for place in range(t * h * w):
                new = place // (h * w), place // w % h, place % w
                offsets = torch.tensor([position + offset for offset in new])
                position_ids[:, row, kept[at + place]] = offsets
                largest = max(largest, int(offsets.max()))
            at += t * h * w
            position += max(h, w)
        rope_deltas[row] = largest + 1 - len(kept)
    return position_ids, rope_deltas


@pytest.mark.usefixtures("invented")
@each_spec
def test_the_entry_is_the_spec_that_was_built(spec):
    assert MRopeSpec.for_model("invented_vl", convention=spec.convention) == spec
    read = MRopeSpec.from_config(CONFIG, convention=spec.convention)
    assert (read.image_token_id, read.video_token_id, read.spatial_merge_size) == (5, 6, 3)
    with pytest.raises(ValueError, match="convention must be 'transformers' or 'vllm'"):
        MRopeSpec.for_model("invented_vl", convention="sglang")


def test_nobody_knows_it_without_the_entry():
    with pytest.raises(ValueError, match="'invented_vl' is not a family that vecrope knows"):
        MRopeSpec.for_model("invented_vl", convention="transformers")


@each_spec
@pytest.mark.parametrize("strategy", [conversations, token_soup], ids=lambda s: s.__name__)
def test_it_is_numbered_as_by_its_upstream(spec, strategy):
    @given(strategy(spec))
    def check(prompt):
        assert_matches(partial(get_rope_index, spec=spec), prompt)
        if spec.span_rule == "hw":
            assert_matches(upstream_rope_index, prompt)

    check()


@pytest.mark.usefixtures("invented")
@each_spec
def test_a_prompt_of_it_is_printed_so_that_it_can_be_pasted(spec):
    prompt = Prompt.from_symbols(spec, ["t<VV>"], video_grid_thw=[[1, 2, 4]])
    again = eval(repr(prompt), {"Prompt": Prompt, "MRopeSpec": MRopeSpec})
    assert again.spec == spec
    assert torch.equal(rope_index(again)[0], rope_index(prompt)[0])
