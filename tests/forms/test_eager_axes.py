"""The eager form where it writes each axis on its own, so that torch's threads are not started."""

import pytest
import torch
from support import assert_same, spec_of

from vecrope import get_rope_index
from vecrope.forms.eager import write

SPEC = spec_of("qwen2_5_vl", "transformers")


@pytest.mark.parametrize("seq_len", [write._GRAIN // 6 - 1, 6000, write._GRAIN // 2])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_positions_do_not_depend_on_the_number_of_threads(seq_len, dtype):
    rng = torch.Generator().manual_seed(0)
    ids = torch.full((2, seq_len), 7, dtype=dtype)
    ids[:, 51:2051] = SPEC.image_token_id
    mask = (torch.rand((2, seq_len), generator=rng) < 0.9).int()
    mask[:, 50:2051] = 1
    arguments = {"image_grid_thw": torch.tensor([[1, 80, 100]] * 2), "attention_mask": mask}
    before = torch.get_num_threads()
    try:
        answers = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            answers.append(get_rope_index(ids, SPEC, form="eager", **arguments))
    finally:
        torch.set_num_threads(before)
    assert_same(*answers)
    assert_same(answers[1], get_rope_index(ids, SPEC, form="static", **arguments))
