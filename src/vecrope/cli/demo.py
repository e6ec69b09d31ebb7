"""The conversation that `python -m vecrope` lays out when it is given no prompt."""

from __future__ import annotations

import random

import torch

from vecrope.cli.prompt import Prompt, by, image_markers
from vecrope.spec import MRopeSpec

NAMES = {
    "glm4v": "GLM-4.1V",
    "glm4v_moe": "GLM-4.5V",
    "glm46v": "GLM-4.6V",
    "glm_ocr": "GLM-OCR",
}

_PATCH = 14  # pixels along each side
_IMAGE = (12, 18)  # rows and columns, in tokens
_VIDEO = (3, 8, 12)  # frames, rows and columns, in tokens
_NEWLINE = 198


def conversation(spec: MRopeSpec) -> Prompt:
    """Lay out two turns, about a picture and about a clip, up to where the answer begins.

    The layout is that of GLM's chat template and of transformers' `Glm4vProcessor`: the frames of a
    video are images between the video markers, each with its second written behind it. The special
    tokens stand at the same distances from `<|begin_of_image|>` in every GLM vocabulary; the words
    are random ids.
    """
    begin_image, end_image = image_markers(spec)
    prefix = [begin_image - 8, begin_image - 6]  # [gMASK] <sop>
    user = [begin_image - 3, _NEWLINE]
    assistant = [begin_image - 2, _NEWLINE]
    draw = random.Random(4)
    special = {spec.image_token_id, spec.video_start_token_id, spec.video_end_token_id}
    vocabulary = [token for token in range(1000, 50_000) if token not in special]

    def words(count: int) -> list[int]:
        return draw.sample(vocabulary, count)

    def picture(rows: int, columns: int) -> list[int]:
        return [begin_image, *[spec.image_token_id] * (rows * columns), end_image]

    frames, *frame_size = _VIDEO
    clip = [token for _ in range(frames) for token in (*picture(*frame_size), *words(1))]
    tokens = [
        *(*prefix, *user, *picture(*_IMAGE), *words(7)),
        *(*assistant, *words(12)),
        *(*user, spec.video_start_token_id, *clip, spec.video_end_token_id, *words(6)),
        *assistant,
    ]
    merge = spec.spatial_merge_size
    image_grid = (1, *(merge * side for side in _IMAGE))
    video_grid = (frames, *(merge * side for side in frame_size))
    title = (
        f"A {NAMES[spec.model_type]} conversation: a {_pixels(image_grid)} picture, "
        f"a {_pixels(video_grid)} clip of {2 * frames} frames (merged in pairs)"
    )
    return Prompt(
        title=title,
        spec=spec,
        input_ids=torch.tensor([tokens]),
        image_grid_thw=torch.tensor([image_grid]),
        video_grid_thw=torch.tensor([video_grid]),
    )


def _pixels(grid: tuple[int, ...]) -> str:
    _, height, width = grid
    return by(width * _PATCH, height * _PATCH)
