"""Where tokens stand, as lines for a person: one for each run of text, image and frame."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from typing import Any

from vecrope.cli.prompt import Prompt
from vecrope.core.modality import IMAGE, MASKED, TEXT, VIDEO
from vecrope.forms.eager.rope_index import find_groups
from vecrope.inputs import Inputs


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
    spec, mask = prompt.spec, prompt.attention_mask
    if mask is not None and (spec.mask_rule == "ignore" or bool(mask.all())):
        mask = None
    given: dict[str, Any] = {**prompt.arguments(), "attention_mask": mask}
    inputs = Inputs(prompt.input_ids, **given)
    bounds, parts, _ = find_groups(inputs, spec)
    items, running = parts.items, parts.running(bounds)
    groups: Counter[int] = Counter()
    segments: list[Segment] = []

    def add(start: int, stop: int, modality: int, base: int, **others: Any) -> None:
        row = bisect_right(bounds, start) - 1
        place = {"row": row, "start": start - bounds[row], "stop": stop - bounds[row]}
        if modality != MASKED:
            base -= running[row]
        of_text = {"item": 0, "frame": 0, "place": 0, "grid": (1, 1, 1), "advance": 0}
        segments.append(Segment(**{**of_text, **place, **others}, modality=modality, base=base))

    columns = parts.starts, parts.stops, parts.bases(), parts.item, parts.before
    for start, stop, base, item, before in zip(*columns, strict=True):
        groups[item] += not before
        is_video = item >= items.num_images
        add(
            *(start, stop, VIDEO if is_video else IMAGE, base),
            item=item - items.num_images * is_video,
            frame=groups[item] - 1,
            place=before,
            grid=(items.depth[item], items.height[item], items.width[item]),
            advance=0 if before else items.advance[item],
        )
    for start, stop in zip(*parts.masked, strict=True):
        add(start, stop, MASKED, spec.padding_value)
    # Text is what stands between.
    starts = sorted([*parts.starts, *parts.masked[0], *bounds[1:]])
    stops = sorted([*bounds[:-1], *parts.stops, *parts.masked[1]])
    for start, stop in zip(stops, starts, strict=True):
        if start < stop:
            add(start, stop, TEXT, parts.running([start])[0], advance=stop - start)
    rows: list[list[Segment]] = [[] for _ in prompt.input_ids]
    for segment in sorted(segments, key=lambda segment: segment.start):
        rows[segment.row].append(segment)
    return rows
