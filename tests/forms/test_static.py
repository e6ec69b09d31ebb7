"""The static form, forced: against the loop, by its operators, and without worker threads."""

import re

import pytest
import torch
from hypothesis import given, settings
from oracles import RULES, build, each_rule, spec_of
from support import FITTING, assert_no_answer, assert_same, fitting, misfitting, rope_index
from torch.utils._python_dispatch import TorchDispatchMode

from vecrope import get_rope_index, plan_rope_index
from vecrope.core import search
from vecrope.core.items import make_items
from vecrope.core.stream import make_stream
from vecrope.forms.static import locate
from vecrope.inputs import Inputs
from vecrope.testing import Prompt, Refusal

EXAMPLES = max(settings.default.max_examples // 2, 5)
TEAM = ("repeat_interleave", "searchsorted")


class Recorder(TorchDispatchMode):
    """Records the operators that are dispatched, and the most elements that each was given."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        sizes = [value.numel() for value in args if isinstance(value, torch.Tensor)]
        self.calls.append((str(operator), max(sizes, default=0)))
        return operator(*args, **(kwargs or {}))


def operators(prompt, **options):
    with Recorder() as recorder:
        rope_index(prompt, form="static", **options)
    return recorder.calls


def mixed(spec, pairs=3, rows=2):
    """Return rows of images and videos of several sizes, masked at the right."""
    merge, frames = spec.spatial_merge_size, spec.temporal_merge_size
    images, videos, lines = [], [], []
    for _ in range(rows):
        line = ""
        for side in range(1, pairs + 1):
            image = spec.image_token_id is not None
            video = "I" if spec.video_token_id is None else "V"
            takes_video = spec.video_token_id is not None or spec.marker_rule in ("last", "count")
            if image:
                images.append([1, side * merge, merge])
                line += f"t<{'I' * side}>"
            if takes_video:
                videos.append([frames, merge, side * merge])
                line += f"t[{video * side}]" if video == "I" else f"t<{video * side}>"
        lines.append(line)
    width = len(lines[0]) + 5
    seconds = [1.5] * len(videos) if spec.video_time == "seconds" else None
    return Prompt.from_symbols(
        spec,
        [line.ljust(width, "t") for line in lines],
        mask=["1" * (width - 2) + "00"] * rows,
        image_grid_thw=images,
        video_grid_thw=videos,
        second_per_grid_ts=seconds,
    )


def packed(prompt, *, empty=0):
    """Return the arguments that make a prompt's rows packed sequences."""
    batch, seq_len = prompt.input_ids.shape
    changes = {"input_ids": prompt.input_ids.flatten()}
    if prompt.attention_mask is not None:
        changes["attention_mask"] = prompt.attention_mask.flatten()
    bounds = [*range(0, batch * seq_len + 1, seq_len), *[batch * seq_len] * empty]
    return {**changes, "cu_seqlens": torch.tensor(bounds)}


# Answers


@each_rule
def test_the_loop_is_equalled_or_both_refuse(spec):
    @settings(max_examples=EXAMPLES)
    @given(fitting(spec) | misfitting(spec))
    def check(prompt):
        for types in (None, prompt.mm_token_type_ids):
            changes = {"form": "static", "mm_token_type_ids": types}
            try:
                expected = prompt.expected()
            except Refusal:
                if types is None:
                    with pytest.raises(ValueError, match=r"grid|second"):
                        rope_index(prompt, **changes)
                continue
            assert_same(rope_index(prompt, **changes), expected)
            assert_same(rope_index(prompt, validate=False, **changes), expected)

    check()


@each_rule
def test_packed_rows_are_answered_as_rows_wherever_empty_sequences_stand(spec):
    @settings(max_examples=EXAMPLES)
    @given(FITTING["conversations"](spec))
    def check(prompt):
        position_ids, rope_deltas = rope_index(prompt, form="static")
        batch, seq_len = prompt.input_ids.shape
        changes = packed(prompt)
        bounds = changes.pop("cu_seqlens").repeat_interleave(2)
        got = rope_index(prompt, form="static", cu_seqlens=bounds, **changes)
        assert torch.equal(got[0].view(3, batch, seq_len), position_ids)
        assert torch.equal(got[1][1::2], rope_deltas)
        assert not got[1][::2].any()

    check()


@pytest.mark.parametrize("form", ["eager", "static"])
@pytest.mark.parametrize("bounds", [[0, 3, 3], [0, 0, 3], [0, 3, 3, 3, 3]])
@each_rule
def test_an_empty_sequence_does_not_cut_the_run_in_front_of_it(spec, bounds, form):
    if spec.image_token_id is None:
        pytest.skip("the family has no images")
    merge = spec.spatial_merge_size
    prompt = Prompt.from_symbols(spec, ["<II"], image_grid_thw=[[1, merge, 2 * merge]])
    position_ids, _ = prompt.expected()
    ids, bounds = prompt.input_ids[0], torch.tensor(bounds)
    got, _ = rope_index(prompt, form=form, input_ids=ids, cu_seqlens=bounds)
    assert torch.equal(got, position_ids[:, 0])


@pytest.mark.parametrize("ids", [(2**31 - 1, 2**31 - 2), (2**31 - 2, 2**31 - 1)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("model_type", ["glm4v", "qwen2_vl"])
def test_the_largest_ids_are_ids(model_type, dtype, ids):
    by_markers = model_type == "glm4v"
    fields = {"image_token_id": ids[0]}
    fields["video_start_token_id" if by_markers else "video_token_id"] = ids[1]
    prompt = build(
        model_type,
        "transformers",
        ["t<II>t[V]"],
        fields=fields,
        image_grid_thw=[[1, 2, 4]],
        video_grid_thw=[[1 if by_markers else 2, 2, 2]] if by_markers else [[1, 2, 2]],
    )
    want, _ = prompt.expected()
    got, _ = rope_index(prompt, form="static", input_ids=prompt.input_ids.to(dtype))
    assert torch.equal(got.long(), want)


def test_a_frame_that_masked_tokens_interrupt_touches_the_next_one_all_the_same():
    prompt = build(
        "glm4v",
        "vllm",
        ["[IItII]"],
        mask=["1110111"],
        video_grid_thw=[[2, 2, 4]],
    )
    message = "row 0, video 0: .* got nothing at frame 0"
    changes = {"input_ids": torch.cat((prompt.input_ids[:, :2], prompt.input_ids[:, 2:]), 1)}
    with pytest.raises(ValueError, match=message):
        rope_index(
            build("glm4v", "vllm", ["[ItIII]"], mask=["1101111"], video_grid_thw=[[2, 2, 4]]),
            form="static",
        )
    with pytest.raises(ValueError, match="got nothing at frame 1"):
        rope_index(prompt, form="static", **changes)


def test_a_misfit_that_is_traced_gives_no_answer():
    prompt = mixed(spec_of("qwen2_vl", "sglang"))
    traced = torch.compile(get_rope_index, backend="eager", fullgraph=True, dynamic=True)
    assert_same(rope_index(prompt, traced), prompt.expected())
    wrong = prompt.image_grid_thw.roll(1, 0)
    assert_no_answer(rope_index(prompt, traced, image_grid_thw=wrong))


# Locations


def test_tokens_are_located():
    prompt = build(
        "glm4v",
        "sglang",
        ["t<II>t[I]t[I]tt"],
        mask=["1" * 14 + "0"],
        image_grid_thw=[[1, 2, 4]],
        video_grid_thw=[[2, 2, 2]],
    )
    stream = make_stream(Inputs(**prompt.arguments()), prompt.spec)
    grids = prompt.image_grid_thw, prompt.video_grid_thw
    items = make_items(*grids, prompt.spec, stream.index_dtype)
    located = locate(stream, prompt.spec, items)
    flags = located.image, located.video, located.masked
    assert [flag.nonzero().view(-1).tolist() for flag in flags] == [[2, 3], [7, 11], [14]]
    visual = located.visual
    assert located.item[visual].tolist() == [0, 0, 1, 1]
    assert located.place[visual].tolist() == [0, 1, 0, 0]
    assert located.begins.nonzero().view(-1).tolist() == [2, 7, 11]
    assert located.base[visual].tolist() == [2, 2, 7, 11]


# Operators


CASES = [
    pytest.param(spec, flat, types, id=f"{spec.model_type}-{spec.convention}-{flat}-{types}")
    for spec in RULES
    for flat in ("padded", "packed")
    for types in ("ids", "types")
]


@pytest.mark.parametrize(("spec", "flat", "types"), CASES)
def test_at_most_130_operators_whatever_the_prompt_holds(spec, flat, types, monkeypatch):
    """Views and the search for faults included, packed input too; checks of values are not.

    These are 56 at the most, under tracing alone.
    """
    counts, checked = set(), set()
    for pairs, rows in ((2, 2), (5, 3)):
        prompt = mixed(spec, pairs, rows)
        changes = packed(prompt) if flat == "packed" else {}
        if types == "types":
            types_of = prompt.mm_token_type_ids
            changes["mm_token_type_ids"] = types_of.flatten() if flat == "packed" else types_of
        # As under tracing, where a misfit is written into the answer.
        with monkeypatch.context() as patch:
            patch.setattr("torch.compiler.is_compiling", lambda: True)
            checked.add(len(operators(prompt, **changes)))
            patch.setattr("vecrope.forms.static.unsound", lambda *_: False)
            counts.add(len(operators(prompt, **changes)))
    assert max(counts) <= 130
    assert len(counts) == len(checked) == 1
    assert max(checked) - max(counts) <= 56


@each_rule
def test_small_input_starts_no_worker_threads(spec):
    for flat in (False, True):
        prompt = mixed(spec)
        calls = operators(prompt, **(packed(prompt, empty=2) if flat else {}))
        started = [call for call in calls if any(name in call[0] for name in TEAM)]
        assert not started


def test_large_input_may_start_them(monkeypatch):
    monkeypatch.setattr(search, "PARALLEL_FROM", 1)
    prompt = mixed(spec_of("qwen2_vl", "vllm"))
    names = {name for name, _ in operators(prompt)}
    assert any("searchsorted" in name for name in names)
    assert_same(rope_index(prompt, form="static"), prompt.expected())


# What is left out


def test_get_rope_index_takes_no_capacity():
    with pytest.raises(TypeError, match=re.escape("'max_segments'")):
        get_rope_index(torch.zeros((1, 2), dtype=torch.int64), RULES[0], max_segments=3)
    plan_rope_index(torch.zeros((1, 2), dtype=torch.int64), RULES[0], max_groups=3)
