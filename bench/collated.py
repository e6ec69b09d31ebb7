"""The providers of batches for training: `vecrope.collate`, and the positions of its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import vecrope
from bench.answers import Answer, make_spec, prepare_vecrope
from bench.mixed import GROUPS
from bench.prompts import IMAGE, VIDEO, Workload
from bench.provider import Provider

_GRIDS = {"image_grid_thw": IMAGE, "video_grid_thw": VIDEO}
_BATCHES = (*GROUPS["mixed-batch"], *GROUPS["mixed-packed"])


def vecrope_collate_provider() -> Provider:
    """Return `vecrope.collate`: samples read, counted, joined and numbered.

    A sample is what a processor of transformers returns, but for pixels: ids, a mask, types, grids
    and seconds.
    """

    def prepare(workload: Workload) -> Callable[[], dict[str, Any]]:
        spec = make_spec(workload, "transformers")
        samples = samples_of(workload, spec)
        if workload.sequences is not None:
            return lambda: vecrope.collate(samples, spec, pad_token_id=0, packed=True)
        assert workload.attention_mask is not None
        side = "right" if bool(workload.attention_mask[:, 0].all()) else "left"
        return lambda: vecrope.collate(samples, spec, pad_token_id=0, padding_side=side)

    def convert(batch: dict[str, Any]) -> Answer:
        positions = batch["position_ids"]
        return positions[1:, 0] if "cu_seq_lens_q" in batch else positions, batch["rope_deltas"]

    return Provider(
        "vecrope-collate",
        vecrope.__version__,
        "transformers",
        prepare,
        convert=convert,
        only=_BATCHES,
        host_only=True,
        packed="together",
    )


def vecrope_batch_positions_provider() -> Provider:
    """Return the positions of such a batch alone: if it is packed, with the row of its text."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        is_packed = workload.sequences is not None
        return prepare_vecrope(workload, "transformers", text_positions=is_packed)

    return Provider(
        "vecrope-batch-positions",
        vecrope.__version__,
        "transformers",
        prepare,
        convert=lambda answer: (answer[0][-3:], answer[1]),
        only=_BATCHES,
        host_only=True,
        packed="together",
    )


def samples_of(workload: Workload, spec: vecrope.MRopeSpec) -> list[dict[str, Tensor]]:
    """Return the prompts of a workload as samples, each with its own media."""
    if workload.sequences is not None:
        rows = [(one.input_ids[0], one.mm_token_type_ids[0]) for one in workload.sequences]
    else:
        assert workload.attention_mask is not None
        kept = workload.attention_mask.bool()
        rows = [
            (workload.input_ids[row, kept[row]], workload.mm_token_type_ids[row, kept[row]])
            for row in range(len(kept))
        ]
    grids = {name: _grids_in_turn(workload, name, spec) for name in _GRIDS}
    start = 0
    samples = []
    for ids, types in rows:
        sample = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": types,
        }
        for name, kind in _GRIDS.items():
            if own := _take(grids[name], int((types == kind).sum())):
                sample[name] = torch.stack(own)
        if workload.second_per_grid_ts is not None and "video_grid_thw" in sample:
            stop = start + len(sample["video_grid_thw"])
            sample["second_per_grid_ts"] = workload.second_per_grid_ts[start:stop].clone()
            start = stop
        samples.append(sample)
    return samples


def _grids_in_turn(
    workload: Workload, name: str, spec: vecrope.MRopeSpec
) -> Iterator[tuple[Tensor, int]]:
    """Yield the grids of a workload, each with its number of tokens."""
    merged = spec.spatial_merge_size**2
    if name == "video_grid_thw":
        merged *= spec.temporal_merge_size
    grids = getattr(workload, name)
    for grid in () if grids is None else grids:
        yield grid, int(grid.prod()) // merged


def _take(grids: Iterator[tuple[Tensor, int]], tokens: int) -> list[Tensor]:
    """Take the next grids that so many tokens stand for."""
    taken = []
    while tokens > 0:
        grid, of_grid = next(grids)
        taken.append(grid)
        tokens -= of_grid
    return taken
