"""What a run came to: the summary of a seed, the matrix on disk, means over seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nested import cost, metrics, rundir
from nested.config import Config, flatten
from nested.errors import Diverged
from nested.loop import Loop
from nested.metrics import FROZEN, METRICS, POSITIONS
from nested.rundir import SeedDir
from nested.score_matrix import ScoreMatrix

FILES = ("matrix.json", "matrix.csv", "matrix.png", "config.yaml", "environment.json")


@dataclass
class Result:
    """One summary per seed, means and 95 percent intervals over the seeds that are done."""

    run_id: str
    path: Path
    status: str = "done"  # done | diverged | interrupted
    runs: list[dict[str, Any]] = field(default_factory=list)
    mean: dict[str, float | None] = field(default_factory=dict)
    ci95: dict[str, float | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unsent: bool = False  # the tracker has not got everything
    remarked: set[str] | None = field(default_factory=set)  # kinds of remarks said, each once; None: say none

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(n, n) R; over several seeds their mean."""
        return np.mean([np.asarray(r["matrix"], dtype=np.float64) for r in self.runs], axis=0)

    @property
    def initial(self) -> NDArray[np.float64]:
        """(n,) R0, the row before training; over several seeds their mean."""
        return np.mean([np.asarray(r["initial"], dtype=np.float64) for r in self.runs], axis=0)

    def average(self) -> None:
        """Means and intervals over the seeds that are done."""
        finished = [r for r in self.runs if r["status"] == "done"]
        if finished:
            self.mean, self.ci95 = metrics.over_seeds(finished, METRICS)

    def as_json(self) -> dict[str, Any]:
        """The object of `--json`: the summary of the one seed, or all of them with means and intervals."""
        if len(self.runs) == 1:
            return {**self.runs[0], "path": str(self.path), "problems": self.problems}
        return {
            "run_id": self.run_id, "path": str(self.path), "status": self.status, "runs": self.runs,
            "mean": self.mean, "ci95": self.ci95, "problems": self.problems,
        }  # fmt: skip


def summarise(
    config: Config, seed: int, loop: Loop, run_id: str, status: str, alone: list[float] | None
) -> dict[str, Any]:
    """The seed's summary; metrics that need a whole matrix are None without it."""
    stream = loop.stream
    main = next(iter(loop.matrices.values()), {})
    rows = _rows(loop, main)
    values = _values(loop, rows, alone)
    for name, part in (("positions", POSITIONS), ("frozen", FROZEN)):
        if not np.isnan(beside := _rows(loop, main, part)).any():
            values[name] = metrics.acc(beside)
    return {
        "run_id": run_id, "seed": seed, "label": config.name(), "status": status, **values,
        "initial": _plain(rows[0]), "matrix": _plain(rows[1:]), "experiences": [e.name for e in stream.experiences],
        "lower_is_better": stream.lower_is_better, "measure": stream.measure, "judged_on": loop.judged,
        "digest": stream.digest, "levels": cost.levels_table(loop.learner), "cost": _cost(loop),
    }  # fmt: skip


def so_far(loop: Loop) -> dict[str, Any]:
    """What the experiences learned until now come to: metrics of their part of the matrix, and the cost.

    "experience" is the index of the last one; seconds are those of training.
    """
    k = loop.n if loop.joint else loop.learner.cursor.experience + 1
    rows = _rows(loop, next(iter(loop.matrices.values())))[: k + 1, :k]
    spent = _spent(loop)
    return {
        **metrics.summarise(rows[1:], rows[0], loop.stream.lower_is_better, loop.joint), "experience": k - 1,
        "flops": spent["flops"], "parameter_updates": spent["parameter_updates"], "seconds": loop.seconds["train"],
    }  # fmt: skip


def _rows(loop: Loop, main: dict[str, ScoreMatrix], beside: str = "") -> NDArray[np.float64]:
    """(n + 1, n): R0 and R, NaN where nothing was measured; every row of a joint fit is its one row."""
    judged = main.get(loop.judged + beside)
    if judged is None:
        return np.full((loop.n + 1, loop.n), np.nan)
    return _expanded(loop, judged.compute()).double().cpu().numpy()


def _expanded(loop: Loop, rows: Tensor) -> Tensor:
    return torch.cat([rows[:1], rows[1:].expand(loop.n, -1)]) if loop.joint else rows


def _values(loop: Loop, rows: NDArray[np.float64], alone: list[float] | None) -> dict[str, float | None]:
    values: dict[str, float | None] = dict.fromkeys(METRICS)
    values["seconds"] = sum(loop.seconds.values())
    if np.isnan(rows).any():
        return values
    lower = loop.stream.lower_is_better
    values |= metrics.summarise(rows[1:], rows[0], lower, loop.joint)
    if alone is not None:
        values["gain"] = metrics.gain(rows[1:], np.asarray(alone), lower)
    if loop.anytime["step"] and not loop.joint:
        scores = np.asarray(loop.anytime["accuracy"])
        values["min_acc"], values["wc_acc"] = metrics.anytime(loop.anytime["experience"], scores, lower)
    return values


def _plain(values: NDArray[np.float64]) -> Any:
    """Nested lists, with None for what was not measured."""
    plain = values.astype(object)
    plain[np.isnan(values)] = None
    return plain.tolist()


def _cost(loop: Loop) -> dict[str, Any]:
    learner = loop.learner
    parts = [learner.model.state_dict(), learner.optimizer.state_dict(), learner.method.state_dict()]
    return {
        "train_seconds": loop.seconds["train"],
        "eval_seconds": loop.seconds["evaluate"],
        "anytime_seconds": loop.seconds["anytime"],
        "steps": learner.step,
        "skipped_steps": learner.optimizer.skipped,
        "examples": learner.cursor.examples,
        **_spent(loop),
        "peak_rss_bytes": cost.peak_rss_bytes(),
        "state_bytes": cost.tensor_bytes(parts),
    }


def _spent(loop: Loop) -> dict[str, Any]:
    """FLOPs and parameter updates until now."""
    learner = loop.learner
    per_example = _flops_per_example(loop)
    table = cost.levels_table(learner)
    return {
        "flops_per_example": per_example,
        "flops": None if per_example is None else round(per_example * learner.cursor.examples),
        "parameter_updates": sum(level["parameters"] * level["updates"] for level in table if level["updates"]),
    }


def _flops_per_example(loop: Loop) -> float | None:
    """Of the experience that is learned; counted once for each shape of batch."""
    learner = loop.learner
    batch = learner.fetch(learner.examples, torch.arange(min(loop.plan.batch_size, len(learner.examples))))
    if batch.x.shape not in loop.flops:
        try:
            loop.flops[batch.x.shape] = cost.step_flops(learner, batch) / len(batch.y)
        except Diverged:  # levels on the token clock say so themselves: there is no step to count
            loop.flops[batch.x.shape] = None
    return loop.flops[batch.x.shape]


def write_matrix(loop: Loop, alone: list[float] | None, values: dict[str, Any]) -> None:
    """`matrix.json` as it stands."""
    stream = loop.stream
    views = {
        view: {
            p: {"sum": _expanded(loop, m.sums).tolist(), "count": _expanded(loop, m.counts).tolist()}
            for p, m in parts.items()
        }
        for view, parts in loop.matrices.items()
    }
    about = [{"index": e.index, "name": e.name, "classes": list(e.classes), "task": e.task} for e in stream.experiences]
    loop.directory.write(
        "matrix.json",
        {
            "format": 1, "stream": stream.name, "scenario": stream.scenario, "lower_is_better": stream.lower_is_better,
            "measure": stream.measure, "experiences": about, "views": views, "standalone": alone,
            "anytime": loop.anytime if loop.anytime["step"] else None,
            "metrics": {k: values[k] for k in METRICS if k != "seconds"},
        },
    )  # fmt: skip


def draw_matrix(directory: SeedDir) -> None:
    """Table and picture of `matrix.json`, and what a tracker takes of the seed's files."""
    from nested import report

    report.write_matrix_files(directory.path)
    for name in FILES:
        directory.event("artifact", path=name)


def finish(result: Result, config: Config) -> None:
    """Means over seeds, `result.json` and the page."""
    from nested import report

    result.average()
    values = flatten(rundir.as_stored(config.to_dict()))
    rundir.write_json(
        result.path / "result.json",
        {
            "format": 1, "run_id": result.run_id, "label": config.name(), "status": result.status,
            "stream": config.choices.get("stream", config.stream["_target_"]),
            "scenario": config.stream.get("scenario"), "seeds": config.seed_list(),
            "config": {k: v for k, v in values.items() if not k.startswith("choices.")},
            "choices": config.choices, "runs": result.runs, "mean": result.mean, "ci95": result.ci95,
            "problems": result.problems,
        },
    )  # fmt: skip
    report.page([report.load(result.path)], result.path / "report.html")
