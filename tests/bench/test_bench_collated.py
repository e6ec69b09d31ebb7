import pytest
import torch
from bench_support import check, run_quick

from bench.answers import make_spec
from bench.collated import samples_of, vecrope_collate_provider
from bench.mixed import FAMILIES
from bench.workloads import make_workload


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("kind", ["mixed-batch", "mixed-packed"])
def test_collated_prompts_are_numbered_as_expected(kind, model_type):
    assert check(vecrope_collate_provider(), f"{kind}-{model_type}", 1000) == ""


def test_samples_hold_their_own_media():
    workload = make_workload("mixed-packed-qwen2_5_vl", 1000)
    samples = samples_of(workload, make_spec(workload, "transformers"))
    for sample, sequence in zip(samples, workload.sequences, strict=True):
        for name in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts"):
            want = getattr(sequence, name)
            assert (want is None) == (name not in sample)
            assert want is None or torch.equal(sample[name], want)


def test_it_is_for_batches_alone():
    row = run_quick(vecrope_collate_provider(), "seed", 1024)
    assert row.status == "not applicable"
    assert row.error.startswith("for mixed-batch-glm4v, ")
