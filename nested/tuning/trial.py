"""One trial: the values it is given, its config, its runs, and how it ended.

The trial's directory has events of its own for a tracker: start, params, tags, numbers after each experience, end with
done, pruned or failed.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nested import rundir
from nested.errors import NestedError, Pruned, UserError
from nested.rundir import SeedDir
from nested.settings import Config
from nested.tuning import pruning
from nested.tuning.objective import Unavailable, mean
from nested.tuning.space import override
from nested.tuning.study import SAME, Study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

UNEXPECTED = "unexpected"
WORDS = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}
TRACKED = "nested.id"  # what the tracker's run of a trial is tagged with, so that one finds the other
SHOWN = ("acc", "learning_acc", "forgetting", "flops", "parameter_updates", "seconds")  # kept for every trial


class Outcome(Protocol):
    """What a runner returns: `nested.result.Result` is one."""

    status: str
    problems: list[str]

    @property
    def runs(self) -> Sequence[Mapping[str, Any]]:
        """The summaries of its seeds."""
        ...


AfterRow = Callable[[int, int, dict[str, Any]], None]
Runner = Callable[[Config, Path, AfterRow], Outcome]


class Busy(NestedError):
    """Another worker has this trial: it writes its runs, or has ended it since this one was believed dead."""


def run(study: Study, trial: Trial, worker: str, runner: Runner) -> str:
    """Run a trial to its end; returns how it ended: done, pruned, failed (with the user attribute `reason`), or broken.

    A config that cannot be and a run that diverges are failed trials; so is an error in the code that is searched,
    returned as broken. Raises Busy, Interrupted (a KeyboardInterrupt), and NestedError or OSError when the machine
    failed: the trial can then go on.
    """
    from optuna.exceptions import UpdateFinishedTrialError

    path = study.directory(trial.number)
    begun = path.exists()
    path.mkdir(exist_ok=True)
    _check_free(path)
    try:
        return _run(study, trial, worker, runner, begun)
    except UpdateFinishedTrialError as error:
        raise Busy(str(error)) from None


def _run(study: Study, trial: Trial, worker: str, runner: Runner, begun: bool) -> str:
    """`begun`: by a worker before this one."""
    events = SeedDir(path := study.directory(trial.number))
    params = {d.path: d.suggest(trial) for d in study.dimensions}
    trial.set_user_attr(TRACKED, f"{study.name}/{path.name}")
    events.event("start", run_id=study.name, label=study.record["label"], trial=trial.number)
    events.event("params", values=params)
    events.event("tags", values={**study.record["choices"], "study": study.name, "trial": trial.number})
    twin = None if begun else _twin(study, trial.number, params)
    ended = _taken(study, trial, twin, events) if twin else _attempt(study, trial, params, events, runner)
    state, values, reason = ended
    told = dict(zip(study.objective.names, values or []))
    more = {"problem": reason} if reason else {}
    events.event("end", status=WORDS[state], values={f"objective/{k}": v for k, v in told.items()}, **more)
    study.tell(trial, worker, state, values, reason)
    return "broken" if reason and reason.startswith(UNEXPECTED) else WORDS[state]


def _check_free(path: Path) -> None:
    try:
        with rundir.locked(path):
            pass
    except UserError as error:
        raise Busy(error.message) from None


Ended = tuple[str, list[float] | None, str | None]


def _twin(study: Study, number: int, params: Mapping[str, Any]) -> FrozenTrial | None:
    """An earlier whole trial of these values, that has run: with equal seeds its numbers are equal, but the clock."""
    if "seconds" in (*study.objective.names, *study.objective.budget):
        return None
    ran = (t for t in study.trials("COMPLETE") if t.number < number and SAME not in t.user_attrs)
    return next((t for t in ran if t.params == params), None)


def _taken(study: Study, trial: Trial, twin: FrozenTrial, events: SeedDir) -> Ended:
    """What an earlier trial of the same values came to, as this one's, of which nothing is told yet: it is not run."""
    trial.set_user_attr(SAME, twin.number)
    for name, value in twin.user_attrs.items():
        if name == "summary" or name.startswith(pruning.AT):
            trial.set_user_attr(name, value)
    for name, excess in twin.constraints.items():
        trial.set_constraint(name, excess)
    for step, value in twin.intermediate_values.items():
        trial.report(value, step)
    for event in rundir.read_events(study.directory(twin.number) / "events.jsonl"):
        if event["event"] == "metrics":
            events.metrics(event["step"], event["values"])
    return "COMPLETE", list(twin.values), None


def _attempt(study: Study, trial: Trial, params: Mapping[str, Any], events: SeedDir, runner: Runner) -> Ended:
    """(state, values, what went wrong)."""
    from optuna.exceptions import UpdateFinishedTrialError

    watch = Watch(study, trial, events)
    try:
        config = study.request.config([override(k, v) for k, v in params.items()])
        outcome = runner(config, events.path, watch.after_row)
        return _judged(study, trial, outcome)
    except (UserError, Unavailable) as error:
        return "FAIL", None, str(error)
    except (NestedError, OSError, UpdateFinishedTrialError):
        raise
    except Exception as error:  # of a component, with these values
        traceback.print_exc()
        return "FAIL", None, f"{UNEXPECTED} {type(error).__name__}: {' '.join(str(error).split())}"


def _judged(study: Study, trial: Trial, outcome: Outcome) -> Ended:
    """What the runs came to: the budget's excess is told of pruned trials too, for what they spent until then."""
    if outcome.status not in ("done", "pruned"):
        return "FAIL", None, "; ".join(outcome.problems) or outcome.status
    runs = outcome.runs
    trial.set_user_attr("summary", {name: _known(name, runs) for name in SHOWN})
    for name, excess in study.objective.excess(runs).items():
        if name not in trial.constraints:  # not told by a worker that died then
            trial.set_constraint(name, excess)
    if outcome.status == "pruned":
        return "PRUNED", None, None
    return "COMPLETE", study.objective.of_runs(runs), None


def _known(name: str, runs: Sequence[Mapping[str, Any]]) -> float | None:
    try:
        return mean(name, runs)
    except Unavailable:
        return None


class Watch:
    """Told after each experience how a seed does; records it, and ends the trial when it is not worth continuing."""

    def __init__(self, study: Study, trial: Trial, events: SeedDir):
        self.study, self.trial, self.events = study, trial, events
        self.reported = dict(study.storage.get_trial(trial._trial_id).intermediate_values)

    def after_row(self, seed: int, row: int, values: dict[str, Any]) -> None:
        """Raises Pruned."""
        n, place = self.study.experiences, self.study.seeds.index(seed)
        step = place * n + values["experience"]
        known = {k: v for k, v in values.items() if isinstance(v, int | float) and k != "experience"}
        self.events.metrics(step, known)
        told = self.study.objective.so_far(values)
        tune, last = self.study.request.tune, step == n * len(self.study.seeds) - 1  # then nothing is left to spare
        if self.study.objective.single and tune.pruner == "wilcoxon":
            if values["experience"] == n - 1:
                self._report(place, told[0], last)  # one value for each seed
            return
        before = self._at(place * n - 1) if place else []
        told = pruning.so_far(told, before, place)
        if self.study.objective.single:
            self._report(step, told[0], last)
        else:
            self._compare(step, told, last)

    def _at(self, step: int) -> list[float | None]:
        """What was reported at a step before."""
        if self.study.objective.single:
            return [self.reported.get(step)]
        return self.trial.user_attrs[pruning.at(step)]

    def _report(self, step: int, value: float | None, last: bool) -> None:
        if value is None:
            return
        if step not in self.reported:  # else a run that goes on says again what it said
            self.trial.report(value, step)
            self.reported[step] = value
        if not last and self.trial.should_prune():
            raise Pruned(f"step {step}")

    def _compare(self, step: int, values: list[float | None], last: bool) -> None:
        self.trial.set_user_attr(pruning.at(step), values)
        tune = self.study.request.tune
        if last or tune.pruner == "none" or step < pruning.warmup(tune, self.study.experiences, len(self.study.seeds)):
            return
        others = pruning.reached(self.study.trials("COMPLETE", "PRUNED"), step)
        if pruning.dominated(values, others, self.study.objective.directions, tune):
            raise Pruned(f"step {step}")
