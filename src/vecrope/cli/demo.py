"""The conversation that `python -m vecrope` lays out when it is given no prompt."""

from __future__ import annotations

import random

import torch

from vecrope.cli.prompt import CommandError, Prompt, by, image_markers
from vecrope.spec import MRopeSpec

NAMES = {
    "glm4v": "GLM-4.1V",
    "glm4v_moe": "GLM-4.5V",
    "glm46v": "GLM-4.6V",
    "glm_ocr": "GLM-OCR",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL MoE",
    "qwen3_5": "Qwen3.5",
    "qwen3_5_moe": "Qwen3.5 MoE",
    "qwen4_exp": "Qwen4",
    "cosmos3_omni": "Cosmos3 Omni",
    "cosmos3_edge": "Cosmos3 Edge",
    "cohere_compass": "Cohere Compass",
    "paddleocr_vl": "PaddleOCR-VL",
    "ernie4_5_vl_moe": "ERNIE 4.5 VL",
}

_PATCH = 14  # pixels along each side
_IMAGE = (27, 36)  # rows and columns, in tokens
_VIDEO = (4, 16, 24)  # frames, rows and columns, in tokens
_SECONDS = 0.5  # from a frame of the grid to the next
_NEWLINE = 198


def conversation(spec: MRopeSpec) -> Prompt:
    """Lay out two turns, about a picture and about a clip, up to where the answer begins.

    The clip is left out where the upstream takes none. Its frames stand as the family's processor
    puts them: all in a row, or one by one, each with its second written behind it (GLM) or before
    it. The turns of a GLM conversation are those of its chat template, whose special tokens stand
    at the same distances from `<|begin_of_image|>` in every GLM vocabulary; other families' turns
    begin with a word. The words are random ids.

    Raises:
        CommandError: if there is no layout for the family.
    """
    image = spec.image_token_id
    if spec.own_rule is not None:
        raise CommandError(
            f"{spec.model_type!r} has a rule of its own under convention {spec.convention!r}, "
            "which this command does not show: vecrope.get_rope_index numbers its prompts"
        )
    if image is None:
        raise CommandError(
            f"{spec.model_type!r} has no placeholders under convention {spec.convention!r}: its "
            "positions are the index of each token"
        )
    if spec.model_type not in NAMES:
        raise CommandError(f"no conversation can be laid out for {spec.model_type!r}: use --input")
    begin_image, end_image = image_markers(spec)
    draw = random.Random(4)
    special = {image, spec.video_token_id, spec.video_start_token_id, spec.video_end_token_id}
    special |= {begin_image, end_image}
    vocabulary = [token for token in range(1000, 50_000) if token not in special]

    def words(count: int) -> list[int]:
        return draw.sample(vocabulary, count)

    if spec.model_type.startswith("glm"):
        prefix = [begin_image - 8, begin_image - 6]  # [gMASK] <sop>
        user = [begin_image - 3, _NEWLINE]
        assistant = [begin_image - 2, _NEWLINE]
    else:
        prefix, user, assistant = [], words(1), words(1)

    def picture(placeholder: int, count: int) -> list[int]:
        return [begin_image, *[placeholder] * count, end_image]

    merge = spec.spatial_merge_size
    image_grid = (1, *(merge * side for side in _IMAGE))
    name = NAMES[spec.model_type]
    article = "An" if name[0] in "AEIO" else "A"
    title = f"{article} {name} conversation: a {_pixels(image_grid)} picture"
    tokens = [
        *(*prefix, *user, *picture(image, _IMAGE[0] * _IMAGE[1]), *words(7)),
        *(*assistant, *words(12), *user),
    ]
    frames, *frame_size = _VIDEO
    video_grid = (frames * spec.temporal_merge_size, *(merge * side for side in frame_size))
    size = frame_size[0] * frame_size[1]
    start, end = spec.video_start_token_id, spec.video_end_token_id
    has_videos = True
    if start is not None and end is not None:
        clip = [image] * (frames * size)
        if spec.separate_frames:
            clip = [token for _ in range(frames) for token in (*picture(image, size), *words(1))]
        tokens += [start, *clip, end]
    elif spec.video_token_id is None:
        has_videos = False
    elif spec.separate_frames:
        for _ in range(frames):
            tokens += [*words(1), *picture(spec.video_token_id, size)]
    else:
        tokens += picture(spec.video_token_id, frames * size)
    tokens += [*words(6), *assistant]
    if has_videos:
        title += f", a {_pixels(video_grid)} clip of {2 * frames} frames (merged in pairs)"
    in_seconds = has_videos and spec.video_time == "seconds"
    return Prompt(
        title=title,
        spec=spec,
        input_ids=torch.tensor([tokens]),
        image_grid_thw=torch.tensor([image_grid]),
        video_grid_thw=torch.tensor([video_grid]) if has_videos else None,
        second_per_grid_ts=torch.tensor([_SECONDS]) if in_seconds else None,
    )


def _pixels(grid: tuple[int, ...]) -> str:
    _, height, width = grid
    return by(width * _PATCH, height * _PATCH)
