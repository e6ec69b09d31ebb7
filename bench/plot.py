"""Draw the rows of a CSV file: time against T, a panel for each family of workloads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.config import Result

_PANELS = {
    "seed": "one image and one video frame in text",
    "video": "one video, frames of 256 tokens",
}
# Colour-blind safe (Okabe and Ito), warm for the loops and blue for vecrope; black is the baseline.
_STYLES: dict[str, dict[str, Any]] = {
    "vecrope": {"color": "#0072B2", "linewidth": 2.4, "marker": "o", "zorder": 3},
    "vecrope-unchecked": {"color": "#56B4E9", "marker": "o"},
    "vecrope-placeholders": {"color": "#56B4E9", "linestyle": "--", "marker": "D"},
    "vecrope-plan": {"color": "#56B4E9", "linestyle": ":", "marker": "d"},
    "vecrope-compiled": {"color": "#009E73", "marker": "s"},
    "vecrope-runner": {"color": "#004166", "linestyle": "--", "marker": "s"},
    "vecrope-runner-in-place": {"color": "#004166", "marker": "s"},
    "text-only": {"color": "#000000", "linestyle": ":"},
    "loop": {"color": "#999999", "marker": "x"},
    "transformers": {"color": "#F0C000", "marker": "v"},
    "sglang": {"color": "#D55E00", "marker": "^"},
    "sglang-old": {"color": "#8C3A00", "linestyle": "--", "marker": "^"},
    "vllm": {"color": "#CC79A7", "marker": "d"},
}


def plot(results: Sequence[Result], out: Path) -> None:
    """Draw the rows that hold a time of quiet cores, as a file of the kind that its suffix says.

    Args:
        results: rows of one device and one number of threads.
        out: the file to write, `.svg`, `.png` or what else matplotlib can write.

    Raises:
        ValueError: if there is nothing to draw, or if the rows are of several devices.
        ImportError: if matplotlib is not installed.
    """
    rows = [row for row in results if row.status == "ok" and row.workload in _PANELS]
    rows = [row for row in rows if not row.busy]
    panels = [name for name in _PANELS if any(row.workload == name for row in rows)]
    if not panels:
        raise ValueError(f"there must be timed rows of {' or '.join(_PANELS)}, got none")
    devices = {(row.device, row.threads) for row in rows}
    if len(devices) > 1:
        raise ValueError(f"rows must be of one device and number of threads, got {sorted(devices)}")
    matplotlib = _import_matplotlib()

    styles = {"svg.hashsalt": "vecrope", "font.size": 10, "axes.titlesize": 11}
    with matplotlib.rc_context(styles):
        figure = matplotlib.figure.Figure(figsize=(4.8 * len(panels), 4.6), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        handles: dict[str, Any] = {}
        for panel, name in zip(axes, panels, strict=True):
            _draw_panel(panel, [row for row in rows if row.workload == name], handles)
            panel.set_title(f"{name}: {_PANELS[name]}")
        axes[0].set_ylabel("wall time of a call, median and p20 to p80")
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False
        )
        figure.suptitle(_caption(rows[0]), fontsize=9, color="#555555")
        metadata = {"Date": None} if out.suffix == ".svg" else None
        figure.savefig(out, metadata=metadata, dpi=150, facecolor="white")


def _draw_panel(panel: Any, rows: Sequence[Result], handles: dict[str, Any]) -> None:
    names = dict.fromkeys(row.provider for row in rows)
    oldest = _oldest_sglang(rows)
    for name in names:
        points = sorted((row for row in rows if row.provider == name), key=lambda row: row.T)
        sizes = [row.T for row in points]
        style = {"linewidth": 1.5, "markersize": 4, **_style(name, oldest)}
        low, high = [row.p20_us for row in points], [row.p80_us for row in points]
        panel.fill_between(sizes, low, high, color=style["color"], alpha=0.15, linewidth=0)
        (line,) = panel.plot(sizes, [row.median_us for row in points], **style)
        handles.setdefault(name, line)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    ticks = sorted({row.T for row in rows})
    ticks = ticks if len(ticks) < 6 else ticks[-1::-3][::-1]
    panel.set_xticks(ticks, [_tokens(value) for value in ticks])
    panel.minorticks_off()
    panel.yaxis.set_major_formatter(lambda value, _: _duration(value))
    panel.set_xlabel("tokens T")
    panel.grid(which="major", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _style(name: str, oldest: str | None) -> dict[str, Any]:
    if name in _STYLES:
        return _STYLES[name]
    family = name.split("-")[0]
    return _STYLES.get("sglang-old" if name == oldest else family, {"color": "#777777"})


def _oldest_sglang(rows: Sequence[Result]) -> str | None:
    """Name the older of two versions of SGLang; None where there is one at most."""
    versions = {
        row.provider: row.provider_version for row in rows if row.provider.startswith("sglang-")
    }
    if len(versions) < 2:
        return None
    return min(
        versions, key=lambda name: [int(p) for p in versions[name].split(".") if p.isdigit()]
    )


def _caption(row: Result) -> str:
    place = f"{row.device}, {row.threads} thread{'s' * (row.threads > 1)}"
    return f"{place} · vecrope {row.vecrope} ({row.commit}), torch {row.torch}, {row.date}"


def _tokens(count: int) -> str:
    return f"{count // 1024}k" if count >= 1024 and count % 1024 == 0 else str(count)


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
