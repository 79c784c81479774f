"""Configurations as points in a plane: forgetting against learning, and the score against what it cost.

`measure` is the word for the score, `lower` whether lower is better. A mean is large, its single seeds small and faint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nested.report.drawing import (
    MUTED,
    PAPER,
    blank,
    colour,
    dashes,
    drawn,
    legend,
    legend_height,
    marker,
)  # fmt: skip
from nested.report.figures import AT_ONCE, of_accuracies, short_count
from nested.report.records import Array


@dataclass(frozen=True)
class Point:
    """One configuration: a mean with half widths, and its single seeds (S,)."""

    x: float
    y: float | None  # None: undefined for this one, shown as a line at x
    x_half: float | None = None
    y_half: float | None = None
    xs: Sequence[float] = ()
    ys: Sequence[float] = ()


@dataclass(frozen=True)
class Cloud:
    """Points of one colour; a sweep is a line through them in their order, `rest` are the many that have no name."""

    label: str
    slot: int
    points: Sequence[Point]
    line: bool = False
    rest: bool = False

    @property
    def undefined(self) -> bool:
        """Whether no point has a y."""
        return all(p.y is None for p in self.points)


@drawn
def forgetting_against_learning(clouds: Sequence[Cloud], measure: str, lower: bool, title: str = "") -> Any:
    """The frontier: forgetting beside learning, a line through each sweep, with intervals and single seeds."""
    figure, axes, handles = _plane(clouds)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_title(title)
    axes.set_xlabel(f"learning {measure}  ({'lower' if lower else 'higher'} is better)")
    axes.set_ylabel("forgetting  (lower is better)")
    if not lower:
        axes.set_xlim(of_accuracies(axes.get_xlim()))
    _better(axes, "better ↙" if lower else "better ↘", lower)
    legend(figure, *handles, figure.get_figwidth())
    return figure


@drawn
def score_against_cost(
    clouds: Sequence[Cloud], front: Sequence[tuple[float, float]], cost: str, score: str, lower: bool
) -> Any:
    """The score against a cost on a logarithmic scale, and the Pareto front (cost, score) from cheap to dear."""
    figure, axes, handles = _plane(clouds)
    if len(front) > 1:
        x, y = zip(*front)
        axes.step(x, y, where="post", color=MUTED, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
    _logarithmic(axes)
    axes.set_xlabel(f"{cost}  (lower is better)")
    axes.set_ylabel(f"{score}  ({'lower' if lower else 'higher'} is better)")
    if not lower:
        axes.set_ylim(of_accuracies(axes.get_ylim()))
    _better(axes, "better ↙" if lower else "better ↖", True, lower)
    legend(figure, *handles, figure.get_figwidth())
    return figure


def _plane(clouds: Sequence[Cloud]) -> tuple[Any, Any, tuple[list[Any], list[str]]]:
    """Figure, axes, and what the legend names."""
    labels = [c.label + AT_ONCE * c.undefined for c in clouds]
    width, height = (5.4, 3.7) if sum(len(c.points) for c in clouds) > 1 else (4.2, 3.2)
    figure, axes = blank(width, height + legend_height(labels, width))
    axes.margins(0.12)
    drawn = [_draw(axes, cloud) for cloud in reversed(clouds)]  # what comes first is what all is compared with: on top
    return figure, axes, (drawn[::-1], labels)


def _draw(axes: Any, cloud: Cloud) -> Any:
    """Draw a cloud; returns what stands for it in the legend."""
    style: dict[str, Any] = {"color": colour(cloud.slot), "marker": marker(cloud.slot)}
    for p in cloud.points:
        if p.y is None:
            at_once = axes.axvline(p.x, color=style["color"], linestyle=(0, (4, 2)), linewidth=1.5)
    known = [p for p in cloud.points if p.y is not None]
    if not known:
        return at_once
    x, y, x_half, y_half = (_column(known, name) for name in ("x", "y", "x_half", "y_half"))
    if cloud.rest:
        (dots,) = axes.plot(x, y, linestyle="none", marker="o", markersize=3.5, alpha=0.5, color=MUTED, zorder=1)
        return dots
    seeds = [(a, b) for p in known if len(p.xs) > 1 for a, b in zip(p.xs, p.ys)]
    if seeds:
        axes.plot(*zip(*seeds), linestyle="none", alpha=0.35, markersize=4, markeredgewidth=0, zorder=2, **style)
    if not (np.isnan(x_half).all() and np.isnan(y_half).all()):
        axes.errorbar(
            x, y, y_half, x_half, linestyle="none", capsize=2.5, elinewidth=1.2, color=style["color"], zorder=3
        )
    path = dashes(cloud.slot) if cloud.line else "none"
    large = 7.5 if cloud.line else 10
    (line,) = axes.plot(
        x, y, linestyle=path, markersize=large, markeredgecolor=PAPER, markeredgewidth=0.8, zorder=4, **style
    )
    return line


def _column(points: Sequence[Point], name: str) -> Array:
    values = [getattr(p, name) for p in points]
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _logarithmic(axes: Any) -> None:
    """A logarithmic scale with few plain numbers on it, whether it spans a tenth or ten decades."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    locator = LogLocator(numticks=6) if high > 30 * low else MaxNLocator(5)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: short_count(value))


def _better(axes: Any, words: str, left: bool, below: bool = True) -> None:
    place = (0.015 if left else 0.985, 0.02 if below else 0.98)
    aligned = {"ha": "left" if left else "right", "va": "bottom" if below else "top"}
    paper = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}
    axes.annotate(words, place, xycoords="axes fraction", color=MUTED, fontsize=9, bbox=paper, **aligned)
