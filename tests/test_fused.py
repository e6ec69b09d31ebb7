"""The Triton kernels, in Triton's interpreter: the same arithmetic, on a CPU."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CONVENTIONS, assert_same, enlarged, fitting, misfitting, spec_of

from vecrope.testing import Prompt, Refusal

pytest.importorskip("triton", reason="needs Triton")
if torch.cuda.is_available():
    pytest.skip("the kernels run on the GPU here, see test_cuda", allow_module_level=True)

from vecrope import fused, kernels

few_examples = settings(max_examples=15, deadline=None)
SPECS = {convention: spec_of("glm4v", convention) for convention in CONVENTIONS}
SPECS["mixed"] = replace(SPECS["sglang"], span_rule="hw", spatial_merge_size=3, padding_value=-7)
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    # So that a row of a few tokens has several blocks, and these several chunks.
    monkeypatch.setattr(kernels, "BLOCK", 8)
    monkeypatch.setattr(kernels, "CHUNK", 4)


def run(prompt, *, by_types=False, sizes=None):
    buffers = fused.make_buffers(
        tuple(prompt.input_ids.shape),
        sum(
            len(grids)
            for grids in (prompt.image_grid_thw, prompt.video_grid_thw)
            if grids is not None
        ),
        prompt.input_ids.dtype,
        prompt.input_ids.device,
    )
    for buffer in buffers:
        buffer.fill_(123)
    fused.launch(
        prompt.input_ids,
        prompt.spec,
        prompt.image_grid_thw,
        prompt.video_grid_thw,
        prompt.attention_mask,
        prompt.mm_token_type_ids if by_types else None,
        buffers,
        sizes,
    )
    return buffers


@each_spec
@pytest.mark.parametrize("by_types", [False, True], ids=["ids", "types"])
def test_the_kernels_equal_the_loop(by_types, spec):
    @few_examples
    @given(fitting(spec))
    def check(prompt):
        buffers = run(prompt, by_types=by_types)
        assert_same((buffers.position_ids, buffers.rope_deltas), prompt.expected())
        assert not buffers.faults.any()

    check()


@each_spec
def test_the_kernels_notice_what_the_loop_refuses(spec):
    @few_examples
    @given(misfitting(spec))
    def check(prompt):
        buffers = run(prompt)
        try:
            expected = prompt.expected()
        except Refusal:
            assert buffers.faults.any()
        else:
            assert not buffers.faults.any()
            assert_same((buffers.position_ids, buffers.rope_deltas), expected)

    check()


@pytest.mark.parametrize(
    ("rows", "grids", "fault"),
    [
        pytest.param(["ItI"], {"image_grid_thw": [[1, 2, 4]]}, 0, id="interrupted"),
        pytest.param(["I", "I"], {"image_grid_thw": [[1, 2, 4]]}, 0, id="over two rows"),
        pytest.param(["t"], {"image_grid_thw": [[1, -2, 2]]}, 1, id="negative"),
        pytest.param(["t"], {"image_grid_thw": [[0, 2, 2]]}, 1, id="zero in part"),
        pytest.param(["I"], {"image_grid_thw": [[1, 3, 2]]}, 1, id="indivisible"),
        pytest.param(["t"], {"video_grid_thw": [[2**31, 2**31, 2**31]]}, 1, id="too large"),
        pytest.param(["t"], {"image_grid_thw": [[2**20, 64, 64]] * 3}, 1, id="too large in sum"),
        pytest.param(["I"], {}, 2, id="no grid"),
        pytest.param(["[It"], {"image_grid_thw": [[1, 2, 2]]}, 2, id="the other kind"),
        pytest.param(["It"], {"image_grid_thw": [[1, 2, 2]] * 2}, 2, id="left over"),
    ],
)
def test_what_is_wrong_is_told_apart(rows, grids, fault):
    buffers = run(Prompt.from_symbols(SPECS["sglang"], rows, **grids))
    assert buffers.faults[fault] != 0
    assert fault == 1 or buffers.faults[1] == 0


@each_spec
def test_only_the_rows_and_tokens_in_use_are_read(spec):
    @settings(max_examples=8, deadline=None)
    @given(fitting(spec), st.integers(0, 2), st.integers(0, 20))
    def check(prompt, more_rows, more_tokens):
        batch, seq_len = prompt.input_ids.shape
        larger = enlarged(prompt, rows=batch + more_rows, tokens=seq_len + more_tokens, grids=8)
        ids, mask = larger.input_ids.clone(), torch.ones_like(larger.input_ids)
        for stale, value in ((ids, spec.image_token_id), (mask, 1)):
            stale[batch:] = value
            stale[:, seq_len:] = value
        if prompt.attention_mask is not None:
            mask[:batch, :seq_len] = prompt.attention_mask
        larger = replace(larger, input_ids=ids, attention_mask=mask)
        buffers = run(larger, sizes=torch.tensor([(batch << 32) + seq_len]))
        answer = buffers.position_ids[:, :batch, :seq_len], buffers.rope_deltas[:batch]
        assert_same(answer, prompt.expected())
        assert not buffers.faults.any()

    check()


def test_int32_and_small_integers():
    prompt = Prompt.from_symbols(
        SPECS["sglang"],
        ["t<IIIIII>tt", "[<II>t<II>]"],
        mask=["1" * 11, "11111111110"],
        image_grid_thw=[[1, 4, 6]],
        video_grid_thw=[[2, 2, 4]],
    )
    expected, deltas = prompt.expected()
    narrow = replace(
        prompt,
        input_ids=prompt.input_ids.int(),
        attention_mask=prompt.attention_mask.bool(),
        mm_token_type_ids=prompt.mm_token_type_ids.to(torch.uint8),
        image_grid_thw=prompt.image_grid_thw.to(torch.uint8),
        video_grid_thw=prompt.video_grid_thw.to(torch.int16),
    )
    for by_types in (False, True):
        buffers = run(narrow, by_types=by_types)
        assert_same((buffers.position_ids, buffers.rope_deltas), (expected.int(), deltas))
