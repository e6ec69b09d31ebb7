"""Whatever torch's default device is, a batch is made on the CPU."""

import pytest
import torch
from oracles import spec_of
from torch.testing import assert_close

from vecrope import collate, dummy_image, truncate

QWEN, OMNI = spec_of("qwen2_5_vl", "transformers"), spec_of("qwen2_5_omni", "transformers")
GLM_IMAGE = spec_of("glm_image", "transformers")
START = GLM_IMAGE.own_rule.image_start_token_id
IMAGE = QWEN.image_token_id
CASES = {
    "qwen2_5_vl": (
        QWEN,
        [
            {"input_ids": [1, IMAGE, 2], "image_grid_thw": [[1, 2, 2]], "labels": [1, 2, 3]},
            {"input_ids": [1, 2, 3, 4], "labels": [1] * 4},
        ],
    ),
    "qwen2_5_omni": (OMNI, [{"input_ids": [1, 2]}, {"input_ids": [1, 2, 3]}]),
    "glm_image": (GLM_IMAGE, [{"input_ids": [1, START], "image_grid_thw": [[1, 2, 2]]}] * 2),
}


@pytest.mark.parametrize(
    "options", [{"text_positions": True}, {"packed": True, "return_seq_idx": True}]
)
@pytest.mark.parametrize(("spec", "samples"), CASES.values(), ids=CASES.keys())
def test_a_batch_does_not_depend_on_the_default_device(spec, samples, options):
    def make():
        given = [{**sample, "weight": [0.5]} for sample in samples]
        numbered = collate(given[:1], spec, pad_token_id=0, extra="drop")
        again = collate([numbered], spec, pad_token_id=0, pad_to_multiple_of=8, **options)
        return collate(given, spec, pad_token_id=0, extra="stack", **options), again

    expected = make()
    with torch.device("meta"):
        got = make()
    assert_close(got, expected)


def test_dummies_and_shorter_samples_do_not_depend_on_it_either():
    def make():
        (_, (picture, text)) = CASES["qwen2_5_vl"]
        dummy = dummy_image(QWEN, 6)
        return (
            collate([text], QWEN, pad_token_id=0, dummy_image=dummy),
            truncate({**picture, "attention_mask": [1] * 3}, QWEN, 2)[0],
        )

    expected = make()
    with torch.device("meta"):
        got = make()
    assert_close(got, expected)
