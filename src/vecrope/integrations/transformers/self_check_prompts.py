"""Prompts to compare two methods of one family with, made from its spec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator

from vecrope.families.rules import GlmImage, Hunyuan, MiniCPMV47, OmniRule
from vecrope.spec import MRopeSpec
from vecrope.testing.prompt import Prompt
from vecrope.testing.sound import sound_block

DRAWN = 32
_SECONDS = (0.5, 1.0, 1 / 3, 2.7, 0.04)
# Lines and columns of slices behind a thumbnail.
_SLICES = ((0, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 2))

Grid = tuple[int, int, int]
# A number of text tokens; or the kind of an item, its grid in tokens, and a number that decides
# what else there is to it.
Piece = int | tuple[str, int, int, int, int]
# By hand, what chance seldom draws: rows of pieces.
_EDGES: tuple[tuple[tuple[Piece, ...], ...], ...] = (
    ((3,),),
    ((1,), (4,)),
    ((1, ("image", 1, 1, 1, 0)),),
    ((2, ("image", 3, 2, 2, 1), 2),),
    ((1, ("image", 1, 1, 5, 1), 1, ("image", 1, 5, 1, 0), 1),),
    ((2, ("video", 5, 1, 1, 2), 3),),
    ((2, ("video", 4, 2, 3, 1), 1, ("image", 2, 3, 1, 0), 1, ("video", 1, 2, 2, 3), 2),),
    ((4,), (1, ("video", 3, 1, 2, 4)), (1, ("image", 1, 2, 2, 5), 9)),
    ((2, ("image", 1, 2, 1, 2), 1, ("target", 1, 3, 2, 0), ("target", 1, 1, 4, 0)),),
    ((2, ("target", 1, 2, 3, 0)), (1, ("image", 1, 2, 2, 3), 1)),
    *(
        ((1, ("image", 1, 1, 2, 4), 1, ("audio", 1, 1, 1, length), 1, ("video", 2, 1, 2, length)),)
        for length in range(5)
    ),
    ((1, ("audio", 1, 1, 1, 2), 3), (5,)),
)


class _Item(NamedTuple):
    """The symbols of an item, and what describes it in the arguments."""

    symbols: str
    media: dict[str, list[Any]]


def self_check_prompts(spec: MRopeSpec, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the arguments of prompts for a family of transformers, the edge cases first.

    Args:
        spec: the family's spec.
        seed: of the private generator that draws the rest.
    """
    generator = Generator().manual_seed(seed)
    for number, rows in enumerate(_EDGES):
        yield _arguments(spec, rows, number % 3, number % 2)
    for _ in range(DRAWN):
        rows = tuple(_row(generator) for _ in range(_number(generator, 1, 3)))
        yield _arguments(spec, rows, _number(generator, 0, 3), _number(generator, 0, 1))


def _number(generator: Generator, least: int, most: int) -> int:
    return int(torch.randint(least, most + 1, (), generator=generator))


def _row(generator: Generator) -> tuple[Piece, ...]:
    pieces: list[Piece] = [_number(generator, 1, 4)]
    for _ in range(_number(generator, 0, 3)):
        kind = ("image", "video", "image", "video", "audio")[_number(generator, 0, 4)]
        frames = _number(generator, 1, 5)
        if kind == "image":
            frames = 1 if frames < 4 else frames - 2
        sides = _number(generator, 1, 4), _number(generator, 1, 4)
        pieces.append((kind, frames, *sides, _number(generator, 0, 29)))
        pieces.append(_number(generator, 1, 3))
    if not _number(generator, 0, 3):
        pieces.append(("target", 1, _number(generator, 1, 4), _number(generator, 1, 4), 0))
    return tuple(pieces)


def _arguments(
    spec: MRopeSpec, rows: Sequence[Sequence[Piece]], padding: int, choice: int
) -> dict[str, Any]:
    """Return a batch: its rows padded on the left, the right or both sides, unmasked if alone.

    Args:
        spec: the family's spec.
        rows: the pieces of each.
        padding: 0: on the right, 1: on the left, 2: on both sides, 3: likewise, of every row.
        choice: whether seconds are a list, and whether videos have their sound.
    """
    rule = spec.own_rule
    with_sound = isinstance(rule, OmniRule) and bool(choice)
    lines: list[str] = []
    media: list[dict[str, list[Any]]] = []
    for row in rows:
        found: dict[str, list[Any]] = {}
        media.append(found)
        items = [_item(spec, piece, with_sound) for piece in row]
        lines.append("".join(item.symbols for item in items))
        for item in items:
            for name, values in item.media.items():
                found.setdefault(name, []).extend(values)
    arguments: dict[str, Any] = {
        name: [value for found in media for value in found.get(name, [])]
        for name in dict.fromkeys(name for found in media for name in found)
    }
    seconds = arguments.pop("seconds", None)
    if isinstance(rule, OmniRule):
        arguments |= {"second_per_grids": seconds, "use_audio_in_video": with_sound}
    elif seconds:
        arguments["second_per_grid_ts"] = (
            seconds if choice else torch.tensor(seconds, dtype=torch.float32)
        )
    if isinstance(rule, GlmImage) and len(rows) > 1:
        counts = [len(found.get("image_grid_thw", [])) for found in media]
        arguments["images_per_sample"] = counts
    width = max(map(len, lines)) + (padding == 3)
    gaps = [width - len(line) for line in lines]
    left = [(0, gap, gap // 2, gap // 2)[padding] for gap in gaps]
    masked = padding or len(rows) > 1 or isinstance(rule, OmniRule)
    prompt = Prompt.from_symbols(
        spec,
        [("t" * n + line).ljust(width, "t") for n, line in zip(left, lines, strict=True)],
        mask=[
            ("0" * n + "1" * len(line)).ljust(width, "0")
            for n, line in zip(left, lines, strict=True)
        ]
        if masked
        else None,
        **arguments,
    )
    return {**prompt.arguments(), "mm_token_type_ids": prompt.mm_token_type_ids}


def _item(spec: MRopeSpec, piece: Piece, with_sound: bool) -> _Item:
    """Return a piece as the family's processor lays it out; nothing, if it has none of the kind."""
    if isinstance(piece, int):
        return _Item("t" * piece, {})
    kind, t, h, w, number = piece
    if isinstance(spec.own_rule, OmniRule):
        return _omni_item(spec, spec.own_rule, kind, (t, h, w), number, with_sound)
    return _ITEMS.get(type(spec.own_rule), _shared_item)(spec, kind, (t, h, w), number)


def _shared_item(spec: MRopeSpec, kind: str, grid: Grid, number: int) -> _Item:
    t, h, w = grid
    start = "" if spec.vision_start_token_id is None else "<"
    if kind == "image":
        return _Item(start + "I" * (t * h * w), {"image_grid_thw": [_patches(spec, grid)]})
    if kind != "video":
        return _Item("", {})
    by_markers = spec.marker_rule in ("last", "count")
    frames = t if spec.separate_frames else 1
    symbols = f"t{start}{('I' if by_markers else 'V') * (t // frames * h * w)}" * frames
    deep = (t * spec.temporal_merge_size, h, w)
    media: dict[str, list[Any]] = {
        "video_grid_thw": [_patches(spec, deep)],
        "seconds": [_second(number)],
    }
    return _Item(f"[{symbols}]" if by_markers else symbols, media)


def _hunyuan_item(spec: MRopeSpec, kind: str, grid: Grid, number: int) -> _Item:
    _, h, w = grid
    if kind != "image":
        return _Item("", {})
    around = 2 * (number % 2)
    return _Item("I" * (h * (w + 1) + around), {"image_grid_thw": [_patches(spec, grid)]})


def _glm_image_item(spec: MRopeSpec, kind: str, grid: Grid, number: int) -> _Item:  # noqa: ARG001
    t, h, w = grid
    if kind not in ("image", "target"):
        return _Item("", {})
    symbols = f"<{'I' * (t * h * w)}>" if kind == "image" else ""
    return _Item(symbols, {"image_grid_thw": [_patches(spec, grid)]})


def _minicpm_item(spec: MRopeSpec, kind: str, grid: Grid, number: int) -> _Item:
    """Return a thumbnail and lines of slices, or several for a video."""
    pictures, h, w = grid
    rule = spec.own_rule
    assert isinstance(rule, MiniCPMV47)
    if kind not in ("image", "video"):
        return _Item("", {})
    symbol = "I" if kind == "image" else "V"
    lines, columns = _SLICES[number % len(_SLICES)]
    line = f"<{symbol * (h * w)}>" * columns
    picture = "n".join([f"({symbol * (h * w)}){line}", *[line] * (lines - 1)])
    pictures = min(pictures, 3) if kind == "video" else 1
    sides = [(h, w), *[(w, h)] * (lines * columns)] * pictures
    sizes = [tuple(side * rule.downsample_factor for side in size) for size in sides]
    name = "target_sizes" if kind == "image" else "target_sizes_videos"
    return _Item("n".join([picture] * pictures), {name: sizes})


def _omni_item(
    spec: MRopeSpec, rule: OmniRule, kind: str, grid: Grid, number: int, with_sound: bool
) -> _Item:
    t, h, w = grid
    window = 2 * (rule.n_window or 20)
    # Below, at and above the ends of the audio encoder's windows, and of 50, a usual one.
    length = (window, window - 1, window + 1, 130, 3 * window + 5)[number % 5]
    if kind == "image":
        return _Item(f"<{'I' * (t * h * w)}>", {"image_grid_thw": [_patches(spec, grid)]})
    if kind == "audio":
        symbols = sound_block(spec, (0, 1, 1), 0.0, length)
        return _Item(f"({symbols})", {"audio_seqlens": [length]})
    if kind != "video":
        return _Item("", {})
    media: dict[str, list[Any]] = {
        "video_grid_thw": [_patches(spec, grid)],
        "seconds": [_second(number)],
    }
    if not with_sound:
        return _Item(f"<{'V' * (t * h * w)}>", media)
    symbols = sound_block(spec, grid, _second(number), length)
    return _Item(f"<({symbols})>", {**media, "audio_seqlens": [length]})


_ITEMS: dict[type, Callable[[MRopeSpec, str, Grid, int], _Item]] = {
    Hunyuan: _hunyuan_item,
    GlmImage: _glm_image_item,
    MiniCPMV47: _minicpm_item,
}


def _second(number: int) -> float:
    return _SECONDS[number % len(_SECONDS)]


def _patches(spec: MRopeSpec, grid: Grid) -> Grid:
    t, h, w = grid
    return t, h * spec.spatial_merge_size, w * spec.spatial_merge_size
