"""Draw the rows of a CSV file: time against the number of tokens, a panel for each family."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from bench.config import Result
from bench.mixed import FAMILIES

_KIND = "mixed-"
_MOST_LINES = 4
# Colour-blind safe (Okabe and Ito): blue for vecrope. The first that there are rows of are drawn.
_STYLES: dict[str, dict[str, Any]] = {
    "vecrope": {"color": "#0072B2", "linewidth": 2.4, "marker": "o", "zorder": 3},
    "vecrope-runner-in-place": {"color": "#56B4E9", "linestyle": "--", "marker": "s"},
    "transformers": {"color": "#D55E00", "marker": "v"},
    "lmms-engine": {"color": "#009E73", "linestyle": "-.", "marker": "d"},
    "sglang": {"color": "#CC79A7", "linestyle": ":", "marker": "^"},
}


def plot(results: Sequence[Result], out: Path) -> None:
    """Draw a panel for each family's prompts of mixed pictures and clips, from quiet cores.

    A panel's title says how many times as fast as transformers vecrope is, from the shortest
    prompt to the longest.

    Args:
        results: rows of one device and one number of threads.
        out: the file to write, `.svg`, `.png` or what else matplotlib can write.

    Raises:
        ValueError: if there is nothing to draw, or if the rows are of several devices.
        ImportError: if matplotlib is not installed.
    """
    rows = [row for row in results if row.status == "ok" and not row.busy]
    families = [name for name in FAMILIES if any(row.workload == _KIND + name for row in rows)]
    rows = [row for row in rows if row.workload in {_KIND + name for name in families}]
    if not families:
        raise ValueError(f"there must be timed rows of {_KIND}FAMILY, got none")
    devices = {(row.device, row.threads) for row in rows}
    if len(devices) > 1:
        raise ValueError(f"rows must be of one device and number of threads, got {sorted(devices)}")
    matplotlib = _import_matplotlib()

    styles = {"svg.hashsalt": "vecrope", "font.size": 10, "axes.titlesize": 10.5}
    with matplotlib.rc_context(styles):
        columns = min(2, len(families))
        lines = -(-len(families) // columns)
        figure = matplotlib.figure.Figure(
            figsize=(4.8 * columns, 3.3 * lines + 0.8), layout="constrained"
        )
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        handles: dict[str, Any] = {}
        for panel, name in zip(axes.flat, families, strict=False):
            of_family = [row for row in rows if row.workload == _KIND + name]
            _draw_panel(panel, of_family, handles)
            panel.set_title(_message(name, of_family), loc="left")
        for panel in axes.flat[len(families) :]:
            panel.set_axis_off()
        for row in axes:
            row[0].set_ylabel("time of a call")
        for panel in axes.flat[max(0, len(families) - columns) : len(families)]:
            panel.tick_params(labelbottom=True)
            panel.set_xlabel("tokens")
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
        )
        figure.suptitle(_caption(rows[0]), fontsize=8.5, color="#555555")
        metadata = {"Date": None} if out.suffix == ".svg" else None
        figure.savefig(out, metadata=metadata, dpi=150, facecolor="white")


def _draw_panel(panel: Any, rows: Sequence[Result], handles: dict[str, Any]) -> None:
    names = {row.name: row.provider for row in rows}
    for known in [name for name in _STYLES if name in names][:_MOST_LINES]:
        provider = names[known]
        points = sorted((row for row in rows if row.provider == provider), key=lambda row: row.T)
        sizes = [row.T for row in points]
        style = {"linewidth": 1.6, "markersize": 4, **_STYLES[known]}
        low, high = [row.p20_us for row in points], [row.p80_us for row in points]
        panel.fill_between(sizes, low, high, color=style["color"], alpha=0.15, linewidth=0)
        (line,) = panel.plot(sizes, [row.median_us for row in points], **style)
        handles.setdefault(provider, line)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(_ticks({row.T for row in rows}))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.minorticks_off()
    panel.yaxis.set_major_formatter(lambda value, _: _duration(value))
    panel.grid(which="major", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _ticks(sizes: Collection[int]) -> list[int]:
    """Return the sizes whose labels have room beside each other, the largest among them."""
    ticks: list[int] = []
    for size in sorted(sizes, reverse=True):
        if not ticks or 2.5 * size <= ticks[-1]:
            ticks.append(size)
    return ticks


def _message(family: str, rows: Sequence[Result]) -> str:
    """Say by what factor vecrope is faster than transformers at the two ends of a family's rows."""
    times: dict[str, dict[int, float]] = {"vecrope": {}, "transformers": {}}
    for row in rows:
        if row.provider in times and row.median_us is not None:
            times[row.provider][row.T] = row.median_us
    both = sorted(times["vecrope"].keys() & times["transformers"].keys())
    if not both:
        return family
    first, last = (
        times["transformers"][size] / times["vecrope"][size] for size in (both[0], both[-1])
    )
    return f"{family}: {first:.1f} to {last:.0f} times as fast as transformers"


def _caption(row: Result) -> str:
    place = f"{row.device}, {row.threads} thread{'s' * (row.threads > 1)}"
    return f"{place} · vecrope {row.vecrope} ({row.commit}), torch {row.torch}, {row.date}"


def _duration(microseconds: float) -> str:
    for limit, unit in ((1e6, "s"), (1e3, "ms")):
        if microseconds >= limit:
            return f"{microseconds / limit:g} {unit}"
    return f"{microseconds:g} µs"


def _import_matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ModuleNotFoundError as error:
        raise ImportError("plot needs matplotlib: pip install 'vecrope[plot]'") from error
    return matplotlib
