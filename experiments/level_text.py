"""Slow levels on a text whose subject changes: what a small language model loses, and what it gains by reading.

Five packages of the standard library, one after the other (a directory of texts of your own: --data DIR, one folder =
one subject). A byte-level causal Hope-Attention, two blocks of width 48, 3 levels; bits per byte on files that were not
trained on, after each subject. Lower is better, so forgetting is a rise. Arms: an ordinary network; levels every 4, 16
and 64 steps; the same drift at every step; levels that never learn; an average of the weights (EMA, decay 1 - 1/64);
Lookahead 16; uniform replay of as many bytes as the gradients that the levels gather (as many old sequences as new ones
at each step, so twice the FLOPs); and a level on the token clock (fast weights every 16 bytes read, inner rate 0.1),
alone and with the slow levels. Each arm's rate is that of its best final loss on one order of subjects, which is not
judged; then five orders, paired; the ordinary network, the levels and the same drift at every rate, so that forgetting
is compared at equal learning loss too. After the last subject the first is learned again for 32 steps (recovery).

Budget: two hours of one core; resumed cell by cell from reports/level_text.jsonl. Figure: reports/level_text.png.
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
RATES, TUNING, ORDERS = [1e-3, 3e-3, 1e-2], 0, range(1, 6)
RELEARN = [0, 8, 32]  # steps on the first subject after the last
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
REPLAY = "replay, equal bytes"
NAMES = (*ARMS, *AVERAGES, REPLAY)
FINE = ("ordinary", "levels", "same drift")  # at every rate
METRICS = ("acc", "forgetting", "learning_acc")
Cell = tuple[str, float, int]


def one(cell: Cell, data: str | None) -> dict[str, Any]:
    """Train on every subject in the order of this seed, then on the first again."""
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
    old = Replayed(capacity(model) if arm == REPLAY else 0, draw)
    matrix = [bits(model, average, [windows[i] for i in order])]

    def learn(position: int) -> None:
        loss(model, old.beside(sample(texts[position][0], BATCH, draw))).backward()
        optimizer.step()
        average.step()

    for position in order:
        optimizer.start_experience(STEPS, STEPS * len(texts))
        for _ in range(STEPS):
            learn(position)
        optimizer.end_experience()
        old.keep()
        matrix.append(bits(model, average, [windows[i] for i in order]))
    optimizer.start_experience(RELEARN[-1], STEPS * len(texts) + RELEARN[-1])
    recovery = []
    for step in range(RELEARN[-1] + 1):
        if step in RELEARN:
            recovery += bits(model, average, [windows[order[0]]])
        if step < RELEARN[-1]:
            learn(order[0])
    values = metrics.summarise(np.array(matrix[1:]), np.array(matrix[0]), lower_is_better=True)
    found = {"arm": arm, "rate": rate, "seed": seed, "seconds": time.perf_counter() - begun}
    return {**found, **{k: values[k] for k in METRICS}, "recovery": recovery, "matrix": matrix}


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


def bits(model: Any, average: Average, windows: list[Any]) -> list[float]:
    """Bits per byte on each of these, with the model's weights (an average's, where there is one)."""
    import torch

    kept = [p.detach().clone() for p in average.params]
    with torch.no_grad():
        for p, held in zip(average.params, average.held):
            p.copy_(held)
        found = [loss(model, w).item() / np.log(2) for w in windows]
        for p, was in zip(average.params, kept):
            p.copy_(was)
    return found


class Replayed:
    """Sequences of earlier subjects, kept uniformly, of which as many stand beside each batch as it has."""

    def __init__(self, capacity: int, draw: Any):
        from nested.methods.sample_memory import Reservoir

        self.memory, self.draw = Reservoir(capacity), draw
        self.seen: list[Any] = []
        self.kept: list[int] = []

    def beside(self, batch: Any) -> Any:
        import torch

        if not self.memory.capacity:
            return batch
        self.seen += batch
        if not self.kept:
            return batch
        drawn = torch.randperm(len(self.kept), generator=self.draw)[: len(batch)]
        return torch.cat([batch, torch.stack([self.seen[self.kept[i]] for i in drawn])])

    def keep(self) -> None:
        """At the end of a subject: offer what was read since the last."""
        import torch

        if self.memory.capacity:
            new = torch.arange(self.memory.offered, len(self.seen))
            self.memory.offer(new, new, self.draw)
            self.kept = self.memory.kept().tolist()


def capacity(model: Any) -> int:
    """Sequences of bytes that take the memory of the float32 gradients which the slow levels gather."""
    slow = sum(p.numel() for name, p in model.named_parameters() if ".continuum." in name)
    return 4 * slow // (LENGTH + 1)


def main(data: str | None, workers: int) -> None:
    def rows_of(cells: list[Cell]) -> list[dict[str, Any]]:
        return compute(OUT, cells, partial(one, data=data), ("arm", "rate", "seed"), spoken, workers)

    tuning = rows_of([(arm, rate, TUNING) for rate in RATES for arm in NAMES])
    best = {arm: min((r for r in tuning if r["arm"] == arm), key=lambda r: r["acc"])["rate"] for arm in NAMES}
    rows = rows_of([(arm, best[arm], seed) for seed in ORDERS for arm in NAMES])
    rows += rows_of([(arm, x, seed) for seed in ORDERS for arm in FINE for x in RATES if x != best[arm]])
    table(rows, best)
    save_png(figure(rows, best), OUT.with_suffix(".png"))


def spoken(row: dict[str, Any]) -> str:
    values = ", ".join(f"{k} {row[k]:.3f}" for k in METRICS)
    return f"{row['arm']} {row['rate']:g} seed {row['seed']}: {values}, {row['seconds']:.0f} s"


def of(rows: list[dict[str, Any]], arm: str, rate: float) -> list[dict[str, Any]]:
    return [r for r in rows if r["arm"] == arm and r["rate"] == rate]


def at_equal_learning(rows: list[dict[str, Any]], arm: str, rate: float, other: str) -> list[float]:
    """Order by order, forgetting of an arm minus that of `other` where its learning loss is the same.

    Between the rates of `other` its forgetting is interpolated; beyond them that of the nearest is taken.
    """
    found = []
    for row in of(rows, arm, rate):
        points = sorted(
            (r["learning_acc"], r["forgetting"]) for r in rows if r["arm"] == other and r["seed"] == row["seed"]
        )
        learned, lost = (np.array(values) for values in zip(*points))
        found.append(row["forgetting"] - float(np.interp(row["learning_acc"], learned, lost)))
    return found


def table(rows: list[dict[str, Any]], best: dict[str, float]) -> None:
    """Markdown: each arm at its best rate, and its forgetting minus that of two others at equal learning loss."""
    from nested.metrics import interval

    print("| arm | rate | learning loss | final loss | forgetting | minus ordinary | minus same drift | recovery |")
    print("|---|---|---|---|---|---|---|---|")
    for arm, rate in best.items():
        at = of(rows, arm, rate)
        cells = [f"{np.mean([r[k] for r in at]):.3f}" for k in ("learning_acc", "acc", "forgetting")]
        for other in ("ordinary", "same drift"):
            mean, half = (np.nan if v is None else v for v in interval(at_equal_learning(rows, arm, rate, other)))
            cells.append("" if other == arm else f"{mean:+.3f} +- {half:.3f}")
        cells.append(", ".join(f"{x:.2f}" for x in np.mean([r["recovery"] for r in at], 0)))
        print(f"| {arm} | {rate:g} | {' | '.join(cells)} |")


@drawn
def figure(rows: list[dict[str, Any]], best: dict[str, float]) -> Any:
    """Forgetting against learning loss, a line through the rates of an arm; and differences at equal learning loss."""
    from matplotlib.figure import Figure

    from nested.metrics import interval

    shown = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = shown.subplots(1, 2)
    for slot, arm in enumerate(NAMES):
        rates = RATES if arm in FINE else [best[arm]]
        means = [[np.mean([r[k] for r in of(rows, arm, x)]) for x in rates] for k in METRICS]
        style: dict[str, Any] = {"color": colour(slot), "marker": marker(slot), "markersize": 7, "label": arm}
        style |= {"mfc": "white"} if arm == REPLAY else {}  # there are fewer colours than arms
        left.plot(means[2], means[1], **style)
        if arm != "ordinary":
            mean, half = interval(at_equal_learning(rows, arm, best[arm], "ordinary"))
            right.errorbar(mean, slot, xerr=half, capsize=3, linestyle="none", **{**style, "label": None})
    left.set_xlabel("learning loss, bits per byte (left is better)")
    left.set_ylabel("forgetting, bits per byte (down is better)")
    right.axvline(0, color=MUTED, linewidth=0.8)
    right.set_yticks(range(1, len(NAMES)), NAMES[1:])
    right.invert_yaxis()
    right.set_xlabel("forgetting minus the ordinary network's\nat equal learning loss, paired, 95 percent intervals")
    shown.legend(loc="outside lower center", ncols=5)
    return shown


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="directory of texts, a folder for each subject")
    parser.add_argument("workers", nargs="?", type=int, default=2)
    given = parser.parse_args()
    main(given.data, given.workers)
