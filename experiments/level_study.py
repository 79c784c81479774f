"""Do slow levels keep what a network learns? Levels, periods and rates against every control we know, orders paired.

Hope-Attention (two blocks, each a chain of L levels) on split and permuted digits, class, task and domain scenario, and
on MNIST from a data directory. Three steps, each resumed cell by cell from reports/level_study/:
1. rate: the base rate of an ordinary network, on validation data of tuning orders;
2. sweep: levels L x shortest period p x rate of the levels, on the same; level l learns every p 4^l steps;
3. contest: the best cell of the sweep with a period above 1 against the controls, on ten fresh orders and test data, at
   three to five rates (a quarter to four times the base rate), so that forgetting is compared at equal learning
   accuracy. MNIST takes the levels that were best on digits, and has three rates for the levels, the same drift and the
   ordinary network, one for the other controls.

Controls: every level at period 1 with the same drift (rate / period); the levels as one, at equal updates; an ordinary
network (period 1, equal FLOPs); levels that never learn; levels frozen after the first experience; averages of the
weights (EMA) at each period; Lookahead; class means and least squares on the same features; uniform replay at equal
bytes. Least squares on fixed random features stands for a level with an objective of its own. After the last experience
the first is learned again for 32 steps: "knowledge can partially be recovered when it is forgotten" (the paper's
section 3.4).

Expected, written before the contest was run: levels minus same drift is within 0.05 in forgetting, at equal learning
accuracy, in every scenario; only replay and least squares on fixed features forget at least 0.1 less than the ordinary
network in the class scenario.

Budget: two hours of two cores. Run: .venv/bin/python experiments/level_study.py [--data DIR] [WORKERS]
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import compute

from nested.learner import Learner
from nested.methods.method import Method
from nested.plan import order

FOLDER = Path("reports/level_study")
TUNING, ORDERS = [100, 101, 102], list(range(10))
RATES = [3e-4, 1e-3, 3e-3, 1e-2]
FACTORS = [0.25, 0.5, 1.0, 2.0, 4.0]
FINE = ("levels", "same drift", "ordinary")  # arms that are run at more rates than the others
LEVELS, PERIODS, SCALES, RATIO = [1, 2, 3], [1, 4, 16], [0.25, 1.0, 4.0], 4
RELEARN = [0, 1, 2, 4, 8, 16, 32]  # steps on the first experience after the last
COMMON = [
    "optim=adamw", "tracking=off", "trainer.progress=false", "trainer.threads=1",
    "trainer.allow_idle=true", "checkpoint.every_seconds=1000",
]  # fmt: skip
STREAMS = {
    "digits": ["trainer.batch_size=16", "trainer.epochs=5"],
    "mnist": ["trainer.batch_size=16", "trainer.epochs=1"],
}
SCENARIOS = {
    "class": ["stream=split_{}", "stream.scenario=class"],
    "task": ["stream=split_{}", "stream.scenario=task"],
    "domain": ["stream=split_{}", "stream.scenario=domain"],
    "permuted": ["stream=permuted_{}", "stream.n_experiences=5"],
}
MODEL = {"digits": ["model=hope_attention", "model.patch=4"], "mnist": ["model=hope_attention", "model.patch=7"]}
RANDOM = ["model=random_features", "levels=single"]
FASTEST = "fast: {params: rest, period_steps: 1}"
Cell = dict[str, Any]


# -- arms: what differs from an ordinary network ---------------------------------------------------------------------


def levels(n: int, period: int, scale: float, same_drift: bool = False) -> list[str]:
    """n levels of the continuum, level l every period 4^l steps; or at every step with the same drift."""
    parts = [FASTEST]
    for level in range(n):
        every = period * RATIO**level
        step, rate = (1, scale / every) if same_drift else (every, scale)
        parts.append(f"l{level}: {{params: ['*.continuum.{level}.*'], period_steps: {step}, lr_scale: {rate}}}")
    return [f"model.n_levels={n}", f"levels={{{', '.join(parts)}}}"]


def as_one(n: int, period: int, scale: float, **optim: Any) -> list[str]:
    """The continuum as one level."""
    rule = f", optim: {json.dumps(optim).replace(chr(34), '')}" if optim else ""
    one = f"slow: {{params: ['*.continuum.*'], period_steps: {period}, lr_scale: {scale}{rule}}}"
    return [f"model.n_levels={n}", f"levels={{{FASTEST}, {one}}}"]


def periods(n: int, period: int) -> list[int]:
    return [period * RATIO**level for level in range(n)]


def arms(best: Cell, replay_capacity: int) -> dict[str, list[str]]:
    """Name -> overrides. The levels share out one MLP almost evenly: equal updates is the harmonic mean of periods."""
    n, period, scale = best["levels"], best["period"], best["scale"]
    every = periods(n, period)
    ordinary = [f"model.n_levels={n}", "levels=single"]
    never = {"_target_": "torch.optim.SGD", "lr": 0.0}
    head = ["method=associative_head", "method.features=learned"]
    return {
        "levels": levels(n, period, scale),
        "same drift": levels(n, period, scale, same_drift=True),
        "one level, equal updates": as_one(n, max(1, round(n / sum(1 / p for p in every))), scale),
        "ordinary": ordinary,
        "levels never learn": as_one(n, 1, 1.0, **never),
        "levels frozen after the first": [*ordinary, "method={_target_: level_study.FrozenAfterFirst}"],
        "EMA": [*ordinary, "method=ema", f"method.periods={[p for p in every if p > 1]}"],
        **{f"Lookahead {k}": [*ordinary, "method=lookahead", f"method.k={k}"] for k in {max(2, every[0]), every[-1]}},
        "class means": [*ordinary, *head, "method.rule=class_means"],
        "least squares": [*ordinary, *head, "method.rule=least_squares"],
        "least squares, random features": [*head, *RANDOM, "method.rule=least_squares"],
        "replay, equal bytes": [*ordinary, "method=replay", f"method.capacity={replay_capacity}"],
    }


class FrozenAfterFirst(Method):
    """Parameters of the continuum learn in the first experience alone."""

    def __init__(self) -> None:
        self.frozen = False

    def after_experience(self, learner: Any, experience: Any) -> None:
        self.frozen = True

    def after_backward(self, learner: Any) -> None:
        if self.frozen:
            for name, p in learner.model.named_parameters():
                if ".continuum." in name:
                    p.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"frozen": self.frozen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.frozen = state["frozen"]


# -- one cell ----------------------------------------------------------------------------------------------------------


def one(cell: Cell) -> list[Cell]:
    """Run one cell; a row for each view of the weights that the method has, the last being the model itself."""
    from nested import cost, metrics
    from nested.config import compose
    from nested.errors import Diverged
    from nested.loop import Loop
    from nested.run import prepare
    from nested.rundir import SeedDir

    config = compose([*cell["overrides"], f"seed={cell['seed']}"])
    torch.set_num_threads(1)
    about = {k: v for k, v in cell.items() if k != "overrides"}
    with tempfile.TemporaryDirectory() as folder:  # the loop of `nested run`, without its page
        learner = prepare(config, cell["seed"])
        loop = Loop(learner, config, SeedDir.open(Path(folder) / "seed", {}), cell["seed"])
        try:
            loop.run()
        except Diverged as error:
            return [about | {"status": f"diverged: {error}"}]
    batch = learner.fetch(learner.examples, torch.arange(config.trainer.batch_size))
    about |= {
        "status": "done", "flops": cost.step_flops(learner, batch) // len(batch.y) * learner.cursor.examples,
        "parameter_updates": sum(lv["parameters"] * lv["updates"] for lv in cost.levels_table(learner)),
        "train_seconds": loop.seconds["train"],
    }  # fmt: skip
    rows = []
    for view, parts in loop.matrices.items():
        scores = parts[loop.judged].compute().numpy()
        values = metrics.summarise(scores[1:], scores[0], lower_is_better=False)
        rows.append({**about, "view": view, **{k: values[k] for k in ("acc", "forgetting", "learning_acc")}})
    if cell["step"] == "contest":
        rows[-1]["recovery"] = recovery(learner, cell["seed"], config.trainer.batch_size)
    return rows


def recovery(learner: Learner, seed: int, batch_size: int) -> list[float]:
    """Accuracy on the first experience after each of `RELEARN` further steps on it, from where the run ended."""
    first = learner.stream.experiences[0]
    learner.examples, learner.cursor.experience = first.train, len(learner.stream.experiences) - 1
    learner.optimizer.start_experience(RELEARN[-1], learner.step + RELEARN[-1])
    batches = itertools.cycle(order(seed, 0, 1000, len(first.train)).split(batch_size))
    found = []
    for step in range(RELEARN[-1] + 1):
        if step in RELEARN:
            right, total = learner.evaluate(first.test, 512)
            found.append(right / total)
        learner.learn(next(batches))
    return found


# -- the three steps ---------------------------------------------------------------------------------------------------


def cell(step: str, data: str, scenario: str, arm: str, seed: int, rate: float, extra: list[str], **about: Any) -> Cell:
    part = "test" if step == "contest" else "validation"
    streams = [o.format(data) for o in SCENARIOS[scenario]]
    model = [] if RANDOM[0] in extra else MODEL[data]
    overrides = [*COMMON, *STREAMS[data], *streams, *model, f"optim.lr={rate:g}", f"evaluate.parts=[{part}]", *extra]
    return {
        "step": step, "data": data, "scenario": scenario, "arm": arm, "seed": seed, "rate": rate, **about,
        "overrides": overrides,
    }  # fmt: skip


def rate_cells(data: str, scenario: str) -> list[Cell]:
    plain = ["model.n_levels=1", "levels=single"]
    return [cell("rate", data, scenario, "ordinary", s, r, plain) for r in RATES for s in TUNING]


def sweep_cells(data: str, scenario: str, rate: float) -> list[Cell]:
    return [
        cell("sweep", data, scenario, "levels", s, rate, levels(n, p, scale), levels=n, period=p, scale=scale)
        for n, p, scale in itertools.product(LEVELS, PERIODS, SCALES)
        for s in TUNING
    ]


def contest_cells(data: str, scenario: str, rate: float, best: Cell) -> list[Cell]:
    capacity = replay_capacity(data, best)
    return [
        cell("contest", data, scenario, arm, s, rate * f, extra, factor=f)
        for s in ORDERS
        for arm, extra in arms(best, capacity).items()
        for f in factors(data, arm)
    ]


def factors(data: str, arm: str) -> list[float]:
    """What the base rate is multiplied by; on MNIST only the levels and their two closest controls have several."""
    fine = arm in FINE
    if data == "mnist":
        return FACTORS[::2] if fine else [1.0]
    return FACTORS if fine else FACTORS[::2]


def replay_capacity(data: str, best: Cell) -> int:
    """Samples (uint8 pixels and a label) that take the bytes of the gradients which slow levels gather."""
    from nested.layers.continuum import hidden_widths
    from nested.layers.feedforward import feedforward_parameters

    width, hidden, depth = 48, 96, 2
    slow = [
        feedforward_parameters(width, units)
        for units, p in zip(hidden_widths(width, hidden, best["levels"]), periods(best["levels"], best["period"]))
        if p > 1
    ]
    pixels = 64 if data == "digits" else 784
    return max(1, 4 * depth * sum(slow) // (pixels + 8))


def chosen_rate(rows: list[Cell]) -> float:
    return max(RATES, key=lambda r: np.mean([row["acc"] for row in rows if row["rate"] == r and "acc" in row] or [0]))


def chosen_levels(rows: list[Cell]) -> Cell:
    """The cell of the sweep with the best mean accuracy among those with a period above 1."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if "acc" in row and (row["period"] > 1 or row["levels"] > 1):
            groups.setdefault((row["levels"], row["period"], row["scale"]), []).append(row["acc"])
    best = max(groups, key=lambda g: float(np.mean(groups[g])))
    return dict(zip(("levels", "period", "scale"), best))


KEY = ("step", "data", "scenario", "arm", "seed", "rate", "levels", "period", "scale")


def rows_of(cells: list[Cell], workers: int) -> list[Cell]:
    """The rows of these cells, which are of one step of a scenario."""
    print("{data} {scenario} {step}".format(**cells[0]), flush=True)
    return compute(FOLDER / f"{cells[0]['data']}.jsonl", cells, one, KEY, spoken, workers)


def spoken(row: Cell) -> str:
    about = f"{row['arm']}, seed {row['seed']}, rate {row['rate']:g}"
    if "acc" not in row:
        return f"{about}: {row['status']}"
    values = ", ".join(f"{k} {row[k]:.3f}" for k in ("acc", "forgetting", "learning_acc"))
    return f"{about}, {row['view']}: {values}"


def main(data: str | None, workers: int) -> None:
    if data:
        COMMON.append(f"data.root={data}")
    best: dict[str, Cell] = {}
    names: list[str] = ["digits", "mnist"] if data else ["digits"]
    for name, scenario in itertools.product(names, SCENARIOS):
        rate = chosen_rate(rows_of(rate_cells(name, scenario), workers))
        if name == "digits":
            best[scenario] = chosen_levels(rows_of(sweep_cells(name, scenario, rate), workers))
        print(f"{name} {scenario}: rate {rate:g}, levels {best[scenario]}", flush=True)
        rows_of(contest_cells(name, scenario, rate, best[scenario]), workers)
    from level_study_results import conclude

    for name in names:
        conclude(name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="directory with MNIST; without it digits alone are run")
    parser.add_argument("workers", nargs="?", type=int, default=2)
    given = parser.parse_args()
    main(given.data, given.workers)
