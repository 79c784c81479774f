"""Spaces on streams that are short for them: what cannot be run is drawn again, and said; the number stays exact."""

from pathlib import Path
from typing import Any

import pytest
from tuning.landscape import PERIOD, run, small_study, told, worked

from nested.errors import UserError
from nested.tuning import page, search
from nested.tuning import study as studies
from nested.tuning.feasible import Rehearsal, first
from nested.tuning.settings import request
from nested.tuning.space import fitted, read
from nested.wording import counted

SHORT = ("stream=split_digits", "trainer.epochs=1", "model.hidden=[4,4]", "levels=geometric", "levels.n_levels=2",
         "levels.glob='layers.{level}.*'", "levels.ratio=1")  # fmt: skip
LONGEST = 4  # of 44 steps
SPACE = ("tune.space.levels.base={low:1,high:16,log:true}", "tune.space.levels.ratio={low:1,high:4}")


def begun(*words: str) -> Any:
    asked = request([*SHORT, *words, "tracking=off"])
    return first(asked, asked.config(), fitted(read(asked.tune.space), asked.config))


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random"])
def test_every_trial_can_be_run_and_their_number_is_exact(sampler: str, tmp_path: Path):
    words = (*SHORT, *SPACE, f"tune.sampler={sampler}", "tune.n_trials=9", "tune.pruner=none")
    study = worked(small_study(tmp_path, *words))
    trials = study.trials()
    assert [(t.number, t.state.name) for t in trials] == [(n, "COMPLETE") for n in range(9)]
    assert all(t.params["levels.base"] * t.params["levels.ratio"] <= LONGEST for t in trials)
    assert trials[0].params == {"levels.base": 4, "levels.ratio": 1}, "the defaults are not drawn"
    assert len({tuple(t.params.values()) for t in trials}) > 2


def test_what_was_drawn_again_is_said_wherever_the_study_is_shown(tmp_path: Path):
    study = worked(small_study(tmp_path, *SHORT, *SPACE, "tune.n_trials=8", "tune.sampler=random"))
    again = [search.refused(t) for t in study.trials()]
    assert sum(again) > 0
    verdict = search.verdict(study)
    assert f"{sum(again)} draws could not be run, the first levels.base=" in verdict
    assert "updates in 44 steps, fewer than 10" in verdict
    number = next(n for n, count in enumerate(again) if count)
    assert f"{counted(again[number], 'draw')} could not be run" in search.show(study)[number + 1]
    assert search.found(study).as_json()["drawn_again"] == sum(again)
    assert "draws could not be run" in page.write(study, tmp_path / "page.html").read_text()


def test_what_is_drawn_does_not_depend_on_who_asks(tmp_path: Path):
    words = (*SHORT, *SPACE, "tune.n_trials=6", "tune.pruner=none")
    whole = told(worked(small_study(tmp_path / "a", *words)))
    assert whole == told(worked(small_study(tmp_path / "b", *words)))


def test_a_space_in_which_nothing_can_be_run_has_failed_trials_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(studies, "DRAWS", 3)

    def refusing(config: Any, path: Path, after_row: Any) -> Any:
        raise Rehearsal(study.request).refusal(study.trials("RUNNING")[0].params) or AssertionError

    study = small_study(tmp_path, *SHORT, "tune.space.levels.base={low:16,high:64}", "tune.n_trials=2")
    worked(study, refusing)
    assert {t.state.name for t in study.trials()} == {"FAIL"}
    assert [search.refused(t) for t in study.trials()] == [3, 3]
    assert "2 of 2 trials failed, the first trial 0 (levels.base=" in search.verdict(study)


def test_an_error_of_a_components_own_code_is_the_trials_and_does_not_end_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def breaks(self: Rehearsal, values: Any) -> Any:
        raise RuntimeError("width 5 is odd")

    study = small_study(tmp_path, PERIOD, "tune.n_trials=3", "tune.pruner=none")
    monkeypatch.setattr(Rehearsal, "_built", breaks)
    assert [t.state.name for t in worked(study).trials()] == ["COMPLETE"] * 3


def test_a_worker_stopped_while_it_draws_puts_its_trial_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(self: Rehearsal, values: Any) -> Any:
        raise KeyboardInterrupt

    study = small_study(tmp_path, PERIOD, "tune.n_trials=3", "tune.pruner=none")
    monkeypatch.setattr(Rehearsal, "refusal", stopped)
    with pytest.raises(KeyboardInterrupt):
        worked(study)
    monkeypatch.undo()
    assert not study.trials("RUNNING")
    assert [t.state.name for t in worked(study).trials()] == ["COMPLETE"] * 3


def test_the_points_of_a_grid_stay_and_those_that_cannot_be_run_fail(tmp_path: Path):
    def real(config: Any, path: Path, after_row: Any) -> Any:
        if problem := study.rehearsal.refusal({"levels.base": config.level_configs()["l0"].period_steps}):
            raise problem
        return run(config, path, after_row)

    words = ("tune.space.levels.base={choices:[2,4,8]}", "tune.sampler=grid", "tune.pruner=none")
    study = small_study(tmp_path, *SHORT, *words)
    worked(study, real)
    assert [(t.params["levels.base"], t.state.name) for t in study.trials()] == [
        (4, "COMPLETE"), (2, "COMPLETE"), (8, "FAIL"),
    ]  # fmt: skip
    assert "1 of 3 trials failed, the first trial 2 (levels.base=8): levels.l0.period_steps" in search.verdict(study)


# -- what a search begins with -----------------------------------------------------------------------------------------


def test_defaults_that_cannot_be_run_are_refused_with_the_dimension_and_the_most_it_may_be(tmp_path: Path):
    with pytest.raises(UserError, match=r"begins with levels.base=4 levels.ratio=4, and that cannot be run") as error:
        search.tune([*SHORT, *SPACE, "levels.ratio=4", f"runs={tmp_path}", "tracking=off"], None, lambda _: None)
    found = error.value
    assert (found.key, found.seen, found.allowed) == ("tune.space.levels.base", 4, "<= 1")
    assert "levels.base=1 or levels.ratio=1" in found.message
    assert "trainer.epochs" in found.message or "more epochs" in found.message
    assert not list(tmp_path.iterdir())
    assert begun(*SPACE, "levels.ratio=4", "levels.base=1").name == "split_digits"


def test_where_no_dimension_alone_mends_it_the_lowest_corner_is_named():
    with pytest.raises(UserError, match=r"at most levels.base=1 levels.ratio=1, all else as it is") as error:
        begun(SPACE[0], "tune.space.levels.ratio={low:1,high:8}", "levels.base=8", "levels.ratio=8")
    assert error.value.key == "tune.space.levels.base"


def test_a_default_outside_the_space_need_not_be_runnable():
    assert begun("tune.space.levels.base={low:1,high:3}", "levels.base=16").name == "split_digits"


def test_an_error_that_the_space_has_no_part_in_is_as_it_was():
    with pytest.raises(UserError) as error:
        begun(*SPACE, "optim.lr=-1")
    assert error.value.key == "optim"
    with pytest.raises(UserError) as error:
        begun("tune.space.optim.lr={low:0.1,high:1}", "levels.base=16")
    assert error.value.key == "levels.l0.period_steps"


def test_a_stream_is_built_once_for_all_that_have_it(monkeypatch: pytest.MonkeyPatch):
    import nested.prepare

    built = []
    build = nested.prepare.build

    def counted(section: Any, where: str, **context: Any) -> Any:
        built.append(where)
        return build(section, where, **context)

    monkeypatch.setattr(nested.prepare, "build", counted)
    rehearsal = Rehearsal(request([*SHORT, *SPACE]))
    for base in (1, 2, 4):
        assert rehearsal.refusal({"levels.base": base}) is None
    assert built.count("stream") == 1
    assert rehearsal.refusal({"stream.n_experiences": 2}) is None
    assert built.count("stream") == 2
    assert rehearsal.of({}).digest == Rehearsal(request([*SHORT, *SPACE])).of({}).digest
