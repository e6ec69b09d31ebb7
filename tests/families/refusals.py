"""Prompts that families refuse, and the messages."""

import pytest
import torch
from oracles import CORE, EVERYWHERE, FRAMES_BY_STAMPS, GLM, QWEN2, pairs, spec_of


def refused(name, families, rows, message, **arguments):
    rows = rows if isinstance(rows, list) else [rows]
    return [
        pytest.param(family, rows, arguments, message, id=f"{name}-{'-'.join(family)}")
        for family in families
        if family in CORE and spec_of(*family).image_token_id is not None
    ]


OTHERS_OF_VLLM = ("paddleocr_vl", "cohere_compass", "openpangu_vl", "bailing_moe_v3_vl")
LIMIT = r"second_per_grid_ts must keep all positions below 2\*\*30"
VISION_START = "needs a vision_start_token_id"
ADJACENT = pairs((*QWEN2, "paddleocr_vl", *FRAMES_BY_STAMPS), "sglang")

REFUSED = [
    # vLLM returns more positions than tokens, the others fail
    *refused(
        "a truncated image",
        CORE,
        "t<II",
        r"row 0, image 0: its grid \(1, 4, 4\) needs 4 tokens, got 2",
        image_grid_thw=[[1, 4, 4]],
    ),
    # transformers and SGLang round down
    *refused(
        "a grid that the merge size does not divide",
        CORE,
        "t<IIIIII>",
        r"image_grid_thw row 0 must have a height and width divisible by spatial_merge_size 2",
        image_grid_thw=[[1, 5, 7]],
    ),
    # vLLM makes a block of them, with a time axis, and of fewer one that covers text
    *refused(
        "frames that touch",
        pairs(GLM, "vllm"),
        ["ttttttt", "[I>III]"],
        r"row 1, video 0: its grid \(4, 2, 2\) needs something between its frames, got nothing "
        r"at frame 1; vllm would number the video as a block",
        video_grid_thw=[[4, 2, 2]],
    ),
    *refused(
        "two frames that touch",
        pairs(GLM, "vllm"),
        "t[II]",
        r"its grid \(2, 2, 2\) needs something between its frames, got nothing at frame 0",
        video_grid_thw=[[2, 2, 2]],
    ),
    *refused(
        "frames that touch behind a masked token",
        pairs(GLM, "vllm"),
        "t[ItItI]",
        r"row 0, video 0: its grid \(3, 2, 2\) needs something between its frames, got nothing "
        r"at frame 1; vllm",
        video_grid_thw=[[3, 2, 2]],
        mask=["11101111"],
    ),
    # the upstreams ignore it
    *refused(
        "a grid left over",
        CORE,
        "t<I>",
        r"image_grid_thw row 1 \(1, 2, 2\) is left over",
        image_grid_thw=[[1, 2, 2], [1, 2, 2]],
    ),
    # transformers and SGLang glm4v give the run to the first grid
    *refused(
        "a run that fits the first of two grids",
        pairs((*QWEN2, *GLM), "transformers"),
        "tIIIt",
        r"image_grid_thw row 1 \(1, 2, 2\) is left over",
        image_grid_thw=[[1, 2, 6], [1, 2, 2]],
    ),
    # transformers fails, SGLang numbers the second token of the video as text
    *refused(
        "as many tokens in all, of the other kind",
        pairs((*QWEN2, *FRAMES_BY_STAMPS), *EVERYWHERE),
        "t<I>t<VV>",
        r"row 0, image 0: its grid \(1, 2, 4\) needs 2 tokens, got 1|beyond the last grid",
        image_grid_thw=[[1, 2, 4]],
        video_grid_thw=[[1, 2, 2]],
    ),
    # transformers takes 2 for a token, SGLang for padding
    *refused(
        "a mask value",
        CORE,
        "tt",
        "row 0, token 1: attention_mask must hold 0 or 1, got 2",
        mask=["12"],
    ),
    # SGLang numbers the tokens as text
    *refused(
        "no marker",
        ADJACENT,
        "tIIt",
        f"row 0, image 0.*{VISION_START}",
        image_grid_thw=[[1, 2, 4]],
    ),
    *refused(
        "a stray placeholder",
        ADJACENT,
        "It<IIt",
        r"row 0, image 0: its grid \(1, 2, 4\) needs",
        image_grid_thw=[[1, 2, 4]],
    ),
    *refused(
        "a placeholder that begins the prompt",
        ADJACENT,
        "It>",
        f"row 0, image 0.*{VISION_START}",
        image_grid_thw=[[1, 2, 2]],
    ),
    *refused(
        "a placeholder that begins a prompt that a marker ends",
        ADJACENT,
        "It<",
        f"row 0, image 0.*{VISION_START}",
        image_grid_thw=[[1, 2, 2]],
    ),
    *refused(
        "the first of two placeholders begins a prompt that a marker ends",
        ADJACENT,
        "It<It<",
        f"row 0, image 0.*{VISION_START}",
        image_grid_thw=[[1, 2, 2]] * 2,
    ),
    *refused(
        "two images behind one marker",
        ADJACENT,
        "t<III",
        f"row 0, image 1.*{VISION_START}",
        image_grid_thw=[[1, 2, 2], [1, 2, 4]],
    ),
    *refused(
        "two frames behind one marker",
        pairs(FRAMES_BY_STAMPS, "sglang"),
        "t<VV",
        f"row 0, video 0.*{VISION_START} .* before each of its frames",
        video_grid_thw=[[2, 2, 2]],
    ),
    *refused(
        "a marker in the row before",
        ADJACENT,
        ["tt<", "It>"],
        f"row 1, image 0.*{VISION_START}",
        image_grid_thw=[[1, 2, 2]],
    ),
    # vLLM asserts it
    *refused(
        "an image of two frames",
        pairs((*QWEN2, *FRAMES_BY_STAMPS, *GLM, *OTHERS_OF_VLLM), "vllm"),
        "t<II>",
        r"image_grid_thw row 0 must have one frame, as vllm asks of .*, got \(2, 2, 2\)",
        image_grid_thw=[[2, 2, 2]],
    ),
    *refused(
        "an image of two frames beside a block",
        pairs(QWEN2, "vllm"),
        "t<II>t<V>t",
        r"image_grid_thw row 0 must have one frame, as vllm asks of .*, got \(2, 2, 2\)",
        image_grid_thw=[[2, 2, 2]],
        video_grid_thw=[[1, 2, 2]],
    ),
    *refused(
        "a token of the other kind in place of the last",
        pairs((*QWEN2, *FRAMES_BY_STAMPS), *EVERYWHERE),
        "t<IVt<Vt",
        r"row 0, image 0: its grid \(1, 2, 4\) needs 2 tokens, got 1|beyond the last grid",
        image_grid_thw=[[1, 2, 4]],
        video_grid_thw=[[1, 2, 2]],
    ),
    *refused(
        "an image in two runs",
        CORE,
        "t<I>t<I>t",
        r"row 0, image 0: its grid \(1, 2, 4\) needs 2 tokens, got 1",
        image_grid_thw=[[1, 2, 4]],
    ),
    *refused(
        "images of as many tokens in all",
        CORE,
        "t<II>t<II>t",
        r"row 0, image . holds|row 0, image .: its grid .* needs . token|beyond the last grid",
        image_grid_thw=[[1, 2, 2], [1, 2, 6]],
    ),
    *refused(
        "an image of no height and no token",
        CORE,
        "ttt",
        "image_grid_thw row 0 must be positive",
        image_grid_thw=[[1, 0, 2]],
    ),
    *refused(
        "fewer frames than are merged, and no token",
        pairs("ernie4_5_vl_moe", *EVERYWHERE),
        "ttt",
        r"video_grid_thw row 0 must have at least temporal_merge_size 2 frames, got \(1",
        video_grid_thw=[[1, 2, 2]],
    ),
    # vLLM spreads five tokens over two frames and skips the empty one
    *refused(
        "pruned frames",
        pairs(("qwen3_vl", "qwen3_5"), "vllm"),
        "t<VVVVV>t<>t",
        r"row 0 holds video tokens beyond the last grid: expected 4",
        video_grid_thw=[[2, 2, 4]],
    ),
    # vLLM takes no videos
    *refused(
        "a clip where there are only images",
        pairs(("cohere_compass", "bailing_moe_v3_vl"), "vllm"),
        "t<t>",
        r"video_grid_thw row 0 \(1, 2, 2\) is left over",
        video_grid_thw=[[1, 2, 2]],
    ),
    *refused(
        "fewer frames than are merged",
        pairs("ernie4_5_vl_moe", *EVERYWHERE),
        "t[V]",
        r"video_grid_thw row 0 must have at least temporal_merge_size 2 frames, got \(1",
        video_grid_thw=[[1, 2, 2]],
    ),
    *refused(
        "seconds that are not used",
        pairs(("qwen2_vl", "paddleocr_vl", "qwen3_vl", "glm4v"), "transformers"),
        "tt",
        "second_per_grid_ts must be None: .* does not space its frames in time",
        second_per_grid_ts=[],
    ),
    *(
        case
        for name, seconds in {
            "too few": [1.0],
            "too many": [1.0] * 3,
            "as many as videos without zeros": torch.ones(1),
        }.items()
        for case in refused(
            f"{name} seconds",
            [*pairs("qwen2_5_vl", *EVERYWHERE), *pairs("paddleocr_vl", "sglang", "vllm")],
            "t<V>",
            r"second_per_grid_ts must have shape \(2,\), one for each row of video_grid_thw",
            video_grid_thw=[[1, 2, 2], [0, 0, 0]],
            second_per_grid_ts=seconds,
        )
    ),
    *(
        case
        for value in (-0.5, float("nan"), float("inf"))
        for case in refused(
            f"{value} seconds",
            pairs("qwen2_5_vl", *EVERYWHERE),
            "t<V>",
            f"second_per_grid_ts must be finite and not negative, got {value} for video 1",
            video_grid_thw=[[0, 0, 0], [1, 2, 2]],
            second_per_grid_ts=torch.tensor([1.0, value]),
        )
    ),
    *(
        case
        for name, seconds in {
            "a negative time": [-0.5, 1.0],
            "a time that is no number": [float("nan"), 1.0],
            "a time without end": [float("inf"), 1.0],
            "no number behind a time": [1.0, float("nan")],
        }.items()
        for case in refused(
            name,
            pairs("qwen2_5_vl", *EVERYWHERE),
            "t<V>t<V>t",
            "second_per_grid_ts must be finite and not negative, got .* for video",
            video_grid_thw=[[1, 2, 2]] * 2,
            second_per_grid_ts=seconds,
        )
    ),
    *(
        case
        for value in (-0.25, -0.5, float("nan"), float("inf"))
        for case in refused(
            f"{value} seconds of the only video",
            pairs("qwen2_5_vl", *EVERYWHERE),
            "t<V>t",
            f"second_per_grid_ts must be finite and not negative, got {value} for video 0",
            fields={"tokens_per_second": 2},
            video_grid_thw=[[1, 2, 2]],
            second_per_grid_ts=[value],
        )
    ),
    *refused(
        "seconds up to the limit of the only video",
        pairs("qwen2_5_vl", *EVERYWHERE),
        "t<VVVV>t",
        LIMIT,
        fields={"tokens_per_second": 2},
        video_grid_thw=[[4, 2, 2]],
        second_per_grid_ts=[2.0**27],
    ),
    *refused(
        "seconds up to the limit of the deeper video",
        pairs("qwen2_5_vl", *EVERYWHERE),
        "t<V>t<VVVV>t",
        LIMIT,
        fields={"tokens_per_second": 2},
        video_grid_thw=[[1, 2, 2], [4, 2, 2]],
        second_per_grid_ts=[0.0, 2.0**27],
    ),
    *(
        case
        for name, seconds in {
            "seconds without end": [1e18, 0.0],
            "seconds up to the limit": [2.0**29, 0.0],
            "seconds up to the limit together": [2.0**28, 2.0**28],
        }.items()
        for row, videos in {"t<V>t<V>t": 2, "t<V>t": 1}.items()
        if sum(seconds[:videos]) >= 2**29
        for case in refused(
            f"{name} in {videos}",
            pairs("qwen2_5_vl", *EVERYWHERE),
            row,
            LIMIT,
            fields={"tokens_per_second": 2},
            video_grid_thw=[[1, 2, 2]] * videos,
            second_per_grid_ts=seconds[:videos],
        )
    ),
    *refused(
        "no seconds and no default",
        pairs("qwen2_5_vl", *EVERYWHERE),
        "t<V>",
        "second_per_grid_ts must be given for the videos of qwen2_5_vl, got None",
        fields={"default_seconds": None},
        video_grid_thw=[[1, 2, 2]],
    ),
]
