"""Which devices the kernels take: told by their type, with no look at CUDA."""

from types import SimpleNamespace

import pytest
from support import spec_of

from vecrope.forms import select
from vecrope.inputs import Inputs


@pytest.mark.parametrize(
    ("device", "installed", "takes"),
    [("cuda", True, True), ("xpu", True, True), ("cpu", True, False), ("cuda", False, False)],
)
def test_kernels_take_devices_by_their_type(device, installed, takes, monkeypatch):
    monkeypatch.setattr(select, "HAS_TRITON", installed)
    ids = SimpleNamespace(
        is_cpu=device == "cpu", numel=lambda: 3, device=SimpleNamespace(type=device)
    )
    choice = select.explain_choice(Inputs(ids), spec_of("glm4v", "sglang"), form=None)
    assert (choice.form == "kernels") is takes
