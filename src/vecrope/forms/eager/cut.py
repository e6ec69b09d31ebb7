"""Placeholders cut into groups, and the messages that say where they do not fit their grids."""

from __future__ import annotations

from bisect import bisect_left
from operator import sub
from typing import NamedTuple

from torch import Tensor

from vecrope.checks import RowError
from vecrope.core.modality import IMAGE, VIDEO
from vecrope.forms.eager.items import Items
from vecrope.forms.eager.runs import Runs
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

# Index of the first token and behind the last, item, and tokens of the group in its parts before.
Part = tuple[int, int, int, int]
_PATCH_SIZES = (14, 16)


def none_found(kind: int, spec: MRopeSpec, *, by_types: bool) -> str:
    """Return the remark, in parentheses, on grids of a kind that has no placeholder in a batch."""
    if by_types:
        return f" (mm_token_type_ids holds no {kind})"
    if kind == VIDEO and spec.video_token_id is None:
        return (
            f" (no image_token_id {spec.image_token_id} follows a video_start_token_id "
            f"{spec.video_start_token_id} in input_ids)"
        )
    name = "image_token_id" if kind == IMAGE else "video_token_id"
    return f" ({name} {getattr(spec, name)} does not occur in input_ids)"


class Placeholders(NamedTuple):
    """The placeholders of images, or of videos, of a batch."""

    runs: Runs
    items: Items
    inputs: Inputs
    spec: MRopeSpec
    kind: int

    @property
    def name(self) -> str:
        """What their kind is called."""
        return "image" if self.kind == IMAGE else "video"

    def cut(self) -> tuple[list[Part], tuple[int, ValueError] | None]:
        """Return the parts of groups, and of the first fault the token and the error."""
        runs, area, numbers = self.runs, self.items.area, self.items.of_groups(self.kind)
        parts: list[Part] = []
        group = before = 0
        for start, stop, _ in zip(*runs.of(self.kind), strict=True):
            if before and not runs.continues(parts[-1][1] - 1, start):
                return parts, (start, self._cut_short(group, parts[-1], before))
            while start < stop:
                if group == len(numbers):
                    return parts, (start, self._surplus(start))
                item = numbers[group]
                end = min(stop, start + area[item] - before)
                parts.append((start, end, item, before))
                before += end - start
                if before == area[item]:
                    group, before = group + 1, 0
                start = end
        # That the prompt ends too soon is named after all else, for images first.
        behind = runs.starts[-1] + self.kind
        if before:
            return parts, (behind, self._cut_short(group, parts[-1], before))
        if group < len(numbers) and not self.inputs.allow_unused_grids:
            return parts, (behind, self._left_over(group))
        return parts, None

    def missing_marker(self, item: int, token: int) -> RowError:
        """Say that a group begins at a token without a start marker before it."""
        alone = self.items.groups[item] == 1
        where = "right before its tokens" if alone else "before each of its frames"
        return RowError.of(
            self.runs.row_of(token),
            f", {self._named(item)} needs a vision_start_token_id "
            f"{self.spec.vision_start_token_id} {where}, got another token; SGLang would number "
            "them as text",
        )

    def touching(self, item: int, token: int, frame: int) -> RowError:
        """Say that the frame that begins at a token, or the one in front, touches the other."""
        return RowError.of(
            self.runs.row_of(token),
            f", {self._named(item)} needs something between its frames, got nothing at frame "
            f"{frame}; {self.spec.convention} would number the video as a block",
        )

    def _surplus(self, token: int) -> RowError:
        return RowError.of(
            self.runs.row_of(token),
            f" holds {self.name} tokens beyond the last grid: expected {self._expected} for the "
            f"{len(self._grids)} rows of {self.name}_grid_thw, got {self._found} in all"
            + self._hint,
        )

    def _cut_short(self, group: int, last: Part, tokens: int) -> RowError:
        _, stop, item, _ = last
        frame = ""
        if self.kind == VIDEO and self.spec.separate_frames:
            frame = f"frame {self._number(group)} of "
        why = f"; was the prompt truncated inside the {self.name}"
        if tokens == 1 and self._found == len(self._grids):
            why += ", or never expanded by the processor"
        return RowError.of(
            self.runs.row_of(stop - 1),
            f", {frame}{self._named(item)} needs {self.items.area[item]} tokens, got {tokens} in "
            f"one run{self._hint or why + '?'}",
        )

    def _left_over(self, group: int) -> ValueError:
        item = self.items.of_groups(self.kind)[group]
        frames = self._number(group)
        after = f" after {frames} of its frames" if frames else ""
        row = self._row(item)
        return ValueError(
            f"{self.name}_grid_thw row {row} {tuple(self._grids[row])} is left over{after}: "
            f"expected {self._expected} {self.name} tokens in all, got {self._found}{self._hint}"
        )

    @property
    def _hint(self) -> str:
        """In parentheses and with a space before them, what to look at; "" for nothing."""
        spec, kind, found = self.spec, self.kind, self._found
        if found and not self._grids:
            return f" ({self.name}_grid_thw was not given)"
        if not found:
            return none_found(kind, spec, by_types=self.inputs.mm_token_type_ids is not None)
        if any(self._expected == found * size**2 for size in _PATCH_SIZES):
            return f" ({self.name}_grid_thw seems to count pixels; it counts patches)"
        return ""

    @property
    def _found(self) -> int:
        starts, stops, _ = self.runs.of(self.kind)
        return sum(map(sub, stops, starts))

    @property
    def _expected(self) -> int:
        return sum(map(self.items.area.__getitem__, self.items.of_groups(self.kind)))

    @property
    def _grids(self) -> list[list[int]]:
        grids: Tensor | None = getattr(self.inputs, f"{self.name}_grid_thw")
        return [] if grids is None else grids.tolist()

    def _named(self, item: int) -> str:
        """Return what an item is called, and its grid."""
        row = self._row(item)
        return f"{self.name} {row}: its grid {tuple(self._grids[row])}"

    def _row(self, item: int) -> int:
        """Return the row of the grids that describes an item."""
        return item - (self.kind == VIDEO) * self.items.num_images

    def _number(self, group: int) -> int:
        """Return the number of a group in its item."""
        numbers = self.items.of_groups(self.kind)
        return group - bisect_left(numbers, numbers[group])
