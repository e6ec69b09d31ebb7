"""The report for a terminal: segments, positions, and the confirmation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

from vecrope.cli.confirm import Answer, Timing
from vecrope.cli.prompt import Prompt, by, image_markers
from vecrope.cli.table import Segment
from vecrope.core.modality import IMAGE, MASKED, VIDEO
from vecrope.spec import MRopeSpec

_FIRST, _LAST = 12, 6  # segments shown of a row that has more
_LINE_NAMES = ("", "token", "", "t", "h", "w")


def render(
    prompt: Prompt, rows: Sequence[Sequence[Segment]], answer: Answer, columns: int = 80
) -> list[str]:
    """Return the lines of the report, of at most so many columns, without trailing spaces."""
    batch, seq_len = prompt.input_ids.shape
    lines = [
        *wrap(prompt.title, columns),
        f"model {prompt.spec.model_type}, convention {prompt.spec.convention}, "
        f"{_count(batch, 'row')} of {_count(seq_len, 'token')}",
        "",
        "Segments: each counts from its base and moves the next one on by its advance",
        "",
        *_segment_lines(prompt, rows),
        "",
        *wrap(f"Positions: {', '.join(_legend(prompt))}", columns),
    ]
    for row, segments in enumerate(rows):
        lines += ["", *_row_lines(prompt, row, segments, answer, columns)]
    return [line.rstrip() for line in (*lines, "", *_confirmation(prompt, answer))]


def _legend(prompt: Prompt) -> Iterator[str]:
    """Name the symbols that the report shows, with their token ids."""
    spec = prompt.spec
    ids = {token for row in prompt.input_ids.tolist() for token in row}
    markers = image_markers(spec)
    of_image = {spec.image_token_id} & ids
    of_video = {spec.video_token_id or spec.image_token_id} & ids
    yield "t text"
    if prompt.image_grid_thw is not None and of_image:
        yield f"I image ({spec.image_token_id})"
    if prompt.video_grid_thw is not None and of_video:
        yield f"V video ({spec.video_token_id or spec.image_token_id})"
    if ids & set(markers):
        yield "< > image start and end ({}, {})".format(*markers)
    of_videos = spec.video_start_token_id, spec.video_end_token_id
    if ids & set(of_videos):
        yield "[ ] video start and end ({}, {})".format(*of_videos)
    if prompt.attention_mask is not None:
        yield "_ masked"


def _seconds(prompt: Prompt, segment: Segment) -> str:
    """Return what a video's frames are apart, where its time is in seconds."""
    if segment.modality != VIDEO or prompt.spec.video_time != "seconds":
        return ""
    given = prompt.second_per_grid_ts
    seconds = prompt.spec.default_seconds if given is None else float(given[segment.item])
    return f", {seconds:g} s apart"


def _segment_lines(prompt: Prompt, rows: Sequence[Sequence[Segment]]) -> Iterator[str]:
    table = [("row", "tokens", "", "what", f"grid {by('h', 'w')}", "base", "advance")]
    for segments in rows:
        for segment in _abridged(segments):
            if segment is None:
                hidden = len(segments) - _FIRST - _LAST
                table.append(("", "…", "", f"{hidden} more", "", "", ""))
                continue
            depth, *sides = segment.grid
            grid = by(*(segment.grid if depth > 1 else sides))
            tokens = (f"{segment.start}..", str(segment.stop))
            grid = grid if segment.is_visual else ""
            label = segment.label + _seconds(prompt, segment)
            base, advance = str(segment.base), str(segment.advance)
            table.append((str(segment.row), *tokens, label, grid, base, advance))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row, start, stop, what, *numbers in table:
        head = f"{row:>{widths[0]}}   {start:>{widths[1]}}{stop:<{widths[2]}}   {what:<{widths[3]}}"
        tail = (f"{value:>{width}}" for value, width in zip(numbers, widths[4:], strict=True))
        yield "   ".join((head, *tail))


def _row_lines(
    prompt: Prompt, row: int, segments: Sequence[Segment], answer: Answer, columns: int
) -> Iterator[str]:
    delta, length = int(answer.rope_deltas[row]), prompt.lengths()[row]
    yield (
        f"row {row}: rope_delta {delta}: the token after these {length} gets position "
        f"{length + delta}"
    )
    ids: list[int] = prompt.input_ids[row].tolist()
    axes: list[list[int]] = answer.position_ids[:, row].tolist()
    width = 1 + max(len(str(value)) for value in (len(ids) - 1, *map(max, axes)))
    blocks = [_block(prompt.spec, segment, ids, axes, width) for segment in _abridged(segments)]
    for line in _wrapped(blocks, columns):
        yield ""
        for name, *parts in zip(_LINE_NAMES, *line, strict=True):
            yield f"{name:>5} {'  '.join(parts)}"


def _block(
    spec: MRopeSpec, segment: Segment | None, ids: list[int], axes: list[list[int]], width: int
) -> list[str]:
    """Draw a segment: what it is, token indices, symbols, and the three axes below each other."""
    if segment is None:
        return ["  …"] * len(_LINE_NAMES)
    lines = [" " * (width - 1) + segment.label, "", "", "", "", ""]
    last = segment.start - 1
    for token in _shown_tokens(segment):
        gap = " …" if token > last + 1 else ""
        symbol = _symbol(spec, segment, ids[token])
        for at, value in enumerate((token, symbol, *(axis[token] for axis in axes)), start=1):
            lines[at] += f"{gap}{value:>{width}}"
        last = token
    longest = max(map(len, lines))
    return [line.ljust(longest) for line in lines]


def _shown_tokens(segment: Segment) -> list[int]:
    """Return the tokens at both ends, and where the grid's first line ends and its next begins."""
    length = segment.length
    chosen = {0, length - 1}
    if segment.modality != MASKED:
        chosen |= {1, 2, length - 2}
    if segment.is_visual:
        columns = segment.grid[2]
        wrap = columns - segment.place % columns
        chosen |= {wrap - 1, wrap, wrap + 1}
    # A gap of one token would take as much room as the token.
    chosen |= {at + 1 for at in chosen if at + 2 in chosen}
    return [segment.start + at for at in sorted(chosen) if 0 <= at < length]


def _symbol(spec: MRopeSpec, segment: Segment, token: int) -> str:
    kinds = {IMAGE: "I", VIDEO: "V", MASKED: "_"}
    begin_image, end_image = image_markers(spec)
    markers = {
        begin_image: "<",
        end_image: ">",
        spec.video_start_token_id: "[",
        spec.video_end_token_id: "]",
    }
    return kinds.get(segment.modality) or markers.get(token, "t")


def _wrapped(blocks: Sequence[list[str]], columns: int) -> Iterator[list[list[str]]]:
    """Distribute blocks over lines, none of which is cut in two."""
    line: list[list[str]] = []
    room = 0
    for block in blocks:
        needed = len(block[0]) + 2
        if needed > room and line:
            yield line
            line = []
        if not line:
            room = columns - 4
        line.append(block)
        room -= needed
    yield line


def _abridged(segments: Sequence[Segment]) -> list[Segment | None]:
    if len(segments) <= _FIRST + _LAST + 1:
        return list(segments)
    return [*segments[:_FIRST], None, *segments[-_LAST:]]


def _confirmation(prompt: Prompt, answer: Answer) -> Iterator[str]:
    batch, seq_len = prompt.input_ids.shape
    if answer.disagreement is not None:
        yield "NOT CONFIRMED: the positions differ from those of vecrope.testing.reference"
        return
    count = 3 * batch * seq_len
    yield f"Confirmed: all {count} positions and every rope_delta equal those of the loop"
    yield "in vecrope.testing.reference, which is written to be read, not to be fast."
    names = ("vecrope, eager, checks included", answer.peer_name)
    width = max(map(len, names))
    for name, timing in zip(names, (answer.library, answer.peer), strict=True):
        yield f"  {name:<{width}} {_duration(timing):>9}   median of {timing.calls} calls"
    ratio = answer.peer.seconds / answer.library.seconds
    label = f"{answer.peer_name.partition(',')[0]} / vecrope"
    yield f"  {label:<{width}} {ratio:>9.{1 if ratio >= 1 else 2}f}   CPU time of one thread"


def _duration(timing: Timing) -> str:
    microseconds = timing.seconds * 1e6
    return f"{microseconds:.0f} µs" if microseconds < 1000 else f"{microseconds / 1000:.2f} ms"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
