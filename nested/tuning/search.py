"""The story of a search, top to bottom: words of the command line -> checks -> a study -> workers -> what was found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nested import rundir
from nested.config import flatten
from nested.continuing import told
from nested.errors import UserError, nearest
from nested.report.wording import short
from nested.settings import Config
from nested.signature import locate
from nested.stopping import terminable
from nested.tuning import launcher, pruning, samplers, space, storage
from nested.tuning.founding import create, difference, spec
from nested.tuning.objective import Objective, objective
from nested.tuning.settings import Request, request
from nested.tuning.study import DEATHS, RECORD, REFUSED, SAME, Study
from nested.tuning.workers import RUNNER, crewed, name_of_worker, work
from nested.wording import counted

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """How a study stands."""

    study: Study
    best: tuple[FrozenTrial, ...]  # one, or the Pareto front; without any, no trial is whole and within the budget
    unsent: bool = False  # the tracker has not got everything

    def as_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        trials = self.study.trials()
        counts = {s.lower(): sum(t.state.name == s for t in trials) for s in STATES}
        counts["waiting"] += self.study.n_trials - len(trials)  # slots not made yet
        return {
            "study": self.study.name, "path": str(self.study.path), "trials": self.study.n_trials, **counts,
            "drawn_again": sum(map(refused, trials)),
            "objective": list(self.study.objective.names), "directions": list(self.study.objective.directions),
            "best": [{"trial": t.number, "values": t.values, "params": t.params} for t in self.best],
        }  # fmt: skip


GO_ON = "interrupted, everything is saved; to go on, give the same command again"
STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")


def tune(words: Iterable[str], config_dir: str | Path | None, say: Say, runner: str = RUNNER) -> Found:
    """Begin a study or continue it, to the end.

    Raises UserError before anything is trained, KeyboardInterrupt when it is stopped: the same command goes on.
    """
    return pursue(request(words, config_dir), say, runner)


def pursue(asked: Request, say: Say, runner: str = RUNNER) -> Found:
    """As `tune`, for a request that has been read already."""
    from nested import tracking
    from nested.prepare import check
    from nested.tuning import feasible

    config = asked.config()
    check(config)
    rundir.check_writable(config.runs)
    tracking.check(config.tracking, config.runs)
    if asked.launcher:
        launcher.check(asked.launcher)
    dimensions = space.fitted(space.read(asked.tune.space), asked.config)
    stream = feasible.first(asked, config, dimensions)
    n = min(len(stream.experiences), asked.tune.prefix or len(stream.experiences))
    sought = objective(asked.tune.objective, asked.tune.budget, n, _ordered(config), stream.lower_is_better)
    pruning.check(asked.tune, len(sought.names), len(config.seed_list()))
    samplers.check(asked.tune, dimensions, len(sought.names))
    study = founded(asked, config, dimensions, sought, n, say)
    if note := pruning.idle(asked.tune, n, len(config.seed_list())):
        say(note)
    with tracking.sender(study.path, config.tracking) as sender:
        try:
            _worked(study, asked, say, runner)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(GO_ON) from None
        finally:
            conclude(study)
    say(verdict(study))
    if sender.problem:
        say(sender.problem)
    return Found(study, best(study), sender.problem is not None)


def _ordered(config: Config) -> bool:
    """Whether the method learns one experience after the other."""
    return bool(getattr(locate(config.method["_target_"], "method._target_"), "ordered", True))


def founded(
    asked: Request, config: Config, dimensions: Sequence[space.Dimension], sought: Objective, n: int, say: Say
) -> Study:
    """The study with all its slots. Raises UserError where the one that is there is another, or has more trials."""
    path = Path(config.runs).expanduser().resolve() / asked.name(config)
    first, notes = space.defaults(dimensions, config)
    fixed = [first]
    if asked.tune.sampler == "grid":
        fixed = space.grid(dimensions, first)
        if fixed[0] != first:
            notes = [*notes, "the default configuration is no point of the grid, and is not among its trials"]
    wanted = len(fixed) if asked.tune.sampler == "grid" else asked.tune.n_trials
    uri = storage.address(asked.tune.storage, path)
    if uri != storage.without_password(uri):
        os.environ[storage.VARIABLE] = uri  # for this process and those it starts: it is recorded nowhere
    study = create(path, asked, config, dimensions, sought, n, fixed, wanted, not notes)
    for note in [] if study.trials() else notes:
        say(note)
    study.fill()
    return study


def _worked(study: Study, asked: Request, say: Say, runner: str) -> None:
    """Let the workers do it."""
    news = News(study, say)
    if study.finished():
        return
    if asked.launcher:
        launcher.launched(study, asked.workers, asked.launcher, news.tell, runner)
    elif asked.workers > 1:
        with terminable():
            crewed(study, asked.workers, news.tell, runner, say)
    else:
        with terminable():
            work(study, locate(runner, "runner"), name_of_worker(), news.tell)
    news.tell()


def join(path: Path, config_dir: str | None, say: Say, uri: str | None = None) -> Found:
    """Work on a study that exists, from anywhere that sees its directory and reaches its storage, until none is left.

    What is recorded is sent to the tracker from here, too: the study's own command may be gone. Raises UserError where
    that command composes another config here.
    """
    from nested import tracking

    if uri:
        os.environ[storage.VARIABLE] = uri
    study = Study(path)
    if config_dir:
        study.request = Request.from_dict({**study.request.as_dict(), "config_dir": str(Path(config_dir).resolve())})
    config = study.request.config()
    here = spec(study.request, config, study.dimensions, study.objective)
    changed = difference(study.record["spec"], here)
    if changed:
        text = f"conf/ is another one here: {told(changed, 'here')}; use the same version"
        raise UserError(text, key="study", seen=list(changed))
    watched = replace(config.tracking, system_metrics=False)  # of the machine that the study's own command runs on
    with tracking.sender(study.path, watched, alone=False) as sender:
        try:
            with terminable():
                work(study, locate(RUNNER, "runner"), name_of_worker(), News(study, say).tell)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(GO_ON) from None
        finally:
            conclude(study)
    if sender.problem:
        say(sender.problem)
    return Found(study, best(study), sender.problem is not None)


def place(words: Sequence[str]) -> tuple[str, str]:
    """`STUDY [runs=DIR]` of a verb about a study: its name, "" without one, and the directory of runs."""
    names = [w for w in words if "=" not in w]
    runs = [w.partition("=")[2] for w in words if w.startswith("runs=")]
    if len(names) > 1 or len(names) + len(runs) < len(words):
        raise UserError(f"STUDY [runs=DIR] is needed, not {' '.join(words)!r}", key="study", seen=list(words))
    return (names or [""])[0], (runs or ["runs"])[-1]


def named(name: str, runs: str | Path) -> Study:
    """A study by name, path, or the beginning of a name. Raises UserError with those there are."""
    root = Path(runs).expanduser()
    there = sorted(p.parent.name for p in root.glob(f"*/{RECORD}"))
    if name and any((p / "FORMAT").is_file() for p in (Path(name).expanduser(), root / name)):
        return Study(rundir.find(name, runs))
    begun = [n for n in there if name and n.startswith(name)]
    if len(begun) == 1:
        return Study(rundir.find(begun[0], runs))
    said = f"no study {name!r}{nearest(name, there)}" if name else "a name is needed"
    said = f"{name!r} begins {len(begun)} studies; give more of the name" if begun else said
    text = f"{said}; studies in {runs}: {', '.join(begun or there) or 'none'}"
    raise UserError(text, key="study", seen=name, allowed=there)


class News:
    """One line for each trial that has ended since it was last told, with the best so far."""

    def __init__(self, study: Study, say: Say):
        self.study, self.say = study, say
        self.known = {t.number for t in study.trials("COMPLETE", "PRUNED", "FAIL")}

    def tell(self) -> None:
        for trial in self.study.trials("COMPLETE", "PRUNED", "FAIL"):
            if trial.number not in self.known:
                self.known.add(trial.number)
                self.say(f"{line(self.study, trial)}  |  {best_line(self.study)}")


def line(study: Study, trial: FrozenTrial) -> str:
    """A trial in one line: values, parameters, and how it ended where it is not whole."""
    values = numbers(study, trial.values) if trial.state.name == "COMPLETE" else ""
    params = " ".join(f"{k}={_short(v)}" for k, v in trial.params.items())
    ended = {"COMPLETE": "", "FAIL": f"failed: {trial.user_attrs.get('reason')}"}
    whole = counted(len(study.seeds) * study.experiences, "experience")
    pruned = f"pruned after {reached(study, trial)} of {whole}"
    over = "" if pruning.within_budget(trial) else "over budget"
    drawn = f"{counted(refused(trial), 'draw')} could not be run" if refused(trial) else ""
    same = f"the same values as trial {trial.user_attrs[SAME]}, not run" if SAME in trial.user_attrs else ""
    deaths = trial.user_attrs.get(DEATHS, 0)
    died = f"taken up again, {counted(deaths, 'worker')} lost on it" if deaths else ""
    parts = (f"trial {trial.number}", values, params, drawn, same, died, ended.get(trial.state.name, pruned), over)
    return "  ".join(p for p in parts if p)


def refused(trial: FrozenTrial) -> int:
    """How many draws of its values could not be run."""
    return int(trial.user_attrs.get(REFUSED, (0, ""))[0])


def reached(study: Study, trial: FrozenTrial) -> int:
    """Experiences, over all seeds, after which a trial was last looked at."""
    looked = (int(name.removeprefix(pruning.AT)) for name in trial.user_attrs if name.startswith(pruning.AT))
    steps = [*trial.intermediate_values, *looked]
    each = study.experiences if study.request.tune.pruner == "wilcoxon" else 1  # that is told of whole seeds
    return each * (max(steps, default=-1) + 1)


def numbers(study: Study, values: Sequence[float] | None) -> str:
    return " ".join(f"{n} {_short(v)}" for n, v in zip(study.objective.names, values or []))


def _short(value: Any) -> str:
    return short(value) if isinstance(value, float) else str(value)


def best(study: Study) -> tuple[FrozenTrial, ...]:
    """The best whole trial within the budget, or the Pareto front; none where there is no such."""
    seen = study.optuna()
    if not study.objective.single:
        return tuple(t for t in seen.best_trials if SAME not in t.user_attrs)
    try:
        found = seen.best_trial
    except ValueError:
        return ()
    return (study.trials()[found.user_attrs.get(SAME, found.number)],)  # the one that was run


def best_line(study: Study) -> str:
    first = best(study)
    if not first:
        return "none whole yet" if not study.objective.budget else "none whole and within the budget yet"
    if not study.objective.single:
        return f"Pareto front: trial{'s' * (len(first) > 1)} {', '.join(str(t.number) for t in first)}"
    return f"best: trial {first[0].number}, {numbers(study, first[0].values)}"


def found(study: Study) -> Found:
    return Found(study, best(study))


def verdict(study: Study) -> str:
    """What came of the study, beside its defaults, and what of the space could not be run."""
    return "; ".join([_beside_defaults(study), *_not_run(study)])


def _not_run(study: Study) -> list[str]:
    trials, said = study.trials(), []
    if again := [t for t in trials if refused(t)]:
        n = sum(map(refused, again))
        said.append(f"{counted(n, 'draw')} could not be run, the first {again[0].user_attrs[REFUSED][1]}")
    if failed := [t for t in trials if t.state.name == "FAIL"]:
        about = f"trial {failed[0].number} ({space.told(failed[0].params)}): {failed[0].user_attrs.get('reason')}"
        said.append(f"{len(failed)} of {counted(study.n_trials, 'trial')} failed, the first {about}")
    return said


def _beside_defaults(study: Study) -> str:
    first, default = best(study), next(iter(study.trials()), None)
    said = f"{study.name}: {best_line(study)}"
    if not first or default is None or not study.record["defaults_first"]:
        return said
    if default.state.name != "COMPLETE":
        return f"{said}; the defaults are trial 0, which is not whole: {line(study, default)}"
    if default.number in [t.number for t in first]:
        return f"{said}, the defaults" if study.objective.single else f"{said}; the defaults, trial 0, are on it"
    return f"{said}; the defaults (trial 0): {numbers(study, default.values)}"


def conclude(study: Study) -> None:
    """Write `result.json`, how the study stands, for trackers, and the page."""
    from nested.tuning import page

    values, record = found(study).as_json(), study.record
    status = "done" if study.finished() else "interrupted"
    config = flatten(rundir.read_config(study.path))
    rundir.write_json(
        study.path / "result.json",
        {
            "format": 1, "kind": "study", "run_id": study.name, "label": study.name, "status": status,
            "stream": record["choices"].get("stream"), "scenario": config.get("stream.scenario"),
            "seeds": study.seeds, "config": {k: v for k, v in config.items() if not k.startswith("choices.")},
            "choices": record["choices"], "runs": [], "mean": _means(study), "ci95": {}, "problems": [],
            **{k: values[k] for k in ("trials", "objective", "directions", "best")},
        },
    )  # fmt: skip
    page.write(study)


def _means(study: Study) -> dict[str, float]:
    """The best trial's values, for the study's run in a tracker."""
    first = best(study) if study.objective.single else ()
    return {f"best/{n}": v for t in first for n, v in zip(study.objective.names, t.values)}


def show(study: Study) -> list[str]:
    """Every trial in a line, and the verdict."""
    counts = found(study).as_json()
    standing = ", ".join(f"{counts[s.lower()]} {s.lower()}" for s in STATES if counts[s.lower()])
    ended = [line(study, t) for t in study.trials("COMPLETE", "PRUNED", "FAIL")]
    return [f"{study.name}: {counted(counts['trials'], 'trial')}: {standing}", *ended, verdict(study)]
