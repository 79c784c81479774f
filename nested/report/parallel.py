"""Parallel coordinates: every whole trial of a study as a line through its values and what it came to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from nested.report.drawing import INK, MUTED, PAPER, blank, drawn, ramp, shorten
from nested.report.figures import short_count
from nested.report.study_figures import MOST_AXES, STYLES
from nested.report.trials import Axis, Study

COLUMN, FITS = 1.35, 17  # inches between two axes, and letters of a label that they hold


@drawn
def parallel(study: Study) -> Any:
    """Every whole trial as a line through its values; dark is worse, light is better in the first objective."""
    axes_ = study.axes[:MOST_AXES]
    names = [*(a.path for a in axes_), *study.objectives]
    figure, axes = blank(max(5.0, COLUMN * len(names)), 3.4)
    columns = [_column(study, a) for a in axes_]
    columns += [_linear([t.values[k] for t in study.done if t.values]) for k in range(len(study.objectives))]
    places = np.array([c[0] for c in columns])  # (names, trials), each from 0 to 1
    sign = 1.0 if study.directions[0] == "maximize" else -1.0
    order = np.argsort([sign * t.values[0] for t in study.done if t.values], kind="stable")
    colours = [light for light, _ in ramp()]
    for rank, k in enumerate(order):
        kind = study.kind(study.done[k])
        shade = colours[round(rank * (len(colours) - 1) / max(1, len(order) - 1))]
        style: dict[str, Any] = {"color": shade, "linewidth": 0.9, "alpha": 0.55, "zorder": 1 + rank / len(order)}
        if kind in ("chosen", "default"):
            style = {"color": STYLES[kind]["color"], "linewidth": 2.4, "zorder": 5}
        axes.plot(range(len(names)), places[:, k], **style)
    for x, (_, ticks) in enumerate(columns):
        axes.axvline(x, color=MUTED, linewidth=0.8, zorder=3)
        for place, text in ticks:
            spot = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8, "zorder": 6}
            axes.annotate(text, (x, place), bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}, **spot)
    labels = [shorten(n, 24) for n in names]
    axes.set_xticks(range(len(names)), labels, color=INK)
    crowded = any(len(a) + len(b) > 2 * FITS for a, b in pairwise(labels))
    for k, label in enumerate(axes.get_xticklabels()):
        label.set_y(-0.07 * (k % 2) if crowded else 0)
    axes.set_yticks([])
    axes.set_xlim(-0.15, len(names) - 0.6)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)
    return figure


Column = tuple[Any, list[tuple[float, str]]]


def _column(study: Study, axis: Axis) -> Column:
    """Places from 0 to 1 of every whole trial on a dimension, and the axis' ticks."""
    values = [axis.place(t.params[axis.path]) for t in study.done]
    if axis.choices is not None:
        last = max(1, len(axis.choices) - 1)
        return np.array(values) / last, [(k / last, shorten(str(c), 12)) for k, c in enumerate(axis.choices)]
    return _linear(values, axis.log, axis.whole)


def _linear(values: Sequence[float], log: bool = False, whole: bool = False) -> Column:
    at = np.log(values) if log else np.array(values, dtype=float)
    low, high = float(at.min()), float(at.max())
    if high == low:
        return np.full(len(at), 0.5), [(0.5, _brief(values[0]))]
    middle = np.exp((low + high) / 2) if log else (low + high) / 2
    ticks = [(0.0, min(values)), (1.0, max(values))]
    if not whole or abs(middle - round(middle)) < 1e-8:
        ticks.insert(1, (0.5, float(middle)))
    return (at - low) / (high - low), [(place, _brief(value)) for place, value in ticks]


def _brief(value: float) -> str:
    return short_count(float(f"{value:.3g}"))
