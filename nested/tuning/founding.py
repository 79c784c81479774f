"""How a study comes to be, or goes on: what its trials depend on is recorded, and must be asked for again.

The number of trials may grow, workers and storage may change; anything else is refused with the difference shown.
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nested import continuing, rundir
from nested.config import flatten
from nested.errors import UserError
from nested.settings import Config
from nested.tuning import storage
from nested.tuning.objective import Objective
from nested.tuning.settings import Request
from nested.tuning.space import Dimension
from nested.tuning.study import CLAIMS, RECORD, Study, held

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

FORMAT = 1


def spec(request: Request, config: Config, dimensions: Sequence[Dimension], objective: Objective) -> dict[str, Any]:
    """All that a study's trials depend on: what must be equal for the study to be continued."""
    tune = request.tune
    values = flatten(rundir.as_stored(config.to_dict()))
    own = ("sampler", "seed", "pruner", "startup", "warmup", "reduction", "p_value", "prefix")
    return rundir.as_stored(
        {
            "space": {d.path: d.as_dict() for d in dimensions},
            "objective": {
                "names": objective.names, "directions": objective.directions, "budget": objective.budget,
            },
            "tune": {name: getattr(tune, name) for name in own},
            "config": {k: v for k, v in values.items() if not k.startswith((*continuing.FREE, "choices.", "label"))},
        }
    )  # fmt: skip


def difference(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> continuing.Difference:
    """Path -> what is recorded, what is asked for, where they differ; a config value by its own path."""
    return continuing.difference(_paths(recorded), _paths(now))


def _paths(values: Mapping[str, Any]) -> dict[str, Any]:
    rest = {k: v for k, v in values.items() if k != "config"}
    said = {"objective": "tune.objective", "space": "tune.space"}
    parts = ({f"{said.get(k, k)}.{p}" if p else k: x for p, x in flatten(v).items()} for k, v in rest.items())
    return {**values["config"], **{k: v for part in parts for k, v in part.items()}}


def create(
    path: Path,
    request: Request,
    config: Config,
    dimensions: Sequence[Dimension],
    objective: Objective,
    experiences: int,
    fixed: Sequence[Mapping[str, Any]],
    n_trials: int,
    defaults_first: bool = True,
) -> Study:
    """The study at `path`: a new one, or the one that is there, if it asks for the same.

    Trial i has the values `fixed[i]`, where there are such.

    Raises UserError with the difference for another one, for a smaller number of trials, and for a storage that holds a
    study of this name which this directory knows nothing of.
    """
    wanted = spec(request, config, dimensions, objective)
    uri = storage.address(request.tune.storage, path)
    record = {
        "format": FORMAT, "name": path.name, "storage": storage.without_password(uri), "spec": wanted,
        "request": request.as_dict(), "seeds": config.seed_list(), "experiences": experiences,
        "n_trials": n_trials, "fixed": [dict(f) for f in fixed], "defaults_first": defaults_first,
        "label": config.name(), "choices": config.choices,
    }  # fmt: skip
    record["request"]["tune"]["storage"] = record["storage"]
    made = [p for p in path.parents if not p.exists()]
    with held(path), _nothing_left(path, made):
        if (path / RECORD).is_file():
            before = rundir.read_json(path / RECORD)
            _check_same(path.name, before, wanted, n_trials)
            if before["storage"] != record["storage"]:
                _move(path, before["storage"], uri, request.tune.grace_seconds)
        else:
            _found(path, config, uri, objective, request.tune.grace_seconds)
        rundir.write_json(path / RECORD, record)
    return Study(path)


@contextlib.contextmanager
def _nothing_left(path: Path, made: Sequence[Path]) -> Iterator[None]:
    """Take what was made of a study away again where it does not come to be, if nothing else is in its directory.

    With it the directories that were made to hold it, the nearest first.
    """
    there = {f.name for f in path.iterdir()} - {CLAIMS}
    try:
        yield
    except BaseException:
        if not there:
            shutil.rmtree(path)
            with contextlib.suppress(OSError):  # another run has begun there meanwhile
                for parent in made:
                    parent.rmdir()
        elif RECORD not in there:
            (path / CLAIMS).unlink()
        raise


def _check_same(name: str, before: Mapping[str, Any], wanted: Mapping[str, Any], n_trials: int) -> None:
    changed = difference(before["spec"], wanted)
    if changed:
        how = "Continue without these, or name another: tune.study=..."
        text = f"{name!r} asks for something else: {continuing.told(changed)}. {how}"
        raise UserError(text, key="tune.study", seen=list(changed))
    if n_trials < before["n_trials"]:
        have = before["n_trials"]
        text = f"{name!r} has {have} trials already; ask for as many, or more, or name another: tune.study=..."
        raise UserError(text, key="tune.n_trials", seen=n_trials, allowed=f">= {have}")


def _found(path: Path, config: Config, uri: str, objective: Objective, grace_seconds: float) -> None:
    """A new study: its directory, and its name in the storage. Raises UserError where the name is taken."""
    if (path / "FORMAT").exists() or any(path.glob("*/FORMAT")):
        text = f"{path} is a run or a contest, not a study; name the study otherwise: tune.study=..."
        raise UserError(text, key="tune.study", seen=path.name)
    made = storage.opened(uri, grace_seconds)
    known = {s.study_name: [d.name.lower() for d in s.directions] for s in made.get_all_studies()}
    if known.get(path.name, list(objective.directions)) != list(objective.directions):
        text = (
            f"the storage has a study {path.name!r} with the directions {known[path.name]}, asked for are "
            f"{list(objective.directions)}; name another: tune.study=..."
        )
        raise UserError(text, key="tune.study", seen=path.name)
    if path.name in known and made.get_all_trials(made.get_study_id_from_name(path.name), deepcopy=False):
        text = f"the storage has a study {path.name!r} with trials, of which {path} knows nothing; name another"
        raise UserError(text, key="tune.study", seen=path.name)
    if path.name not in known:
        made.create_new_study(_directions(objective), path.name)
        _name_values(made, path.name, objective)
    rundir.open_at(path, rundir.as_stored(config.to_dict()))


def _directions(objective: Objective) -> list[Any]:
    from optuna.study import StudyDirection

    return [StudyDirection[d.upper()] for d in objective.directions]


def _name_values(made: BaseStorage, study: str, objective: Objective) -> None:
    """For Optuna's own pages, which else show "Objective 0"."""
    from optuna import load_study

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_study(study_name=study, storage=made).set_metric_names(list(objective.names))


def _move(path: Path, old: str, new: str, grace_seconds: float) -> None:
    """Take the trials to another storage. Raises UserError when one of the two cannot be reached, or has the name."""
    from optuna import copy_study

    here, there = storage.opened(old, grace_seconds), storage.opened(new, grace_seconds)
    if path.name in {s.study_name for s in there.get_all_studies()}:
        text = f"{storage.without_password(new)} has a study {path.name!r} already; give the one used, {old}"
        raise UserError(text, key="tune.storage", seen=storage.without_password(new), allowed=old)
    copy_study(from_study_name=path.name, from_storage=here, to_storage=there, to_study_name=path.name)
