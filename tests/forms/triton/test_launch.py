"""The host side of the kernels: what they are asked, and how they are launched."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support import (
    assert_same,
    rope_index,
    spec_of,
)

from tests.forms.triton.interpreted import SPECS, interpreted
from vecrope import get_rope_index
from vecrope.forms.select import _why_no_kernels_for
from vecrope.forms.triton import constants
from vecrope.forms.triton import launch as fused
from vecrope.testing import Prompt


@pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])
def test_get_rope_index_takes_the_kernels(validate, monkeypatch):
    interpreted(monkeypatch)
    prompt = Prompt.from_symbols(
        SPECS["sglang"],
        ["tt<II>t", "tt[<II>"],
        mask=["0111111", "1" * 7],
        image_grid_thw=[[1, 2, 4]],
        video_grid_thw=[[1, 4, 2]],
    )
    assert_same(rope_index(prompt, validate=validate, form="kernels"), prompt.expected())
    misfit = replace(prompt, image_grid_thw=None)
    if validate:
        with pytest.raises(ValueError, match="row 0 holds image tokens beyond the last grid"):
            rope_index(misfit, form="kernels")
    else:
        position_ids, _ = rope_index(misfit, validate=False, form="kernels")
        assert position_ids.shape == (3, 2, 7)


@pytest.mark.parametrize(
    ("on_cuda", "num_tokens", "takes"),
    [(True, 1, True), (False, 1, False), (True, 0, False), (True, 2**30, False)],
)
def test_which_ids_the_kernels_take(on_cuda, num_tokens, takes):
    device = SimpleNamespace(type="cuda" if on_cuda else "cpu")
    ids = SimpleNamespace(is_cuda=on_cuda, numel=lambda: num_tokens, device=device)
    assert (_why_no_kernels_for(ids) is None) is takes


@pytest.mark.parametrize("changes", [{}, {"cu_seqlens": torch.tensor([0, 5])}])
def test_what_the_kernels_are_asked(changes, monkeypatch):
    """A plain batch of a family that they know, and nothing else."""
    interpreted(monkeypatch)
    asked = []
    kernels_answer = fused.fused_rope_index
    monkeypatch.setattr(
        fused, "fused_rope_index", lambda *a, **k: asked.append(a) or kernels_answer(*a, **k)
    )
    for spec, takes in (
        (SPECS["sglang"], not changes),
        (SPECS["vllm"], not changes),
        (spec_of("qwen3_vl", "transformers"), False),
    ):
        ids = torch.tensor([[5, 6, 7, 5, 6]], dtype=torch.int32)
        ids = ids[0] if "cu_seqlens" in changes else ids
        asked.clear()
        if not takes:
            with pytest.raises(ValueError, match="form 'kernels' cannot take this call"):
                get_rope_index(ids, spec, validate=False, form="kernels", **changes)
            continue
        position_ids, _ = get_rope_index(ids, spec, validate=False, form="kernels", **changes)
        assert asked
        assert position_ids.dtype == (torch.int64 if spec.convention == "vllm" else torch.int32)
        assert torch.equal(position_ids.flatten(1), torch.arange(5).expand(3, -1))


def test_a_mask_that_the_family_ignores_is_not_for_the_kernels(monkeypatch):
    interpreted(monkeypatch)
    monkeypatch.setattr(fused, "fused_rope_index", None)
    spec = replace(SPECS["sglang"], mask_rule="ignore")
    ids, mask = torch.tensor([[5, 6, 7]]), torch.tensor([[0, 1, 1]])
    with pytest.raises(ValueError, match="sglang ignores attention_mask"):
        get_rope_index(ids, spec, attention_mask=mask, form="kernels")
    position_ids, _ = get_rope_index(ids, spec, attention_mask=mask)
    assert position_ids[0].tolist() == [[0, 1, 2]]


def test_what_is_compiled_is_launched_again_without_a_search(monkeypatch):
    searched, launched = [], []

    class Compiled:
        def __getitem__(self, grid):
            return lambda *_: launched.append(grid)

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_: searched.append(grid) or Compiled()

    monkeypatch.setattr(fused, "_KERNELS", (Kernel(), Kernel(), Kernel()))
    monkeypatch.setattr(constants, "COMPILED_TAKE_CONSTANTS", True)
    launch = fused.Launcher(SPECS["transformers"], torch.device("cpu"))
    ids = torch.ones((1, 20), dtype=torch.int64)
    buffers = fused.make_buffers((1, 20), 0, torch.int64, ids.device)
    for dtype in (torch.int64, torch.int64, torch.int32):
        launch(ids.to(dtype), None, None, None, None, buffers)
    assert searched == [(3, 1, 1), (4, 1, 1), (3, 1, 1)] * 2
    assert launched == searched[:3]


def test_arguments_on_another_device_are_brought_over():
    launch = fused.Launcher(SPECS["sglang"], torch.device("meta"))
    ready = launch._ready(torch.ones((4, 2), dtype=torch.bool).t())
    assert (ready.device.type, ready.dtype, ready.is_contiguous()) == ("meta", torch.uint8, True)


def test_the_kernels_take_a_bool_for_a_number():
    ids = torch.tensor([[5, 6, 7]])
    kept = torch.tensor([[False, True, True]])
    answer = fused.fused_rope_index(ids, SPECS["sglang"], None, None, kept, None, validate=True)
    assert_same(answer, get_rope_index(ids, SPECS["sglang"], attention_mask=kept))
