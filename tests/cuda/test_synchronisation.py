"""On a CUDA device: no synchronisation, graphs."""

import pytest
import torch
from hypothesis import given
from support import (
    assert_same,
    count_waits,
    enlarged,
    fitting,
    no_synchronisation,
)

from tests.cuda.calls import a_prompt, each_convention, few_examples, on_cuda
from vecrope import get_rope_index
from vecrope.testing import Prompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

# Room for every prompt that `fitting` draws.
ROOM = {"rows": 4, "tokens": 1024, "grids": 192}

# No synchronisation


@pytest.mark.parametrize(
    "planted",
    [
        lambda ids: ids[0, 0].item(),
        lambda ids: ids.nonzero(),
        lambda ids: torch.repeat_interleave(ids[0]),
        lambda ids: ids.cpu(),
    ],
    ids=["item", "nonzero", "repeat_interleave", "cpu"],
)
def test_the_probe_catches_what_is_planted(planted):
    ids = a_prompt().input_ids.cuda()
    with no_synchronisation(), pytest.raises(RuntimeError, match="synchroniz"):
        planted(ids)


@each_convention
@pytest.mark.parametrize("form", [None, "static"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(
    "names",
    [
        [],
        ["attention_mask"],
        ["image_grid_thw", "video_grid_thw"],
        ["attention_mask", "mm_token_type_ids", "image_grid_thw", "video_grid_thw"],
    ],
    ids=["ids", "mask", "grids", "all"],
)
def test_no_synchronisation(names, packed, form, spec):
    prompt = enlarged(a_prompt(spec), rows=4, tokens=128, grids=5)
    arguments = {name: value for name, value in prompt.arguments().items() if name in names}
    arguments["input_ids"] = prompt.input_ids
    if "image_grid_thw" not in names:
        arguments["input_ids"] = torch.full_like(prompt.input_ids, 11)
    if packed:
        arguments = {
            name: value if "grid" in name else value.flatten() for name, value in arguments.items()
        }
        arguments["cu_seqlens"] = torch.arange(5) * 128
    expected = get_rope_index(spec=spec, **arguments)

    arguments = on_cuda(arguments)
    options = {"validate": False, "form": form}
    # The first call may load kernels, which synchronises.
    assert_same(get_rope_index(spec=spec, **arguments, **options), expected)
    with no_synchronisation():
        answer = get_rope_index(spec=spec, **arguments, **options)
    assert_same(answer, expected)


def test_checks_synchronise_once():
    prompt = a_prompt()
    arguments = on_cuda(prompt.arguments())
    get_rope_index(spec=prompt.spec, **arguments)
    answer, number = count_waits(lambda: get_rope_index(spec=prompt.spec, **arguments))
    assert number == 1
    assert_same(answer, prompt.expected())


# CUDA graphs


def captured(spec, *, by_types, form):
    """Capture one call; the function that is returned replays it on other inputs."""
    blank = enlarged(Prompt.from_symbols(spec, ["t"]), **ROOM).arguments()
    buffers = on_cuda(blank)
    options = {"validate": False, "form": form}
    if not by_types:
        del buffers["mm_token_type_ids"]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            get_rope_index(spec=spec, **buffers, **options)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = get_rope_index(spec=spec, **buffers, **options)

    def replay(prompt):
        for name, buffer in buffers.items():
            buffer.copy_(prompt.arguments()[name])
        graph.replay()
        return [output.cpu() for output in outputs]

    return replay


@each_convention
@pytest.mark.parametrize("by_types", [False, True], ids=["ids", "types"])
@pytest.mark.parametrize("form", [None, "static"])
def test_a_graph_captured_once_answers_changed_inputs(form, by_types, spec):
    replay = captured(spec, by_types=by_types, form=form)

    @few_examples
    @given(fitting(spec))
    def check(prompt):
        prompt = enlarged(prompt, **ROOM)
        assert_same(replay(prompt), prompt.expected())

    check()
