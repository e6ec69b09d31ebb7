import pytest
import torch
from hypothesis import given

from tests.checks.calls import FORMS, SGLANG, refusal, rope_index
from vecrope import MRopeSpec, get_rope_index
from vecrope.core.items import make_items
from vecrope.inputs import Inputs
from vecrope.rope_index import rope_index_of
from vecrope.testing import Prompt, assert_matches, conversations

TRANSFORMERS = MRopeSpec.for_model("glm4v", convention="transformers")


def assert_answers(prompt, **options):
    assert_matches(lambda **arguments: rope_index(prompt, **{**arguments, **options}), prompt)


# What is no fault

TOUCHING = Prompt.from_symbols(
    SGLANG,
    ["ttt<IIII>t[I]t[I]", "tt<IIIIII>tttt[I]", "ttttttttttttttttt"],
    mask=["11111111111111111", "00111111111111111", "11111110000000000"],
    image_grid_thw=[[1, 4, 4], [1, 2, 4], [1, 4, 4]],
    video_grid_thw=[[3, 2, 2]],
)


APART = Prompt.from_symbols(
    SGLANG,
    ["ttt<IIII>t[I]t[I]", "tt<II>t<IIII>t[I]", "ttttttttttttttttt"],
    mask=["11111111111111111", "00111111111111111", "11111110000000000"],
    image_grid_thw=[[1, 4, 4], [1, 2, 4], [1, 4, 4]],
    video_grid_thw=[[3, 2, 2]],
)


def with_zeros(grids, at):
    return torch.cat((grids[:at], torch.zeros(2, 3, dtype=torch.int64), grids[at:]))


@FORMS
@pytest.mark.parametrize("prompt", [TOUCHING, APART], ids=["touching", "apart"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda _: {"validate": True}, id="nothing changed"),
        pytest.param(lambda _: {"mm_token_type_ids": None}, id="no types"),
        *(
            pytest.param(
                lambda p, v=value: {
                    "mm_token_type_ids": p.mm_token_type_ids.where(p.attention_mask == 1, v)
                },
                id=f"types of {value} at masked tokens",
            )
            for value in (-100, 1, 258)
        ),
        *(
            pytest.param(
                lambda p, d=dtype: {"attention_mask": p.attention_mask.to(d)}, id=f"mask of {dtype}"
            )
            for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32)
        ),
        *(
            pytest.param(
                lambda p, n=name, d=dtype: {n: getattr(p, n).to(d)}, id=f"{name} of {dtype}"
            )
            for name in ("image_grid_thw", "video_grid_thw", "mm_token_type_ids")
            for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32)
        ),
        *(
            pytest.param(
                lambda p, n=name, a=at: {n: with_zeros(getattr(p, n), a)},
                id=f"{name} with zeros {where}",
            )
            for name, places in (
                ("image_grid_thw", {"first": 0, "between": 2, "last": 3}),
                ("video_grid_thw", {"first": 0, "last": 1}),
            )
            for where, at in places.items()
        ),
    ],
)
def test_is_answered(prompt, change, form):
    assert_answers(prompt, **change(prompt), **form)


@FORMS
@pytest.mark.parametrize(
    "grids",
    [None, torch.empty(0, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)],
    ids=["absent", "empty", "zeros"],
)
@pytest.mark.parametrize("rows", [["tttt", "[]>t"], ["", ""]], ids=["text", "no token"])
def test_text_needs_no_grid(rows, grids, form):
    prompt = Prompt.from_symbols(SGLANG, rows)
    assert_answers(prompt, image_grid_thw=grids, video_grid_thw=grids, **form)


@FORMS
@pytest.mark.parametrize("name", ["attention_mask", "mm_token_type_ids"])
@pytest.mark.parametrize(
    "strided",
    [
        pytest.param(lambda values: values[:1, :4].T, id="one column, transposed"),
        pytest.param(lambda values: values[::2, ::2][:1, :1], id="one token of every other"),
        pytest.param(lambda values: values[:, ::2], id="every other column"),
        pytest.param(lambda values: values[:1].expand(4, -1), id="expanded"),
    ],
)
def test_values_of_any_strides_are_answered(strided, name, form):
    fill = torch.ones if name == "attention_mask" else torch.zeros
    values = strided(fill((5, 6), dtype=torch.int64))
    prompt = Prompt.from_symbols(SGLANG, ["t" * values.shape[1]] * values.shape[0])
    assert_answers(prompt, **{name: values}, **form)


def test_without_tokens_grids_are_left_over_only_where_that_is_asked():
    """Elsewhere they are refused, and under tracing, where nothing is raised, invalidated."""
    ids, grids = torch.zeros((2, 0), dtype=torch.int64), torch.tensor([[1, 4, 4]])
    compiled = torch.compile(get_rope_index, backend="eager", fullgraph=True)
    inputs = Inputs(ids, image_grid_thw=grids, allow_unused_grids=True)
    answers = rope_index_of(inputs, SGLANG), compiled(ids, SGLANG, image_grid_thw=grids)
    for (position_ids, rope_deltas), delta in zip(answers, (0, -(2**63)), strict=True):
        assert position_ids.shape == (3, 2, 0)
        assert rope_deltas.tolist() == [[delta], [delta]]


def test_a_size_below_zero_does_not_disorder_the_table():
    """Unchecked, or not yet: searches among what does not ascend would write anywhere."""
    grids = torch.tensor([[1, 4, 4], [1, -2, 4], [-3, 4, 4], [2, 2, 2]])
    items = make_items(grids, grids, SGLANG, torch.int64)
    assert items.ends.tolist() == [4, 4, 4, 6, 10, 10, 10, 12]


def test_a_time_scale_does_not_depend_on_the_defaults():
    """Of images without time beside videos whose frames are counted, which no family has yet."""
    spec = MRopeSpec.for_model("ernie4_5_vl_moe", convention="transformers", image_time="none")
    grids = torch.tensor([[600, 2, 2]])
    want = make_items(grids[:0], grids, spec, torch.int64)
    assert want.extent.tolist() == [300, 0, 0]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # in which 299 is 300
    try:
        with torch.device("meta"):
            got = make_items(grids[:0], grids, spec, torch.int64)
    finally:
        torch.set_default_dtype(before)
    assert got.extent.tolist() == want.extent.tolist()
    assert torch.equal(got.time_scale, want.time_scale)


@pytest.mark.parametrize("spec", [SGLANG, TRANSFORMERS], ids=lambda spec: spec.convention)
def test_conversations_are_never_refused(spec):
    @given(conversations(spec, touching=True))
    def check(prompt):
        assert refusal(prompt) is None
        assert refusal(prompt, form="static") is None

    check()
