"""Where tokens stand, as lines for a person: one for each run of text, image and frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vecrope.cli.prompt import Prompt
from vecrope.core.items import make_items
from vecrope.core.modality import IMAGE, MASKED, TEXT, VIDEO
from vecrope.core.stream import make_stream
from vecrope.forms.static import locate


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
    advance: int  # by how much the segment moves the running position

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
    rows: list[list[Segment]] = [[] for _ in prompt.input_ids]
    located = locate(stream, prompt.spec, items)
    kind = located.kind
    text = (kind == TEXT) | (kind == MASKED)
    # What the tokens of a segment share: row and kind, and where they are visual, the group.
    shared = (
        *(located.rows, kind.long(), located.item),
        located.group.masked_fill(text, 0),
    )
    starts = torch.ones_like(text)
    starts[1:] = torch.stack([column[1:] != column[:-1] for column in shared]).any(0)
    at = starts.nonzero().view(-1)
    stops = [*at[1:].tolist(), kind.shape[0]]
    columns = (
        *(located.rows, kind, located.item, located.group, located.place),
        *(located.in_group, located.height, located.width, located.base, located.span),
    )
    seq_len = prompt.input_ids.shape[1]
    for start, stop, (row, modality, item, group, place, depth, height, width, base, span) in zip(
        at.tolist(),
        stops,
        zip(*(column[at].tolist() for column in columns), strict=True),
        strict=True,
    ):
        visual = modality in (IMAGE, VIDEO)
        rows[row].append(
            Segment(
                row=row,
                start=start - row * seq_len,
                stop=stop - row * seq_len,
                modality=modality,
                item=item - items.num_images if modality == VIDEO else item,
                frame=group,
                place=place,
                grid=(depth, height, width),
                base=prompt.spec.padding_value if modality == MASKED else base,
                advance=(0 if place else span) if visual else span * (stop - start),
            )
        )
    return rows
