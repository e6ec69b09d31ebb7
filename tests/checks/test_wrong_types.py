"""Every argument of the public functions, given something that it cannot be.

What is refused is refused by an error of the library, not by one of torch or of Python.
"""

import linecache
import traceback

import pytest
import torch

import vecrope
from vecrope import MRopeSpec

pytestmark = pytest.mark.filterwarnings("ignore")
OURS = MRopeSpec.for_model("qwen2_5_vl", convention="transformers")
VLLM = MRopeSpec.for_model("qwen2_5_vl", convention="vllm")
GLM_IMAGE = MRopeSpec.for_model("glm_image", convention="transformers")
I, V = OURS.image_token_id, OURS.video_token_id  # noqa: E741 -- as prompts are written
IDS = torch.tensor([[1, I, I, 2], [3, V, V, 4]])
TYPES = torch.tensor([[0, 1, 1, 0], [0, 2, 2, 0]])
ONES = torch.ones_like(IDS)
GRID, SECONDS = torch.tensor([[1, 2, 4]]), torch.tensor([1.0])
GRIDS = {"image_grid_thw": GRID, "video_grid_thw": GRID, "second_per_grid_ts": SECONDS}
PICTURE = {
    "input_ids": IDS[0], "attention_mask": ONES[0], "mm_token_type_ids": TYPES[0],
    "labels": IDS[0], "image_grid_thw": GRID, "pixel_values": torch.zeros(8, 6),
}  # fmt: skip
CLIP = {
    "input_ids": IDS[1], "attention_mask": ONES[1], "mm_token_type_ids": TYPES[1],
    "labels": IDS[1], "video_grid_thw": GRID, "pixel_values_videos": torch.zeros(8, 6),
    "second_per_grid_ts": SECONDS,
}  # fmt: skip
ALONE = vecrope.collate([PICTURE], OURS, pad_token_id=0)
NUMBERED = {name: ALONE[name] for name in ("input_ids", "position_ids", "rope_deltas")}
BATCH = vecrope.collate(
    [PICTURE, CLIP], OURS, pad_token_id=0, packed=True, pad_sequences_to_multiple_of=4
)
PLAN = vecrope.plan_rope_index(IDS, VLLM, **GRIDS)
ONE = PLAN.select([0])
RULE = GLM_IMAGE.own_rule
GENERATING = torch.tensor(
    [[RULE.image_start_token_id, GLM_IMAGE.image_token_id, RULE.image_end_token_id, 1]]
)
RUNS = {
    "num_tokens": [4], "spec": VLLM, "offsets": torch.tensor([1]), "lengths": torch.tensor([2]),
    "modalities": torch.tensor([1]), "rows": torch.tensor([0]), "image_grid_thw": GRID,
    "dtype": torch.int64,
}  # fmt: skip
SEVERAL = {"samples": [PICTURE, CLIP], "spec": OURS, "pad_token_id": 0}


# By name: the function, and arguments that it takes.
CALLS = {
    "collate": (
        vecrope.collate,
        {
            **SEVERAL, "packed": False, "padding_side": "left", "pad_to_multiple_of": 8,
            "text_positions": True, "batch_first": True, "extra": "list", "dummy_image": None,
        },
    ),
    "collate, packed": (
        vecrope.collate,
        {
            **SEVERAL, "packed": True, "pad_sequences_to_multiple_of": 4, "return_seq_idx": True,
            "return_flash_attn_kwargs": True, "return_use_cache": True,
        },
    ),
    "a clip": (lambda **sample: vecrope.collate([sample], OURS, pad_token_id=0), CLIP),
    "a picture": (
        lambda **sample: vecrope.collate([sample], OURS, pad_token_id=0, packed=True), PICTURE
    ),
    "a numbered sample": (
        lambda **sample: vecrope.collate([sample], OURS, pad_token_id=0), NUMBERED
    ),
    "truncate": (
        vecrope.truncate,
        {
            "sample": PICTURE, "spec": OURS, "max_length": 2, "side": "left",
            "start_token_ids": [1], "end_token_ids": [2],
        },
    ),
    "dummy_image": (
        vecrope.dummy_image,
        {"spec": OURS, "pixel_features": 6, "start_token_ids": [1], "end_token_ids": [2]},
    ),
    "shard_batch": (
        vecrope.shard_batch,
        {"batch": BATCH, "rank": 0, "world_size": 2, "layout": "zigzag_sequences"},
    ),
    "a batch": (lambda **batch: vecrope.shard_batch(batch, 0, 2, "zigzag_sequences"), BATCH),
    "shard_indices": (
        vecrope.shard_indices,
        {
            "seq_len": 8, "rank": 0, "world_size": 2, "layout": "zigzag_sequences",
            "cu_seqlens": torch.tensor([0, 4, 8]),
        },
    ),
    "sequence_ids_from_position_ids": (
        vecrope.sequence_ids_from_position_ids, {"position_ids": IDS, "attention_mask": ONES}
    ),
    "get_rope_index": (
        vecrope.get_rope_index,
        {
            "input_ids": IDS, "spec": OURS, **GRIDS, "attention_mask": ONES,
            "mm_token_type_ids": TYPES, "text_positions": True, "pad_to_multiple_of": 8,
        },
    ),
    "get_rope_index, packed": (
        vecrope.get_rope_index,
        {"input_ids": IDS.view(-1), "spec": OURS, **GRIDS, "cu_seqlens": torch.tensor([0, 4, 8])},
    ),
    "get_rope_index, sequences": (
        vecrope.get_rope_index,
        {
            "input_ids": IDS, "spec": OURS, **GRIDS, "sequence_ids": ONES, "max_sequences": 2,
            "sequence_numbering": "from_one",
        },
    ),
    "plan_rope_index": (
        vecrope.plan_rope_index,
        {"input_ids": IDS, "spec": VLLM, **GRIDS, "attention_mask": ONES, "max_groups": 4},
    ),
    "at": (PLAN.at, {"token_index": torch.tensor([0, 1]), "rows": torch.tensor([0, 1])}),
    "at, of rows": (PLAN.at, {"token_index": torch.tensor([0, 1])}),
    "slice": (PLAN.slice, {"start": 0, "stop": 3}),
    "decode": (PLAN.decode, {"num_tokens": 1, "start": torch.tensor([0, 0])}),
    "step": (
        PLAN.step,
        {
            "num_computed_tokens": torch.tensor([0, 0]), "num_tokens": 2,
            "num_scheduled_tokens": torch.tensor([1, 1]),
            "out": torch.zeros((3, 2), dtype=torch.int64),
        },
    ),
    "select": (PLAN.select, {"rows": torch.tensor([0, 1])}),
    "replace": (PLAN.replace, {"rows": torch.tensor([0]), "other": ONE}),
    "shard": (PLAN.shard, {"rank": 0, "world_size": 2, "layout": "zigzag"}),
    "concatenate_plans": (vecrope.concatenate_plans, {"plans": [PLAN, ONE]}),
    "extend_plan": (
        vecrope.extend_plan,
        {
            "plan": ONE, "input_ids": torch.tensor([1, V, V]), "spec": VLLM,
            "cu_seqlens": torch.tensor([0, 3]), "video_grid_thw": GRID,
            "second_per_grid_ts": SECONDS,
        },
    ),
    "positions_of_groups": (
        vecrope.positions_of_groups,
        {"num_tokens": 4, "groups": [(1, 1, 1, 2)], "dtype": torch.int64},
    ),
    "get_decode_position_ids": (
        vecrope.get_decode_position_ids,
        {
            "input_ids": GENERATING, "spec": GLM_IMAGE, "image_grid_thw": torch.ones_like(GRID),
            "images_per_sample": torch.tensor([1]), "max_decode_tokens": 8,
        },
    ),
    "plan_from_placeholders": (vecrope.plan_from_placeholders, RUNS),
    "get_rope_index_from_placeholders": (vecrope.get_rope_index_from_placeholders, RUNS),
}  # fmt: skip


def odd_values():
    ones = torch.ones(2, dtype=torch.int64)
    yield from ("8", None, object(), {1: 2}, 1.5, True, 2**70, [[1], [1, 2]], ["a"])
    yield (number for number in [1])
    yield from (ones.cfloat(), ones.to(torch.uint64), ones.to("meta"), ones.to_sparse())
    yield torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    yield torch.nested.nested_tensor([ones, torch.ones(3).long()], layout=torch.jagged)
    yield torch.quantize_per_tensor(ones.float(), 0.1, 0, torch.qint8)
    yield torch.tensor(1)
    yield torch.empty(0)


@pytest.mark.parametrize(("function", "arguments"), CALLS.values(), ids=CALLS)
def test_no_error_is_of_torch(function, arguments):
    function(**arguments)
    refused, foreign = 0, []
    for name in arguments:
        for value in odd_values():
            try:
                function(**{**arguments, name: value})
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                lines = [linecache.getline(last.filename, last.lineno - at) for at in (0, 1)]
                is_ours = "/vecrope/" in last.filename and any("raise" in line for line in lines)
                refused += 1
                if not (is_ours and isinstance(error, TypeError | ValueError)):
                    foreign.append((name, value, error))
    assert refused
    assert not foreign
