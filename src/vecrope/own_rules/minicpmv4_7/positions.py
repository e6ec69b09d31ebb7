"""From entries, which are the starts of rows and the crops of pictures, to positions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def place_tokens(table: Tensor, entry: Tensor, slot: Tensor) -> Tensor:
    """Return the (3, N) positions of tokens.

    Args:
        table: (13, E) int64, for each entry: slot of its crop's first token; first slot behind the
            picture's last marker; the picture's running position; what text behind it has more than
            its slot; 1 for a slice, 0 for a thumbnail; then as rows and columns, counted from the
            running position: its first cell; where tokens stand that follow the marker behind it;
            how many tokens it has; over how many cells these are spread. A row's start is an entry
            without tokens.
        entry: (N,) the entry that a token belongs to: from the marker before a crop on.
        slot: (N,) number of the token.
    """
    columns = table[:, entry]
    start, stop, origin, shift, is_slice = columns[:5].unbind()
    corner, line_end, size, extent = columns[5:].view(4, 2, -1).unbind()
    cell, last = slot - start, size[0] * size[1] - 1
    width, inner = size[1].clamp(min=1), torch.minimum(cell.clamp(min=0), last)
    cells = torch.stack((inner // width, inner % width))
    cells = corner + rounded_linspace(cells, extent, size)
    # The marker before a crop stands at its first cell and the one behind it at its last, those of
    # a thumbnail one further out.
    cells = torch.where(cell < 0, corner + is_slice - 1, cells)
    cells = torch.where(cell > last, corner + extent - is_slice, cells)
    cells = torch.where(cell > last + 1, line_end, cells)
    on_canvas = origin + pad(cells, (0, 0, 1, 0))
    return torch.where(slot < stop, on_canvas, slot + shift).clamp(min=0)


def rounded_linspace(index: Tensor, extent: Tensor, count: Tensor) -> Tensor:
    """Return where places lie: `torch.linspace(0, extent - 1, count)[index].round()`, int64.

    It is that bit for bit, as float32 gives it on a CPU: multiples of the rounded step from the
    nearer end, rounded too, and then half to even. A sum of exact fractions would differ where a
    place lies halfway between two others. Products and sums are rounded by a conversion each, which
    no compiler fuses. All arguments are int64; `(extent - 1) * (count - 1)` must be below `LIMIT`,
    or both equal and below 2**16.
    """
    reach, last = count - 1, extent - 1
    step = (last.double() / reach.clamp(min=1)).float()
    from_end = index >= (count // 2).clamp(min=1)
    way = (index - from_end * reach) * step
    return (way.double() + from_end * last).float().round().long()
