"""A whole contest on few examples: what it leaves, that it goes on, what a kill costs, and what is refused."""

import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import done, nested, process
from scipy import stats

from nested import rundir
from nested.config import compose, from_dict
from nested.contest import run as story
from nested.contest import trials as trials_module
from nested.contest.run import contest
from nested.contest.settings import FACTORS
from nested.contest.trials import Clock, Trial, fought
from nested.errors import UserError
from nested.methods.ema import EMA
from nested.report.contest import page
from nested.run import run_trial
from nested.tuning.search import tune

SMALL = [
    "stream=split_digits", "model.hidden=[8]", "prefix=2", "trainer.epochs=2", "trainer.batch_size=32", "seeds=2",
    "optim=sgd", "optim.lr=0.2",
    "trainer.allow_idle=true", "contest.factors=[0.5,1]", "label='<b>mine</b>'", "contest.name=small",
    "levels={fast: {params: rest, period_steps: 1}, slow: {params: ['head.*'], period_steps: 4}}",
]  # fmt: skip


def fight(runs: Path, *words: str, said: list[str] | None = None) -> story.Found:
    return contest([*SMALL, f"runs={runs}", "workers=1", *words], None, (said if said is not None else []).append)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> story.Found:
    return fight(tmp_path_factory.mktemp("runs"))


def copy_of(found: story.Found) -> dict[str, Any]:
    return json.loads((found.path / "contest.json").read_text())


def summaries(path: Path) -> dict[str, int]:
    return {str(f.relative_to(path)): f.stat().st_mtime_ns for f in path.glob("*/seed-*/summary.json")}


# -- what it leaves ----------------------------------------------------------------------------------------------------


def test_every_arm_is_there_at_every_rate_and_order_and_no_checkpoint_is_left(whole: story.Found):
    homes = ("candidate", "one_level", "one_level_same_drift", "same_drift", "frozen", "ema", "lookahead-4",
             "class_means", "least_squares", "replay", "reset", "joint")  # fmt: skip
    assert set(summaries(whole.path)) == {
        f"{home}-{f}/seed-{s}/summary.json" for home in homes for f in ("0.5", "1") for s in (0, 1)
    }
    assert not list(whole.path.glob("*/seed-*/checkpoints/*.pt"))
    assert whole.record == copy_of(whole)
    assert {a["title"] for a in whole.record["absent"]} == {"eta = 0", "one level, equal updates"}
    assert whole.record["cells"] == len(homes) * 4


def test_numbers_are_those_of_the_runs(whole: story.Found):
    arms = {a["name"]: a for a in whole.record["arms"]}
    for name, home, view in (("candidate", "candidate", "model"), ("ema-4", "ema", "ema-4")):
        point = arms[name]["points"][1]
        for s in (0, 1):
            about = rundir.read_json(whole.path / f"{home}-1" / f"seed-{s}" / "matrix.json")
            rows = about["views"][view]["test"]
            r = np.array(rows["sum"])[1:] / np.array(rows["count"])[1:]
            assert point["learning_acc"]["orders"][s] == pytest.approx(np.diag(r).mean())
            assert point["forgetting"]["orders"][s] == pytest.approx(r[0, 0] - r[1, 0])
        assert point["acc"]["mean"] == pytest.approx(np.mean(point["acc"]["orders"]))
    assert arms["joint"]["points"][1]["forgetting"]["mean"] is None
    assert arms["joint"]["against"] is None


def test_differences_are_paired_and_p_is_scipys(whole: story.Found):
    tested = [a["against"] for a in whole.record["arms"] if a["against"]]
    assert tested
    for c in tested:
        known = [d for d in c["differences"] if d is not None]
        assert c["difference"] == pytest.approx(np.mean(known))
        if np.ptp(known) > 1e-9:
            assert c["p"] == pytest.approx(stats.ttest_1samp(known, 0).pvalue)
        assert c["holm"] >= c["p"]


def test_the_frozen_arm_is_the_candidate_until_the_first_experience_is_over(whole: story.Found):
    """The same seeds, streams and initial weights: rows before training, and after the first, are equal."""
    rows = {}
    for home in ("candidate", "frozen", "reset"):
        summary = rundir.read_json(whole.path / f"{home}-1" / "seed-0" / "summary.json")
        rows[home] = [summary["initial"], summary["matrix"][0]]
    assert rows["candidate"] == rows["frozen"] == rows["reset"]


def test_the_page_says_the_verdict_and_how_to_do_it_again_and_escapes_what_was_typed(whole: story.Found):
    html = (whole.path / "report.html").read_text()
    assert "<b>mine</b>" not in html
    assert "&lt;b&gt;mine&lt;/b&gt;" in html
    assert "levels frozen after the first experience" in html
    assert "nested contest stream=split_digits &#39;model.hidden=[8]&#39;" in html
    assert (whole.path / "figures" / "frontier.png").is_file()
    assert "2 orders are few" in html
    assert whole.record["command"].startswith("nested contest stream=split_digits 'model.hidden=[8]'")


def test_the_page_is_made_of_the_record_alone(whole: story.Found, tmp_path: Path):
    before = (whole.path / "report.html").read_bytes()
    assert page(copy_of(whole), tmp_path / "report.html").read_bytes() == before


def test_an_average_trains_as_the_ordinary_network(whole: story.Found):
    views = rundir.read_json(whole.path / "ema-1" / "seed-0" / "matrix.json")["views"]
    ordinary = rundir.read_json(whole.path / "one_level-1" / "seed-0" / "matrix.json")["views"]
    assert list(views) == ["ema-4", "raw"]
    assert views["raw"] == ordinary["model"]


def doctored(found: story.Found, runs: Path, which: str, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The record of the same contest, had some of its summaries been others."""
    shutil.copytree(found.path, runs / "small")
    for file in (runs / "small").glob(f"{which}/seed-*/summary.json"):
        summary = json.loads(file.read_text())
        change(summary)
        file.write_text(json.dumps(summary))
    return fight(runs).record


def test_a_candidate_that_learned_nothing_gets_no_verdict_and_is_compared_with_nobody(
    whole: story.Found, tmp_path: Path
):
    record = doctored(whole, tmp_path, "candidate-*", lambda summary: summary.update(learning_acc=0.4))
    (sentence,) = record["sentences"]
    assert "learned nothing at any rate, so that there is nothing to compare" in sentence
    assert "at most 0.400" in sentence
    assert not any(arm["against"] for arm in record["arms"])
    assert not (tmp_path / "small" / "figures" / "differences.png").exists()


def test_one_rate_at_which_it_learned_is_enough_for_a_verdict(whole: story.Found, tmp_path: Path):
    record = doctored(whole, tmp_path, "candidate-0.5", lambda summary: summary.update(learning_acc=0.4))
    assert "learned nothing" not in record["sentences"][0]


def test_without_flops_that_are_counted_there_is_a_verdict_and_the_page_says_so(whole: story.Found, tmp_path: Path):
    record = doctored(whole, tmp_path, "*", lambda summary: summary["cost"].update(flops=0))
    assert "equal FLOPs are equal steps" in record["caveats"][0]
    assert {arm["times"]["flops"] for arm in record["arms"]} == {None}
    assert "No FLOPs are counted" in (tmp_path / "small" / "report.html").read_text()


# -- that it goes on ---------------------------------------------------------------------------------------------------


def test_the_same_command_does_nothing_again_and_a_lost_cell_alone(whole: story.Found):
    before, record = summaries(whole.path), whole.record
    (whole.path / "replay-1" / "seed-1" / "summary.json").unlink()
    said: list[str] = []
    again = fight(whole.path.parent, said=said)
    after = summaries(whole.path)
    assert {k for k in after if after[k] != before.get(k)} == {"replay-1/seed-1/summary.json"}
    assert "48 cells, 1 of them left" in " ".join(said)
    assert [s for s in said if s.startswith("48 of 48 cells  |  replay-1  learning_acc")]
    same = ("sentences", "factors", "seeds", "cells")
    assert {k: again.record[k] for k in same} == {k: record[k] for k in same}


def test_for_people_the_verdict_comes_first_and_then_the_page(whole: story.Found):
    said = done("contest", *SMALL, f"runs={whole.path.parent}", "workers=1")
    assert said.out.splitlines()[0] == whole.sentences[0]
    assert said.out.splitlines()[-1] == f"page: {whole.path / 'report.html'}"


def test_another_candidate_under_the_same_name_is_refused_with_the_difference(whole: story.Found):
    with pytest.raises(UserError, match=r"optim.lr: recorded 0.2, now 0.1. Give this contest a name") as error:
        fight(whole.path.parent, "optim.lr=0.1")
    assert error.value.key == "contest.name"


def test_interrupted_it_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(trial: Trial) -> trials_module.Ended:
        return trials_module.Ended("interrupted")

    monkeypatch.setattr(trials_module, "one", stopped)
    with pytest.raises(KeyboardInterrupt, match="everything is saved; continue with: nested contest stream="):
        fight(tmp_path)


def test_a_signal_stops_its_processes_with_all_saved_and_one_sentence(tmp_path: Path):
    """SIGTERM to the whole group, as a cluster's: the processes hear of it once, from their parent."""
    words = (*SMALL, "trainer.epochs=12", "trainer.batch_size=8", f"runs={tmp_path}", "workers=2")
    running = process("contest", *words, cwd=tmp_path, start_new_session=True)
    waited_for(lambda: bool(list(tmp_path.glob("small/*/seed-0/events.jsonl"))) or running.poll() is not None)
    children = [int(p) for p in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()]
    path = next(tmp_path.glob("small/*/seed-0/events.jsonl")).parents[1]
    os.killpg(running.pid, signal.SIGTERM)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (130, ""), err
    command = shlex.join(["nested", "contest", *words])
    assert err.splitlines()[-1] == f"nested: interrupted, everything is saved; continue with: {command}"
    assert "Traceback" not in err
    assert len(children) > 2
    waited_for(lambda: not any(Path(f"/proc/{p}").exists() for p in children))
    run_trial(from_dict(rundir.read_config(path)), path, lambda *_: None)
    events = rundir.read_events(path / "seed-0" / "events.jsonl")
    executed = [e["executed_steps"] for e in events if e["event"] == "end"]
    assert len(executed) == 2
    assert (
        sum(executed) == rundir.read_json(path / "seed-0" / "summary.json")["cost"]["steps"]
    )  # nothing was done twice


def waited_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_the_time_left_is_reckoned_from_what_cells_took_arm_by_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(trials_module.time, "monotonic", lambda: now[0])
    config = compose(["seeds=2"])
    found = [Trial(arm, f, config, tmp_path / f"{arm}-{f:g}") for arm in ("dear", "cheap") for f in (1.0, 2.0)]

    def end(trial: Trial, seed: int, seconds: float, status: str = "done") -> None:
        (trial.path / f"seed-{seed}").mkdir(parents=True)
        rundir.write_json(trial.path / f"seed-{seed}" / "summary.json", {"status": status, "seconds": seconds})

    end(found[0], 0, 40)  # by an earlier command
    clock = Clock(found, 1)
    assert clock.begun(20) == (
        "4 trials of 2 orders, 8 cells, 7 of them left"
        + ": about 2 min if every arm takes what a few steps of the candidate took just now, alone; measured from the "
        "first trial on"
    )
    end(found[0], 1, 60)
    now[0] += 120  # processes had to start
    assert clock.told(found[0], trials_module.Ended("done")).startswith("2 of 8 cells, about 5 min left  |  dear-1  ")
    end(found[2], 0, 10)
    end(found[2], 1, 10)
    now[0] += 40  # 20 seconds took twice as long by the clock
    assert "4 of 8 cells, about 4 min left" in clock.told(found[2], trials_module.Ended("done"))
    failed = trials_module.Ended("failed", "no such thing")
    assert "4 of 8 cells, about 40 s left" in clock.told(found[1], failed)  # nobody waits for what has failed
    end(found[3], 0, 10)
    end(found[3], 1, 10)
    assert clock.told(found[3], trials_module.Ended("done")).startswith("6 of 8 cells  |")


def test_the_rates_that_are_taken_by_default_are_told():
    said = done("show", "contest").out
    assert f"null = {', '.join(f'{f:g}' for f in FACTORS)}" in " ".join(said.split())
    assert "FACTORS" not in said


def test_a_control_that_cannot_be_run_costs_no_other_and_is_named(
    whole: story.Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(whole.path, tmp_path / "small", ignore=shutil.ignore_patterns("ema-*"))

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("no average")

    monkeypatch.setattr(EMA, "after_step", fail)
    said = nested("contest", *SMALL, f"runs={tmp_path}", "workers=1", "--json")
    assert said.code == 1
    assert "2 of 24 trials failed, such as ema-0.5: unexpected ZeroDivisionError: no average" in said.err
    record = json.loads((tmp_path / "small" / "contest.json").read_text())
    assert set(record["problems"]) == {"ema-0.5", "ema-1"}
    arms = {a["name"]: a for a in record["arms"]}
    assert (arms["ema-4"]["missing"], arms["ema-4"]["against"]) == (4, None)
    assert arms["replay"]["missing"] == 0


def test_a_killed_process_costs_the_cell_in_hand_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.syspath_prepend(Path(__file__).parent)
    config = compose(
        [
            *(w for w in SMALL if not w.startswith("contest.")), "trainer.threads=1", "trainer.progress=false",
            f"method={{_target_: dying.Dying, mark: {tmp_path / 'mark'}, victim: 1}}",
        ]
    )  # fmt: skip
    trials = [Trial("candidate", f, config, tmp_path / f"candidate-{f:g}") for f in (1.0,)]
    said: list[str] = []
    assert fought(trials, 2, said.append) == {}
    assert any("was killed" in s for s in said)
    assert trials[0].ended() == [0, 1]
    written = [(trials[0].path / f"seed-{s}" / "summary.json").stat().st_mtime_ns for s in (0, 1)]
    assert written[0] < (tmp_path / "mark").stat().st_mtime_ns < written[1]  # seed 0 was done, and stayed
    undisturbed = run_trial(replace(config, seed=1, seeds=None), tmp_path / "other", lambda *_: None)
    assert undisturbed.runs[0]["matrix"] == trials_module.summary(trials[0].path, 1)["matrix"]  # type: ignore[index]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, key, text",
    [
        (["method=joint"], "method", "learns everything at once"),
        (["method=replay"], "method", "replay is one of the controls"),
        (["prefix=1"], "prefix", "one experience, so that nothing can be forgotten"),
        (["seeds=1"], "seeds", "orders are paired"),
        (["seed=3"], "seed", "write seeds=10"),
        (["contest.factors=[1]"], "contest.factors", "two or more different factors"),
        (["contest.factors=[0.5,2]"], "contest.factors", "one of them 1"),
        (["contest.factors=[0,1]"], "contest.factors[0]", "0 is not allowed"),
        (["contest.rates=[1,2]"], "contest.rates", "unknown key"),
        (["contest.name=../x"], "contest.name", "letters, digits"),
        (["workers=0"], "workers", "0 is not allowed; allowed: int >= 1"),
        (["workers=many"], "workers", "'many' is not allowed"),
        (["optim.lr=high"], "optim.lr", "high"),
    ],
)
def test_wrong_input_is_one_error_and_leaves_nothing(tmp_path: Path, words: list[str], key: str, text: str):
    with pytest.raises(UserError, match=text) as error:
        fight(tmp_path, *words)
    assert error.value.key == key
    assert not list(tmp_path.iterdir())


def test_a_name_that_a_study_or_a_run_has_is_refused_and_that_of_a_contest_to_a_study(
    whole: story.Found, tmp_path: Path
):
    study = ["tune.space.optim.lr.low=0.1", "tune.space.optim.lr.high=1", "tune.n_trials=1", "tune.study=small"]
    words = ["stream=split_digits", "prefix=2", "trainer.epochs=1", "optim=sgd", "tracking.enabled=false"]
    with pytest.raises(UserError, match="is a run or a contest, not a study"):
        tune([*words, *study, f"runs={whole.path.parent}"], None, lambda _: None)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "FORMAT").write_text("1")
    with pytest.raises(UserError, match="is a run or a study, not a contest"):
        fight(tmp_path)


def test_contests_are_listed_and_called_so(whole: story.Found):
    assert "small  contest" in " ".join(done("list", "runs", "--runs", str(whole.path.parent)).out.split(" "))
    with pytest.raises(UserError, match="is a contest; its runs are in it"):
        rundir.find("small", whole.path.parent)


def test_an_empty_list_of_rates_is_not_the_default(tmp_path: Path):
    with pytest.raises(UserError, match="two or more different factors"):
        fight(tmp_path, "contest.factors=[]")
