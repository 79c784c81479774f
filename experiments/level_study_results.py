"""What came out of `level_study.py`: tables on standard output, figures in reports/level_study/.

Run: .venv/bin/python experiments/level_study_results.py [digits | mnist]
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import matplotlib
import numpy as np
from cells import read
from level_study import FINE, FOLDER, LEVELS, ORDERS, PERIODS, RELEARN, SCALES, SCENARIOS, Cell
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nested.metrics import interval

TWENTY = [matplotlib.colormaps["tab20"](i) for i in range(20)]


def at_equal_learning(rows: list[Cell], arm: str, other: str) -> list[float]:
    """Per order, forgetting of `arm` at the base rate minus that of `other` where it has learned as much.

    Between two rates of `other` its forgetting is interpolated; beyond them that of the nearest one is taken. Where
    it has one rate (most arms on MNIST) this is the difference to its run at that rate.
    """
    found = []
    for seed in ORDERS:
        mine = [r for r in rows if r["arm"] == arm and r["seed"] == seed and r["factor"] == 1.0]
        points = sorted((r["learning_acc"], r["forgetting"]) for r in rows if r["arm"] == other and r["seed"] == seed)
        if mine and points:
            learned, lost = (np.array(values) for values in zip(*points))
            there = float(np.interp(mine[0]["learning_acc"], learned, lost))
            found.append(mine[0]["forgetting"] - there)
    return found


def judged(rows: list[Cell]) -> list[Cell]:
    """The rows of the contest, each arm by the set of weights that it is about: the first of its views."""
    about: dict[str, str] = {}
    for row in rows:
        if row["step"] == "contest" and row["status"] == "done":
            about.setdefault(row["arm"], row["view"])
    return [r for r in rows if r["step"] == "contest" and r.get("view") == about.get(r["arm"])]


def table(rows: list[Cell]) -> str:
    """Markdown: for each arm at the base rate the means, and the levels' forgetting minus its own at equal learning."""
    heading = f"levels minus it, at equal {'learning' if len({r['factor'] for r in rows}) > 1 else 'rate'}"
    lines = [f"| arm | learning accuracy | ACC | forgetting | {heading} | recovered after 8 steps | updates |"]
    lines.append("|---|---|---|---|---|---|---|")
    models = {(r["arm"], r["seed"]): r["recovery"] for r in rows if r.get("factor") == 1.0 and "recovery" in r}
    contest = judged(rows)
    for arm in dict.fromkeys(r["arm"] for r in contest if r["factor"] == 1.0):
        base = [r for r in contest if r["arm"] == arm and r["factor"] == 1.0]
        means = " | ".join(f"{np.mean([r[k] for r in base]):.3f}" for k in ("learning_acc", "acc", "forgetting"))
        mean, half = interval(at_equal_learning(contest, "levels", arm)) if arm != "levels" else (None, None)
        less = "" if mean is None or half is None else f"{mean:+.3f} +- {half:.3f}"
        back = np.mean([models[arm, r["seed"]][RELEARN.index(8)] for r in base])
        updates = np.mean([r["parameter_updates"] for r in base]) / 1e6
        lines.append(f"| {arm} | {means} | {less} | {back:.2f} | {updates:.1f}M |")
    return "\n".join(lines)


def figure(rows: list[Cell], out: Path) -> None:
    """Learning accuracy against forgetting, a panel for each scenario, a line through each arm's rates."""
    scenarios = [s for s in SCENARIOS if any(r["scenario"] == s for r in judged(rows))]
    colours = dict(zip(dict.fromkeys(r["arm"] for r in judged(rows)), TWENTY))  # Lookahead's k is the scenario's own
    drawing = Figure(figsize=(4.2 * len(scenarios), 4.8), layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(1, len(scenarios), squeeze=False)[0]
    for axes, scenario in zip(panels, scenarios):
        contest = judged([r for r in rows if r["scenario"] == scenario])
        for arm in dict.fromkeys(r["arm"] for r in contest):
            factors = sorted({r["factor"] for r in contest if r["arm"] == arm})
            at = [[r for r in contest if r["arm"] == arm and r["factor"] == f] for f in factors]
            x, y = ([float(np.mean([r[k] for r in found])) for found in at] for k in ("learning_acc", "forgetting"))
            style = {"lw": 2.5, "marker": "o"} if arm in FINE else {"lw": 1, "marker": ".", "ls": "--"}
            axes.plot(x, y, label=arm, color=colours[arm], **style)
        axes.set(title=scenario, xlabel="learning accuracy", ylabel="forgetting")
        axes.grid(alpha=0.3)
    named = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    drawing.legend(named.values(), named.keys(), loc="outside lower center", ncols=2 * len(scenarios), fontsize=8)
    drawing.savefig(out, dpi=130)


def sweep_figure(rows: list[Cell], out: Path) -> None:
    """Validation ACC over levels x shortest period, a panel for each scenario and rate of the levels."""
    scenarios = [s for s in SCENARIOS if any(r["step"] == "sweep" and r["scenario"] == s for r in rows)]
    drawing = Figure(figsize=(3 * len(SCALES), 2.4 * len(scenarios)), layout="constrained")
    FigureCanvasAgg(drawing)
    grid = drawing.subplots(len(scenarios), len(SCALES), squeeze=False)
    for (i, scenario), (j, scale) in itertools.product(enumerate(scenarios), enumerate(SCALES)):
        found = [r for r in rows if r["step"] == "sweep" and r["scenario"] == scenario and r["scale"] == scale]
        means = np.array(
            [
                [np.mean([r["acc"] for r in found if (r["levels"], r["period"]) == (n, p)]) for p in PERIODS]
                for n in LEVELS
            ]
        )
        axes = grid[i, j]
        axes.imshow(means, cmap="viridis", aspect="auto")
        for (a, b), value in np.ndenumerate(means):
            axes.text(b, a, f"{value:.3f}", ha="center", va="center", fontsize=8, color="white")
        axes.set_xticks(range(len(PERIODS)), PERIODS)
        axes.set_yticks(range(len(LEVELS)), LEVELS)
        axes.set(title=f"{scenario}, rate x {scale:g}", xlabel="shortest period, steps", ylabel="levels")
    drawing.suptitle("ACC on validation data, three orders")
    drawing.savefig(out, dpi=130)


def conclude(data: str) -> None:
    """Print the tables and draw the figures of what is on file."""
    rows = [r for r in read(FOLDER / f"{data}.jsonl") if r["status"] == "done"]
    for scenario in SCENARIOS:
        if contest := [r for r in rows if r["scenario"] == scenario and r["step"] == "contest"]:
            print(f"\n{data}, {scenario}, {len({r['seed'] for r in contest})} orders\n{table(contest)}")
    figure(rows, FOLDER / f"{data}_frontier.png")
    if any(r["step"] == "sweep" for r in rows):
        sweep_figure(rows, FOLDER / f"{data}_sweep.png")


if __name__ == "__main__":
    conclude(sys.argv[1] if len(sys.argv) > 1 else "digits")
