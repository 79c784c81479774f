"""A study: a directory, the trials asked for as slots in a storage, and who works on which.

runs/<study>/{FORMAT, config.yaml, study.json, study.db, trial-0000/, ..., result.json}. A trial begins as a slot
that waits, a few being made ahead; a worker claims one. The trial of a dead worker waits again under its number, with
the values it was given, and its run goes on from the last checkpoint: none is lost, none counted twice, and as only
numbers below the one asked for are ever claimed, their number is exact.
Every change of a trial's state is made under a lock on a file of the directory: SQLite knows no lock on a row, so that
two workers could both believe that a trial is theirs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from nested import rundir
from nested.errors import UserError
from nested.tuning import pruning, samplers, storage
from nested.tuning.objective import Objective
from nested.tuning.settings import Request
from nested.tuning.space import Dimension, Scalar, told

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial

    from nested.tuning.feasible import Rehearsal

RECORD = "study.json"
CLAIMS = ".claims"  # the file that is locked
AHEAD = 8  # slots that wait: every look at the trials reads all of them, and thousands would slow down each report
DRAWS = 100  # of one trial's values, until some can be run
REFUSED = "refused"  # the user attribute of a trial: how many draws could not be run, and the first with the reason
DEATHS = "deaths"  # the user attribute of a trial: how many workers died on it
SAME = "same_as"  # the user attribute of a trial: the earlier one whose numbers it has
MOST_DEATHS = 5  # workers that may die on one trial before it counts as failed
NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)  # of a disk without them, where SQLite does not work either


class Study:
    """A study that exists. Raises UserError when the directory is none or its storage cannot be reached."""

    def __init__(self, path: Path):
        self.path = path
        file = path / RECORD
        if not file.is_file():
            text = f"{path} is no study: it has no {RECORD}"
            raise UserError(text, key="study", seen=str(path))
        self.record: dict[str, Any] = rundir.read_json(file)
        self.request = Request.from_dict(self.record["request"])
        self.dimensions = [Dimension(p, **_tuples(d)) for p, d in self.record["spec"]["space"].items()]
        about = self.record["spec"]["objective"]
        self.objective = Objective(tuple(about["names"]), tuple(about["directions"]), about["budget"])
        self.seeds: list[int] = self.record["seeds"]
        self.experiences: int = self.record["experiences"]
        self.n_trials: int = self.record["n_trials"]

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def rehearsal(self) -> Rehearsal:
        """Tells which values can be run."""
        from nested.tuning.feasible import Rehearsal

        return Rehearsal(self.request)

    @cached_property
    def storage(self) -> BaseStorage:
        """Opened once for each process."""
        return storage.opened(self.record["storage"], self.request.tune.grace_seconds)

    def optuna(self, number: int = 0) -> optuna.Study:
        """As Optuna sees it, with the sampler of trial `number`."""
        from optuna import load_study

        tune = self.request.tune
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            judge = pruning.pruner(tune, self.experiences, len(self.seeds))
            return load_study(
                study_name=self.name, storage=self.storage, sampler=samplers.sampler(tune, number), pruner=judge
            )

    @cached_property
    def _id(self) -> int:
        return self.storage.get_study_id_from_name(self.name)

    def trials(self, *states: str) -> list[FrozenTrial]:
        """The trials in these states (WAITING, RUNNING, COMPLETE, PRUNED, FAIL), in order; all without any."""
        wanted = _states(*states) if states else None
        every = self.storage.get_all_trials(self._id, deepcopy=False, states=wanted)
        return [t for t in every if t.number < self.n_trials]

    def finished(self) -> bool:
        """Whether every trial that was asked for has ended."""
        return len(self.trials("COMPLETE", "PRUNED", "FAIL")) == self.n_trials

    def directory(self, number: int) -> Path:
        """Where a trial's runs are."""
        return self.path / f"trial-{number:04d}"

    # -- who works on what --------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Make the first slots that are missing; the others follow as these are claimed."""
        with self.held():
            self._fill(len(self.trials("WAITING")))

    def _fill(self, waiting: int) -> None:
        have = len(self.trials())
        wanted = range(have, min(self.n_trials, have + AHEAD - waiting))
        if not wanted:
            return
        study, fixed = self.optuna(), self.record["fixed"]
        for number in wanted:
            study.enqueue_trial(fixed[number] if number < len(fixed) else {})

    def claim(self, worker: str) -> Trial | None:
        """The first trial that waits, now this worker's; None when none waits."""
        from optuna.trial import Trial

        claimed = self._claimed(worker)
        if claimed is None:
            return None
        study = self.optuna(claimed.number)
        try:
            self._draw(study, claimed)
        except BaseException:
            self.put_back(claimed._trial_id, worker)
            raise
        return Trial(study, claimed._trial_id)

    def _claimed(self, worker: str) -> FrozenTrial | None:
        with self.held():
            waiting = self.trials("WAITING")
            if len(waiting) <= AHEAD // 2:
                self._fill(len(waiting))
                waiting = self.trials("WAITING")
            for trial in waiting:
                self.storage.set_trial_user_attr(trial._trial_id, "worker", worker)
                if self.storage.set_trial_state_values(trial._trial_id, _states("RUNNING")[0]):
                    return self.storage.get_trial(trial._trial_id)
        return None

    def _draw(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Give a trial all its values at once, as Optuna's fixed ones: the first drawn that can be run.

        Were they suggested one by one, a worker killed between two would leave a trial whose second value is drawn
        anew, with the numbers that the first had. Where none of `DRAWS` can be run, the trial has the last, and fails.
        """
        fixed = dict(trial.system_attrs.get("fixed_params", {}))
        if all(d.path in fixed for d in self.dimensions):
            return
        refused: list[str] = []
        values = fixed
        for draw in range(DRAWS):
            values = self._drawn(study, trial, fixed, draw)
            refusal = self.rehearsal.refusal(values)
            if refusal is None:
                break
            refused.append(f"{told(values)}: {refusal}")
        if refused:
            self.storage.set_trial_user_attr(trial._trial_id, REFUSED, [len(refused), refused[0]])
        self.storage.set_trial_system_attr(trial._trial_id, "fixed_params", values)

    def _drawn(
        self, study: optuna.Study, trial: FrozenTrial, fixed: Mapping[str, Scalar], draw: int
    ) -> dict[str, Scalar]:
        sampler = samplers.sampler(self.request.tune, trial.number, draw)
        together = sampler.infer_relative_search_space(study, trial)
        values = sampler.sample_relative(study, trial, together)
        drawn = dict(fixed)
        for d in self.dimensions:
            if d.path in fixed:
                continue
            only, found = d.distribution().single(), values.get(d.path)
            if only:
                found = d.points()[0]
            elif d.path not in values or not d.holds(found):
                found = sampler.sample_independent(study, trial, d.path, d.distribution())
            drawn[d.path] = found
        return drawn

    def put_back(self, trial_id: int, worker: str | None, died: bool = False) -> bool:
        """Let a trial wait again, if it is still this worker's. One on which too many died is a failed one."""
        with self.held():
            trial = self.storage.get_trial(trial_id)
            if trial.state.name != "RUNNING" or trial.user_attrs.get("worker") != worker:
                return False
            deaths = int(trial.user_attrs.get(DEATHS, 0)) + died
            if died:
                self.storage.set_trial_user_attr(trial_id, DEATHS, deaths)
            if deaths >= MOST_DEATHS:
                reason = f"{deaths} workers died on it"
                self.storage.set_trial_user_attr(trial_id, "reason", reason)
            state = "FAIL" if deaths >= MOST_DEATHS else "WAITING"
            self.storage.set_trial_state_values(trial_id, _states(state)[0])
            return True

    def put_back_all(self, worker: str) -> list[int]:
        """Let everything wait again that a worker had in hand when it died; returns the trials' numbers."""
        held = [t for t in self.trials("RUNNING") if t.user_attrs.get("worker") == worker]
        return [t.number for t in held if self.put_back(t._trial_id, worker, died=True)]

    def tell(
        self,
        trial: Trial,
        worker: str,
        state: str,
        values: Sequence[float] | None = None,
        reason: str | None = None,
    ) -> bool:
        """End a trial; False, and nothing is changed, when it is no longer this worker's."""
        with self.held():
            now = self.storage.get_trial(trial._trial_id)
            if now.state.name != "RUNNING" or now.user_attrs.get("worker") != worker:
                return False
            if reason:
                trial.set_user_attr("reason", reason)
            trial.study.tell(trial, None if values is None else list(values), state=_states(state)[0])
            return True

    def beat(self, worker: str, count: int) -> None:
        """Say that a worker lives: a number that changes."""
        self.storage.set_study_user_attr(self._id, f"beat/{worker}", count)

    def beats(self) -> dict[str, int]:
        """Worker -> the number it last said."""
        said = self.storage.get_study_user_attrs(self._id)
        return {k.removeprefix("beat/"): v for k, v in said.items() if k.startswith("beat/")}

    def held(self) -> contextlib.AbstractContextManager[None]:
        """One process at a time."""
        return held(self.path)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the directory of a study: one process at a time on this machine, or on a disk that locks for several."""
    while True:
        with rundir.said(path):
            path.mkdir(parents=True, exist_ok=True)
            file = (path / CLAIMS).open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            if not _is_at(file, path / CLAIMS):
                continue  # whoever held it has taken the directory away: a study that came to nothing
            yield
            return


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _states(*names: str) -> tuple[Any, ...]:
    from optuna.trial import TrialState

    return tuple(TrialState[n] for n in names)


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
