"""Isaac: the cells of an image are counted from 0, and what follows it is no plain sum."""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope.core.items import grids_of, make_items
from vecrope.core.stream import make_stream
from vecrope.forms.eager.rope_index import find_groups
from vecrope.forms.static import TokenLocations, locate
from vecrope.inputs import Inputs
from vecrope.own_rules.common import Tokens, finish, refuse_videos
from vecrope.own_rules.layout import Layout
from vecrope.spec import MRopeSpec

# More than any position: what sets the running largest values of one row apart from the next's.
_ROW_STEP = 2**32


def isaac_rope_index(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> tuple[Tensor, Tensor]:
    """Return the positions of `vecrope.get_rope_index` by the rule `Isaac`.

    The tokens of an image have one temporal position, the running one, and as height and width
    their row and column, counted from 0. What follows it goes on past the largest of the three,
    unless that is the end of the row: the text behind the last image goes on past its temporal
    position.

    Returns:
        `position_ids` (3, B, T) in the dtype that the spec names, or (3, N); and `rope_deltas`
        (B, 1) int64, or (num_sequences, 1). With `validate` placeholders and grids that do not fit
        each other have no answer, as `invalidate` says.

    The rule is that of vLLM's `IsaacForConditionalGeneration.get_mrope_input_positions`.
    """
    refuse_videos(inputs, spec)
    stream = make_stream(inputs, spec)
    images = grids_of(inputs.image_grid_thw, stream.input_ids.device)
    items = make_items(images, images[:0], spec, stream.index_dtype)
    # Every group, an image too, moves what `_number` starts from by 1; masked tokens do not.
    items.table[5].clamp_(max=1)
    locations = locate(stream, spec, items)
    base, rope_deltas = _number(locations)
    offsets = locations.offsets()
    # The row and column of an image's token are counted from 0, less its temporal offset.
    cells = torch.where(locations.image, -offsets[0], base)
    positions = offsets + torch.stack((base, cells, cells))
    fault = locations.fault() if validate else None
    return finish(stream, inputs, spec, positions, rope_deltas, fault)


def lay_out_isaac(tokens: Tokens, spec: MRopeSpec) -> Layout:
    """Lay a batch out by the same rule.

    Raises:
        ValueError: if placeholders and grids do not fit each other.
    """
    refuse_videos(tokens.inputs, spec)
    items, starts, stops, numbers, *_ = find_groups(tokens.inputs, spec).parts
    layout = Layout(tokens)
    layout.media += zip(starts, stops, numbers, strict=True)
    for _, own in layout.rows(starts):
        now = -1
        for at in own:
            layout.text(starts[at])
            now, item = layout.now, numbers[at]
            height, width = items.height[item], items.width[item]
            layout.frame(now, range(height), range(width))
            layout.now = layout.reach = max(now + 1, height, width)
        layout.now = now + 1
    return layout


def _number(locations: TokenLocations) -> tuple[Tensor, Tensor]:
    """Return the (N,) positions at which the tokens' groups start, and the (B,) int64 deltas.

    The base of a token is where its group starts if every image moves the running position by 1. An
    image of a side that reaches further lifts all behind it by the difference, unless an earlier
    one has done so already: the lift is a running maximum.
    """
    stream, image, plain = locations.stream, locations.image, locations.base
    rows, first = locations.rows, locations.begins
    images, all_images = stream.running_sums(first, rows)

    # What a row holds stays above what those before it do, so that no maximum goes on into it.
    apart = rows * _ROW_STEP
    side = torch.maximum(locations.height, locations.width)  # of text 1
    lift = ((side - 1 - plain).clamp(min=0) + apart).cummax(0).values
    before = torch.maximum(torch.cat((apart[:1], lift[:-1])), apart)
    at_image = torch.where(first, before, apart).cummax(0).values
    fixed = image | (images == all_images[rows])
    base = plain + torch.where(fixed, at_image, lift) - apart

    reach = torch.maximum(base + 1, side)
    if locations.masked is not None:
        reach = reach.masked_fill(locations.masked, 0)
    row_end, valid = torch.zeros_like(all_images, dtype=torch.int64), stream.kept_in_rows
    row_end.scatter_reduce_(0, rows, reach, "amax")
    return base, row_end - valid
