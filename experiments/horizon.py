"""How long do optimizers remember a gradient? Steps until a planted one moves the weights by less than one percent.

Every optimizer of this package and torch's SGD with momentum, Adam and Muon, measured as `nested.optim.horizon` says:
given standard normal gradients of shape (8, 6), 500 steps of warm-up, float64, the median of five seeds. An influence
that stays above one percent for 1000 steps counts as forever. Delta Gradient Descent is not here: it keeps nothing
between steps but the weights. torch's Muon orthogonalises in bfloat16, whose rounding keeps two copies apart longer
than its momentum does (89.8 steps; in float64 see M3 with a slow part of 0). Three minutes of one core.
Run: .venv/bin/python experiments/horizon.py
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nested.optim import AssociativeAdam, DeepMomentum, DeltaMomentum, Muon, PreconditionedMomentum
from nested.optim.horizon import crossing, influence
from nested.optim.m3 import M3

STEPS, WARM_UP, SEEDS = 1000, 500, range(5)


def optimizers() -> dict[str, dict[str, Callable[..., Any]]]:
    """Panel -> name -> maker."""
    return {
        "torch": {
            "SGD": partial(torch.optim.SGD, lr=0.1),
            "SGD, momentum 0.9": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
            "Adam": partial(torch.optim.Adam, lr=0.1),
            "Muon, momentum 0.95 (bfloat16)": partial(Muon, lr=0.1),
        },
        "Delta Momentum": {
            "vector, beta 0.5": partial(DeltaMomentum, beta=0.5),
            "vector, beta 1": partial(DeltaMomentum),
            "matrix, beta 1": partial(DeltaMomentum, shape="matrix"),
            "printed, matrix, beta 1 / 50": partial(DeltaMomentum, form="printed", shape="matrix", beta=0.02),
        },
        "preconditioned and feature-map momentum": {
            "identity": partial(PreconditionedMomentum, precondition="identity"),
            "diagonal": partial(PreconditionedMomentum),
            "left": partial(PreconditionedMomentum, precondition="left"),
            "sign": partial(PreconditionedMomentum, precondition="identity", feature_map="sign"),
            "tanh": partial(PreconditionedMomentum, precondition="identity", feature_map="tanh"),
            "unit": partial(PreconditionedMomentum, precondition="identity", feature_map="unit"),
        },
        "deep momentum": {
            "linear, dot, identity": partial(DeepMomentum, memory="linear", objective="dot", output="identity"),
            "linear, l2, unit": partial(DeepMomentum, memory="linear"),
            "mlp, dot, unit": partial(DeepMomentum, objective="dot"),
            "mlp, l2, unit": partial(DeepMomentum),
            "mlp, l2, newton_schulz": partial(DeepMomentum, output="newton_schulz"),
        },
        "Adam as an associative memory": {
            "averages, diagonal": partial(AssociativeAdam),
            "averages, left": partial(AssociativeAdam, form="left"),
            "sums, diagonal (printed)": partial(AssociativeAdam, accumulate="sums"),
            "sums, left (printed)": partial(AssociativeAdam, accumulate="sums", form="left"),
            "AdaGrad": partial(AssociativeAdam, accumulate="sums", momentum=False),
        },
        "M3": {
            "slow part weighs 0": partial(M3, alpha=0.0),
            "slow part every 10 steps": partial(M3),
            "divided by the deviation": partial(M3, divide=True),
            "literal": partial(M3, form="literal"),
        },
    }  # fmt: skip


def measure(panel: str, name: str, make: Callable[..., Any]) -> dict[str, Any]:
    curves = torch.stack([influence(make, STEPS, WARM_UP, seed=seed) for seed in SEEDS])  # (seeds, steps + 1)
    found = sorted((crossing(curve) for curve in curves), key=lambda steps: STEPS + 1 if steps is None else steps)
    return {
        "panel": panel, "optimizer": name, "horizon": found[len(found) // 2], "lowest": found[0], "highest": found[-1],
        "influence": [float(f"{v:.3g}") for v in curves.median(dim=0).values.tolist()],
    }  # fmt: skip


def words(steps: float | None) -> str:
    return "forever" if steps is None else f"{steps:.1f}"


def figure(rows: list[dict[str, Any]], out: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(row["panel"] for row in rows))
    drawing = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(drawing)
    grid = drawing.subplots(2, 3, sharex=True, sharey=True)
    for axes, panel in zip(grid.flat, panels):
        for row in (r for r in rows if r["panel"] == panel):
            steps = [n + 1 for n in range(len(row["influence"]))]
            axes.loglog(
                steps,
                [max(v, 1e-5) for v in row["influence"]],
                label=f"{row['optimizer']}: {words(row['horizon'])}",
                lw=1.3,
            )
        axes.axhline(0.01, color="black", lw=0.8, ls="--")
        axes.set(title=panel, ylim=(1e-4, 4), xlim=(1, STEPS + 1))
        axes.legend(fontsize=8, loc="lower left")
        axes.grid(alpha=0.3)
    for axes in grid[1]:
        axes.set_xlabel("steps since the planted gradient, plus 1")
    for axes in grid[:, 0]:
        axes.set_ylabel("influence on the update, of that at once")
    drawing.suptitle("Steps until a planted gradient moves the weights by less than one percent (dashed)")
    drawing.savefig(out, dpi=130)


def main() -> None:
    torch.set_num_threads(1)
    rows, begun = [], time.perf_counter()
    for panel, makers in optimizers().items():
        for name, make in makers.items():
            rows.append(measure(panel, name, make))
            said, lowest, highest = (words(rows[-1][k]) for k in ("horizon", "lowest", "highest"))
            print(f"{panel:40} {name:34} {said:>8} ({lowest} to {highest})", flush=True)
    Path("reports/horizon.json").write_text(json.dumps(rows) + "\n")
    figure(rows, Path("reports/horizon.png"))
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
