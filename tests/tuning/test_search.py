"""The verbs tune and worker, on real trainings of a fraction of a second."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import QUICK, done, nested
from tuning.landscape import told

from nested.tuning.study import Study

SPACE = ("tune.space.optim.lr={low:0.01,high:1,log:true}", "tune.study=s")
TINY = (*QUICK, "model.hidden=[]", "trainer.threads=1", "stream.n_experiences=2", "trainer.batch_size=128", *SPACE)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_study_from_the_command_line_goes_on_and_can_be_looked_at():
    first = done("tune", *TINY, "tune.n_trials=2", "trainer.allow_idle=true", "--json").object
    assert (first["trials"], first["complete"] + first["pruned"]) == (2, 2)
    said = done("tune", *TINY, "tune.n_trials=4", "trainer.allow_idle=true")
    assert "trial 3  " in said.err
    assert "trial 0  " not in said.err, "it was told before"
    shown = done("tune", "show", "s").out
    assert shown.count("\ntrial ") == 4
    result = json.loads(Path("runs/s/result.json").read_text())
    assert (result["kind"], result["status"], result["best"][0]["params"].keys()) == ("study", "done", {"optim.lr"})
    summary = json.loads(Path("runs/s/trial-0000/seed-0/summary.json").read_text())
    assert summary["judged_on"] == "validation"
    best = {b["trial"]: b["values"][0] for b in result["best"]}
    values = [json.loads(p.read_text())["acc"] for p in Path("runs/s").glob("trial-*/seed-0/summary.json")]
    assert set(best.values()) == {max(values)}


@pytest.mark.parametrize(
    "words, key, said",
    [
        (["tune.space.optim.lrr.low=1", "tune.space.optim.lrr.high=2"], "optim.lrr", "did you mean"),
        (["tune.objective=forgetting", "method=joint"], "tune.objective", "everything is learned at once"),
        (["tune.objective=accuracy"], "tune.objective", "unknown objective"),
        (["tune.storage=grpc://127.0.0.1:1"], "tune.storage", "start one with"),
        (["tune.storage=sqlite:////proc/none/x.db"], "tune.storage", "choose a file"),
        (["+tune.space.optim.eps=null"], "tune.space.optim.eps", "None is not allowed"),
        (["workers=0"], "workers", "0 is not allowed; allowed: int >= 1"),
        (["tune=frequency"], "tune", "unknown tune"),
        (["optim=adamw", "optim.eps=-1"], "optim", "refuses"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(words, key, said, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nested.tuning.storage.PATIENCE", 1)
    refused = nested("tune", *TINY, "trainer.allow_idle=true", *words, "--json")
    assert refused.code == 2
    assert said in refused.err
    assert key in str(refused.object["key"])
    assert not Path("runs").exists()


def test_a_study_that_is_another_is_refused_by_the_verb():
    done("tune", *TINY, "tune.n_trials=1", "trainer.allow_idle=true")
    refused = nested("tune", *TINY, "tune.n_trials=1", "trainer.allow_idle=true", "trainer.epochs=2", "--json")
    assert refused.code == 2
    assert "trainer.epochs: recorded 1, now 2" in refused.err
    assert nested("tune", "show", "nothing").code == 2
    assert "studies in runs: s" in nested("tune", "show").err


def test_a_killed_study_ends_as_one_that_was_not_and_a_worker_may_do_the_rest():
    words = (*TINY, "tune.n_trials=3", "tune.pruner=none", "trainer.allow_idle=true", "seeds=3")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([sys.executable, "-m", "nested", "tune", *words, "tune.grace_seconds=1"], env=env,
                              stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
    while not Path("runs/s/trial-0001/seed-0/summary.json").exists():
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    rest = done("worker", "s", "--json").object
    assert (rest["trials"], rest["complete"]) == (3, 3)
    done("tune", *(w for w in words if w != "tune.study=s"), "tune.study=whole")
    assert told(Study(Path("runs/s").resolve())) == told(Study(Path("runs/whole").resolve()))


def test_a_worker_sends_what_is_recorded_and_says_what_was_not_sent(monkeypatch: pytest.MonkeyPatch):
    done("tune", *TINY, "tune.n_trials=1", "trainer.allow_idle=true")
    asked = []

    @contextlib.contextmanager
    def sender(path, settings, alone=True):
        asked.append((path.name, settings.system_metrics, alone))
        yield SimpleNamespace(problem="the tracker has not got 3 records")

    monkeypatch.setattr("nested.tracking.sender", sender)
    said = nested("worker", "s")
    assert (said.code, asked) == (4, [("s", False, False)])
    assert "the tracker has not got 3 records" in said.err


def test_a_stop_is_said_with_how_to_go_on():
    words = (*TINY, "tune.n_trials=30", "trainer.allow_idle=true", "seeds=3")
    running = subprocess.Popen([sys.executable, "-m", "nested", "tune", *words], text=True, start_new_session=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)  # fmt: skip
    while not Path("runs/s/trial-0001/seed-0/events.jsonl").exists():
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    said = running.communicate()[1]
    assert running.returncode == 130
    assert "give the same command again" in said
    assert done("tune", "show", "s", "--json").object["running"] == 0
