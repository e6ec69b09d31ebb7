"""Messages about placeholders and grids that do not fit say what is likely the matter."""

import pytest
import torch

from vecrope import MRopeSpec, get_rope_index

QWEN = MRopeSpec.for_model("qwen2_vl", convention="transformers")
OMNI = MRopeSpec.for_model("qwen3_omni_moe", convention="transformers")
GLM = MRopeSpec.for_model("glm4v", convention="sglang")
IMAGE, VIDEO = QWEN.image_token_id, QWEN.video_token_id


@pytest.mark.parametrize(
    ("spec", "ids", "arguments", "remark"),
    [
        pytest.param(
            QWEN,
            [7, 8],
            {"image_grid_thw": [[1, 2, 4]]},
            f"image_token_id {IMAGE} does not occur in input_ids",
            id="ids of another family",
        ),
        pytest.param(
            QWEN,
            [7, 8],
            {"video_grid_thw": [[1, 2, 4]]},
            f"video_token_id {VIDEO} does not occur in input_ids",
            id="ids of another family, a video",
        ),
        pytest.param(
            GLM,
            [7, GLM.image_token_id],
            {"image_grid_thw": [[1, 2, 2]], "video_grid_thw": [[1, 2, 2]]},
            "no image_token_id 151343 follows a video_start_token_id 151341 in input_ids",
            id="no video markers",
        ),
        pytest.param(
            QWEN,
            [7, IMAGE, IMAGE],
            {"image_grid_thw": [[1, 2, 4]], "mm_token_type_ids": [[0, 0, 0]]},
            "mm_token_type_ids holds no 1",
            id="types of zeros",
        ),
        pytest.param(
            OMNI,
            [7, 8],
            {"image_grid_thw": [[1, 2, 4]]},
            f"image_token_id {OMNI.image_token_id} does not occur in input_ids",
            id="ids of another family, omni",
        ),
        pytest.param(
            OMNI,
            [7, 8],
            {"audio_seqlens": [50]},
            f"audio_token_id {OMNI.own_rule.audio_token_id} does not occur in input_ids",
            id="ids of another family, audio",
        ),
        pytest.param(QWEN, [7, IMAGE], {}, "image_grid_thw was not given", id="no grids"),
        pytest.param(
            QWEN,
            [7, *[IMAGE] * 8],
            {"image_grid_thw": [[1, 4 * 14, 8 * 14]]},
            "image_grid_thw seems to count pixels; it counts patches",
            id="pixels",
        ),
    ],
)
def test_a_likely_mistake_is_told(spec, ids, arguments, remark):
    tensors = {name: torch.tensor(values) for name, values in arguments.items()}
    with pytest.raises(ValueError, match=r"row 0|left over") as caught:
        get_rope_index(torch.tensor([ids]), spec, **tensors)
    assert str(caught.value).endswith(f" ({remark})")


def test_a_truncated_prompt_is_told_as_one():
    ids = torch.tensor([[7, *[IMAGE] * 3]])
    with pytest.raises(ValueError, match=r"got 3 in one run; was the prompt truncated"):
        get_rope_index(ids, QWEN, image_grid_thw=torch.tensor([[1, 4, 8]]))


def test_placeholders_that_were_not_expanded_are_told():
    ids, grids = torch.tensor([[7, IMAGE, 8, IMAGE]]), torch.tensor([[1, 4, 4], [1, 8, 8]])
    with pytest.raises(ValueError, match=r"got 1 in one run.*never expanded by the processor\?$"):
        get_rope_index(ids, QWEN, image_grid_thw=grids)
