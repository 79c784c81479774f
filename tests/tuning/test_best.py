"""What a search was worth: choices, controls, differences, recipes, and the verb on trainings of milliseconds."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import QUICK, done, nested
from scipy import stats
from tuning.landscape import PERIOD, RATE, run_planted, small_study, worked

from nested.config import compose
from nested.errors import NestedError, UserError
from nested.tuning import recipe
from nested.tuning.best import fresh
from nested.tuning.choice import chosen
from nested.tuning.controls import has_one_level, single
from nested.tuning.objective import objective
from nested.tuning.worth import Outcome, Stream, better_by, compared, sentence, shown_better

# -- which -------------------------------------------------------------------------------------------------------------


def test_the_best_are_whole_within_the_budget_and_different(tmp_path: Path):
    study = worked(small_study(tmp_path, PERIOD, RATE, "tune.n_trials=25", "tune.budget.flops=60"), run_planted)
    found = chosen(study, 3)
    whole = [t for t in study.trials("COMPLETE") if t.user_attrs["summary"]["flops"] <= 60]
    assert [t.values[0] for t in found] == sorted({t.values[0] for t in whole}, reverse=True)[:3]
    assert len({json.dumps(t.params) for t in found}) == 3


def test_of_a_front_the_balanced_one_is_chosen_then_the_best_in_each_objective(tmp_path: Path):
    words = ("tune.objective=[acc,flops]", "tune.pruner=none", "tune.n_trials=20")
    study = worked(small_study(tmp_path, PERIOD, RATE, *words), run_planted)
    front = study.optuna().best_trials
    balanced, *extremes = chosen(study, 3)
    assert {t.number for t in extremes} <= {t.number for t in front}
    assert extremes[0].values[0] == max(t.values[0] for t in front)
    assert extremes[-1].values[1] == min(t.values[1] for t in front)
    spans = [np.ptp([t.values[k] for t in front]) for k in range(2)]
    best = max(t.values[0] for t in front), min(t.values[1] for t in front)
    distances = {t.number: sum(((v - b) / s) ** 2 for v, b, s in zip(t.values, best, spans)) for t in front}
    assert distances[balanced.number] == min(distances.values())


def test_nothing_is_chosen_where_nothing_is_whole(tmp_path: Path):
    assert chosen(small_study(tmp_path, RATE)) == []


def test_fresh_seeds_were_not_tuned_on():
    assert fresh(3, [0, 1]) == [2, 3, 4]
    assert fresh([7, 9], [0, 8]) == [7, 9]
    for wanted in ([1, 2], [7, 7], []):
        with pytest.raises(UserError, match="none tuned on"):
            fresh(wanted, [0, 1])


# -- one level ---------------------------------------------------------------------------------------------------------


def test_one_level_is_tuned_over_as_much_but_the_levels(tmp_path: Path):
    words = ("model=hope_attention", "levels=geometric", "levels.ratio=2", "tune.n_trials=7", "tune.study=s")
    space = ("tune.space.levels.base={low:1,high:4}", "tune.space.optim.lr={low:0.01,high:0.9,log:true}", PERIOD)
    control = single(small_study(tmp_path, *words, *space))
    assert set(control.tune.space) == {"optim.lr", "trainer.batch_size"}
    assert (control.tune.space["optim.lr"]["low"], control.tune.space["optim.lr"]["high"]) == (0.0003, 0.9)
    assert (control.tune.n_trials, control.tune.study, control.tune.storage) == (7, "s-single", None)
    config = control.config()
    assert config.choices["levels"] == "single"
    assert config.choices["model"] == "hope_attention"


# -- how much ----------------------------------------------------------------------------------------------------------


def outcome(name: str, **values: list[float]) -> Outcome:
    n = len(next(iter(values.values())))
    runs = {s: {k: v[s] for k, v in values.items()} | {"cost": {"flops": 10}, "seed": s} for s in range(n)}
    return Outcome(name, f"run-{name}", runs)


def test_differences_are_paired_and_equal_scipys():
    sought = objective(["acc", "forgetting"], None, 5, True)
    ours, theirs = [0.8, 0.7, 0.9, 0.85], [0.75, 0.72, 0.8, 0.7]
    pair = better_by(sought, "acc", outcome("tuned, trial 3", acc=ours), outcome("defaults", acc=theirs))
    assert pair is not None
    assert pair.half is not None
    expected = stats.ttest_rel(ours, theirs)
    low, high = expected.confidence_interval()
    assert (pair.mean - pair.half, pair.mean + pair.half, pair.p) == pytest.approx((low, high, expected.pvalue))


def test_less_of_what_is_better_low_counts_as_better():
    sought = objective(["acc", "forgetting"], None, 5, True)
    one, other = outcome("a", forgetting=[0.1, 0.2]), outcome("b", forgetting=[0.3, 0.5])
    pair = better_by(sought, "forgetting", one, other)
    assert pair is not None
    assert pair.mean == pytest.approx(0.25)
    assert better_by(sought, "acc", one, other) is None, "no seed has both"


def test_the_sentence_says_which_wins_only_where_the_interval_allows(tmp_path: Path):
    study = small_study(tmp_path, RATE)
    tuned, same = outcome("tuned, trial 3", acc=[0.8, 0.82, 0.81]), outcome("defaults", acc=[0.79, 0.84, 0.80])
    level = outcome("one level, tuned, trial 5", acc=[0.5, 0.51, 0.52])
    stream = Stream("split_digits", False, [1, 2, 3], (tuned, same, level), study.objective)
    told = sentence(study, [stream])
    assert "is not told apart from the defaults in acc" in told
    assert "better than the tuned single level (trial 5) in acc (+0.300" in told
    assert not shown_better(stream)
    good = replace(stream, outcomes=(outcome("tuned, trial 4", acc=[0.9, 0.91, 0.92]), same))
    assert shown_better(good)
    (second,) = compared(study, [replace(stream, outcomes=(tuned, *good.outcomes))], "tuned, trial 4")
    assert second.startswith("On split_digits (test part, 3 fresh seeds) the tuned configuration (trial 4) is better")
    assert compared(study, [good], "tuned, trial 9") == []
    nothing = sentence(study, [Stream("recall", True, [1], (same,), study.objective)])
    assert "could not be run" in nothing


# -- as recipes --------------------------------------------------------------------------------------------------------


def test_a_recipe_composes_the_configuration_it_was_written_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words = ["model=hope_attention", "model.patch=4", "levels=geometric", "levels.base=3", "optim.lr=1e-05", "seeds=3"]
    config = compose([*words, "stream.n_experiences=2", "evaluate.parts=[test]", "runs=elsewhere"])
    file = recipe.write(tmp_path / "conf" / "recipe" / "mine.yaml", config, ["What it is, in a sentence."], "mine")
    again = compose(["recipe=mine"], tmp_path / "conf")
    assert again.levels == config.levels
    assert (again.model, again.optim, again.stream) == (config.model, config.optim, config.stream)
    assert (again.seeds, again.runs) == (None, "runs"), "what is a run's own is not in it"
    assert file.read_text().startswith("# @package _global_\n# What it is, in a sentence.\n")


def test_what_no_file_can_say_leaves_none(tmp_path: Path):
    config = compose(["model=hope_attention", "levels=continuum"])
    odd = replace(config, choices={**config.choices, "levels": "tokens"})  # whose levels would stay beside these
    file = tmp_path / "conf" / "recipe" / "odd.yaml"
    with pytest.raises(NestedError, match="levels"):
        recipe.write(file, odd, [], "odd")
    assert not file.exists()


def test_somebody_elses_recipe_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    study = small_study(tmp_path, RATE, "tune.study=a b.c")
    (file,) = recipe.names(study.name, 1, study)
    assert file == tmp_path / "conf" / "recipe" / "a-b-c.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# mine\n")
    with pytest.raises(UserError, match=r"best\.recipe=NAME"):
        recipe.names(study.name, 1, study)
    with pytest.raises(UserError, match="not of this study"):
        recipe.names("digits_hope", 1, study)


# -- the verb ----------------------------------------------------------------------------------------------------------

TINY = (*QUICK, "model.hidden=[]", "trainer.threads=1", "stream.n_experiences=2", "trainer.batch_size=128",
        "tune.space.optim.lr={low:0.1,high:1,log:true}", "tune.study=s", "trainer.allow_idle=true")  # fmt: skip
SLOW = "levels={all: {params: rest, period_steps: 2}}"


def test_the_best_are_run_again_beside_their_controls_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done("tune", *TINY, SLOW, "tune.n_trials=3", "tune.pruner=none")
    words = ("tune", "best", "s", "best.seeds=2", "best.stream=rotated_digits", "stream.n_experiences=2")
    first = done(*words, "--json").object
    own, other = first["streams"]
    assert (own["stream"], other["stream"], own["seeds"]) == ("split_digits", "rotated_digits", [1, 2])
    assert len(own["values"]) == 3
    assert json.loads(Path("runs/s-single/study.json").read_text())["n_trials"] == 3
    for name, run_id in own["runs"].items():
        result = json.loads(Path("runs", run_id, "result.json").read_text())
        assert [r["judged_on"] for r in result["runs"]] == ["test", "test"]
        assert list(own["values"][name]["acc"].values()) == [r["acc"] for r in result["runs"]]
    assert "s.yaml" in first["recipes"][0]
    lr = next(b["params"]["optim.lr"] for b in json.loads(Path("runs/s/result.json").read_text())["best"])
    assert compose(["recipe=s"], "conf").optim["lr"] == lr
    page = Path("runs/s/report.html").read_text()
    assert first["sentence"].split(" (")[0] in page
    assert "corrected for the number of comparisons" in page
    comment = " ".join(line.removeprefix("# ") for line in Path("conf/recipe/s.yaml").read_text().splitlines())
    assert first["sentence"][1:] in comment
    noted = any(n.startswith("Not shown to be better than the defaults") for n in first["notes"])
    assert noted == ("is better than the defaults" not in first["sentence"].split(";")[0])
    trained = {p: p.stat().st_mtime_ns for p in Path("runs").glob("s-*/seed-*/summary.json")}
    again = done(*words, "--json").object
    assert again == first
    assert trained == {p: p.stat().st_mtime_ns for p in trained}, "nothing was trained twice"
    changed = done(*words[:-1], "stream.n_experiences=3", "best.single=false", "--json").object
    assert any("with another config: stream.n_experiences: recorded 2, now 3" in n for n in changed["notes"])


def test_a_study_of_one_level_is_not_compared_with_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    worked(small_study(tmp_path / "runs", *TINY, "tune.n_trials=2"))
    found = done("tune", "best", "s", "best.seeds=1", "best.stream=false", "--json").object
    assert any("the study itself tuned one level" in note for note in found["notes"])
    assert "single level" not in found["sentence"]
    assert not Path("runs/s-single").exists()


@pytest.mark.parametrize(
    "words, one",
    [
        ([RATE], True), ([RATE, "levels={mine: {params: rest, period_steps: 1}}"], True), ([RATE, SLOW], False),
        ([RATE, "model=hope_attention", "levels=continuum"], False),
        (["model=hope_attention", "tune.space.levels={choices:[single,continuum]}"], False),
        (["tune.space.levels.all.lr_scale={low:0.5,high:2}"], False),
    ],
)  # fmt: skip
def test_which_studies_are_of_one_level(tmp_path: Path, words: list[str], one: bool):
    assert has_one_level(small_study(tmp_path, *words)) == one


@pytest.mark.parametrize(
    "words, said",
    [
        (["workers=0"], "workers: 0 is not allowed; allowed: int >= 1"), (["best.seeds=[0]"], "none tuned on"),
        (["best.stream=split_digits"], "the stream of the study"),
        (["best.k=4"], "best.k"), (["best.kk=1"], "did you mean"), (["best.single=nothing"], "no study 'nothing'"),
        (["best.stream=false", "stream.n_experiences=2"], "no other stream is wanted"),
        (["best.single=false", "best.stream=recall"], "takes no `vocabulary`"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words, said):
    monkeypatch.chdir(tmp_path)
    study = small_study(tmp_path / "runs", RATE, "tune.study=s", "tune.n_trials=2")
    worked(study)
    refused = nested("tune", "best", "s", *words, "--json")
    assert refused.code == 2
    assert said in refused.err
    assert not list(Path("runs").glob("s-*"))


def test_a_study_without_a_whole_trial_has_no_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    small_study(tmp_path / "runs", RATE, "tune.study=s")
    assert "no trial of s is whole" in nested("tune", "best", "s").err
