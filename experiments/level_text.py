"""Slow levels on a text whose subject changes: what a small language model loses, and what it gains by reading.

Five packages of the standard library, one after the other (a directory of texts of your own: --data DIR, one folder =
one subject). A byte-level causal Hope-Attention, two blocks of width 48, 3 levels; bits per byte on files that were not
trained on, after each subject. Lower is better, so forgetting is a rise. Arms: an ordinary network; levels every 4, 16
and 64 steps; the same drift at every step; levels that never learn; an average of the weights (EMA, decay 1 - 1/64);
Lookahead 16; and a level on the token clock (fast weights every 16 bytes read, inner rate 0.1), alone and with the slow
levels. Each arm at two rates, five orders of subjects, paired.

Budget: one hour of two cores; resumed cell by cell from reports/level_text.jsonl. Figure: reports/level_text.png.
Run: .venv/bin/python experiments/level_text.py [--data DIR] [WORKERS]
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cells import compute

from nested.report.drawing import MUTED, colour, drawn, marker
from nested.report.inline import save_png

OUT = Path("reports/level_text.jsonl")
SUBJECTS = ["asyncio", "email", "multiprocessing", "tkinter", "xml"]
RATES, ORDERS = [1e-3, 3e-3], range(5)
STEPS, BATCH, LENGTH, JUDGED = 200, 8, 128, 64
PERIODS = [4, 16, 64]
FAST = {"params": "rest", "period_steps": 1}
READING = {"reading": {"params": ["*.continuum.0.*"], "chunk_tokens": 16, "eta": 0.1, "gather": "mean"}}


def slow(same_drift: bool = False) -> dict[str, Any]:
    """The chain's level l every 4^(l + 1) steps, or at every step with the same drift."""
    return {
        f"l{i}": {"params": [f"*.continuum.{i}.*"], "period_steps": 1 if same_drift else p}
        | ({"lr_scale": 1 / p} if same_drift else {})
        for i, p in enumerate(PERIODS)
    }


def never() -> dict[str, Any]:
    return {
        "never": {"params": ["*.continuum.*"], "period_steps": 1, "optim": {"_target_": "torch.optim.SGD", "lr": 0.0}}
    }


ARMS: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "levels": slow(),
    "same drift": slow(same_drift=True),
    "levels never learn": never(),
    "reading": READING,
    "levels and reading": {**slow(), **READING},
}
AVERAGES = ("EMA 64", "Lookahead 16")  # of the ordinary network's weights, judged in their place
METRICS = ("acc", "forgetting", "learning_acc")
Cell = tuple[str, float, int]


def one(cell: Cell, data: str | None) -> list[dict[str, Any]]:
    """Train on every subject in the order of this seed; a row for each set of weights that is judged."""
    import torch

    from nested import metrics
    from nested.levels import LevelConfig, from_config, token_levels
    from nested.optim.leveled import leveled
    from nested.signature import build

    arm, rate, seed = cell
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    begun = time.perf_counter()
    texts = subjects(data)
    order = np.random.default_rng(seed).permutation(len(texts))
    levels = from_config({n: LevelConfig(**c) for n, c in {"fast": FAST, **ARMS.get(arm, {})}.items()})
    reads = token_levels(levels)
    model = build(
        {"_target_": "nested.models.hope.Hope", "memory": {"_target_": "nested.memory.attention.AttentionMemory"},
         "width": 48, "depth": 2, "heads": 4, "hidden": 192, "n_levels": 3,
         "inner_loss": "task" if reads else "next_token"},
        "model", sample_shape=(LENGTH,), n_outputs=256, vocabulary=256, per_position=True, token_levels=tuple(reads),
    )  # fmt: skip
    optimizer = leveled(levels, model, {"_target_": "torch.optim.AdamW", "lr": rate}, clip_norm=1.0)
    average = Average(model, arm)
    judged = [(t[1], torch.Generator().manual_seed(i)) for i, t in enumerate(texts)]
    windows = [sample(text, JUDGED, draw) for text, draw in judged]
    draw = torch.Generator().manual_seed(seed)
    rows: dict[str, list[list[float]]] = {}
    record(rows, model, average, [windows[i] for i in order])
    for position in order:
        optimizer.start_experience(STEPS, STEPS * len(texts))
        for _ in range(STEPS):
            loss(model, sample(texts[position][0], BATCH, draw)).backward()
            optimizer.step()
            average.step()
        optimizer.end_experience()
        record(rows, model, average, [windows[i] for i in order])
    found = []
    for name, matrix in rows.items():
        values = metrics.summarise(np.array(matrix[1:]), np.array(matrix[0]), lower_is_better=True)
        about = {"arm": name, "of": arm, "rate": rate, "seed": seed, "seconds": time.perf_counter() - begun}
        found.append({**about, **{k: values[k] for k in METRICS}, "matrix": matrix})
    return found


def subjects(data: str | None) -> list[tuple[Any, Any]]:
    """(bytes to train on, bytes to judge on) of each subject."""
    from nested.sequences import text

    found = text.folders(Path(data)) if data else {n: text.standard_library()[n] for n in SUBJECTS}
    return [text.parts(files) for files in found.values()]


def sample(text: Any, n: int, draw: Any) -> Any:
    from nested.sequences.text import windows

    return windows(text, LENGTH + 1, n, draw)


def loss(model: Any, tokens: Any) -> Any:
    """Mean cross entropy of the next byte, nats."""
    import torch.nn.functional as F

    return F.cross_entropy(model(tokens[:, :-1]).mT, tokens[:, 1:])


class Average:
    """A second set of weights beside the model's: an exponential average, or Lookahead's slow weights."""

    def __init__(self, model: Any, arm: str):
        self.params, self.arm, self.ticks = list(model.parameters()), arm, 0
        self.held = [p.detach().clone() for p in self.params] if arm in AVERAGES else []

    def step(self) -> None:
        import torch

        self.ticks += 1
        with torch.no_grad():
            for held, p in zip(self.held, self.params):
                if self.arm.startswith("EMA"):
                    held.lerp_(p, 1 / 64)
                elif self.ticks % 16 == 0:
                    held.lerp_(p, 0.5)
                    p.copy_(held)


def record(rows: dict[str, list[list[float]]], model: Any, average: Average, windows: list[Any]) -> None:
    """Bits per byte on every subject, with the model's weights (an average's, where there is one)."""
    import torch

    kept = [p.detach().clone() for p in average.params]
    with torch.no_grad():
        for p, held in zip(average.params, average.held):
            p.copy_(held)
        rows.setdefault(average.arm, []).append([loss(model, w).item() / np.log(2) for w in windows])
        for p, was in zip(average.params, kept):
            p.copy_(was)


def main(data: str | None, workers: int) -> None:
    cells = [(arm, rate, seed) for seed in ORDERS for rate in RATES for arm in (*ARMS, *AVERAGES)]
    rows = compute(OUT, cells, partial(one, data=data), ("of", "rate", "seed"), spoken, workers)
    table(rows)
    save_png(figure(rows), OUT.with_suffix(".png"))


def spoken(row: dict[str, Any]) -> str:
    values = ", ".join(f"{k} {row[k]:.3f}" for k in METRICS)
    return f"{row['arm']} {row['rate']:g} seed {row['seed']}: {values}, {row['seconds']:.0f} s"


def of(rows: list[dict[str, Any]], arm: str, rate: float) -> list[dict[str, Any]]:
    return [r for r in rows if r["arm"] == arm and r["rate"] == rate]


def paired(rows: list[dict[str, Any]], arm: str, rate: float) -> list[float]:
    """Forgetting of an arm minus that of the ordinary network at the same rate, order by order."""
    base = {r["seed"]: r["forgetting"] for r in of(rows, "ordinary", rate)}
    return [r["forgetting"] - base[r["seed"]] for r in of(rows, arm, rate) if r["seed"] in base]


def table(rows: list[dict[str, Any]]) -> None:
    """Each arm at its rate of the best final loss, and its paired difference to the ordinary network at that rate."""
    from nested.metrics import interval

    print("bits per byte at each arm's best rate; difference in forgetting to the ordinary network at the same rate")
    for arm in (*ARMS, *AVERAGES):
        rate = min(RATES, key=lambda x: np.mean([r["acc"] for r in of(rows, arm, x)] or [np.inf]))
        if at := of(rows, arm, rate):
            mean, half = (np.nan if v is None else v for v in interval(paired(rows, arm, rate)))
            values = "  ".join(f"{k} {np.mean([r[k] for r in at]):.3f}" for k in METRICS)
            print(f"{arm:20} rate {rate:g}  {values}   {mean:+.3f} +- {half:.3f}")


@drawn
def figure(rows: list[dict[str, Any]]) -> Any:
    """Forgetting against learning loss, a line through each arm's rates; and the arms' paired differences."""
    from matplotlib.figure import Figure

    from nested.metrics import interval

    shown = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = shown.subplots(1, 2)
    arms = (*ARMS, *AVERAGES)
    for slot, arm in enumerate(arms):
        means = [[np.mean([r[k] for r in of(rows, arm, x)] or [np.nan]) for x in RATES] for k in METRICS]
        left.plot(means[2], means[1], color=colour(slot))
        for i, rate in enumerate(RATES):
            style: dict[str, Any] = {"color": colour(slot), "marker": marker(slot), "mfc": ["white", colour(slot)][i]}
            left.plot(means[2][i], means[1][i], markersize=8, linestyle="none", label=arm if i else None, **style)
            mean, half = interval(paired(rows, arm, rate))
            if mean is not None and arm != "ordinary":
                right.errorbar(mean, slot - 0.15 + 0.3 * i, xerr=half, capsize=3, **style)
    left.set_xlabel(f"learning loss, bits per byte (left is better; hollow: rate {RATES[0]:g})")
    left.set_ylabel("forgetting, bits per byte (down is better)")
    right.axvline(0, color=MUTED, linewidth=0.8)
    right.set_yticks(range(1, len(arms)), arms[1:])
    right.invert_yaxis()
    right.set_xlabel("forgetting minus the ordinary network's, paired, 95 percent intervals")
    shown.legend(loc="outside lower center", ncols=4)
    return shown


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="directory of texts, a folder for each subject")
    parser.add_argument("workers", nargs="?", type=int, default=2)
    given = parser.parse_args()
    main(given.data, given.workers)
