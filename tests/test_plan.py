import copy
import io
import pickle
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import spec_of
from packings import packings
from support import assert_same, fitting, kept, no_synchronisation, rope_index
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch.nn.functional import pad
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import vecrope.plans.build
from vecrope import (
    concatenate_plans,
    get_rope_index,
    plan_from_placeholders,
    plan_rope_index,
)
from vecrope.plans.plan import RopeIndexPlan
from vecrope.testing import Prompt

# Frames apart or in one block, spaced by their number or in time; padding skipped or numbered;
# deltas of padded and of valid lengths; blocks that reach further than they move the position.
SPECS = {
    "glm4v-sglang": spec_of("glm4v", "sglang"),
    "glm4v-transformers": spec_of("glm4v", "transformers"),
    "qwen2_5_vl-transformers": spec_of("qwen2_5_vl", "transformers"),
    "qwen2_5_vl-sglang": spec_of("qwen2_5_vl", "sglang"),
    "qwen3_vl-vllm": spec_of("qwen3_vl", "vllm"),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
QWEN = spec_of("qwen2_vl", "transformers")
PACED = SPECS["qwen2_5_vl-transformers"]
BEYOND = 9
GLM_IMAGE = spec_of("glm_image", "transformers")
integers = torch.tensor


@dataclass
class Case:
    """A plan, the answer it has to give, and each of its rows with the tokens decoded after it."""

    plan: RopeIndexPlan
    whole: torch.Tensor  # (3, B, T) or (3, N)
    deltas: torch.Tensor  # (B, 1)
    answer: tuple[torch.Tensor, torch.Tensor]  # of get_rope_index
    dense: torch.Tensor  # (3, rows, the longest row and BEYOND)
    lengths: list[int]

    @property
    def most(self):
        return self.dense.shape[2]


def case_of(plan, whole, deltas, answer, rows, next_positions):
    """Extend rows (3, L) of any lengths by what is decoded after them, up to one length."""
    lengths = [row.shape[1] for row in rows]
    most = max(lengths, default=0) + BEYOND
    extended = [
        torch.cat((row, torch.arange(most - row.shape[1]).expand(3, -1) + after), 1)
        for row, after in zip(rows, next_positions, strict=True)
    ]
    dense = torch.stack(extended, 1).to(whole.dtype)
    return Case(plan, whole, deltas, answer, dense, lengths)


def padded_case(prompt, **options):
    whole, deltas = prompt.expected()
    lengths = torch.full_like(deltas, whole.shape[2])
    if prompt.spec.delta_length == "valid":
        lengths = kept(prompt).sum(1, keepdim=True)
    return case_of(
        rope_index(prompt, plan_rope_index, **options),
        whole,
        deltas,
        rope_index(prompt),
        whole.unbind(1),
        (lengths + deltas).view(-1).tolist(),
    )


def packed_case(packing, spec, *, between, **options):
    """Take the sequences of a packing, with the padding between them or without."""
    answers = [part.expected() for part in packing.parts]
    deltas = torch.cat([own for _, own in answers])
    after = [own[0].shape[2] + int(own[1]) for own in answers]
    arguments = packing.arguments()
    rows = [own.squeeze(1) for own, _ in answers]
    if between:
        tokens = packing.input_ids
        whole = torch.full((3, *tokens.shape), spec.padding_value, dtype=rows[0].dtype)
        for (row, columns), own in zip(packing.places, rows, strict=True):
            whole[:, row, columns] = own
        width = tokens.shape[1]
        starts = [row * width + columns.start for row, columns in packing.places]
        bounds = [0, *starts[1:], tokens.numel()]
        rows = whole.flatten(1).split(integers(bounds).diff().tolist(), 1)
    else:
        tokens = torch.cat([part.input_ids[0] for part in packing.parts])
        del arguments["sequence_ids"]
        bounds = [0, *(own.shape[1] for own in rows)]
        arguments["cu_seqlens"] = integers(bounds).cumsum(0)
        whole = torch.cat(rows, 1)
    plan = plan_rope_index(tokens, spec, **arguments, **options)
    answer = get_rope_index(tokens, spec, **arguments)
    return case_of(plan, whole, deltas, answer, rows, after)


@st.composite
def cases(draw, spec):
    """Draw a plan of padded rows, of packed sequences or of rows of sequences, in either form."""
    options = draw(st.sampled_from([{}, {"max_groups": 400}]))
    layouts = ["padded", "packed"] + ["between"] * (spec.mask_rule == "skip")
    layout = draw(st.sampled_from(layouts))
    if layout == "padded":
        prompt = draw(fitting(spec))
        if draw(st.booleans()):
            prompt = replace(prompt, input_ids=prompt.input_ids.int())
        return padded_case(prompt, **options)
    packing = draw(packings(spec, hostile=spec.mask_rule == "skip"))
    return packed_case(packing, spec, between=layout == "between", **options)


def drawn_integers(draw, shape, highest, dtypes=(torch.int64,)):
    """Draw a tensor of integers from 0 to `highest`, in one of the dtypes that hold them."""
    size = torch.Size(shape).numel()
    values = draw(st.lists(st.integers(0, highest), min_size=size, max_size=size))
    fitting_dtypes = [dtype for dtype in dtypes if torch.iinfo(dtype).max >= highest]
    return integers(values, dtype=draw(st.sampled_from(fitting_dtypes))).reshape(shape)


INDEX_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
shapes = st.lists(st.integers(0, 3), max_size=3)


# Equal to the whole


@each_spec
def test_the_positions_are_those_of_the_loop(spec):
    @given(cases(spec))
    def check(case):
        got = case.plan.position_ids(), case.plan.rope_deltas
        assert_same(got, (case.whole, case.deltas))
        assert_same(got, case.answer)
        assert case.plan.num_rows == len(case.lengths)
        assert case.plan.num_tokens == sum(case.lengths)

    check()


@each_spec
def test_slices_in_any_order_make_the_whole(spec):
    @given(cases(spec), st.data())
    def check(case, data):
        cuts = data.draw(st.lists(st.integers(0, case.most), max_size=4))
        cuts = [0, *sorted(cuts), case.most]
        spans = list(enumerate(pairwise(cuts)))
        pieces = {}
        for at, (start, stop) in data.draw(st.permutations(spans)):
            pieces[at] = case.plan.slice(start, stop)
            assert pieces[at].shape == (3, len(case.lengths), stop - start)
        got = torch.cat([pieces[at] for at in range(len(spans))], 2)
        assert_same([got], [case.dense])

    check()


@each_spec
def test_any_tokens_of_any_rows(spec):
    @given(cases(spec), st.data())
    def check(case, data):
        batch = len(case.lengths)
        index = drawn_integers(data.draw, data.draw(shapes), case.most - 1, INDEX_DTYPES)
        shape = data.draw(st.sampled_from([index.shape, index.shape[1:], ()]))
        rows = drawn_integers(data.draw, shape, batch - 1, INDEX_DTYPES)
        want = case.dense[:, rows.long(), index.long()]
        for validate in (True, False):
            assert_same([case.plan.at(index, rows, validate=validate)], [want])
        # Rows may be the wider of the two.
        assert_same([case.plan.at(index.new_zeros(()), rows)], [case.dense[:, rows.long(), 0]])

    check()


@each_spec
def test_any_tokens_of_each_row(spec):
    @given(cases(spec), st.data())
    def check(case, data):
        batch = len(case.lengths)
        shape = [batch, *data.draw(shapes)]
        index = drawn_integers(data.draw, shape, case.most - 1, INDEX_DTYPES)
        want = case.dense.gather(2, index.long().view(1, batch, -1).expand(3, -1, -1))
        for validate in (True, False):
            assert_same([case.plan.at(index, validate=validate)], [want.view(3, *shape)])

    check()


@each_spec
def test_decoding_goes_on_where_each_row_ends(spec):
    @given(cases(spec), st.integers(0, 3), st.data())
    def check(case, num_tokens, data):
        batch = len(case.lengths)
        starts = data.draw(st.lists(st.integers(0, 4), min_size=batch, max_size=batch))
        want = [
            case.dense[:, row, length + start : length + start + num_tokens]
            for row, (length, start) in enumerate(zip(case.lengths, starts, strict=True))
        ]
        got = case.plan.decode(num_tokens, start=integers(starts, dtype=torch.int32))
        assert_same([got], [torch.stack(want, 1)])
        alike = [starts[0]] * batch
        want = case.plan.decode(num_tokens, start=integers(alike))
        assert_same([case.plan.decode(num_tokens, start=alike[0])], [want])
        assert_same([case.plan.decode(num_tokens, start=integers(alike[0]))], [want])

    check()
    plan = plan_rope_index(integers([[7, 7]]), spec)
    assert plan.decode().tolist() == [[[2]]] * 3


@each_spec
def test_the_delta_is_what_decoding_adds(spec):
    """As engines decode: the index of a token plus its row's delta."""

    @given(fitting(spec), st.integers(0, 5))
    def check(prompt, start):
        plan = rope_index(prompt, plan_rope_index)
        length = torch.full((plan.num_rows, 1), prompt.input_ids.shape[1])
        if spec.delta_length == "valid":
            length = kept(prompt).sum(1, keepdim=True)
        want = (length + start + torch.arange(3) + plan.rope_deltas).expand(3, -1, -1)
        assert torch.equal(plan.decode(3, start=start), want)

    check()


# Steps


@each_spec
def test_a_step_is_a_loop_over_the_rows(spec):
    @given(cases(spec), st.integers(0, 3), st.data())
    def check(case, room, data):
        batch = len(case.lengths)
        bounds = st.tuples(*[st.integers(0, case.most - room)] * 2).map(sorted)
        cuts = data.draw(st.lists(bounds, min_size=batch, max_size=batch))
        computed = [start for start, _ in cuts]
        scheduled = [stop - start for start, stop in cuts]
        pieces = [case.dense[:, row, start:stop] for row, (start, stop) in enumerate(cuts)]
        want = torch.cat(pieces, 1)
        assert_same([case.plan.step(computed, scheduled)], [want])
        buffer = torch.full((3, want.shape[1] + 2), -5, dtype=torch.int32)
        as_tensors = (integers(computed, dtype=torch.int32), integers(scheduled))
        view = case.plan.step(*as_tensors, out=buffer)
        assert view._base is buffer
        assert_same([view, buffer], [want.int(), pad(want.int(), (0, 2), value=-5)])
        # With columns to spare the last row goes on in them.
        stop = cuts[-1][1]
        padded = torch.cat((want, case.dense[:, -1, stop : stop + room]), 1)
        for validate in (True, False):
            got = case.plan.step(*as_tensors, num_tokens=padded.shape[1], validate=validate)
            assert_same([got], [padded])

    check()


def test_a_buffer_may_have_no_column_to_spare():
    buffer = torch.empty((3, 5), dtype=torch.int64)
    PLAN.step([0, 2], [2, 3], out=buffer)
    assert_same([buffer], [PLAN.step([0, 2], [2, 3])])


def test_every_length_is_a_multiple_of_one():
    assert_same([PLAN.position_ids(pad_to_multiple_of=1)], [PLAN.position_ids()])


# Plans joined


@each_spec
def test_joined_plans_are_the_rows_of_all(spec):
    @given(st.lists(cases(spec), min_size=1, max_size=3))
    def check(found):
        if len({case.plan.dtype for case in found}) > 1:
            return
        if len({case.plan.time_scale.dtype for case in found}) > 1:
            return
        plan = concatenate_plans([case.plan for case in found])
        assert_same(
            [plan.position_ids(), plan.rope_deltas],
            [
                torch.cat([case.whole.flatten(1) for case in found], 1),
                torch.cat([case.deltas for case in found]),
            ],
        )
        least = min(case.most for case in found)
        want = torch.cat([case.dense[:, :, :least] for case in found], 1)
        assert_same([plan.slice(0, least)], [want])
        lengths = integers([length for case in found for length in case.lengths])
        assert torch.equal(plan.row_bounds[1:], lengths.cumsum(0).int())
        assert_same([plan.decode(2)], [torch.cat([case.plan.decode(2) for case in found], 1)])
        assert plan.seq_len is None

    check()


FRAMES_IN_TIME = Prompt.from_symbols(PACED, [f"t<{26 * 'V'}>t"], video_grid_thw=[[26, 2, 2]])


def of_seconds(seconds):
    prompt = replace(FRAMES_IN_TIME, second_per_grid_ts=seconds)
    plan = rope_index(prompt, plan_rope_index)
    assert torch.equal(plan.position_ids(), prompt.expected()[0])
    return plan


def test_a_row_without_a_token_joins_plans_that_are_spaced_in_time():
    none = plan_rope_index(torch.zeros((2, 0), dtype=torch.int64), PACED)
    plan = of_seconds([0.7])
    got = concatenate_plans([none, plan, none])
    assert torch.equal(got.position_ids(), plan.position_ids().flatten(1))
    assert got.decode()[0, :, 0].tolist() == [0, 0, int(plan.decode()[0]), 0, 0]


def test_seconds_of_two_precisions_would_be_rounded_to_one():
    # In 32 bits the product of 25 and this is rounded up to a whole number.
    seconds = [1 / 25]
    narrow, wide = (
        of_seconds(integers(seconds, dtype=dtype)) for dtype in (torch.float32, torch.float64)
    )
    for plans in ([narrow, narrow], [wide, wide]):
        got = concatenate_plans(plans).position_ids()
        assert torch.equal(got, torch.cat([plan.position_ids().flatten(1) for plan in plans], 1))
    widened = replace(narrow, time_scale=narrow.time_scale.double())
    assert not torch.equal(widened.position_ids(), narrow.position_ids())
    with pytest.raises(
        ValueError,
        match=r"seconds of one precision, got \['torch.float32', 'torch.float64'\]; give second_",
    ):
        concatenate_plans([narrow, wide])


# In every way the same


@each_spec
def test_many_groups_give_the_plan_of_few(spec):
    """Few groups are summed up on the host, many by tensor operators."""

    @given(packings(spec, hostile=spec.mask_rule == "skip"))
    def check(packing):
        tokens = torch.cat([part.input_ids[0] for part in packing.parts])
        bounds = integers([0, *(part.input_ids.shape[1] for part in packing.parts)]).cumsum(0)
        arguments = packing.arguments()
        del arguments["sequence_ids"]
        arguments["cu_seqlens"] = bounds
        few = plan_rope_index(tokens, spec, **arguments)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vecrope.plans.build, "FEW", 0)
            many = plan_rope_index(tokens, spec, **arguments)
        assert_same(tensors_of(many), tensors_of(few))

    check()


class Recorded(TorchDispatchMode):
    """Record the names of the operators that are dispatched."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        self.names.add(function.overloadpacket._qualified_op_name.removeprefix("aten::"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("spec", [QWEN, PACED, GLM_IMAGE], ids=["frames", "seconds", "lines"])
def test_no_small_plan_starts_threads(spec):
    """As these two do on a CPU, whatever the size of their input."""
    ids = integers([[5, 6, 7, 16384, 7], [5, 16384, 7, 7, 7]])
    mask = integers([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    of_lines = plan_rope_index(ids, GLM_IMAGE, image_grid_thw=integers([[1, 2, 3], [1, 1, 2]]))
    with Recorded() as recorded:
        plan = of_lines
        if spec is not GLM_IMAGE:
            plan = example(spec)
            example(spec, attention_mask=mask, rows=("tIItt", "IItVV"))
        joined = concatenate_plans([plan, plan])
        joined.position_ids(text_positions=True)
        plan.position_ids(text_positions=True)
        plan.shard(0, 2, text_positions=True, pad_to_multiple_of=2)
        joined.step([3, 0, 1, 9], [4, 2, 0, 1])
        plan.slice(1, 9)
        plan.decode(4)
    assert not recorded.names & {"searchsorted", "repeat_interleave"}


# Sizes


@pytest.mark.parametrize("shape", [(0, 3), (0, 0), (2, 0)], ids=str)
@each_spec
def test_without_tokens(spec, shape):
    batch = shape[0]
    plan = plan_rope_index(torch.zeros(shape, dtype=torch.int64), spec)
    assert plan.position_ids().shape == (3, *shape)
    assert plan.rope_deltas.shape == (batch, 1)
    assert plan.rope_deltas.dtype == plan.next_positions.dtype == torch.int64
    decoded = torch.arange(2, 5).expand(3, batch, 3)
    assert_same([plan.slice(2, 5), plan.decode(3, start=2)], [decoded] * 2)
    assert_same([plan.at(decoded[0])], [decoded])
    assert_same([plan.step([2] * batch, [3] * batch)], [decoded.flatten(1)])


def text_plan(num_tokens, **options):
    none = torch.zeros(0, dtype=torch.int64)
    runs = dict.fromkeys(("offsets", "lengths", "modalities"), none)
    return plan_from_placeholders(num_tokens, QWEN, **runs, **options)


@pytest.mark.parametrize("num_tokens", [2**30 - 1, 2**30, 2**31 + 5])
def test_as_many_tokens_as_indices_can_number(num_tokens):
    plan = text_plan(num_tokens)
    wide = num_tokens >= 2**30
    assert plan.entries.dtype == (torch.int64 if wide else torch.int32)
    numbers = list(range(num_tokens - 2, num_tokens + 2))
    assert plan.slice(numbers[0], numbers[-1] + 1)[:, 0].tolist() == [numbers] * 3
    joined = concatenate_plans([plan] * 5)
    assert joined.slice(numbers[0], numbers[-1] + 1).tolist() == [[numbers] * 5] * 3
    assert joined.step([numbers[0]] * 5, [2] * 5).tolist() == [numbers[:2] * 5] * 3


@pytest.mark.parametrize(("num_tokens", "wide"), [(2**29 - 1, False), (2**29, True)])
def test_joined_plans_have_indices_of_64_bits_where_they_number_as_many(num_tokens, wide):
    joined = concatenate_plans([text_plan(2**29), text_plan(num_tokens)])
    indices = joined.starts, joined.entries, joined.row_bounds
    assert {index.dtype for index in indices} == {torch.int64 if wide else torch.int32}


@pytest.mark.parametrize(
    ("spec", "seconds", "each"),
    [
        (QWEN, None, 28),
        (PACED, [0.5], 36),
        (PACED, integers([0.5], dtype=torch.float64), 44),
    ],
    ids=["frames", "seconds of 32 bits", "seconds of 64 bits"],
)
def test_bytes(spec, seconds, each):
    prompt = Prompt.from_symbols(
        spec, ["tVVtt", "ttttt"], video_grid_thw=[[2, 2, 2]], second_per_grid_ts=seconds
    )
    plan = rope_index(prompt, plan_rope_index)
    entries = plan.entries.shape[0]
    assert entries == 3  # the bounds of two rows, and a video
    assert plan.nbytes == each * entries + 20 * plan.num_rows + 4
    assert rope_index(prompt, plan_rope_index, max_groups=50).nbytes > 50 * each


# A pytree


def example(spec=QWEN, rows=("tIItt", "IItVV"), **options):
    rows = [row.replace("V", "I") if spec.video_token_id is None else row for row in rows]
    prompt = Prompt.from_symbols(
        spec, rows, image_grid_thw=[[1, 2, 4], [1, 4, 2]], video_grid_thw=[[2, 2, 2]]
    )
    return rope_index(prompt, plan_rope_index, **options)


def assert_same_plan(got, want):
    assert got is not want
    assert type(got) is type(want)
    assert (got.dtype, got.padding_value) == (want.dtype, want.padding_value)
    assert (got.num_tokens, got.seq_len) == (want.num_tokens, want.seq_len)
    assert_same([got.position_ids(), got.rope_deltas], [want.position_ids(), want.rope_deltas])
    assert_same([got.slice(1, 9)], [want.slice(1, 9)])


@pytest.mark.parametrize("spec", [QWEN, PACED], ids=["frames", "seconds"])
@pytest.mark.parametrize(
    "copied",
    [
        lambda plan: pytree.tree_unflatten(*pytree.tree_flatten(plan)),
        lambda plan: pytree.tree_unflatten(
            [leaf for _, leaf in pytree.tree_flatten_with_path(plan)[0]],
            pytree.tree_structure(plan),
        ),
        lambda plan: pickle.loads(pickle.dumps(plan)),
        copy.copy,
        copy.deepcopy,
    ],
    ids=["pytree", "pytree with paths", "pickle", "copy", "deepcopy"],
)
def test_a_copy_is_the_same_plan(copied, spec):
    plan = example(spec)
    assert_same_plan(copied(plan), plan)


def test_leaves_are_named():
    leaves, _ = pytree.tree_flatten_with_path({"plan": example()})
    names = [pytree.keystr(path) for path, _ in leaves]
    assert names == [
        f"['plan'].{name}"
        for name in (
            *("row_bounds", "next_positions", "rope_deltas", "num_tokens", "seq_len"),
            *("starts", "entries", "time_scale"),
        )
    ]


def test_to_another_device_and_to_its_own():
    plan = example()
    assert plan.to("cpu") is plan
    assert plan.to(torch.device("cpu")) is plan
    moved = plan.to("meta")
    assert {leaf.device.type for leaf in tensors_of(moved)} == {moved.device.type} == {"meta"}
    assert moved.position_ids().shape == (3, 2, 5)
    assert moved.nbytes == plan.nbytes
    with FakeTensorMode():
        fake = fake_plan()
        joined = concatenate_plans([fake, fake])
        assert {leaf.device.type for leaf in tensors_of(joined)} == {"meta"}


# Compiled and exported


def every_way(plan, index, rows, computed, scheduled):
    return (
        plan.slice(1, 9),
        plan.at(index, rows, validate=False),
        plan.at(index, validate=False),
        plan.decode(2, start=computed),
        plan.step(computed, scheduled, num_tokens=6, validate=False),
        plan.position_ids(),
        plan.rope_deltas,
    )


CALLS = [
    (integers([[0, 4, 7], [3, 1, 0]]), integers([[1], [0]]), integers([3, 0]), integers([4, 2])),
    (integers([[9, 0, 1], [2, 2, 5]]), integers([[0], [1]]), integers([0, 6]), integers([1, 3])),
]


def examples(spec):
    rows = ("tIItt", "IItVV"), ("VVIIt", "tttII")
    return [example(spec, own, max_groups=12) for own in rows]


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("spec", "dynamic"), [(QWEN, False), (PACED, True)], ids=["frames-static", "seconds-dynamic"]
)
def test_compiled_equals_eager_and_compiles_once(spec, dynamic, counter):
    function = torch.compile(every_way, fullgraph=True, dynamic=dynamic, backend=counter)
    answers = []
    for plan in examples(spec):
        for call in CALLS:
            got = function(plan, *call)
            assert_same(got, every_way(plan, *call))
            answers.append(got)
    assert counter.frame_count == 1
    assert not torch.equal(answers[0][-2], answers[-1][-2])


class EveryWay(torch.nn.Module):
    def forward(self, plan, *call):
        return every_way(plan, *call)


@pytest.mark.parametrize("spec", [QWEN, PACED], ids=["frames", "seconds"])
def test_exported_equals_eager(spec):
    plans = examples(spec)
    module = torch.export.export(EveryWay(), (plans[0], *CALLS[0])).module()
    for plan in plans:
        for call in CALLS:
            assert_same(module(plan, *call), every_way(plan, *call))


class Planned(torch.nn.Module):
    def forward(self, plan, ids, grids):
        other = plan_rope_index(ids, GLM_IMAGE, image_grid_thw=grids, validate=False, max_groups=12)
        return plan.slice(0, 8), other, other.decode(4)


def test_a_program_that_takes_and_returns_plans_is_saved_and_loaded():
    plans = examples(PACED)
    ids, grids = integers([[5, 6, 7, 16384]] * 2), integers([[1, 2, 3], [1, 1, 2]])
    program = torch.export.export(Planned(), (plans[0], ids, grids))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    positions, plan, decoded = loaded(plans[1], ids, grids.flip(0))
    want, other, want_decoded = Planned()(plans[1], ids, grids.flip(0))
    assert_same([positions, decoded], [want, want_decoded])
    assert (plan.dtype, plan.padding_value) == (torch.int64, 1)
    assert_same(tensors_of(plan), tensors_of(other))


def test_a_plan_is_saved_and_loaded():
    plan, file = example(), io.BytesIO()
    torch.save({"plan": plan}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["plan"]
    assert torch.equal(loaded.position_ids(), plan.position_ids())
    assert loaded.dtype == plan.dtype


# Without reading values, and without a copy from the host


def tensors_of(tree):
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class NoCopyFromTheHost(TorchDispatchMode):
    """Raise where a tensor of the CPU is made one of another device."""

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given, made = tensors_of((args, kwargs)), tensors_of(result)
        if any(leaf.is_cpu for leaf in given) and not all(leaf.is_cpu for leaf in made):
            raise AssertionError(f"{function} copies from the host")
        return result


def fake_plan(spec=QWEN):
    rows = torch.empty((2, 6), dtype=torch.int64, device="meta")
    grids = torch.empty((2, 3), dtype=torch.int64, device="meta")
    return plan_rope_index(
        rows, spec, image_grid_thw=grids, video_grid_thw=grids, validate=False, max_groups=5
    )


PROMISED = {
    "slice": (lambda plan, _: plan.slice(2, 9), (3, 2, 7)),
    "at": (lambda plan, two: plan.at(two, validate=False), (3, 2)),
    "at, rows": (lambda plan, two: plan.at(two, two, validate=False), (3, 2)),
    "decode": (lambda plan, _: plan.decode(2, start=3), (3, 2, 2)),
    "decode, starts": (lambda plan, two: plan.decode(2, start=two), (3, 2, 2)),
    "step": (lambda plan, two: plan.step(two, two, num_tokens=9, validate=False), (3, 9)),
    "step, out": (
        lambda plan, two: plan.step(
            two, two, num_tokens=9, validate=False, out=plan.entries.new_empty((3, 12))
        ),
        (3, 9),
    ),
    "position_ids": (lambda plan, _: plan.position_ids(text_positions=True), (4, 2, 6)),
    "shard": (lambda plan, _: plan.shard(0, 2, text_positions=True), (4, 2, 3)),
}


@pytest.mark.parametrize("spec", [QWEN, PACED], ids=["frames", "seconds"])
@pytest.mark.parametrize(("call", "shape"), PROMISED.values(), ids=PROMISED.keys())
def test_no_value_is_read_and_none_copied_from_the_host(call, shape, spec):
    with FakeTensorMode():
        plan = fake_plan(spec)
        two = torch.empty(2, dtype=torch.int64, device="meta")
        with NoCopyFromTheHost():
            got = call(plan, two)
    assert (got.shape, got.device.type) == (shape, "meta")


READS = {
    "at": lambda plan, two: plan.at(two),
    "at, rows": lambda plan, two: plan.at(two, two),
    "step": lambda plan, two: plan.step(two, two, num_tokens=9),
    "step, the sum": lambda plan, two: plan.step(two, two, validate=False),
}


@pytest.mark.parametrize("call", READS.values(), ids=READS.keys())
def test_the_probe_catches_what_reads_values(call):
    with FakeTensorMode():
        plan, two = fake_plan(), torch.empty(2, dtype=torch.int64, device="meta")
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            call(plan, two)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_on_the_host_is_checked_there_and_copied(device):
    """So they cost no wait for the device but that of the copy."""
    plan = example(max_groups=12).to(device)
    got = plan.step([3, 0], integers([4, 2]))
    assert (got.shape, got.device.type) == ((3, 6), device)
    two = integers([0, 1])
    for got in (plan.at(two), plan.at(two, two), plan.decode(1, start=two)[:, :, 0]):
        assert (got.shape, got.device.type) == ((3, 2), device)
    if device == "meta":
        with pytest.raises(AssertionError, match="copies from the host"), NoCopyFromTheHost():
            plan.step([3, 0], [4, 2])


def test_nothing_depends_on_the_default_device():
    plan = example()

    def answers():
        joined = concatenate_plans([plan, plan])
        return plan.step([3, 0], [4, 2]), plan.slice(1, 9), plan.decode(2), joined.position_ids()

    want = answers()
    with torch.device("meta"):
        got = answers()
    assert {tensor.device.type for tensor in got} == {"cpu"}
    assert_same(got, want)


# Refused


PLAN = example()
OTHERS = {
    "device": PLAN.to("meta"),
    "dtype": rope_index(
        Prompt.from_symbols(QWEN, ["t"]),
        plan_rope_index,
        input_ids=integers([[7]], dtype=torch.int32),
    ),
    "padding_value": plan_rope_index(integers([[7]]), SPECS["glm4v-sglang"]),
}
REFUSED = {
    "a slice from before its row": (
        lambda: PLAN.slice(-1, 2),
        ValueError,
        "a slice must have 0 <= start <= stop, got start -1 and stop 2",
    ),
    "a slice that goes back": (
        lambda: PLAN.slice(3, 2),
        ValueError,
        "a slice must have 0 <= start <= stop, got start 3 and stop 2",
    ),
    "a list of indices": (
        lambda: PLAN.at([[0], [1]]),
        TypeError,
        "token_index must be a tensor, got list",
    ),
    "a list of rows": (
        lambda: PLAN.at(integers([0]), [1]),
        TypeError,
        "rows must be a tensor, got list",
    ),
    "indices that are floats": (
        lambda: PLAN.at(integers([[0.0], [1.0]])),
        TypeError,
        "token_index must be integers, got torch.float32",
    ),
    "indices that are bools": (
        lambda: PLAN.at(integers([[True], [False]])),
        TypeError,
        "token_index must be integers, got torch.bool",
    ),
    "rows that are complex": (
        lambda: PLAN.at(integers([0]), integers([1j])),
        TypeError,
        "rows must be integers, got torch.complex64",
    ),
    "indices of other rows": (
        lambda: PLAN.at(integers([0, 1, 2])),
        ValueError,
        r"token_index must have shape \(2, ...\), a dimension for the rows first, got \(3,\); "
        "or give rows",
    ),
    "an index of no row": (
        lambda: PLAN.at(integers(0)),
        ValueError,
        r"token_index must have shape \(2, ...\), .* got \(\); or give rows",
    ),
    "a row too many": (
        lambda: PLAN.at(integers([0]), integers([2, 0])),
        ValueError,
        "rows must be from 0 to 1, got 2",
    ),
    "a negative row": (
        lambda: PLAN.at(integers([0]), integers([2, -1])),
        ValueError,
        "rows must be from 0 to 1, got -1",
    ),
    "a negative row among others that are there": (
        lambda: PLAN.at(integers([0]), integers([1, -1])),
        ValueError,
        "rows must be from 0 to 1, got -1",
    ),
    "a negative index": (
        lambda: PLAN.at(integers([[0], [-1]])),
        ValueError,
        "token_index must not be negative, got -1",
    ),
    "a negative index in a row": (
        lambda: PLAN.at(integers([0, -3]), integers([0])),
        ValueError,
        "token_index must not be negative, got -3",
    ),
    "decoding less than nothing": (
        lambda: PLAN.decode(-1),
        ValueError,
        "num_tokens must be at least 0, got -1",
    ),
    "starts of other rows": (
        lambda: PLAN.decode(start=integers([1, 2, 3])),
        ValueError,
        r"start must have shape \(2,\), got \(3,\)",
    ),
    "computed less than nothing": (
        lambda: PLAN.step([0, -2], [1, 1]),
        ValueError,
        "num_computed_tokens must not be negative, got -2 for row 1",
    ),
    "scheduled less than nothing": (
        lambda: PLAN.step([0, 2], integers([-1, 1])),
        ValueError,
        "num_scheduled_tokens must not be negative, got -1 for row 0",
    ),
    "fewer tokens than scheduled": (
        lambda: PLAN.step([0, 2], [2, 3], num_tokens=4),
        ValueError,
        "num_tokens must be at least 5, the tokens of all rows, got 4",
    ),
    "computed numbers that are floats": (
        lambda: PLAN.step([0.0, 2.0], [2, 3]),
        TypeError,
        "num_computed_tokens must be integers, got torch.float32",
    ),
    "scheduled numbers that are bools": (
        lambda: PLAN.step([0, 2], [True, False]),
        TypeError,
        "num_scheduled_tokens must be integers, got torch.bool",
    ),
    "numbers that are complex": (
        lambda: PLAN.step([0, 2], integers([1j, 2])),
        TypeError,
        "num_scheduled_tokens must be integers, got torch.complex64",
    ),
    "numbers of other rows": (
        lambda: PLAN.step([0, 2, 3], [2, 3]),
        ValueError,
        r"num_computed_tokens must have shape \(2,\), a number for each row .*, got \(3,\)",
    ),
    "a buffer too small": (
        lambda: PLAN.step([0, 2], [2, 3], out=torch.empty(3, 4, dtype=torch.int64)),
        ValueError,
        r"out must have shape \(3, at least 5\), got \(3, 4\)",
    ),
    "a buffer of other axes": (
        lambda: PLAN.step([0, 2], [2, 3], out=torch.empty(4, 5, dtype=torch.int64)),
        ValueError,
        r"out must have shape \(3, at least 5\), got \(4, 5\)",
    ),
    "a buffer of rows": (
        lambda: PLAN.step([0, 2], [2, 3], out=torch.empty(3, 5, 1, dtype=torch.int64)),
        ValueError,
        r"out must have shape \(3, at least 5\), got \(3, 5, 1\)",
    ),
    "a multiple that is none": (
        lambda: PLAN.position_ids(pad_to_multiple_of=0),
        ValueError,
        "pad_to_multiple_of must be at least 1, got 0",
    ),
    "no plan to join": (
        lambda: concatenate_plans([]),
        ValueError,
        "plans must hold at least one plan, got none",
    ),
    "plans on two devices": (
        lambda: concatenate_plans([PLAN, OTHERS["device"]]),
        ValueError,
        r"plans must have one device, got \['cpu', 'meta'\]",
    ),
    "plans of two dtypes": (
        lambda: concatenate_plans([PLAN, OTHERS["dtype"]]),
        ValueError,
        r"plans must have one dtype, got \['torch.int32', 'torch.int64'\]",
    ),
    "plans of two paddings": (
        lambda: concatenate_plans([PLAN, OTHERS["padding_value"]]),
        ValueError,
        r"plans must have one padding_value, got \['0', '1'\]",
    ),
    "a start of floats": (
        lambda: PLAN.decode(start=torch.tensor([1.0, 2.0])),
        TypeError,
        r"start must be integers, got torch\.float32",
    ),
    "a float to start from": (
        lambda: PLAN.decode(start=0.5),
        TypeError,
        r"start must be an int, got 0\.5",
    ),
    "an out of half precision": (
        lambda: PLAN.step([0, 0], [2, 2], out=torch.empty((3, 4), dtype=torch.bfloat16)),
        TypeError,
        r"out must be torch\.int64, int64 or int32, got torch\.bfloat16",
    ),
    "plans of two families": (
        lambda: concatenate_plans([PLAN, of_seconds([1.0])]),
        ValueError,
        "plans must be of one family: some space videos in time and some do not",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_plan_cannot_be_changed():
    with pytest.raises(AttributeError, match="cannot assign to field 'num_tokens'"):
        PLAN.num_tokens = 3


# On a GPU


def batches(name):
    """Return a spec, ids and grids: of segments, of segments with a pace, and of lines."""
    if name == "images to generate":
        ids = integers([[5, 6, 7, 16384, 7], [5, 16384, 7, 7, 7]])
        return GLM_IMAGE, ids, integers([[1, 2, 3], [1, 1, 2]])
    spec = {"frames": QWEN, "seconds": PACED}[name]
    prompt = Prompt.from_symbols(
        spec, ["t<II>tt", "<II>ttt"], image_grid_thw=[[1, 2, 4], [1, 4, 2]]
    )
    return spec, prompt.input_ids, prompt.image_grid_thw


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", ["frames", "seconds", "images to generate"])
def test_on_a_gpu_plans_are_those_of_the_cpu_and_nothing_waits(name):
    spec, ids, grids = batches(name)
    on_cpu = plan_rope_index(ids, spec, image_grid_thw=grids)
    ids, grids = ids.cuda(), grids.cuda()
    call = [values.cuda() for values in CALLS[0]]
    out = torch.empty((3, 6), dtype=torch.int64, device="cuda")
    with no_synchronisation():
        plan = plan_rope_index(ids, spec, image_grid_thw=grids, validate=False)
        got = (
            *every_way(plan, *call),
            plan.step(*call[2:], out=out, num_tokens=6, validate=False),
            plan.shard(0, 2, "zigzag", text_positions=True, pad_to_multiple_of=4),
        )
    want = (
        *every_way(on_cpu, *CALLS[0]),
        on_cpu.step(*CALLS[0][2:]),
        on_cpu.shard(0, 2, "zigzag", text_positions=True, pad_to_multiple_of=4),
    )
    assert_same([tensor.cpu() for tensor in got], want)
    # These copy some numbers from the host.
    joined, joined_on_cpu = concatenate_plans([plan, plan]), concatenate_plans([on_cpu, on_cpu])
    assert joined.device.type == "cuda"
    for ways in (lambda plan: plan.position_ids(), lambda plan: plan.decode(9)):
        assert_same([ways(joined).cpu()], [ways(joined_on_cpu)])
