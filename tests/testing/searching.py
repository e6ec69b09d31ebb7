"""Searches for prompts that the strategies draw."""

import contextlib
import itertools
import re
from functools import partial

import torch
from hypothesis import Phase, find, settings
from hypothesis.errors import NoSuchExample

from vecrope import MRopeSpec
from vecrope.testing import Prompt, assert_matches

SGLANG = MRopeSpec.for_model("glm4v", convention="sglang")
TRANSFORMERS = MRopeSpec.for_model("glm4v", convention="transformers")
QWEN2_5 = {
    convention: MRopeSpec.for_model("qwen2_5_vl", convention=convention)
    for convention in ("transformers", "sglang", "vllm")
}
QWEN3 = {
    convention: MRopeSpec.for_model("qwen3_vl", convention=convention)
    for convention in ("transformers", "sglang", "vllm")
}

FIND = settings(max_examples=2000, database=None, derandomize=True)
smallest = partial(find, settings=FIND)
any_such = partial(find, settings=settings(FIND, max_examples=5000, phases=[Phase.generate]))


def never_drawn(strategy, features):
    """Return the names of the features that no prompt of one search has."""
    missing = dict(features)

    def is_last(prompt):
        for name in [name for name, feature in missing.items() if feature(prompt)]:
            del missing[name]
        return not missing

    with contextlib.suppress(NoSuchExample):
        any_such(strategy, is_last)
    return [*missing]


def masks(prompt):
    if prompt.attention_mask is None:
        return ["1" * len(row) for row in prompt.symbols]
    return ["".join(map(str, row)) for row in prompt.attention_mask.tolist()]


def unmasked(prompt):
    return [
        "".join(symbol for symbol, value in zip(row, mask, strict=True) if value == "1")
        for row, mask in zip(prompt.symbols, masks(prompt), strict=True)
    ]


def masked(prompt):
    return "".join(
        symbol
        for row, mask in zip(prompt.symbols, masks(prompt), strict=True)
        for symbol, value in zip(row, mask, strict=True)
        if value == "0"
    )


def grids(prompt):
    both = (prompt.image_grid_thw, prompt.video_grid_thw)
    return tuple([] if grid_thw is None else grid_thw.tolist() for grid_thw in both)


def any_row(pattern, rows):
    return any(re.search(pattern, row) for row in rows)


ANYWHERE = {
    "one token": lambda p: p.symbols == ["t"],
    "several rows": lambda p: len(p.symbols) > 1,
    "an image": lambda p: len(grids(p)[0]) == 1,
    "several images": lambda p: len(grids(p)[0]) > 1,
    "an image over several frames": lambda p: any(t > 1 for t, _, _ in grids(p)[0]),
    "an image longer than high and wide": lambda p: any(
        t > max(h, w) // 2 for t, h, w in grids(p)[0]
    ),
    "a wide image": lambda p: any(h == 2 < w for _, h, w in grids(p)[0]),
    "a tall image": lambda p: any(h > 2 == w for _, h, w in grids(p)[0]),
    "an image with several lines": lambda p: any(min(h, w) > 2 for _, h, w in grids(p)[0]),
    "a video": lambda p: len(grids(p)[1]) == 1,
    "a video of several frames": lambda p: any(t > 1 for t, _, _ in grids(p)[1]),
    "two videos": lambda p: len(grids(p)[1]) == 2,
    "an image and a video": lambda p: all(grids(p)),
    "an image row after an image row": lambda p: sum("I" in row for row in unmasked(p)) > 1,
    "a text row among image rows": lambda p: {"I" in row for row in p.symbols} == {True, False},
    "no mask": lambda p: p.attention_mask is None,
    "a mask without padding": lambda p: p.attention_mask is not None and masked(p) == "",
    "left padding": lambda p: any_row("^0+1+$", masks(p)),
    "right padding": lambda p: any_row("^1+0+$", masks(p)),
    "padding on both sides": lambda p: any_row("^0+1+0+$", masks(p)),
}

SOUP = {
    "a hole in the mask": lambda p: any_row("10+1", masks(p)),
    "a hole that joins two runs": lambda p: any(
        longest_run(left) > longest_run(row)
        for row, left in zip(p.symbols, unmasked(p), strict=True)
    ),
    "a masked placeholder": lambda p: "I" in masked(p),
    "a masked start": lambda p: "[" in masked(p),
    "a masked end": lambda p: "]" in masked(p),
    "two starts in a row": lambda p: any_row(r"\[[^\]]*\[I", unmasked(p)),
    "an end before any start": lambda p: any_row(r"^[^\[]*\].*\[I", unmasked(p)),
    "a video that is never closed": lambda p: any_row(r"\[[^\]]*I[^\]]*$", unmasked(p)),
    "the marker rules disagree": lambda p: (
        not torch.equal(p.mm_token_type_ids, other_rule(p).mm_token_type_ids)
    ),
    "a row without tokens": lambda p: "" in unmasked(p),
    "a row without tokens between rows with images": lambda p: (
        ["I" in row for row in unmasked(p)] == [True, False, True] and unmasked(p)[1] == ""
    ),
    "a video over two rows": lambda p: any(
        row_end not in video_ends(p) for row_end in itertools.accumulate(frames_in_rows(p))
    ),
    "an empty grid tensor": lambda p: p.image_grid_thw is not None and not len(p.image_grid_thw),
}


def other_rule(prompt):
    other = TRANSFORMERS if prompt.spec == SGLANG else SGLANG
    return Prompt.from_symbols(other, prompt.symbols, mask=masks(prompt))


def longest_run(row):
    return max(map(len, re.findall("I+", row)), default=0)


def frames_in_rows(prompt):
    types = zip(prompt.mm_token_type_ids.tolist(), masks(prompt), strict=True)
    kept = (
        [kind for kind, value in zip(row, mask, strict=True) if value == "1"] for row, mask in types
    )
    return [sum(kind == 2 for kind, _ in itertools.groupby(row)) for row in kept]


def video_ends(prompt):
    return list(itertools.accumulate((t for t, _, _ in grids(prompt)[1]), initial=0))


# Planted bugs


def matches(function, prompt):
    try:
        assert_matches(function, prompt)
    except Exception:
        return False
    return True
