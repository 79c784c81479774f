"""The figures of a group of runs: from records to arrays, from arrays to files and inline SVG.

Shapes: S seeds, n experiences, matrices (S, n + 1, n).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nested.metrics import half_width
from nested.report import figures
from nested.report.figures import LINES, Bar, Series
from nested.report.groups import Group
from nested.report.heatmap import CELLS, Limits, heat_map
from nested.report.inline import inline_svg, save_png
from nested.report.planes import Cloud, Point, forgetting_against_learning, score_against_cost
from nested.report.records import Array, Run, mean_of, number, on_stream
from nested.report.sweeps import Sweep, flops_of, front, span
from nested.report.wording import every, heading, large, slug
from nested.wording import counted

BARS = 48  # more levels than this are in the table alone
POINTS = 400  # of a curve; longer ones are averaged
RIGHT = "positions right"
NAMED = 14  # clouds in a legend
SEEN = 100  # points up to which single seeds are drawn under them
SAME = 1.02  # costs that differ by less are equal
COST = ("flops", "train_seconds")
Draw = Callable[[str, Any, str], str]


def draw(group: Group, lines: Sequence[Sweep], shown: Group, folder: Path, key: str) -> dict[str, list[str]]:
    """The SVG elements of a group's figures by kind; PNGs go to `folder`. `key` keeps the names of groups apart.

    Planes are of the whole group, a curve or a matrix has each member of `shown`.
    """

    def panel(name: str, figure: Any, description: str) -> str:
        save_png(figure, folder / f"{key}{name}.png")
        return inline_svg(figure, f"{key}{name}", description)

    return {
        "forgetting": list(_frontier(group, lines, shown, panel)),
        "cost": list(_cost(group, lines, shown, panel)),
        "matrix": list(_matrices(shown, panel)),
        "positions": list(_positions(shown, panel)),
        "frozen": list(_frozen(shown, panel)),
        "loss": list(_training(shown, panel)),
        "experiences": list(_experiences(shown, panel)) if shown is group else [],
        "stream": list(_stream(shown, panel)),
        "anytime": [*_anytime_together(shown, panel), *_anytime(shown, panel)],
        "levels": list(_levels(shown, panel)) if shown is group else [],
    }


def mean_over(seeds: int) -> str:
    """What a figure shows, in words."""
    return f"mean of {counted(seeds, 'seed')}"


def _drawable(group: Group) -> Iterator[tuple[Run, int, str, Array, str]]:
    """(run, slot, label, matrices, part of a file name) of runs that have a matrix."""
    for k, (run, slot, label) in enumerate(group.members):
        if run.matrices is not None and run.n:
            yield run, slot, label, run.matrices, f"{k + 1}-{slug(label)}"


def _frontier(group: Group, lines: Sequence[Sweep], shown: Group, panel: Draw) -> Iterator[str]:
    flops = [f for line in lines for f in line.flops]
    equal = bool(flops) and max(flops) <= SAME * min(flops)
    points = clouds(lines, shown, lambda run: _point(run, "learning_acc", "forgetting"), stated=not equal)
    if any(p.y is not None for c in points for p in c.points):
        title = f"at {large(flops[0])} FLOPs" if equal and len(group.members) > 1 else ""
        figure = forgetting_against_learning(points, group.measure, group.lower, title)
        yield panel("forgetting", figure, f"Forgetting against learning {group.measure}, {group.title}")


def _cost(group: Group, lines: Sequence[Sweep], shown: Group, panel: Draw) -> Iterator[str]:
    if len(group.members) < 2:
        return
    of = spent(group)
    points = clouds(lines, shown, lambda run: _point(run, of, "acc"))
    if points:
        score = heading("acc", group.measure)
        best = front([(p.x, p.y) for c in points for p in c.points if p.y is not None], group.lower)
        figure = score_against_cost(points, best, "FLOPs" if of == "flops" else "training seconds", score, group.lower)
        yield panel("cost", figure, f"{score} against cost, {group.title}")


def on_front(group: Group) -> list[str]:
    """The labels of those that no other beats in ACC at no more cost."""
    of = spent(group)
    known = {m.label: p for m in group.members if (p := _point(m.run, of, "acc")) and p.y is not None}
    best = set(front([(p.x, p.y) for p in known.values() if p.y is not None], group.lower))
    return [label for label, p in known.items() if (p.x, p.y) in best]


def spent(group: Group) -> str:
    """The cost by which a group is judged: FLOPs where every run knows them."""
    return "flops" if all(run.cost("flops") for run in group.runs) else "train_seconds"


def _point(run: Run, x: str, y: str) -> Point | None:
    """A run in a plane of metrics, or of a cost and a metric; None where it has no x, or a y that it should have."""
    at, up = mean_of(run.cost(x)) if x in COST else run.mean.get(x), run.mean.get(y)
    if at is None or (x in COST and at <= 0) or (up is None and not (run.single_fit and y == "forgetting")):
        return None
    seeds = [(number(s.cost.get(x)) if x in COST else s.metrics.get(x), s.metrics.get(y)) for s in run.done]
    known = [(a, b) for a, b in seeds if a is not None and b is not None]
    return Point(at, up, run.ci95.get(x), run.ci95.get(y), [a for a, _ in known], [b for _, b in known])


def clouds(
    lines: Sequence[Sweep], shown: Group, point: Callable[[Run], Point | None], stated: bool = False
) -> list[Cloud]:
    """Sweeps as clouds of points; those beyond NAMED have no name. `stated`: with FLOPs."""
    drawn = {m.label for m in shown.members}
    by_weight = sorted(lines, key=lambda s: (not drawn & {m.label for m in s.members}, not s.keys))
    named = {s.label for s in by_weight[:NAMED]}
    found, rest = [], []
    many = sum(len(line.members) for line in lines) > SEEN
    for line in lines:
        points = [p for m in line.members if (p := point(m.run)) is not None]
        points = [replace(p, xs=(), ys=()) for p in points] if many else points
        if points and line.label in named:
            words = [line.label, span(line) if line.keys else "", flops_of(line) if stated else ""]
            found.append(Cloud(", ".join(w for w in words if w), line.slot, points, len(points) > 1))
        elif line.label not in named:
            rest += points
    others = f"{len(rest):,} other" + "s" * (len(rest) != 1)
    return [*found, *([Cloud(others, 0, rest, rest=True)] if rest else [])]


def _matrices(group: Group, panel: Draw) -> Iterator[str]:
    limits = _limits(group, below=True)
    for run, _, label, matrices, name in _drawable(group):
        columns = run.experiences if run.n <= CELLS else ()
        mean = matrices.mean(0)
        figure = heat_map(mean, columns, limits, label, group.measure, group.lower, run.single_fit)
        yield panel(f"matrix-{name}", figure, f"Matrix of {label}, {mean_over(len(matrices))}")


def _positions(group: Group, panel: Draw) -> Iterator[str]:
    for run, _, label, _, name in _drawable(group):
        if run.positions is None:
            continue
        columns = run.experiences if run.n <= CELLS else ()
        figure = heat_map(run.positions.mean(0), columns, (0.0, 1.0), label, RIGHT, False, run.single_fit)
        yield panel(f"positions-{name}", figure, f"Share of {RIGHT} of {label}, {mean_over(len(run.positions))}")


def _frozen(group: Group, panel: Draw) -> Iterator[str]:
    """On the scale of the matrices above them."""
    limits = _limits(group, below=True)
    for run, _, label, _, name in _drawable(group):
        if run.frozen is None:
            continue
        columns = run.experiences if run.n <= CELLS else ()
        word = f"{group.measure}, frozen"
        figure = heat_map(run.frozen.mean(0), columns, limits, label, word, group.lower, run.single_fit)
        yield panel(f"frozen-{name}", figure, f"Matrix of {label}, frozen, {mean_over(len(run.frozen))}")


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
        series.append(Series(label, slot, x, y.mean(0), half_width(y), seeds=y))
    if series:
        figure = figures.over_stream(series, "optimizer steps", "training loss", None, bounded=False)
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
    so_far, learned, lost = [], [], []
    for run, slot, label, matrices, _ in _drawable(group):
        style = {"label": label, "slot": slot, "level": run.single_fit}
        seen, diagonal = average_so_far(matrices), np.diagonal(matrices[:, 1:], axis1=1, axis2=2)  # (S, n) each
        if run.single_fit:
            seen = diagonal = np.repeat(seen[:, -1:], n, axis=1)
        so_far.append(_series(seen, 1, style))
        learned.append(_series(diagonal, window, style))
        if not run.single_fit:
            lost.append(_series(forgetting_so_far(matrices, group.lower), window, style, start=2))
    if not so_far:
        return
    limits = None if group.lower else _limits(group)
    word = f"average {group.measure} so far"
    yield panel(
        "average",
        figures.over_stream(so_far, "experiences learned", word, limits, not group.lower),
        f"{word}, {group.title}",
    )
    smooth = f" (mean of {window})" if window > 1 else ""
    figure = figures.over_stream(learned, f"experience{smooth}", f"learning {group.measure}", None, not group.lower)
    yield panel("learning", figure, f"Learning {group.measure} against the position in the stream, {group.title}")
    if lost:
        figure = figures.over_stream(lost, f"experiences learned{smooth}", "forgetting so far", None, bounded=False)
        yield panel("lost", figure, f"Forgetting so far, {group.title}")


def average_so_far(matrices: Array) -> Array:
    """(S, n): after experience i the mean score on experiences 1..i."""
    n = matrices.shape[2]
    return np.stack([matrices[:, i, :i].mean(1) for i in range(1, n + 1)], axis=1)


def forgetting_so_far(matrices: Array, lower: bool) -> Array:
    """(S, n - 1): after experience i > 1 what is lost of those before it; the last column is the metric."""
    signed = -matrices[:, 1:] if lower else matrices[:, 1:]  # (S, n, n), larger is better
    best = np.maximum.accumulate(signed, axis=1)
    n = signed.shape[2]
    return np.stack([(best[:, i - 1, :i] - signed[:, i, :i]).mean(1) for i in range(1, n)], axis=1)


def _series(values: Array, window: int, style: dict[str, Any], start: int = 1) -> Series:
    """Values (S, n) as a line with its band and its seeds, averaged over a sliding window."""
    x = np.arange(start, start + values.shape[1], dtype=np.float64)
    if window > 1:
        kernel = np.ones(window) / window
        values = np.stack([np.convolve(row, kernel, mode="valid") for row in values])
        x = np.convolve(x, kernel, mode="valid")
    return Series(x=x, y=values.mean(0), half=half_width(values), seeds=values, **style)


def _anytime(group: Group, panel: Draw) -> Iterator[str]:
    for run, slot, label, _, name in _drawable(group):
        if (found := _evaluations(run)) is None:
            continue
        first, scores = found
        step, experience = np.array(first["step"]), np.array(first["experience"])
        ticks: dict[str, list[int]] = {}
        for at, moment in zip(first["step"], first["moment"]):
            if moment.startswith("after:"):
                ticks.setdefault(moment[6:], []).append(at)
        marks = {level: np.array(at) for level, at in ticks.items()}
        figure = figures.anytime(step, scores.mean(0), experience, marks, label, slot, group.measure)
        yield panel(f"anytime-{name}", figure, f"Anytime {group.measure}, {label}, {mean_over(len(scores))}")


def _anytime_together(group: Group, panel: Draw) -> Iterator[str]:
    """The anytime curves of all on one pair of axes, where there are several."""
    series = []
    for run, slot, label, _, _ in _drawable(group):
        if (found := _evaluations(run)) is None:
            continue
        first, scores = found
        begun = [max(0, e) + 1 for e in first["experience"]]
        seen = np.stack([scores[:, i, :k].mean(1) for i, k in enumerate(begun)], axis=1)  # (S, m)
        thin = slice(None, None, -(-len(begun) // POINTS))
        x, y = np.array(first["step"], dtype=np.float64)[thin], seen[:, thin]
        series.append(Series(label, slot, x, y.mean(0), half_width(y), seeds=y))
    if len(series) > 1:
        figure = figures.over_stream(series, "optimizer steps", f"mean {group.measure} so far", None, not group.lower)
        yield panel("anytime", figure, f"Anytime {group.measure} of all, {group.title}")


def _evaluations(run: Run) -> tuple[dict[str, Any], Array] | None:
    """The first seed's table of anytime evaluations, and the scores (S, m, n) of the seeds evaluated at its moments."""
    tables = [s.anytime for s in run.shown if s.anytime and len(s.anytime.get("step") or []) > 1]
    if not tables or run.single_fit:
        return None
    first = tables[0]
    alike = [t for t in tables if (t["step"], t["moment"]) == (first["step"], first["moment"])]
    return first, np.array([t["accuracy"] for t in alike], dtype=np.float64)


def _levels(group: Group, panel: Draw) -> Iterator[str]:
    runs = [(label, slot, [_bar(level) for level in run.levels]) for run, slot, label in group.members if run.levels]
    if 0 < sum(len(bars) for *_, bars in runs) <= BARS:
        yield panel("levels", figures.level_bars(runs), f"Parameters and updates per level, {group.title}")


def _bar(level: dict[str, Any]) -> Bar:
    stream = on_stream(level)
    label = f"{level.get('name')}, every {every(level.get('period'), 'step' if stream else 'token')}"
    return Bar(label, number(level.get("parameters")) or 0, number(level.get("updates")) or 0 if stream else None)


def _limits(group: Group, below: bool = False) -> Limits:
    """One scale for all runs of a group; for losses `below`, as colours, over the rows after training began."""
    if not group.lower:
        return (0.0, 1.0) if below else (0.0, 1.05)
    frozen = [run.frozen for run in group.runs if run.frozen is not None]
    shown = [m[:, int(below) :] for m in (*(m for *_, m, _ in _drawable(group)), *frozen)]
    known = np.concatenate([m[~np.isnan(m)] for m in shown]) if shown else np.zeros(1)
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    return (low if below else 0.0, high * (1.0 if below else 1.05) or 1.0)
