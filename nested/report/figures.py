"""The figures: functions from arrays to a matplotlib figure, object by object (no pyplot, no state shared).

Shapes: n experiences, S seeds. A matrix is (n + 1, n), row 0 before training, NaN where nothing was measured.
`measure` is the word for the score, `lower` whether lower is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nested.report.drawing import (
    INK,
    MUTED,
    PAPER,
    RULE,
    blank,
    colour,
    dashes,
    drawn,
    legend_columns,
    marker,
    ramp,
    shorten,
)  # fmt: skip
from nested.report.heatmap import CELLS, Limits
from nested.report.records import Array, visible

LINES = 24  # up to here every experience has a line of its own


@dataclass(frozen=True)
class Point:
    """One run in the plane: a mean with half widths, and its single seeds (S,)."""

    label: str
    slot: int
    x: float
    y: float | None  # None: undefined for this run, shown as a line at x
    x_half: float | None = None
    y_half: float | None = None
    xs: Sequence[float] = ()
    ys: Sequence[float] = ()


@dataclass(frozen=True)
class Series:
    """One run over the stream: means (m,) at `x` (m,) with half widths, if any; `level` where it has no order."""

    label: str
    slot: int
    x: Array
    y: Array
    half: Array | None = None
    level: bool = False


@dataclass(frozen=True)
class Bar:
    """One level of one run."""

    label: str
    slot: int
    parameters: float
    updates: float


@drawn
def forgetting_against_learning(points: Sequence[Point], measure: str, lower: bool) -> Any:
    """Forgetting beside learning: a mean with its interval for each run, its single seeds faint."""
    figure, axes = blank(6.2, 4.3 + _legend_height(points, 6.2))
    axes.axhline(0, color=MUTED, linewidth=0.8)
    handles = []
    for p in points:
        style: dict[str, Any] = {"color": colour(p.slot), "marker": marker(p.slot)}
        if p.y is None:
            handles.append(axes.axvline(p.x, color=colour(p.slot), linestyle=(0, (4, 2)), linewidth=1.5))
            continue
        if len(p.xs) > 1:
            axes.plot(p.xs, p.ys, linestyle="none", alpha=0.35, markersize=4.5, markeredgewidth=0, **style)
        axes.errorbar(p.x, p.y, p.y_half, p.x_half, capsize=2.5, elinewidth=1.3, color=colour(p.slot), zorder=3)
        handles += axes.plot(
            p.x, p.y, linestyle="none", markersize=9, markeredgecolor=PAPER, markeredgewidth=1.2, zorder=4, **style
        )
    axes.set_xlabel(f"learning {measure}  ({'lower' if lower else 'higher'} is better)")
    axes.set_ylabel("forgetting  (lower is better)")
    axes.margins(0.12)
    axes.annotate(
        "better ↙" if lower else "better ↘", (0.015 if lower else 0.985, 0.02), xycoords="axes fraction",
        ha="left" if lower else "right", color=MUTED, fontsize=9,
    )  # fmt: skip
    suffix = {True: " (no order: forgetting undefined)", False: ""}
    _legend(figure, handles, [shorten(p.label) + suffix[p.y is None] for p in points], 6.2)
    return figure


@drawn
def over_stream(series: Sequence[Series], x_label: str, y_label: str, limits: Limits | None) -> Any:
    """One line for each run against the position in the stream, with its 95 percent band."""
    figure, axes = blank(5.4, 3.3 + _legend_height(series, 5.4))
    handles = []
    for s in series:
        style: dict[str, Any] = {"color": colour(s.slot), "linestyle": dashes(s.slot)}
        if s.level:
            handles.append(axes.axhline(float(s.y[-1]), **style | {"linestyle": (0, (4, 2)), "linewidth": 1.4}))
            continue
        few = len(s.x) <= LINES
        handles += axes.plot(
            s.x, s.y, marker=marker(s.slot) if few else None, markersize=5, markeredgecolor=PAPER, **style
        )
        if s.half is not None:
            axes.fill_between(s.x, s.y - s.half, s.y + s.half, color=colour(s.slot), alpha=0.14, linewidth=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _whole_numbers(axes)
    if limits:
        axes.set_ylim(*limits)
    _legend(figure, handles, [shorten(s.label) + " (at once)" * s.level for s in series], 5.4)
    return figure


@drawn
def experience_lines(matrix: Array, title: str, measure: str, limits: Limits) -> Any:
    """The score on every experience over the stream: dotted until it is learned, numbered where it is."""
    n = matrix.shape[1]
    figure, axes = blank(3.7, 2.7)
    colours = [light for light, _ in ramp()]
    for j in range(n):
        shade = colours[round(j * (len(colours) - 1) / max(1, n - 1))]
        axes.plot(np.arange(j + 2), matrix[: j + 2, j], color=shade, linewidth=1, linestyle=(0, (1, 2)), alpha=0.6)
        axes.plot(np.arange(j + 1, n + 1), matrix[j + 1 :, j], color=shade, marker="o", markersize=3)
        if n <= CELLS and not np.isnan(matrix[j + 1, j]):
            place = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
            axes.annotate(str(j + 1), (j + 1, matrix[j + 1, j]), color=shade, fontsize=8, fontweight="bold", **place)
    axes.set_title(shorten(title, 44))
    axes.set_xlabel("experiences learned (0: before training)")
    axes.set_ylabel(measure)
    axes.set_xlim(-0.2, n + 0.3)
    axes.set_ylim(*limits)
    _whole_numbers(axes)
    return figure


@drawn
def anytime(
    step: Array, scores: Array, experience: Array, ticks: dict[str, Array], title: str, slot: int, measure: str
) -> Any:
    """The mean score on all experiences begun so far at every evaluation (m,), and when each level ticked."""
    figure, axes = blank(5.4, 2.7 + 0.16 * len(ticks))
    seen = np.array([row[: max(0, e) + 1].mean() for row, e in zip(scores, experience.astype(int))])
    axes.plot(step, seen, color=colour(slot), linewidth=1.3)
    for border in step[1:][np.diff(experience) != 0]:
        axes.axvline(border, color=RULE, linewidth=1)
    low, high = float(np.nanmin(seen)), float(np.nanmax(seen))
    span = max(high - low, 1e-3)
    for k, (level, at) in enumerate(ticks.items()):
        base = low - span * (0.1 + 0.09 * k)
        thin = at[:: -(-len(at) // 600)] if len(at) else at
        x = np.repeat(thin, 3).astype(float)
        x[2::3] = np.nan  # pen up between two marks
        axes.plot(x, np.tile([base - 0.028 * span, base + 0.028 * span, np.nan], len(thin)), color=MUTED, linewidth=0.9)
        axes.annotate(visible(level)[:14], (1.005, base), xycoords=("axes fraction", "data"), va="center", fontsize=7.5)
    axes.set_title(shorten(title, 60))
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(f"mean {measure} so far")
    return figure


@drawn
def level_bars(bars: Sequence[Bar]) -> Any:
    """Parameters and updates of every level of every run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.95 + 0.24 * len(bars)), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(bars))
    for axes, name in zip(both, ("parameters", "updates")):
        values = np.array([getattr(bar, name) for bar in bars], dtype=float)
        axes.barh(rows, values, color=[colour(bar.slot) for bar in bars], height=0.68)
        for row, value in zip(rows, values):
            axes.annotate(
                f"{value:,.0f}", (value, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5
            )
        axes.set_title(name)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.24)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(_locator(4))
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    both[0].set_yticks(rows, [shorten(bar.label, 40) for bar in bars], color=INK)
    both[0].set_ylim(len(bars) - 0.5, -0.5)
    return figure


def short_count(value: float) -> str:
    """`12k`, `3.4M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"


def _locator(bins: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(bins, integer=True)


def _whole_numbers(axes: Any) -> None:
    axes.xaxis.set_major_locator(_locator(8))


def _legend_height(entries: Sequence[Point | Series], width: float) -> float:
    if len(entries) < 2:
        return 0.0
    return 0.22 * -(-len(entries) // legend_columns([shorten(e.label) for e in entries], width)) + 0.1


def _legend(figure: Any, handles: list[Any], labels: list[str], width: float) -> None:
    if len(labels) < 2:
        return
    numbers = [str(k) for k in range(len(labels))]  # set afterwards: matplotlib hides labels that begin with `_`
    legend = figure.legend(handles, numbers, loc="outside lower center", ncols=legend_columns(labels, width))
    for text, label in zip(legend.get_texts(), labels):
        text.set_text(label)
