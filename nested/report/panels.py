"""The figures of a group of runs: from records to arrays, from arrays to files and inline SVG.

Shapes: S seeds, n experiences, matrices (S, n + 1, n).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nested.metrics import half_width
from nested.report import figures
from nested.report.figures import LINES, Bar, Point, Series
from nested.report.groups import Group
from nested.report.heatmap import CELLS, Limits, heat_map
from nested.report.inline import inline_svg, save_png
from nested.report.records import Array, Run, number, on_stream
from nested.report.wording import every, slug

BARS = 48  # more levels than this are in the table alone
POINTS = 400  # of a curve; longer ones are averaged
RIGHT = "positions right"
Draw = Callable[[str, Any, str], str]


def draw(group: Group, folder: Path, key: str) -> dict[str, list[str]]:
    """The SVG elements of a group's figures by kind; PNGs go to `folder`. `key` keeps the names of groups apart."""

    def panel(name: str, figure: Any, description: str) -> str:
        save_png(figure, folder / f"{key}{name}.png")
        return inline_svg(figure, f"{key}{name}", description)

    return {
        "forgetting": list(_forgetting(group, panel)),
        "matrix": list(_matrices(group, panel)),
        "positions": list(_positions(group, panel)),
        "loss": list(_training(group, panel)),
        "experiences": list(_experiences(group, panel)),
        "stream": list(_stream(group, panel)),
        "anytime": list(_anytime(group, panel)),
        "levels": list(_levels(group, panel)),
    }


def _drawable(group: Group) -> Iterator[tuple[Run, int, str, Array, str]]:
    """(run, slot, label, matrices, part of a file name) of runs that have a matrix."""
    for k, (run, slot, label) in enumerate(group.members):
        if run.matrices is not None and run.n:
            yield run, slot, label, run.matrices, f"{k + 1}-{slug(label)}"


def _forgetting(group: Group, panel: Draw) -> Iterator[str]:
    points = []
    for run, slot, label in group.members:
        x, y = run.mean.get("learning_acc"), run.mean.get("forgetting")
        if x is None or (y is None and not run.single_fit):
            continue
        pairs = [(s.metrics["learning_acc"], s.metrics["forgetting"]) for s in run.done]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        halves = run.ci95.get("learning_acc"), run.ci95.get("forgetting")
        points.append(Point(label, slot, x, y, *halves, [a for a, _ in known], [b for _, b in known]))
    if any(p.y is not None for p in points):
        figure = figures.forgetting_against_learning(points, group.measure, group.lower)
        yield panel("forgetting", figure, f"Forgetting against learning {group.measure}, {group.title}")


def _matrices(group: Group, panel: Draw) -> Iterator[str]:
    limits = _limits(group, below=True)
    for run, _, label, matrices, name in _drawable(group):
        columns = run.experiences if run.n <= CELLS else ()
        mean = matrices.mean(0)
        figure = heat_map(mean, columns, limits, label, group.measure, group.lower, run.single_fit)
        yield panel(f"matrix-{name}", figure, f"Matrix of {label}, mean of {len(matrices)} seed(s)")


def _positions(group: Group, panel: Draw) -> Iterator[str]:
    for run, _, label, _, name in _drawable(group):
        if run.positions is None:
            continue
        columns = run.experiences if run.n <= CELLS else ()
        figure = heat_map(run.positions.mean(0), columns, (0.0, 1.0), label, RIGHT, False, run.single_fit)
        yield panel(f"positions-{name}", figure, f"Share of {RIGHT} of {label}, mean of {len(run.positions)} seed(s)")


def _training(group: Group, panel: Draw) -> Iterator[str]:
    """The training loss over the steps that all seeds shown have recorded, averaged down to POINTS."""
    series = []
    for run, slot, label in group.members:
        curves = [s.training for s in run.shown if s.training]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        if not steps:
            continue
        values = np.array([[curve[t] for t in steps] for curve in curves])  # (S, points)
        size = -(-len(steps) // POINTS)
        starts = np.arange(0, len(steps), size)
        width = np.diff(starts, append=len(steps))
        x, y = (np.add.reduceat(a, starts, axis=-1) / width for a in (np.array(steps, dtype=float), values))
        series.append(Series(label, slot, x, y.mean(0), half_width(y)))
    if series:
        figure = figures.over_stream(series, "optimizer steps", "training loss", None, lower=True)
        yield panel("loss", figure, f"Training loss over optimizer steps, {group.title}")


def _experiences(group: Group, panel: Draw) -> Iterator[str]:
    limits = _limits(group)
    for run, _, label, matrices, name in _drawable(group):
        if 1 < run.n <= LINES and not run.single_fit:
            figure = figures.experience_lines(matrices.mean(0), label, group.measure, limits)
            yield panel(f"experiences-{name}", figure, f"{group.measure} per experience over the stream, {label}")


def _stream(group: Group, panel: Draw) -> Iterator[str]:
    n = group.first.n
    if n < 2:
        return
    window = max(1, n // 40)
    so_far, learned = [], []
    for run, slot, label, matrices, _ in _drawable(group):
        style = {"label": label, "slot": slot, "level": run.single_fit}
        seen, diagonal = average_so_far(matrices), np.diagonal(matrices[:, 1:], axis1=1, axis2=2)  # (S, n) each
        if run.single_fit:
            seen = diagonal = np.repeat(seen[:, -1:], n, axis=1)
        so_far.append(_series(seen, 1, style))
        learned.append(_series(diagonal, window, style))
    if not so_far:
        return
    limits = None if group.lower else _limits(group)
    word = f"average {group.measure} so far"
    yield panel(
        "average",
        figures.over_stream(so_far, "experiences learned", word, limits, group.lower),
        f"{word}, {group.title}",
    )
    smooth = f" (mean of {window})" if window > 1 else ""
    figure = figures.over_stream(learned, f"experience{smooth}", f"learning {group.measure}", None, group.lower)
    yield panel("learning", figure, f"Learning {group.measure} against the position in the stream, {group.title}")


def average_so_far(matrices: Array) -> Array:
    """(S, n): after experience i the mean score on experiences 1..i."""
    n = matrices.shape[2]
    return np.stack([matrices[:, i, :i].mean(1) for i in range(1, n + 1)], axis=1)


def _series(values: Array, window: int, style: dict[str, Any]) -> Series:
    """Values (S, n) as a line with its band, averaged over a sliding window."""
    x = np.arange(1, values.shape[1] + 1, dtype=np.float64)
    if window > 1:
        kernel = np.ones(window) / window
        values = np.stack([np.convolve(row, kernel, mode="valid") for row in values])
        x = np.convolve(x, kernel, mode="valid")
    return Series(x=x, y=values.mean(0), half=half_width(values), **style)


def _anytime(group: Group, panel: Draw) -> Iterator[str]:
    for run, slot, label, _, name in _drawable(group):
        tables = [s.anytime for s in run.shown if s.anytime and len(s.anytime.get("step") or []) > 1]
        if not tables or run.single_fit:
            continue
        first = tables[0]
        alike = [t for t in tables if (t["step"], t["moment"]) == (first["step"], first["moment"])]
        scores = np.mean([np.array(t["accuracy"], dtype=np.float64) for t in alike], axis=0)
        step, experience = np.array(first["step"]), np.array(first["experience"])
        ticks: dict[str, list[int]] = {}
        for at, moment in zip(first["step"], first["moment"]):
            if moment.startswith("after:"):
                ticks.setdefault(moment[6:], []).append(at)
        marks = {level: np.array(at) for level, at in ticks.items()}
        figure = figures.anytime(step, scores, experience, marks, label, slot, group.measure)
        yield panel(f"anytime-{name}", figure, f"Anytime {group.measure}, {label}, mean of {len(alike)} seed(s)")


def _levels(group: Group, panel: Draw) -> Iterator[str]:
    runs = [
        (label, slot, [_bar(level) for level in run.levels if on_stream(level)])
        for run, slot, label in group.members
        if run.levels
    ]
    if 0 < sum(len(bars) for *_, bars in runs) <= BARS:
        yield panel("levels", figures.level_bars(runs), f"Parameters and updates per level, {group.title}")


def _bar(level: dict[str, Any]) -> Bar:
    label = f"{level.get('name')}, every {every(level.get('period'), 'step')}"
    return Bar(label, number(level.get("parameters")) or 0, number(level.get("updates")) or 0)


def _limits(group: Group, below: bool = False) -> Limits:
    """One scale for all runs of a group; for losses over the rows after training began."""
    if not group.lower:
        return (0.0, 1.0) if below else (0.0, 1.05)
    trained = [m[:, 1:] for *_, m, _ in _drawable(group)]
    known = np.concatenate([m[~np.isnan(m)] for m in trained]) if trained else np.zeros(1)
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    return (low if below else 0.0, high * (1.0 if below else 1.05) or 1.0)
