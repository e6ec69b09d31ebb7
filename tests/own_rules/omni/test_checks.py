"""What the omni families refuse, and what the messages say."""

from dataclasses import replace

import pytest
import torch
from omni_support import each_omni, rope_index, spec_of

from vecrope import get_rope_index
from vecrope.testing import Prompt, Refusal

QWEN2_5 = spec_of("qwen2_5_omni", "transformers", 2)
QWEN3 = spec_of("qwen3_omni_moe", "transformers", 2)
ONE_IMAGE = {"image_grid_thw": [[1, 2, 4]]}
ONE_VIDEO = {"video_grid_thw": [[1, 2, 4]], "second_per_grids": [1.0]}
# Two audio tokens, with either encoder.
TWO = {QWEN2_5: 7, QWEN3: 16}
SOUND = {**ONE_VIDEO, "use_audio_in_video": True}


def refusal(name, rows, match, audio=None, mask=None, **media):
    return pytest.param(rows, audio, mask, media, match, id=name)


MISFITS = [
    refusal(
        "truncated inside an image",
        ["t<II>t", "tt<III"],
        r"row 1, image 1: its grid \(1, 4, 4\) needs 4 tokens, got 3; was the prompt truncated "
        r"inside the image\?",
        image_grid_thw=[[1, 2, 4], [1, 4, 4]],
    ),
    refusal(
        "truncated inside a video",
        ["<V"],
        r"row 0, video 0: its grid \(1, 2, 4\) needs 2 tokens, got 1; was the prompt truncated "
        r"inside the video\?",
        **ONE_VIDEO,
    ),
    refusal(
        "truncated inside audio",
        ["(A"],
        r"row 0, audio 0: its \d+ mel frames need 2 tokens, got 1; was the prompt truncated inside "
        r"the audio\?",
        audio=1,
        image_grid_thw=[],
    ),
    refusal(
        "truncated inside the sound of a video",
        ["<(VVA"],
        r"row 0, audio 0: its \d+ mel frames need 2 tokens, got 1; was the prompt",
        audio=1,
        **SOUND,
    ),
    refusal(
        "truncated inside a video with sound",
        ["<(V"],
        r"row 0, video 0: its grid \(1, 2, 4\) needs 2 tokens, got 1; was the prompt",
        audio=1,
        **SOUND,
    ),
    refusal(
        "truncated after an image",
        ["t<II"],
        r"row 0, image 0: 1 end markers must follow it; was the prompt truncated after the image\?",
        **ONE_IMAGE,
    ),
    refusal(
        "truncated after a video with sound",
        ["<(VVAA)"],
        r"row 0, video 0: 2 end markers must follow it; was the prompt truncated after the video\?",
        audio=1,
        **SOUND,
    ),
    refusal(
        "no end marker before the next image",
        ["<II<I>"],
        r"row 0, image 0: 1 end markers must follow it",
        image_grid_thw=[[1, 2, 4], [1, 2, 2]],
    ),
    refusal(
        "no end marker in the row",
        ["<II", "tttt"],
        r"row 0, image 0: 1 end markers must follow it",
        mask=["111", "111"],
        **ONE_IMAGE,
    ),
    refusal(
        "more video tokens than the grid's",
        ["<(VVVA)>"],
        r"row 0, video 0: its grid \(1, 2, 4\) needs 2 tokens, got 3$",
        audio=1,
        **SOUND,
    ),
    refusal(
        "more audio tokens than the length's",
        ["<(VAAA)>t(AA)"],
        r"row 0, token 5: this audio token belongs to no audio",
        audio=2,
        video_grid_thw=[[1, 2, 2]],
        second_per_grids=[1.0],
        use_audio_in_video=True,
    ),
    refusal(
        "the sound first",
        ["<(AVVA)>"],
        "row 0, video 0: its first frame must come before its sound",
        audio=1,
        **SOUND,
    ),
    refusal(
        "a longer run than the grid",
        ["<IIII>"],
        r"row 0, token 3: this image token belongs to no image; it must follow its start marker, "
        "within what image_grid_thw describes",
        **ONE_IMAGE,
    ),
    refusal(
        "no start marker",
        ["t<II>", "tII>t"],
        "row 1, token 1: this image token belongs to no image",
        **ONE_IMAGE,
    ),
    refusal(
        "no start marker before audio",
        ["t<II>AA"],
        "row 0, token 5: this audio token belongs to no audio; audio_seqlens is None",
        **ONE_IMAGE,
    ),
    refusal(
        "no start marker left by the mask",
        ["t<II>"],
        "row 0, token 2: this image token belongs to no image",
        mask=["10111"],
        **ONE_IMAGE,
    ),
    refusal(
        "an image without any grid",
        ["tt", "<I"],
        "row 1: image_grid_thw must be given for its image, got None",
    ),
    refusal(
        "image tokens without any grid",
        ["tI"],
        "row 0, token 1: this image token belongs to no image; image_grid_thw is None",
    ),
    refusal(
        "a video without its grid",
        ["<V>"],
        "row 0: video_grid_thw must be given for its video, got None",
        **ONE_IMAGE,
    ),
    refusal(
        "audio without its length",
        ["<II>(A)"],
        "row 0: audio_seqlens must be given for its audio, got None",
        **ONE_IMAGE,
    ),
    refusal(
        "sound without its length",
        ["<(VV)>"],
        "row 0: audio_seqlens must be given for its audio, got None",
        **SOUND,
    ),
    refusal(
        "an audio start alone",
        ["<II>(tt"],
        "row 0: audio_seqlens must be given for its audio, got None",
        **ONE_IMAGE,
    ),
    refusal(
        "an audio start of nothing",
        ["<II>(tt"],
        r"row 0, audio 0: its \d+ mel frames need 2 tokens, got 0",
        audio=1,
        **ONE_IMAGE,
    ),
    refusal(
        "more images than grids",
        ["<II>", "<II>"],
        "row 1 holds image 1, counted from 0, but image_grid_thw has 1 of them in all",
        **ONE_IMAGE,
    ),
    refusal(
        "more audio than lengths",
        ["(AA)(A)(A)"],
        "row 0 holds audio 1, counted from 0, but audio_seqlens has 1 of them in all",
        audio=1,
        image_grid_thw=[],
    ),
    refusal(
        "an image left over",
        ["t<II>"],
        r"image_grid_thw row 1 \(1, 2, 2\) is left over: expected 2 images in all, got 1",
        image_grid_thw=[[1, 2, 4], [1, 2, 2]],
    ),
    refusal(
        "a video left over behind zeros",
        ["t"],
        r"video_grid_thw row 1 \(1, 2, 2\) is left over: expected 1 videos in all, got 0",
        video_grid_thw=[[0, 0, 0], [1, 2, 2]],
        second_per_grids=[1.0, 1.0],
    ),
    refusal(
        "audio left over",
        ["t"],
        r"audio_seqlens row 0 \d+ is left over: expected 1 audios in all, got 0",
        audio=1,
    ),
    refusal(
        "media and no tokens",
        [""],
        "the grids and lengths describe 1 images, 0 videos and 1 audios, input_ids hold none",
        audio=1,
        **ONE_IMAGE,
    ),
    refusal(
        "sound without use_audio_in_video",
        ["tt", "t<(VVAA)>"],
        "row 1, token 1: a video with sound needs use_audio_in_video=True",
        audio=1,
        **ONE_VIDEO,
    ),
    refusal(
        "no sound with use_audio_in_video",
        ["t<VV>"],
        "row 0, token 1: a video without sound must not stand in a batch with "
        "use_audio_in_video=True",
        **SOUND,
    ),
]


@pytest.mark.parametrize("spec", [QWEN2_5, QWEN3], ids=lambda spec: spec.model_type)
@pytest.mark.parametrize(("rows", "audio", "mask", "media", "match"), MISFITS)
def test_a_misfit_is_refused(spec, rows, audio, mask, media, match):
    seq_len = max(map(len, rows))
    if mask is None and len({len(row) for row in rows}) > 1:
        mask = ["1" * len(row) + "0" * (seq_len - len(row)) for row in rows]
    if mask is not None:
        mask = [row.ljust(seq_len, "0") for row in mask]
    prompt = Prompt.from_symbols(
        spec,
        [row.ljust(seq_len, "t") for row in rows],
        mask=mask,
        audio_seqlens=None if audio is None else [TWO[spec]] * audio,
        **media,
    )
    with pytest.raises(Refusal):
        prompt.expected()
    with pytest.raises(ValueError, match=match):
        rope_index(prompt)
    rope_index(prompt, validate=False)


def good(spec=QWEN3, **changes):
    prompt = Prompt.from_symbols(
        spec,
        ["t<II>(AA)<VV>"],
        audio_seqlens=[TWO[spec]],
        **ONE_IMAGE,
        **ONE_VIDEO,
    )
    return {**prompt.arguments(), **changes}


def call(spec, arguments):
    return get_rope_index(arguments.pop("input_ids"), spec, **arguments)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        (
            {"mm_token_type_ids": torch.zeros((1, 13), dtype=torch.int64)},
            ValueError,
            "mm_token_type_ids must be None: qwen3_omni_moe tells its tokens by their ids",
        ),
        (
            {"use_audio_in_video": 1},
            TypeError,
            "use_audio_in_video must be a bool, got 1",
        ),
        (
            {"audio_seqlens": [16]},
            TypeError,
            "audio_seqlens must be a tensor, got list",
        ),
        (
            {"audio_seqlens": torch.tensor([16.0])},
            TypeError,
            "audio_seqlens must be of a signed integer dtype, uint8 or bool, got torch.float32",
        ),
        (
            {"audio_seqlens": torch.tensor([[16]])},
            ValueError,
            r"audio_seqlens must have shape \(num_audios,\), got \(1, 1\)",
        ),
        (
            {"audio_seqlens": torch.tensor([-1])},
            ValueError,
            "audio_seqlens must be at least 1 to give a token, or 0 for no audio, got -1 for "
            "audio 0",
        ),
        (
            {"second_per_grids": None},
            ValueError,
            "second_per_grid_ts must be given for the videos of qwen3_omni_moe, got None",
        ),
        (
            {"second_per_grids": torch.tensor([1.0, 2.0])},
            ValueError,
            r"second_per_grid_ts must have shape \(1,\), one for each row of video_grid_thw, "
            r"got \(2,\)",
        ),
        (
            {"second_per_grids": torch.tensor([float("nan")])},
            ValueError,
            "second_per_grid_ts must be finite and not negative, got nan for video 0",
        ),
        (
            {"image_grid_thw": torch.tensor([[1, 2, 3]])},
            ValueError,
            "image_grid_thw row 0 must have a height and width divisible by spatial_merge_size 2",
        ),
        (
            {"attention_mask": torch.full((1, 13), 2)},
            ValueError,
            "row 0, token 0: attention_mask must hold 0 or 1, got 2",
        ),
    ],
)
def test_bad_arguments_are_refused(changes, error, match):
    assert call(QWEN3, good())[0].shape == (3, 1, 13)
    with pytest.raises(error, match=match):
        call(QWEN3, good(**changes))


def test_a_qwen2_5_audio_of_two_mel_frames_has_no_token():
    with pytest.raises(ValueError, match="audio_seqlens must be at least 3 to give a token"):
        call(QWEN2_5, good(QWEN2_5, audio_seqlens=torch.tensor([2])))


@each_omni
def test_only_vllm_has_seconds_of_its_own(model_type, convention):
    spec = spec_of(model_type, convention, 2)
    prompt = Prompt.from_symbols(spec, ["<VVV>t"], video_grid_thw=[[3, 2, 2]])
    if convention != "vllm":
        with pytest.raises(Refusal):
            prompt.expected()
        with pytest.raises(ValueError, match="second_per_grid_ts must be given"):
            rope_index(prompt)
        return
    temporal = {"qwen2_5_omni": [0, 1, 3, 5, 6, 7], "qwen3_omni_moe": [0, 1, 5, 9, 10, 11]}
    assert rope_index(prompt)[0][0, 0].tolist() == temporal[model_type]


@pytest.mark.parametrize(
    "name", ["image_token_id", "video_token_id", "vision_start_token_id", "tokens_per_second"]
)
def test_an_incomplete_spec_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be given for 'qwen3_omni_moe', got None"):
        call(replace(QWEN3, **{name: None}), good())


def test_a_chunk_without_a_position_is_refused():
    spec = spec_of("qwen2_5_omni", "transformers", 2, seconds_per_chunk=0.25)
    with pytest.raises(ValueError, match="a chunk must hold at least one position, got"):
        call(spec, good(QWEN2_5))


def test_float32_positions_must_tell_tokens_apart():
    prompt = Prompt.from_symbols(
        QWEN3, ["<VV>t"], video_grid_thw=[[2, 2, 2]], second_per_grids=[2.0**23]
    )
    match = r"row 0: positions must stay below 2\*\*24 in torch.float32, got 16777219"
    with pytest.raises(ValueError, match=match[:-18]):
        rope_index(prompt)
    ids = torch.zeros((1, 1), dtype=torch.int64).expand(1, 2**24)
    with pytest.raises(ValueError, match="16777216 tokens in a row overflow"):
        get_rope_index(ids, QWEN3)


def test_a_grid_that_no_token_asks_for_takes_no_memory():
    grids = torch.tensor([[1, 2, 4], [2**28, 2, 2]])
    match = r"video_grid_thw row 1 \(268435456, 2, 2\) is left over"
    arguments = good(video_grid_thw=grids, second_per_grids=[1.0, 1e-9])
    with pytest.raises(ValueError, match=match):
        call(QWEN3, arguments)
