"""The page of a study: one HTML file that needs nothing else, whether no trial has ended yet or hundreds have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nested.report import tables
from nested.report.inline import inline_svg, save_png
from nested.report.parallel import parallel
from nested.report.rendering import render
from nested.report.study_figures import (
    MOST_AXES,
    cost,
    curves,
    history,
    importances,
    plane,
    slices,
)
from nested.report.tables import Cell, Grid
from nested.report.trials import ENDED, Study, Trial
from nested.report.wording import NONE, large, seconds, short
from nested.wording import counted

REM = 6.4  # of the page for an inch of a figure: text is as large in all
SURE = 50  # whole trials, for importances that are more than a hint
STATES = (*ENDED, "running", "waiting")
SCORES = ("learning_acc", "acc", "forgetting")  # beside the objectives: forgetting is never read alone


def page(study: Study, out: Path) -> Path:
    """Write the page to `out`, and its figures as PNGs to `figures/` beside it; returns `out`."""
    panels, widths = {}, {}
    for name, figure, description in _figures(study):
        widths[name] = round(REM * figure.get_figwidth(), 1)
        save_png(figure, out.parent / "figures" / f"{name}.png")
        panels[name] = inline_svg(figure, name, description)
    return render(
        "study.html.j2",
        out,
        title=study.name,
        study=study,
        tiles=_tiles(study),
        notes=notes(study),
        panels=panels,
        widths=widths,
        planes=[panels[f"plane-{x}"] for x, _ in _planes(study)],
        trials=grid(study),
        settings=_plainly(dict(study.settings)),
        config=_plainly(dict(study.config)),
    )


def _figures(study: Study) -> Iterator[tuple[str, Any, str]]:
    """What there is to draw: name, figure, description."""
    if study.done:
        yield "history", history(study), "Values of every trial in order"
    if any(any(t.curves) for t in study.trials):
        yield "curves", curves(study), "Every trial over the stream"
    if study.importances:
        yield "importances", importances(study), "Importance of each dimension"
    if study.done:
        yield "slices", slices(study), f"{study.objectives[0]} against each dimension"
        for x, y in _planes(study):
            yield f"plane-{x}", plane(study, x, y), f"{y} against {x}"
    if len(study.done) > 1:
        yield "parallel", parallel(study), "Parallel coordinates of every whole trial"
    if any(t.seconds is not None for t in study.ended):
        yield "cost", cost(study), "Seconds of every trial"


def _planes(study: Study) -> list[tuple[str, str]]:
    """(x, y) of the planes: each further objective against the first, or of one objective what it costs."""
    first = study.objectives[0]
    if len(study.objectives) > 1:
        return [(x, first) for x in study.objectives[1:]]
    known = any(t.summary.get("flops") for t in study.done)
    return [("flops", first)] if known and first != "flops" else []


def grid(study: Study) -> Grid:
    """One row for each trial that was begun."""
    paths = [a.path for a in study.axes]
    beside = [s for s in SCORES if s not in study.objectives]
    begun = [t for t in study.trials if t.state != "waiting"]
    rows = []
    for t in begun:
        values = t.values or (None,) * len(study.objectives)
        rows.append(
            (
                Cell(f"{t.number}{_mark(study, t)}", t.number, head=True),
                Cell(_state(t)),
                *(Cell(_short(v), v) for v in values),
                *(Cell(_short(v := t.summary.get(s)), v) for s in beside),
                *(_param(t, p) for p in paths),
                Cell(f"{t.reached} of {study.steps}", t.reached),
                Cell(large(flops := t.summary.get("flops")), flops),
                Cell(seconds(t.seconds), t.seconds),
                *((Cell(t.reason or ""),) if any(o.reason for o in begun) else ()),
            )
        )
    head = ("trial", "state", *study.objectives, *beside, *paths, "experiences", "FLOPs per seed", "seconds")
    remark = (
        "Means over seeds, judged on validation data. What a pruned trial has is of the part of the stream it saw: "
        "no value, and not to be compared with those of whole trials."
    )
    return Grid((*head, *(("why it failed",) if any(t.reason for t in begun) else ())), tuple(rows), remark)


def _mark(study: Study, trial: Trial) -> str:
    front = trial.number in study.front and len(study.front) > 1
    marks = ["chosen"] * (trial.number in study.chosen) + ["defaults"] * (trial.number == study.default)
    marks += ["front"] * front
    return f" ({', '.join(marks)})" if marks else ""


def _state(trial: Trial) -> str:
    same = "" if trial.same is None else f", as trial {trial.same}"
    return trial.state + same + (", over budget" if trial.over_budget else "")


def _param(trial: Trial, path: str) -> Cell:
    value = trial.params.get(path)
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    return Cell(NONE if path not in trial.params else _short(value), number)


def _short(value: Any) -> str:
    return NONE if value is None else short(value) if isinstance(value, float) else tables.plain(value)


def notes(study: Study) -> list[str]:
    """What a reader must know before believing the figures."""
    said = [
        "Everything here was judged on validation data, and the best of many trials is better here than it will be "
        "elsewhere: nested tune best measures it on fresh seeds and on the test part."
    ]
    if not study.done:
        said.append("No trial is whole yet, so that there are no values to show.")
    if study.default is None:
        said.append("The default configuration is not among the trials.")
    elif (first := next((t for t in study.trials if t.number == study.default), None)) and first.values is None:
        said.append(f"The defaults, trial {study.default}, are {first.state}: nothing can be compared with them yet.")
    if study.budget:
        bounds = ", ".join(f"{name} at most {bound:.4g} for each seed" for name, bound in study.budget.items())
        said.append(f"Trials over the budget ({bounds}) can be neither best nor on the front.")
    if again := [t.number for t in study.trials if t.deaths]:
        said.append(f"Taken up again because a worker was lost: {_numbered(again)}.")
    if same := [t.number for t in study.trials if t.same is not None]:
        said.append(f"Not run, having the values of an earlier trial and with them its numbers: {_numbered(same)}.")
    if len(study.axes) > MOST_AXES:
        said.append(f"Figures show the first {MOST_AXES} of {len(study.axes)} dimensions; the table has all.")
    if study.importances and len(study.done) < SURE:
        said.append(f"What mattered is a hint with fewer than {SURE} whole trials: the best tenth of them is compared.")
    if len(study.done) > 1 and not study.importances:
        said.append("Too few whole trials, or values too equal, to say how much each dimension matters.")
    return said


def _numbered(trials: list[int]) -> str:
    return f"{counted(len(trials), 'trial')} ({', '.join(map(str, trials))})"


def _tiles(study: Study) -> list[tuple[str, str]]:
    counts = " · ".join(f"{n} {s}" for s in STATES if (n := study.of_state(s)))
    found = [("trials", f"{len(study.ended)} of {study.planned}"), ("of these", counts)]
    best = next((t for t in study.trials if t.number in study.chosen), None)
    default = next((t for t in study.trials if t.number == study.default), None)
    for name, trial in (("chosen", best), ("defaults", default)):
        if trial and trial.values:
            said = " · ".join(f"{n} {_short(v)}" for n, v in zip(study.objectives, trial.values))
            found.append((f"{name}, trial {trial.number}", said))
    if any(t.state == "pruned" for t in study.ended):
        found.append(("spared by pruning", f"{study.spared:.0%} of the experiences"))
    spent = [t.seconds for t in study.ended if t.seconds is not None]
    return [*found, *([("all trials", f"{seconds(sum(spent))} s")] if spent else [])]


def _plainly(values: dict[str, Any]) -> Grid:
    rows = [(Cell(k, head=True), Cell(tables.plain(v))) for k, v in values.items()]
    return Grid(("key", "value"), tuple(rows))
