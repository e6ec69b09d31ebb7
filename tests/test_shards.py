import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import spec_of
from packings import packings
from shard_ranks import LAYOUTS, exchange, plan_of
from support import at_most
from torch.distributed.tensor.experimental._context_parallel._load_balancer import (
    _HeadTailLoadBalancer,
)

from vecrope import plan_rope_index, shard_indices

ROOT = Path(__file__).resolve().parents[1]
SPEC = spec_of("qwen2_vl", "transformers")
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


# Indices


@pytest.mark.parametrize(
    ("layout", "want"),
    [
        ("contiguous", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("zigzag", [[0, 1, 6, 7], [2, 3, 4, 5]]),
    ],
)
def test_by_hand(layout, want):
    assert [shard_indices(8, rank, 2, layout).tolist() for rank in range(2)] == want


@given(chunk=st.integers(1, 5), world_size=st.integers(1, 9))
def test_the_zigzag_is_that_of_pytorch(chunk, world_size):
    seq_len = 2 * world_size * chunk
    ours = [shard_indices(seq_len, rank, world_size, "zigzag") for rank in range(world_size)]
    theirs = _HeadTailLoadBalancer(seq_len, world_size, "cpu")._generate_indices()
    assert torch.equal(torch.cat(ours), theirs[0].long())


@given(chunk=st.integers(1, 5), world_size=st.integers(1, 9))
def test_contiguous_chunks_are_those_of_pytorch(chunk, world_size):
    whole = torch.arange(world_size * chunk)
    for rank, theirs in enumerate(whole.tensor_split(world_size)):
        assert torch.equal(shard_indices(len(whole), rank, world_size), theirs)


def test_indices_lie_on_the_device_asked_for():
    assert shard_indices(8, 0, 2, "zigzag", device="meta").device.type == "meta"
    assert shard_indices(8, 0, 2).dtype == torch.int64


REFUSED = {
    "more ranks than tokens": (
        (3, 0, 4, "contiguous"),
        "a sequence of 3 tokens has none for each of 4 ranks; pad it, with pad_to_multiple_of=4",
    ),
    "no token": ((0, 0, 1, "zigzag"), "a sequence of 0 tokens .* with pad_to_multiple_of=2"),
    "a remainder": (
        (10, 0, 4, "contiguous"),
        "seq_len must be a multiple of 4 for 4 ranks in the 'contiguous' layout, got 10; pad it, "
        "with pad_to_multiple_of=4",
    ),
    "a remainder of half chunks": (
        (12, 0, 4, "zigzag"),
        "seq_len must be a multiple of 8 for 4 ranks in the 'zigzag' layout, got 12; pad it, "
        "with pad_to_multiple_of=8",
    ),
    "a rank beyond the group": ((8, 2, 2, "zigzag"), "rank must be from 0 to 1, got 2"),
    "a negative rank": ((8, -1, 2, "zigzag"), "rank must be from 0 to 1, got -1"),
    "no group": ((8, 0, 0, "zigzag"), "world_size must be at least 1, got 0"),
    "another layout": (
        (8, 0, 2, "striped"),
        "layout must be 'contiguous', 'zigzag' or 'zigzag_sequences', got 'striped'",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        shard_indices(*arguments)


# Shards of a plan


@each_layout
@given(packing=packings(SPEC), world_size=st.integers(1, 4), text=st.booleans())
@at_most(25)
def test_shards_are_the_columns_of_the_whole(packing, world_size, text, layout):
    plan = plan_rope_index(packing.input_ids, SPEC, **packing.arguments())
    options = {"text_positions": text, "pad_to_multiple_of": 2 * world_size}
    whole = plan.position_ids(**options)
    for rank in range(world_size):
        columns = shard_indices(whole.shape[-1], rank, world_size, layout)
        got = plan.shard(rank, world_size, layout, **options)
        assert got.dtype == whole.dtype
        assert torch.equal(got, whole[..., columns])


@each_layout
@pytest.mark.parametrize("convention", ["transformers", "sglang"])
@pytest.mark.parametrize("form", ["exact", "static"])
def test_shards_of_packed_input_and_of_masked_rows(form, convention, layout):
    spec = spec_of("glm4v", convention)
    ids = torch.full((2, 7), 7)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 0]])
    capacity = {} if form == "exact" else {"max_groups": 9}
    options = {"text_positions": True, "pad_to_multiple_of": 4}
    padded = plan_rope_index(ids, spec, attention_mask=mask, **capacity)
    packed = plan_rope_index(
        ids.view(-1),
        spec,
        attention_mask=mask.view(-1),
        cu_seqlens=torch.tensor([0, 7, 14]),
        **capacity,
    )
    for plan in (padded, packed):
        whole = plan.position_ids(**options)
        shards = [plan.shard(rank, 2, layout, **options) for rank in range(2)]
        order = torch.cat([shard_indices(whole.shape[-1], rank, 2, layout) for rank in range(2)])
        assert torch.equal(torch.cat(shards, -1), whole[..., order])


def test_a_shard_has_no_text_positions_that_are_not_asked_for():
    assert plan_of(16).shard(0, 2).shape[0] == 3


@pytest.mark.parametrize(
    ("world_size", "options", "message"),
    [
        (9, {}, "a sequence of 7 tokens has none for each of 9 ranks"),
        (2, {}, "seq_len must be a multiple of 2 .* got 7; pad it, with pad_to_multiple_of=2"),
        (2, {"pad_to_multiple_of": 9}, "seq_len must be a multiple of 2 .* got 9"),
        (2, {"pad_to_multiple_of": 0}, "pad_to_multiple_of must be at least 1, got 0"),
    ],
)
def test_a_plan_refuses(world_size, options, message):
    with pytest.raises(ValueError, match=message):
        plan_of(7).shard(0, world_size, **options)


@each_layout
@pytest.mark.parametrize("multiple", [None, 4])
def test_a_plan_without_tokens_has_nothing_to_share(layout, multiple):
    plan = plan_rope_index(torch.zeros((2, 0), dtype=torch.int64), SPEC)
    with pytest.raises(ValueError, match="a sequence of 0 tokens has none for each of 2 ranks"):
        plan.shard(0, 2, layout, pad_to_multiple_of=multiple)


def test_shards_of_a_plan_are_compiled_in_one_graph():
    plan = plan_of(16)

    def shard(plan):
        return plan.shard(1, 2, "zigzag")

    got = torch.compile(shard, fullgraph=True, dynamic=True, backend="eager")(plan)
    assert torch.equal(got, shard(plan))


# Real processes


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_shards_of_real_processes_give_the_whole():
    world_size = 4
    torch.multiprocessing.spawn(exchange, args=(world_size, free_port()), nprocs=world_size)


@pytest.mark.slow
def test_the_example_of_the_readme_runs_under_torchrun(tmp_path):
    world_size = 2
    readme = (ROOT / "src" / "vecrope" / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n# positions_of_a_rank\.py\n.*?```", readme, re.DOTALL)
    script = tmp_path / "positions_of_a_rank.py"
    script.write_text(example.removeprefix("```python\n").removesuffix("```"), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), str(script)]
    run = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert sorted(run.stdout.splitlines()) == [
        f"rank {rank} of {world_size} holds (3, 1, {24 // world_size})"
        for rank in range(world_size)
    ]
