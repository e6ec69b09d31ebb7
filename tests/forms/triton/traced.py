"""Traces calls in a process of its own, where Triton does not interpret, and prints each graph.

No device is needed: the graph is what a compiler is given, before it compiles a kernel.
"""

import json
import sys
from itertools import product
from types import SimpleNamespace

import torch
import triton
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import BackendCompilerFailed
from triton.backends.compiler import GPUTarget

from vecrope import MRopeSpec, get_rope_index
from vecrope.forms import select

RULES = [
    ("glm4v", "transformers"),  # placeholders by counted markers
    ("glm4v", "sglang"),  # by the last marker
    ("qwen2_5_vl", "transformers"),  # by their ids; seconds
    ("qwen2_5_vl", "sglang"),  # by the marker before them
]


class TracedError(Exception):
    """Raised in place of compiling."""


def trace(spec, *, packed, validate):
    """Return the tensors that each kernel of the graph writes to, and how many it returns."""
    kernels, outputs = [], []

    def compiler(graph, _):
        for node in graph.graph.nodes:
            if "triton_kernel_wrapper" in str(node.target):
                kernels.append(sorted(node.kwargs["tensors_to_clone"]))
            elif node.op == "output":
                outputs.extend(node.args[0])
        raise TracedError

    torch._dynamo.reset()
    function = torch.compile(
        get_rope_index, fullgraph=True, dynamic=True, backend=aot_autograd(fw_compiler=compiler)
    )
    ids = torch.ones((2, 700), dtype=torch.int64)
    arguments = {
        "attention_mask": torch.ones_like(ids),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
        "video_grid_thw": torch.tensor([[2, 4, 4]] * 3),
    }
    if packed:
        ids = ids.view(-1)
        arguments |= {"attention_mask": None, "cu_seqlens": torch.tensor([0, 3, 1400])}
    if spec.video_time == "seconds":
        arguments["second_per_grid_ts"] = torch.ones(3)
    try:
        function(ids, spec, validate=validate, **arguments)
    except BackendCompilerFailed as error:
        if not isinstance(error.inner_exception, TracedError):
            raise
    return {"kernels": kernels, "outputs": len(outputs)}


if __name__ == "__main__":
    select._why_no_kernels_for = lambda _: None
    target = GPUTarget("cuda", 90, 32)
    driver = SimpleNamespace(get_current_target=lambda: target, get_current_device=lambda: 0)
    triton.runtime.driver.set_active(driver)
    for (model_type, convention), packed, validate in product(RULES, *[[False, True]] * 2):
        spec = MRopeSpec.for_model(model_type, convention=convention)
        graph = trace(spec, packed=packed, validate=validate)
        case = {"marker_rule": spec.marker_rule, "packed": packed, "validate": validate}
        sys.stdout.write(json.dumps(case | graph) + "\n")
