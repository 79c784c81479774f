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
from nested.metrics import METRICS
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

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(n, n) R; over several seeds their mean."""
        return np.mean([np.asarray(r["matrix"], dtype=np.float64) for r in self.runs], axis=0)

    @property
    def initial(self) -> NDArray[np.float64]:
        """(n,) R0, the row before training; over several seeds their mean."""
        return np.mean([np.asarray(r["initial"], dtype=np.float64) for r in self.runs], axis=0)

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
    table = cost.levels_table(loop.learner)
    return {
        "run_id": run_id, "seed": seed, "label": config.name(), "status": status, **values,
        "initial": _plain(rows[0]), "matrix": _plain(rows[1:]), "experiences": [e.name for e in stream.experiences],
        "lower_is_better": stream.lower_is_better, "judged_on": loop.judged,
        "levels": table, "cost": _cost(config, loop, table),
    }  # fmt: skip


def _rows(loop: Loop, main: dict[str, ScoreMatrix]) -> NDArray[np.float64]:
    """(n + 1, n): R0 and R, NaN where nothing was measured; every row of a joint fit is its one row."""
    judged = main.get(loop.judged)
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


def _cost(config: Config, loop: Loop, table: list[dict[str, Any]]) -> dict[str, Any]:
    learner = loop.learner
    batch = learner.fetch(learner.examples, torch.arange(min(config.trainer.batch_size, len(learner.examples))))
    try:
        per_example = cost.step_flops(learner, batch) / len(batch.y)
    except Diverged:  # levels on the token clock say so themselves: there is no step to count
        per_example = None
    parts = [learner.model.state_dict(), learner.optimizer.state_dict(), learner.method.state_dict()]
    return {
        "train_seconds": loop.seconds["train"],
        "eval_seconds": loop.seconds["evaluate"],
        "anytime_seconds": loop.seconds["anytime"],
        "steps": learner.step,
        "skipped_steps": learner.optimizer.skipped,
        "examples": learner.cursor.examples,
        "flops_per_example": per_example,
        "flops": None if per_example is None else round(per_example * learner.cursor.examples),
        "parameter_updates": sum(level["parameters"] * level["updates"] for level in table if level["updates"]),
        "peak_rss_bytes": cost.peak_rss_bytes(),
        "state_bytes": cost.tensor_bytes(parts),
    }


def write_matrix(loop: Loop, alone: list[float] | None, values: dict[str, Any]) -> None:
    """`matrix.json` as it stands, with its table and picture."""
    from nested import report

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
            "experiences": about, "views": views, "standalone": alone,
            "anytime": loop.anytime if loop.anytime["step"] else None,
            "metrics": {k: values[k] for k in METRICS if k != "seconds"},
        },
    )  # fmt: skip
    report.write_matrix_files(loop.directory.path)
    for name in FILES:
        loop.directory.event("artifact", path=name)


def finish(result: Result, config: Config) -> None:
    """Means over seeds, `result.json` and the page."""
    from nested import report

    finished = [r for r in result.runs if r["status"] == "done"]
    if finished:
        result.mean, result.ci95 = metrics.over_seeds(finished, METRICS)
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
