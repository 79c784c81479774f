"""Run directories written by hand, sent to real MLflow stores, and read back by another process."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from nested import tracking
from nested import tracking_outbox as outbox
from nested.errors import UserError
from nested.settings import Tracking
from nested.tracking import TrackerError
from nested.tracking_system import Watched

T0 = 1_700_000_000_000  # unix ms of the first event
READER = """
import json, sys
from mlflow import MlflowClient
for line in sys.stdin:
    uri, run = json.loads(line)
    client, found = MlflowClient(uri), {}
    ids = [e.experiment_id for e in client.search_experiments()]
    for r in client.search_runs(ids, f"tags.`nested.run` = '{run}'"):
        i = r.info.run_id
        history = {k: [(m.timestamp, m.step, m.value) for m in client.get_metric_history(i, k)] for k in r.data.metrics}
        folders = [""] + [a.path for a in client.list_artifacts(i) if a.is_dir]
        found.setdefault(r.data.tags["nested.id"], []).append({
            "id": i, "name": r.info.run_name, "status": r.info.status, "start": r.info.start_time,
            "end": r.info.end_time, "params": r.data.params, "tags": r.data.tags, "metrics": history,
            "datasets": [[d.dataset.name, d.dataset.digest, {t.key: t.value for t in d.tags}, d.dataset.profile]
                         for d in r.inputs.dataset_inputs],
            "artifacts": sorted(a.path for f in folders for a in client.list_artifacts(i, f) if not a.is_dir),
            "uri": r.info.artifact_uri,
        })
    print("READ" + json.dumps(found), flush=True)
"""


@pytest.fixture(scope="session")
def read() -> Iterator[Callable[..., dict[str, Any]]]:
    """`read(settings or uri, run_dir)`: every run of the store with that run's tag, by `nested.id`, read elsewhere."""
    with subprocess.Popen(
        [sys.executable, "-c", READER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1,
        env=tracking.environment(40),
    ) as reader:  # fmt: skip
        assert reader.stdin
        assert reader.stdout

        def ask(settings: Tracking, run_dir: Path) -> dict[str, Any]:
            assert reader.stdin
            assert reader.stdout
            reader.stdin.write(json.dumps([tracking.store_uri(settings, run_dir.parent), run_dir.name]) + "\n")
            for line in reader.stdout:
                if line.startswith("READ"):
                    found = json.loads(line[4:])
                    assert all(len(runs) == 1 for runs in found.values()), "one run of the store for each directory"
                    return {identity: runs[0] for identity, runs in found.items()}
            raise AssertionError("the reader stopped")

        yield ask
        reader.stdin.close()


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """One store for all tests that do not need a fresh one."""
    path = tmp_path_factory.mktemp("store with a space") / "ö" / "mlflow.db"
    return Tracking(uri=f"sqlite:///{path}", experiment="tests", timeout_seconds=60)


def append(directory: Path, *events: dict[str, Any]) -> None:
    with (directory / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(e) + "\n" for e in events)


def begin(run_dir: Path, seed: int, steps: int = 3) -> Path:
    """A seed that has trained for `steps` steps of its first experience."""
    directory = run_dir / f"seed-{seed}"
    directory.mkdir(parents=True)
    (run_dir / "FORMAT").write_text("1\n")
    t = T0 + 1000 * seed
    append(
        directory,
        {"t": t, "event": "start", "run_id": run_dir.name, "seed": seed, "label": "mlp naive"},
        {"t": t, "event": "params", "values": {"seed": seed, "optim.lr": 0.1, "label": None, "tracking.uri": "x"}},
        {"t": t, "event": "tags", "values": {"commit": "c0ffee", "dirty": "True", "stream": "split_digits"}},
        *(
            {"t": t, "event": "dataset", "experience": i, "name": f"split_digits exp-{i:02d}", "digest": f"d{seed}",
             "n_train": 8, "n_validation": 1, "n_test": 2, "classes": [2 * i, 2 * i + 1]} for i in range(2)
        ),
        *({"t": t + k, "event": "metrics", "step": k, "values": {"train/loss": 1 / (k + 1)}} for k in range(steps)),
    )  # fmt: skip
    for name in ("config.yaml", "environment.json"):
        (directory / name).write_text(f"{name} of seed {seed}")
    return directory


def end(directory: Path, t: int = T0 + 5000, status: str = "done", acc: float = 0.5) -> None:
    for name in ("matrix.json", "matrix.csv", "matrix.png"):
        (directory / name).write_text(f"{name} at {t}")
    append(
        directory,
        {"t": t - 1, "event": "metrics", "step": 1, "values": {"experience/acc": acc, "experience/test/exp-00": None}},
        {"t": t - 1, "event": "row", "row": 1, "view": "model", "part": "test"},
        {"t": t - 1, "event": "artifact", "path": "matrix.csv"},
        {"t": t, "event": "end", "status": status, "values": {"acc": acc, "forgetting": None}},
    )


def result(run_dir: Path, status: str = "done", acc: float = 0.5) -> None:
    (run_dir / "figures").mkdir(exist_ok=True)
    for name in ("config.yaml", "report.html", "figures/matrix.png"):
        (run_dir / name).write_text(name)
    values = {
        "format": 1, "run_id": run_dir.name, "label": "mlp naive", "status": status, "stream": "split_digits",
        "scenario": "class", "seeds": [0, 1], "config": {"optim.lr": 0.1, "trainer.epochs": 2, "tracking.uri": None},
        "mean": {"acc": acc, "bwt": None}, "ci95": {"acc": 0.01},
    }  # fmt: skip
    (run_dir / "result.json").write_text(json.dumps(values))


def finished(run_dir: Path, steps: int = 3) -> Path:
    """A whole run of two seeds."""
    for seed in (0, 1):
        end(begin(run_dir, seed, steps), T0 + 5000 + seed)
    result(run_dir)
    return run_dir


def forget(run_dir: Path) -> None:
    for path in (run_dir, *run_dir.glob("seed-*")):
        (path / "tracking.json").unlink()


@contextmanager
def listening(answer: Callable[[socket.socket], None] | None = None) -> Iterator[int]:
    """The port of a tracker that accepts and never answers, or answers with `answer`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def serve() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return
                if answer:
                    threading.Thread(target=answer, args=(kept[-1],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for connection in kept:
                connection.close()


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


def http(port: int, timeout: float = 4) -> Tracking:
    return Tracking(uri=f"http://127.0.0.1:{port}", timeout_seconds=timeout)


# --- what is told ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, settings: Tracking) -> tuple[Path, tracking.Sent]:
    run_dir = finished(tmp_path_factory.mktemp("runs") / "run-told", steps=1200)
    return run_dir, tracking.sync(run_dir, settings)


def test_counts_what_was_sent(told: tuple[Path, tracking.Sent], settings: Tracking) -> None:
    run_dir, sent = told
    # metrics: 1200 losses, experience/acc and acc for each seed, mean and ci95; params: 3 for each seed, 2 for the run
    assert sent == tracking.Sent(runs=3, params=8, metrics=2 * 1202 + 2, datasets=4, artifacts=2 * 5 + 4)
    assert tracking.pending(run_dir, settings) == 0


def test_seed_is_told_as_recorded(told, settings, read) -> None:
    run_dir, _ = told
    seed, run = (read(settings, run_dir)[k] for k in ("run-told/seed-1", "run-told"))
    assert seed["name"] == "mlp naive seed-1"
    assert (seed["status"], seed["start"], seed["end"]) == ("FINISHED", T0 + 1000, T0 + 5001)
    assert seed["params"] == {"seed": "1", "optim.lr": "0.1", "label": "null"}
    assert seed["tags"]["mlflow.parentRunId"] == run["id"]
    assert seed["tags"]["mlflow.source.git.commit"] == seed["tags"]["commit"] == "c0ffee"
    assert (seed["tags"]["dirty"], seed["tags"]["nested.status"]) == ("True", "done")
    losses = [[T0 + 1000 + k, k, 1 / (k + 1)] for k in range(1200)]
    assert sorted(seed["metrics"].pop("train/loss")) == losses
    assert seed["metrics"] == {"experience/acc": [[T0 + 5000, 1, 0.5]], "acc": [[T0 + 5001, 0, 0.5]]}
    assert seed["artifacts"] == ["config.yaml", "environment.json", "matrix.csv", "matrix.json", "matrix.png"]
    assert sorted(d[0] for d in seed["datasets"]) == ["split_digits exp-00", "split_digits exp-01"]
    _, digest, tags, profile = max(seed["datasets"])
    assert (digest, tags) == ("d1", {"mlflow.data.context": "experience 1", "classes": "[2, 3]"})
    assert json.loads(profile) == {"num_rows": 11, "n_train": 8, "n_validation": 1, "n_test": 2}


def test_run_is_told_from_its_result(told, settings, read) -> None:
    run_dir, _ = told
    found = read(settings, run_dir)
    run = found["run-told"]
    assert (run["name"], run["status"], run["start"], run["end"]) == ("mlp naive", "FINISHED", T0, T0 + 5001)
    assert run["params"] == {"optim.lr": "0.1", "trainer.epochs": "2"}
    assert run["metrics"] == {"mean/acc": [[T0 + 5001, 0, 0.5]], "ci95/acc": [[T0 + 5001, 0, 0.01]]}
    assert run["artifacts"] == ["config.yaml", "figures/matrix.png", "report.html", "result.json"]
    expected = {"commit": "c0ffee", "scenario": "class", "seeds": "[0, 1]", "nested.status": "done"}
    assert expected.items() <= run["tags"].items()
    assert "mlflow.parentRunId" not in run["tags"]
    names = {(d[0], d[1]) for d in run["datasets"]}  # those of every seed
    assert names == {(f"split_digits exp-0{i}", f"d{seed}") for i in range(2) for seed in range(2)}
    assert (run["tags"]["nested.kind"], found["run-told/seed-1"]["tags"]["nested.kind"]) == ("run", "seed")
    assert {"stream", "nested.status"} <= run["tags"].keys() & found["run-told/seed-1"]["tags"].keys()


def test_artifacts_lie_beside_the_store(told, settings, read) -> None:
    run_dir, _ = told
    beside = Path(tracking.store_uri(settings, "").removeprefix("sqlite:///")).parent / "mlflow-artifacts"
    files = [p.read_text() for p in beside.rglob("matrix.csv")]
    assert f"matrix.csv at {T0 + 5001}" in files
    assert read(settings, run_dir)["run-told"]["uri"].startswith(beside.as_uri())


def test_twice_synced_once_there_even_when_forgotten(told, settings, read) -> None:
    run_dir, sent = told
    before = read(settings, run_dir)
    assert tracking.sync(run_dir, settings) == tracking.Sent(runs=3)
    assert read(settings, run_dir) == before
    forget(run_dir)
    assert tracking.sync(run_dir, settings) == tracking.Sent(3, 0, 0, sent.datasets, sent.artifacts)
    assert read(settings, run_dir) == before


# --- runs that go on ------------------------------------------------------------------------------------------------


def test_torn_line_waits_and_resume_continues_the_same_runs(tmp_path, settings, read) -> None:
    run_dir = tmp_path / "run-resumed"
    seed = begin(run_dir, 0)
    end(seed, T0 + 5000, "interrupted")
    result(run_dir, "interrupted")
    with (seed / "events.jsonl").open("a") as file:
        file.write('{"t": 1700000006000, "event": "metrics", "step": 7, "val')
    tracking.sync(run_dir, settings)
    before = read(settings, run_dir)
    assert {r["status"] for r in before.values()} == {"KILLED"}
    assert tracking.pending(run_dir, settings) == 0  # a torn line is nobody's

    with (seed / "events.jsonl").open("a") as file:  # as the writer goes on after a torn line
        file.write("\n")
    append(seed, {"t": T0 + 7000, "event": "resume"}, {"t": T0 + 7000, "event": "params", "values": {"optim.lr": 0.2}})
    assert tracking.pending(run_dir, settings) == 2
    tracking.sync(run_dir, settings)
    during = read(settings, run_dir)
    assert {r["status"] for r in during.values()} == {"RUNNING"}
    assert {r["tags"]["nested.status"] for r in during.values()} == {"running"}

    end(seed, T0 + 9000, "done", acc=0.75)
    result(run_dir, acc=0.75)
    tracking.sync(run_dir, settings)
    after = read(settings, run_dir)
    assert {k: r["id"] for k, r in after.items()} == {k: r["id"] for k, r in before.items()}
    child, run = after["run-resumed/seed-0"], after["run-resumed"]
    assert (child["status"], child["end"], run["status"], run["end"]) == ("FINISHED", T0 + 9000, "FINISHED", T0 + 9000)
    assert child["metrics"]["acc"] == [[T0 + 5000, 0, 0.5], [T0 + 9000, 0, 0.75]]
    assert run["metrics"]["mean/acc"] == [[T0 + 5000, 0, 0.5], [T0 + 9000, 0, 0.75]]
    assert child["params"]["optim.lr"] == "0.1"  # the store keeps the first value; the other one is told beside it
    assert child["tags"]["changed.optim.lr"] == "0.2"
    forget(run_dir)
    tracking.sync(run_dir, settings)
    assert read(settings, run_dir) == after


def test_rewritten_events_and_new_store_are_sent_from_the_start(tmp_path, read) -> None:
    run_dir, here = finished(tmp_path / "run-again"), Tracking()
    sent = tracking.sync(run_dir, here)
    assert (tmp_path / "mlflow.db").is_file()  # the default: beside the runs
    events = run_dir / "seed-0" / "events.jsonl"
    events.write_text(events.read_text().replace('"step": 2', '"step": 20'))
    assert tracking.pending(run_dir, here) > 0
    tracking.sync(run_dir, here)
    steps = {s for _, s, _ in read(here, run_dir)["run-again/seed-0"]["metrics"]["train/loss"]}
    assert steps == {0, 1, 2, 20}
    (tmp_path / "mlflow.db").unlink()
    assert tracking.sync(run_dir, here) == sent


@pytest.mark.parametrize(
    ("status", "expected"), [("diverged", "FAILED"), ("failed", "FAILED"), ("interrupted", "KILLED")]
)
def test_status_of_an_end(status: str, expected: str) -> None:
    from nested.tracking_replay import fold

    batch = fold([{"t": 5, "event": "start"}, {"t": 7, "event": "end", "status": status, "values": {"acc": 1}}])
    assert (batch.status, batch.ended, batch.tags["nested.status"]) == (expected, 7, status)


def test_what_the_store_cannot_take_is_made_fit(tmp_path, settings, read) -> None:
    run_dir = tmp_path / "run-odd"
    seed = begin(run_dir, 0, steps=0)
    odd = {"a=b (c)": 1.0, "../up": 2.0, "": 3.0, "nan": math.nan, "inf": math.inf, "none": None, "text": "x"}
    long = {f"p{i}": "ä" * 7000 for i in range(45)}
    append(
        seed,
        {"t": T0, "event": "metrics", "step": 0, "values": odd},
        {"t": T0, "event": "params", "values": {**long, "empty": "", "x" * 300: [1, True]}},
        {"t": T0, "event": "artifact", "path": "../../secret"},
        {"t": T0, "event": "something new"},
    )
    (tmp_path / "secret").write_text("not part of the run")
    tracking.sync(run_dir, settings)
    found = read(settings, run_dir)["run-odd/seed-0"]
    values = {k: v[0][2] for k, v in found["metrics"].items()}
    assert math.isnan(values.pop("nan"))
    assert values == {"a_b _c_": 1.0, "_/up": 2.0, "_": 3.0, "inf": 1.7976931348623157e308}
    assert found["params"]["p44"] == "ä" * 6000
    assert (found["params"]["empty"], found["params"]["x" * 250]) == ("", "[1, true]")
    assert found["artifacts"] == ["config.yaml", "environment.json"]


@pytest.mark.parametrize("call", ["log_batch", "log_inputs", "set_terminated", "log_artifact"])
def test_store_that_fails_in_the_middle_gets_the_rest_later(tmp_path, settings, read, call, monkeypatch) -> None:
    from mlflow import MlflowClient

    from nested.tracking_replay import Replay

    run_dir = finished(tmp_path / f"run-{call}")
    whole, calls = getattr(MlflowClient, call), []

    def once(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(call)
        if len(calls) == 2:
            raise OSError("gone")
        return whole(self, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, call, once)
        with pytest.raises(OSError, match="gone"):
            Replay(tracking.target(run_dir, settings), tracking.Sent(), lambda: None).send()
    assert tracking.pending(run_dir, settings) > 0
    Replay(tracking.target(run_dir, settings), tracking.Sent(), lambda: None).send()
    found = read(settings, run_dir)
    assert {r["status"] for r in found.values()} == {"FINISHED"}
    assert {len(r["artifacts"]) for r in found.values()} == {4, 5}
    assert all(len(found[f"{run_dir.name}/seed-{s}"]["datasets"]) == 2 for s in (0, 1))
    assert all(len(found[f"{run_dir.name}/seed-{s}"]["metrics"]["train/loss"]) == 3 for s in (0, 1))


def test_many_at_once_on_a_fresh_store_make_each_run_once(tmp_path, read) -> None:
    runs = [finished(tmp_path / name) for name in ("run-a", "run-b")]
    here = Tracking(timeout_seconds=60)
    with ThreadPoolExecutor() as pool:
        sent = list(pool.map(lambda r: tracking.sync(r, here), [*runs, *runs]))
    assert len(sent) == 4
    for run_dir in runs:
        assert set(read(here, run_dir)) == {run_dir.name, f"{run_dir.name}/seed-0", f"{run_dir.name}/seed-1"}


# --- the sender of a command ----------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.3)


def test_sender_follows_a_run_and_sends_the_rest(tmp_path, settings, read) -> None:
    run_dir = tmp_path / "run-live"
    run_dir.mkdir()
    with tracking.sender(run_dir, settings) as sender:
        seed = begin(run_dir, 0)
        wait_for(lambda: "train/loss" in read(settings, run_dir).get("run-live/seed-0", {"metrics": {}})["metrics"])
        assert read(settings, run_dir)["run-live"]["status"] == "RUNNING"
        end(seed)
        result(run_dir)
    assert sender.problem is None
    assert tracking.pending(run_dir, settings) == 0
    assert {r["status"] for r in read(settings, run_dir).values()} == {"FINISHED"}
    assert sender.sent.runs == 2


def test_system_metrics_belong_to_the_run_and_wait_as_everything_does(tmp_path, settings, read) -> None:
    run_dir, told = tmp_path / "run-watched", ("cpu_utilization_percentage", "system_memory_usage_megabytes")
    run_dir.mkdir()
    with tracking.sender(run_dir, dataclasses.replace(settings, system_metrics=True)):
        assert not outbox.directories(run_dir)  # nothing to watch before something has begun
        seed = begin(run_dir, 0)
        wait_for(lambda: (run_dir / "events.jsonl").is_file())
        end(seed)
        result(run_dir)
    assert tracking.pending(run_dir, settings) == 0
    found = read(settings, run_dir)
    run, metrics = found["run-watched"], found["run-watched"]["metrics"]
    assert (run["name"], run["status"], run["end"]) == ("mlp naive", "FINISHED", T0 + 5000)
    assert {f"system/{name}" for name in told} < metrics.keys()
    assert metrics["system/run_memory_megabytes"][0][2] > 10
    assert not any(name.startswith("system/") for name in found["run-watched/seed-0"]["metrics"])
    forget(run_dir)
    tracking.sync(run_dir, settings)
    assert read(settings, run_dir) == found


def test_system_metrics_are_an_option(tmp_path, settings) -> None:
    assert not tracking.target(tmp_path, settings, follow=True).system
    on = dataclasses.replace(settings, system_metrics=True)
    assert tracking.target(tmp_path, on, follow=True).system
    assert not tracking.target(tmp_path, on).system  # `sync` comes when the run is over


def test_a_process_is_watched_with_those_it_started_and_without_the_watcher() -> None:
    code = "x = bytearray(50_000_000); print(flush=True); input()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    with subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert Watched(process.pid).sample()[1] > 50_000_000
        alone = Watched(os.getpid())
        assert process.pid in {p.pid for p in alone._processes()}
        assert os.getpid() not in {p.pid for p in alone._processes()}
        process.communicate(b"\n")
    assert Watched(process.pid).sample() == (0.0, 0)  # it is over


def test_run_that_raises_is_marked_failed(tmp_path, settings, read) -> None:
    run_dir = tmp_path / "run-raises"
    begin(run_dir, 0)
    with pytest.raises(ZeroDivisionError), tracking.sender(run_dir, settings):
        raise ZeroDivisionError
    assert {r["status"] for r in read(settings, run_dir).values()} == {"FAILED"}


def test_killed_command_is_still_told(tmp_path, settings, read) -> None:
    run_dir = tmp_path / "run-killed"
    begin(run_dir, 0)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from nested import tracking; from nested.settings import Tracking\n"
        "with tracking.sender(Path(sys.argv[1]), Tracking(uri=sys.argv[2], experiment='tests')):\n"
        "    print('started', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(run_dir), settings.uri or ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=tracking.environment(20)) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: {r["status"] for r in read(settings, run_dir).values()} == {"KILLED"})
    found = read(settings, run_dir)
    assert len(found["run-killed/seed-0"]["metrics"]["train/loss"]) == 3
    assert found["run-killed"]["end"] == T0 + 2


def test_nothing_recorded_nothing_waited_for(tmp_path) -> None:
    began = time.monotonic()
    with pytest.raises(UserError), tracking.sender(tmp_path, Tracking()) as sender:
        raise UserError("the data is not there")
    assert time.monotonic() - began < 5
    assert sender.problem is None


def test_off_is_off(tmp_path) -> None:
    off = Tracking(enabled=False, uri="nonsense")
    tracking.check(off, tmp_path)
    with tracking.sender(tmp_path, off) as sender:
        begin(tmp_path / "run-off", 0)
    assert sender.problem is None
    assert not list(tmp_path.glob("*.db"))
    with pytest.raises(UserError, match="tracking off"):
        tracking.sync(tmp_path / "run-off", off)


# --- trackers that fail ---------------------------------------------------------------------------------------------


def dribble(connection: socket.socket) -> None:
    """An answer that never ends: no single wait is long."""
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            connection.sendall(b"z")
            time.sleep(0.1)
    except OSError:
        return


@pytest.mark.parametrize("answer", [None, dribble])
def test_hanging_tracker_holds_up_nothing(tmp_path, answer) -> None:
    run_dir = finished(tmp_path / "run-hung")
    files = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    with listening(answer) as port:
        began = time.monotonic()
        with tracking.sender(run_dir, http(port, 3)) as sender:
            started = time.monotonic() - began
            time.sleep(3)  # it is hanging by now
            leaving = time.monotonic()
        waited = time.monotonic() - leaving
        with pytest.raises(TrackerError, match=r"no answer .* nested sync run-hung") as caught:
            tracking.sync(run_dir, http(port, 3))
    assert started < 2
    assert waited < 15
    assert sender.problem is not None
    assert caught.value.exit_code == 4
    assert tracking.pending(run_dir, http(port)) == 2 * (5 + 3 + 4 + 5) + 4
    assert {p: p.read_bytes() for p in files} == files


def test_unreachable_tracker_is_named_without_its_password(tmp_path) -> None:
    run_dir = finished(tmp_path / "run-far")
    far = Tracking(uri=f"http://me:secret@127.0.0.1:{free_port()}", timeout_seconds=8)
    with pytest.raises(TrackerError, match="connection refused") as caught:
        tracking.sync(run_dir, far)
    assert "me:***@127.0.0.1" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not any("secret" in p.read_text() for p in run_dir.rglob("*") if p.is_file())


def test_server_that_comes_back_gets_everything_once(tmp_path, read) -> None:
    run_dir = finished(tmp_path / "run-late")
    with listening() as port, pytest.raises(TrackerError):
        tracking.sync(run_dir, http(port, 2))
    there = http(port, 30)
    store = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "art")]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *store, *where],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=tracking.environment(20), start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: answers(there), 90)
        assert "MLflow 3." in tracking.probe(there.uri or "", 2)
        sent = tracking.sync(run_dir, there)
        assert sent == tracking.Sent(runs=3, params=8, metrics=2 * 5 + 2, datasets=4, artifacts=14)
        first = read(there, run_dir)
        assert first["run-late/seed-0"]["artifacts"][-1] == "matrix.png"
        forget(run_dir)
        tracking.sync(run_dir, there)
        assert read(there, run_dir) == first
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(settings: Tracking) -> bool:
    try:
        tracking.probe(settings.uri or "", 1)
    except TrackerError:
        return False
    return True


def test_store_locked_by_somebody_else(tmp_path, settings, read) -> None:
    import sqlite3

    tracking.sync(finished(tmp_path / "run-before"), settings)  # there is a store to lock, whichever test comes first
    run_dir = finished(tmp_path / "run-locked")
    short = Tracking(uri=settings.uri, experiment="tests", timeout_seconds=2)
    with closing(sqlite3.connect(tracking.store_uri(short, "").removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackerError):
            tracking.sync(run_dir, short)
    assert tracking.sync(run_dir, settings).artifacts == 14


# --- before the run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///tmp/mlruns", "sqlite:////tmp/mlruns/mlflow.db"),
        ("mlruns", "plain files"),
        ("localhost:5000", "http://HOST:PORT"),
        ("htp://host:5000", "did you mean 'http'"),
        ("http://", "no host"),
        ("http://host:port", "no host"),
        ("sqlite://", "no file another process"),
        ("sqlite:///:memory:", "no file another process"),
        ("sqlite:////proc/nowhere/mlflow.db", "cannot write"),
        ("sqlite:////tmp", "cannot write /tmp"),
    ],
)
def test_wrong_address_is_refused_before_the_run(uri: str, message: str, tmp_path) -> None:
    with pytest.raises(UserError) as caught:
        tracking.check(Tracking(uri=uri), tmp_path)
    assert message in str(caught.value)
    assert caught.value.key == "tracking.uri"


def test_store_whose_driver_is_not_installed_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(tracking.DRIVERS, "postgresql", "no_such_driver")
    with pytest.raises(UserError, match="no_such_driver"):
        tracking.check(Tracking(uri="postgresql://host/db"), tmp_path)


def test_other_file_is_no_store(tmp_path) -> None:
    (tmp_path / "mlflow.db").write_text("my precious notes, longer than a header")
    with pytest.raises(UserError, match="not a SQLite file"):
        tracking.check(Tracking(), tmp_path)
    with pytest.raises(UserError, match=r"tracking\.experiment"):
        tracking.check(Tracking(experiment=" "), tmp_path)


def test_right_address_is_taken_and_its_directory_made(tmp_path) -> None:
    for uri in (None, f"sqlite:///{tmp_path}/new/dir/x.db", "http://host:5000", "https://me:pw@host/mlflow"):
        tracking.check(Tracking(uri=uri), tmp_path)
    assert (tmp_path / "new" / "dir").is_dir()
    assert not list(tmp_path.rglob("*.db"))


def test_relative_file_is_the_same_store_from_anywhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking.store_uri(Tracking(uri="sqlite:///a/x.db"), "runs") == f"sqlite:///{tmp_path}/a/x.db"
    assert tracking.store_uri(Tracking(), "runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_probe(told, settings, tmp_path) -> None:
    assert "runs" in tracking.probe(tracking.store_uri(settings, ""), 1)
    assert "not there yet" in tracking.probe(f"sqlite:///{tmp_path}/x.db", 1)
    with pytest.raises(TrackerError, match="refused"):
        tracking.probe(f"http://127.0.0.1:{free_port()}", 1)
    with listening() as port:
        began = time.monotonic()
        with pytest.raises(TrackerError, match="timed out"):
            tracking.probe(f"http://127.0.0.1:{port}", 0.5)
        assert time.monotonic() - began < 10


def test_ui_is_local_and_on_the_right_store(tmp_path) -> None:
    command = " ".join(tracking.ui_command(Tracking(), tmp_path, 5001))
    assert f"--backend-store-uri sqlite:///{tmp_path}/mlflow.db --host 127.0.0.1 --port 5001" in command
    with pytest.raises(UserError, match="open http://host:5000"):
        tracking.ui_command(Tracking(uri="http://host:5000"), tmp_path)


def test_process_that_cannot_start_is_a_problem_not_a_crash(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    run_dir = finished(tmp_path / "run-odd")
    with tracking.sender(run_dir, Tracking()) as sender:
        pass
    assert sender.problem is not None
    assert "cannot be started" in sender.problem


def test_damaged_memory_remembers_nothing(tmp_path) -> None:
    from nested import tracking_outbox as outbox

    run_dir = finished(tmp_path / "run-damaged")
    for text in ("", "{}", '{"stores": {"s": {"run": "x"}}}', '{"stores": []}'):
        (run_dir / "tracking.json").write_text(text)
        assert outbox.recall(run_dir, "s") == outbox.Memory()
    outbox.remember(run_dir, "s", outbox.Memory(run="r", offset=3))
    outbox.remember(run_dir, "other", outbox.Memory(run="q"))
    assert outbox.recall(run_dir, "s").offset == 3
    shutil.rmtree(run_dir)
    outbox.remember(run_dir, "s", outbox.Memory())  # a directory that went away costs nothing


def test_the_run_imports_no_mlflow() -> None:
    code = "import sys; from nested import tracking; print(sorted({'mlflow', 'torch', 'hydra'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=tracking.environment(20))
    assert done.stdout.strip() == "[]"


# --- studies --------------------------------------------------------------------------------------------------------


def trial(study: Path, number: int, status: str | None) -> Path:
    """A trial with a number after each of two experiences, and the end it came to."""
    directory = study / f"trial-{number:04d}"
    (directory / "seed-0").mkdir(parents=True)
    t = T0 + 1000 * number
    append(
        directory,
        {"t": t, "event": "start", "run_id": study.name, "label": "mlp naive", "trial": number},
        {"t": t, "event": "params", "values": {"optim.lr": 0.1 * (number + 1)}},
        {"t": t, "event": "tags", "values": {"stream": "split_digits", "study": study.name, "trial": number}},
        *({"t": t + k, "event": "metrics", "step": k, "values": {"acc": 0.5 + 0.1 * k}} for k in range(2)),
    )
    if status:
        append(directory, {"t": t + 500, "event": "end", "status": status, "values": {"objective/acc": 0.6}})
    append(directory / "seed-0", {"t": t, "event": "start", "seed": 0})
    (directory / "config.yaml").write_text("of the trial")
    return directory


def test_a_study_is_a_run_whose_children_are_its_trials(tmp_path, settings, read) -> None:
    study = tmp_path / "study-told"
    study.mkdir()
    for name in ("FORMAT", "study.json"):
        (study / name).write_text("1\n")
    ends = ["done", "pruned", "failed", None]
    for number, status in enumerate(ends):
        trial(study, number, status)
    tracking.sync(study / "trial-0001", settings)  # a trial is sent with its study
    found = read(settings, study)
    run = found.pop("study-told")
    assert sorted(found) == [f"study-told/trial-{k:04d}" for k in range(4)], "a trial's seeds are no runs"
    told = [found[f"study-told/trial-{k:04d}"] for k in range(4)]
    assert [r["status"] for r in told] == ["FINISHED", "KILLED", "FAILED", "RUNNING"]
    assert [r["tags"]["nested.status"] for r in told] == ["done", "pruned", "failed", "running"]
    assert [(r["tags"]["study"], r["tags"]["trial"]) for r in told] == [("study-told", str(k)) for k in range(4)]
    assert {(r["tags"]["mlflow.parentRunId"], r["tags"]["nested.kind"]) for r in told} == {(run["id"], "trial")}
    assert told[1]["metrics"]["acc"] == [[T0 + 1000, 0, 0.5], [T0 + 1001, 1, 0.6]]
    assert [set(r["params"]) for r in told] == [{"optim.lr"}] * 4
    assert (told[2]["name"], run["name"], run["status"]) == ("mlp naive trial-0002", "study-told", "RUNNING")
    assert run["tags"]["nested.kind"] == "study"
    assert "trial" not in run["tags"], "what is one trial's is not the study's"
    assert told[0]["artifacts"] == ["config.yaml"]
    result(study)
    tracking.sync(study, settings)
    assert read(settings, study)["study-told"]["metrics"]["mean/acc"] == [[T0 + 2500, 0, 0.5]]
    append(study / "trial-0003", {"t": T0 + 9000, "event": "end", "status": "pruned"})
    assert tracking.sync(study, settings) == tracking.Sent(runs=5)
    assert read(settings, study)["study-told/trial-0003"]["status"] == "KILLED"


def test_one_of_several_senders_leaves_to_the_others_what_has_no_end(tmp_path, settings, read) -> None:
    study = tmp_path / "study-shared"
    study.mkdir()
    for name in ("FORMAT", "study.json"):
        (study / name).write_text("1\n")
    trial(study, 0, "done")
    trial(study, 1, None)
    states = []
    for alone in (False, True):
        with tracking.sender(study, settings, alone) as sender:
            pass
        assert sender.problem is None
        found = read(settings, study)
        states.append([found[f"study-shared/trial-{k:04d}"]["status"] for k in range(2)])
    assert states == [["FINISHED", "RUNNING"], ["FINISHED", "KILLED"]]
