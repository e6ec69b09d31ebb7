"""The host side of the kernels: what they are asked, and how they are launched."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support import (
    assert_same,
    rope_index,
)

from tests.forms.triton.interpreted import SPECS, interpreted
from vecrope import get_rope_index
from vecrope.forms.select import _why_no_kernels_for
from vecrope.forms.triton import launch as fused
from vecrope.inputs import Inputs
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
    ("device", "num_tokens", "takes"),
    [
        ("cuda", 1, True),
        ("xpu", 1, True),
        ("cpu", 1, False),
        ("cuda", 0, False),
        ("cuda", 2**30, False),
    ],
)
def test_which_ids_the_kernels_take(device, num_tokens, takes):
    of_device = {"is_cpu": device == "cpu", "device": SimpleNamespace(type=device)}
    ids = SimpleNamespace(numel=lambda: num_tokens, **of_device)
    assert (_why_no_kernels_for(ids) is None) is takes


def test_positions_have_the_dtype_of_the_upstream(monkeypatch):
    interpreted(monkeypatch)
    ids = torch.tensor([[5, 6, 7, 5, 6]], dtype=torch.int32)
    for name, dtype in (("sglang", torch.int32), ("vllm", torch.int64)):
        position_ids, _ = get_rope_index(ids, SPECS[name], form="kernels")
        assert position_ids.dtype == dtype
        assert torch.equal(position_ids.flatten(1), torch.arange(5).expand(3, -1))


@pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])
def test_a_mask_that_the_family_ignores_is_checked_and_no_more(validate, monkeypatch):
    interpreted(monkeypatch)
    spec = replace(SPECS["sglang"], mask_rule="ignore")
    ids, mask = torch.tensor([[5, 6, 7]]), torch.tensor([[0, 1, 1]])
    options = {"form": "kernels", "validate": validate}
    position_ids, _ = get_rope_index(ids, spec, attention_mask=mask, **options)
    assert position_ids[0].tolist() == [[0, 1, 2]]
    if validate:
        with pytest.raises(ValueError, match="attention_mask must hold 0 or 1, got 3"):
            get_rope_index(ids, spec, attention_mask=mask * 3, **options)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([1, 5], "cu_seqlens must run from 0"),
        ([0, 4], "cu_seqlens must run from 0"),
        ([0, 3, 2, 5], "cu_seqlens must not decrease"),
    ],
)
def test_bounds_that_are_none(bounds, message, monkeypatch):
    interpreted(monkeypatch)
    ids, bounds = torch.tensor([5, 6, 7, 5, 6]), torch.tensor(bounds)
    with pytest.raises(ValueError, match=message):
        get_rope_index(ids, SPECS["sglang"], cu_seqlens=bounds, form="kernels")
    get_rope_index(ids, SPECS["sglang"], cu_seqlens=bounds, form="kernels", validate=False)


def test_what_is_compiled_is_launched_again_without_a_search(monkeypatch):
    searched, launched = [], []

    class Compiled:
        def __getitem__(self, grid):
            return lambda *_: launched.append(grid)

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_: searched.append(grid) or Compiled()

    monkeypatch.setattr(fused, "_KERNELS", (Kernel(), Kernel(), Kernel()))
    launch = fused.Launcher(SPECS["transformers"], torch.device("cpu"))
    ids = torch.ones((1, 20), dtype=torch.int64)
    buffers = fused.make_buffers((1, 20), 1, 0, torch.int64, ids)
    for dtype in (torch.int64, torch.int64, torch.int32):
        launch(Inputs(ids.to(dtype)), buffers)
    assert searched == [(3, 1, 1), (4, 1, 1), (3, 1, 1)] * 2
    assert launched == searched[:3]


def test_arguments_on_another_device_are_brought_over():
    launch = fused.Launcher(SPECS["sglang"], torch.device("meta"))
    ready = launch._ready(torch.ones((4, 2), dtype=torch.bool).t())
    assert (ready.device.type, ready.dtype, ready.is_contiguous()) == ("meta", torch.bool, True)


def test_the_kernels_take_a_bool_for_a_number():
    ids = torch.tensor([[5, 6, 7]])
    kept = torch.tensor([[False, True, True]])
    inputs = Inputs(ids, attention_mask=kept)
    answer = fused.fused_rope_index(inputs, SPECS["sglang"], validate=True)
    assert_same(answer, get_rope_index(ids, SPECS["sglang"], attention_mask=kept))
