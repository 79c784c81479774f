"""A whole run under the microscope: every finished seed, then means over seeds with 95 percent intervals."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nested import metrics, rundir
from nested.computing import computing
from nested.config import Config, from_dict
from nested.continuing import check_data
from nested.environment import difference, environment
from nested.errors import NestedError, UserError
from nested.learner import Learner
from nested.levels import assign_tokens
from nested.microscope.blame import MASK, OUTSIDE, PART, Bench, blame
from nested.microscope.shapley import Array
from nested.microscope.snapshots import BEFORE, Snapshots
from nested.microscope.ticks import around_ticks, mean_effects
from nested.plan import judged
from nested.prepare import prepare
from nested.wording import counted


def examine(path: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Look at every finished seed of the run at `path`: `microscope.json` in each seed's directory and in the run's.

    Returns the run's: means over seeds and half widths of their 95 percent intervals. Raises UserError where there are
    no snapshots, no finished seed, or no order of experiences.
    """
    config = from_dict(rundir.read_config(path))
    if not config.evaluate.snapshots:
        text = f"{path.name} kept no snapshots of its levels; record them with: {_recording(path)}"
        raise UserError(text, key="evaluate.snapshots", seen=False, allowed=True)
    seeds = [s for s in config.seed_list() if _status(path / f"seed-{s}") == "done"]
    if not seeds:
        text = f"{path.name} has no finished seed; first: nested resume {path.name}"
        raise UserError(text, key="run", seen=rundir.status(path))
    if left := sorted(set(config.seed_list()) - set(seeds)):
        say(f"not finished, hence left out: seed {', '.join(map(str, left))}")
    with rundir.locked(path), computing(config.trainer):
        reports = []
        for seed in seeds:
            folder = path / f"seed-{seed}"
            report = examine_seed(config, seed, folder)
            rundir.write_json(folder / "microscope.json", report)
            say(f"seed {seed}: {counted(report['evaluations'], 'evaluation')} of hybrids; {Snapshots(folder).said()}")
            reports.append(report)
        found = over_seeds(reports)
        rundir.write_json(path / "microscope.json", found)
    return found


def examine_seed(config: Config, seed: int, path: Path) -> dict[str, Any]:
    """What the snapshots of one seed, in its directory `path`, say."""
    learner = prepare(config, seed)
    if not learner.method.ordered:
        text = "everything was learned at once: without an order nobody forgot"
        raise UserError(text, key="method", seen=config.word("method"))
    check_data(path, learner.stream, "stream")
    about, snapshots = rundir.read_json(path / "matrix.json"), Snapshots(path)
    view = snapshots.header(BEFORE)["view"]
    recorded = about["views"][view].get(PART)
    sums = None if recorded is None else np.asarray(recorded["sum"], dtype=np.float64)
    bench = Bench(learner, snapshots, config.trainer.eval_batch_size, sums)
    try:
        rows, numbers = blame(bench)
    except UserError:
        raise
    except NestedError as error:
        changed = difference(rundir.read_json(path / "environment.json"), environment())
        known = [f"; {k} was {a} when it was trained and is {b} now" for k, (a, b) in changed.items()]
        raise NestedError(f"seed {seed}: {error}{''.join(known)}") from None
    ticks = around_ticks(about["anytime"])
    numbers |= {"ticks": mean_effects(ticks), "average": _averaged(numbers)}
    return {
        "format": 1, "seed": seed, "part": PART, "view": view, "exact": bench.exact, "players": list(bench.players),
        "levels": {level.name: level.period for level in learner.optimizer.levels},
        "token_levels": _initial_states(learner, bench),
        "experiences": [e.name for e in learner.stream.experiences],
        "lower_is_better": learner.stream.lower_is_better, "rows": rows,
        "numbers": numbers, "ticks": ticks, "ticks_part": judged(config.evaluate.parts),
        "evaluations": bench.evaluations, "bytes": snapshots.bytes,
    }  # fmt: skip


def over_seeds(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and half widths of the 95 percent intervals of all numbers; players that never played are left out."""
    first = reports[0]
    numbers = [r["numbers"] for r in reports]
    idle = {p for p in (OUTSIDE, MASK) if not any(_played(n, p) for n in numbers)}
    same = ("part", "view", "exact", "levels", "token_levels", "experiences", "lower_is_better", "ticks_part")
    return {
        "format": 1, "seeds": [r["seed"] for r in reports], **{k: first[k] for k in same},
        "players": [p for p in first["players"] if p not in idle],
        "mean": _folded([_without(n, idle) for n in numbers], lambda a: a.mean(0)),
        "ci95": _folded([_without(n, idle) for n in numbers], metrics.half_width),
        "evaluations": sum(r["evaluations"] for r in reports), "bytes": sum(r["bytes"] for r in reports),
    }  # fmt: skip


def _averaged(numbers: Any) -> Any:
    """The same structure with each list replaced by its mean over the experiences, None where it is empty."""
    if isinstance(numbers, dict):
        return {k: _averaged(v) for k, v in numbers.items()}
    return float(np.mean(numbers)) if numbers else None


def _played(numbers: dict[str, Any], player: str) -> bool:
    """Whether a part of the player in any change is not zero, or it moved."""
    tables = [numbers[k] for k in ("forgot", "backward", "learned")]
    parts = [part[player] for table in tables for part in table.values() if isinstance(part, dict)]
    return any(np.any(p) for p in [*parts, numbers["drift"].get(player, [])])


def _without(numbers: dict[str, Any], players: set[str]) -> dict[str, Any]:
    return {k: _without(v, players) if isinstance(v, dict) else v for k, v in numbers.items() if k not in players}


def _folded(values: Sequence[Any], fold: Callable[[Array], Array | None]) -> Any:
    """The same structure as each of `values`, numbers and lists of them folded over the first axis."""
    if any(v is None for v in values):
        return None
    if isinstance(values[0], dict):
        return {k: _folded([v.get(k) for v in values], fold) for k in values[0]}
    folded = fold(np.array(values, dtype=np.float64))
    return None if folded is None else np.asarray(folded).tolist()


def _initial_states(learner: Learner, bench: Bench) -> dict[str, list[str]]:
    """Level on the token clock -> the stream levels that its initial state learns in, and counts for."""
    members = assign_tokens(learner.reading, learner.model) if learner.reading else {}
    return {level: sorted({bench.owner[name] for name in names}) for level, names in members.items()}


def _status(seed: Path) -> str | None:
    file = seed / "summary.json"
    return rundir.read_json(file)["status"] if file.is_file() else None


def _recording(path: Path) -> str:
    """The run's own command, with snapshots; where another command made the run, what to do."""
    files = sorted(path.glob("seed-*/environment.json"))
    command = rundir.read_json(files[0])["command"][1:] if files else []
    if command[:1] != ["run"]:
        return f"nested run, the values of {path / 'config.yaml'}, and evaluate.snapshots=true"
    return shlex.join(["nested", *map(str, command), "evaluate.snapshots=true"])
