"""Prompts of any kind against the upstreams: where both answer, the answers are equal."""

from itertools import groupby
from math import isfinite
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import (
    families_of,
    sglang_rope_index,
    spec_of,
    transformers_classes,
    transformers_rope_index,
    vllm_rope_index,
)
from own_support import needs_sglang, needs_vllm
from support import assert_same, grid_list, kept, rope_index

from tests.families.upstreams import each_family_of_sglang, each_family_of_vllm
from vecrope.testing import Prompt, conversations, token_soup

# The rule for prompts of any kind: where both answer, the answers are equal; where one alone
# answers, the prompt shows why.


KINDS = IMAGE, VIDEO = 1, 2


def runs_and_blocks(prompt, kind):
    """Return the lengths of one kind's runs, and the tokens of each of its images or frames."""
    spec = prompt.spec
    runs = []
    for types, keep in zip(prompt.mm_token_type_ids, read(prompt), strict=True):
        runs += [len(list(run)) for value, run in groupby(types[keep].tolist()) if value == kind]
    merge = spec.spatial_merge_size
    grids = grid_list(prompt.image_grid_thw if kind == IMAGE else prompt.video_grid_thw)
    if kind == VIDEO and spec.separate_frames:
        # To SGLang a video of zeros is a frame without tokens.
        grids = [[1, h, w] for t, h, w in grids for _ in range(t or 1)]
    merged = spec.temporal_merge_size if kind == VIDEO else 1
    return runs, [t // merged * (h // merge) * (w // merge) for t, h, w in grids]


def read(prompt):
    """Return (B, T) bool: the tokens that are numbered."""
    keep = kept(prompt)
    return keep | (prompt.spec.mask_rule == "ignore")


def each_run_is_one_sound_block(prompt):
    """Say what an upstream relies on: where it does not hold, an answer is an accident."""
    images, videos = grid_list(prompt.image_grid_thw), grid_list(prompt.video_grid_thw)
    merge = prompt.spec.spatial_merge_size
    sound = all(
        (min(grid) > 0 or not any(grid)) and grid[1] % merge == grid[2] % merge == 0
        for grid in images + videos
    )
    both = (runs_and_blocks(prompt, kind) for kind in KINDS)
    return sound and all(runs == blocks for runs, blocks in both) and has_sound_seconds(prompt)


def has_sound_seconds(prompt):
    """No upstream looks at seconds that it does not need, nor at the sense of those it does."""
    seconds = prompt.second_per_grid_ts
    if seconds is None:
        return True
    values = [float(value) for value in seconds]
    sound = all(isfinite(value) and value >= 0 for value in values)
    return sound and len(values) == len(grid_list(prompt.video_grid_thw))


def has_every_marker(prompt):
    """Say whether there is a vision start right before each run, where SGLang looks for them."""
    if prompt.spec.marker_rule != "adjacent":
        return True
    types = torch.nn.functional.pad(prompt.mm_token_type_ids, (1, 0))
    starts = (types[:, 1:] != 0) & (types[:, 1:] != types[:, :-1])
    marked = torch.nn.functional.pad(prompt.input_ids == prompt.spec.vision_start_token_id, (1, 0))
    return not bool((starts & ~marked[:, :-1]).any())


def has_a_row_without_tokens(prompt):
    return not bool(read(prompt).any(1).all())


def ends_in_a_vision_start(prompt):
    return prompt.spec.marker_rule == "adjacent" and any(
        row.endswith("<") for row in prompt.symbols
    )


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
        if types is not None and not has_every_marker(prompt):
            continue  # SGLang takes no types
        try:
            ours = rope_index(prompt, mm_token_type_ids=types)
        except ValueError:
            assert (
                theirs is None
                or not each_run_is_one_sound_block(prompt)
                or not has_every_marker(prompt)
            )
            continue
        if has_more_blocks_than_runs(prompt):
            continue  # the upstream fails, or spreads a single position over a row
        if theirs is None:
            assert has_a_row_without_tokens(prompt) or ends_in_a_vision_start(prompt)
        else:
            assert_same(ours, theirs)


# transformers, live


each_family = pytest.mark.parametrize("model_type", families_of("transformers"))
PROCESSORS = {
    "glm4v": "Glm4vProcessor",
    "glm4v_moe": "Glm4vProcessor",
    "glm46v": "Glm46VProcessor",
    "glm_ocr": "Glm4vProcessor",
}


def processor_types(prompt):
    """Return the types that GLM's processors read off the ids, which know no mask."""
    import transformers

    spec = prompt.spec
    processor_class = getattr(transformers, PROCESSORS[spec.model_type])
    processor = SimpleNamespace(
        image_token_id=spec.image_token_id,
        video_start_id=spec.video_start_token_id,
        video_end_id=spec.video_end_token_id,
    )
    return torch.tensor(
        processor_class.create_mm_token_type_ids(processor, prompt.input_ids.tolist())
    )


@pytest.mark.parametrize("model_type", ["glm4v", "qwen2_5_vl"])
def test_the_stand_in_answers_as_the_whole_model_does(model_type):
    config_class, model_class = transformers_classes(model_type)
    with torch.device("meta"):
        model = model_class(config_class())
    assert model.config.model_type == model_type

    @settings(max_examples=10)
    @given(conversations(spec_of(model_type, "transformers")))
    def check(prompt):
        assert_same(transformers_rope_index(prompt), model.get_rope_index(**prompt.arguments()))

    check()


@each_family
def test_conversations_are_answered_as_by_transformers(model_type):
    @given(conversations(spec_of(model_type, "transformers")))
    def check(prompt):
        types = prompt.mm_token_type_ids
        if model_type in PROCESSORS:
            assert torch.equal(processor_types(prompt), types)
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
        if kept(prompt).all() and model_type in PROCESSORS:
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


@needs_sglang
@pytest.mark.parametrize("strategy", [conversations, token_soup], ids=lambda s: s.__name__)
@each_family_of_sglang
def test_prompts_are_answered_as_by_sglang(model_type, strategy):
    @given(strategy(spec_of(model_type, "sglang")))
    def check(prompt):
        # With a grid SGLang fails on a row without tokens, where there is nothing to concatenate,
        # and on a row that ends in a vision start, of which it reads the next token.
        no_grid = prompt.image_grid_thw is None and prompt.video_grid_thw is None
        assume(no_grid or not has_a_row_without_tokens(prompt))
        assume(no_grid or not ends_in_a_vision_start(prompt))
        theirs = sglang_rope_index(prompt)
        assert_same(rope_index(prompt), theirs)
        assert_same(rope_index(prompt, mm_token_type_ids=prompt.mm_token_type_ids), theirs)

    check()


@needs_sglang
@each_family_of_sglang
def test_where_sglang_alone_or_vecrope_alone_answers_the_prompt_shows_why(model_type):
    spec = spec_of(model_type, "sglang")

    @given(token_soup(spec, fit=False, touching=True, zero_grids=True))
    def check(prompt):
        assert_alike(prompt, sglang_rope_index)

    check()


@st.composite
def clips(draw, spec, separator):
    """Draw prompts whose frames have this between them, as vLLM's own processors lay them out."""
    rows, images, videos = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        row = ""
        for _ in range(draw(st.integers(1, 4))):
            t, h, w = (draw(st.integers(1, 3)) for _ in range(3))
            row += "t" * draw(st.integers(0 if not row else 1, 3))
            if draw(st.booleans()):
                images.append([1, 2 * h, 2 * w])
                row += "I" * (h * w)
            else:
                videos.append([t, 2 * h, 2 * w])
                row += separator.join(["V" * (h * w)] * t)
        rows.append(row)
    seq_len = max(map(len, rows))
    return Prompt.from_symbols(
        spec,
        [row.ljust(seq_len, "t") for row in rows],
        mask=[("1" * len(row)).ljust(seq_len, "0") for row in rows],
        image_grid_thw=images or None,
        video_grid_thw=videos or None,
    )


def vllm_prompts(model_type):
    spec = spec_of(model_type, "vllm")
    if model_type == "keye":
        return clips(spec, "")
    if model_type == "openpangu_vl":
        return clips(spec, "tt")
    if spec.separate_frames:
        return conversations(spec)
    return conversations(spec) | token_soup(spec)


@needs_vllm
@each_family_of_vllm
def test_prompts_are_answered_as_by_vllm(model_type):
    @given(vllm_prompts(model_type))
    def check(prompt):
        # vLLM has no request without tokens.
        assume(not has_a_row_without_tokens(prompt))
        theirs = vllm_rope_index(prompt)
        assert_same(rope_index(prompt), theirs)
        assert_same(rope_index(prompt, mm_token_type_ids=prompt.mm_token_type_ids), theirs)

    check()


@needs_vllm
def test_vllm_numbers_frames_of_glm_without_anything_between_them_as_one_block():
    """There vecrope refuses, under vLLM's convention; under the others it numbers each frame."""
    prompt = Prompt.from_symbols(spec_of("glm4v", "vllm"), ["[IIII]"], video_grid_thw=[[2, 2, 4]])
    assert vllm_rope_index(prompt)[0][:, 0].tolist() == [
        [0, 1, 1, 2, 2, 3],
        [0, 1, 1, 1, 1, 3],
        [0, 1, 2, 1, 2, 3],
    ]
    with pytest.raises(ValueError, match="vllm would number the video as a block"):
        rope_index(prompt)
