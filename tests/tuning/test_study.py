import importlib.util
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from tuning.landscape import PERIOD, RATE, Outcome, run, small_study, told, worked

from nested.errors import Interrupted, UserError
from nested.tuning import page, search, storage
from nested.tuning import trial as one
from nested.tuning.study import CLAIMS, MOST_DEATHS, Study, held
from nested.tuning.workers import Pulse, work


def test_the_defaults_are_the_first_trial_and_the_verdict_compares_with_them(tmp_path: Path):
    study = worked(small_study(tmp_path, PERIOD, RATE, "tune.n_trials=12"))
    assert study.trials()[0].params == {"optim.lr": 0.05, "trainer.batch_size": 32}
    assert "the defaults" in search.verdict(study)


def test_a_default_outside_the_space_is_said_and_not_passed_off_as_one(tmp_path: Path):
    said: list[str] = []
    study = small_study(tmp_path, "tune.space.optim.lr={low:0.1,high:1}", PERIOD, "tune.n_trials=3", say=said.append)
    assert "optim.lr=0.05 is not in 0.1 to 1" in said[0]
    worked(study)
    assert study.trials()[0].params["trainer.batch_size"] == 32
    assert 0.1 <= study.trials()[0].params["optim.lr"] <= 1
    assert "the defaults" not in search.verdict(study)


def test_a_grid_is_enqueued_whole(tmp_path: Path):
    words = ["tune.sampler=grid", "tune.pruner=none", "tune.space.optim.lr={choices:[0.01,0.05,0.25]}"]
    study = worked(small_study(tmp_path, *words, "tune.space.trainer.batch_size={choices:[16,32]}", "tune.n_trials=2"))
    params = [tuple(t.params[k] for k in ("optim.lr", "trainer.batch_size")) for t in study.trials()]
    assert params[0] == (0.05, 32)
    assert sorted(params) == [(r, b) for r in (0.01, 0.05, 0.25) for b in (16, 32)]


def test_the_same_command_goes_on_with_more_trials_and_less_is_refused(tmp_path: Path):
    worked(small_study(tmp_path, RATE, "tune.n_trials=4"))
    grown = worked(small_study(tmp_path, RATE, "tune.n_trials=9", "workers=3"))
    assert [t.number for t in grown.trials()] == list(range(9))
    with pytest.raises(UserError, match="has 9 trials already"):
        small_study(tmp_path, RATE, "tune.n_trials=4")


@pytest.mark.parametrize(
    "words, key, said",
    [
        (["tune.space.optim.lr.high=2"], "tune.space.optim.lr.high", "recorded 1.0, now 2.0"),
        (["trainer.epochs=3"], "trainer.epochs", "recorded 10, now 3"),
        (["seeds=2"], "seeds", "recorded None, now 2"),
        (["tune.sampler=random"], "tune.sampler", "recorded 'tpe', now 'random'"),
        (["tune.seed=1"], "tune.seed", "recorded 0, now 1"),
        (["tune.objective=forgetting"], "tune.objective.names", r"recorded \['acc'\], now \['forgetting'\]"),
        (["tune.budget.flops=9"], "tune.objective.budget.flops", "recorded None, now 9.0"),
        (["method=ewc"], "method._target_", "recorded 'nested.methods.naive.Naive'"),
    ],
)
def test_a_study_that_asks_for_something_else_is_refused_with_the_difference(words, key, said, tmp_path: Path):
    small_study(tmp_path, RATE, "tune.study=x")
    with pytest.raises(UserError, match=said) as error:
        small_study(tmp_path, RATE, "tune.study=x", *words)
    assert key in error.value.seen
    assert len(
        small_study(tmp_path, RATE, "tune.study=x", "checkpoint.every_seconds=3", "trainer.progress=true").trials()
    )


def test_a_continued_study_equals_an_uninterrupted_one(tmp_path: Path):
    words = [PERIOD, RATE, "seeds=2"]
    whole = worked(small_study(tmp_path / "a", *words))
    worked(small_study(tmp_path / "b", *words, "tune.n_trials=7"))
    broken = small_study(tmp_path / "b", *words)
    calls: list[int] = []

    def stopped(config: Any, path: Path, after_row: Any) -> Outcome:
        """Interrupted in the midst of its third trial, after it has reported once."""

        def row(seed: int, row: int, values: dict[str, Any]) -> None:
            after_row(seed, row, values)
            if len(calls) == 3 and row == 1:
                raise Interrupted("x", [])

        calls.append(1)
        return run(config, path, row)

    with pytest.raises(KeyboardInterrupt):
        work(broken, stopped, "first")
    assert [t.state.name for t in broken.trials()].count("RUNNING") == 0
    assert told(worked(Study(broken.path))) == told(whole)


def needs(package: str, *values: str) -> Any:
    """A case for which an extra must be installed."""
    missing = importlib.util.find_spec(package) is None
    return pytest.param(*values, marks=pytest.mark.skipif(missing, reason=f"{package} is not installed"))


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", needs("cmaes", "cmaes"), "random"])
def test_a_sampler_proposes_the_same_again_and_another_seed_something_else(sampler: str, tmp_path: Path):
    words = [PERIOD, RATE, f"tune.sampler={sampler}", "tune.n_trials=12"]
    first, again, other = (
        worked(small_study(tmp_path / name, *words, f"tune.seed={seed}"))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert told(first) == told(again)
    assert told(first)[0] == told(other)[0], "the defaults"
    assert [t[2] for t in told(first)][1:] != [t[2] for t in told(other)][1:]


def test_a_diverged_run_and_a_config_that_cannot_be_are_failed_trials(tmp_path: Path):
    def fragile(config: Any, path: Path, after_row: Any) -> Outcome:
        if config.optim["lr"] > 0.3:
            return Outcome("diverged", [], ["seed 0: the loss is nan"])
        if config.optim["lr"] < 0.01:
            raise UserError("too slow", key="optim.lr")
        return run(config, path, after_row)

    study = worked(small_study(tmp_path, RATE, "tune.n_trials=20", "tune.pruner=none"), fragile)
    reasons = {t.user_attrs["reason"] for t in study.trials() if t.state.name == "FAIL"}
    assert reasons == {"seed 0: the loss is nan", "optim.lr: too slow"}
    assert study.finished()
    assert any("failed: optim.lr: too slow" in line for line in search.show(study))


def test_errors_of_the_code_end_the_worker_before_they_use_up_the_study(tmp_path: Path, capfd: Any):
    def wrong(config: Any, path: Path, after_row: Any) -> Outcome:
        raise ZeroDivisionError("of mine")

    study = small_study(tmp_path, RATE)
    with pytest.raises(Exception, match="3 trials in a row"):
        work(study, wrong, "me")
    states = [t.state.name for t in study.trials()]
    assert (states.count("FAIL"), states.count("COMPLETE")) == (3, 0)
    assert "ZeroDivisionError: of mine" in study.trials()[0].user_attrs["reason"]
    assert "ZeroDivisionError" in capfd.readouterr().err, "where it was raised is said"


def test_a_machine_that_fails_loses_no_trial(tmp_path: Path):
    def full(config: Any, path: Path, after_row: Any) -> Outcome:
        raise OSError(28, "No space left on device")

    study = small_study(tmp_path, RATE)
    with pytest.raises(OSError, match="No space"):
        work(study, full, "me")
    assert {t.state.name for t in study.trials()} == {"WAITING"}


def test_each_trial_is_claimed_by_one_worker_only(tmp_path: Path):
    study = small_study(tmp_path, RATE, "tune.n_trials=30")
    claimed: list[int] = []

    def take() -> None:
        mine = Study(study.path)
        while trial := mine.claim(threading.current_thread().name):
            claimed.append(trial.number)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(30))


def test_a_worker_not_heard_of_is_dead_and_its_late_word_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = small_study(tmp_path, RATE, "tune.n_trials=2", "tune.grace_seconds=10")
    trial = study.claim("lost")
    assert trial is not None
    pulse, now = Pulse(study), 100.0
    monkeypatch.setattr("nested.tuning.workers.time.monotonic", lambda: now)
    for now, beat, state in ((100, 1, "RUNNING"), (109, 2, "RUNNING"), (118, None, "RUNNING"), (120, None, "WAITING")):
        if beat:
            study.beat("lost", beat)
        pulse.put_back_stale()
        assert study.trials()[0].state.name == state, now
    assert not study.tell(trial, "lost", "COMPLETE", [0.5])
    again = study.claim("other")
    assert again is not None
    assert again.number == trial.number
    assert not study.tell(trial, "lost", "COMPLETE", [0.5])
    assert study.tell(again, "other", "COMPLETE", [0.6])
    assert not study.tell(trial, "lost", "COMPLETE", [0.5])
    assert study.trials()[0].value == 0.6


def test_who_died_on_a_trial_that_went_on_is_said_with_it(tmp_path: Path):
    study = small_study(tmp_path, RATE, "tune.n_trials=1")
    assert study.claim("mortal")
    assert study.put_back_all("other") == []
    assert study.put_back_all("mortal") == [0]
    assert search.show(worked(study))[0] == f"{study.name}: 1 trial: 1 complete"
    assert "taken up again, 1 worker lost on it" in search.show(study)[1]


@pytest.mark.parametrize("objective", ["acc", "[acc,flops]"])
def test_values_that_were_run_are_not_run_again(objective: str, tmp_path: Path):
    space = ["tune.space.trainer.batch_size={choices:[8,16,32]}", f"tune.objective={objective}", "tune.pruner=none"]
    words = [*space, "tune.n_trials=12", "tune.budget.flops=1000", "seeds=2"]
    study = worked(small_study(tmp_path / "a", *words))
    trials = study.trials()
    ran = [t for t in trials if "same_as" not in t.user_attrs]
    assert [t.state.name for t in trials] == ["COMPLETE"] * 12
    assert sorted(t.params["trainer.batch_size"] for t in ran) == [8, 16, 32]
    for trial in trials:
        first = trials[trial.user_attrs.get("same_as", trial.number)]
        assert first in ran
        assert (trial.params, trial.values, trial.constraints) == (first.params, first.values, first.constraints)
        assert trial.intermediate_values == first.intermediate_values
        assert (study.directory(trial.number) / "steps").exists() == (trial is first)
        curves = page.record(study).trials[trial.number].curves
        assert curves == page.record(study).trials[first.number].curves != ()
    assert {t.number for t in search.best(study)} <= {t.number for t in ran}
    again = trials[-1].number if trials[-1] not in ran else next(t.number for t in trials if t not in ran)
    assert "the same values as trial" in search.line(study, trials[again])
    timed = worked(small_study(tmp_path / "b", *words, "tune.budget.seconds=100"))
    assert all("same_as" not in t.user_attrs for t in timed.trials()), "the clock is another each time"


def test_a_trial_that_has_begun_goes_on_itself_though_a_later_one_has_its_values(tmp_path: Path):
    words = ["tune.space.trainer.batch_size={choices:[8]}", "tune.pruner=none", "tune.n_trials=2"]
    study = small_study(tmp_path, *words)
    first = study.claim("first")
    assert first is not None
    study.directory(0).mkdir()
    second = study.claim("second")
    assert second is not None
    assert one.run(study, second, "second", run) == "done"  # nothing earlier is whole
    study.put_back(first._trial_id, "first", died=True)
    worked(study)
    assert all("same_as" not in t.user_attrs for t in study.trials())
    assert all((study.directory(number) / "steps").exists() for number in (0, 1))


def test_a_trial_on_which_workers_keep_dying_is_a_failed_one(tmp_path: Path):
    study = small_study(tmp_path, RATE, "tune.n_trials=1")
    for _ in range(MOST_DEATHS):
        assert study.claim("mortal")
        study.put_back_all("mortal")
    assert study.trials()[0].state.name == "FAIL"
    assert "died" in study.trials()[0].user_attrs["reason"]


def test_a_trial_whose_directory_is_held_waits_for_whoever_holds_it(tmp_path: Path):
    from nested import rundir

    study = small_study(tmp_path, RATE, "tune.n_trials=1")
    trial = study.claim("me")
    assert trial is not None
    study.directory(0).mkdir()
    with rundir.locked(study.directory(0)), pytest.raises(one.Busy):
        one.run(study, trial, "me", run)


def test_a_budget_makes_the_best_the_best_within_it(tmp_path: Path):
    study = worked(small_study(tmp_path, PERIOD, RATE, "tune.budget.flops=100", "tune.pruner=none"))
    (best,) = search.best(study)
    assert best.params["trainer.batch_size"] <= 20
    over = [t for t in study.trials() if t.params["trainer.batch_size"] > 20]
    assert over
    assert all(t.constraints["flops"] > 0 for t in over)
    assert "over budget" in search.line(study, over[0])


def test_storage_may_change_and_the_trials_come_along(tmp_path: Path):
    before = worked(small_study(tmp_path, RATE, "tune.n_trials=5"))
    after = worked(small_study(tmp_path, RATE, "tune.n_trials=8", "tune.storage=journal"))
    assert told(after)[:5] == told(before)
    assert len(after.trials()) == 8
    assert (after.path / "study.journal").exists()


def test_a_study_of_that_name_with_other_directions_is_refused(tmp_path: Path):
    where = f"tune.storage=sqlite:///{tmp_path}/shared.db"
    small_study(tmp_path / "a", RATE, where, "tune.study=x")
    with pytest.raises(UserError, match="with the directions"):
        small_study(tmp_path / "b", RATE, where, "tune.study=x", "tune.objective=forgetting")
    with pytest.raises(UserError, match="knows nothing"):
        small_study(tmp_path / "b", RATE, where, "tune.study=x")
    small_study(tmp_path / "b", RATE, where, "tune.study=y")


def test_a_name_that_the_storage_knows_leaves_no_folder(tmp_path: Path):
    where = f"tune.storage=sqlite:///{tmp_path}/shared.db"
    small_study(tmp_path / "a", RATE, where, "tune.study=x")
    with pytest.raises(UserError, match="knows nothing"):
        small_study(tmp_path / "b", RATE, where, "tune.study=x")
    assert not (tmp_path / "b" / "x").exists()


def test_who_waited_for_a_study_that_came_to_nothing_holds_a_folder_that_is_there(tmp_path: Path):
    path, found = tmp_path / "x", []

    def wait() -> None:
        with held(path):
            found.append((path / CLAIMS).exists())

    with held(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        shutil.rmtree(path)
    waiting.join()
    assert found == [True]


def test_a_run_is_no_study(tmp_path: Path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "FORMAT").write_text("1\n")
    with pytest.raises(UserError, match="is a run"):
        small_study(tmp_path, RATE, "tune.study=x")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["FORMAT"]
    with pytest.raises(UserError, match="is no study"):
        Study(tmp_path / "x")


@pytest.mark.parametrize(
    "uri, said",
    [
        needs(
            "psycopg2",
            "postgresql://me:secret@127.0.0.1:1/x",
            "cannot reach postgresql://me:\\*\\*\\*@127.0.0.1:1/x.*initdb",
        ),
        ("grpc://127.0.0.1:1", "run_grpc_proxy_server"),
        ("sqlite:////proc/none/x.db", "choose a file"),
        ("journal:////proc/none/x.log", "choose a file"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_named_with_how_to_start_one(uri, said, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "PATIENCE", 1)
    with pytest.raises(UserError, match=said) as error:
        storage.opened(uri)
    assert "secret" not in str(error.value)


def test_a_password_is_recorded_nowhere(tmp_path: Path):
    assert storage.without_password("postgresql://me:secret@h:1/x") == "postgresql://me@h:1/x"
    assert storage.address("postgresql://me:secret@h:1/x", tmp_path) == "postgresql://me:secret@h:1/x"
    record = json.loads((small_study(tmp_path, RATE).path / "study.json").read_text())
    assert record["storage"].startswith("sqlite:////")


def test_the_events_of_a_trial_tell_its_story(tmp_path: Path):
    study = worked(small_study(tmp_path, RATE, "tune.n_trials=15"))
    for trial in study.trials():
        lines = (study.directory(trial.number) / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        kinds = [e["event"] for e in events]
        assert kinds[:3] == ["start", "params", "tags"]
        assert events[1]["values"] == trial.params
        assert (events[2]["values"]["study"], events[2]["values"]["trial"]) == (study.name, trial.number)
        steps = [e["step"] for e in events if e["event"] == "metrics"]
        assert steps == sorted(trial.intermediate_values)
        assert events[-1]["event"] == "end"
        assert events[-1]["status"] == {"COMPLETE": "done", "PRUNED": "pruned"}[trial.state.name]


def test_a_worker_killed_between_two_values_leaves_a_trial_that_has_all_of_them(tmp_path: Path):
    words = [PERIOD, RATE, "tune.sampler=random", "tune.n_trials=2", "tune.pruner=none"]
    study = small_study(tmp_path / "a", *words)
    worked_alone = told(worked(small_study(tmp_path / "b", *words)))
    for _ in range(2):
        trial = study.claim("killed")
        assert trial is not None
        study.dimensions[0].suggest(trial)
        study.put_back_all("killed")
        study.claim("other")
    study.put_back_all("other")
    assert told(worked(study)) == worked_alone


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", needs("cmaes", "cmaes"), "random", "grid"])
def test_a_dimension_of_one_value_has_it(sampler: str, tmp_path: Path):
    one = ["tune.space.optim.momentum={low:0.5,high:0.5}", "tune.space.trainer.epochs={low:2,high:2}"]
    rest = [] if sampler == "grid" else [RATE, "tune.space.optim.nesterov={choices:[true]}"]
    study = worked(small_study(tmp_path, *one, *rest, f"tune.sampler={sampler}", "tune.n_trials=3", "tune.pruner=none"))
    assert {(t.params["optim.momentum"], t.params["trainer.epochs"]) for t in study.trials()} == {(0.5, 2)}


@pytest.mark.parametrize("where", ["null", "journal"])
def test_a_worker_that_comes_back_from_the_dead_changes_nothing_and_goes_on(where: str, tmp_path: Path):
    words = [RATE, "tune.n_trials=4", "tune.pruner=none", "tune.sampler=random"]
    study = small_study(tmp_path / "a", *words, f"tune.storage={where}")
    other, calls = Study(study.path), []

    def late(config: Any, path: Path, after_row: Any) -> Outcome:
        calls.append(path.name)
        if len(calls) == 1:  # believed dead, its trial is done by another
            other.put_back_all("me")
            taken = other.claim("other")
            assert taken is not None
            one.run(other, taken, "other", run)
        return run(config, path / "late" if len(calls) == 1 else path, after_row)

    (study.directory(0) / "late").mkdir(parents=True)
    assert told(worked(study, late)) == told(worked(small_study(tmp_path / "b", *words)))
    assert calls == [f"trial-{i:04d}" for i in range(4)]
