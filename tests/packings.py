"""Sequences arranged in rows, for the tests of packing, shards and plans of several sequences."""

from dataclasses import dataclass, replace
from functools import cache

import torch
from hypothesis import strategies as st
from support import grid_list, grid_tensor, kept

from vecrope.testing import Prompt, conversations, token_soup


@dataclass(frozen=True)
class Packing:
    """Rows of several sequences each, and every sequence as a prompt of its own."""

    parts: list[Prompt]
    places: list[tuple[int, slice]]  # the row and the columns of each part
    input_ids: torch.Tensor
    sequence_ids: torch.Tensor
    mm_token_type_ids: torch.Tensor
    image_grid_thw: torch.Tensor
    video_grid_thw: torch.Tensor
    second_per_grid_ts: torch.Tensor | None

    def arguments(self):
        arguments = {
            "sequence_ids": self.sequence_ids,
            "image_grid_thw": self.image_grid_thw,
            "video_grid_thw": self.video_grid_thw,
        }
        if self.second_per_grid_ts is not None:
            arguments["second_per_grid_ts"] = self.second_per_grid_ts
        return arguments


def alone(prompt):
    """Return the one row of a prompt without its masked tokens."""
    valid = kept(prompt)[0]
    return replace(
        prompt,
        input_ids=prompt.input_ids[:, valid],
        mm_token_type_ids=prompt.mm_token_type_ids[:, valid],
        attention_mask=None,
    )


@cache
@cache
def sequences(spec, *, hostile=True):
    """Draw a prompt of one row without padding, of one token at least."""
    prompts = conversations(spec, max_rows=1, max_segments=3)
    if hostile:
        prompts |= token_soup(spec, max_rows=1, max_pieces=5, touching=True)
    return prompts.filter(lambda prompt: bool(kept(prompt).any())).map(alone)


@st.composite
def packings(draw, spec, *, hostile=True):
    rows = draw(
        st.lists(
            st.lists(sequences(spec, hostile=hostile), min_size=0, max_size=3),
            min_size=1,
            max_size=2,
        ).filter(any)
    )
    gap = st.integers(0, 2)
    step = st.integers(1, 2)
    pad_id = 3
    parts, places, ids, numbers, types = [], [], [], [], []
    for row, prompts in enumerate(rows):
        line = [pad_id] * draw(gap)
        sequence, kinds, number = [0] * len(line), [0] * len(line), 0
        for prompt in prompts:
            length = prompt.input_ids.shape[1]
            number += draw(step)
            parts.append(prompt)
            places.append((row, slice(len(line), len(line) + length)))
            behind = draw(gap)
            line += prompt.input_ids[0].tolist() + [pad_id] * behind
            kinds += prompt.mm_token_type_ids[0].tolist() + [0] * behind
            sequence += [number] * length + [0] * behind
        ids.append(line)
        numbers.append(sequence)
        types.append(kinds)
    width = max(map(len, ids))
    images = [grid for part in parts for grid in grid_list(part.image_grid_thw)]
    videos = [grid for part in parts for grid in grid_list(part.video_grid_thw)]
    seconds = None
    if spec.video_time == "seconds":
        value = st.sampled_from([1.0, 0.5, 0.08, 2 / 23.976])
        seconds = torch.tensor(draw(st.lists(value, min_size=len(videos), max_size=len(videos))))
        counts = [len(grid_list(part.video_grid_thw)) for part in parts]
        parts = [
            replace(part, second_per_grid_ts=own)
            for part, own in zip(parts, seconds.split(counts), strict=True)
        ]

    def tensor(lines, value):
        return torch.tensor([line + [value] * (width - len(line)) for line in lines])

    return Packing(
        parts=parts,
        places=places,
        input_ids=tensor(ids, pad_id),
        sequence_ids=tensor(numbers, 0),
        mm_token_type_ids=tensor(types, 0),
        image_grid_thw=grid_tensor(images),
        video_grid_thw=grid_tensor(videos),
        second_per_grid_ts=seconds,
    )
