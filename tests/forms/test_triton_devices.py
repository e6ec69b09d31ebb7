"""Which devices Triton compiles for: told by their type, with no look at CUDA."""

import pytest
import torch

from vecrope.forms import select


@pytest.mark.parametrize(
    ("device", "installed", "takes"),
    [("cuda", True, True), ("xpu", True, True), ("cpu", True, False), ("cuda", False, False)],
)
def test_triton_takes_devices_by_their_type(device, installed, takes, monkeypatch):
    monkeypatch.setattr(select, "HAS_TRITON", installed)
    assert select.triton_takes(torch.device(device)) is takes
