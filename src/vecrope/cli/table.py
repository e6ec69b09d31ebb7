"""The library's segment table, as lines for a person: one for each run of text, image and frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from vecrope.cli.prompt import Prompt
from vecrope.core.items import make_items
from vecrope.core.modality import IMAGE, MASKED, TEXT, VIDEO
from vecrope.core.stream import make_stream
from vecrope.segments import segment_stream


@dataclass(frozen=True)
class Segment:
    """The tokens `start <= token < stop` of a row, which belong together."""

    row: int
    start: int
    stop: int
    modality: int  # TEXT, IMAGE, VIDEO or MASKED
    item: int  # row of the grids of its kind
    frame: int  # of a video
    place: int  # of the first token within the image or frame; not 0 where masked tokens cut it
    grid: tuple[int, int, int]  # frames, rows and columns, in tokens
    base: int
    span: int  # how far the segment moves the running position

    @property
    def length(self) -> int:
        """The number of tokens."""
        return self.stop - self.start

    @property
    def is_visual(self) -> bool:
        """Whether the tokens are an image's or a video's."""
        return self.modality in (IMAGE, VIDEO)

    @property
    def label(self) -> str:
        """What the tokens are, and of which image or frame."""
        if self.modality == TEXT:
            return "text"
        if self.modality == MASKED:
            return "masked"
        kind = "image" if self.modality == IMAGE else "video"
        separate = self.modality == VIDEO and self.grid[0] == 1
        frame = f" frame {self.frame}" if separate else ""
        return f"{kind} {self.item}{frame}{', continued' if self.place else ''}"


def segment_rows(prompt: Prompt) -> list[list[Segment]]:
    """Return the segments of each row of a prompt that `get_rope_index` has accepted."""
    no_grid = torch.empty((0, 3), dtype=torch.int64)
    mask = None if prompt.spec.mask_rule == "ignore" else prompt.attention_mask
    stream = make_stream(prompt.input_ids, mask, None, prompt.mm_token_type_ids, exact=True)
    items = make_items(
        no_grid if prompt.image_grid_thw is None else prompt.image_grid_thw,
        no_grid if prompt.video_grid_thw is None else prompt.video_grid_thw,
        prompt.spec,
        stream.index_dtype,
        prompt.second_per_grid_ts,
    )
    table = segment_stream(stream, prompt.spec, items, None)
    columns = (
        *(table.rows, table.starts, table.lengths, table.modality, table.items, table.origin),
        *(table.in_group, table.height, table.width, table.base, table.span),
    )
    rows: list[list[Segment]] = [[] for _ in prompt.input_ids]
    seq_len = prompt.input_ids.shape[1]
    for row, start, length, modality, item, origin, depth, height, width, base, span in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        segment = Segment(
            row=row,
            start=start - row * seq_len,
            stop=start - row * seq_len + length,
            modality=modality,
            item=item - items.num_images if modality == VIDEO else item,
            frame=0,
            place=start - origin,
            grid=(depth, height, width),
            base=base,
            span=span,
        )
        rows[row] += _groups(segment) if segment.is_visual else _whole(segment)
    return rows


def _whole(segment: Segment) -> Iterator[Segment]:
    """Text and masked tokens: each token is a group, shown together."""
    if segment.length:
        yield replace(segment, span=segment.length * segment.span)


def _groups(segment: Segment) -> Iterator[Segment]:
    """Cut what may hold several frames of a video into these."""
    depth, height, width = segment.grid
    size = depth * height * width
    start, place = segment.start, segment.place
    while start < segment.stop:
        frame, within = divmod(place, size)
        stop = min(segment.stop, start + size - within)
        yield replace(
            segment,
            start=start,
            stop=stop,
            frame=frame,
            place=within,
            base=segment.base + frame * segment.span,
            span=0 if within else segment.span,
        )
        place += stop - start
        start = stop
