"""Draw plots as inline SVG that takes its colors from the page, so that one plot serves light and dark mode.

matplotlib (extra ``report``) draws them in placeholder colors, which become CSS variables. Text stays text. The same
numbers always give the same bytes.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ensemble.metrics import Reliability

_INK, _MUTED, _LINE, _ACCENT, _SECOND, _HEAT = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _LINE: "--line",
    _ACCENT: "--accent",
    _SECOND: "--second",
    _HEAT: "--heat",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ens",
    "text.parse_math": False,  # a name may contain a dollar sign
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
}


def draw_bars(values: Sequence[float], notes: Sequence[str], names: Sequence[str], *, name: str, title: str) -> str:
    """Draw a bar from 0 to 1 for each name, followed by its value and a note."""
    with _figure(6.4, 0.7 + 0.24 * len(names), name=name, title=title) as (axes, done):
        places = np.arange(len(names))
        axes.barh(places, values, height=0.66, color=_ACCENT)
        for place, value, note in zip(places, values, notes, strict=True):
            axes.text(value + 0.012, place, f"{value:.2f}", va="center")
            axes.text(1.3, place, note, va="center", ha="right", color=_MUTED)
        _name_rows(axes, names)
        axes.set_xlim(0, 1.3)  # room for the notes behind a bar of length 1
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    return done[0]


def draw_intervals(
    values: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    names: Sequence[str],
    *,
    name: str,
    title: str,
    label: str,
    mark: float | None = None,
) -> str:
    """Draw a point and its interval for each name; ``mark`` is a value to compare them with."""
    with _figure(6.4, 0.85 + 0.3 * len(names), name=name, title=title) as (axes, done):
        places = np.arange(len(names))
        axes.hlines(places, lows, highs, color=_ACCENT, linewidth=2.2, alpha=0.55)
        axes.plot(values, places, "o", color=_ACCENT, markersize=6)
        if mark is not None:
            axes.axvline(mark, color=_SECOND, linewidth=1.4, linestyle=(0, (4, 3)))
        _name_rows(axes, names)
        axes.set_xlabel(label)
    return done[0]


def draw_reliability(
    found: Reliability,
    *,
    name: str,
    title: str,
    axes: tuple[str, str] = ("confidence (highest probability)", "accuracy"),
) -> str:
    """Draw accuracy by confidence, beside the diagonal; the area of a point is the number of images in its bin.

    ``axes`` are the labels of the confidence and the accuracy.
    """
    used = found.images > 0
    confidence, right = found.confidence[used] / found.images[used], found.right[used] / found.images[used]
    with _figure(4.6, 4.2, name=name, title=title) as (plot, done):
        plot.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        plot.plot(confidence, right, color=_ACCENT, linewidth=1.6)
        area = 12 + 160 * found.images[used] / found.images.max()
        plot.scatter(confidence, right, s=area, color=_ACCENT, alpha=0.8, linewidths=0)
        plot.grid(visible=True)
        plot.set_axisbelow(True)
        plot.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel=axes[0], ylabel=axes[1])
    return done[0]


def draw_pairs(
    first: Sequence[float],
    second: Sequence[float],
    names: Sequence[str],
    *,
    legend: tuple[str, str],
    name: str,
    title: str,
) -> str:
    """Draw two shares for each name on one line, as a filled and a hollow point."""
    with _figure(6.4, 1.1 + 0.24 * len(names), name=name, title=title) as (axes, done):
        places = np.arange(len(names))
        axes.hlines(places, first, second, color=_MUTED, linewidth=1.4)
        axes.plot(first, places, "o", color=_ACCENT, markersize=6, label=legend[0])
        axes.plot(second, places, "D", color=_SECOND, markersize=5.5, fillstyle="none", label=legend[1])
        _name_rows(axes, names)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    return done[0]


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    """Label the rows, the first on top, and draw vertical grid lines."""
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)


@contextmanager
def _figure(width: float, height: float, *, name: str, title: str) -> Iterator[tuple[Any, list[str]]]:
    """Yield axes to draw on and a list that afterwards holds the SVG, whose ids begin with ``name``."""
    done: list[str] = []
    with (
        mpl.rc_context({**mpl.rcParamsDefault, **_STYLE, "backend": mpl.rcParams["backend"]}),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # about glyphs that its font lacks; the browser has them
        figure = Figure(figsize=(width, height))
        yield figure.subplots(), done
        sink = io.StringIO()
        FigureCanvasSVG(figure)
        figure.savefig(
            sink,
            format="svg",
            transparent=True,
            bbox_inches="tight",
            pad_inches=0.05,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    done.append(_for_page(sink.getvalue(), name, title))


def _for_page(svg: str, name: str, title: str) -> str:
    """Return the SVG element alone, with unique ids, the colors of the page, and a title for screen readers."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    box = re.search(r'viewBox="0 0 ([\d.]+) ', svg)
    assert box is not None
    width = round(float(box[1]) * 4 / 3)
    viewbox = re.search(r'viewBox="[^"]*"', svg)
    assert viewbox is not None
    style = f"width:{width}px;max-width:max(100%,{width * 4 // 5}px)"
    head = f'<svg role="img" aria-labelledby="{name}-title" {viewbox[0]} style="{style}">'
    body = re.sub(r"\s*\n\s*", "\n", svg[svg.index(">") + 1 :])
    return f'{head}<title id="{name}-title">{html.escape(title)}</title>{body}'
