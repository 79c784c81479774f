"""`nested compare`: which runs its words name, what it writes, and what it refuses."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
from command import done, nested

sys.path.insert(0, str(Path(__file__).parent / "report"))

from fake_runs import fake_run

from nested import rundir, tracking_search
from nested.compare import home
from nested.errors import UserError
from nested.selection import selected


def silent(_):
    pass


def meant(runs, *words):
    return [p.name for p in selected(words, runs, None, silent)]


def study(runs, name="tuned", best=(1,), defaults_first=True):
    """A study with two trials, as it leaves itself: trials have events in place of a result."""
    path = runs / name
    for k in (0, 1):
        trial = fake_run(path, f"trial-{k:04d}", label="x", config={"optim.lr": 0.1 + k}, result=False)
        (trial / "events.jsonl").write_text(json.dumps({"t": 1, "event": "end", "status": "done"}) + "\n")
    (path / "FORMAT").write_text("1\n")
    (path / "config.yaml").write_text("tracking: {enabled: false}\n")
    (path / "study.json").write_text(json.dumps({"defaults_first": defaults_first}))
    found = {"kind": "study", "status": "done", "best": [{"trial": k} for k in best], "choices": {"recipe": "small"}}
    (path / "result.json").write_text(json.dumps(found))
    return path


@pytest.fixture
def runs(tmp_path):
    """Two runs of a recipe (one not finished), one without, a study."""
    root = tmp_path / "runs"
    fake_run(root, "2026-a", label="a", choices={"recipe": "small"})
    fake_run(root, "2026-b", label="b", choices={"recipe": "small"}, result=False, statuses=("unfinished",) * 3)
    fake_run(root, "2027-c", label="c")
    study(root)
    return root


# -- words -------------------------------------------------------------------------------------------------------------


def test_ids_paths_and_beginnings_name_runs_once(runs):
    assert meant(runs, "2027", "2026-a", str(runs / "2026-a"), "2027-c") == ["2027-c", "2026-a"]
    assert meant(runs, str(runs / "2026-a" / "seed-1")) == ["2026-a"]


def test_a_recipe_names_the_runs_made_from_it(runs):
    shutil.copytree(runs / "2026-a", runs / "2026-d")
    rundir.write_json(runs / "2026-d" / "result.json", {"choices": {"recipe": "large"}})
    assert meant(runs, "recipe=large") == ["2026-d"]
    (runs / "2026-b" / "config.yaml").write_text("choices: {recipe: small}\n")
    assert meant(runs, "small") == ["2026-a", "2026-b"]


@pytest.mark.parametrize(
    "best, first, wanted",
    [((1,), True, ["trial-0000", "trial-0001"]), ((1,), False, ["trial-0001"]), ((0,), True, ["trial-0000"])],
)
def test_a_study_names_its_chosen_trials_behind_the_defaults(runs, best, first, wanted):
    study(runs, "other", best, first)
    assert meant(runs, "other") == wanted


def test_words_that_name_nothing_are_refused_with_what_there_is(runs):
    with pytest.raises(UserError, match=r"no run, study or recipe '2028' in .*; recipes used: small; or a filter"):
        meant(runs, "2028")
    with pytest.raises(UserError, match="'2026' begins 2 runs"):
        meant(runs, "2026")
    with pytest.raises(UserError, match=r"no run in .* was made from 'smal' \(did you mean 'small'\?\)"):
        meant(runs, "recipe=smal")
    study(runs, "empty", ())
    with pytest.raises(UserError, match="empty has no chosen trial yet"):
        meant(runs, "empty")
    with pytest.raises(UserError, match="no run has been tracked in"):
        meant(runs, "tags.method = 'x'")
    assert not list(runs.glob("mlflow.db*"))


# -- the verb ----------------------------------------------------------------------------------------------------------


def test_the_verb_writes_page_and_files_and_says_so(runs, tmp_path):
    more = ("--csv", str(tmp_path / "new" / "t.csv"), "--latex", str(tmp_path / "t.tex"))
    said = done("compare", "2026-a", "2027-c", "--runs", str(runs), "--baseline", "c", *more)
    assert f"page: {home([runs / '2026-a', runs / '2027-c'], 'c') / 'report.html'}" in said.out
    assert "against “c”" in said.out
    with (tmp_path / "new" / "t.csv").open() as file:
        assert [row["configuration"] for row in csv.DictReader(file)] == ["a", "c"]
    assert r"\toprule" in (tmp_path / "t.tex").read_text()
    spoken = done("compare", "2026-a", "2027-c", "--runs", str(runs), "--json").object
    assert spoken["runs"] == ["2026-a", "2027-c"]
    a, c = spoken["groups"]
    assert (a["differences"], c["baseline"], c["differences"]["acc"]["seeds"]) == ({}, "a", 3)


def test_each_comparison_has_a_folder_of_its_own_and_the_same_when_it_is_made_again(runs):
    words = (["2026-a", "2027-c"], ["2027-c", "2026-a"], ["2026-a", "2027-c", "--baseline", "c"], ["2027-c", "tuned"])
    pages = [done("compare", *w, "--runs", str(runs), "--json").object["page"] for w in words]
    assert len({Path(p).parent for p in pages}) == len(words)
    assert all(Path(p).is_file() for p in pages)
    assert Path(pages[0]).parent.name.startswith("2026-a-and-1-other-")
    assert done("compare", *words[0], "--runs", str(runs), "--json").object["page"] == pages[0]
    reported = done("report", *words[0], "--runs", str(runs), "--json").object["page"]
    assert reported == pages[0]


def test_figures_of_an_earlier_state_of_the_same_runs_do_not_stay(runs):
    page = Path(done("compare", "2026-a", "2027-c", "--runs", str(runs), "--json").object["page"])
    old = page.parent / "figures" / "matrix-9-gone.png"
    old.touch()
    done("compare", "2026-a", "2027-c", "--runs", str(runs))
    assert not old.exists()
    assert list(old.parent.glob("*.png"))


def test_the_page_of_a_studys_trials_is_an_artifact_of_the_study(runs):
    path = runs / "tuned"
    place = home([path / "trial-0000", path / "trial-0001"]) / "report.html"
    assert place.parent.parent == path / "compare"
    assert f"page: {place}" in done("compare", "tuned", "--runs", str(runs)).out
    (event,) = rundir.read_events(path / "events.jsonl")
    assert (event["event"], event["path"]) == ("artifact", str(place.relative_to(path)))
    page = place.read_text()
    assert "x, optim.lr=1.1" in page
    assert "unfinished" not in page
    assert not (path / "trial-0000" / "report.html").exists()


def test_many_runs_are_compared_by_their_results_alone(runs, monkeypatch):
    monkeypatch.setattr("nested.compare.WHOLE", 1)
    done("compare", "2026-a", "2027-c", "--runs", str(runs))
    assert "nothing but result.json is read" in (home([runs / "2026-a", runs / "2027-c"]) / "report.html").read_text()


def test_a_wrong_word_ends_with_one_line(runs):
    said = nested("compare", "nowhere", "--runs", str(runs), "--json")
    assert (said.code, said.err.count("\n"), said.object["key"]) == (2, 1, "run")
    said = nested("compare", "2026-a", "2027-c", "--runs", str(runs), "--baseline", "z", "--json")
    assert (said.code, said.object["key"], said.object["allowed"]) == (2, "--baseline", ["a", "c"])


def test_runs_in_which_nothing_has_been_evaluated_are_refused_and_spoil_no_other_word(runs):
    (runs / "2028-begun").mkdir()
    (runs / "2028-begun" / "FORMAT").write_text("1\n")
    said = nested("compare", "2028-begun", "--runs", str(runs), "--json")
    assert (said.code, said.object["key"], said.object["seen"]) == (2, "run", ["2028-begun"])
    assert "nothing to compare, no experience has been evaluated yet: 2028-begun; nested resume" in said.err
    assert meant(runs, "small") == ["2026-a", "2026-b"]
    done("compare", "2028-begun", "2026-a", "--runs", str(runs))


def test_a_directory_without_a_run_is_said_with_the_runs_in_it(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is a directory and no run: it has no FORMAT file; runs in it: none"):
        meant(runs, str(tmp_path / "empty"))
    with pytest.raises(
        UserError, match=r"runs is a directory and no run: .*; runs in it: 2026-a, 2026-b, 2027-c, tuned"
    ):
        meant(runs, str(runs))


@pytest.mark.parametrize("option", ["--out", "--csv", "--latex"])
def test_a_file_that_cannot_be_written_is_named_with_its_option(runs, option):
    said = nested("compare", "2026-a", "--runs", str(runs), option, "/proc/nothing/here", "--json")
    assert (said.code, said.err.count("\n"), said.object["key"]) == (2, 1, option)
    assert "cannot write /proc/nothing/here" in said.object["error"]


# -- filters -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_filter_names_the_runs_whose_records_match(runs, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    experiments = [client.create_experiment(x) for x in ("nested", "mine")]
    records = (
        ("2026-a", "naive", 0.5), ("2026-a/seed-1", "naive", 0.9), ("2027-c", "replay", 0.8), ("gone", "naive", 0.1),
        ("tuned", "naive", 0.3), ("tuned/trial-0001", "naive", 0.95),
    )  # fmt: skip
    for k, (name, method, acc) in enumerate(records):
        run = client.create_run(
            experiments[k % 2], tags={"nested.id": name, "method": method, "commit": name}
        ).info.run_id
        client.log_metric(run, "acc", acc)
    assert meant(runs, "tags.method = 'replay'") == ["2027-c"]
    # once in a process of its own is enough
    monkeypatch.setattr(tracking_search, "_asked", lambda where, words, _: tracking_search.answer(where, words))
    assert meant(runs, "metrics.acc > 0.85") == ["2026-a", "trial-0001"]  # the run of the seed that does
    with pytest.raises(UserError, match=r"matches .*'ema'.*; of its 6 runs: tags\.method: naive, replay") as refused:
        meant(runs, "tags.method = 'ema'")
    assert refused.value.allowed == {"method": ["naive", "replay"]}
    with pytest.raises(UserError, match=r"for example \"tags\.method"):
        meant(runs, "method = 'ema'")
    heard = []
    assert len(selected(["metrics.acc < 0.6"], runs, None, heard.append)) == 1
    assert "1 of 3 that match is not in" in heard[0]
    assert "gone" in heard[0]
    with pytest.raises(UserError, match="what matches is not in"):
        meant(runs, "metrics.acc < 0.2")
