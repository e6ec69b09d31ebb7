"""What each process of a test of shards runs; imports little, since all of them do."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._attention import context_parallel_unshard

from vecrope import MRopeSpec, plan_rope_index, shard_indices

SPEC = MRopeSpec.for_model("qwen2_vl", convention="transformers")
LAYOUTS = ("contiguous", "zigzag")


def plan_of(seq_len, rows=2):
    """Return the plan of rows of text, an image and text again."""
    ids = torch.full((rows, seq_len), 7)
    ids[:, 1:7] = SPEC.image_token_id
    grids = torch.tensor([[1, 4, 6]] * rows)
    return plan_rope_index(ids, SPEC, image_grid_thw=grids)


def exchange(rank, world_size, port):
    """Check in one process that shards, gathered by PyTorch's own means, give the whole."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    try:
        mesh = init_device_mesh("cpu", (world_size,))
        plan = plan_of(4 * world_size + 4)
        options = {"text_positions": True, "pad_to_multiple_of": 2 * world_size}
        whole = plan.position_ids(**options)
        seq_len = whole.shape[-1]

        for layout in LAYOUTS:
            shard = plan.shard(rank, world_size, layout, **options)
            gathered = [torch.empty_like(shard) for _ in range(world_size)]
            dist.all_gather(gathered, shard)
            back = torch.empty_like(whole)
            for other, part in enumerate(gathered):
                back[..., shard_indices(seq_len, other, world_size, layout)] = part
            assert torch.equal(back, whole)

        shard = plan.shard(rank, world_size, **options)
        distributed = DTensor.from_local(shard, mesh, [Shard(2)])
        assert torch.equal(distributed.full_tensor(), whole)

        shard = plan.shard(rank, world_size, "zigzag", **options)
        buffer = whole.clone()
        with context_parallel(mesh, buffers=[buffer], buffer_seq_dims=[2]):
            assert torch.equal(buffer, shard)
            (unsharded,) = context_parallel_unshard(mesh, [shard], [2])
        assert torch.equal(unsharded, whole)
    finally:
        dist.destroy_process_group()
