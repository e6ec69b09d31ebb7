from itertools import pairwise

import pytest
import torch
from bench_support import check, run_quick

from bench import mixed
from bench.answers import prepare_vecrope, tensor_arguments
from bench.mixed import BATCH_ROWS, FAMILIES, GROUPS, PACKED_ROWS
from bench.providers import (
    loop_provider,
    vecrope_concatenate_provider,
    vecrope_placeholders_provider,
    vecrope_provider,
    vecrope_replace_provider,
    vecrope_unchecked_provider,
)
from bench.upstreams import transformers_provider
from bench.workloads import SIZES, make_workload
from vecrope import MRopeSpec, get_rope_index

PROMPTS = ("mixed", "mixed-touching", "pictures")
BATCHES = ("mixed-batch", "pictures-batch")
PACKED = ("mixed-packed", "pictures-packed")
# Each kind at its smallest size.
QUICK = [(kind, SIZES[GROUPS[kind][0]][0]) for kind in (*PROMPTS, *BATCHES, *PACKED)]

each_family = pytest.mark.parametrize("family", FAMILIES)
each_kind = pytest.mark.parametrize(("kind", "size"), QUICK)


def workload_of(kind, family, size):
    return make_workload(f"{kind}-{family}", size)


def sides_of(workload):
    grids = [workload.image_grid_thw, workload.video_grid_thw]
    return [tuple(row[1:]) for grid in grids if grid is not None for row in grid.tolist()]


@each_family
def test_sizes_are_those_of_prompts_that_people_send(family):
    assert SIZES[f"mixed-{family}"] == (400, 1000, 4000, 16384, 131072)
    assert SIZES[f"mixed-touching-{family}"] == (2000, 16384)
    assert BATCH_ROWS == {1000: 8, 4000: 32}
    assert PACKED_ROWS == {1000: 16, 4000: 32}


@each_family
@pytest.mark.parametrize("size", [400, 1000, 4000, 16384, 131072])
def test_mixed_prompt_has_its_length_and_no_size_twice(family, size):
    workload = workload_of("mixed", family, size)
    assert workload.input_ids.shape == (1, size)
    assert len(workload.image_grid_thw) >= (1 if size == 400 else 2)
    assert len(workload.video_grid_thw) >= 1
    sides = sides_of(workload)
    assert len(set(sides)) == len(sides)
    assert all(height != width for height, width in sides)
    assert 0.3 < (workload.mm_token_type_ids > 0).float().mean() < 0.98


@each_family
def test_lengths_of_text_and_of_clips_differ(family):
    workload = workload_of("mixed", family, 16384)
    assert len(set(workload.video_grid_thw[:, 0].tolist())) > 2
    gaps = [
        after.start - before.stop
        for before, after in zip(workload.runs, workload.runs[1:], strict=False)
    ]
    assert len(set(gaps)) > len(gaps) / 8
    assert min(gaps) >= 2


def test_timestamps_grow_with_the_time():
    workload = workload_of("mixed", "qwen3_vl", 131072)
    kinds = [run.kind for run in workload.runs]
    gaps = {
        after.start - before.stop
        for before, after in zip(workload.runs, workload.runs[1:], strict=False)
        if before.kind == after.kind == 2
    }
    assert kinds.count(2) > 20
    assert {8, 9} <= gaps  # two markers, and six or seven tokens


@each_family
def test_seconds_are_given_for_each_clip_where_the_family_has_them(family):
    workload = workload_of("mixed", family, 16384)
    if family == "qwen2_5_vl":
        assert workload.second_per_grid_ts.shape == (len(workload.video_grid_thw),)
        assert workload.second_per_grid_ts.unique().numel() > 2
    else:
        assert workload.second_per_grid_ts is None


@each_family
@pytest.mark.parametrize("size", [1000, 4000])
def test_batch_is_ragged_and_padded_on_one_side(family, size):
    workload = workload_of("mixed-batch", family, size)
    mask = workload.attention_mask
    assert mask.shape == (BATCH_ROWS[size], size)
    assert mask.sum(1).max() == size
    assert mask.sum(1).unique().numel() > BATCH_ROWS[size] // 2
    whole = mask[:, -1] if size == 1000 else mask[:, 0]
    assert whole.all()
    assert (mask.diff(dim=1) != 0).sum(1).max() == 1


@each_family
@pytest.mark.parametrize("size", [1000, 4000])
def test_packed_sequences_follow_each_other(family, size):
    workload = workload_of("mixed-packed", family, size)
    lengths = workload.cu_seqlens.diff()
    assert workload.cu_seqlens.dtype == torch.int32
    assert [sequence.input_ids.shape[1] for sequence in workload.sequences] == lengths.tolist()
    assert (len(lengths), lengths.max()) == (PACKED_ROWS[size], size)
    ids = torch.cat([sequence.input_ids for sequence in workload.sequences], 1)
    assert torch.equal(ids, workload.input_ids)
    assert len(sides_of(workload)) == sum(len(sides_of(part)) for part in workload.sequences)


@each_family
def test_packed_and_padded_sequences_have_the_same_positions(family):
    packed = workload_of("mixed-packed", family, 1000)
    position_ids, rope_deltas = prepare_vecrope(packed, "transformers")()
    lengths = packed.cu_seqlens.diff().tolist()
    input_ids = torch.zeros((len(lengths), max(lengths)), dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(packed.sequences):
        input_ids[row, : lengths[row]] = sequence.input_ids[0]
        mask[row, : lengths[row]] = 1
    spec = MRopeSpec.for_model(family, convention="transformers")
    arguments = {**tensor_arguments(packed), "attention_mask": mask}
    padded, padded_deltas = get_rope_index(input_ids, spec, **arguments)
    assert torch.equal(padded[:, mask.bool()], position_ids)
    assert torch.equal(padded_deltas, rope_deltas)


@each_family
def test_touching_pictures_have_nothing_in_between(family):
    workload = workload_of("mixed-touching", family, 2000)
    runs = workload.runs
    touching = sum(a.stop == b.start for a, b in pairwise(runs))
    assert touching >= 2
    assert len(runs) > touching + 1
    assert len(set(sides_of(workload))) == len(sides_of(workload)) == len(runs)
    assert workload.touching


def test_drawing_is_the_same_each_time():
    first = workload_of("mixed", "qwen2_5_vl", 4000)
    make_workload.cache_clear()
    again = workload_of("mixed", "qwen2_5_vl", 4000)
    assert again is not first
    assert torch.equal(again.input_ids, first.input_ids)
    assert torch.equal(again.second_per_grid_ts, first.second_per_grid_ts)


def test_a_small_picture_is_drawn_where_all_sizes_are_taken():
    drawing = mixed.Drawing("glm4v", 100, mixed._rng("test", 0))
    sides = [drawing._sides(13) for _ in range(40)]
    assert len(set(sides)) == 40


@each_family
@each_kind
@pytest.mark.parametrize(
    "make",
    [vecrope_provider, vecrope_unchecked_provider, loop_provider, transformers_provider],
)
def test_provider_gives_the_expected_answer(make, kind, size, family):
    refused = make is transformers_provider and kind == "mixed-touching"
    expected = "takes no pictures that touch" if refused else ""
    assert check(make(), f"{kind}-{family}", size) == expected


@each_family
@pytest.mark.parametrize(
    ("kind", "size"), [(kind, size) for kind, size in QUICK if kind not in BATCHES]
)
def test_placeholders_give_the_expected_answer(kind, size, family):
    assert check(vecrope_placeholders_provider(), f"{kind}-{family}", size) == ""


@each_family
@pytest.mark.parametrize(
    "make", [vecrope_provider, vecrope_concatenate_provider, vecrope_replace_provider]
)
def test_step_of_two_requests_is_as_expected(make, family):
    assert check(make(), f"pictures-step-{family}", 300) == ""


@each_family
@pytest.mark.parametrize("kind", ["pictures", "pictures-batch", "pictures-packed"])
def test_call_has_two_pictures(kind, family):
    workload = workload_of(kind, family, 300)
    assert len(workload.image_grid_thw) == 2
    assert workload.video_grid_thw is None


def test_transformers_takes_touching_pictures_for_one():
    workload = workload_of("mixed-touching", "qwen3_vl", 2000)
    with pytest.raises(RuntimeError, match=r"shape mismatch|expanded size"):
        transformers_provider().prepare(workload)()


def test_row_of_a_packed_workload_counts_sequences_and_all_tokens():
    row = run_quick(vecrope_provider(), "mixed-packed-qwen3_vl", 1000)
    workload = workload_of("mixed-packed", "qwen3_vl", 1000)
    assert row.B == 16
    total = workload.input_ids.shape[1]
    assert total == row.T
    assert row.convention == "transformers"


@pytest.mark.parametrize("kind", ["mixed-packed", "mixed-touching", "pictures-step"])
def test_workload_moves_with_all_of_its_parts(kind):
    name = f"{kind}-qwen2_5_vl"
    moved = make_workload(name, SIZES[name][0]).to("meta")
    parts = [moved, *(moved.sequences or ()), *(moved.step.requests if moved.step else ())]
    tensors = [value for part in parts for value in vars(part).values() if torch.is_tensor(value)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
