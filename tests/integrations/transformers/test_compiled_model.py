"""A model compiled around its patched `get_rope_index`."""

from unittest.mock import patch

import pytest
import torch
from support import no_synchronisation
from tiny_models import inputs_of, tiny_model

from vecrope.integrations.transformers import patched

_NAMES = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")


class TextModel(torch.nn.Module):
    """The text model on positions of its own tokens, as the whole model calls it.

    The vision tower of transformers 5.23 reads values, and breaks graphs by itself.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        position_ids, _ = self.model.get_rope_index(**inputs)
        embeddings = self.model.get_input_embeddings()(inputs["input_ids"])
        return self.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=inputs["attention_mask"],
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state


def arguments(device="cpu"):
    inputs = inputs_of("qwen2_5_vl", "both")
    named = {name: inputs[name].to(device) for name in _NAMES}
    return {**named, "second_per_grid_ts": inputs["second_per_grid_ts"].to(device)}


@pytest.fixture
def model():
    torch._dynamo.reset()
    # Model classes are patched as one: what a test compiles must not be seen by another.
    with torch.no_grad(), patched(tiny_model("qwen2_5_vl").model, validate=False) as core:
        yield TextModel(core)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")  # the compiler's and the interpreter's own warnings
@pytest.mark.parametrize("form", ["static", "kernels"])
def test_no_graph_breaks(form, model):
    targets = []

    def backend(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    inputs = arguments()
    expected = model(**inputs)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    if form == "kernels":
        pytest.importorskip("triton", reason="needs Triton")
        with patch("vecrope.forms.select._why_no_kernels_for", lambda _: None):
            got = compiled(**inputs)
    else:
        got = compiled(**inputs)
    assert torch.equal(got, expected)
    assert ("vecrope.rope_index" in targets) is (form == "kernels")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore")
def test_it_is_captured_and_nothing_waits(model):
    model.cuda()
    try:
        inputs = arguments("cuda")
        expected = model(**inputs)
        compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
        for _ in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            got = compiled(**inputs).clone()
        with no_synchronisation():
            torch.compiler.cudagraph_mark_step_begin()
            got = compiled(**inputs).clone()
        assert torch.allclose(got, expected, atol=1e-5)
        counters = torch._dynamo.utils.counters["inductor"]
        assert not counters["cudagraph_skips"]
    finally:
        model.cpu()
