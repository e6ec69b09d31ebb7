import os
import zipfile
from functools import cache
from pathlib import Path

import pytest
from bench_support import check, run_quick

from bench.lmms import lmms_engine_provider
from bench.registry import WHEEL_NAMES, make_providers

WHEEL = os.environ.get("VECROPE_LMMS_ENGINE_WHEEL")
needs_wheel = pytest.mark.skipif(
    WHEEL is None, reason="VECROPE_LMMS_ENGINE_WHEEL does not name a wheel of lmms-engine"
)
# Stands for its file: the names, and an answer that is right for text alone.
CODE = """
from transformers import Qwen2_5_VLModel, Qwen3VLModel

def qwen3_vl_get_rope_index(
    self: Qwen3VLModel, input_ids=None, image_grid_thw=None, video_grid_thw=None,
    attention_mask=None,
):
    assert self.config.vision_config.spatial_merge_size == 2
    positions = np.arange(input_ids.shape[1])
    position_ids = torch.from_numpy(positions).expand(3, *input_ids.shape)
    return position_ids, torch.zeros((len(input_ids), 1), dtype=torch.int64)

def qwen2_5_vl_rope_index(self: Qwen2_5_VLModel, input_ids=None, **arguments):
    raise NotImplementedError("not in this one")
"""


@pytest.fixture
def fake(tmp_path):
    path = tmp_path / "lmms_engine-0.1.4-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lmms_engine-0.1.4.dist-info/METADATA", "Name: lmms-engine")
        archive.writestr("lmms_engine/models/common_ops/rope.py", CODE)
    return path


def test_functions_are_loaded_without_what_their_file_imports(fake):
    provider = lmms_engine_provider(fake)
    assert (provider.name, provider.version) == ("lmms-engine-0.1.4", "0.1.4")
    assert check(provider, "short", 300) == "for qwen2_5_vl, qwen3_vl only"


def test_answer_is_checked_before_it_is_timed(fake):
    row = run_quick(lmms_engine_provider(fake), "qwen3_vl", 1024)
    assert (row.status, row.median_us) == ("unequal", None)
    assert row.error.startswith("position_ids[")
    row = run_quick(lmms_engine_provider(fake), "qwen2_5_vl", 1024)
    assert (row.status, row.error) == ("error", "NotImplementedError: not in this one")


def test_wheel_is_named_by_its_option(fake):
    wheels = dict.fromkeys(WHEEL_NAMES) | {"lmms_engine": fake}
    assert make_providers(None, wheels)[-1].name == "lmms-engine-0.1.4"
    (provider,) = make_providers(["lmms-engine"], wheels)
    assert provider.version == "0.1.4"
    with pytest.raises(ValueError, match="provider lmms-engine needs --lmms-engine PATH"):
        make_providers(["lmms-engine"], dict.fromkeys(wheels))


@cache
def real():
    return lmms_engine_provider(Path(WHEEL))


@needs_wheel
@pytest.mark.wheels
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("mixed-", 400),
        ("mixed-", 4000),
        ("mixed-batch-", 1000),
        ("mixed-packed-", 1000),
        ("", 1024),
    ],
)
def test_lmms_engine_gives_the_expected_answer(kind, size, family):
    assert check(real(), f"{kind}{family}", size) == ""
