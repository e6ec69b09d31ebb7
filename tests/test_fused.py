"""The Triton kernels, in Triton's interpreter: the same arithmetic, on a CPU."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    CONVENTIONS,
    assert_same,
    enlarged,
    fitting,
    misfitting,
    rope_index,
    spec_of,
)

from vecrope import RopeIndexRunner, get_rope_index
from vecrope.forms.select import _why_no_kernels_for
from vecrope.runner import _Memory
from vecrope.testing import Prompt, Refusal, conversations, token_soup

pytest.importorskip("triton", reason="needs Triton")
if torch.cuda.is_available():
    pytest.skip("the kernels run on the GPU here, see test_cuda", allow_module_level=True)

from vecrope.forms.triton import constants
from vecrope.forms.triton import launch as fused

# The interpreter takes a while for each.
few_examples = settings(max_examples=settings.default.max_examples // 4, deadline=None)
SPECS = {convention: spec_of("glm4v", convention) for convention in CONVENTIONS}
# Whether frames touch the kernels do not see; who calls them has it checked elsewhere.
SPECS["vllm"] = replace(spec_of("glm4v", "vllm"), frames_may_touch=True)
SPECS["mixed"] = replace(SPECS["sglang"], span_rule="hw", spatial_merge_size=3, padding_value=-7)
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
# One of either marker rule.
each_other_spec = pytest.mark.parametrize(
    "spec", [SPECS["transformers"], SPECS["mixed"]], ids=["transformers", "mixed"]
)


def short(spec):
    return conversations(spec, max_rows=2, max_segments=3) | token_soup(spec, max_rows=2)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    # So that a row of a few tokens has several blocks, and these several chunks.
    monkeypatch.setattr(constants, "BLOCK", 8)
    monkeypatch.setattr(constants, "CHUNK", 4)


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
    fused.launcher(prompt.spec, prompt.input_ids.device)(
        prompt.input_ids,
        prompt.image_grid_thw,
        prompt.video_grid_thw,
        prompt.attention_mask,
        prompt.mm_token_type_ids if by_types else None,
        buffers,
        sizes,
    )
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
    fitting = fused.fused_rope_index(
        prompt.input_ids,
        prompt.spec,
        prompt.image_grid_thw,
        None,
        prompt.attention_mask,
        prompt.mm_token_type_ids,
        validate=True,
    )
    assert (fitting is None) is is_wrong


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


def interpreted(monkeypatch):
    """Let the kernels take ids on a CPU, where Triton interprets them."""
    monkeypatch.setattr("vecrope.forms.select._why_no_kernels_for", lambda _: None)


@pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])
def test_get_rope_index_takes_the_kernels(validate, monkeypatch):
    interpreted(monkeypatch)
    prompt = Prompt.from_symbols(
        SPECS["sglang"],
        ["tt<II>t", "tt[<II>"],
        mask=["0111111", "1" * 7],
        image_grid_thw=[[1, 2, 4]],
        video_grid_thw=[[1, 4, 2]],
    )
    answer = rope_index(prompt, validate=validate, form="kernels")
    assert_same(answer, prompt.expected())
    misfit = replace(prompt, image_grid_thw=None)
    if validate:
        with pytest.raises(ValueError, match="row 0 holds image tokens beyond the last grid"):
            rope_index(misfit, form="kernels")
    else:
        position_ids, _ = rope_index(misfit, validate=False, form="kernels")
        assert position_ids.shape == (3, 2, 7)


TOUCHING = Prompt.from_symbols(spec_of("glm4v", "vllm"), ["[II]"], video_grid_thw=[[2, 2, 2]])


def test_frames_that_touch_where_they_must_not_are_refused(runner, monkeypatch):
    runner.spec = TOUCHING.spec
    runner_answer(runner, TOUCHING)
    message = "video 0: its grid .* needs something between its frames"
    with pytest.raises(ValueError, match=message):
        runner.check()
    interpreted(monkeypatch)
    with pytest.raises(ValueError, match="they do not check that frames are apart"):
        rope_index(TOUCHING, form="kernels")
    with pytest.raises(ValueError, match=message):
        rope_index(TOUCHING)


@pytest.mark.parametrize(
    ("on_cuda", "num_tokens", "takes"),
    [(True, 1, True), (False, 1, False), (True, 0, False), (True, 2**30, False)],
)
def test_which_ids_the_kernels_take(on_cuda, num_tokens, takes):
    device = SimpleNamespace(type="cuda" if on_cuda else "cpu")
    ids = SimpleNamespace(is_cuda=on_cuda, numel=lambda: num_tokens, device=device)
    assert (_why_no_kernels_for(ids) is None) is takes


@pytest.mark.parametrize("changes", [{}, {"cu_seqlens": torch.tensor([0, 5])}])
def test_what_the_kernels_are_asked(changes, monkeypatch):
    """A plain batch of a family that they know, and nothing else."""
    interpreted(monkeypatch)
    asked = []
    kernels_answer = fused.fused_rope_index
    monkeypatch.setattr(
        fused, "fused_rope_index", lambda *a, **k: asked.append(a) or kernels_answer(*a, **k)
    )
    for spec, takes in (
        (SPECS["sglang"], not changes),
        (SPECS["vllm"], not changes),
        (spec_of("qwen3_vl", "transformers"), False),
    ):
        ids = torch.tensor([[5, 6, 7, 5, 6]], dtype=torch.int32)
        ids = ids[0] if "cu_seqlens" in changes else ids
        asked.clear()
        if not takes:
            with pytest.raises(ValueError, match="form 'kernels' cannot take this call"):
                get_rope_index(ids, spec, validate=False, form="kernels", **changes)
            continue
        position_ids, _ = get_rope_index(ids, spec, validate=False, form="kernels", **changes)
        assert asked
        assert position_ids.dtype == (torch.int64 if spec.convention == "vllm" else torch.int32)
        assert torch.equal(position_ids.flatten(1), torch.arange(5).expand(3, -1))


def test_a_mask_that_the_family_ignores_is_not_for_the_kernels(monkeypatch):
    interpreted(monkeypatch)
    monkeypatch.setattr(fused, "fused_rope_index", None)
    spec = replace(SPECS["sglang"], mask_rule="ignore")
    ids, mask = torch.tensor([[5, 6, 7]]), torch.tensor([[0, 1, 1]])
    with pytest.raises(ValueError, match="sglang ignores attention_mask"):
        get_rope_index(ids, spec, attention_mask=mask, form="kernels")
    position_ids, _ = get_rope_index(ids, spec, attention_mask=mask)
    assert position_ids[0].tolist() == [[0, 1, 2]]


def test_what_is_compiled_is_launched_again_without_a_search(monkeypatch):
    searched, launched = [], []

    class Compiled:
        def __getitem__(self, grid):
            return lambda *_: launched.append(grid)

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_: searched.append(grid) or Compiled()

    monkeypatch.setattr(fused, "_KERNELS", (Kernel(), Kernel(), Kernel()))
    monkeypatch.setattr(constants, "COMPILED_TAKE_CONSTANTS", True)
    launch = fused.Launcher(SPECS["transformers"], torch.device("cpu"))
    ids = torch.ones((1, 20), dtype=torch.int64)
    buffers = fused.make_buffers((1, 20), 0, torch.int64, ids.device)
    for dtype in (torch.int64, torch.int64, torch.int32):
        launch(ids.to(dtype), None, None, None, None, buffers)
    assert searched == [(3, 1, 1), (4, 1, 1), (3, 1, 1)] * 2
    assert launched == searched[:3]


def test_arguments_on_another_device_are_brought_over():
    launch = fused.Launcher(SPECS["sglang"], torch.device("meta"))
    ready = launch._ready(torch.ones((4, 2), dtype=torch.bool).t())
    assert (ready.device.type, ready.dtype, ready.is_contiguous()) == ("meta", torch.uint8, True)


def test_the_kernels_take_a_bool_for_a_number():
    ids = torch.tensor([[5, 6, 7]])
    kept = torch.tensor([[False, True, True]])
    answer = fused.fused_rope_index(ids, SPECS["sglang"], None, None, kept, None, validate=True)
    assert_same(answer, get_rope_index(ids, SPECS["sglang"], attention_mask=kept))


class Replayed:
    """Stands for a CUDA graph."""

    def __init__(self, launch, _device):
        self.replay = launch


@pytest.fixture
def runner(monkeypatch):
    """Make a runner that takes the CPU for a CUDA device."""
    monkeypatch.setattr("vecrope.runner._capture", Replayed)
    monkeypatch.setattr("vecrope.runner._wait", lambda _: None)
    limits = {"rows": 3, "tokens": 100, "images": 4, "videos": 2}
    arguments = {f"max_{what}": limit for what, limit in limits.items()}
    runner = RopeIndexRunner(SPECS["sglang"], device="cpu", **arguments)
    runner._memory = _Memory(runner.spec, limits, torch.int64, torch.device("cpu"))
    return runner


def runner_answer(runner, prompt):
    arguments = prompt.arguments()
    del arguments["mm_token_type_ids"]
    return runner(arguments.pop("input_ids"), **arguments)


def test_the_runner_reads_nothing_that_an_earlier_call_left(runner):
    assert runner.warm_up([(3, 70)]) > 0
    assert runner.num_graphs == 2
    assert runner.warm_up() > 0
    # 1, 2 and 3 rows, 64 and 100 tokens, with and without a mask.
    assert runner.num_graphs == 3 * 2 * 2
    images = {"image_grid_thw": [[1, 2, 4]] * 3}
    prompts = [
        Prompt.from_symbols(SPECS["sglang"], ["<II>t<II>t<II>"] * 1, **images),
        Prompt.from_symbols(SPECS["sglang"], ["ttt", "t<I"], mask=["011", "110"]),
        Prompt.from_symbols(SPECS["sglang"], ["t" * 70]),
        Prompt.from_symbols(
            SPECS["sglang"], ["[I]", "<I>"], image_grid_thw=[[1, 2, 2]], video_grid_thw=[[1, 2, 2]]
        ),
        Prompt.from_symbols(SPECS["sglang"], ["t"]),
    ]
    for prompt in prompts + prompts[::-1]:
        assert_same(runner_answer(runner, prompt), prompt.expected())
        runner.check()
    assert runner.num_graphs == 3 * 2 * 2


def test_the_runner_names_a_misfit_when_it_is_asked_to(runner):
    runner.check()
    for mask in (None, ["111"]):
        runner_answer(runner, Prompt.from_symbols(SPECS["sglang"], ["tIt"], mask=mask))
        with pytest.raises(ValueError, match="row 0 holds image tokens beyond the last grid"):
            runner.check()


def test_the_runners_buffers_are_read_where_they_are(runner):
    prompt = Prompt.from_symbols(SPECS["sglang"], ["t<II>", "tttt<"], image_grid_thw=[[1, 2, 4]])
    inputs = runner.inputs(2, 5)
    inputs.input_ids.copy_(prompt.input_ids)
    inputs.image_grid_thw[0] = prompt.image_grid_thw[0]
    for _ in range(2):
        assert_same(runner.replay(2, 5), prompt.expected())
    text = Prompt.from_symbols(SPECS["sglang"], ["ttt"])
    assert_same(runner_answer(runner, text), text.expected())
    runner.check()
    assert runner_answer(runner, replace(text, input_ids=text.input_ids[:, :0]))[0].numel() == 0
    with pytest.raises(ValueError, match="at most 100 tokens, got 101"):
        runner.replay(1, 101)
