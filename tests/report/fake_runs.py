"""Run directories as a run leaves them, made up: matrices from a small model of learning and forgetting.

Metrics are worked out here in plain loops, apart from the package, so that tests can hold pages against them.
"""

import itertools
import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

T_975 = {1: 12.706204736, 2: 4.302652730, 3: 3.182446305, 4: 2.776445105}  # Student t, 0.975, by degrees of freedom
NAMES = ("acc", "forgetting", "bwt", "fwt", "learning_acc", "gain", "min_acc", "wc_acc")
LEVELS = (
    {"name": "fast", "period": 1, "parameters": 9000, "updates": 800, "lr": 0.1},
    {"name": "mid", "period": 2, "parameters": 4000, "updates": 400, "lr": 0.1},
    {"name": "slow", "period": 8, "parameters": 4000, "updates": 100, "lr": 0.1},
)
COST = {"train_seconds": 10.0, "eval_seconds": 1.5, "anytime_seconds": 0.5, "steps": 800, "flops": 3_200_000_000,
        "parameter_updates": 9_200_000, "peak_rss_bytes": 512 * 2**20, "state_bytes": 300_000}  # fmt: skip


def counts(seed, n=5, learns=0.95, keeps=0.5, chance=0.1, total=90, joint=False, noise=0.03):
    """Right answers of `total`, (n + 1) rows of n: row 0 at chance, then learned at once and kept by share `keeps`."""
    rng = random.Random(f"{seed}-{learns}-{keeps}")

    def level(i, j):
        return learns if joint else chance if j > i else chance + (learns - chance) * keeps ** (i - j)

    def row(levels):
        return [min(total, max(0, round(total * (x + rng.gauss(0, noise))))) for x in levels]

    first, *others = row([chance] * n), *(row([level(i, j) for j in range(n)]) for i in range(n))
    return [first, *([others[0]] * n if joint else others)]


def metrics(rows, total, lower=False, joint=False):
    """The metrics of `rows` (row 0 before training) of sums over `total`, by their definitions."""
    sign = -1 if lower else 1
    r0, *r = [[x / total for x in row] for row in rows]
    n = len(r)
    out: dict[str, Any] = dict.fromkeys(NAMES)
    out |= {"acc": sum(r[-1]) / n, "learning_acc": sum(r[j][j] for j in range(n)) / n}
    if n > 1 and not joint:
        best = [max(sign * r[i][j] for i in range(n - 1)) for j in range(n - 1)]
        out["forgetting"] = sum(best[j] - sign * r[-1][j] for j in range(n - 1)) / (n - 1)
        out["bwt"] = sum(sign * (r[-1][j] - r[j][j]) for j in range(n - 1)) / (n - 1)
        out["fwt"] = sum(sign * (r[j - 1][j] - r0[j]) for j in range(1, n)) / (n - 1)
    return out


def mean_and_half_width(values):
    """The mean and the 95 percent half width; None where it cannot be given."""
    if not values or any(v is None for v in values):
        return None, None
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, T_975[len(values) - 1] * math.sqrt(variance / len(values))


@dataclass
class Fake:
    """What is asked of a made-up run; `shape` goes to `counts`, `rows` (seed -> sums) stands in for it."""

    root: Path
    name: str = "run"
    seeds: tuple[int, ...] = (0, 1, 2)
    n: int = 5
    rows: dict[int, list[list[float]]] = field(default_factory=dict)
    total: int = 90
    label: str | None = None
    stream: str = "split_digits"
    scenario: str = "class"
    lower: bool = False
    joint: bool = False
    statuses: tuple[str, ...] = ()  # done where absent
    result: bool = True
    views: tuple[str, ...] = ("model",)
    anytime: bool = False
    levels: tuple[dict[str, Any], ...] = LEVELS
    config: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    digest: str = "d1g3st"
    command: tuple[str, ...] = ("nested", "run")
    seconds: float = 12.0
    judged_on: str = "test"
    positions: list[list[int]] = field(default_factory=list)  # right ones of total, for every seed; none: no sequences
    shape: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        self.label = self.label or self.name
        self.names = self.names or [f"{2 * j} {2 * j + 1}" for j in range(self.n)]
        standard = {"model": "hope_attention", "method": "naive", "optim": "delta_momentum"}
        self.choices = {"stream": self.stream, **standard, **self.choices}
        self.config = {"stream._target_": f"nested.streams.{self.stream}", "stream.n_experiences": self.n,
                       "trainer.epochs": 10, "trainer.batch_size": 32, "optim.lr": 0.1,
                       "seeds": len(self.seeds), **self.config}  # fmt: skip

    @property
    def path(self):
        return Path(self.root) / self.name

    def status(self, seed):
        return dict(zip(self.seeds, self.statuses)).get(seed, "done")

    def sums(self, seed):
        """(n + 1, n) sums of a seed."""
        shape = {"n": self.n, "joint": self.joint, "total": self.total, **self.shape}
        return self.rows.get(seed) or counts(seed, **shape)

    def metrics(self, seed):
        """What the seed's metrics are, once it is done."""
        values = metrics(self.sums(seed), self.total, self.lower, self.joint)
        return values | ({"min_acc": 0.31, "wc_acc": 0.42} if self.anytime else {})


def fake_run(root, name="run", **wanted):
    """Write one run directory and return its path; the fields of `Fake` are what can be asked for."""
    shape = {k: wanted.pop(k) for k in ("learns", "keeps", "chance", "noise") if k in wanted}
    fake = Fake(root, name, shape=shape, **wanted)
    fake.path.mkdir(parents=True)
    (fake.path / "FORMAT").write_text("1\n")
    (fake.path / "config.yaml").write_text(json.dumps(_nested(fake)))  # JSON is YAML
    summaries = [_seed(fake, seed) for seed in fake.seeds]
    if fake.result:
        (fake.path / "result.json").write_text(json.dumps(_result(fake, summaries)))
    return fake.path


def _nested(fake):
    out = {"label": fake.label, "choices": fake.choices}
    for key, value in fake.config.items():
        *groups, leaf = key.split(".")
        place = out
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = value
    return out


def _result(fake, summaries):
    done = [s for s in summaries if s["status"] == "done"]
    pairs = {k: mean_and_half_width([s[k] for s in done]) for k in (*NAMES, "seconds")}
    return {
        "format": 1, "run_id": fake.name, "label": fake.label, "stream": fake.stream, "scenario": fake.scenario,
        "status": next((s for s in fake.statuses if s != "done"), "done"), "seeds": list(fake.seeds),
        "config": fake.config, "choices": fake.choices, "runs": summaries, "problems": [],
        "mean": {k: m for k, (m, _) in pairs.items()}, "ci95": {k: c for k, (_, c) in pairs.items()},
    }  # fmt: skip


def _seed(fake, seed):
    path = fake.path / f"seed-{seed}"
    path.mkdir()
    (path / "FORMAT").write_text("1\n")
    status = fake.status(seed)
    rows = fake.n + 1 if status == "done" else fake.n // 2 + 1  # that were reached
    values = fake.metrics(seed) if status == "done" else dict.fromkeys(NAMES)
    summary = _summary(fake, seed, rows, values)
    if status != "unfinished":
        (path / "summary.json").write_text(json.dumps(summary))
        (path / "matrix.json").write_text(json.dumps(_matrix(fake, seed, rows, values)))
    torn = "" if status == "done" else '{"t": 17600, "eve'
    lines = [json.dumps({"t": 1_760_000_000_000 + k, **e}) for k, e in enumerate(_events(fake, seed, rows, values))]
    (path / "events.jsonl").write_text("\n".join(lines) + "\n" + torn)
    packages = {"nested": "0.1.0", "torch": "2.15.0"}
    environment = {"packages": packages, "python": "3.11.9", "platform": "Linux", "threads": 1, "gpu": None,
                   "git": {"commit": "abc123", "dirty": False}, "command": list(fake.command)}  # fmt: skip
    (path / "environment.json").write_text(json.dumps(environment))
    return summary


def _summary(fake, seed, rows, values):
    r0, *r = [[x / fake.total for x in row] if i < rows else [None] * fake.n for i, row in enumerate(fake.sums(seed))]
    return {
        "run_id": fake.name, "seed": seed, "label": fake.label, "status": fake.status(seed), **values,
        "initial": r0, "matrix": r, "seconds": fake.seconds + seed, "experiences": fake.names,
        "lower_is_better": fake.lower, "judged_on": fake.judged_on, "levels": list(fake.levels), "cost": COST,
        "digest": f"{fake.digest}{seed}" if fake.digest else None,
    }  # fmt: skip


def _matrix(fake, seed, rows, values):
    zeros = [[0] * fake.n] * (fake.n + 1 - rows)
    grid = {"sum": fake.sums(seed)[:rows] + zeros, "count": [[fake.total] * fake.n] * rows + zeros}
    about = [{"index": j, "name": name, "classes": [2 * j, 2 * j + 1], "task": 0} for j, name in enumerate(fake.names)]
    parts = {"validation": grid, "test": grid}
    if fake.positions:
        parts["test/positions"] = {**grid, "sum": fake.positions[:rows] + zeros}
    return {
        "format": 1, "stream": fake.stream, "scenario": fake.scenario, "lower_is_better": fake.lower,
        "experiences": about, "views": dict.fromkeys(fake.views, parts),
        "standalone": None, "anytime": _anytime(fake, seed) if fake.anytime else None, "metrics": values,
    }  # fmt: skip


def _events(fake, seed, rows, values):
    yield {"event": "start", "run_id": fake.name, "seed": seed, "label": fake.label}
    for j, name in enumerate(fake.names if fake.digest else ()):
        yield {"event": "dataset", "experience": j, "name": f"{fake.stream} {name}", "digest": f"{fake.digest}{seed}",
               "n_train": 250 + j, "n_validation": 20, "n_test": fake.total, "classes": [2 * j, 2 * j + 1]}  # fmt: skip
    for row, sums in enumerate(fake.sums(seed)[:rows]):
        yield {"event": "row", "row": row, "view": "model", "part": "validation", "sum": sums, "count": [1] * fake.n}
        yield {"event": "row", "row": row, "view": "model", "part": "test", "sum": sums, "count": [fake.total] * fake.n}
        if fake.positions:
            yield {"event": "row", "row": row, "view": "model", "part": "test/positions", "sum": fake.positions[row],
                   "count": [fake.total] * fake.n}  # fmt: skip
        if row:
            yield {"event": "metrics", "step": 50 * row, "values": {"train/loss": 2.0 + seed - row / 10}}
        scores = {f"experience/test/exp-{j}": x / fake.total for j, x in enumerate(sums)}
        yield {"event": "metrics", "step": row, "values": scores}
    if fake.status(seed) != "unfinished":
        known = {k: v for k, v in values.items() if v is not None}
        yield {"event": "end", "status": fake.status(seed), "values": known}


def _anytime(fake, seed, per_experience=16):
    """A curve from row to row, with a dip where a slow level ticks."""
    table = {
        "step": [0],
        "moment": ["border"],
        "experience": [-1],
        "accuracy": [[x / fake.total for x in fake.sums(seed)[0]]],
    }
    slow = [level for level in fake.levels if level["period"] > 1]
    for i, (before, after) in enumerate(itertools.pairwise(fake.sums(seed))):
        for k in range(1, per_experience + 1):
            share, step = k / per_experience, i * per_experience + k
            scores = [((1 - share) * a + share * b) / fake.total for a, b in zip(before, after)]
            ticks = [level["name"] for level in slow if step % level["period"] == 0]
            for moment in [*(f"before:{t}" for t in ticks), "step", *(f"after:{t}" for t in ticks)]:
                dip = 0.04 if moment.startswith("after") else 0.0
                entry = {
                    "step": step,
                    "moment": moment,
                    "experience": i,
                    "accuracy": [max(0.0, s - dip) for s in scores],
                }
                for name, value in entry.items():
                    table[name].append(value)
    return table
