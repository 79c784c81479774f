from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from tuning.landscape import EXPERIENCES, PERIOD, PLANTED, RATE, planted, run, small_study, told, worked

from nested.config import composer
from nested.errors import UserError
from nested.tuning import pruning, samplers
from nested.tuning.search import best, line
from nested.tuning.settings import request

BASE = composer([])


def steps(study: Any) -> int:
    return sum(len((study.directory(t.number) / "steps").read_text()) for t in study.trials())


def judged(values: dict[int, float], others: list[dict[int, float]], direction: str = "maximize", **more: Any) -> bool:
    study = optuna.create_study(direction=direction)
    for curve in others:
        excess = more.get("excess", 0.0)
        whole = create_trial(
            value=curve[max(curve)], intermediate_values=curve, system_attrs={"constraints:flops": excess}
        )
        study.add_trial(whole)
    running = create_trial(state=TrialState.RUNNING, intermediate_values=values)
    return pruning.MedianAtStep(more.get("startup", 3), more.get("warmup", 1)).prune(study, running)


FALLING = [{0: 1.0, 1: 0.8, 2: v} for v in (0.5, 0.6, 0.7)]


def test_a_trial_below_the_median_at_its_step_is_pruned_though_it_began_best():
    assert judged({0: 1.0, 1: 0.8, 2: 0.59}, FALLING)
    assert not judged({0: 1.0, 1: 0.8, 2: 0.6}, FALLING)
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(3))
    for curve in FALLING:
        study.add_trial(create_trial(value=0.0, intermediate_values=curve))
    running = create_trial(state=TrialState.RUNNING, intermediate_values={0: 1.0, 1: 0.8, 2: 0.0})
    assert not study.pruner.prune(study, running), "Optuna's own looks at the best value so far"


def test_a_trial_that_does_as_well_as_the_best_did_at_its_step_goes_on_though_the_median_was_higher():
    crossing = [{0: 0.9, 1: 0.5}, {0: 0.8, 1: 0.4}, {0: 0.5, 1: 0.7}]
    assert not judged({0: 0.5}, crossing, warmup=0)
    assert judged({0: 0.49}, crossing, warmup=0)
    mirrored = [{step: -value for step, value in curve.items()} for curve in crossing]
    assert not judged({0: -0.5}, mirrored, "minimize", warmup=0)
    assert judged({0: -0.49}, mirrored, "minimize", warmup=0)


def test_the_median_waits_for_startup_warmup_and_the_budget():
    bad = {0: 1.0, 1: 0.8, 2: 0.1}
    assert judged(bad, FALLING)
    assert judged({0: 0.9}, [{0: 0.1}] * 3, "minimize", warmup=0)
    assert not judged(bad, FALLING, startup=4)
    assert not judged(bad, FALLING, warmup=3)
    assert not judged(bad, FALLING, excess=0.1), "trials over the budget are no measure"


@pytest.mark.parametrize("words, seeds, first", [([], 1, 2), ([], 3, 4), (["tune.warmup=0"], 3, 0)])
def test_nothing_is_judged_before_a_stream_is_seen_or_half_of_a_single_one(words: list[str], seeds: int, first: int):
    tune = request(["tune=rate", *words]).tune
    assert pruning.warmup(tune, EXPERIENCES, seeds) == first
    assert pruning.warmup(request(["tune=rate"]).tune, 1, seeds) == 0, "of one experience alone each seed is whole"


def test_what_is_told_is_the_mean_over_the_seeds_begun():
    assert pruning.so_far([0.4, None], [], 0) == [0.4, None]
    assert pruning.so_far([1.0, 3.0, None], [0.5, None, 2.0], 1) == [0.75, None, None]
    assert pruning.so_far([0.9], [0.6], 2) == [pytest.approx(0.7)]


def test_dominance_needs_one_better_and_none_worse():
    way = ["maximize", "minimize"]
    assert pruning.dominates([0.5, 3], [0.5, 4], way)
    assert not pruning.dominates([0.5, 3], [0.5, 3], way)
    assert not pruning.dominates([0.6, 5], [0.5, 4], way)
    assert pruning.dominates([0.6, None], [0.5, 4], way)
    tune = request(["tune=rate", "tune.startup=4"]).tune
    better, other = [0.6, 3.0], [0.4, 9.0]
    assert pruning.dominated([0.5, 4.0], [better, better, other, other], way, tune)
    assert not pruning.dominated([0.5, 4.0], [better, other, other, other], way, tune)
    assert not pruning.dominated([0.5, 4.0], [better] * 3, way, tune), "too few to say"


@pytest.mark.parametrize(
    "words, said",
    [
        (["tune.objective=[acc,flops]", "tune.pruner=hyperband"], "dominance"),
        (["tune.pruner=wilcoxon", "seeds=2"], "seeds=5"),
        (["tune.pruner=wilcoxon", "tune.p_value=0.3", "seeds=2"], "seeds=3"),
    ],
)
def test_a_pruner_that_could_never_prune_is_refused(words: list[str], said: str):
    asked = request(["tune=rate", *words])
    n = 1 if isinstance(asked.tune.objective, str) else len(asked.tune.objective)
    with pytest.raises(UserError, match=said):
        pruning.check(asked.tune, n, len(asked.config().seed_list()))


@pytest.mark.parametrize("pruner, seeds", [("median", 2), ("hyperband", 2), ("wilcoxon", 6)])
def test_every_pruner_saves_steps_and_keeps_the_best(pruner: str, seeds: int, tmp_path: Path):
    words = [PERIOD, RATE, f"seeds={seeds}", "tune.n_trials=12"]
    whole = worked(small_study(tmp_path / "whole", *words, "tune.pruner=none"))
    pruned = worked(small_study(tmp_path / "pruned", *words, f"tune.pruner={pruner}"))
    ended = [t for t in pruned.trials() if t.state.name == "PRUNED"]
    assert steps(whole) == 12 * seeds * EXPERIENCES
    assert steps(pruned) < 0.8 * steps(whole)
    assert ended
    for trial in ended:
        taken = len((pruned.directory(trial.number) / "steps").read_text())
        assert f"pruned after {taken} of {seeds * EXPERIENCES} experiences" in line(pruned, trial)
    assert len(pruned.trials()) == 12
    assert best(pruned)[0].value == pytest.approx(best(whole)[0].value, abs=0.005)


def test_pruning_compares_equal_seeds_and_spares_the_later_ones(tmp_path: Path):
    study = worked(small_study(tmp_path, RATE, "seeds=3", "tune.n_trials=15"))
    for trial in study.trials():
        assert set(trial.intermediate_values) == set(range(len(trial.intermediate_values)))
        runs = sorted(p.name for p in study.directory(trial.number).glob("seed-*.json"))
        if trial.state.name == "COMPLETE":
            assert len(trial.intermediate_values) == 3 * EXPERIENCES
            assert trial.intermediate_values[3 * EXPERIENCES - 1] == pytest.approx(trial.value)
            assert len(runs) == 3
        else:  # before its last step: then there is nothing left to spare
            assert len(trial.intermediate_values) < 3 * EXPERIENCES
            assert len(runs) == -(-len(trial.intermediate_values) // EXPERIENCES)


def test_several_objectives_are_recorded_at_every_experience_and_pruned(tmp_path: Path):
    study = worked(small_study(tmp_path, PERIOD, RATE, "tune.objective=[acc,forgetting,flops]", "tune.n_trials=20"))
    whole = [t for t in study.trials() if t.state.name == "COMPLETE"]
    pruned = [t for t in study.trials() if t.state.name == "PRUNED"]
    assert pruned
    assert all(f"at/{EXPERIENCES - 1}" in t.user_attrs for t in whole)
    for trial in pruned:
        step = max(int(k[3:]) for k in trial.user_attrs if k.startswith("at/"))
        assert 1 <= step < EXPERIENCES - 1
        before = [t for t in study.trials() if t.number < trial.number]
        others = pruning.reached(before, step)
        worse = sum(pruning.dominates(o, trial.user_attrs[f"at/{step}"], study.objective.directions) for o in others)
        assert 2 * worse >= len(others) >= 5


def search_planted(seed: int, *words: str, n_seeds: int = 3) -> tuple[int, float]:
    """The period found in 40 trials in memory, with our samplers and pruners, and the share of steps taken."""
    tune = request(["tune=rate", f"tune.seed={seed}", *words]).tune
    config = BASE()
    study = optuna.create_study(direction="maximize", pruner=pruning.pruner(tune, EXPERIENCES, n_seeds))
    taken = 0
    for number in range(40):
        study.sampler = samplers.sampler(tune, number)
        trial = study.ask()
        size, rate = trial.suggest_int("period", 1, 32, log=True), trial.suggest_float("rate", 1e-3, 1, log=True)
        one = replace(config, trainer=replace(config.trainer, batch_size=size), optim={**config.optim, "lr": rate})
        state = TrialState.COMPLETE
        for step in range(n_seeds * EXPERIENCES):
            taken += 1
            seed, experience = divmod(step, EXPERIENCES)
            before = [fmean(planted(one, s, EXPERIENCES - 1) for s in range(seed))] if seed else []
            (value,) = pruning.so_far([planted(one, seed, experience)], before, seed)
            assert value is not None
            trial.report(value, step)
            if step < n_seeds * EXPERIENCES - 1 and trial.should_prune():
                state = TrialState.PRUNED
                break
        study.tell(trial, value if state == TrialState.COMPLETE else None, state)
    return study.best_params["period"], taken / (40 * n_seeds * EXPERIENCES)


@pytest.mark.parametrize(
    "words, most",
    [
        (["tune.pruner=none"], 1.0),
        (["tune.pruner=median"], 0.7),
        (["tune.pruner=median", "tune.warmup=0"], 0.6),
        (["tune.pruner=hyperband"], 0.6),
    ],
)
def test_the_one_period_that_works_is_found_and_pruning_saves_two_fifths_without_losing_it(
    words: list[str], most: float
):
    ends = [search_planted(seed, *words) for seed in range(10)]
    assert sum(period == PLANTED for period, _ in ends) >= 9
    assert sum(share for _, share in ends) / 10 <= most


def test_a_run_that_goes_on_reports_no_step_twice(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    study = small_study(tmp_path, RATE, "tune.n_trials=3", "tune.pruner=none")
    trial = study.claim("first")
    assert trial is not None
    for step, value in enumerate([0.3, 0.2]):
        trial.report(value, step)
    assert study.put_back(trial._trial_id, "first", died=True)
    worked(study, run)
    assert told(study)[0][4] == {0: 0.3, 1: 0.2, **{k: v for k, v in told(study)[0][4].items() if k > 1}}
    assert len(told(study)[0][4]) == EXPERIENCES
    assert not [w for w in recwarn if "already reported" in str(w.message)]
