"""A whole run under the microscope: shares sum to its recorded matrix, and page and table say what the files say."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from command import done, nested
from gates import interrupted_at

from nested import metrics, rundir
from nested.config import Config, compose
from nested.errors import Interrupted, UserError
from nested.microscope.examine import examine
from nested.microscope.ticks import around_ticks, mean_effects
from nested.report import load, page
from nested.report.microscope import grid
from nested.run import run

QUICK = [
    "stream=split_digits",
    "trainer.threads=1",
    "tracking=off",
    "trainer.progress=false",
    "trainer.allow_idle=true",
]
NASTY = "<script>alert(1)</script>"
LEVELS = (
    "levels={head: {params: ['head.*'], period_steps: 1}, first: {params: ['layers.0.*'], period_steps: 2}, "
    "typed: {params: ['layers.1.*'], period_steps: 4}}"
)
SMALL = [*QUICK, "stream.scenario=domain", "model.hidden=[16,8]", "trainer.epochs=2", LEVELS, "evaluate.snapshots=true"]


class Looked(NamedTuple):
    path: Path
    found: dict
    said: list[str]


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Looked:
    """Two seeds, with ticks recorded."""
    runs = tmp_path_factory.mktemp("runs")
    said: list[str] = []
    path = run(config(runs, "evaluate.anytime_ticks=true", "seeds=2")).path
    return Looked(path, examine(path, said.append), said)


def config(runs: Path, *overrides: str) -> Config:
    """Three levels, the slowest with a name that is no HTML."""
    made = compose([*SMALL, f"runs={runs}", *overrides])
    *others, (_, slowest) = made.levels.items()
    return replace(made, levels={**dict(others), NASTY: slowest})


def validation(path: Path, view: str = "model") -> tuple[np.ndarray, np.ndarray]:
    """R0 and R on validation data, from the recorded sums and counts."""
    part = rundir.read_json(path / "matrix.json")["views"][view]["validation"]
    whole = np.array(part["sum"]) / np.array(part["count"])
    return whole[0], whole[1:]


def shares(report: dict, what: str) -> np.ndarray:
    return np.array([report["numbers"][what]["shares"][p] for p in report["players"]])  # (L, n)


def check_sums(path: Path, view: str = "model") -> dict:
    """Shares of a seed sum to what the matrix says, experience by experience and on average."""
    report = rundir.read_json(path / "microscope.json")
    first, r = validation(path, view)
    n = len(r)
    columns = np.arange(n - 1)
    assert [r[i, j] for j, i in enumerate(report["rows"])] == r[:-1, :-1].max(0).tolist()
    forgot = shares(report, "forgot").sum(0)
    np.testing.assert_allclose(forgot, r[report["rows"], columns] - r[-1, :-1], atol=1e-12)
    np.testing.assert_allclose(shares(report, "backward").sum(0), np.diag(r)[:-1] - r[-1, :-1], atol=1e-12)
    before = np.vstack([first, r[:-1]])
    np.testing.assert_allclose(shares(report, "learned").sum(0), np.diag(r) - np.diag(before), atol=1e-12)
    average = report["numbers"]["average"]
    assert average["forgot"]["total"] == pytest.approx(metrics.forgetting(r))
    bwt = metrics.bwt(r)
    assert bwt is not None
    assert average["backward"]["total"] == pytest.approx(-bwt)
    return report


def test_shares_sum_to_the_recorded_matrix(looked: Looked) -> None:
    for seed in (0, 1):
        report = check_sums(looked.path / f"seed-{seed}")
        assert report["exact"]
        total = sum(map(sum, report["numbers"]["updates"].values()))
        summary = rundir.read_json(looked.path / f"seed-{seed}" / "summary.json")
        assert total == sum(level["updates"] for level in summary["levels"])


def test_means_and_intervals_are_those_over_the_seeds(looked: Looked) -> None:
    found = rundir.read_json(looked.path / "microscope.json")
    assert found == json.loads(json.dumps(looked.found))
    assert found["players"] == ["head", "first", NASTY]
    reports = [rundir.read_json(looked.path / f"seed-{s}" / "microscope.json") for s in (0, 1)]
    for player in found["players"]:
        values = np.array([r["numbers"]["forgot"]["shares"][player] for r in reports])
        np.testing.assert_allclose(found["mean"]["forgot"]["shares"][player], values.mean(0))
        half = metrics.half_width(values)
        assert half is not None
        np.testing.assert_allclose(found["ci95"]["forgot"]["shares"][player], half)
        average = [r["numbers"]["average"]["forgot"]["shares"][player] for r in reports]
        assert found["mean"]["average"]["forgot"]["shares"][player] == pytest.approx(np.mean(average))
    assert any("snapshots of the levels" in s and "KiB" in s for s in looked.said)


def test_the_page_shows_what_was_found_and_typed_names_are_text(looked: Looked) -> None:
    html = page([load(looked.path)], looked.path / "report.html").read_text()
    assert "Under the microscope" in html
    assert NASTY not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;, every 4 steps" in html
    assert html.count('aria-label="Who forgot') == html.count('aria-label="Who learned') == 1
    assert 'aria-label="Change of accuracy at each tick' in html
    share = looked.found["mean"]["average"]["forgot"]["shares"]["first"]
    assert re.search(rf'data-value="{re.escape(str(share))}">{share:.3f} ± ', html)
    figures = {f.name.rsplit("-", 1)[1] for f in (looked.path / "figures").glob("microscope-*.png")}
    assert figures == {"forgot.png", "learned.png", "drift.png", "ticks.png"}


def test_the_terminal_says_on_which_data_it_judged(looked: Looked) -> None:
    said = " ".join(done("microscope", str(looked.path)).out.split())
    assert (
        "Judged on validation data (around a tick: on test data): means over experiences ± 95 percent interval over"
        in said
    )
    alone = {**looked.found, "seeds": [0], "ticks_part": "validation"}
    assert grid(alone).remark == "Judged on validation data: means over experiences of one seed, hence no interval."


def test_without_a_recorded_validation_matrix_the_shares_are_the_same(looked: Looked, tmp_path: Path) -> None:
    path = run(config(tmp_path, "evaluate.parts=[test]")).path
    assert examine(path)["mean"]["ticks"] == {}
    one, other = (rundir.read_json(p / "seed-0" / "microscope.json") for p in (path, looked.path))
    for what in ("forgot", "backward", "learned", "drift", "updates"):
        assert one["numbers"][what] == other["numbers"][what]


def test_of_a_method_with_views_the_main_one_is_looked_at(tmp_path: Path) -> None:
    path = run(config(tmp_path, "method=ema", "method.periods=[5]")).path
    examine(path)
    assert check_sums(path / "seed-0", "ema-5")["view"] == "ema-5"


def test_masked_outputs_are_judged_as_in_the_loop(tmp_path: Path) -> None:
    small = [*QUICK, "model.hidden=[8]", "trainer.epochs=1", "head.mask=seen", "evaluate.snapshots=true"]
    path = run(compose([*small, f"runs={tmp_path}"])).path
    found = examine(path)
    check_sums(path / "seed-0")
    assert found["players"] == ["all", "(outputs that may compete)"]
    assert "outputs that may compete" in page([load(path)], path / "report.html").read_text()


def test_a_level_on_the_token_clock_counts_for_the_level_of_its_initial_state(tmp_path: Path) -> None:
    model = ["model=hope", "model.width=8", "model.depth=1", "model.heads=2", "model.hidden=8", "levels=tokens"]
    words = [*QUICK, *model, "trainer.epochs=1", "evaluate.snapshots=true", f"runs={tmp_path}/new/runs"]
    path = run(compose(words)).path
    found = examine(path)
    check_sums(path / "seed-0")
    assert found["players"] == ["fast", "slow"]
    assert found["token_levels"] == {"reading": ["fast"]}
    html = page([load(path)], path / "report.html").read_text()
    assert "reading learns at tokens, within each sequence anew: its initial state counts for fast." in html


def test_six_levels_are_drawn_side_by_side(tmp_path: Path) -> None:
    names = [f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    levels = ", ".join(f"l{k}: {{params: ['{n}'], period_steps: 1}}" for k, n in enumerate(names))
    small = [*QUICK, "model.hidden=[8,8,8]", f"levels={{{levels}, head: {{params: rest, period_steps: 1}}}}"]
    path = run(compose([*small, "trainer.epochs=1", "evaluate.snapshots=true", f"runs={tmp_path}"])).path
    found = examine(path)
    _, r = validation(path / "seed-0")
    mean = found["mean"]["average"]["forgot"]
    assert not found["exact"]
    assert mean["total"] == pytest.approx(metrics.forgetting(r))
    assert mean["total"] == pytest.approx(sum(mean["single"].values()) + mean["interaction"])
    html = page([load(path)], path / "report.html").read_text()
    assert "7 levels are too many for exact shares" in html


# -- ticks -------------------------------------------------------------------------------------------------------------


def test_ticks_by_hand() -> None:
    record = [
        (0, "border", -1, [0.1, 0.1, 0.1]),
        (3, "before:slow", 0, [0.5, 0.1, 0.1]), (4, "after:slow", 0, [0.7, 0.1, 0.1]),
        (7, "before:mid", 2, [0.8, 0.6, 0.2]), (7, "before:slow", 2, [0.8, 0.6, 0.2]), (8, "step", 2, [0, 0, 0]),
        (8, "after:mid", 2, [0.6, 0.5, 0.4]), (8, "after:slow", 2, [0.6, 0.5, 0.4]),
        (9, "before:slow", 2, [0.9, 0.9, 0.9]),  # skipped: its gradient was not finite
        (9, "before:slow", 2, [0.6, 0.5, 0.4]), (10, "after:slow", 2, [0.6, 0.3, 0.5]),
    ]  # fmt: skip
    names = ("step", "moment", "experience", "accuracy")
    ticks = around_ticks({name: [entry[k] for entry in record] for k, name in enumerate(names)})
    assert ticks["mid"] == {"step": [8], "experience": [2], "earlier": [pytest.approx(-0.15)], "current": [0.2]}
    assert ticks["slow"]["step"] == [4, 8, 10]
    assert ticks["slow"]["earlier"] == [None, pytest.approx(-0.15), pytest.approx(-0.1)]
    assert ticks["slow"]["current"] == pytest.approx([0.2, 0.2, 0.1])
    assert mean_effects(ticks)["slow"] == {"earlier": pytest.approx(-0.125), "current": pytest.approx(0.5 / 3)}
    assert around_ticks(None) == {}


# -- the verb ----------------------------------------------------------------------------------------------------------


def test_the_verb(looked: Looked) -> None:
    runs = ("--runs", str(looked.path.parent))
    said = done("microscope", looked.path.name, *runs)
    assert NASTY in said.out
    assert "all together" in said.out
    assert "report.html" in said.out
    assert "evaluations of hybrids; 6 snapshots of the levels" in " ".join(said.err.split())
    found = done("microscope", looked.path.name, *runs, "--json").object
    assert found["mean"] == json.loads(json.dumps(looked.found["mean"]))


def test_a_run_without_snapshots_is_told_the_command_that_records_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/nested", "run", "model.hidden=[4]", "trainer.epochs=1"])
    path = run(compose([*QUICK, "model.hidden=[4]", "trainer.epochs=1", f"runs={tmp_path}"])).path
    said = nested("microscope", path.name, "--runs", str(tmp_path), "--json")
    assert said.code == 2
    assert "nested run 'model.hidden=[4]' trainer.epochs=1 evaluate.snapshots=true" in said.err
    assert said.object["key"] == "evaluate.snapshots"
    assert not (path / "microscope.json").exists()
    (path / "seed-0" / "environment.json").unlink()
    with pytest.raises(UserError, match=r"nested run, the values of .*config\.yaml, and evaluate\.snapshots=true"):
        examine(path)


def test_a_run_that_is_not_finished_is_to_be_resumed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compose([*QUICK, "model.hidden=[4]", "evaluate.snapshots=true", f"runs={tmp_path}"])
    with interrupted_at(12, monkeypatch), pytest.raises(Interrupted):
        run(whole)
    path = rundir.all_runs(tmp_path)[0]
    with pytest.raises(UserError, match=f"no finished seed; first: nested resume {path.name}"):
        examine(path)


def test_joint_training_has_nobody_who_forgot(tmp_path: Path) -> None:
    small = [*QUICK, "model.hidden=[4]", "method=joint", "trainer.epochs=1", "evaluate.snapshots=true"]
    path = run(compose([*small, f"runs={tmp_path}"])).path
    with pytest.raises(UserError, match="learned at once"):
        examine(path)
