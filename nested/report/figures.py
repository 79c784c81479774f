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
    legend,
    legend_height,
    marker,
    ramp,
    shorten,
    wrapped,
)  # fmt: skip
from nested.report.heatmap import CELLS, Limits
from nested.report.records import Array, visible
from nested.report.wording import IN_EACH

AT_ONCE = " (at once)"  # learned all experiences together
LINES = 24  # up to here every experience has a line of its own
BANDS = 3  # more bands than this hide each other: bars instead


@dataclass(frozen=True)
class Series:
    """One run over the stream: means (m,) at `x` (m,) with half widths, if any, and its single seeds (S, m).

    `level` where it has no order.
    """

    label: str
    slot: int
    x: Array
    y: Array
    half: Array | None = None
    level: bool = False
    seeds: Array | None = None


@dataclass(frozen=True)
class Bar:
    """One level of a run."""

    label: str
    parameters: float
    updates: float | None  # None: it learns in each sequence anew


@drawn
def over_stream(series: Sequence[Series], x_label: str, y_label: str, limits: Limits | None, bounded: bool) -> Any:
    """One line for each run against the position in the stream, with 95 percent intervals and single seeds, faint.

    Without `limits` an axis of accuracies (`bounded`) ends at 0 and 1; losses, and differences, have no such ends.
    """
    size = (4.6, 3.0) if len(series) > 1 else (4.2, 3.2)
    labels = [s.label + AT_ONCE * s.level for s in series]
    figure, axes = blank(size[0], size[1] + legend_height(labels, size[0]))
    handles = []
    ordered = [s for s in series if not s.level]
    bars = len(ordered) > BANDS and all(len(s.x) <= LINES for s in ordered)
    for s in series:
        style: dict[str, Any] = {"color": colour(s.slot), "linestyle": dashes(s.slot)}
        if s.level:
            handles.append(axes.axhline(float(s.y[-1]), **style | {"linestyle": (0, (4, 2)), "linewidth": 1.4}))
            continue
        shift = 0.045 * (ordered.index(s) - (len(ordered) - 1) / 2) if bars else 0.0
        point = marker(s.slot) if len(s.x) <= LINES else None
        if s.seeds is not None and len(s.seeds) > 1:
            axes.plot(s.x + shift, s.seeds.T, linewidth=0.6, alpha=0.3, zorder=1, **style)
        handles += axes.plot(s.x + shift, s.y, marker=point, markersize=6, markeredgecolor=PAPER, **style)
        if s.half is not None and bars:
            axes.errorbar(s.x + shift, s.y, s.half, linestyle="none", color=style["color"], elinewidth=0.9, alpha=0.7)
        elif s.half is not None:
            axes.fill_between(s.x, s.y - s.half, s.y + s.half, color=style["color"], alpha=0.14, linewidth=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _whole_numbers(axes)
    if limits:
        axes.set_ylim(*limits)
    elif bounded:
        axes.set_ylim(of_accuracies(axes.get_ylim()))
    legend(figure, handles, labels, size[0])
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
    axes.set_title(wrapped(title, 36))
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
    figure, axes = blank(4.6, 2.6 + 0.16 * len(ticks))
    seen = np.array([row[: max(0, e) + 1].mean() for row, e in zip(scores, experience.astype(int))])
    axes.plot(step, seen, color=colour(slot), linewidth=1.3)
    for border in step[:-1][np.diff(experience) != 0]:
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
    axes.set_title(wrapped(title, 48))
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(f"mean {measure} so far")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}" if value >= low - 1e-9 else "")  # not at the marks
    return figure


@drawn
def level_bars(runs: Sequence[tuple[str, int, Sequence[Bar]]]) -> Any:
    """Parameters and updates of every level: for each run its label, slot and levels."""
    from matplotlib.figure import Figure

    rows = sum(len(levels) + 1 for *_, levels in runs)
    figure = Figure(figsize=(5.6, 0.8 + 0.21 * rows), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    row, ticks, names = 0, [], []
    for label, slot, levels in runs:
        place = {"xytext": (2, 0), "textcoords": "offset points", "xycoords": ("axes fraction", "data"), "va": "center"}
        heading = both[0].annotate(shorten(label, 56), (0, row), fontsize=8.5, fontweight="bold", **place)
        heading.set_in_layout(False)  # it may run over both panels
        for k, bar in enumerate(levels, row + 1):
            _bar(both[0], k, bar.parameters, slot)
            _bar(both[1], k, bar.updates, slot)
            ticks.append(k)
            names.append(shorten(bar.label, 26))
        row += len(levels) + 1
    both[0].set_yticks(ticks, names, color=INK)
    both[0].set_ylim(rows - 0.4, -0.6)
    for axes, name in zip(both, ("parameters", "updates")):
        axes.set_xlabel(name)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.2)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(_locator(4))
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    return figure


def _bar(axes: Any, row: int, value: float | None, slot: int) -> None:
    axes.barh(row, value or 0, color=colour(slot), height=0.7)
    place = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(IN_EACH if value is None else f"{value:,.0f}", (value or 0, row), fontsize=8, **place)


def short_count(value: float) -> str:
    """`12k`, `3.4M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"


def of_accuracies(limits: Limits) -> Limits:
    """The part where accuracies can lie: an interval may pass 0 or 1, they do not."""
    return max(limits[0], -0.02), min(limits[1], 1.02)


def _locator(bins: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(bins, integer=True, min_n_ticks=1)


def _whole_numbers(axes: Any) -> None:
    axes.xaxis.set_major_locator(_locator(8))
