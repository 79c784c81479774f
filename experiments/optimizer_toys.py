"""The optimizer toys of the paper: orthogonal tasks (Eq. 45) and a curved valley (Eq. 53), every optimizer tuned alike.

Orthogonal tasks: four tasks of 20 steps each, one after another, gradients of different tasks orthogonal. Each
optimizer takes the rate, of one grid, at which the mean loss of all four tasks at the very end is lowest. "Held" is how
long an update is along the old task's gradients, 1, 5 and 20 steps into the next task, of the longest one that the old
task itself made; "moved" is what all updates of the next task add there, of what was learned of the old task. Five
seeds: the median.

Valley: 300 steps from (-3.5, 2); the rate of the grid at which the sum of the logarithms of the losses along the way
is lowest, and how many steps it takes until the loss is below 0.01 for good. The paper gives no constants: those of
`nested.toys`, and then others for momentum and Delta Momentum. The two coordinates are one vector, so Delta
Momentum's matrix form is the vector form there. An optimizer that diverges at every rate is said to.
Three minutes of one core.
Run: .venv/bin/python experiments/optimizer_toys.py
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nested.optim import AssociativeAdam, DeepMomentum, DeltaMomentum, PreconditionedMomentum
from nested.toys import START, OrthogonalTasks, orthogonal_tasks, valley

Make = Callable[..., torch.optim.Optimizer]
RATES = [10 ** (e / 3) for e in range(-12, 4)]  # 1e-4 to 10
OTHERS = [(k, alpha, omega) for k in (1.0, 10.0, 100.0) for alpha, omega in ((1.0, 2.0), (0.5, 4.0), (2.0, 1.0))]
TASKS, PER_TASK, SEEDS, STEPS = 4, 20, range(5), 300
OPTIMIZERS: dict[str, Make] = {
    "gradient descent": torch.optim.SGD,
    "SGD, momentum 0.9": partial(torch.optim.SGD, momentum=0.9),
    "Delta Momentum, vector": DeltaMomentum,
    "Delta Momentum, matrix": partial(DeltaMomentum, shape="matrix"),
    "Delta Momentum, vector, beta 0.5": partial(DeltaMomentum, beta=0.5),
    "Delta Momentum, printed, vector": partial(DeltaMomentum, form="printed"),
    "Delta Momentum, printed, matrix": partial(DeltaMomentum, form="printed", shape="matrix"),
    "preconditioned, diagonal": PreconditionedMomentum,
    "preconditioned, left": partial(PreconditionedMomentum, precondition="left"),
    "feature map tanh": partial(PreconditionedMomentum, precondition="identity", feature_map="tanh"),
    "feature map unit": partial(PreconditionedMomentum, precondition="identity", feature_map="unit"),
    "deep momentum, linear, dot": partial(DeepMomentum, memory="linear", objective="dot", output="identity"),
    "deep momentum, mlp, l2": DeepMomentum,
    "Adam": torch.optim.Adam,
    "Adam as printed (sums)": partial(AssociativeAdam, accumulate="sums", betas=(1.0, 1.0)),
}
DRAWN = (
    "SGD, momentum 0.9", "Delta Momentum, vector", "Delta Momentum, matrix", "preconditioned, diagonal",
    "deep momentum, mlp, l2", "Adam",
)  # fmt: skip


# -- orthogonal tasks --------------------------------------------------------------------------------------------------


def learn(tasks: OrthogonalTasks, make: Make, rate: float) -> tuple[Tensor, Tensor]:
    """Losses of every task and updates projected on every task's input: (steps + 1, K), (steps, K, O)."""
    w = torch.zeros(tasks.inputs.shape[1], tasks.targets.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = make([w], lr=rate)
    losses, updates = [], []
    for step in range(TASKS * PER_TASK + 1):
        with torch.no_grad():
            losses.append(torch.stack([tasks.loss(w, i) for i in range(TASKS)]))
        if step == TASKS * PER_TASK:
            break
        optimizer.zero_grad()
        tasks.loss(w, step // PER_TASK).backward()
        before = w.detach().clone()
        optimizer.step()
        updates.append(tasks.inputs @ (w.detach() - before))
    return torch.stack(losses), torch.stack(updates)


def at_the_end(losses: Tensor) -> float:
    """Mean loss of all tasks."""
    return losses[-1].mean().item()


def learned(losses: Tensor) -> float:
    """Mean loss of each task right after its own steps."""
    return statistics.fmean(losses[(i + 1) * PER_TASK, i].item() for i in range(TASKS))


def held(updates: Tensor, after: int) -> float:
    """Length of the update along the old task, `after` steps into the next, of the old task's own longest."""
    return statistics.median(
        (updates[border + after - 1, i].norm() / updates[border - PER_TASK : border, i].norm(dim=1).max()).item()
        for i, border in enumerate(range(PER_TASK, TASKS * PER_TASK, PER_TASK))
    )


def moved(updates: Tensor) -> float:
    """Along the old task: what the next task's updates add, of what the old task's own did."""
    shares = []
    for i, border in enumerate(range(PER_TASK, TASKS * PER_TASK, PER_TASK)):
        own = updates[border - PER_TASK : border, i].sum(0).norm()
        shares.append((updates[border : border + PER_TASK, i].sum(0).norm() / own).item())
    return statistics.median(shares)


def orthogonal(name: str) -> dict[str, Any]:
    all_tasks = [orthogonal_tasks(TASKS, seed=seed) for seed in SEEDS]
    scores = {}
    for rate in RATES:
        found = [at_the_end(learn(tasks, OPTIMIZERS[name], rate)[0]) for tasks in all_tasks]
        scores[rate] = statistics.fmean(found) if all(map(math.isfinite, found)) else math.inf
    rate = min(scores, key=lambda r: scores[r])
    if not math.isfinite(scores[rate]):
        return {"optimizer": name, "rate": None}
    runs = [learn(tasks, OPTIMIZERS[name], rate) for tasks in all_tasks]
    return {
        "optimizer": name, "rate": rate,
        "learned": statistics.median(learned(losses) for losses, _ in runs),
        "at_the_end": statistics.median(at_the_end(losses) for losses, _ in runs),
        "old_tasks": statistics.median(losses[-1, :-1].mean().item() for losses, _ in runs),
        **{f"held_{n}": statistics.median(held(updates, n) for _, updates in runs) for n in (1, 5, 20)},
        "moved": statistics.median(moved(updates) for _, updates in runs),
        "first_task": torch.stack([losses[:, 0] for losses, _ in runs]).median(0).values.tolist(),
        "along_first": torch.stack([updates[:, 0].norm(dim=1) for _, updates in runs]).median(0).values.tolist(),
    }  # fmt: skip


# -- valley ------------------------------------------------------------------------------------------------------------


def descend(make: Make, rate: float, constants: tuple[float, ...] = ()) -> tuple[Tensor, Tensor]:
    """Points and losses along the way, (steps + 1, 2) and (steps + 1,)."""
    point = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer, points, losses = make([point], lr=rate), [], []
    for _ in range(STEPS + 1):
        optimizer.zero_grad()
        loss = valley(point, *constants)
        loss.backward()
        points.append(point.detach().clone())
        losses.append(loss.detach())
        if not loss.isfinite():
            break
        optimizer.step()
    return torch.stack(points), torch.stack(losses)


def below(losses: Tensor, bound: float = 0.01) -> int | None:
    """The step from which on the loss stays below the bound."""
    above = (losses >= bound).nonzero().flatten()
    first = int(above[-1]) + 1 if len(above) else 0
    return first if first < len(losses) else None


def curved(name: str, constants: tuple[float, ...] = ()) -> dict[str, Any]:
    scores = {}
    for rate in RATES:
        _, losses = descend(OPTIMIZERS[name], rate, constants)
        scores[rate] = losses.clamp_min(1e-6).log().sum().item() if losses.isfinite().all() else math.inf
    rate = min(scores, key=lambda r: scores[r])
    if not math.isfinite(scores[rate]):
        return {"optimizer": name, "rate": None, "constants": constants}
    points, losses = descend(OPTIMIZERS[name], rate, constants)
    return {
        "optimizer": name, "rate": rate, "constants": constants, "steps": below(losses),
        "last_loss": losses[-1].item(), "end": points[-1].tolist(), "losses": losses.tolist(),
        "points": points.tolist(),
    }  # fmt: skip


# -- what is drawn and said --------------------------------------------------------------------------------------------


def figure(tasks: list[dict[str, Any]], paths: list[dict[str, Any]], out: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(drawing)
    ((first, along), (floor, losses)) = drawing.subplots(2, 2)
    for row, path in ((r, p) for r, p in zip(tasks, paths) if r["optimizer"] in DRAWN and r["rate"] and p["rate"]):
        style = {"label": row["optimizer"], "ls": "--" if "matrix" in row["optimizer"] else "-"}  # the two often agree
        first.semilogy([max(v, 1e-12) for v in row["first_task"]], **style)
        along.semilogy([max(v, 1e-12) for v in row["along_first"]], **style)
        floor.plot(*zip(*path["points"]), lw=1.2, marker=".", ms=3, **style)
        losses.semilogy([max(v, 1e-8) for v in path["losses"]], **style)
    for axes in (first, along):
        for border in range(PER_TASK, TASKS * PER_TASK, PER_TASK):
            axes.axvline(border, color="black", lw=0.6, ls=":")
        axes.set_xlabel("step (a new task at each dotted line)")
    first.set(title="Orthogonal tasks: loss of the first task", ylim=(1e-8, 20))
    along.set(title="Orthogonal tasks: length of the update along the first task's gradient", ylim=(1e-8, 5))
    r, theta = torch.meshgrid(torch.linspace(-4.5, 1.5, 200), torch.linspace(-5, 3.5, 200), indexing="ij")
    floor.contourf(r, theta, valley(torch.stack([r, theta], -1)).log1p(), levels=20, cmap="Greys", alpha=0.6)
    floor.plot(*START, "k*", ms=10)
    floor.plot(0, 0, "kx", ms=8)
    floor.set(title="Valley: paths at the tuned rates", xlabel="r", ylabel="theta", xlim=(-4.5, 1.5), ylim=(-5, 3.5))
    losses.set(title="Valley: loss", xlabel="step", ylim=(1e-8, 1e3))
    losses.axhline(0.01, color="black", lw=0.8, ls="--")
    for axes in (first, losses):
        axes.legend(fontsize=8)
    drawing.savefig(out, dpi=120)


def said(row: dict[str, Any], **formats: str) -> str:
    """Numbers of a row as columns, or that it diverges."""
    if row["rate"] is None:
        return "diverges at every rate"
    return " ".join("never".rjust(7) if row[key] is None else format(row[key], spec) for key, spec in formats.items())


def main() -> None:
    torch.set_num_threads(1)
    begun = time.perf_counter()
    tasks, paths, others = [], [], []
    print("orthogonal tasks: rate, loss after its own steps, of old tasks at the end, held 1, 5, 20, moved")
    for name in OPTIMIZERS:
        tasks.append(orthogonal(name))
        held = {f"held_{n}": "8.2f" for n in (1, 5, 20)}
        print(
            f"{name:34}",
            said(tasks[-1], rate="7.2g", learned="8.1e", old_tasks="8.1e", **held, moved="8.2f"),
            flush=True,
        )
    print("valley: rate, steps until below 0.01, last loss")
    for name in OPTIMIZERS:
        paths.append(curved(name))
        print(f"{name:34}", said(paths[-1], rate="7.2g", steps="7d", last_loss="8.1e"), flush=True)
    print("valley, other constants (k, alpha, omega): steps until below 0.01, last loss")
    for constants in OTHERS:
        for name in ("SGD, momentum 0.9", "Delta Momentum, vector, beta 0.5", "Delta Momentum, vector"):
            others.append(curved(name, constants))
            print(f"{constants!s:20} {name:34}", said(others[-1], steps="7d", last_loss="8.1e"), flush=True)
    brief = [{k: v for k, v in row.items() if k not in ("losses", "points")} for row in others]
    found = {"orthogonal_tasks": tasks, "valley": paths, "valley_other_constants": brief}
    Path("reports/optimizer_toys.json").write_text(json.dumps(found) + "\n")
    figure(tasks, paths, Path("reports/optimizer_toys.png"))
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
