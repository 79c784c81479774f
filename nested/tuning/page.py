"""A study as its page knows it: Optuna's trials as plain records, how much each dimension matters, what was chosen."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nested import rundir
from nested.config import flatten
from nested.report import study as pages
from nested.report import trials as records
from nested.report.records import number
from nested.tuning import best, pruning, search
from nested.tuning.choice import chosen
from nested.tuning.study import DEATHS, SAME, Study
from nested.tuning.trial import WORDS

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

ENOUGH = 8  # whole trials, to say what the best of them have in common


def write(study: Study, out: Path | None = None) -> Path:
    """The page, by default `report.html` in the study's directory, from what its storage and directory hold."""
    return pages.page(record(study), out or study.path / "report.html")


def record(study: Study) -> records.Study:
    """All that the page shows."""
    trials = study.trials()
    first = trials[0].number if trials and study.record["defaults_first"] else None
    tune = study.request.as_dict()["tune"]
    return records.Study(
        name=study.name,
        title=f"{study.record['label']} on {study.record['choices'].get('stream', 'a stream of your own')}",
        objectives=study.objective.names,
        directions=study.objective.directions,
        axes=tuple(records.Axis(d.path, d.log, d.choices, d.choices is None and d.whole) for d in study.dimensions),
        trials=tuple(_trial(study, t) for t in trials),
        planned=study.n_trials,
        seeds=tuple(study.seeds),
        experiences=study.experiences,
        front=tuple(t.number for t in search.best(study)),
        chosen=tuple(t.number for t in chosen(study, 1 if study.objective.single else 3)),
        default=first,
        importances=_importances(study),
        budget=study.objective.budget,
        settings=flatten({**tune, "overrides": [*tune["overrides"], *study.request.overrides]}),
        config={k: v for k, v in flatten(rundir.read_config(study.path)).items() if not k.startswith("choices.")},
        verdict=search.verdict(study) if trials else "",
        fresh=best.recorded(study.path),
    )


def _trial(study: Study, trial: FrozenTrial) -> records.Trial:
    state = WORDS.get(trial.state.name, trial.state.name.lower())
    begun, ended = trial.datetime_start, trial.datetime_complete
    curves = _curves(study, trial) if state != "waiting" else ()
    last = max((step for curve in curves for step, _ in curve), default=-1)
    return records.Trial(
        number=trial.number,
        state=state,
        params=trial.params,
        values=tuple(trial.values) if state == "done" else None,
        curves=curves,
        reached=study.experiences * len(study.seeds) if state == "done" else last + 1,
        summary=trial.user_attrs.get("summary") or {},
        seconds=(ended - begun).total_seconds() if begun and ended else None,
        over_budget=not pruning.within_budget(trial),
        reason=trial.user_attrs.get("reason"),
        deaths=trial.user_attrs.get(DEATHS, 0),
        same=trial.user_attrs.get(SAME),
    )


def _curves(study: Study, trial: FrozenTrial) -> tuple[records.Curve, ...]:
    """Each objective at each step, the mean over seeds begun as trials are compared, from the trial's events.

    A storage has them of some pruners alone.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in study.objective.names}
    for event in rundir.read_events(study.directory(trial.number) / "events.jsonl"):
        values = (event.get("values") or {}) if event.get("event") == "metrics" else {}
        for name, curve in found.items():
            if (known := number(values.get(name))) is not None:
                place = int(event["step"]) // study.experiences
                (mean,) = pruning.so_far([known], [curve.get(place * study.experiences - 1)], place)
                if mean is not None:
                    curve[int(event["step"])] = mean
    return tuple(tuple(sorted(curve.items())) for curve in found.values())


def _importances(study: Study) -> dict[str, dict[str, float]]:
    """Objective -> dimension -> share of 1, by Optuna's default (PED-ANOVA); {} where little can be said."""
    from optuna.importance import get_param_importances
    from optuna.trial import TrialState

    whole = study.trials("COMPLETE")
    if len(whole) < ENOUGH or len(study.dimensions) < 2:
        return {}
    seen, found = study.optuna(), {}
    for k, (name, way) in enumerate(zip(study.objective.names, study.objective.directions)):
        sign = -1.0 if way == "maximize" else 1.0  # where a target is given, low ones are good

        def target(trial: FrozenTrial, k: int = k, sign: float = sign) -> float:
            return sign * trial.values[k] if trial.state == TrialState.COMPLETE else float("inf")

        if len({t.values[k] for t in whole}) < 2:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                shares: dict[str, Any] = get_param_importances(seen, target=target)
            except (ValueError, RuntimeError):
                continue
        if sum(shares.values()) > 0:
            found[name] = shares
    return found
