"""The Triton kernels, in Triton's interpreter: the same arithmetic, on a CPU."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    assert_same,
    enlarged,
    fitting,
    grid_list,
    misfitting,
)

from tests.forms.triton.interpreted import SPECS
from vecrope.forms.triton import launch as fused
from vecrope.inputs import Inputs
from vecrope.testing import Prompt, Refusal, conversations, token_soup

# The interpreter takes a while for each.
few_examples = settings(max_examples=settings.default.max_examples // 4, deadline=None)

each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
# One of either marker rule.
each_other_spec = pytest.mark.parametrize(
    "spec", [SPECS["transformers"], SPECS["mixed"]], ids=["transformers", "mixed"]
)


def short(spec):
    return conversations(spec, max_rows=2, max_segments=3) | token_soup(spec, max_rows=2)


def run(prompt, *, by_types=False, sizes=None):
    arguments = prompt.arguments()
    if not by_types:
        del arguments["mm_token_type_ids"]
    inputs = Inputs(**arguments)
    grids = (inputs.image_grid_thw, inputs.video_grid_thw)
    ids = prompt.input_ids
    buffers = fused.make_buffers(
        tuple(ids.shape), len(ids), sum(map(len, map(grid_list, grids))), ids.dtype, ids
    )
    for buffer in buffers:
        buffer.fill_(123)
    fused.launcher(prompt.spec, ids.device)(inputs, buffers, sizes)
    return buffers


@pytest.mark.parametrize(
    ("spec", "by_types"),
    [
        *(pytest.param(spec, False, id=f"ids-{name}") for name, spec in SPECS.items()),
        # Types are read alike, whatever the rule of markers.
        *(pytest.param(SPECS[name], True, id=f"types-{name}") for name in ("sglang", "mixed")),
    ],
)
def test_the_kernels_equal_the_loop(by_types, spec):
    @few_examples
    @given(fitting(spec))
    def check(prompt):
        buffers = run(prompt, by_types=by_types)
        assert_same((buffers.position_ids, buffers.rope_deltas), prompt.expected())
        assert not buffers.faults.any()

    check()


@pytest.mark.parametrize(
    "spec", [SPECS["transformers"], SPECS["mixed"]], ids=["transformers", "mixed"]
)
def test_grids_left_over_change_nothing_but_the_faults(spec):
    """An adapter whose upstream ignores them takes this answer where nothing is checked."""

    @few_examples
    @given(fitting(spec))
    def check(prompt):
        merge = spec.spatial_merge_size
        extra = torch.tensor([[1, 2 * merge + 1, merge], [1, merge, 3 * merge]])
        more = {
            name: extra
            if getattr(prompt, name) is None
            else torch.cat((getattr(prompt, name), extra))
            for name in ("image_grid_thw", "video_grid_thw")
        }
        buffers = run(replace(prompt, **more), by_types=True)
        assert_same((buffers.position_ids, buffers.rope_deltas), prompt.expected())
        assert buffers.faults.any()

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


def test_an_image_of_several_frames_is_wrong_where_the_family_has_none():
    for name, is_wrong in (("sglang", False), ("vllm", True)):
        prompt = Prompt.from_symbols(SPECS[name], ["tIIt"], image_grid_thw=[[2, 2, 2]])
        assert bool(run(prompt).faults.any()) is is_wrong


@pytest.mark.parametrize(
    ("name", "value", "at", "is_wrong"),
    [
        ("attention_mask", 2, 2, True),
        ("attention_mask", -1, 2, True),
        ("mm_token_type_ids", 3, 1, True),
        ("mm_token_type_ids", -1, 1, True),
        pytest.param("mm_token_type_ids", 3, 0, False, id="a type at a masked token"),
    ],
)
def test_codes_that_are_none(name, value, at, is_wrong):
    prompt = Prompt.from_symbols(
        SPECS["sglang"], ["t" * 11, "t<II>t<II>t"], mask=["1" * 11, "0" + "1" * 10],
        image_grid_thw=[[1, 2, 4]] * 2,
    )  # fmt: skip
    codes = getattr(prompt, name).clone()
    codes[1, at] = value
    prompt = replace(prompt, **{name: codes})
    buffers = run(prompt, by_types=True)
    assert bool(buffers.faults[0] > 0) is is_wrong
    assert not buffers.faults[1:].any()
    answer = fused.fused_rope_index(Inputs(**prompt.arguments()), prompt.spec, validate=True)
    assert (answer is None) is is_wrong


@each_other_spec
def test_only_the_rows_and_tokens_in_use_are_read(spec):
    @few_examples
    @given(short(spec), st.integers(0, 2), st.integers(0, 20))
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
