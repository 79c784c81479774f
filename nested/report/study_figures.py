"""The figures of a study: how it went, what mattered, what it cost.

The chosen trials are large in the first colour, the defaults in the second, the rest of the front in the third; whole
trials are grey, pruned ones marks at the edge, since the value of a part of the stream is no value of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nested.report.drawing import (
    INK,
    MUTED,
    PAPER,
    RULE,
    blank,
    colour,
    drawn,
    legend,
    legend_height,
    marker,
    shorten,
)
from nested.report.figures import short_count
from nested.report.trials import Axis, Curve, Study, Trial

KINDS = {"done": "whole trials", "front": "Pareto front", "default": "defaults", "chosen": "chosen"}
MOST_AXES = 12  # dimensions drawn; the table has all
STYLES: dict[str, dict[str, Any]] = {
    "done": {"color": MUTED, "marker": "o", "markersize": 4, "alpha": 0.6, "markeredgewidth": 0},
    "front": {"color": colour(2), "marker": marker(2), "markersize": 6, "markeredgecolor": PAPER},
    "default": {"color": colour(1), "marker": marker(1), "markersize": 7.5, "markeredgecolor": PAPER},
    "chosen": {"color": colour(0), "marker": "*", "markersize": 13, "markeredgecolor": PAPER},
}
PATHS: dict[str, dict[str, Any]] = {  # of curves, in the order in which they are drawn
    "other": {"color": MUTED, "linewidth": 0.8, "alpha": 0.45, "zorder": 1},
    "pruned": {"color": colour(3), "linewidth": 0.9, "alpha": 0.7, "zorder": 2},
    "default": {"color": colour(1), "linewidth": 2.0, "zorder": 4, "marker": "o", "markersize": 3.5},
    "chosen": {"color": colour(0), "linewidth": 2.0, "zorder": 4, "marker": "o", "markersize": 3.5},
}


def _panels(width: float, height: float, rows: int, columns: int, labels: Sequence[str] = (), **shared: Any) -> Any:
    """A figure with panels of so many inches each, as an array (rows, columns), and room for a legend."""
    from matplotlib.figure import Figure

    size = (width * columns, height * rows + legend_height(labels, width * columns))
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _dots(axes: Any, study: Study, xy: Any) -> dict[str, Any]:
    """Every whole trial by its kind at `xy(trial)`; returns what stands for each kind in a legend."""
    handles = {}
    for kind, name in KINDS.items():
        found = [xy(t) for t in study.done if study.kind(t) == kind]
        if found:
            x, y = zip(*found)
            (handles[name],) = axes.plot(x, y, linestyle="none", zorder=3 + list(KINDS).index(kind), **STYLES[kind])
    return handles


def _edge(axes: Any, places: Sequence[float], state: str) -> Any:
    """Marks at the lower edge for trials without a value."""
    style: dict[str, Any] = {
        "color": colour(3) if state == "pruned" else INK,
        "marker": 2 if state == "pruned" else "x",
    }
    x = list(places)
    (marks,) = axes.plot(
        x, [0.015] * len(x), linestyle="none", transform=axes.get_xaxis_transform(), markersize=5, alpha=0.8,
        clip_on=False, scalex=True, scaley=False, **style,
    )  # fmt: skip
    return marks


def _named(study: Study, k: int) -> str:
    better = "higher" if study.directions[k] == "maximize" else "lower"
    return f"{study.objectives[k]}  ({better} is better)"


@drawn
def history(study: Study) -> Any:
    """Every trial's values in order; the line is the best so far within the budget."""
    labels = [*KINDS.values(), "pruned", "failed", "best so far"]
    figure, panels = _panels(6.2, 2.6, len(study.objectives), 1, labels, sharex=True)
    handles: dict[str, Any] = {}
    for k, axes in enumerate(panels[:, 0]):
        sign = 1.0 if study.directions[k] == "maximize" else -1.0
        kept = [t for t in study.done if t.values and not t.over_budget]
        if kept:
            best = np.maximum.accumulate([sign * t.values[k] for t in kept if t.values]) * sign
            x, y = [t.number for t in kept] + [study.trials[-1].number], [*best, best[-1]]
            (handles["best so far"],) = axes.step(x, y, where="post", color=INK, linewidth=1.2, zorder=2)
        handles |= _dots(axes, study, lambda t, k=k: (t.number, t.values[k]))
        for state in ("pruned", "failed"):
            found = [t.number for t in study.trials if t.state == state]
            if found:
                handles[state] = _edge(axes, found, state)
        axes.set_ylabel(study.objectives[k])
        axes.margins(y=0.12)
    panels[-1, 0].set_xlabel("trial")
    panels[-1, 0].xaxis.set_major_locator(_whole())
    legend(figure, list(handles.values()), list(handles), figure.get_figwidth())
    return figure


@drawn
def curves(study: Study) -> Any:
    """Every objective after each experience of each seed; a cross is where a trial was pruned."""
    labels = ("whole trials", "pruned", "defaults", "chosen")
    rows = len(study.objectives)
    wide, high = (4.6 if study.steps <= 24 else 6.2, 3.0) if rows == 1 else (6.2, 2.4)
    figure, panels = _panels(wide, high, rows, 1, labels, sharex=True)
    handles: dict[str, Any] = {}
    for k, axes in enumerate(panels[:, 0]):
        for trial in sorted(study.trials, key=lambda t: list(PATHS).index(_path(study, t))):
            if len(trial.curves) > k:
                handles |= _curve(axes, study, trial, trial.curves[k])
        for seed in range(1, len(study.seeds)):
            axes.axvline(seed * study.experiences + 0.5, color=RULE, linewidth=1)
        axes.set_xlim(0.5, study.steps + 0.5)
        axes.set_ylabel(f"{study.objectives[k]} so far")
        axes.xaxis.set_major_locator(_whole())
    panels[-1, 0].set_xlabel("experiences learned" + (", seed after seed" if len(study.seeds) > 1 else ""))
    legend(figure, list(handles.values()), list(handles), wide)
    return figure


def _path(study: Study, trial: Trial) -> str:
    """As what a trial's curve is drawn."""
    kind = study.kind(trial)
    return kind if kind in PATHS else "other"


def _curve(axes: Any, study: Study, trial: Trial, curve: Curve) -> dict[str, Any]:
    """Draw one curve, seed by seed; returns what stands for its kind in a legend."""
    kind, handles = study.kind(trial), {}
    label = KINDS["done" if kind == "front" else kind] if kind in KINDS else kind
    for seed in range(len(study.seeds)):
        points = [(s + 1, v) for s, v in curve if s // study.experiences == seed]
        if points:
            (handles[label],) = axes.plot(*zip(*points), **PATHS[_path(study, trial)])
    if kind == "pruned" and curve:
        axes.plot(curve[-1][0] + 1, curve[-1][1], marker="x", markersize=5, color=colour(3), zorder=3)
    return handles


@drawn
def importances(study: Study) -> Any:
    """Which share of the differences between trials each dimension explains, for each objective."""
    n = len(study.importances)
    rows = max(len(shares) for shares in study.importances.values())
    figure, panels = _panels(4.6 if n == 1 else 3.4, 0.9 + 0.27 * rows, 1, n)
    for axes, (name, shares) in zip(panels[0], study.importances.items()):
        order = sorted(shares, key=lambda p: shares[p])
        axes.barh(range(len(order)), [shares[p] for p in order], color=colour(0), height=0.65)
        for row, path in enumerate(order):
            place = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(f"{shares[path]:.2f}", (shares[path], row), fontsize=8, **place)
        axes.set_yticks(range(len(order)), [shorten(p, 26) for p in order], color=INK)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, max(1e-6, *shares.values()) * 1.2)
        axes.set_xlabel("importance")
        axes.set_title(name)
    return figure


@drawn
def slices(study: Study) -> Any:
    """The first objective against each dimension; pruned and failed trials at the edge."""
    axes_ = study.axes[:MOST_AXES]
    columns = min(3, len(axes_))
    labels = [*KINDS.values(), "pruned", "failed"]
    figure, panels = _panels(3.1, 2.5, -(-len(axes_) // columns), columns, labels, sharey=True)
    handles: dict[str, Any] = {}
    for axes, axis in zip(panels.flat, axes_):
        handles |= _dots(axes, study, lambda t, a=axis: (a.place(t.params[a.path]), t.values[0]))
        for state in ("pruned", "failed"):
            found = [
                axis.place(t.params[axis.path]) for t in study.trials if t.state == state and axis.path in t.params
            ]
            if found:
                handles[state] = _edge(axes, found, state)
        axes.set_xlabel(shorten(axis.path, 36))
        axes.margins(0.08, 0.12)
        _scale(axes.xaxis, axes, axis)
    for axes in panels.flat[len(axes_) :]:
        axes.set_axis_off()
    for row in panels:
        row[0].set_ylabel(study.objectives[0])
    legend(figure, list(handles.values()), list(handles), figure.get_figwidth())
    return figure


def _scale(axis: Any, axes: Any, dimension: Axis) -> None:
    """The ticks of a dimension: its choices, or plain numbers, logarithmic where it is searched so."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if dimension.choices is not None:
        axis.set_ticks(range(len(dimension.choices)), [shorten(str(c), 12) for c in dimension.choices])
        axes.set_xlim(-0.5, len(dimension.choices) - 0.5)
        return
    if dimension.log:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        fine = LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(4)
        axis.set_major_locator(LogLocator(numticks=5) if high > 300 * low else fine)
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(5, integer=dimension.whole))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value) if value >= 1e4 else f"{value:g}"))


@drawn
def plane(study: Study, x: str, y: str) -> Any:
    """Two values of every whole trial against each other: objectives, or an objective and a cost."""
    figure, axes = blank(5.0, 3.6 + legend_height(tuple(KINDS.values()), 5.0))
    handles = _dots(axes, study, lambda t: (_value(study, t, x), _value(study, t, y)))
    _front(axes, study, x, y)
    if x not in study.objectives:
        axes.set_xscale("log")
        _scale(axes.xaxis, axes, Axis(x, log=True))
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    axes.set_xlabel(_named(study, study.objectives.index(x)) if x in study.objectives else f"{x}  (lower is better)")
    axes.set_ylabel(_named(study, study.objectives.index(y)))
    axes.margins(0.1)
    legend(figure, list(handles.values()), list(handles), 5.0)
    return figure


def _value(study: Study, trial: Trial, name: str) -> float:
    if name in study.objectives and trial.values is not None:
        return trial.values[study.objectives.index(name)]
    value = trial.summary.get(name)
    return float("nan") if value is None else float(value)


def _front(axes: Any, study: Study, x: str, y: str) -> None:
    """The front of these two alone: what lies on the study's front for the sake of a third is beyond the line."""
    up = study.directions[study.objectives.index(y)] == "maximize"
    right = x in study.objectives and study.directions[study.objectives.index(x)] == "maximize"
    points = [(_value(study, t, x), _value(study, t, y)) for t in study.done if not t.over_budget]
    best, front = -np.inf, []
    for a, b in sorted(points, key=lambda p: ((-p[0] if right else p[0]), (-p[1] if up else p[1]))):
        if (b if up else -b) > best:
            best = b if up else -b
            front.append((a, b))
    if len(front) > 1:
        axes.step(*zip(*front), where="post", color=MUTED, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)


@drawn
def cost(study: Study) -> Any:
    """Seconds of every ended trial: what pruning spared is what the short ones lack."""
    labels = ("done", "pruned", "failed")
    figure, axes = blank(5.0, 2.6 + legend_height(labels, 5.0))
    handles: dict[str, Any] = {}
    for state, shade in zip(labels, (MUTED, colour(3), INK)):
        found = [(t.number, t.seconds) for t in study.ended if t.state == state and t.seconds is not None]
        if found:
            handles[state] = axes.bar(*zip(*found), color=shade, width=0.8)
    axes.set_xlabel("trial")
    axes.set_ylabel("seconds")
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_locator(_whole())
    legend(figure, list(handles.values()), list(handles), 5.0)
    return figure


def _whole() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(8, integer=True, min_n_ticks=1)
