"""The report for a terminal of 100 columns: segments, positions, and the confirmation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vecrope.cli.confirm import Answer, Timing
from vecrope.cli.prompt import Prompt, by, image_markers
from vecrope.cli.table import Segment
from vecrope.core.modality import IMAGE, MASKED, VIDEO
from vecrope.spec import MRopeSpec

_COLUMNS = 100
_FIRST, _LAST = 12, 6  # segments shown of a row that has more
_LINE_NAMES = ("", "token", "", "t", "h", "w")
_SYMBOLS = {
    "t": "text",
    "< >": "image start and end",
    "[ ]": "video start and end",
    "I": "image",
    "V": "video",
    "_": "masked",
}


def render(prompt: Prompt, rows: Sequence[Sequence[Segment]], answer: Answer) -> list[str]:
    """Return the lines of the report, without trailing spaces."""
    batch, seq_len = prompt.input_ids.shape
    lines = [
        prompt.title,
        f"model {prompt.spec.model_type}, convention {prompt.spec.convention}, "
        f"{_count(batch, 'row')} of {_count(seq_len, 'token')}",
        "",
        "Segments: each counts from its base, and its span moves the running position on",
        "",
        *_segment_lines(rows),
        "",
        "Positions: " + ", ".join(f"{symbol} {what}" for symbol, what in _SYMBOLS.items()),
    ]
    for row, segments in enumerate(rows):
        lines += ["", *_row_lines(prompt, row, segments, answer)]
    return [line.rstrip() for line in (*lines, "", *_confirmation(prompt, answer))]


def _segment_lines(rows: Sequence[Sequence[Segment]]) -> Iterator[str]:
    table = [("row", "tokens", "", "what", f"grid {by('h', 'w')}", "base", "span")]
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
            base, span = str(segment.base), str(segment.span)
            table.append((str(segment.row), *tokens, segment.label, grid, base, span))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row, start, stop, what, *numbers in table:
        head = f"{row:>{widths[0]}}   {start:>{widths[1]}}{stop:<{widths[2]}}   {what:<{widths[3]}}"
        tail = (f"{value:>{width}}" for value, width in zip(numbers, widths[4:], strict=True))
        yield "   ".join((head, *tail))


def _row_lines(
    prompt: Prompt, row: int, segments: Sequence[Segment], answer: Answer
) -> Iterator[str]:
    delta, length = int(answer.rope_deltas[row]), prompt.lengths()[row]
    yield (
        f"row {row}: rope_delta {delta}, so that the token after these {length} gets position "
        f"{length + delta}"
    )
    ids: list[int] = prompt.input_ids[row].tolist()
    axes: list[list[int]] = answer.position_ids[:, row].tolist()
    width = 1 + max(len(str(value)) for value in (len(ids) - 1, *map(max, axes)))
    blocks = [_block(prompt.spec, segment, ids, axes, width) for segment in _abridged(segments)]
    for line in _wrapped(blocks):
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


def _wrapped(blocks: Sequence[list[str]]) -> Iterator[list[list[str]]]:
    """Distribute blocks over lines, none of which is cut in two."""
    line: list[list[str]] = []
    room = 0
    for block in blocks:
        needed = len(block[0]) + 2
        if needed > room and line:
            yield line
            line = []
        if not line:
            room = _COLUMNS - 4
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
    names = ("vecrope, eager, checks included", "the loop, plain Python over lists")
    for name, timing in zip(names, (answer.library, answer.loop), strict=True):
        yield f"  {name:<33} {_duration(timing):>9}   median of {timing.calls} calls"
    ratio = answer.loop.seconds / answer.library.seconds
    yield f"  {'loop / vecrope':<33} {ratio:>9.{1 if ratio >= 1 else 2}f}   one CPU thread each"


def _duration(timing: Timing) -> str:
    microseconds = timing.seconds * 1e6
    return f"{microseconds:.0f} µs" if microseconds < 1000 else f"{microseconds / 1000:.2f} ms"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
