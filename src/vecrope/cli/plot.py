"""The positions as a picture: the three axes over the token index, the segments shaded.

Positions rise from left to right, segment by segment, so that there is always room for labels above
and to the left of a segment, and below and to the right of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vecrope.cli.confirm import Answer
from vecrope.cli.prompt import CommandError, Prompt, by
from vecrope.cli.table import Segment
from vecrope.core.modality import IMAGE, MASKED, TEXT, VIDEO

_MOST_ROWS = 8
_INK, _FAINT, _RULE = "#24292f", "#57606a", "#d0d7de"
# Told apart by colour-blind readers too (Okabe and Ito).
_AXES = {"temporal": "#0072b2", "height": "#d55e00", "width": "#009e73"}
_SHADES = {IMAGE: ("#fdf1d8",), VIDEO: ("#e6eef8", "#d6e3f3"), MASKED: ("#eeeeee",)}
_LABEL_COLORS = {IMAGE: "#7d5a0b", VIDEO: "#2f5f92"}
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _FAINT,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "svg.hashsalt": "vecrope",
}
_FEW_TOKENS = 128
_CHARACTER = 0.0095  # width of one, as a share of the panel's


def draw(prompt: Prompt, rows: Sequence[Sequence[Segment]], answer: Answer, out: Path) -> None:
    """Draw the positions, a panel for each row, to a file of the kind that its suffix says.

    Raises:
        CommandError: if matplotlib is missing, if there are too many rows, or if the file cannot be
            written.
    """
    if not out.suffix:
        raise CommandError(f"{out}: the name must end in what to draw, such as .png or .svg")
    if len(rows) > _MOST_ROWS:
        raise CommandError(f"--plot draws at most {_MOST_ROWS} rows, got {len(rows)}")
    matplotlib = _import_matplotlib()
    with matplotlib.rc_context(_STYLE):
        height = 1.1 + 3.5 * len(rows)
        figure = matplotlib.figure.Figure(figsize=(10, height), layout="constrained")
        figure.get_layout_engine().set(
            w_pad=0.1, h_pad=0.08, hspace=0.06, rect=(0, 0, 1, 1 - 0.62 / height)
        )
        title = "The M-RoPE positions of a prompt"
        figure.text(0.012, 1 - 0.1 / height, title, size=14, weight="bold", va="top")
        figure.text(
            *(0.012, 1 - 0.4 / height, prompt.title), color=_FAINT, va="top", parse_math=False
        )
        panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        for row, (panel, segments) in enumerate(zip(panels, rows, strict=True)):
            axes = answer.position_ids[:, row].tolist()
            delta = int(answer.rope_deltas[row])
            _draw_row(panel, segments, axes, delta, delta + prompt.lengths()[row])
            panel.set_ylabel(f"row {row}: position" if len(rows) > 1 else "position")
        panels[-1].set_xlabel("token")
        try:
            figure.savefig(out, dpi=150, facecolor="white")
        except (OSError, ValueError) as error:
            raise CommandError(f"{out}: {getattr(error, 'strerror', None) or error}") from error


def _draw_row(
    panel: Any, segments: Sequence[Segment], axes: list[list[int]], delta: int, following: int
) -> None:
    length = len(axes[0])
    top = 1.2 * max(following, *map(max, axes), 1)
    panel.set_xlim(0, length)
    panel.set_ylim(-0.02 * top, top)
    panel.spines[["top", "right"]].set_visible(False)
    panel.yaxis.get_major_locator().set_params(integer=True)
    for segment in segments:
        _draw_segment(panel, segment, axes)
    _label_items(panel, segments, length)
    text = [segment for segment in segments if segment.modality == TEXT]
    visual = [segment for segment in segments if segment.is_visual]
    longest = max(text, key=lambda segment: segment.length, default=None)
    if longest is not None and longest.length > 0.04 * length:
        _label_text(panel, longest, axes[0])
    if visual:
        # Of equal ones the first that has room for the labels below.
        chosen = max(visual, key=lambda segment: (segment.length, min(segment.base, 0.15 * top)))
        _label_axes(panel, chosen, axes, top)
    panel.plot([length], [following], "o", color=_INK, markersize=5, clip_on=False)
    panel.annotate(
        f"next token: {following} (rope_delta {delta})",
        (length, following),
        xytext=(-8, 3),
        textcoords="offset points",
        ha="right",
    )


def _draw_segment(panel: Any, segment: Segment, axes: list[list[int]]) -> None:
    start, stop = segment.start, segment.stop
    if segment.modality in _SHADES:
        shades = _SHADES[segment.modality]
        panel.axvspan(start, stop, color=shades[segment.frame % len(shades)], linewidth=0)
    colors = list(_AXES.values()) if segment.is_visual else [_INK]
    if segment.modality == MASKED:
        colors = [_FAINT]
    for at, (values, color) in enumerate(zip(axes, colors, strict=False)):
        # What goes up with every token is a line, unless the tokens can be told apart.
        slanted = at == len(colors) - 1 and segment.length > 1 and len(values) > _FEW_TOKENS
        if slanted:
            centres = [token + 0.5 for token in range(start, stop)]
            panel.plot(centres, values[start:stop], color=color, linewidth=1.4 + 0.6 * (at == 0))
        else:
            edges = range(start, stop + 1)
            panel.stairs(values[start:stop], edges, baseline=None, color=color, linewidth=1.9)


def _label_items(panel: Any, segments: Sequence[Segment], length: int) -> None:
    """Name the images and videos above the panel, and a video's frames at its top."""
    items: dict[tuple[int, int], list[Segment]] = {}
    for segment in segments:
        if segment.is_visual:
            items.setdefault((segment.modality, segment.item), []).append(segment)
    for (modality, item), parts in items.items():
        start, stop = parts[0].start, parts[-1].stop
        color = _LABEL_COLORS[modality]
        depth, rows, columns = parts[0].grid
        size = f"{by(rows, columns)} tokens"
        if modality == VIDEO:
            frames = {part.frame for part in parts}
            name, count = f"video {item}", len(frames)
        else:
            name, count = f"image {item}", depth
        detail = f", {count} frames of {size}" if count > 1 else f", {size}"
        place = {"transform": panel.get_xaxis_transform(), "color": color}
        panel.plot(
            [start, stop], [1.012] * 2, linewidth=2, clip_on=False, solid_capstyle="butt", **place
        )
        for label in (name + detail, name):
            if len(label) * _CHARACTER * length <= stop - start:
                panel.text((start + stop) / 2, 1.03, label, ha="center", va="bottom", **place)
                break
    for segment in segments:
        label = {VIDEO: f"frame {segment.frame}", MASKED: "masked"}.get(segment.modality, "")
        if len(label) * _CHARACTER * length <= segment.length:
            place = {"transform": panel.get_xaxis_transform(), "ha": "center", "va": "top"}
            color = _LABEL_COLORS.get(segment.modality, _FAINT)
            panel.text((segment.start + segment.stop) / 2, 0.97, label, color=color, **place)


def _label_text(panel: Any, segment: Segment, positions: list[int]) -> None:
    middle = (segment.start + segment.stop) // 2
    leftmost = middle < 0.25 * len(positions)
    panel.annotate(
        "text: all three alike",
        (middle + 0.5, positions[middle]),
        xytext=(8, -3) if leftmost else (-8, 3),
        textcoords="offset points",
        ha="left" if leftmost else "right",
        va="top" if leftmost else "bottom",
    )


def _label_axes(panel: Any, segment: Segment, axes: list[list[int]], top: float) -> None:
    """Name the axes where the segment ends, from the highest down."""
    line = 0.05 * top
    # Where the axes lie too close for the labels, these go below the lines.
    room = top if segment.advance > 2 * line else axes[2][segment.stop - 1]
    for below, name in ((2, "width"), (1, "height"), (0, "temporal")):
        value = axes[list(_AXES).index(name)][segment.stop - 1]
        room = max(min(value, room - line), below * line)
        panel.annotate(
            name,
            (segment.stop, room),
            xytext=(6, 0),
            textcoords="offset points",
            color=_AXES[name],
            weight="bold",
            va="center",
            annotation_clip=False,
        )


def _import_matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ModuleNotFoundError as error:
        raise CommandError("--plot needs matplotlib: pip install 'vecrope[plot]'") from error
    return matplotlib
