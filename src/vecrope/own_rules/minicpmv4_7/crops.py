"""The crops of pictures: which tokens they are, and the row of `target_sizes` that each takes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.modality import IMAGE, TEXT, VIDEO, compact
from vecrope.core.search import search
from vecrope.core.stream import Stream
from vecrope.families.rules import MiniCPMV47
from vecrope.spec import MRopeSpec

# Sides from which a crop, or a canvas, is refused where values are checked, in tokens.
MAX_SIDE = 2**16


class Tokens(NamedTuple):
    """The unmasked tokens of a batch, moved up to the front; what is left over belongs to no row.

    Rows and indices are int64. Row B stands for what is left over.
    """

    ids: Tensor  # (N,) -1 where left over
    types: Tensor | None  # (N,) 0 where left over
    rows: Tensor  # (N,)
    bounds: Tensor  # (B + 2,) where each row starts, where the last one ends, and N
    origin: Tensor  # (N,) for each token of the stream: where it has moved to

    @property
    def number(self) -> int:
        """N, what is left over included."""
        return self.ids.shape[0]

    @property
    def indices(self) -> Tensor:
        """The numbers from 0 to N - 1."""
        return torch.arange(self.number, device=self.ids.device)

    def is_any(self, *token_ids: int | None) -> Tensor:
        """Return (N,) bool: the token has one of these ids. None is the id of no token."""
        found = torch.zeros_like(self.ids, dtype=torch.bool)
        for token_id in token_ids:
            if token_id is not None:
                found = found | (self.ids == token_id)
        return found


class Markers(NamedTuple):
    """Which tokens open and close a crop, and between which ones the others are; (N,) bool."""

    opens: Tensor
    closes: Tensor
    opened: Tensor  # the marker before, in its row, opens
    closed: Tensor  # the marker after, in its row, closes
    apply: Tensor  # 0-d bool: there are pictures; otherwise markers are text

    @classmethod
    def of(cls, tokens: Tokens, rule: MiniCPMV47, apply: Tensor) -> Markers:
        """Find the markers."""
        opens = tokens.is_any(rule.image_start_id, rule.slice_start_id)
        closes = tokens.is_any(rule.image_end_id, rule.slice_end_id)
        index = tokens.indices
        before = pad(index.masked_fill(~(opens | closes), -1).cummax(0).values, (1, 0), value=-1)
        after = next_index(opens | closes)
        row_start, row_end = tokens.bounds[tokens.rows], tokens.bounds[tokens.rows + 1]
        opened = opens[before[:-1].clamp(min=0)] & (before[:-1] >= row_start)
        closed = pad(closes, (0, 1))[after[1:]] & (after[1:] < row_end)
        return cls(opens, closes, opened, closed, apply)

    def edges(self) -> tuple[Tensor, Tensor]:
        """Return which tokens are the first and the last of a crop, bool (N,)."""
        crop = ~self.opens & ~self.closes & self.opened & self.closed
        return crop & pad(self.opens[:-1], (1, 0)), crop & pad(self.closes[1:], (0, 1))


class Crops(NamedTuple):
    """C crops in the order of the prompt: one for each size, the first one beyond, and none.

    A row of the table that no crop takes starts and ends at N, in row B. Without a size a crop has
    0 x 0 tokens.
    """

    starts: Tensor  # (C,)
    ends: Tensor  # (C,)
    rows: Tensor  # (C,)
    kinds: Tensor  # (C,) the modality of its own tokens
    is_slice: Tensor  # (C,) bool; a thumbnail otherwise
    pictures: Tensor  # (C,) counts thumbnails
    size_rows: Tensor  # (C,) of images and then videos; the number of both is that of no size
    height: Tensor  # (C,) in tokens, below `MAX_SIDE`
    width: Tensor  # (C,)
    total: Tensor  # 0-d, crops in the prompt, maybe more than these
    markers: Markers | None  # where crops were found by them


def gather_tokens(stream: Stream) -> Tokens:
    """Move the unmasked tokens of a stream, of at least one token, to the front."""
    bounds, number = stream.row_bounds, stream.num_tokens
    ids, types = stream.input_ids.to(torch.int64), stream.token_types
    index = torch.arange(number, device=ids.device)
    origin = index
    if stream.kept is not None:
        found = pad(stream.kept.cumsum(0), (1, 0))
        bounds = found[bounds]
        # One spare place takes everything masked.
        origin = torch.where(stream.kept, found[1:] - 1, number)
        ids = ids.new_full((number + 1,), -1).scatter(0, origin, ids)[:-1]
        if types is not None:
            types = types.new_zeros(number + 1).scatter(0, origin, types)[:-1]
    rows = search(bounds, index) - 1
    return Tokens(ids, types, rows, append(bounds, number), origin)


def find_crops(
    tokens: Tokens, spec: MRopeSpec, rule: MiniCPMV47, sizes: Tensor, images: int
) -> Crops:
    """Tabulate the crops.

    Args:
        tokens: the prompt.
        spec: the ids of images and videos.
        rule: the ids of markers, and how crops are found.
        sizes: (G, 2) int64, `target_sizes` and then `target_sizes_videos`.
        images: the number of rows of the former.
    """
    capacity = sizes.shape[0] + 2
    codes, markers = tokens.types, None
    if codes is None:
        is_image = tokens.is_any(spec.image_token_id)
        codes = torch.where(tokens.is_any(spec.video_token_id), VIDEO, is_image * IMAGE)
        if rule.crop_rule == "markers":
            markers = Markers.of(tokens, rule, (sizes != 0).any())
    codes = codes.to(torch.int64)
    first, last = _run_edges(tokens, codes)
    if markers is not None:
        marked_first, marked_last = markers.edges()
        first = torch.where(markers.apply, marked_first, first)
        last = torch.where(markers.apply, marked_last, last)
        codes = torch.where(markers.apply & (codes == TEXT), IMAGE, codes)
    starts, found = compact(first, capacity, torch.int64)
    assert found is not None
    ends = (compact(last, capacity, torch.int64)[0] + 1).clamp(max=tokens.number)
    # The last row is no crop's, whatever the prompt holds.
    spare = torch.arange(capacity, device=starts.device) == capacity - 1
    starts, ends = starts.masked_fill(spare, tokens.number), ends.masked_fill(spare, tokens.number)
    rows = append(tokens.rows, tokens.bounds.shape[0] - 2)[starts]
    kinds = pad(codes, (0, 1), value=TEXT)[starts]
    announced = tokens.is_any(rule.slice_start_id)[(starts - 1).clamp(min=0)]
    used = starts < tokens.number
    is_slice = announced & used & (rows == pad(rows[:-1], (1, 0), value=-1))
    pictures = (~is_slice).cumsum(0) - 1
    owners = torch.zeros_like(kinds).scatter_add(0, pictures, kinds.masked_fill(is_slice, TEXT))
    size_rows = _size_rows(owners[pictures], sizes, images)
    own_sizes = pad(sizes, (0, 0, 0, 1)).clamp(min=0)[size_rows] // rule.downsample_factor
    height, width = own_sizes.clamp(max=MAX_SIDE - 1).unbind(1)
    return Crops(
        starts, ends, rows, kinds, is_slice, pictures, size_rows, height, width, found, markers
    )


def _run_edges(tokens: Tokens, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return which tokens are the first and the last of a crop, bool (N,)."""
    changes = (codes[1:] != codes[:-1]) | (tokens.rows[1:] != tokens.rows[:-1])
    crop = codes != TEXT
    return crop & pad(changes, (1, 0), value=True), crop & pad(changes, (0, 1), value=True)


def next_index(flags: Tensor) -> Tensor:
    """Return (N + 1,) the first index, from each one on, at which `flags` (N,) is set; else N."""
    number = flags.shape[0]
    index = torch.arange(number, device=flags.device).masked_fill(~flags, number)
    return append(index.flip(0).cummin(0).values.flip(0), number)


def append(values: Tensor, value: int) -> Tensor:
    """Append one value. Unlike `pad`, it may be a size, which stays dynamic under tracing."""
    return torch.cat((values, values.new_full((1,), value)))


def _size_rows(owners: Tensor, sizes: Tensor, images: int) -> Tensor:
    """Return (C,) the row of sizes of each crop, by the modality (C,) of its picture."""
    counts = (sizes != 0).any(1)
    rows = torch.full_like(owners, sizes.shape[0])
    for kind, start, stop in ((IMAGE, 0, images), (VIDEO, images, sizes.shape[0])):
        mine = owners == kind
        at = search(counts[start:stop].cumsum(0), mine.cumsum(0) - 1)
        rows = torch.where(mine & (at < stop - start), at + start, rows)
    return rows
