from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from own_support import SPECS, answer, each_spec
from support import assert_same, count_waits, grid_list, grid_tensor, kept, no_synchronisation
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.nn.functional import pad

from vecrope import get_decode_position_ids, get_rope_index
from vecrope.families.rules import GlmImage
from vecrope.testing import Prompt, conversations, token_soup


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
        checked, number = count_waits(lambda: get_rope_index(spec=spec, **arguments))
        assert number == 1
        assert_same(checked, answer(prompt))
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
