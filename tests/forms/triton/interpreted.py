"""The Triton kernels in Triton's interpreter."""

from dataclasses import replace

import pytest
import torch
from support import (
    CONVENTIONS,
    spec_of,
)

pytest.importorskip("triton", reason="needs Triton")
if torch.cuda.is_available():
    pytest.skip("the kernels run on the GPU here, see tests/cuda", allow_module_level=True)

SPECS = {convention: spec_of("glm4v", convention) for convention in (*CONVENTIONS, "vllm")}
SPECS["mixed"] = replace(SPECS["sglang"], span_rule="hw", spatial_merge_size=3, padding_value=-7)


def interpreted(monkeypatch):
    """Let the kernels take ids on a CPU, where Triton interprets them."""
    monkeypatch.setattr("vecrope.forms.select._why_no_kernels_for", lambda _: None)
