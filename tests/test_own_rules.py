"""What holds for every family with a rule of its own."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from own_support import SHORT_CONTEXT, SPECS, answer, each_spec, single_rows
from support import assert_same, grid_list, grid_tensor, kept, no_synchronisation
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch.nn.functional import pad

from tests.testing.searching import never_drawn, smallest
from vecrope import MRopeSpec, get_decode_position_ids, get_rope_index
from vecrope.families import rules
from vecrope.families.rules import GlmImage, Hunyuan
from vecrope.testing import Prompt, Refusal, conversations, token_soup

each_validate = pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])


# The reference


@each_spec
@each_validate
def test_prompts_are_answered_as_by_the_reference(spec, validate):
    @given(conversations(spec))
    def check(prompt):
        assert_same(answer(prompt, validate=validate), prompt.expected())

    check()


@each_spec
def test_what_the_reference_refuses_is_refused(spec):
    @given(token_soup(spec))
    def check(prompt):
        try:
            expected = prompt.expected()
        except Refusal:
            with pytest.raises(ValueError, match=r"must|grid|token"):
                answer(prompt)
        else:
            assert_same(answer(prompt), expected)

    check()


def test_a_prompt_beyond_its_context_is_refused_by_the_reference_too():
    @given(conversations(SHORT_CONTEXT))
    def check(prompt):
        try:
            expected = prompt.expected()
        except Refusal:
            with pytest.raises(ValueError, match="must be at least -1 and less than 12"):
                answer(prompt)
        else:
            assert_same(answer(prompt), expected)

    check()


def test_the_reference_refuses_an_image_of_several_frames_where_vllm_does():
    prompt = Prompt.from_symbols(SPECS["isaac"], ["II"], image_grid_thw=[(2, 2, 2)])
    with pytest.raises(Refusal, match="2 frames"):
        prompt.expected()


@pytest.mark.parametrize(
    ("name", "row", "grid", "message"),
    [
        ("glm_image, sglang", "t<I<I>t", (1, 1, 3), "has a start inside of the image from 2 to 5"),
        ("isaac", "tIt", (1, 3, 2), "must be divisible by 2"),
        ("isaac", "tIt", (1, 2, 3), "must be divisible by 2"),
    ],
)
def test_what_the_reference_says_of_what_it_refuses(name, row, grid, message):
    prompt = Prompt.from_symbols(SPECS[name], [row], image_grid_thw=[grid])
    with pytest.raises(Refusal, match=message):
        prompt.expected()
    with pytest.raises(ValueError, match="row 0"):
        answer(prompt)


# Rows, sequences, dtypes


@each_spec
def test_a_batch_is_answered_as_its_rows_one_by_one(spec):
    @given(conversations(spec))
    def check(prompt):
        position_ids, rope_deltas = answer(prompt, validate=False)
        for row, single in enumerate(single_rows(prompt)):
            alone = answer(single, validate=False)
            ours = position_ids[:, row : row + 1], rope_deltas[row : row + 1]
            if isinstance(spec.own_rule, Hunyuan):
                # Its images are numbered on across rows.
                alone, ours = (alone[0][:-1], alone[1]), (ours[0][:-1], ours[1])
            assert_same(ours, alone)

    check()


@each_spec
@each_validate
def test_packed_rows_are_answered_as_padded_ones(spec, validate):
    @given(conversations(spec))
    def check(prompt):
        arguments = prompt.arguments()
        ids, mask = arguments.pop("input_ids"), kept(prompt)
        del arguments["attention_mask"]
        bounds = pad(mask.sum(1).cumsum(0), (1, 0)).int()
        got = get_rope_index(ids[mask], spec, cu_seqlens=bounds, validate=validate, **arguments)
        position_ids, rope_deltas = answer(prompt, validate=validate)
        assert_same(got, (position_ids[:, mask], rope_deltas))

    check()


@each_spec
def test_int32_ids_are_answered_alike(spec):
    @given(conversations(spec))
    def check(prompt):
        position_ids, rope_deltas = answer(prompt, validate=False)
        ids = prompt.arguments()["input_ids"].int()
        got = answer(prompt, input_ids=ids, validate=False)
        assert torch.equal(got[0].long(), position_ids)
        assert torch.equal(got[1].long(), rope_deltas)
        assert got[0].dtype == (torch.int32 if spec.position_dtype == "ids" else torch.int64)

    check()


@each_spec
@each_validate
@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0, 0)])
def test_there_may_be_no_tokens(spec, validate, shape):
    ids = torch.empty(shape, dtype=torch.int64)
    for grids in (None, torch.empty((0, 3), dtype=torch.int64), torch.zeros((2, 3)).long()):
        position_ids, rope_deltas = get_rope_index(
            ids, spec, image_grid_thw=grids, validate=validate
        )
        assert position_ids.shape[1:] == shape
        assert rope_deltas.tolist() == [[0]] * shape[0]


@each_spec
@each_validate
def test_grids_of_zeros_are_no_images(spec, validate):
    @given(conversations(spec), st.data())
    def check(prompt, data):
        grids = grid_list(prompt.image_grid_thw)
        first = 0 if prompt.images_per_sample is None else len(grids)
        grids.insert(data.draw(st.integers(first, len(grids))), (0, 0, 0))
        assume(prompt.image_grid_thw is not None)
        with_zeros = replace(prompt, image_grid_thw=grid_tensor(grids))
        assert_same(answer(with_zeros, validate=validate), answer(prompt, validate=validate))

    check()


# Static shapes


def test_the_probe_catches_what_reads_values():
    with FakeTensorMode():
        ids = torch.empty((2, 7), dtype=torch.int64, device="meta")
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            ids.nonzero()


@each_spec
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("given", [False, True], ids=["ids", "all"])
def test_without_validation_no_operation_depends_on_values(spec, device, packed, given):
    with FakeTensorMode():
        ids = torch.empty((2, 7), dtype=torch.int64, device=device)
        arguments = {"attention_mask": torch.empty_like(ids, dtype=torch.bool)} if given else {}
        if given and not isinstance(spec.own_rule, GlmImage):
            arguments["mm_token_type_ids"] = torch.empty_like(ids)
        if packed:
            arguments = {name: value.flatten() for name, value in arguments.items()}
            arguments["cu_seqlens"] = torch.empty(3, dtype=torch.int32, device=device)
            ids = ids.flatten()
        if given:
            arguments["image_grid_thw"] = torch.empty((3, 3), dtype=torch.int32)
            if isinstance(spec.own_rule, GlmImage):
                arguments["images_per_sample"] = torch.empty(2, dtype=torch.int64)
            if spec.video_token_id is not None:
                arguments["video_grid_thw"] = torch.empty((2, 3), dtype=torch.int32)
        position_ids, rope_deltas = get_rope_index(ids, spec, validate=False, **arguments)
        assert position_ids.shape[1:] == ids.shape
        assert rope_deltas.shape == (2, 1)
        assert {position_ids.device.type, rope_deltas.device.type} == {device}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@each_spec
def test_on_a_gpu_it_answers_alike_without_synchronisation(spec):
    @settings(max_examples=20)
    @given(conversations(spec))
    def check(prompt):
        arguments = {
            name: value.cuda() for name, value in prompt.arguments().items() if value is not None
        }
        with no_synchronisation():
            got = get_rope_index(spec=spec, validate=False, **arguments)
            if isinstance(spec.own_rule, GlmImage):
                decode = get_decode_position_ids(
                    spec=spec, validate=False, max_decode_tokens=50, **arguments
                )
        assert_same(got, answer(prompt))
        assert_same(get_rope_index(spec=spec, **arguments), answer(prompt))
        if isinstance(spec.own_rule, GlmImage):
            on_cpu = answer(prompt, get_decode_position_ids, max_decode_tokens=50)
            assert_same(decode, on_cpu)

    check()


def roomy(prompt):
    """Enlarge every size, each to a range of its own: torch compiles equal sizes as one."""
    more = (0, 60, 0, 3)
    videos = None
    if prompt.spec.video_token_id is not None:
        videos = grid_tensor([*grid_list(prompt.video_grid_thw), *[(0, 0, 0)] * 25])
    per_row = prompt.images_per_sample
    images = grid_list(prompt.image_grid_thw)
    if isinstance(prompt.spec.own_rule, GlmImage):
        per_row = pad(torch.tensor([len(images)]) if per_row is None else per_row, (0, 3))
    return replace(
        prompt,
        input_ids=pad(prompt.input_ids, more),
        image_grid_thw=grid_tensor([*images, *[(0, 0, 0)] * 8]),
        video_grid_thw=videos,
        attention_mask=pad(kept(prompt).long(), more, value=1),
        images_per_sample=per_row,
    )


@pytest.mark.parametrize(
    "name", ["hunyuan_vl of 4 axes", "glm_image, transformers", "isaac", "bailing"]
)
def test_compiled_once_it_answers_alike_and_a_misfit_has_no_answer(name):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(get_rope_index, backend=counter, fullgraph=True, dynamic=True)

    @settings(max_examples=12, phases=[Phase.generate])
    @given(conversations(SPECS[name], max_rows=2) | token_soup(SPECS[name]))
    def check(prompt):
        prompt = roomy(prompt)
        got = answer(prompt, compiled)
        try:
            expected = answer(prompt)
        except ValueError:
            if sound(prompt):
                assert_no_answer(got)
        else:
            assert_same(got, expected)

    check()
    truncated = Prompt.from_symbols(SPECS[name], ["tt<II"], image_grid_thw=[(1, 2, 8)])
    assert_no_answer(answer(roomy(truncated), compiled))
    assert counter.frame_count == 1


def sound(prompt):
    """Say whether no grid is refused for its sides alone, which tokens may fit all the same."""
    merge, several = prompt.spec.spatial_merge_size, prompt.spec.multi_frame_images
    return all(
        (min(grid) > 0 or not any(grid))
        and grid[1] % merge == grid[2] % merge == 0
        and (several or grid[0] <= 1)
        for grid in grid_list(prompt.image_grid_thw) + grid_list(prompt.video_grid_thw)
    )


def assert_no_answer(got):
    position_ids, rope_deltas = got
    assert torch.equal(position_ids, torch.full_like(position_ids, -1))
    least = torch.iinfo(rope_deltas.dtype).min
    assert torch.equal(rope_deltas, torch.full_like(rope_deltas, least))


# The strategies


def any_grid(prompt, condition):
    return any(condition(*grid) for grid in grid_list(prompt.image_grid_thw))


def per_row(prompt):
    return [] if prompt.images_per_sample is None else prompt.images_per_sample.tolist()


FEATURES = {
    "several rows": lambda p: len(p.input_ids) > 1,
    "several images": lambda p: len(grid_list(p.image_grid_thw)) > 1,
    "a wide image": lambda p: any_grid(p, lambda _, h, w: h < w),
    "a tall image": lambda p: any_grid(p, lambda _, h, w: h > w),
    "no grids": lambda p: p.image_grid_thw is None,
}
MASKED = {
    "no mask": lambda p: p.attention_mask is None,
    "left padding": lambda p: p.mask[0].startswith("0"),
    "right padding": lambda p: p.mask[0].endswith("0"),
    "a hole": lambda p: "101" in p.mask[0],
}
OWN = {
    "hunyuan_vl of 3 axes": MASKED,
    "glm_image, transformers": {
        **MASKED,
        "all grids are a row's": lambda p: not per_row(p) and grid_list(p.image_grid_thw),
        "a row without grids": lambda p: 0 in per_row(p),
        "nothing to generate": lambda p: (
            grid_list(p.image_grid_thw) and len(p.expected_decode()[0]) == 1
        ),
        "two images to generate": lambda p: (
            "<" not in "".join(p.symbols) and any(n > 1 for n in per_row(p))
        ),
    },
    "isaac": {
        **MASKED,
        "touching images": lambda p: (
            0
            < sum(len(re.findall("I+", row)) for row in p.symbols)
            < len(grid_list(p.image_grid_thw))
        ),
    },
    "bailing": {"a video": lambda p: p.video_grid_thw is not None},
    "bailing with timestamps": {"frames": lambda p: p.video_grid_thw is not None},
}


@pytest.mark.parametrize("name", OWN)
def test_every_feature_occurs(name):
    assert never_drawn(conversations(SPECS[name]), {**FEATURES, **OWN[name]}) == []


@each_spec
def test_misfits_fit_and_do_not(spec):
    outcomes = {"refused": is_refused, "answered": lambda prompt: not is_refused(prompt)}
    assert never_drawn(token_soup(spec), outcomes) == []


def is_refused(prompt):
    try:
        prompt.expected()
    except Refusal:
        return True
    return False


@pytest.mark.parametrize("name", ["hunyuan_vl of 3 axes", "glm_image, sglang", "isaac", "bailing"])
def test_prompts_shrink_to_one_text_token(name):
    prompt = smallest(conversations(SPECS[name]), lambda _: True)
    assert (prompt.symbols, prompt.attention_mask) == (["t"], None)


@each_spec
def test_a_prompts_repr_builds_it_again(spec):
    @given(conversations(spec))
    def check(prompt):
        names = {**vars(rules), "Prompt": Prompt, "MRopeSpec": MRopeSpec}
        again = eval(repr(prompt), names)
        assert again.spec == spec
        assert repr(again) == repr(prompt)

    check()
