import json
import os
from functools import cache
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from support import CONVENTIONS, assert_same, grid_list, kept, rope_index, spec_of

from bench.upstreams import sglang_provider
from bench.workloads import Workload
from vecrope import MRopeSpec, get_rope_index
from vecrope.testing import Prompt, conversations, token_soup

# Recorded answers

GOLDEN = json.loads((Path(__file__).parent / "glm4v_golden.json").read_text())

# Both upstreams ignore grids that no token asks for, we refuse them: most often an image got lost.
# The numbers of image and video grids that the upstream uses: with only those we answer as it does.
LEFT_OVER = {
    ("left-over grid", "sglang"): (1, 0),
    ("left-over grid", "transformers"): (1, 0),
    ("masked markers do not count", "sglang"): (1, 0),
    ("masked markers do not count", "transformers"): (1, 0),
    ("stray end first", "sglang"): (1, 1),
    ("two starts, one end", "sglang"): (1, 1),
    ("two starts, one end", "transformers"): (0, 2),
}

# transformers takes a grid of one token for a run of two, and then one of two tokens for a run of
# one. The row's length comes out right, so that it answers, by accident. We refuse.
CANCELLING_GRIDS = ("stray end first", "transformers")

# Both upstreams take one grid for all of a run and fail on its length. We cut the run.
ANSWERED = {"adjacent images": ([[0, 1, 2, 2, 4]], [[0, 1, 2, 2, 4]], [[0, 1, 2, 3, 4]])}

# Without any grid SGLang takes the largest position over the padding too, which holds 1. In these
# cases a row has one token, at position 0, and its delta is larger by 1. We follow SGLang's loop.
PADDING_IN_SGLANGS_DELTA = {"random 2", "random 12", "random 26", "random 30", "random 32"}

# The recorded types are transformers'. Where SGLang reads other types off these markers, types
# cannot give its answer.
TYPES_OF_TRANSFORMERS_ONLY = {"stray end first", "two starts, one end"}

BY_IDS_OR_TYPES = [
    pytest.param(case, upstream, by_types, id=f"{case['name']}-{upstream}-{way}")
    for case in GOLDEN["cases"]
    for upstream in CONVENTIONS
    for way, by_types in (("ids", False), ("types", True))
    if not (by_types and upstream == "sglang" and case["name"] in TYPES_OF_TRANSFORMERS_ONLY)
]


@pytest.mark.parametrize(("case", "upstream", "by_types"), BY_IDS_OR_TYPES)
def test_recorded_answers(case, upstream, by_types):
    name, expected = case["name"], case[upstream]
    config = {"model_type": "glm4v", **GOLDEN["config"], "vision_config": GOLDEN["config"]}
    spec = MRopeSpec.from_config(config, convention=upstream)
    names = ["input_ids", "attention_mask", "image_grid_thw", "video_grid_thw"]
    names += ["mm_token_type_ids"] * by_types
    tensors = {key: torch.tensor(case[key]) for key in names if case[key] is not None}

    if name in ANSWERED:
        assert expected == {"raises": "RuntimeError"}
        answer = get_rope_index(spec=spec, **tensors)
        assert_same(answer, (torch.tensor(ANSWERED[name]), torch.tensor([[0]])))
        return
    if "raises" in expected or (name, upstream) == CANCELLING_GRIDS:
        with pytest.raises(ValueError, match=r"row 0.* expected|row 0.* grid .* needs"):
            get_rope_index(spec=spec, **tensors)
        return
    if (name, upstream) in LEFT_OVER:
        with pytest.raises(ValueError, match="left over"):
            get_rope_index(spec=spec, **tensors)
        images, videos = LEFT_OVER[name, upstream]
        for key, used in (("image_grid_thw", images), ("video_grid_thw", videos)):
            if key in tensors:
                tensors[key] = tensors[key][:used]

    rope_deltas = torch.tensor(expected["rope_deltas"])
    if upstream == "sglang" and name in PADDING_IN_SGLANGS_DELTA:
        one_token = tensors["attention_mask"].sum(1, keepdim=True) == 1
        assert one_token.any()
        rope_deltas -= one_token.long()
    answer = get_rope_index(spec=spec, **tensors)
    assert_same(answer, (torch.tensor(expected["position_ids"]), rope_deltas))


def test_every_exception_names_a_recorded_case():
    names = {case["name"] for case in GOLDEN["cases"]}
    exceptions = {*dict(LEFT_OVER), CANCELLING_GRIDS}
    assert len(names) == len(GOLDEN["cases"]) == 66
    assert {name for name, _ in exceptions} | {*ANSWERED} | PADDING_IN_SGLANGS_DELTA <= names


# The rule for prompts of any kind: where both answer, the answers are equal; where one alone
# answers, the prompt shows why.

KINDS = IMAGE, VIDEO = 1, 2


def runs_and_blocks(prompt, kind):
    """Return the lengths of one kind's runs, and the tokens of each of its images or frames."""
    runs = []
    for types, keep in zip(prompt.mm_token_type_ids, kept(prompt), strict=True):
        runs += [len(list(run)) for value, run in groupby(types[keep].tolist()) if value == kind]
    merge = prompt.spec.spatial_merge_size
    if kind == IMAGE:
        blocks = [t * (h // merge) * (w // merge) for t, h, w in grid_list(prompt.image_grid_thw)]
    else:
        # To SGLang a video of zeros is a frame without tokens.
        videos = grid_list(prompt.video_grid_thw)
        blocks = [(h // merge) * (w // merge) for t, h, w in videos for _ in range(t or 1)]
    return runs, blocks


def each_run_is_one_sound_block(prompt):
    """Say what an upstream relies on: where it does not hold, an answer is an accident."""
    grids = grid_list(prompt.image_grid_thw) + grid_list(prompt.video_grid_thw)
    merge = prompt.spec.spatial_merge_size
    sound = all(
        (min(grid) > 0 or not any(grid)) and grid[1] % merge == grid[2] % merge == 0
        for grid in grids
    )
    both = (runs_and_blocks(prompt, kind) for kind in KINDS)
    return sound and all(runs == blocks for runs, blocks in both)


def has_a_row_without_tokens(prompt):
    return not bool(kept(prompt).any(1).all())


def has_more_blocks_than_runs(prompt):
    """Because some of them touch, or are zeros: the upstreams know neither."""
    both = (runs_and_blocks(prompt, kind) for kind in KINDS)
    return any(len(blocks) > len(runs) for runs, blocks in both)


def assert_alike(prompt, upstream):
    try:
        theirs = upstream(prompt)
    except Exception:
        theirs = None
    for types in (None, prompt.mm_token_type_ids):
        try:
            ours = rope_index(prompt, mm_token_type_ids=types)
        except ValueError:
            assert theirs is None or not each_run_is_one_sound_block(prompt)
            continue
        if has_more_blocks_than_runs(prompt):
            continue  # the upstream fails, or spreads a single position over a row
        if theirs is None:
            assert has_a_row_without_tokens(prompt)
        else:
            assert_same(ours, theirs)


# transformers, live

CLASSES = {
    "glm4v": ("Glm4v", "Glm4vProcessor"),
    "glm4v_moe": ("Glm4vMoe", "Glm4vProcessor"),
    "glm46v": ("Glm46V", "Glm46VProcessor"),
    "glm_ocr": ("GlmOcr", "Glm4vProcessor"),
}
each_family = pytest.mark.parametrize("model_type", CLASSES)


@cache
def transformers_model(model_type):
    import transformers

    name, _ = CLASSES[model_type]
    config = getattr(transformers, f"{name}Config")()
    with torch.device("meta"):
        model = getattr(transformers, f"{name}Model")(config)
    assert model.config.model_type == model_type
    return model


def transformers_rope_index(prompt):
    return transformers_model(prompt.spec.model_type).get_rope_index(**prompt.arguments())


def processor_types(prompt):
    """Return the types that the family's processor reads off the ids, which knows no mask."""
    import transformers

    spec = prompt.spec
    processor_class = getattr(transformers, CLASSES[spec.model_type][1])
    processor = SimpleNamespace(
        image_token_id=spec.image_token_id,
        video_start_id=spec.video_start_token_id,
        video_end_id=spec.video_end_token_id,
    )
    return torch.tensor(
        processor_class.create_mm_token_type_ids(processor, prompt.input_ids.tolist())
    )


@each_family
def test_a_live_configuration_is_understood(model_type):
    config = transformers_model(model_type).config
    spec = MRopeSpec.from_config(config, convention="transformers")
    assert spec == spec_of(model_type, "transformers")


@each_family
def test_conversations_are_answered_as_by_transformers(model_type):
    @given(conversations(spec_of(model_type, "transformers")))
    def check(prompt):
        types = processor_types(prompt)
        assert torch.equal(types, prompt.mm_token_type_ids)
        theirs = transformers_rope_index(prompt)
        assert_same(rope_index(prompt), theirs)
        assert_same(rope_index(prompt, mm_token_type_ids=types), theirs)

    check()


@each_family
def test_soup_is_answered_as_by_transformers(model_type):
    @given(token_soup(spec_of(model_type, "transformers")))
    def check(prompt):
        # transformers fails on a row without tokens: there is nothing to concatenate.
        assume(not has_a_row_without_tokens(prompt))
        if kept(prompt).all():
            assert torch.equal(processor_types(prompt), prompt.mm_token_type_ids)
        theirs = transformers_rope_index(prompt)
        assert_same(rope_index(prompt), theirs)
        assert_same(rope_index(prompt, mm_token_type_ids=prompt.mm_token_type_ids), theirs)

    check()


@each_family
def test_where_transformers_alone_or_vecrope_alone_answers_the_prompt_shows_why(model_type):
    spec = spec_of(model_type, "transformers")

    @given(token_soup(spec, fit=False, touching=True, zero_grids=True))
    def check(prompt):
        assert_alike(prompt, transformers_rope_index)

    check()


def test_transformers_alone_answers_by_accident():
    """The exceptions of the rule above are real ones: each is an answer we refuse to give."""
    spec = spec_of("glm4v", "transformers")
    for rows, grids in (
        (["tI"], [[1, 2, 2], [1, 2, 2]]),  # left over
        (["IItI"], [[1, 2, 2], [1, 2, 4]]),  # the lengths cancel
        (["tI"], [[1, 3, 2]]),  # not divisible
    ):
        prompt = Prompt.from_symbols(spec, rows, image_grid_thw=grids)
        transformers_rope_index(prompt)
        assert not each_run_is_one_sound_block(prompt)
        with pytest.raises(ValueError, match="grid"):
            rope_index(prompt)


@pytest.mark.parametrize(
    ("rows", "arguments"),
    [
        pytest.param(["tII"], {"image_grid_thw": [[1, 2, 2]] * 2}, id="touching images"),
        pytest.param(["[II]"], {"video_grid_thw": [[2, 2, 2]]}, id="touching frames"),
        pytest.param(["ttI"], {"image_grid_thw": [[0, 0, 0], [1, 2, 2]]}, id="a grid of zeros"),
        pytest.param(["tt", "tt"], {"mask": ["11", "00"]}, id="a row without tokens"),
    ],
)
def test_vecrope_alone_answers_where_transformers_fails(rows, arguments):
    prompt = Prompt.from_symbols(spec_of("glm4v", "transformers"), rows, **arguments)
    with pytest.raises((RuntimeError, ValueError), match=r"expanded size|shape mismatch|non-empty"):
        transformers_rope_index(prompt)
    assert_same(rope_index(prompt), prompt.expected())


# SGLang, from a wheel

SGLANG_WHEEL = os.environ.get("VECROPE_SGLANG_WHEEL")
needs_sglang = pytest.mark.skipif(
    SGLANG_WHEEL is None, reason="VECROPE_SGLANG_WHEEL does not name a wheel of SGLang"
)


@cache
def sglang():
    return sglang_provider(Path(SGLANG_WHEEL))


def sglang_rope_index(prompt):
    """Answer as SGLang does, less what the padding adds to the deltas where no grid is given.

    There SGLang takes the largest position of the row over the padding too, which holds 1.
    """
    arguments = {**prompt.arguments(), "name": "prompt"}
    position_ids, rope_deltas = sglang().prepare(Workload(**arguments))()
    if prompt.image_grid_thw is None and prompt.video_grid_thw is None:
        keep = kept(prompt)
        masked = ~keep.all(1, keepdim=True)
        leaked = (2 - keep.sum(1, keepdim=True)).clamp(min=0) * masked
        rope_deltas = rope_deltas - leaked
    return position_ids, rope_deltas


@needs_sglang
@pytest.mark.parametrize("strategy", [conversations, token_soup], ids=lambda s: s.__name__)
def test_prompts_are_answered_as_by_sglang(strategy):
    @given(strategy(spec_of("glm4v", "sglang")))
    def check(prompt):
        # With a grid SGLang fails on a row without tokens: there is nothing to concatenate.
        grids = (prompt.image_grid_thw, prompt.video_grid_thw)
        assume(grids == (None, None) or not has_a_row_without_tokens(prompt))
        theirs = sglang_rope_index(prompt)
        assert_same(rope_index(prompt), theirs)
        assert_same(rope_index(prompt, mm_token_type_ids=prompt.mm_token_type_ids), theirs)

    check()


@needs_sglang
def test_where_sglang_alone_or_vecrope_alone_answers_the_prompt_shows_why():
    spec = spec_of("glm4v", "sglang")

    @given(token_soup(spec, fit=False, touching=True, zero_grids=True))
    def check(prompt):
        assert_alike(prompt, sglang_rope_index)

    check()
