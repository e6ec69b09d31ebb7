import os
import zipfile
from functools import cache
from pathlib import Path

import pytest
from bench_support import check, run_quick

from bench import mixed_omni
from bench.providers import vecrope_provider
from bench.sglang_omni import sglang_omni_provider
from bench.upstreams import transformers_provider
from bench.workloads import make_workload

WHEEL = os.environ.get("VECROPE_SGLANG_OMNI_WHEEL")
needs_wheel = pytest.mark.skipif(
    WHEEL is None, reason="VECROPE_SGLANG_OMNI_WHEEL does not name a wheel of sglang-omni"
)
HELPERS = (
    "feat_extract_output_lengths",
    "linear_pos_ids",
    "vision_t_index",
    "vision_pos_ids",
    "merge_audio_in_video",
)
# Stands for its file: the names, and an answer that is right for text alone.
CODE = "\n".join(
    [
        "import nothing",
        *(f"def {name}(): ..." for name in HELPERS),
        "def get_rope_index_qwen3_omni_vectorized(*ids, input_ids, **arguments):",
        "    positions = torch.arange(input_ids.shape[1], dtype=torch.float32)",
        "    return positions.expand(3, *input_ids.shape), torch.zeros((1, 1))",
    ]
)


def test_an_answer_is_checked_before_it_is_timed(tmp_path):
    path = tmp_path / "sglang_omni-0.1.9-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sglang_omni-0.1.9.dist-info/METADATA", "Name: sglang-omni")
        archive.writestr("sglang_omni/models/qwen3_omni/mrope_positions.py", CODE)
    provider = sglang_omni_provider(path)
    assert (provider.name, provider.version) == ("sglang-omni-0.1.9", "0.1.9")
    assert check(provider, "short", 300) == "for qwen3_omni_moe only"
    row = run_quick(provider, "mixed-omni", 180)
    assert (row.status, row.median_us) == ("unequal", None)


PROMPTS = [name for name in mixed_omni.MAKERS if "batch" not in name]


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_has_all_kinds_in_many_sizes(name):
    workload = make_workload(name, 16384)
    grids = [*workload.image_grid_thw.tolist(), *workload.video_grid_thw.tolist()]
    assert len({tuple(grid) for grid in grids}) == len(grids) > 8
    assert len(workload.audio_seqlens) > 3
    assert workload.input_ids.shape == (1, 16384)
    assert workload.use_audio_in_video == name.endswith("-sound")


def test_a_batch_has_rows_of_many_lengths():
    workload = make_workload("mixed-omni-batch", 1000)
    assert len({*workload.attention_mask.sum(1).tolist()}) == len(workload.input_ids) == 8


@pytest.mark.parametrize("name", mixed_omni.MAKERS)
@pytest.mark.parametrize("provider", [vecrope_provider, transformers_provider])
def test_providers_give_the_expected_answer(provider, name):
    assert check(provider(), name, mixed_omni.SIZES[name][:2][-1]) == ""


@cache
def real():
    return sglang_omni_provider(Path(WHEEL))


@needs_wheel
@pytest.mark.wheels
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("qwen3_omni_moe", 1024),
        *((name, size) for name in ("mixed-omni", "mixed-omni-sound") for size in (180, 4000)),
    ],
)
def test_sglang_omni_gives_the_expected_answer(name, size):
    assert check(real(), name, size) == ""
