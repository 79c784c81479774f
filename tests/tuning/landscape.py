"""Studies without training: runners whose numbers are functions of the config, and a study made of a few words.

The period is `trainer.batch_size`, the rate `optim.lr`: any paths of a config would do.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nested.errors import Pruned
from nested.settings import Config
from nested.signature import locate
from nested.tuning import search, space
from nested.tuning.objective import objective
from nested.tuning.settings import request
from nested.tuning.study import Study
from nested.tuning.trial import AfterRow
from nested.tuning.workers import work

PERIOD = "tune.space.trainer.batch_size={low:1,high:32,log:true}"
RATE = "tune.space.optim.lr={low:0.001,high:1,log:true}"
EXPERIENCES = 5
PLANTED = 8  # the one period that works


@dataclass
class Outcome:
    status: str = "done"
    runs: list[Mapping[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def smooth(config: Config, seed: int, experience: int) -> float:
    """Best at a rate of 0.05; a little different for each seed, a little worse with each experience."""
    rate = config.optim["lr"]
    return 0.9 - 0.1 * math.log10(rate / 0.05) ** 2 - 0.01 * experience + 0.001 * math.sin(seed * 7.0 + rate)


def planted(config: Config, seed: int, experience: int) -> float:
    """A stream on which only one period works: all others forget, the more the further they are off."""
    off = abs(math.log2(config.trainer.batch_size / PLANTED))
    rate = 0.02 * math.log10(config.optim["lr"] / 0.05) ** 2
    return 0.9 - rate - min(0.6, 0.15 * off) * (experience + 1) / EXPERIENCES - (0.1 if off else 0.0)


def run(
    config: Config, path: Path, after_row: AfterRow, score: Callable[[Config, int, int], float] = smooth,
    seconds: float = 0.0,
) -> Outcome:  # fmt: skip
    """Every seed, experience by experience; a seed that is done is not done again, as in a run that goes on."""
    outcome = Outcome()
    for seed in config.seed_list():
        file = path / f"seed-{seed}.json"
        if file.exists():
            outcome.runs.append(json.loads(file.read_text()))
            continue
        summary: dict[str, Any] = {"cost": {"flops": 0, "parameter_updates": 0, "train_seconds": 0.0, "steps": 0}}
        try:
            for experience in range(EXPERIENCES):
                time.sleep(seconds)
                acc = score(config, seed, experience)
                summary["cost"]["steps"] += 1
                summary["cost"]["flops"] += config.trainer.batch_size
                summary |= {"acc": acc, "learning_acc": acc + 0.05, "forgetting": 0.01 * experience}
                with (path / "steps").open("a") as steps:
                    steps.write("1")
                values = {**summary, "experience": experience, "flops": summary["cost"]["flops"]}
                after_row(seed, experience + 1, values)
        except Pruned:
            outcome.status = "pruned"
        outcome.runs.append(summary)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(summary))
        temporary.replace(file)
        if outcome.status == "pruned":
            break
    return outcome


def let(study: Study, n: int) -> None:
    """Only the study's first n trials may begin under `run_as_let`, however fast the machine is."""
    temporary = study.path / "let.new"
    temporary.write_text(str(n))
    temporary.replace(study.path / "let")


def run_as_let(config: Config, path: Path, after_row: AfterRow) -> Outcome:
    while int(path.name.removeprefix("trial-")) >= int((path.parent / "let").read_text()):
        time.sleep(0.001)
    return run(config, path, after_row, seconds=0.004)


def run_planted(config: Config, path: Path, after_row: AfterRow) -> Outcome:
    return run(config, path, after_row, planted)


def small_study(runs: Path, *words: str, n: int = EXPERIENCES, say: Callable[[str], None] = str) -> Study:
    """A study of a small network and SGD, with all its slots; nothing has been tried."""
    asked = request(["optim=sgd", *words, f"runs={runs}", "tracking=off"])
    config = asked.config()
    dimensions = space.fitted(space.read(asked.tune.space), asked.config)
    sought = objective(asked.tune.objective, asked.tune.budget, n, ordered=True)
    return search.founded(asked, config, dimensions, sought, n, say)


def worked(study: Study, runner: Any = run) -> Study:
    work(study, runner if callable(runner) else locate(runner, "runner"), "me")
    return study


def told(study: Study) -> list[Any]:
    """What a study's trials came to, in order."""
    return [(t.number, t.state.name, t.params, t.values, t.intermediate_values) for t in study.trials()]
