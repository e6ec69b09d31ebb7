"""The omni families where shapes must not depend on values: fake tensors and tracing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from omni_support import OMNI, each_omni, rope_index, spec_of
from support import assert_no_answer, assert_same
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode

from tests.own_rules.omni.mixtures import mixtures
from vecrope import get_rope_index
from vecrope.inputs import Inputs
from vecrope.own_rules import dispatch
from vecrope.own_rules.common import operands_of
from vecrope.testing import Prompt, Refusal, conversations, token_soup
from vecrope.testing.sound import video_with_sound


def padded(values, rows):
    """Return integers with rows of zeros behind them."""
    return torch.nn.functional.pad(values, (*(0, 0) * (values.dim() - 1), 0, rows - len(values)))


def roomy(prompt):
    """Give every size a value of its own, of two or more: others torch compiles on their own."""
    batch, seq_len = prompt.input_ids.shape
    images, videos, audios = (
        torch.empty((0, *shape), dtype=torch.int64) if values is None else values
        for values, shape in (
            (prompt.image_grid_thw, (3,)),
            (prompt.video_grid_thw, (3,)),
            (prompt.audio_seqlens, ()),
        )
    )
    seconds = prompt.second_per_grids
    seconds = torch.empty(0) if seconds is None else seconds
    mask = torch.zeros((batch + 2, seq_len + 9), dtype=torch.int64)
    mask[:batch, :seq_len] = 1 if prompt.attention_mask is None else prompt.attention_mask
    ids = torch.zeros_like(mask)
    ids[:batch, :seq_len] = prompt.input_ids
    return replace(
        prompt,
        input_ids=ids,
        attention_mask=mask,
        image_grid_thw=padded(images, len(images) + 5),
        video_grid_thw=padded(videos, len(videos) + 7),
        second_per_grids=padded(seconds, len(videos) + 7),
        audio_seqlens=padded(audios, len(audios) + 11),
    )


# Fake tensors have no values


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize("given", [True, False])
@each_omni
def test_no_operation_depends_on_a_value(model_type, convention, device, sound, given):
    spec = spec_of(model_type, convention)
    with FakeTensorMode():
        ids = torch.empty((2, 7), dtype=torch.int64, device=device)
        media = {
            "image_grid_thw": torch.empty((3, 3), dtype=torch.int64, device=device),
            "video_grid_thw": torch.empty((2, 3), dtype=torch.int64, device=device),
            "second_per_grids": torch.empty(2, device=device),
            "audio_seqlens": torch.empty(4, dtype=torch.int64, device=device),
        }
        # Whether a mask masks anything is asked of a CPU alone.
        mask = torch.empty_like(ids, dtype=torch.bool) if device == "meta" else None
        position_ids, rope_deltas = get_rope_index(
            ids,
            spec,
            attention_mask=mask,
            use_audio_in_video=sound,
            validate=False,
            **(media if given else {}),
        )
    assert position_ids.shape == (3, 2, 7)
    assert rope_deltas.shape == (2, 1)
    assert position_ids.device.type == rope_deltas.device.type == device


# torch.compile


@pytest.fixture
def compiled():
    def compile_rope_index(backend):
        counter = CompileCounterWithBackend(backend)
        function = torch.compile(get_rope_index, fullgraph=True, dynamic=True, backend=counter)
        return function, counter

    torch._dynamo.reset()
    yield compile_rope_index
    torch._dynamo.reset()


def warm_up(spec, sound):
    video = "<(VVAA)>" if sound else "<VV>(AA)"
    return roomy(
        Prompt.from_symbols(
            spec,
            [f"t<II>{video}t", "ttttttttttttt<I>"[: 6 + len(video)]],
            image_grid_thw=[[1, 2, 4]] + [[1, 2, 2]] * (len(video) >= 10),
            video_grid_thw=[[1, 2, 4]],
            second_per_grids=[1.0],
            audio_seqlens=[7 if spec.own_rule.n_window is None else 16],
            use_audio_in_video=sound,
        )
    )


@pytest.mark.parametrize(
    ("family", "backend", "sound", "validate"),
    [
        pytest.param(OMNI[0], "eager", True, True, id="chunks-checked"),
        pytest.param(OMNI[1], "eager", True, False, id="vllm-unchecked"),
        pytest.param(OMNI[2], "aot_eager", True, True, id="float32-checked"),
        pytest.param(OMNI[3], "eager", False, True, id="float32-without-sound"),
    ],
)
def test_compiled_equals_eager_and_compiles_once(family, backend, sound, validate, compiled):
    spec = spec_of(*family, 13)
    function, counter = compiled(backend)
    rope_index(warm_up(spec, sound), function, validate=validate)

    @given(conversations(spec, use_audio_in_video=sound))
    def check(prompt):
        prompt = roomy(prompt)
        assert_same(rope_index(prompt, function, validate=validate), prompt.expected())

    check()
    assert counter.frame_count == 1


def test_compiled_a_misfit_has_no_answer(compiled):
    spec = spec_of("qwen3_omni_moe", "transformers", 2)
    function, _ = compiled("eager")

    @given(token_soup(spec))
    def check(prompt):
        prompt = roomy(replace(prompt, use_audio_in_video=True))
        try:
            expected = rope_index(prompt)
        except ValueError:
            assert_no_answer(rope_index(prompt, function))
        else:
            assert_same(rope_index(prompt, function), expected)

    check()
    far = Prompt.from_symbols(
        spec,
        ["<(VVAA)>"],
        video_grid_thw=[[2, 2, 2]],
        second_per_grids=[2.0**23],
        audio_seqlens=[16],
        use_audio_in_video=True,
    )
    with pytest.raises(ValueError, match="must stay below"):
        rope_index(far)
    assert_no_answer(rope_index(roomy(far), function))


def test_compiled_grids_of_other_sizes_have_no_answer(compiled):
    spec = spec_of("qwen3_omni_moe", "transformers", 13)
    function, _ = compiled("eager")
    prompt = roomy(warm_up(spec, sound=True))
    assert_same(rope_index(prompt, function), prompt.expected())
    for name in ("image_grid_thw", "video_grid_thw", "audio_seqlens"):
        changed = getattr(prompt, name).clone()
        changed[0] *= 2
        assert_no_answer(rope_index(replace(prompt, **{name: changed}), function))


# torch.export


class RopeIndex(torch.nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec

    def forward(
        self,
        input_ids,
        attention_mask,
        image_grid_thw,
        video_grid_thw,
        audio_seqlens,
        second_per_grids,
    ):
        return get_rope_index(
            input_ids,
            self.spec,
            attention_mask=attention_mask,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            audio_seqlens=audio_seqlens,
            second_per_grids=second_per_grids,
            use_audio_in_video=True,
            validate=False,
        )


def test_exported_equals_eager():
    spec = spec_of("qwen3_omni_moe", "transformers", 13)

    def arguments(prompt):
        return {k: v for k, v in roomy(prompt).arguments().items() if k != "use_audio_in_video"}

    rows, tokens, videos = Dim("rows"), Dim("tokens"), Dim("videos")
    program = torch.export.export(
        RopeIndex(spec),
        (),
        arguments(warm_up(spec, sound=True)),
        dynamic_shapes={
            "input_ids": {0: rows, 1: tokens},
            "attention_mask": {0: rows, 1: tokens},
            "image_grid_thw": {0: Dim("images")},
            "video_grid_thw": {0: videos},
            "audio_seqlens": {0: Dim("audios")},
            "second_per_grids": {0: videos},
        },
    ).module()

    @settings(max_examples=3)
    @given(conversations(spec, use_audio_in_video=True))
    def check(prompt):
        assert_same(program(**arguments(prompt)), rope_index(roomy(prompt)))

    check()


# The operator


def inputs_of(prompt, **changes):
    return Inputs(
        prompt.input_ids,
        prompt.image_grid_thw,
        prompt.video_grid_thw,
        second_per_grid_ts=prompt.second_per_grids,
        audio_seqlens=prompt.audio_seqlens,
        use_audio_in_video=True,
    )._replace(**changes)


def test_it_is_a_sound_operator():
    prompt = video_with_sound(
        spec_of("qwen3_omni_moe", "transformers", 13), frames=3, height=2, width=2, seconds=0.3
    )
    torch.library.opcheck(dispatch.numbered_on_host, operands_of(inputs_of(prompt), prompt.spec))
    # It waits, so that inductor must not capture it in a CUDA graph.
    assert torch.Tag.cudagraph_unsafe in torch.ops.vecrope.own_rope_index.default.tags


def test_without_a_token_there_is_a_delta_for_each_row():
    spec = spec_of("qwen3_omni_moe", "transformers", 13)
    for shape in ((2, 0), (0, 5)):
        ids = torch.zeros(shape, dtype=torch.int64)
        expected = get_rope_index(ids, spec)
        assert_same(get_rope_index(ids, spec, validate=False), expected)


@each_omni
def test_unchecked_a_misfit_has_no_answer_and_all_else_the_checked_one(model_type, convention):
    spec = spec_of(model_type, convention, 13.0)

    @given(mixtures(spec, max_rows=2) | token_soup(spec))
    def check(prompt):
        answer = rope_index(prompt, validate=False)
        try:
            expected = prompt.expected()
        except Refusal:
            assert_no_answer(answer)
        else:
            assert_same(answer, expected)

    check()


class Operators(TorchDispatchMode):
    """Count the operators that are no views and no bare storage."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        self.number += not function.is_view and name not in ("empty", "new_empty", "_unsafe_view")
        return function(*args, **(kwargs or {}))


@each_omni
def test_few_operators_on_the_host(model_type, convention):
    prompt = video_with_sound(
        spec_of(model_type, convention, 13), frames=4, height=2, width=2, seconds=0.5
    )
    with Operators() as on_host:
        rope_index(prompt)
    assert on_host.number <= 10
