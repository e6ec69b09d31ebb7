"""What each process of the test of context parallelism runs; imports little, since all do."""

import torch
import torch.distributed as dist

from vecrope import MRopeSpec, collate, shard_batch, shard_indices

SPEC = MRopeSpec.for_model("qwen2_vl", convention="transformers")
LAYOUTS = ("contiguous", "zigzag", "zigzag_sequences")


def whole_batch(world_size):
    image = SPEC.image_token_id
    samples = [
        {"input_ids": [7, image, image, 8, 9], "image_grid_thw": [[1, 2, 4]]},
        {"input_ids": list(range(10, 23))},
    ]
    for sample in samples:
        sample["labels"] = sample["input_ids"]
    multiple = 2 * world_size
    return collate(
        samples, SPEC, pad_token_id=0, packed=True, pad_sequences_to_multiple_of=multiple
    )


def exchange(rank, world_size, port):
    """Check in one process that the shards of all, gathered, are the whole."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    try:
        batch = whole_batch(world_size)
        length = batch["input_ids"].shape[1]
        for layout in LAYOUTS:
            shard = shard_batch(batch, rank, world_size, layout)
            bounds = batch["cu_seq_lens_q"] if layout == "zigzag_sequences" else None
            for name in ("input_ids", "labels", "position_ids"):
                part = shard[name].contiguous()
                gathered = [torch.empty_like(part) for _ in range(world_size)]
                dist.all_gather(gathered, part)
                back = torch.full_like(batch[name], -7)
                for other, values in enumerate(gathered):
                    columns = shard_indices(length, other, world_size, layout, cu_seqlens=bounds)
                    back[..., columns] = values
                assert torch.equal(back, batch[name])
        assert shard["cu_seq_lens_q"].tolist() == [
            bound // world_size for bound in batch["cu_seq_lens_q"].tolist()
        ]
        assert shard["cu_seq_lens_q"][-1] == shard["input_ids"].shape[1]
    finally:
        dist.destroy_process_group()
