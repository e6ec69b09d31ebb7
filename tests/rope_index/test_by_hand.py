import pytest
import torch
from support import CONVENTIONS, assert_same, grid_tensor, rope_index, spec_of

from tests.rope_index.forms import each_convention, each_form, parametrize
from vecrope import get_rope_index
from vecrope.testing import Prompt


@each_convention
@each_form
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_a_long_prompt(spec, form, dtype):
    texts = 70_000
    row = "t" * texts + "IIII" + "t"
    prompt = Prompt.from_symbols(spec, [row], image_grid_thw=[[1, 4, 4]])
    answer = rope_index(prompt, form, input_ids=prompt.input_ids.to(dtype))
    t, h, w = (list(range(texts)) for _ in range(3))
    t += [texts, texts, texts, texts, texts + 2]
    h += [texts, texts, texts + 1, texts + 1, texts + 2]
    w += [texts, texts + 1, texts, texts + 1, texts + 2]
    assert_same(answer, (torch.tensor([[t], [h], [w]], dtype=dtype), torch.tensor([[-2]])))


_ = None  # a masked place


BY_HAND = {
    "text": (
        {"rows": ["tttt"]},
        ([[0, 1, 2, 3]], [[0, 1, 2, 3]], [[0, 1, 2, 3]]),
        {"sglang": [0], "transformers": [0]},
    ),
    "an image of two lines of three": (
        {"rows": ["t<IIIIII>t"], "image_grid_thw": [[1, 4, 6]]},
        (
            [[0, 1, 2, 2, 2, 2, 2, 2, 5, 6]],
            [[0, 1, 2, 2, 2, 3, 3, 3, 5, 6]],
            [[0, 1, 2, 3, 4, 2, 3, 4, 5, 6]],
        ),
        {"sglang": [-3], "transformers": [-3]},
    ),
    "a video of two frames with a timestamp after each": (
        {"rows": ["[<II>t<II>t]"], "video_grid_thw": [[2, 2, 4]]},
        (
            [[0, 1, 2, 2, 4, 5, 6, 7, 7, 9, 10, 11]],
            [[0, 1, 2, 2, 4, 5, 6, 7, 7, 9, 10, 11]],
            [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]],
        ),
        {"sglang": [0], "transformers": [0]},
    ),
    "padding on the left, on the right, and a row of nothing else": (
        {
            "rows": ["tttIIIIt", "IIIItttt", "tIt[ttII"],
            "mask": ["00111111", "11111000", "00000000"],
            "image_grid_thw": [[1, 4, 4], [1, 8, 2]],
        },
        (
            [[_, _, 0, 1, 1, 1, 1, 3], [0, 0, 0, 0, 4, _, _, _], [_] * 8],
            [[_, _, 0, 1, 1, 2, 2, 3], [0, 1, 2, 3, 4, _, _, _], [_] * 8],
            [[_, _, 0, 1, 2, 1, 2, 3], [0, 0, 0, 0, 4, _, _, _], [_] * 8],
        ),
        {"sglang": [-4, -3, -8], "transformers": [-2, 0, 0]},
    ),
    "a masked token alone": (
        {"rows": ["t"], "mask": ["0"]},
        ([[_]],) * 3,
        {"sglang": [-1], "transformers": [0]},
    ),
    "a hole in the mask inside an image leaves one image": (
        {"rows": ["tItIII]t"], "mask": ["11011101"], "image_grid_thw": [[1, 4, 4]]},
        (
            [[0, 1, _, 1, 1, 1, _, 3]],
            [[0, 1, _, 1, 2, 2, _, 3]],
            [[0, 1, _, 2, 1, 2, _, 3]],
        ),
        {"sglang": [-4], "transformers": [-2]},
    ),
    "masked markers mark nothing": (
        {
            "rows": ["[It[It]I"],
            "mask": ["01111101"],
            "image_grid_thw": [[1, 2, 2]],
            "video_grid_thw": [[2, 2, 2]],
        },
        ([[_, 0, 1, 2, 3, 4, _, 5]],) * 3,
        {"sglang": [-2], "transformers": [0]},
    ),
    "a video over two rows, then another": (
        {"rows": ["[IIt", "[IIt", "[I]t"], "video_grid_thw": [[2, 2, 4], [1, 2, 2]]},
        (
            [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]],
            [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]],
            [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]],
        ),
        {"sglang": [0, 0, 0], "transformers": [0, 0, 0]},
    ),
}


@each_convention
@each_form
@parametrize("case", BY_HAND)
def test_by_hand(case, form, spec):
    arguments, axes, deltas = case
    prompt = Prompt.from_symbols(spec, **arguments)
    filled = [
        [[spec.padding_value if position is _ else position for position in row] for row in axis]
        for axis in axes
    ]
    expected = torch.tensor(filled), torch.tensor(deltas[spec.convention])[:, None]
    assert_same(rope_index(prompt, form), expected)
    assert_same(rope_index(prompt, form, mm_token_type_ids=prompt.mm_token_type_ids), expected)


@each_form
@pytest.mark.parametrize(
    ("rows", "grids", "sglang", "transformers"),
    [
        pytest.param(
            "[[I]It",
            {"image_grid_thw": [[1, 2, 2]], "video_grid_thw": [[1, 2, 2]]},
            [[0, 1, 2, 3, 4, 5]] * 3 + [0],
            None,
            id="two starts and one end: a video's frame, then an image",
        ),
        pytest.param(
            "[[I]It",
            {"video_grid_thw": [[2, 2, 2]]},
            None,
            [[0, 1, 2, 3, 4, 5]] * 3 + [0],
            id="two starts and one end: two frames of a video",
        ),
        pytest.param(
            "tIIIt",
            {"image_grid_thw": [[3, 2, 2]]},
            [[0, 1, 2, 3, 4], [0, 1, 1, 1, 4], [0, 1, 1, 1, 4], 0],
            [[0, 1, 2, 3, 2], [0, 1, 1, 1, 2], [0, 1, 1, 1, 2], -1],
            id="an image of three frames",
        ),
    ],
)
def test_where_the_conventions_differ(form, rows, grids, sglang, transformers):
    for convention, answer in (("sglang", sglang), ("transformers", transformers)):
        prompt = Prompt.from_symbols(spec_of("glm4v", convention), [rows], **grids)
        if answer is None:
            with pytest.raises(ValueError, match="beyond the last grid"):
                rope_index(prompt, form)
            continue
        t, h, w, delta = answer
        expected = torch.tensor([[t], [h], [w]]), torch.tensor([[delta]])
        assert_same(rope_index(prompt, form), expected)


@each_convention
@each_form
def test_types_that_contradict_the_ids_are_believed(form, spec):
    prompt = Prompt.from_symbols(
        spec, ["IIt[tIt"], image_grid_thw=[[1, 2, 2]], video_grid_thw=[[1, 4, 2]]
    )
    types = torch.tensor([[0, 0, 2, 2, 1, 0, 0]])
    t, h, w = [0, 1, 2, 2, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 2, 4, 5, 6]
    answer = rope_index(prompt, form, mm_token_type_ids=types)
    assert_same(answer, (torch.tensor([[t], [h], [w]]), torch.tensor([[0]])))


def test_real_ids_of_every_family():
    for model_type, image, start, end in (
        ("glm4v", 151343, 151341, 151342),
        ("glm4v_moe", 151363, 151341, 151342),
        ("glm46v", 151343, 151361, 151362),
        ("glm_ocr", 59280, 59258, 59259),
    ):
        ids = [[8, image, image, 9, start, 7, image, image, 6, end, image, image]]
        for convention in CONVENTIONS:
            position_ids, rope_deltas = get_rope_index(
                torch.tensor(ids),
                spec_of(model_type, convention),
                image_grid_thw=torch.tensor([[1, 4, 2], [1, 2, 4]]),
                video_grid_thw=torch.tensor([[1, 2, 4]]),
            )
            assert position_ids.tolist() == [
                [[0, 1, 1, 3, 4, 5, 6, 6, 8, 9, 10, 10]],
                [[0, 1, 2, 3, 4, 5, 6, 6, 8, 9, 10, 10]],
                [[0, 1, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11]],
            ]
            assert rope_deltas.tolist() == [[0]]


@each_convention
@each_form
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_a_batch_without_tokens(spec, form, shape, dtype):
    ids = torch.empty(shape, dtype=dtype)
    expected = ids.new_empty((3, *shape)), torch.zeros((shape[0], 1), dtype=torch.int64)
    grids = {"image_grid_thw": grid_tensor([]), "video_grid_thw": grid_tensor([[0, 0, 0]])}
    rest = {"attention_mask": ids.bool(), "mm_token_type_ids": ids}
    for arguments in ({}, grids, rest, {**grids, **rest}):
        assert_same(form(ids, spec, **arguments), expected)
        assert_same(form(ids, spec, validate=False, **arguments), expected)
    with pytest.raises(ValueError, match="left over: expected 2 image tokens in all, got 0"):
        form(ids, spec, image_grid_thw=torch.tensor([[1, 2, 4]]))


@each_convention
@pytest.mark.parametrize("number", [1, 4, 8, 13])
@pytest.mark.parametrize("flat", [False, True], ids=["padded", "packed"])
def test_columns_of_padding_are_behind(spec, number, flat):
    row = torch.tensor([[7, spec.image_token_id, spec.image_token_id, 8, 9, 7]])
    arguments = {"image_grid_thw": torch.tensor([[1, 2, 4]]), "input_ids": row}
    if flat:
        arguments |= {"input_ids": row[0], "cu_seqlens": torch.tensor([0, 6])}
    expected = get_rope_index(spec=spec, **arguments)
    position_ids, rope_deltas = get_rope_index(spec=spec, **arguments, pad_to_multiple_of=number)
    assert position_ids.shape[-1] == -(-6 // number) * number
    assert_same((position_ids[..., :6], rope_deltas), expected)
    assert (position_ids[..., 6:] == spec.padding_value).all()
