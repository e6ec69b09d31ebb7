"""From entries, which are the starts of rows and the crops of pictures, to positions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def place_tokens(table: Tensor, steps: Tensor, entry: Tensor, slot: Tensor) -> Tensor:
    """Return the (3, N) positions of tokens.

    Args:
        table: (20, E) int64, for each entry: slot of its crop's first token; first slot behind the
            picture's last marker; the picture's running position; what text behind it has more than
            its slot; tokens of the crop, less 1; columns of the crop, at least 1. Then rows and
            columns, counted from the running position: of its first cell; of the marker before it;
            of the one behind it; of what follows that; and what `rounded_linspace` takes, two each.
            A row's start is an entry without tokens.
        steps: (2, E) float32, likewise.
        entry: (N,) the entry that a token belongs to: from the marker before a crop on.
        slot: (N,) number of the token.
    """
    columns = table.index_select(1, entry)
    start, stop, origin, shift, last, width = columns[:6].unbind()
    corner, before, behind, further, reach, half, extent = columns[6:].view(7, 2, -1).unbind()
    cell = slot - start
    inner = torch.minimum(cell.clamp(min=0), last)
    cells = torch.stack((inner // width, inner % width))
    cells = corner + rounded_linspace(cells, reach, half, extent, steps.index_select(1, entry))
    cells = torch.where(cell < 0, before, cells)
    cells = torch.where(cell > last, torch.where(cell - last > 1, further, behind), cells)
    on_canvas = origin + pad(cells, (0, 0, 1, 0))
    return torch.where(slot < stop, on_canvas, slot + shift).clamp(min=0)


def rounded_linspace(
    index: Tensor, reach: Tensor, half: Tensor, last: Tensor, step: Tensor
) -> Tensor:
    """Return where places lie: `torch.linspace(0, last, reach + 1)[index].round()`, int64.

    It is that bit for bit, as float32 gives it on a CPU: multiples of the rounded step from the
    nearer end, rounded too, and then half to even. A sum of exact fractions would differ where a
    place lies halfway between two others. Products and sums are rounded by a conversion each, which
    no compiler fuses.

    Args:
        index: int64, from 0 to `reach`.
        reach: int64. `last * reach` must be below `LIMIT`, or both equal and below 2**16.
        half: int64, the first index that is measured from the end: half of `reach + 1`, at least 1.
        last: int64.
        step: `last / reach` in float32; 0 where `reach` is.
    """
    from_end = index >= half
    way = (index - from_end * reach) * step
    return (way.double() + from_end * last).float().round().long()
