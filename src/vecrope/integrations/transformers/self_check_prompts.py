"""Prompts to compare two methods of one family with, made from its spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from vecrope.spec import MRopeSpec

DRAWN = 32
_SECONDS = (0.5, 1.0, 1 / 3, 2.7, 0.04)

# A piece of a prompt: a number of text tokens, or the kind of an item and its grid in tokens.
Piece = int | tuple[str, int, int, int]
# By hand, what chance seldom draws: rows of pieces.
_EDGES: tuple[tuple[tuple[Piece, ...], ...], ...] = (
    ((3,),),
    ((1,), (4,)),
    ((1, ("image", 1, 1, 1)),),
    ((2, ("image", 3, 2, 2), 2),),
    ((1, ("image", 1, 1, 5), 1, ("image", 1, 5, 1), 1),),
    ((2, ("video", 5, 1, 1), 3),),
    ((2, ("video", 4, 2, 3), 1, ("image", 2, 3, 1), 1, ("video", 1, 2, 2), 2),),
    ((4,), (1, ("video", 3, 1, 2)), (1, ("image", 1, 2, 2), 9)),
)


def shared_rule_prompts(spec: MRopeSpec, seed: int) -> Iterator[dict[str, Any]]:
    """Yield arguments for a family that shares a rule, the edge cases first.

    Args:
        spec: the family's spec.
        seed: of the private generator that draws the rest.
    """
    generator = Generator().manual_seed(seed)
    for number, rows in enumerate(_EDGES):
        yield _arguments(spec, rows, _SECONDS[number % len(_SECONDS) :], number % 3, number % 2)
    for _ in range(DRAWN):
        rows = tuple(_row(generator) for _ in range(_number(generator, 1, 3)))
        at = _number(generator, 0, len(_SECONDS) - 1)
        padding, as_list = _number(generator, 0, 3), _number(generator, 0, 1)
        yield _arguments(spec, rows, _SECONDS[at:] + _SECONDS[:at], padding, as_list)


def _number(generator: Generator, least: int, most: int) -> int:
    return int(torch.randint(least, most + 1, (), generator=generator))


def _row(generator: Generator) -> tuple[Piece, ...]:
    pieces: list[Piece] = [_number(generator, 1, 4)]
    for _ in range(_number(generator, 0, 3)):
        if _number(generator, 0, 1):
            frames = 1 if _number(generator, 0, 3) else _number(generator, 2, 3)
            kind = "image"
        else:
            kind, frames = "video", _number(generator, 1, 5)
        pieces.append((kind, frames, _number(generator, 1, 4), _number(generator, 1, 4)))
        pieces.append(_number(generator, 1, 3))
    return tuple(pieces)


def _arguments(
    spec: MRopeSpec,
    rows: tuple[tuple[Piece, ...], ...],
    seconds: tuple[float, ...],
    padding: int,
    as_list: int,
) -> dict[str, Any]:
    """Return a batch: its rows padded on the left, the right or both sides, unmasked if alone."""
    merge = spec.spatial_merge_size
    grids: dict[str, list[list[int]]] = {"image": [], "video": []}
    tokens = []
    for row in rows:
        tokens.append([token for piece in row for token in _tokens(spec, piece)])
        for piece in row:
            if isinstance(piece, tuple):
                kind, t, h, w = piece
                t *= spec.temporal_merge_size if kind == "video" else 1
                grids[kind].append([t, h * merge, w * merge])
    width = max(map(len, tokens)) + (padding == 3)
    left = [
        0 if padding == 0 else (width - len(row)) // (1 if padding == 1 else 2) for row in tokens
    ]
    filler = (_text_id(spec), 0, 0)
    padded = torch.tensor(
        [
            [filler] * before
            + [(*token, 1) for token in row]
            + [filler] * (width - before - len(row))
            for row, before in zip(tokens, left, strict=True)
        ],
        dtype=torch.int64,
    )
    times = [seconds[at % len(seconds)] for at in range(len(grids["video"]))]
    return {
        "input_ids": padded[..., 0],
        "mm_token_type_ids": padded[..., 1],
        "attention_mask": padded[..., 2] if padding or len(rows) > 1 else None,
        "image_grid_thw": _grid_tensor(grids["image"]),
        "video_grid_thw": _grid_tensor(grids["video"]),
        "second_per_grid_ts": (times if as_list else torch.tensor(times)) if times else None,
    }


def _tokens(spec: MRopeSpec, piece: Piece) -> list[tuple[int, int]]:
    """Return the (id, type) of every token of a piece."""
    text = (_text_id(spec), 0)
    if isinstance(piece, int):
        return [text] * piece
    kind, t, h, w = piece
    by_markers = spec.marker_rule in ("last", "count")
    before = [(spec.vision_start_token_id, 0)] if spec.vision_start_token_id is not None else []
    image_id = spec.image_token_id
    video_id = image_id if by_markers else spec.video_token_id
    assert image_id is not None
    assert video_id is not None
    if kind == "image":
        return [*before, *[(image_id, 1)] * (t * h * w)]
    frames = t if spec.separate_frames else 1
    one = [text, *before, *[(video_id, 2)] * (t // frames * h * w)]
    tokens = one * frames
    if by_markers:
        assert spec.video_start_token_id is not None
        assert spec.video_end_token_id is not None
        return [(spec.video_start_token_id, 0), *tokens, (spec.video_end_token_id, 0)]
    return tokens


def _text_id(spec: MRopeSpec) -> int:
    special = (
        spec.image_token_id,
        spec.video_token_id,
        spec.vision_start_token_id,
        spec.video_start_token_id,
        spec.video_end_token_id,
    )
    return next(number for number in range(len(special) + 1) if number not in special)


def _grid_tensor(grids: list[list[int]]) -> Tensor | None:
    return torch.tensor(grids, dtype=torch.int64) if grids else None
