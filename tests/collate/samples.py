"""Samples for `collate`."""

from oracles import spec_of

QWEN = spec_of("qwen2_vl", "transformers")
IMAGE = QWEN.image_token_id

SAMPLES = [
    {"input_ids": [7, IMAGE, IMAGE, 8], "labels": [7, 1, 1, 8], "image_grid_thw": [[1, 2, 4]]},
    {"input_ids": [5, 6], "labels": [5, 6]},
]
