"""Associative-memory heads on split digits, class-incremental: which rule forgets, on the same features?

Every rule on 512 fixed random cosine features, and on those of an MLP frozen after the first experience; one pass over
each experience, no example kept. Beside them the linear head that gradients train on the same features, at two rates:
at the lower one it is underfitted on random features, and what is hardly learned is hardly forgotten. Five orders of
classes. What is done already (reports/associative_heads.json) is not done again. Budget: five minutes of one core.
Run: .venv/bin/python experiments/associative_heads.py
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cells import compute, read

SEEDS = range(5)
COMMON = [
    "stream=split_digits", "stream.validation=0.01", "method=associative_head", "optim=adamw", "trainer.epochs=6",
    "evaluate.parts=[test]", "tracking=off", "trainer.progress=false", "trainer.threads=1",
]  # fmt: skip
RANDOM = ["model=random_features"]
LEARNED = ["model=mlp", "model.hidden=[128,128]", "method.features=frozen_after_first"]
FEATURES = {"random": RANDOM, "MLP frozen after the first": LEARNED}
ARMS = {
    "least squares": ("memory", ["method.rule=least_squares"]),
    "class means": ("memory", ["method.rule=class_means"]),
    "own class": ("memory", ["method.rule=own_class"]),
    "delta": ("memory", ["method.rule=delta"]),
    "delta, whitened": ("memory", ["method.rule=delta", "method.whiten=true"]),
    "DGD": ("memory", ["method.rule=dgd"]),
    "Hebb": ("memory", ["method.rule=hebb"]),
    "linear head, AdamW 0.001": ("head", ["optim.lr=0.001"]),
    "linear head, AdamW 0.01": ("head", ["optim.lr=0.01"]),
}  # arm -> view that is judged, overrides
METRICS = ("acc", "forgetting", "learning_acc")
OUT = Path("reports/associative_heads.json")


def one(cell: tuple[str, str, int]) -> dict[str, Any]:
    """One run, judged by the arm's view."""
    from nested import metrics
    from nested.config import compose
    from nested.run import run

    features, arm, seed = cell
    view, overrides = ARMS[arm]
    with tempfile.TemporaryDirectory() as runs:
        result = run(compose([*COMMON, *FEATURES[features], *overrides, f"seed={seed}", f"runs={runs}"]))
        judged = json.loads((result.path / f"seed-{seed}" / "matrix.json").read_text())["views"][view]["test"]
    scores = np.array(judged["sum"]) / np.array(judged["count"])
    values = metrics.summarise(scores[1:], scores[0], lower_is_better=False)
    return {
        "features": features, "arm": arm, "seed": seed, "status": result.status, **{k: values[k] for k in METRICS},
    }  # fmt: skip


def spoken(row: dict[str, Any]) -> str:
    return f"{row['features']:28}{row['arm']:26}seed {row['seed']}: {row['status']}"


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and half width of the 95 percent interval over seeds, for each kind of features and arm."""
    from nested.metrics import over_seeds

    lines = []
    for features in FEATURES:
        for arm in ARMS:
            mine = [r for r in rows if (r["features"], r["arm"]) == (features, arm)]
            mean, half = over_seeds(mine, METRICS)
            lines.append({"features": features, "arm": arm, "seeds": len(mine), "mean": mean, "ci95": half})
    return lines


def figure(lines: list[dict[str, Any]], out: Path) -> None:
    """ACC against forgetting, one panel for each kind of features, intervals over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(1, len(FEATURES), sharex=True, sharey=True)
    corner = panels[0].inset_axes((0.6, 0.47, 0.38, 0.46), xlim=(-1, 6), ylim=(89, 100))
    corner.set_title("the corner", fontsize=8)
    for axes, features in zip([*panels, corner], [*FEATURES, "random"]):
        for i, line in enumerate(x for x in lines if x["features"] == features):
            mean, half = line["mean"], line["ci95"]
            axes.errorbar(
                100 * mean["forgetting"], 100 * mean["acc"], 100 * half["acc"], 100 * half["forgetting"],
                fmt="osD^v<>XP"[i], color=f"C{i}", capsize=2, markersize=6, label=line["arm"],
            )  # fmt: skip
        axes.grid(alpha=0.3)
    for axes, features in zip(panels, FEATURES):
        axes.set(title=f"features: {features}", xlabel="forgetting, percent", xlim=(-3, 103), ylim=(-3, 103))
    panels[0].set_ylabel("ACC, percent")
    panels[-1].legend(fontsize=8)
    drawing.suptitle(
        f"Split digits, class-incremental, one pass, {len(SEEDS)} orders of classes (95 percent intervals)"
    )
    drawing.savefig(out, dpi=150)


def main() -> None:
    cells = list(itertools.product(FEATURES, ARMS, SEEDS))
    rows = compute(OUT, cells, one, ("features", "arm", "seed"), spoken, under="cells")
    lines = table(rows)
    OUT.write_text(json.dumps({"cells": read(OUT, "cells"), "table": lines}, indent=1) + "\n")
    for line in lines:
        shown = [f"{k} {100 * line['mean'][k]:5.1f} +- {100 * line['ci95'][k]:4.1f}" for k in METRICS]
        print(f"{line['features']:28}{line['arm']:26}{', '.join(shown)}")
    figure(lines, OUT.with_suffix(".png"))


if __name__ == "__main__":
    main()
