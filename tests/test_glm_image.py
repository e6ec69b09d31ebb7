from dataclasses import replace
from types import MethodType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from own_support import (
    END,
    SPECS,
    START,
    answer,
    assert_positions,
    assert_refused,
    from_sglang,
    ids_of,
    needs_sglang,
    single_rows,
)
from support import assert_same, grid_list, kept
from torch._subclasses import FakeTensorMode
from transformers import GlmImageConfig
from transformers.models.glm_image.modeling_glm_image import GlmImageModel

from vecrope import (
    MRopeSpec,
    concatenate_plans,
    get_decode_position_ids,
    get_rope_index,
    plan_rope_index,
)
from vecrope.families.rules import GlmImage
from vecrope.testing import conversations, token_soup

TRANSFORMERS, SGLANG = SPECS["glm_image, transformers"], SPECS["glm_image, sglang"]
each_convention = pytest.mark.parametrize(
    "spec", [TRANSFORMERS, SGLANG], ids=lambda s: s.convention
)


def decode(prompt, **changes):
    arguments = {**prompt.arguments(), **changes}
    return get_decode_position_ids(spec=prompt.spec, **arguments)


def decode_of(rows, spec=TRANSFORMERS, **arguments):
    tensors = {
        name: torch.tensor(value) if isinstance(value, list) else value
        for name, value in arguments.items()
    }
    return get_decode_position_ids(ids_of(*rows), spec, **tensors)


# Worked examples


@each_convention
def test_the_images_to_be_generated_are_numbered_from_the_last_one_backwards(spec):
    positions, lengths = decode_of(["ttt<"], spec, image_grid_thw=[[1, 2, 3], [1, 1, 2]])
    assert positions.tolist() == [
        [
            [4, 4, 6, 6, 6, 6, 6, 6, 9],
            [4, 4, 6, 6, 6, 7, 7, 7, 9],
            [4, 5, 6, 7, 8, 6, 7, 8, 9],
        ]
    ]
    assert lengths.tolist() == [9]
    assert_positions(
        spec,
        ["ttt<"],
        [[[0, 1, 2, 3]]] * 3,
        [[0]],
        image_grid_thw=[[1, 2, 3], [1, 1, 2]],
    )


@each_convention
def test_an_image_stands_between_its_markers(spec):
    # Its end marker belongs to the text behind it.
    assert_positions(
        spec,
        ["t<IIIIII>t<"],
        [
            [[0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7]],
            [[0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7]],
            [[0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7]],
        ],
        [[0]],
        image_grid_thw=[[1, 2, 3], [1, 9, 9]],
    )


def test_frames_of_an_image_count_up_in_time_and_do_not_move_what_follows():
    position_ids, _ = get_rope_index(
        ids_of("<IIII>t"), TRANSFORMERS, image_grid_thw=torch.tensor([[4, 1, 1]])
    )
    assert position_ids[0].tolist() == [[0, 1, 2, 3, 4, 2, 3]]


def test_masked_tokens_hold_one_and_every_row_has_its_own_grids():
    assert_positions(
        TRANSFORMERS,
        ["tt<I>", "<II>t"],
        [
            [[1, 0, 1, 2, 3], [0, 1, 1, 3, 4]],
            [[1, 0, 1, 2, 3], [0, 1, 1, 3, 4]],
            [[1, 0, 1, 2, 3], [0, 1, 2, 3, 4]],
        ],
        [[0], [0]],
        image_grid_thw=[[1, 1, 1], [1, 5, 5], [1, 1, 2]],
        images_per_sample=[2, 1],
        attention_mask=[[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    )


@each_convention
def test_without_grids_all_tokens_are_text_and_nothing_is_generated(spec):
    assert_positions(spec, ["<I>", "ttt"], [[[0, 1, 2]] * 2] * 3, [[0], [0]])
    positions, lengths = decode_of(["<I>", "ttt"], spec)
    assert positions.shape == (2, 3, 0)
    assert lengths.tolist() == [0, 0]


def test_a_row_that_generates_no_image_has_an_end_under_transformers_alone():
    arguments = {"image_grid_thw": [[1, 1, 1]]}
    positions, lengths = decode_of(["<I>t"], TRANSFORMERS, **arguments)
    assert (positions.tolist(), lengths.tolist()) == ([[[4]] * 3], [1])
    positions, lengths = decode_of(["<I>t"], SGLANG, **arguments)
    assert (positions.tolist(), lengths.tolist()) == ([[[]] * 3], [0])


def test_rows_are_continued_by_their_last_position():
    positions, lengths = decode_of(
        ["t<", "tt", "t<"],
        image_grid_thw=[[1, 1, 2], [1, 1, 3]],
        images_per_sample=[1, 0, 1],
    )
    assert positions[:, 2].tolist() == [[2, 3, 4, 4], [2, 2, 2, 2], [2, 3, 4, 5]]
    assert lengths.tolist() == [3, 0, 4]


def test_int32_ids_have_int64_decode_positions():
    ids = ids_of("tt<").int()
    grids = torch.tensor([[1, 1, 2]], dtype=torch.int32)
    positions, lengths = get_decode_position_ids(ids, TRANSFORMERS, image_grid_thw=grids)
    assert positions.dtype == lengths.dtype == torch.int64


# transformers, live


def transformers_answers(prompt):
    """Return what `get_rope_index` returns, and what it keeps: the decode positions."""
    model = SimpleNamespace(
        config=SimpleNamespace(image_start_token_id=START, image_end_token_id=END)
    )
    model.get_vision_position_ids = MethodType(GlmImageModel.get_vision_position_ids, model)
    answer = GlmImageModel.get_rope_index(model, **prompt.arguments())
    return answer, model._cached_decode_position_ids


def test_prompts_are_answered_as_by_transformers():
    @given(conversations(TRANSFORMERS))
    def check(prompt):
        theirs, cached = transformers_answers(prompt)
        assert_same(answer(prompt), theirs)
        positions, lengths = decode(prompt)
        if cached is None:
            assert not lengths.any()
        else:
            # transformers leaves rows without grids out.
            assert_same([positions[lengths > 0]], [cached])

    check()


def test_without_images_per_sample_every_row_has_all_grids_as_with_transformers():
    @given(conversations(TRANSFORMERS, max_rows=1))
    def check(prompt):
        twice = replace(
            prompt,
            input_ids=prompt.input_ids.repeat(2, 1),
            mm_token_type_ids=prompt.mm_token_type_ids.repeat(2, 1),
            attention_mask=kept(prompt).long().repeat(2, 1),
            images_per_sample=None,
        )
        theirs, cached = transformers_answers(twice)
        assert_same(answer(twice), theirs)
        if cached is not None:
            assert_same([decode(twice)[0]], [cached])

    check()


def test_where_transformers_alone_answers_the_prompt_shows_why():
    @given(token_soup(TRANSFORMERS))
    def check(prompt):
        try:
            ours = answer(prompt)
        except ValueError:
            return
        grids = grid_list(prompt.image_grid_thw)
        if all(map(any, grids)):
            assert_same(ours, transformers_answers(prompt)[0])

    check()


@pytest.mark.parametrize(
    ("row", "grids", "match"),
    [
        pytest.param("t<II", [[1, 1, 2]], "truncated inside the image", id="truncated"),
        pytest.param("<I>I", [[1, 1, 1]], "got one outside of the 1 such images", id="stray"),
        pytest.param("<I><I>", [[1, 1, 1]], "outside of the 1 such images", id="no grid left"),
        pytest.param(
            "<II><I>", [[1, 1, 1], [1, 1, 2]], "needs 1 tokens between .* got 2", id="cancelling"
        ),
    ],
)
def test_transformers_answers_by_accident_where_we_refuse(row, grids, match):
    """It numbers the first three as text, and the length comes out right in the last."""
    prompt = SimpleNamespace(
        arguments=lambda: {"input_ids": ids_of(row), "image_grid_thw": torch.tensor(grids)}
    )
    transformers_answers(prompt)
    assert_refused(TRANSFORMERS, match, [row], image_grid_thw=grids)


# SGLang, from a wheel


def sglang_positions(prompt):
    """Return the (3, n) positions of a prompt of one row and of what it generates."""
    method = from_sglang(
        "multimodal/processors/glm_image.py",
        "GlmImageProcessor._compute_glm_image_mrope_positions",
        torch=torch,
    )._compute_glm_image_mrope_positions
    processor = SimpleNamespace(IMAGE_START_TOKEN_ID=START, IMAGE_END_TOKEN_ID=END)
    arguments = prompt.arguments()
    return method(processor, arguments["input_ids"][0], arguments.get("image_grid_thw"))


@needs_sglang
def test_prompts_are_answered_as_by_sglang():
    @given(conversations(SGLANG))
    def check(prompt):
        position_ids, rope_deltas = answer(prompt)
        decode_positions, lengths = decode(prompt)
        for row, single in enumerate(single_rows(prompt)):
            positions, delta = sglang_positions(single)
            ours = torch.cat(
                (position_ids[:, row], decode_positions[row, :, : lengths[row]]), dim=1
            )
            assert_same([ours, rope_deltas[row]], [positions, delta])

    check()


# Configurations


@each_convention
def test_a_live_configuration_is_understood(spec):
    config = GlmImageConfig()
    got = MRopeSpec.from_config(config, convention=spec.convention)
    assert got == MRopeSpec.for_model("glm_image", convention=spec.convention)
    assert got.image_token_id == config.image_token_id
    assert got.own_rule == GlmImage(config.image_start_token_id, config.image_end_token_id)


@pytest.mark.parametrize(
    ("ids", "error", "match"),
    [
        pytest.param((1, 1), ValueError, "must differ, got 1 for both", id="equal"),
        pytest.param(("1", 2), TypeError, "image_start_token_id must be an int", id="start"),
        pytest.param((1, True), TypeError, "image_end_token_id must be an int", id="end"),
    ],
)
def test_wrong_markers_are_refused(ids, error, match):
    with pytest.raises(error, match=match):
        GlmImage(*ids)


# Refusals

REFUSED = [
    pytest.param(
        ["tttt", "<I>t"],
        {"image_grid_thw": [[1, 1, 2]], "images_per_sample": [0, 1]},
        r"row 1, image 0: its grid \(1, 1, 2\) needs 2 tokens between its markers, got 1; was the",
        id="too short",
    ),
    pytest.param(
        ["<tI>"],
        {"image_grid_thw": [[1, 1, 3]]},
        "needs 3 tokens between its markers, got 2",
        id="not all tokens of an image are counted as they are not looked at",
    ),
    pytest.param(
        ["<<I>"],
        {"image_grid_thw": [[1, 1, 2]]},
        "row 0, token 1: an image starts inside of another, which has not ended",
        id="a start in an image",
    ),
    pytest.param(
        ["><I>"], {"image_grid_thw": [[1, 1, 1]]}, "got 0; was the prompt", id="a stray end"
    ),
    pytest.param(
        ["tt", "tI"],
        {"image_grid_thw": [[1, 1, 1]]},
        "row 1, token 1: an image token must stand between the markers of an image that has a "
        "grid, got one outside of the 0 such images of the row",
        id="no markers",
    ),
    pytest.param(
        ["tt"],
        {"image_grid_thw": [[1, 0, 1]]},
        "image_grid_thw row 0 must be positive",
        id="an empty grid",
    ),
    pytest.param(
        ["tt"],
        {"image_grid_thw": [[1, 1, 1]], "images_per_sample": [2]},
        "images_per_sample must sum to the 1 rows of image_grid_thw.* got 2",
        id="too many per sample",
    ),
    pytest.param(
        ["tt"],
        {"image_grid_thw": [[1, 1, 1]], "images_per_sample": [0]},
        "only zeros may be left, got 0",
        id="too few per sample",
    ),
    pytest.param(
        ["tt", "tt"],
        {"image_grid_thw": [[1, 1, 1]], "images_per_sample": [2, -1]},
        "images_per_sample must not be negative, got -1 for row 1",
        id="negative per sample",
    ),
    pytest.param(
        ["tt"],
        {"image_grid_thw": [[1, 1, 1]], "images_per_sample": [1, 0]},
        r"images_per_sample must have shape \(1,\), got \(2,\)",
        id="shape of per sample",
    ),
    pytest.param(["tt"], {"attention_mask": [[2, 1]]}, "must hold 0 or 1, got 2", id="mask"),
]


@pytest.mark.parametrize(("rows", "arguments", "match"), REFUSED)
def test_what_does_not_fit_is_refused(rows, arguments, match):
    assert_refused(TRANSFORMERS, match, rows, **arguments)
    with pytest.raises(ValueError, match=match):
        decode_of(rows, TRANSFORMERS, **arguments)


def test_other_arguments_are_refused():
    assert_refused(TRANSFORMERS, "must be None: glm_image reads", ["t"], mm_token_type_ids=[[0]])
    assert_refused(TRANSFORMERS, "has no videos", ["t"], video_grid_thw=[[1, 1, 1]])
    assert_refused(
        TRANSFORMERS,
        "images_per_sample must be of a signed integer dtype",
        ["t"],
        TypeError,
        image_grid_thw=[[1, 1, 1]],
        images_per_sample=[1.0],
    )
    assert_refused(SGLANG, "must have one frame", ["<II>"], image_grid_thw=[[2, 1, 1]])


def test_decode_positions_are_those_of_glm_image_alone():
    with pytest.raises(ValueError, match="spec must be one of glm_image, got one of isaac"):
        decode_of(["t"], SPECS["isaac"])


@pytest.mark.parametrize(
    ("capacity", "error", "match"),
    [
        pytest.param(2, ValueError, "must be at least 3 for row 1, got 2", id="too small"),
        pytest.param(-1, ValueError, "must not be negative, got -1", id="negative"),
        pytest.param(3.0, TypeError, r"must be an int, got 3\.0", id="float"),
        pytest.param(True, TypeError, "must be an int, got True", id="bool"),
    ],
)
def test_a_wrong_capacity_is_refused(capacity, error, match):
    with pytest.raises(error, match=f"max_decode_tokens {match}"):
        decode_of(
            ["t", "t"],
            image_grid_thw=[[1, 1, 1], [1, 1, 2]],
            images_per_sample=[1, 1],
            max_decode_tokens=capacity,
        )


def test_wrong_bounds_are_refused():
    with pytest.raises(ValueError, match="cu_seqlens must run from 0 to the number of tokens 3"):
        get_decode_position_ids(
            torch.zeros(3).long(), TRANSFORMERS, cu_seqlens=torch.tensor([0, 2])
        )


# Plans


@each_convention
def test_a_plan_goes_on_with_the_images_to_be_generated(spec):
    plan = plan_rope_index(
        ids_of("ttt<"), spec, image_grid_thw=torch.tensor([[1, 2, 3], [1, 1, 2]])
    )
    images, lengths = decode_of(["ttt<"], spec, image_grid_thw=[[1, 2, 3], [1, 1, 2]])
    # Behind the end it counts from the prompt's length on.
    text = torch.arange(13, 16).expand(3, -1)
    want = torch.cat((torch.arange(4).expand(3, -1), images[0], text), 1)
    assert_same([plan.slice(0, 16)[:, 0], lengths], [want, torch.tensor([9])])
    assert torch.equal(plan.step([3], [8]), want[:, 3:11])
    # Of the grids, of the row, and the end of the stream.
    assert plan.nbytes == 20 * len(plan.starts) + 32 + 24 * (2 + 1 + 1)


def test_a_plan_generates_what_transformers_does():
    @given(conversations(TRANSFORMERS))
    def check(prompt):
        _, cached = transformers_answers(prompt)
        plan = plan_rope_index(spec=TRANSFORMERS, **prompt.arguments())
        rows = plan.generated_rows[1] > 0
        assert (cached is None) == (not rows.any())
        if cached is not None:
            # Shorter rows hold their last column again there, where a plan goes on in text.
            lengths = plan.generated_rows[1, rows]
            own = torch.arange(cached.shape[2]) < lengths.view(-1, 1, 1)
            ours = plan.decode(cached.shape[2])[:, rows].transpose(0, 1)
            assert torch.equal(ours.where(own, 0), cached.where(own, 0))
            assert int(lengths.max()) == cached.shape[2]

    check()


def test_sequences_in_a_row_generate_each_their_own():
    ids, numbers = ids_of("t<tt<tt"), torch.tensor([[1, 1, 2, 2, 2, 0, 0]])
    arguments = {
        "image_grid_thw": torch.tensor([[1, 1, 2], [1, 2, 1]]),
        "images_per_sample": torch.tensor([1, 1]),
    }
    plan = plan_rope_index(ids, TRANSFORMERS, sequence_ids=numbers, **arguments)
    assert plan.decode(4).tolist() == [
        [[2, 2, 4, 5], [3, 3, 5, 6]],
        [[2, 2, 4, 5], [3, 4, 5, 6]],
        [[2, 3, 4, 5], [3, 3, 5, 6]],
    ]
    assert not plan.rope_deltas.any()
    few = {"sequence_ids": numbers, "max_sequences": 1, "validate": False}
    none = plan_rope_index(ids, TRANSFORMERS, **few)
    assert int(none.decode(4).max()) < 0


def test_a_plan_of_images_joins_none_of_text_alone():
    plans = [plan_rope_index(ids_of("t<"), SPECS[name]) for name in ("glm_image, sglang", "isaac")]
    with pytest.raises(ValueError, match=r"one family: .* images to be generated"):
        concatenate_plans(plans)


def test_joined_plans_do_not_depend_on_the_default_device():
    grids = [torch.tensor([[1, 1, width]]) for width in (1, 2)]
    plans = [plan_rope_index(ids_of("t<"), TRANSFORMERS, image_grid_thw=grid) for grid in grids]
    with torch.device("meta"):
        decoded = concatenate_plans(plans).decode(4)
    assert decoded.tolist() == [
        [[2, 3, 4, 5], [2, 2, 4, 5]],
        [[2, 3, 4, 5], [2, 2, 4, 5]],
        [[2, 3, 4, 5], [2, 3, 4, 5]],
    ]


def test_a_compiled_plan_equals_an_eager_one_and_a_misfit_gives_no_answer():
    def first_tokens(ids, grids):
        plan = plan_rope_index(ids, TRANSFORMERS, image_grid_thw=grids)
        return plan.slice(0, 12), plan.decode(5, start=2)

    compiled = torch.compile(first_tokens, backend="eager", fullgraph=True, dynamic=True)
    grids = torch.tensor([[1, 1, 1], [1, 2, 2]])
    ids = ids_of("t<I>t", "ttttt")
    assert_same(compiled(ids, grids), first_tokens(ids, grids))
    positions, decoded = compiled(ids_of("t<II>", "ttttt"), grids)
    assert torch.equal(positions[:, :, :5], torch.full((3, 2, 5), -1))
    assert int(decoded.max()) < 0


# Static shapes


@each_convention
def test_a_capacity_continues_the_rows(spec):
    @given(conversations(spec))
    def check(prompt):
        positions, lengths = decode(prompt)
        longest = positions.shape[2]
        for validate in (True, False):
            got = decode(prompt, max_decode_tokens=longest + 2, validate=validate)
            last = got[0][:, :, longest - 1 : longest] if longest else got[0][:, :, :1]
            wide = torch.cat((positions, last.expand(-1, -1, 2)), dim=2)
            assert_same(got, (wide, lengths))

    check()


@each_convention
def test_packed_prompts_are_answered_as_padded_ones(spec):
    @given(conversations(spec, holes=False))
    def check(prompt):
        arguments = prompt.arguments()
        ids, mask = arguments.pop("input_ids"), kept(prompt)
        del arguments["attention_mask"]
        bounds = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
        packed = get_decode_position_ids(ids[mask], spec, cu_seqlens=bounds, **arguments)
        assert_same(packed, decode(prompt))

    check()


def test_a_capacity_that_is_too_small_gives_no_answer_where_it_cannot_be_refused():
    positions, lengths = decode_of(
        ["t"], image_grid_thw=[[1, 1, 2]], max_decode_tokens=2, validate=False
    )
    assert (positions.tolist(), lengths.tolist()) == ([[[-1, -1]] * 3], [-1])


def test_compiled_decode_positions_equal_eager_ones_and_a_misfit_gives_no_answer():
    compiled = torch.compile(get_decode_position_ids, backend="eager", fullgraph=True, dynamic=True)
    rows = {"fits": ["t<I>t", "ttt<t"], "does not": ["t<II>", "tttt<"]}
    grids = torch.tensor([[1, 1, 1], [1, 2, 2], [1, 3, 1]])
    arguments = {
        "image_grid_thw": grids,
        "images_per_sample": torch.tensor([2, 1]),
        "max_decode_tokens": 7,
    }
    ids = ids_of(*rows["fits"])
    assert_same(
        compiled(ids, TRANSFORMERS, **arguments),
        get_decode_position_ids(ids, TRANSFORMERS, **arguments),
    )
    positions, lengths = compiled(ids_of(*rows["does not"]), TRANSFORMERS, **arguments)
    assert torch.equal(positions, torch.full_like(positions, -1))
    assert lengths.tolist() == [-1, -1]


def test_where_values_cannot_be_read_a_capacity_is_needed_and_suffices():
    with FakeTensorMode():
        for device in ("cpu", "meta"):
            ids = torch.empty((2, 5), dtype=torch.int64, device=device)
            arguments = {
                "attention_mask": torch.empty_like(ids),
                "image_grid_thw": torch.empty((3, 3), dtype=torch.int64, device=device),
                "images_per_sample": torch.empty(2, dtype=torch.int64, device=device),
                "validate": False,
            }
            positions, lengths = get_decode_position_ids(
                ids, TRANSFORMERS, max_decode_tokens=6, **arguments
            )
            assert (positions.shape, lengths.shape) == ((2, 3, 6), (2,))
        with pytest.raises(ValueError, match="max_decode_tokens must be given where values cannot"):
            get_decode_position_ids(ids, TRANSFORMERS, **arguments)


def test_grids_on_another_device_are_moved_to_the_ids():
    with FakeTensorMode():
        ids = torch.empty((2, 5), dtype=torch.int64, device="meta")
        answers = get_decode_position_ids(
            ids,
            TRANSFORMERS,
            attention_mask=torch.empty((2, 5), dtype=torch.int64),
            image_grid_thw=torch.empty((3, 3), dtype=torch.int64),
            images_per_sample=torch.empty(2, dtype=torch.int64),
            validate=False,
            max_decode_tokens=6,
        )
        assert {tensor.device.type for tensor in answers} == {"meta"}
