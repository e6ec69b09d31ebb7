"""A spec and a prompt out of JSON files; whatever is wrong with one is a `CommandError`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vecrope.cli.prompt import CommandError, Prompt
from vecrope.registration import list_families
from vecrope.spec import Convention, MRopeSpec

_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids")
_GRIDS = ("image_grid_thw", "video_grid_thw")
_SECONDS = "second_per_grid_ts"
_INT64 = range(-(2**63), 2**63)


def default_convention(model_type: object) -> Convention:
    """Return the first upstream that has a family; of an unknown one, any."""
    for convention in ("transformers", "sglang", "vllm"):
        if model_type in list_families(convention):
            return convention
    return "transformers"


def load_spec(path: Path, convention: Convention | None) -> MRopeSpec:
    """Return the spec that a model's `config.json` describes."""
    config = _load_object(path)
    try:
        convention = convention or default_convention(config.get("model_type"))
        return MRopeSpec.from_config(config, convention=convention)
    except (ValueError, TypeError) as error:
        raise CommandError(f"{path}: {error}") from error


def load_prompt(path: Path, spec: MRopeSpec) -> Prompt:
    """Return the prompt that a file describes: an object of `get_rope_index`'s arguments.

    `input_ids`, `attention_mask` and `mm_token_type_ids` are a list, for one row, or a list of
    lists; `image_grid_thw` and `video_grid_thw` are lists of `[t, h, w]`; `second_per_grid_ts` is a
    list of numbers. A null is no argument.
    """
    content = _load_object(path)
    known = (*_TOKENS, *_GRIDS, _SECONDS)
    for name in content:
        if name not in known:
            raise CommandError(f"{path}: unknown key {name!r}; the keys are {', '.join(known)}")
    if content.get("input_ids") is None:
        raise CommandError(f"{path}: the key 'input_ids' is missing")
    given = {name: value for name, value in content.items() if value is not None}
    try:
        tensors = {name: _tensor(name, value) for name, value in given.items()}
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from error
    return Prompt(title=str(path), spec=spec, **tensors)


def _load_object(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: not UTF-8 text: {error}") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CommandError(f"{path}: must hold a JSON object, got {_shown(content)}")
    return content


def _tensor(name: str, value: object) -> Tensor:
    if name == _SECONDS:
        return _numbers(name, value)
    return _grid_rows(name, value) if name in _GRIDS else _token_rows(name, value)


def _numbers(name: str, value: object) -> Tensor:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list of numbers, got {_shown(value)}")
    for index, entry in enumerate(value):
        if isinstance(entry, bool) or not isinstance(entry, int | float):
            raise ValueError(f"{name} must hold numbers, got {_shown(entry)} in entry {index}")
    return torch.tensor(value, dtype=torch.float32)


def _token_rows(name: str, value: object) -> Tensor:
    nested = isinstance(value, list) and any(isinstance(entry, list) for entry in value)
    rows = _integer_rows(name, value if nested else [value], "integers or a list of such lists")
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise ValueError(
            f"{name} must have rows of one length, got {lengths[0]} and {lengths[-1]}; pad them, "
            "and say where in attention_mask"
        )
    if lengths[0] == 0:
        raise ValueError(f"{name} must hold at least one token")
    return torch.tensor(rows)


def _grid_rows(name: str, value: object) -> Tensor:
    rows = _integer_rows(name, value, "[t, h, w] lists of integers")
    for item, row in enumerate(rows):
        if len(row) != 3:
            raise ValueError(f"{name} row {item} must be [t, h, w], got {_shown(row)}")
    return torch.tensor(rows, dtype=torch.int64).view(-1, 3)


def _integer_rows(name: str, value: object, expected: str) -> list[list[int]]:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list of {expected}, got {_shown(value)}")
    for row, entries in enumerate(value):
        if not isinstance(entries, list):
            raise ValueError(f"{name} must be a list of {expected}, got {_shown(entries)}")
        for index, entry in enumerate(entries):
            # JSON's true and false are Python integers; only a mask may use them.
            boolean = isinstance(entry, bool) and name != "attention_mask"
            if boolean or not isinstance(entry, int):
                raise ValueError(
                    f"{name} must hold integers, got {_shown(entry)} in row {row}, entry {index}"
                )
            if entry not in _INT64:
                raise ValueError(
                    f"{name} must hold 64-bit integers, got {_shown(entry)} in row {row}, "
                    f"entry {index}"
                )
    return value


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
