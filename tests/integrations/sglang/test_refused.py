"""What SGLang's functions refuse, answered by vecrope."""

import pytest
import torch

from tests.integrations.sglang.calls import call, omni_prompt, prompt_of
from vecrope.integrations import sglang as ours

# Refusals


@pytest.mark.parametrize(
    ("error", "message", "function"),
    [
        pytest.param(
            ValueError,
            "model_type must be 'qwen3_omni_moe' or one of .*'qwen2_vl', .*, got 'mimo_v2'",
            lambda: call(
                prompt_of("qwen2_vl", "<I", image_grid_thw=[[1, 2, 2]]), model_type="mimo_v2"
            ),
            id="an unknown family",
        ),
        pytest.param(
            TypeError,
            "tokens_per_second must be a number .*, got None",
            lambda: ours.get_rope_index(
                *(2, 5, 6, 7, "paddleocr_vl"),
                input_ids=torch.tensor([[7, 5]]),
                image_grid_thw=torch.tensor([[1, 2, 2]]),
            ),
            id="no rate",
        ),
        pytest.param(
            ValueError,
            "needs a vision_start_token_id .* SGLang would number them as text",
            lambda: call(prompt_of("qwen2_vl", "tIt", image_grid_thw=[[1, 2, 2]])),
            id="placeholders without a marker",
        ),
        pytest.param(
            ValueError,
            "holds image tokens beyond the last grid",
            lambda: call(prompt_of("qwen3_vl", "<It<I", image_grid_thw=[[1, 2, 2]])),
            id="a missing grid",
        ),
        pytest.param(
            ValueError,
            "image 0: .* needs 4 tokens, got 2 .* truncated inside the image",
            lambda: call(prompt_of("ernie4_5_vl_moe", "tII", image_grid_thw=[[1, 4, 4]])),
            id="a truncated image",
        ),
        pytest.param(
            ValueError,
            r"second_per_grid_ts must have shape \(2,\).* got \(1,\)",
            lambda: call(
                prompt_of("qwen2_5_vl", "<V<V", video_grid_thw=[[1, 2, 2]] * 2),
                second_per_grid_ts=[0.5],
            ),
            id="too few seconds",
        ),
        pytest.param(
            ValueError,
            r"second_per_grid_ts must have shape \(1,\).* got \(\)",
            lambda: call(
                prompt_of("qwen2_5_vl", "<V", video_grid_thw=[[1, 2, 2]]),
                second_per_grid_ts=torch.tensor(0.5),
            ),
            id="seconds without a dimension",
        ),
        pytest.param(
            ValueError,
            r"image_grid_thw must be .* nested lists, got \[\[1\], \[1, 2\]\]",
            lambda: call(prompt_of("qwen2_vl", "t"), image_grid_thw=[[1], [1, 2]]),
            id="ragged grids",
        ),
        pytest.param(
            TypeError,
            "input_ids must be a tensor, got NoneType",
            lambda: ours.get_rope_index(2, 5, 6, 7, "qwen2_vl"),
            id="no ids",
        ),
        pytest.param(
            ValueError,
            r"input_ids must have shape \(B, T\), got \(2,\)",
            lambda: ours.get_rope_index_ernie45(torch.ones(2), None, None, None),
            id="ids without rows",
        ),
        pytest.param(
            KeyError,
            "audio_token_id",
            lambda: ours.get_rope_index_qwen3_omni(2, 5, 6, 7, input_ids=torch.ones(1, 2)),
            id="omni without its keywords",
        ),
        pytest.param(
            ValueError,
            "audio 0",
            lambda: call(omni_prompt("t(A)<I>", image_grid_thw=[[1, 2, 2]], audio_seqlens=[99])),
            id="a truncated audio",
        ),
    ],
)
def test_refusals(error, message, function):
    with pytest.raises(error, match=message):
        function()
