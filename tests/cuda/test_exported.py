"""On a CUDA device: an exported program is the static form, read from a file and compiled, too.

To compile one ahead of time takes a minute and more.
"""

import pytest
import torch
from hypothesis import given
from support import assert_same, fitting

from tests.cuda.calls import few_examples
from tests.forms.programs import ahead_of_time, export, export_arguments
from tests.forms.prompts import SGLANG

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # the compiler's own warnings are not ours
]


def read_back(program, folder):
    torch.export.save(program, f"{folder}/program.pt2")
    return torch.export.load(f"{folder}/program.pt2").module()


@pytest.mark.parametrize("load", [read_back, pytest.param(ahead_of_time, marks=pytest.mark.slow)])
def test_an_exported_program_equals_the_loop(load, tmp_path):
    exported = export(SGLANG, "cuda", validate=False)
    targets = [str(node.target) for node in exported.graph.nodes]
    assert not any("vecrope" in target for target in targets)
    program = load(exported, tmp_path)

    @few_examples
    @given(fitting(SGLANG))
    def check(prompt):
        answer = program(*export_arguments(prompt, "cuda"))
        assert_same([tensor.cpu() for tensor in answer], prompt.expected())

    check()
