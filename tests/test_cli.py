"""The verbs as a user calls them: what they print, what they leave, and their exit codes."""

import errno
import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import QUICK, Said, done, nested, process
from rich.console import Console

from nested import rundir
from nested.catalog import listing
from nested.progress import Bar
from nested.settings import Groups, Tracking
from nested.tracking import Sent

CONTRACT = {
    "run_id", "seed", "acc", "forgetting", "bwt", "fwt", "learning_acc", "matrix", "seconds", "experiences",
}  # fmt: skip


@dataclass(frozen=True)
class Home:
    """Two finished runs."""

    runs: str
    one: dict[str, Any]  # what `run --json` said: replay, one seed
    several: dict[str, Any]  # naive, two seeds
    out: dict[str, str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    runs = str(tmp_path_factory.mktemp("home") / "runs")
    one = done("run", *QUICK, f"runs={runs}", "method=replay", "--json")
    several = done("run", *QUICK, f"runs={runs}", "seeds=2", "--json")
    return Home(runs, one.object, several.object, {"one": one.out, "several": several.out})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only_run(runs: str = "runs") -> Path:
    (found,) = rundir.all_runs(runs)
    return found


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    state, _ = rundir.SeedDir(run / "seed-0").load_checkpoint()
    assert state is not None
    return state["model"]


def rows_recorded(run: Path) -> list[int]:
    """How many answers each row of the matrix on disk is made of."""
    stored = rundir.read_json(run / "seed-0" / "matrix.json")["views"]["model"]["test"]
    return [sum(row) for row in stored["count"]]


# -- run ---------------------------------------------------------------------------------------------------------------


def test_one_seed_ends_with_one_object(home: Home) -> None:
    assert home.out["one"].count("\n") == 1
    assert set(home.one) >= CONTRACT
    matrix = np.array(home.one["matrix"])
    assert matrix.shape == (5, 5)
    assert home.one["acc"] == pytest.approx(matrix[-1].mean())
    assert home.one["learning_acc"] == pytest.approx(np.diag(matrix).mean())
    assert home.one["seed"] == 0
    assert len(home.one["experiences"]) == 5
    assert Path(home.one["path"]) == Path(home.runs) / home.one["run_id"]


def test_several_seeds_end_with_all_of_them_mean_and_interval(home: Home) -> None:
    assert home.out["several"].count("\n") == 1
    runs = home.several["runs"]
    assert [r["seed"] for r in runs] == [0, 1]
    assert all(set(r) >= CONTRACT for r in runs)
    a, b = (r["acc"] for r in runs)
    assert home.several["mean"]["acc"] == pytest.approx((a + b) / 2)
    assert home.several["ci95"]["acc"] == pytest.approx(12.706204736 * abs(a - b) / 2)  # Student t, one degree


def test_for_people_a_table_the_page_and_progress_beside_it() -> None:
    label = ":smile: [b]mine[/b] <i>"
    said = done("run", "optim=sgd", "trainer.epochs=1", "tracking=off", f"label='{label}'")
    run = only_run()
    assert label in said.out
    assert "forgetting" in said.out
    assert f"page: {run.resolve() / 'report.html'}" in said.out
    lines = said.err.splitlines()
    assert len(lines) == 6  # before training, and after each experience
    assert all(line.startswith(f"{label} · ") for line in lines)
    assert label in done("list", "runs").out
    page = (run / "report.html").read_text()
    assert label not in page  # escaped
    assert "&lt;i&gt;" in page


def test_on_a_terminal_a_label_is_shown_as_it_was_typed() -> None:
    screen = io.StringIO()
    with Bar("[b]:smile:", 10, Console(file=screen, force_terminal=True, width=120)) as bar:
        bar.experience(1, 5)
    assert "[b]:smile: · experience 2/5" in screen.getvalue()


def test_quiet_is_quiet() -> None:
    assert done("run", *QUICK, "optim=sgd", "--json").err == ""


def test_dry_run_writes_nothing(here: Path) -> None:
    said = done("run", "--dry-run", "tracking=off")
    assert "split_digits" in said.out
    assert done("run", "--dry-run", "tracking=off", "--json").object
    assert not list(here.rglob("*.jsonl"))
    assert not rundir.all_runs(here / "runs")


def test_mnist_from_a_data_directory(data_root: Path) -> None:
    few = ["stream.n_experiences=2", "evaluate.parts=[test]", f"data.root={data_root}"]
    said = done("run", *QUICK, "stream=split_mnist", *few, "--json")
    assert said.object["learning_acc"] > 0.9
    assert said.object["forgetting"] > 0.5


def test_a_users_own_arrays(here: Path) -> None:
    g = np.random.default_rng(0)
    y = np.arange(400) % 4
    np.savez(here / "mine.npz", x=(g.normal(size=(400, 6)) + 3 * np.eye(6)[y]).astype(np.float32), y=y)
    found = done("run", *QUICK, "optim=sgd", "stream=tensors", "stream.path=mine.npz", "--json").object
    assert np.array(found["matrix"]).shape == (2, 2)
    assert found["learning_acc"] > 0.9


# -- how a run may end -------------------------------------------------------------------------------------------------


def test_diverged_names_level_and_step() -> None:
    said = nested("run", *QUICK, "optim=sgd", "optim.lr=1e12", "optim.momentum=0", "--json")
    assert said.code == 3
    assert said.err.count("\n") == 1
    assert re.search(r"experience 0, step \d+.*level 'all'|level 'all'.*step \d+", said.err)
    assert said.object["status"] == "diverged"
    assert said.object["acc"] is None
    assert said.object["problems"] == [said.err.strip()]


def test_diverging_late_keeps_what_was_learned_before(here: Path) -> None:
    y = np.arange(400) % 4
    x = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    x[y >= 2] *= 1e25  # finite, but the second experience's loss is not
    np.savez(here / "huge.npz", x=x, y=y)
    said = nested(
        "run",
        *QUICK,
        "stream=tensors",
        "stream.path=huge.npz",
        "stream.shuffle_classes=false",
        "optim=sgd",
        "optim.lr=0.01",
    )
    assert said.code == 3
    assert "experience 1, step" in said.err
    first, second, third = rows_recorded(only_run())
    assert first > 0
    assert second > 0
    assert third == 0
    assert "diverged" in done("list", "runs").out
    assert json.loads((only_run() / "result.json").read_text())["status"] == "diverged"


def test_a_defect_is_said_with_where_the_results_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a wheel came off")

    with monkeypatch.context() as patch:
        patch.setattr("nested.loop.Loop._record_row", broken)
        said = nested("run", *QUICK, "--json")
    assert said.code == 1
    assert "Traceback" in said.err  # it is ours to mend
    last = said.err.splitlines()[-1]
    assert last.startswith("nested: ")
    assert "a wheel came off" in last
    assert f"nested resume {only_run().name}" in last
    assert said.object["error"] == last.removeprefix("nested: ")
    assert done("resume", only_run().name, "--json").object["status"] == "done"


def test_a_full_disk_is_said_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = rundir.write_atomic

    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".pt":
            with rundir.said(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inner(path, data)

    monkeypatch.setattr(rundir, "write_atomic", full)
    said = nested("run", *QUICK, "--json")
    assert said.code == 1
    assert said.err.count("\n") == 1
    assert "No space left" in said.object["error"]
    assert str(only_run()) in said.err
    assert "nested resume" in said.err


def test_an_interruption_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nested.run.prepare", ctrl_c)
    said = nested("run", *QUICK, "--json")
    assert said.code == 130
    assert said.err == "nested: interrupted\n"
    assert said.object["error"] == "interrupted"


def test_a_sigterm_outside_of_a_loop_is_as_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("nested.run.prepare", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    said = nested("run", *QUICK)
    assert (said.code, said.err) == (130, "nested: interrupted\n")
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_saves_everything_and_resume_ends_as_if_there_had_been_none(here: Path) -> None:
    options = ["trainer.epochs=60", "trainer.progress=false", "tracking=off", "trainer.threads=1", "method=replay"]
    threads = torch.get_num_threads()
    child = process("run", *options, "runs=stopped", "--json", cwd=here)
    wait_for(lambda: any(e["event"] == "row" and e["row"] == 1 for e in recorded("stopped")))
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    run = only_run("stopped")
    assert child.returncode == 130, err
    assert err.count("\n") == 1
    assert f"nested resume {run.name}" in err
    assert f"nested resume {run.name}" in json.loads(out.splitlines()[-1])["error"]
    reached = len([e for e in recorded("stopped") if e["event"] == "row"])
    resumed = done("resume", run.name, "--runs", "stopped", "--json").object
    whole = done("run", *options, "runs=whole", "--json").object
    assert resumed["matrix"] == whole["matrix"]
    assert len([e for e in recorded("stopped") if e["event"] == "row"]) > reached
    executed = [e["executed_steps"] for e in recorded("stopped") if e["event"] == "end"]
    assert len(executed) == 2
    assert sum(executed) == whole["cost"]["steps"]  # nothing was done twice
    weights, wanted = final_weights(run), final_weights(only_run("whole"))
    assert all(torch.equal(weights[k], wanted[k]) for k in wanted)
    torch.set_num_threads(threads)


def recorded(runs: str) -> list[dict[str, Any]]:
    found = rundir.all_runs(runs)
    return rundir.read_events(found[0] / "seed-0" / "events.jsonl") if found else []


def wait_for(condition: Any, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("change", ["optim.lr=0.5", "method=ewc", "seed=3"])
def test_a_resume_with_another_config_shows_the_difference(change: str, home: Home) -> None:
    given = [*QUICK, "method=replay", change]
    said = nested("resume", home.one["run_id"], *given, "--runs", home.runs, "--json")
    assert said.code == 2
    assert said.err.count("\n") == 1
    key = "method._target_" if change == "method=ewc" else change.split("=")[0]
    assert re.search(rf"{key}: recorded \S+, now \S+", said.err)
    assert key in said.object["seen"]
    assert "Resume without these" in said.err


def test_a_run_that_is_being_written_is_left_alone(home: Home) -> None:
    with rundir.locked(Path(home.runs) / home.one["run_id"]):
        said = nested("resume", home.one["run_id"], "--runs", home.runs)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "being written by another process" in said.err


def test_a_finished_run_is_told_again_and_not_trained_again(home: Home) -> None:
    file = Path(home.runs) / home.one["run_id"] / "seed-0" / "events.jsonl"
    before = file.read_bytes()
    again = done("resume", home.one["run_id"], "--runs", home.runs, "--json").object
    assert {k: again[k] for k in CONTRACT} == {k: home.one[k] for k in CONTRACT}
    assert file.read_bytes() == before


# -- the tracker -------------------------------------------------------------------------------------------------------


@pytest.fixture
def hanging() -> Iterator[str]:
    """The address of a tracker that takes every connection and never answers."""
    kept = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    for connection in kept:
        connection.close()


def stored(file: Path) -> dict[str, tuple[str, int, dict[str, float]]]:
    """`nested.id` -> (status, how many metric points, the last acc by name), read from the database itself."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as db:
        ids = db.execute("select value, run_uuid from tags where key = 'nested.id'").fetchall()
        assert len({value for value, _ in ids}) == len(ids), "a run is there twice"
        found = {}
        for identity, run in ids:
            (status,) = db.execute("select status from runs where run_uuid = ?", (run,)).fetchone()
            points = db.execute("select key, value, step from metrics where run_uuid = ?", (run,)).fetchall()
            found[identity] = (status, len(points), {k: v for k, v, _ in sorted(points, key=lambda p: p[2])})
        return found


def test_a_tracker_that_hangs_costs_only_exit_code_4_and_sync_sends_it_later(hanging: str, here: Path) -> None:
    asked = [f"tracking.uri={hanging}", "tracking.timeout_seconds=3", "trainer.epochs=1", "trainer.progress=false"]
    said = nested("run", *asked, "--json")
    run = only_run()
    assert said.code == 4
    assert "Traceback" not in said.err
    assert f"nested sync {run.name}" in said.err
    assert said.object["status"] == "done"
    assert (run / "report.html").is_file()
    store = here / "later" / "mlflow.db"
    sent = done("sync", run.name, "--uri", f"sqlite:///{store}", "--json").object[run.name]
    assert sent["metrics"] > 0
    there = stored(store)
    assert set(there) == {run.name, f"{run.name}/seed-0"}
    status, _, values = there[f"{run.name}/seed-0"]
    assert status == "FINISHED"
    assert values["acc"] == pytest.approx(said.object["acc"])
    again = done("sync", "--uri", f"sqlite:///{store}", "--json").object[run.name]
    assert (again["metrics"], again["params"], again["artifacts"]) == (0, 0, 0)
    assert stored(store) == there


def test_sync_to_a_tracker_that_is_not_there_is_exit_code_4(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = nested("sync", home.one["run_id"], "--runs", home.runs, "--uri", f"http://127.0.0.1:{port}")
    assert said.code == 4
    assert said.err.count("\n") == 1
    assert f"nested sync {home.one['run_id']}" in said.err


def test_a_short_wait_at_the_end_of_a_run_does_not_hurry_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    done("run", *QUICK, "tracking.timeout_seconds=0.5")
    asked: list[Tracking] = []
    monkeypatch.setattr("nested.tracking.sync", lambda path, settings: asked.append(settings) or Sent())
    done("sync", "--uri", "sqlite:///other.db")
    assert [(s.uri, s.timeout_seconds) for s in asked] == [("sqlite:///other.db", Tracking().timeout_seconds)]


def test_sync_leaves_alone_what_was_not_to_be_tracked(home: Home) -> None:
    assert done("sync", "--runs", home.runs, "--json").object == {}
    said = nested("sync", home.one["run_id"], "--runs", home.runs)
    assert said.code == 2
    assert "tracking off" in said.err


def test_ui_shows_the_store_of_these_runs_on_this_machine_only(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(os, "execvpe", lambda file, command, env: called.append(command))
    said = done("ui", "--runs", home.runs, "--port", "5999")
    (command,) = called
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert f"sqlite:///{Path(home.runs) / 'mlflow.db'}" in command
    assert "http://127.0.0.1:5999" in said.err


# -- the other verbs ---------------------------------------------------------------------------------------------------


def test_alone_it_explains_itself() -> None:
    said = done()
    for verb in ("run", "resume", "list", "show", "doctor", "init", "report", "compare", "sync", "ui", "claims", "gc"):
        assert re.search(rf"^  {verb} ", said.out, re.MULTILINE)
        assert done(verb, "--help").out.count("\n") > 5
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", done("version").out)


def test_list_names_every_choice_with_a_sentence() -> None:
    said, found = done("list"), done("list", "--json").object["choices"]
    assert [(c["group"], c["name"], c["what"]) for c in found] == listing()
    for group, name, sentence in listing():
        assert re.search(rf"^{group}$", said.out, re.MULTILINE)
        assert re.search(rf"^  {name} +{re.escape(sentence)}$", said.out, re.MULTILINE)
    alone = done("list", "optim").out
    assert "adamw" in alone
    assert "split_digits" not in alone


def test_list_runs(home: Home) -> None:
    said = done("list", "runs", "--runs", home.runs)
    assert re.search(rf"{home.one['run_id']} +done, mlp replay single, 1 seed", said.out)
    found = done("list", "runs", "--runs", home.runs, "--json").object["choices"]
    assert [c["name"] for c in found] == [home.one["run_id"], home.several["run_id"]]


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (("list", "runs", "runs=mine"), "nested list it is written --runs mine"),
        (("compare", "one", "two", "runs=mine"), "nested compare it is written --runs mine"),
        (("resume", "2026", "runs=mine"), "nested resume it is written --runs mine"),
        (("run", "--runs", "mine"), "nested run it is written runs=mine"),
        (("run", "--runs=mine", "model=mlp"), "nested run it is written runs=mine"),
    ],
)
def test_the_directory_of_runs_is_a_key_of_run_and_an_option_elsewhere(given: tuple[str, ...], written: str) -> None:
    said = nested(*given)
    assert said.code == 2
    assert said.err.endswith(f"{written}\n")


@pytest.mark.parametrize("group", [g for g in Groups if g != "recipe"])
def test_show_explains_each_choice(group: str) -> None:
    choices = [name for g, name, _ in listing(group) if g == group]
    assert choices
    for name in choices:
        about = done("show", f"{group}={name}", "--json").object
        assert (about["group"], about["choice"]) == (group, name)
        assert all({"key", "value", "type", "default", "help"} <= set(row) for row in about["keys"])
        text = done("show", f"{group}={name}").out
        assert text.startswith(f"{group}={name}\n")
        assert all(row["key"] in text for row in about["keys"])


def test_show_lists_and_explains_sections() -> None:
    listed = done("show").out
    assert "model " in listed
    assert re.search(r"^  checkpoint +When a run can be continued from\.$", listed, re.MULTILINE)
    assert "checkpoint" in [s["name"] for s in done("show", "--json").object["sections"]]
    assert re.search(r"checkpoint\.keep +2 +int >= 2 +2 +newest", done("show", "checkpoint").out)
    assert [k["key"] for k in done("show", "prefix", "--json").object["keys"]] == ["prefix"]


def test_show_hope_attention() -> None:
    text = done("show", "model=hope_attention").out
    assert re.search(r"model\.width +48 +int >= 1 +48", text)
    assert "hope_attention.py" in text


def test_a_unique_beginning_or_a_path_names_a_run(home: Home) -> None:
    ids = [home.one["run_id"], home.several["run_id"]]
    common = ids[0][: next(i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)]
    path = str(Path(home.runs) / ids[0])
    for name in (ids[0], ids[0][: len(common) + 1], path):
        assert done("report", name, "--runs", home.runs, "--json").object["runs"] == [ids[0]]
    said = nested("report", common, "--runs", home.runs, "--json")
    assert said.code == 2
    assert all(i in said.err for i in ids)
    assert said.object["allowed"] == ids


def test_report_of_one_and_compare_of_two(home: Home, here: Path) -> None:
    ids = [home.one["run_id"], home.several["run_id"]]
    said = done("report", ids[0], "--runs", home.runs)
    assert "mlp replay single" in said.out
    assert f"page: {Path(home.runs) / ids[0] / 'report.html'}" in said.out
    both = done("compare", *ids, "--runs", home.runs)
    assert "mlp replay single" in both.out
    assert "mlp naive single" in both.out
    page = re.search(r"^page: (.+)$", both.out, re.MULTILINE)
    assert page
    assert all(i in Path(page[1]).read_text() for i in ids)
    done("compare", *ids, "--runs", home.runs, "--out", "deep/mine.html")
    assert (here / "deep" / "mine.html").is_file()
    (here / "file").touch()
    refused = nested("compare", *ids, "--runs", home.runs, "--out", "file/mine.html")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "file/mine.html" in refused.err


def test_gc_says_what_would_go_and_only_with_yes_it_goes(home: Home) -> None:
    shutil.copytree(home.runs, "copy")
    run = Path("copy") / home.one["run_id"]
    last = max((run / "seed-0" / "checkpoints").iterdir())
    old = last.with_name("00000000.pt")
    shutil.copy(last, old)
    assert "nested gc --yes" in done("gc", "--runs", "copy").out
    assert done("gc", "--runs", "copy", "--json").object["bytes"] == old.stat().st_size
    assert old.exists()
    assert "removed" in done("gc", "--runs", "copy", "--yes").out
    assert not old.exists()
    assert last.exists()
    assert done("resume", home.one["run_id"], "--runs", "copy", "--json").object["acc"] == home.one["acc"]


def test_doctor(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from nested.doctor import Finding

    said = done("doctor", "--runs", home.runs)
    assert "torch" in said.out
    assert "FAIL" not in said.out
    names = {f["name"] for f in done("doctor", "--runs", home.runs, "--json").object["findings"]}
    assert {"Python", "packages", "torch and torchvision", "GPU", "Triton", "runs directory"} <= names
    monkeypatch.setattr("nested.doctor.examine", lambda *_: [Finding("disk", False, "full", "make room")])
    ill = nested("doctor")
    assert ill.code == 1
    assert "FAIL  disk: full\n       make room" in ill.out


def test_claims_are_listed() -> None:
    listed, found = done("claims").out, done("claims", "--json").object["claims"]
    assert all(c["name"] in listed and {"statement", "expected", "tolerance", "command"} <= set(c) for c in found)


@pytest.mark.parametrize("kind", ["stream", "model", "optim", "method"])
def test_init_makes_something_that_runs(kind: str, here: Path) -> None:
    name = f"twig_{kind}"
    said = done("init", kind, name)
    assert f"nested run {kind}={name} --config-dir conf" in said.out
    assert (here / f"{name}.py").is_file()
    assert (here / f"test_{name}.py").is_file()
    assert any(c["name"] == name for c in done("list", kind, "--config-dir", "conf", "--json").object["choices"])
    assert done("run", *QUICK, f"{kind}={name}", "--config-dir", "conf", "--json").object["status"] == "done"
    assert f"{name}.{name if kind == 'stream' else 'Twig'}" in (only_run() / "config.yaml").read_text()
    again = nested("init", kind, name)
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "is there already" in again.err


def test_a_reader_that_goes_away_is_no_defect(here: Path) -> None:
    child = process("list", "--json", cwd=here)
    assert child.stdout
    assert child.stderr
    child.stdout.close()
    assert "Traceback" not in child.stderr.read()
    child.stderr.close()
    child.wait(60)


def test_said_refuses_what_is_no_json() -> None:
    with pytest.raises(BaseException, match="NaN is no JSON"):
        _ = Said(0, '{"acc": NaN}', "").object
