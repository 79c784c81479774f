"""The page of a study: from nothing to two hundred trials, and where else a study is seen."""

import json
import socket
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from command import done, nested
from tuning.landscape import PERIOD, RATE, run_planted, small_study, worked

from nested import rundir
from nested.errors import UserError
from nested.report import study as pages
from nested.report.inline import save_png
from nested.report.parallel import parallel
from nested.report.trials import Axis, Study, Trial
from nested.tuning import dashboard, page, search

EVIL = "<script>alert(1)</script>"


def record(*trials: Trial, **more: object) -> Study:
    values = {
        "name": EVIL, "title": "a stream & more", "objectives": ("acc",), "directions": ("maximize",),
        "axes": (Axis("optim.lr", log=True), Axis("schedule.shape", choices=("constant", "linear"))),
        "trials": trials, "planned": max(4, len(trials)), "seeds": (0, 1), "experiences": 3, "default": 0,
    }  # fmt: skip
    return Study(**{**values, **more})  # type: ignore[arg-type]


def whole(number: int, acc: float, rate: float = 0.1, state: str = "done") -> Trial:
    done_one = state == "done"
    return Trial(
        number, state, {"optim.lr": rate, "schedule.shape": "linear"}, (acc,) if done_one else None,
        (tuple((s, acc) for s in range(6 if done_one else 2)),), 6 if done_one else 2, {"acc": acc, "flops": 1e6},
        1.5, reason=EVIL if state == "failed" else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    "trials, figures",
    [
        ((), set()),
        ((Trial(0, "waiting", {}),), set()),
        ((Trial(0, "running", {"optim.lr": 0.1, "schedule.shape": "linear"}),), set()),
        ((whole(0, 0.4, state="pruned"), whole(1, 0.5, state="failed")), {"curves", "cost"}),
        ((whole(0, 0.5),), {"history", "curves", "slices", "plane-flops", "cost"}),
        ((whole(0, 0.5), whole(1, 0.5)), {"history", "curves", "slices", "plane-flops", "parallel", "cost"}),
    ],
    ids=["none", "waiting", "running", "none whole", "one", "two that are equal"],
)
def test_a_page_shows_what_there_is(tmp_path: Path, trials, figures):
    html = pages.page(record(*trials), tmp_path / "report.html").read_text()
    assert {p.stem for p in tmp_path.glob("figures/*.png")} == figures
    assert html.count("<svg") == len(figures)
    assert EVIL not in html
    assert "&lt;script&gt;alert(1)" in html
    assert ("No trial is whole yet" in html) == (not any(t.values for t in trials))


def test_the_labels_of_parallel_coordinates_are_whole_and_apart(tmp_path: Path):
    axes = (
        Axis("model.attention.window_size", whole=True), Axis("model.attention.heads", whole=True),
        Axis("levels.lr_ratio", log=True), Axis("schedule.shape", choices=("constant", "cosine_with_restarts")),
    )  # fmt: skip
    values = [
        {"lr_ratio": 0.000354, "shape": c, "window_size": k, "heads": k}
        for k, c in ((1, "constant"), (4, "cosine_with_restarts"))
    ]
    trials = [
        Trial(k, "done", {a.path: v[a.path.rpartition(".")[2]] for a in axes}, (0.5 + k / 10, 12345.0 + k))
        for k, v in enumerate(values)
    ]
    more = {"axes": axes, "objectives": ("acc", "parameter_updates"), "directions": ("maximize", "minimize")}
    figure = parallel(record(*trials, **more))
    save_png(figure, tmp_path / "it.png", 100)
    (panel,) = figure.axes
    labels = [text.get_window_extent() for text in panel.get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in pairwise(labels))
    ticks = {text.get_text(): text.get_window_extent() for text in panel.texts}
    assert "2.5" not in ticks, "of whole numbers"
    assert "cosine_…arts" in ticks
    for box in [*labels, *ticks.values()]:
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert 0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_two_hundred_trials_are_all_in_the_table_and_stay_small(tmp_path: Path):
    trials = [whole(k, 0.5 + k / 1000, 10 ** (-k / 100), "pruned" if k % 3 == 1 else "done") for k in range(200)]
    study = record(*trials, importances={"acc": {"optim.lr": 0.9, "schedule.shape": 0.1}}, chosen=(199,), front=(199,))
    file = pages.page(study, tmp_path / "report.html")
    rows = pages.grid(study).rows
    assert [r[0].value for r in rows] == list(range(200))
    assert (rows[199][0].text, rows[0][0].text) == ("199 (chosen)", "0 (defaults)")
    assert study.spared == pytest.approx(sum(4 for t in trials if t.state == "pruned") / 1200)
    assert file.stat().st_size < 2_000_000


def test_what_the_page_says_is_what_the_storage_has(tmp_path: Path):
    words = ("tune.n_trials=24", "tune.startup=3", "seeds=2")
    study = worked(small_study(tmp_path, PERIOD, RATE, *words), run_planted)
    told = page.record(study)
    trials = study.trials()
    assert [t.values for t in told.trials] == [
        tuple(t.values) if t.state.name == "COMPLETE" else None for t in trials
    ]  # of a pruned one Optuna keeps the last report as its value: of a part of the stream
    assert [dict(t.curves[0]) for t in told.trials] == [t.intermediate_values for t in trials]
    assert told.chosen == told.front == (search.best(study)[0].number,)
    assert told.default == 0
    assert sum(map(told.of_state, ("done", "pruned"))) == told.planned == 24


def test_what_mattered_is_found_whichever_way_is_better(tmp_path: Path):
    words = ("tune.objective=[acc,flops]", "tune.pruner=none", "tune.sampler=random", "tune.n_trials=60")
    told = page.record(worked(small_study(tmp_path, PERIOD, RATE, *words), run_planted))
    for shares in told.importances.values():  # highest acc, lowest flops: both are the period's doing
        assert sum(shares.values()) == pytest.approx(1.0)
        assert shares["trainer.batch_size"] > 0.7
    assert told.importances.keys() == {"acc", "flops"}


def test_trials_of_several_objectives_have_curves_of_each_and_a_front(tmp_path: Path):
    words = ("tune.objective=[forgetting,flops]", "tune.n_trials=14", "tune.startup=2")
    study = worked(small_study(tmp_path, PERIOD, RATE, *words), run_planted)
    told = page.record(study)
    for trial in study.trials():
        at = {int(k[3:]): v for k, v in trial.user_attrs.items() if k.startswith("at/")}
        record = told.trials[trial.number]
        assert record.curves == tuple(tuple((s, at[s][k]) for s in sorted(at)) for k in range(2))
        assert record.reached == len(at)
    assert set(told.front) == {t.number for t in study.optuna().best_trials} >= set(told.chosen)
    page.write(study)
    assert (study.path / "figures" / "plane-flops.png").is_file()


# -- where a study is seen ---------------------------------------------------------------------------------------------


def test_a_study_is_listed_shown_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    study = small_study(tmp_path / "runs", RATE, "tune.study=s", "tune.n_trials=4")
    assert rundir.status(study.path) == "study, 0 of 4 trials"
    worked(study)
    assert "study, 4 of 4 trials" in done("list", "runs").out
    told = done("report", "s", "--json").object
    assert (told["page"], told["complete"]) == (str(study.path / "report.html"), 4)
    assert Path(told["page"]).is_file()
    elsewhere = done("report", "s", "--out", "here.html").out
    assert Path("here.html").is_file()
    assert "trial 3  " in elsewhere
    refused = nested("resume", "s")
    assert refused.code == 2
    assert "nested worker s" in refused.err
    assert not list(study.path.glob("seed-*"))


def test_searches_and_launchers_are_listed_and_explained():
    listed = {(c["group"], c["name"]): c["what"] for c in done("list", "--json").object["choices"]}
    assert {("tune", "frequencies"), ("launcher", "slurm")} <= listed.keys()
    assert all(20 <= len(what) <= 160 for (group, _), what in listed.items() if group in ("tune", "launcher"))
    shown = {k["key"]: k for k in done("show", "tune=frequencies", "--json").object["keys"]}
    assert shown["tune.space.levels.base"]["value"] == {"low": 1, "high": 16, "log": True}
    assert "two updates" in shown["tune.space.levels.base"]["help"]
    assert shown["tune.n_trials"]["default"] == 40
    assert "launcher.timeout_min" in done("show", "launcher=slurm").out


def test_the_dashboard_asks_for_a_port_that_is_free():
    pytest.importorskip("optuna_dashboard")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="--port"):
        dashboard.check(taken.getsockname()[1])


def test_the_dashboard_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small_study(tmp_path / "runs", RATE, "tune.study=s")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "[dashboard]'" in nested("ui", "--study", "s").err
    monkeypatch.setattr("nested.errors.__file__", str(tmp_path / "site-packages" / "nested" / "errors.py"))
    assert "pip install 'nested-cl[dashboard]'" in nested("ui", "--study", "s").err


def test_a_study_that_is_not_there_is_called_one_with_those_that_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tuned", "tuned-single", "other"):
        small_study(tmp_path / "runs", RATE, f"tune.study={name}")
    rundir.create("runs", "otherwise", {}).rename("runs/otherwise")
    assert search.named("oth", "runs").name == "other", "a run of that name is no study"
    assert search.named("tuned", "runs").name == "tuned"
    for words in (["tune", "best"], ["tune", "show"], ["worker"], ["ui", "--study"]):
        said = nested(*words, "tunned")
        assert said.code == 2
        assert "no study 'tunned' (did you mean 'tuned'?); studies in runs: other, tuned, tuned-single" in said.err
    several = "'tun' begins 2 studies; give more of the name; studies in runs: tuned, tuned-single"
    assert several in nested("worker", "tun").err
    assert "is no study" in nested("worker", "otherwise").err
    said = nested("compare", "tunned").err
    assert "no run, study or recipe 'tunned'" in said
    assert "studies: other, tuned, tuned-single; or a filter" in said


def test_the_page_says_which_trials_were_taken_up_again_and_which_not_run(tmp_path: Path):
    trials = (whole(0, 0.5), replace(whole(1, 0.5), same=0), replace(whole(2, 0.4), deaths=2))
    html = pages.page(record(*trials), tmp_path / "report.html").read_text()
    assert "Taken up again because a worker was lost: 1 trial (2)." in html
    assert "with them its numbers: 1 trial (1)." in html
    assert pages.grid(record(*trials)).rows[1][1].text == "done, as trial 0"


def test_the_dashboard_serves_the_studys_storage_on_this_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    served = pytest.importorskip("optuna_dashboard")
    small_study(tmp_path / "runs", RATE, "tune.study=s", "tune.storage=journal")
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(served, "run_server", lambda storage, **where: calls.append((storage, where)))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done("ui", "--study", "s", "--port", str(port))
    ((storage, where),) = calls
    assert [s.study_name for s in storage.get_all_studies()] == ["s"]
    assert where == {"host": "127.0.0.1", "port": port}


def test_a_result_says_how_the_study_stands_and_the_page_lies_beside_it(tmp_path: Path):
    study = worked(small_study(tmp_path, RATE, "tune.n_trials=2"))
    search.conclude(study)
    assert json.loads((study.path / "result.json").read_text())["status"] == "done"
    assert (study.path / "report.html").is_file()
