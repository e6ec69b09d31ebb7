import pytest
import torch
from bench_support import (
    FAMILIES,
    SPEC,
    STEPS,
    points,
)

from bench.workloads import SIZES, make_workload
from vecrope import MRopeSpec
from vecrope.testing import reference


def test_sizes_are_those_that_the_help_names():
    assert SIZES["seed"] == tuple(2**exponent for exponent in range(18))
    assert SIZES["video"] == (4096, 32768, 131072)
    assert (SIZES["batch"], SIZES["short"]) == ((4096,), (300,))
    assert SIZES["long"] == (2**20, 2**21, 2**22, 2**23)
    assert {SIZES[name] for name in FAMILIES} == {(1024, 16384, 131072)}
    assert {SIZES[name] for name in STEPS} == {(4096,)}


@points
def test_workload_has_its_shape_and_types(name, seq_len):
    workload = make_workload(name, seq_len)
    shape = (32 if name == "batch" else 1, seq_len)
    assert workload.input_ids.shape == workload.mm_token_type_ids.shape == shape
    tensors = [value for value in vars(workload).values() if isinstance(value, torch.Tensor)]
    assert {tensor.dtype for tensor in tensors} == {torch.int64}


@points
def test_workload_types_are_the_ones_read_off_its_ids(name, seq_len):
    workload = make_workload(name, seq_len)
    for row, types in zip(workload.input_ids, workload.mm_token_type_ids, strict=True):
        read = reference.token_types(
            row.tolist(),
            image_token_id=SPEC.image_token_id,
            video_start_token_id=SPEC.video_start_token_id,
            video_end_token_id=SPEC.video_end_token_id,
            marker_rule="last",
        )
        assert types.tolist() == read


def test_seed_holds_an_image_and_a_frame_where_they_fit():
    for seq_len in SIZES["seed"]:
        workload = make_workload("seed", seq_len)
        counts = torch.bincount(workload.mm_token_type_ids[0], minlength=3).tolist()
        if seq_len < 1024:
            assert counts == [seq_len, 0, 0]
            assert workload.image_grid_thw is None
            assert workload.video_grid_thw is None
        else:
            assert counts == [seq_len - 512, 256, 256]
            assert workload.image_grid_thw.tolist() == [[1, 32, 32]]
            assert workload.video_grid_thw.tolist() == [[1, 32, 32]]


@pytest.mark.parametrize(("seq_len", "frames"), [(4096, 15), (32768, 124), (131072, 496)])
def test_video_fills_its_row_with_frames_eight_tokens_apart(seq_len, frames):
    workload = make_workload("video", seq_len)
    assert workload.video_grid_thw.tolist() == [[frames, 32, 32]]
    types = workload.mm_token_type_ids[0]
    starts = (types.diff() == 2).nonzero().flatten() + 1
    stops = (types.diff() == -2).nonzero().flatten() + 1
    assert (stops - starts).tolist() == [256] * frames
    assert (starts[1:] - stops[:-1]).tolist() == [8] * (frames - 1)
    assert seq_len - int(stops[-1]) < 264


def test_batch_is_ragged_and_padded_on_both_sides():
    workload = make_workload("batch", 4096)
    mask = workload.attention_mask
    assert (mask.diff(dim=1) != 0).sum(1).max() == 2  # one run of tokens a row
    assert mask.sum(1).unique().numel() > 24
    assert (mask[:, 0] == 0).any()
    assert (mask[:, -1] == 0).any()
    assert workload.mm_token_type_ids.masked_fill(mask == 1, 0).eq(0).all()
    assert len(workload.image_grid_thw) > 32
    assert len(workload.video_grid_thw) > 32


def test_batch_is_the_same_each_time():
    first = make_workload("batch", 4096)
    make_workload.cache_clear()
    assert torch.equal(make_workload("batch", 4096).input_ids, first.input_ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_workload_of_a_family_holds_an_image_a_video_and_text(name):
    for seq_len in SIZES[name]:
        workload = make_workload(name, seq_len)
        spec = MRopeSpec.for_model(name, convention="sglang")
        assert workload.model_type == name
        assert workload.input_ids.shape == (1, seq_len)
        counts = torch.bincount(workload.mm_token_type_ids[0]).tolist()
        assert counts[1:] == [256, seq_len // 2]
        frames = seq_len // 512 * spec.temporal_merge_size
        assert workload.image_grid_thw.tolist() == [[1, 32, 32]]
        assert workload.video_grid_thw.tolist() == [[frames, 32, 32]]
        assert (workload.second_per_grid_ts is not None) == (spec.video_time == "seconds")
        assert (workload.audio_seqlens is not None) == (name == "qwen3_omni_moe")


def test_step_mixes_chunks_of_prompts_with_decoding():
    for name, chunks in (("step", 64), ("step-decode", 0), ("step-omni", 64)):
        workload = make_workload(name, 4096)
        requests, computed, scheduled = workload.step
        lengths = workload.attention_mask.sum(1).tolist()
        assert len(requests) == len(workload.input_ids) == 256
        assert [request.input_ids.shape[1] for request in requests] == lengths
        in_prefill = [at < length for at, length in zip(computed, lengths, strict=True)]
        assert sum(in_prefill) == chunks
        assert max(scheduled) == (512 if chunks else 1)
