"""The story of one run, top to bottom: Config -> Result. The command line, the tuner, tests and notebooks all call it."""

from __future__ import annotations

import dataclasses
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nested import cost, metrics, rundir
from nested.config import Config, build, flatten, from_dict
from nested.environment import difference, environment
from nested.errors import Diverged, NestedError, UserError
from nested.learner import Learner
from nested.levels import check_ticks, from_config
from nested.loop import Display, Loop, Stopped
from nested.methods.method import Method
from nested.optim.leveled import leveled
from nested.rundir import SeedDir
from nested.streams.stream import Stream

METRICS = ("acc", "forgetting", "bwt", "fwt", "learning_acc", "gain", "min_acc", "wc_acc", "seconds")
Say = Callable[[str], None]


@dataclass
class Result:
    """What a run came to: one summary per seed, means and 95 percent intervals over them."""

    run_id: str
    path: Path
    status: str  # done | diverged | interrupted
    runs: list[dict[str, Any]] = field(default_factory=list)
    mean: dict[str, float | None] = field(default_factory=dict)
    ci95: dict[str, float | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(n, n) R; over several seeds their mean."""
        return np.mean([np.asarray(r["matrix"], dtype=np.float64) for r in self.runs], axis=0)

    @property
    def initial(self) -> NDArray[np.float64]:
        """(n,) R0, the row before training; over several seeds their mean."""
        return np.mean([np.asarray(r["initial"], dtype=np.float64) for r in self.runs], axis=0)


def run(config: Config, path: Path | None = None, say: Say = lambda _: None, after_row: Any = None) -> Result:
    """Train and evaluate every seed of `config`, in a new run directory or, to continue, in the one at `path`.

    Raises UserError before anything is trained; a seed that diverges or an interruption ends in `Result.status`.
    """
    from nested import tracking

    check(config)
    tracking.check(config.tracking, config.runs)
    made = path or rundir.create(config.runs, config.choices.get("stream", "stream"), rundir.as_stored(config.to_dict()))
    with rundir.locked(made):
        result = Result(made.name, made, "done")
        with tracking.sender(made, config.tracking, config.runs):
            for seed in config.seed_list():
                status = _one_seed(config, seed, made / f"seed-{seed}", result, say)
                if status != "done":
                    result.status = status
                if status == "interrupted":
                    break
            finish(result, config)
    return result


def check(config: Config) -> None:
    """Whatever can be refused before the data is read."""
    if config.trainer.devices > 1:
        raise UserError("more than one device is not supported: no test covers it yet; start one run per device", key="trainer.devices", seen=config.trainer.devices, allowed=1)
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("no CUDA device is visible here; use trainer.accelerator=cpu", key="trainer.accelerator", seen="gpu", allowed=["cpu"])
    for name, level in config.levels.items():
        if level.chunk_tokens is not None:
            raise UserError(f"level {name!r} is on the token clock, and {config.model['_target_']} has no token levels; use period_steps", key=f"levels.{name}.chunk_tokens")


def prepare(config: Config, seed: int, stream: Stream | None = None, device: torch.device | None = None) -> tuple[Learner, Stream]:
    """Seed everything, then build stream, model, levels and method. Raises UserError."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    stream = stream or build(config.stream, "stream", seed=seed, root=config.data.root)
    torch.manual_seed(seed)  # equal initial weights whatever the stream drew
    model = build(config.model, "model", sample_shape=stream.sample_shape, n_outputs=stream.n_outputs)
    model.to(device or torch.device("cpu"), torch.float64 if config.trainer.precision == "64-true" else None)
    method: Method = build(config.method, "method", seed=seed)
    t = config.trainer
    levels = from_config(config.levels)
    optimizer = leveled(levels, model, config.optim, t.clip_norm, t.at_border, config.schedule)
    learner = Learner(model, stream, optimizer, method, config.head.mask, t.precision, device)
    return learner, stream


def _device(config: Config) -> torch.device:
    wanted = config.trainer.accelerator
    return torch.device("cuda" if wanted == "gpu" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")


def _one_seed(config: Config, seed: int, path: Path, result: Result, say: Say, stream: Stream | None = None) -> str:
    """Train one seed where it stands; its summary joins the result. Returns its status."""
    done = path / "summary.json"
    if done.exists():
        summary = rundir.read_json(done)
        if summary["status"] == "done":
            result.runs.append(summary)
            return "done"
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    learner, stream = prepare(config, seed, stream, _device(config))
    resolved = replace(config, seed=seed, seeds=None)
    directory = SeedDir.open(path, rundir.as_stored(resolved.to_dict()))
    loop = Loop(learner, config, directory, seed)
    check_ticks(learner.optimizer.levels, loop.total_steps, config.trainer.allow_idle)
    for sentence in _environment(directory) + loop.restore():
        say(sentence)
    _describe(directory, config, result.run_id, seed, learner, stream)
    first = learner.step
    status = "done"
    try:
        with _stoppable(loop), _display(config, seed, loop) as display:
            loop.display = display
            loop.run()
    except Stopped:
        status = "interrupted"
    except Diverged as error:
        status = "diverged"
        result.problems.append(f"seed {seed}: {error}")
    alone = None
    if status == "done" and config.evaluate.gain:
        status, alone = _alone(config, seed, path, stream, say)
    summary = conclude(config, seed, learner, loop, result.run_id, status, alone)
    if status != "done" and result.problems:
        summary["problem"] = result.problems[-1]
    directory.write("summary.json", summary)
    directory.event("end", status=status, executed_steps=learner.step - first, values={k: summary[k] for k in METRICS if summary.get(k) is not None})
    result.runs.append(summary)
    return status


def _alone(config: Config, seed: int, path: Path, stream: Stream, say: Say) -> tuple[str, list[float] | None]:
    """S[j]: the same configuration on experience j alone, each a run of its own below this one."""
    quiet = replace(
        config,
        evaluate=replace(config.evaluate, gain=False, anytime_steps=None, anytime_ticks=False, parts=["test"]),
        trainer=replace(config.trainer, progress=False, allow_idle=True),
    )
    scores = []
    for experience in stream.experiences:
        say(f"seed {seed}: experience {experience.name} alone, for gain")
        one = dataclasses.replace(stream, experiences=(experience,))
        result = Result(f"alone-{experience.index}", path, "done")
        status = _one_seed(quiet, seed, path / "alone" / f"exp-{experience.index}", result, say, one)
        if status != "done":
            return status, None
        scores.append(result.runs[0]["matrix"][0][0])
    return "done", scores


def conclude(config: Config, seed: int, learner: Learner, loop: Loop, run_id: str, status: str, alone: list[float] | None) -> dict[str, Any]:
    """Write the matrix as it stands and return the seed's summary; metrics that need a whole matrix are None without it."""
    stream, n = learner.stream, len(learner.stream.experiences)
    lower = stream.lower_is_better
    main = next(iter(loop.matrices.values()), {})
    judged = main.get("test") or main.get("validation")
    rows = _rows(judged.compute().double().cpu().numpy(), loop.joint, n) if judged else np.full((n + 1, n), np.nan)
    values: dict[str, float | None] = dict.fromkeys(METRICS)
    if not np.isnan(rows).any():
        values |= metrics.summarise(rows[1:], rows[0], lower, loop.joint)
        if alone is not None:
            values["gain"] = metrics.gain(rows[1:], np.asarray(alone), lower)
        if loop.anytime["step"] and not loop.joint:
            values["min_acc"], values["wc_acc"] = metrics.anytime(loop.anytime["experience"], np.asarray(loop.anytime["accuracy"]), lower)
    values["seconds"] = sum(loop.seconds.values())
    table = cost.levels_table(learner)
    summary = {
        "run_id": run_id, "seed": seed, "label": config.name(), "status": status, **values,
        "initial": _plain(rows[0]), "matrix": _plain(rows[1:]), "experiences": [e.name for e in stream.experiences],
        "lower_is_better": lower, "judged_on": "test" if "test" in main else "validation", "levels": table,
        "cost": _cost(config, learner, loop, table),
    }  # fmt: skip
    _write_matrix(loop, stream, alone, {k: v for k, v in values.items() if k != "seconds"})
    return summary


def _rows(scores: NDArray[np.float64], joint: bool, n: int) -> NDArray[np.float64]:
    """R0 and the rows of R; every row of a joint fit is its one row."""
    return np.vstack([scores[:1], np.repeat(scores[1:], n, axis=0)]) if joint and len(scores) == 2 else scores


def _plain(values: NDArray[np.float64]) -> Any:
    """Nested lists, with None for what was not measured."""
    return np.where(np.isnan(values), None, values.astype(object)).tolist()


def _cost(config: Config, learner: Learner, loop: Loop, table: list[dict[str, Any]]) -> dict[str, Any]:
    batch = learner.fetch(learner.examples, torch.arange(min(config.trainer.batch_size, len(learner.examples))))
    per_step = cost.step_flops(learner, batch)
    return {
        "train_seconds": loop.seconds["train"],
        "eval_seconds": loop.seconds["evaluate"],
        "anytime_seconds": loop.seconds["anytime"],
        "steps": learner.step,
        "skipped_steps": learner.optimizer.skipped,
        "flops_per_step": per_step,
        "flops": per_step * learner.step,
        "parameter_updates": sum(level["parameters"] * level["updates"] for level in table),
        "peak_rss_bytes": cost.peak_rss_bytes(),
        "state_bytes": cost.tensor_bytes([learner.model.state_dict(), learner.optimizer.state_dict(), learner.method.state_dict()]),
    }


def _write_matrix(loop: Loop, stream: Stream, alone: list[float] | None, values: dict[str, Any]) -> None:
    from nested import report

    n = len(stream.experiences)

    def grid(t: torch.Tensor) -> Any:
        return (torch.cat([t[:1], t[1:].repeat(n, 1)]) if loop.joint and len(t) == 2 else t).tolist()

    loop.directory.write(
        "matrix.json",
        {
            "format": 1,
            "stream": stream.name,
            "scenario": stream.scenario,
            "lower_is_better": stream.lower_is_better,
            "experiences": [{"index": e.index, "name": e.name, "classes": list(e.classes), "task": e.task} for e in stream.experiences],
            "views": {v: {p: {"sum": grid(m.sums), "count": grid(m.counts)} for p, m in parts.items()} for v, parts in loop.matrices.items()},
            "standalone": alone,
            "anytime": loop.anytime if loop.anytime["step"] else None,
            "metrics": values,
        },
    )
    report.write_matrix_files(loop.directory.path)
    for name in ("matrix.json", "matrix.csv", "matrix.png", "config.yaml", "environment.json"):
        loop.directory.event("artifact", path=name)


def finish(result: Result, config: Config) -> None:
    """Means over seeds, `result.json` and the page."""
    from nested import report

    finished = [r for r in result.runs if r["status"] == "done"]
    result.mean, result.ci95 = metrics.over_seeds(finished, METRICS) if finished else ({}, {})
    rundir.write_json(
        result.path / "result.json",
        {
            "format": 1, "run_id": result.run_id, "label": config.name(), "status": result.status,
            "stream": config.choices.get("stream", config.stream["_target_"]), "scenario": config.stream.get("scenario"),
            "seeds": config.seed_list(), "config": {k: v for k, v in flatten(rundir.as_stored(config.to_dict())).items() if not k.startswith("choices.")},
            "choices": config.choices, "runs": result.runs, "mean": result.mean, "ci95": result.ci95, "problems": result.problems,
        },
    )  # fmt: skip
    report.page([report.load(result.path)], result.path / "report.html")


def resume(path: Path, say: Say = lambda _: None, config: Config | None = None) -> Result:
    """Continue the run at `path`; a given config must be the recorded one. Raises UserError with the difference."""
    recorded = from_dict(rundir.read_config(path))
    if config is not None:
        asked = replace(config, runs=recorded.runs, tracking=recorded.tracking, checkpoint=recorded.checkpoint)
        changed = config_difference(recorded, asked)
        if changed:
            shown = "; ".join(f"{k}: recorded {a!r}, now {b!r}" for k, (a, b) in changed.items())
            raise UserError(f"its config differs: {shown}. Resume it without these, or start a new run", key="resume", seen=list(changed))
    return run(replace(recorded, runs=str(path.parent)), path, say)


def config_difference(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> the two values, where they differ."""
    one, two = (flatten(rundir.as_stored(c.to_dict())) for c in (a, b))
    return {k: (one.get(k), two.get(k)) for k in sorted({*one, *two}) if one.get(k) != two.get(k) and not k.startswith("choices.")}


def _environment(directory: SeedDir) -> list[str]:
    """Record the environment; on a resumed run, sentences about what has changed since."""
    here = environment()
    file = directory.path / "environment.json"
    if not file.exists():
        rundir.write_json(file, here)
        return []
    changed = difference(rundir.read_json(file), here)
    directory.event("resume", changed=changed)
    return [f"resumed with another {name}: {a} before, {b} now; bitwise equality is not promised" for name, (a, b) in changed.items()]


def _describe(directory: SeedDir, config: Config, run_id: str, seed: int, learner: Learner, stream: Stream) -> None:
    directory.event("start", run_id=run_id, seed=seed, label=config.name())
    values = flatten(rundir.as_stored(replace(config, seed=seed, seeds=None).to_dict()))
    directory.event("params", values=values)
    info = rundir.read_json(directory.path / "environment.json")
    directory.event("tags", values={**{k: str(v) for k, v in info["git"].items()}, **config.choices, "nested": info["packages"]["nested"]})
    for e in stream.experiences:
        directory.event(
            "dataset", experience=e.index, name=f"{stream.name} {e.name}", digest=stream.digest,
            n_train=len(e.train), n_validation=len(e.validation), n_test=len(e.test), classes=list(e.classes),
        )  # fmt: skip


@contextmanager
def _stoppable(loop: Loop) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops at the next step with everything saved; the second one stops at once."""

    def ask(number: int, _: Any) -> None:
        if loop.stop:
            raise KeyboardInterrupt
        loop.stop = True

    try:
        old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        old = {}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _display(config: Config, seed: int, loop: Loop) -> Any:
    if not config.trainer.progress:
        return nullcontext(Display())
    from nested.progress import Bar

    return Bar(f"seed {seed}" if len(config.seed_list()) > 1 else config.name(), loop.total_steps)


_ = (NestedError, time)
