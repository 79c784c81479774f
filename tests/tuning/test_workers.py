"""Four workers of which two are killed at random moments: exactly the trials asked for, each as one process makes."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tuning.landscape import PERIOD, RATE, let, small_study, told, worked

from nested.errors import NestedError, UserError
from nested.tuning import workers
from nested.tuning.settings import Launcher
from nested.tuning.study import Study

AS_LET = "tuning.landscape.run_as_let"
TESTS = str(Path(__file__).resolve().parents[1])


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes find the runners of these tests."""
    monkeypatch.setenv("PYTHONPATH", TESTS)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A database of our own, by a user who may run one."""
    pytest.importorskip("psycopg2")
    if not (shutil.which("initdb") and shutil.which("pg_ctl")):
        pytest.skip("no PostgreSQL here: initdb and pg_ctl are not on the path")
    user = "postgres" if os.getuid() == 0 else None
    place = Path(tempfile.mkdtemp(prefix="nested-pg-", dir="/tmp"))  # its socket's path must be short
    if user:
        try:
            shutil.chown(place, user)
        except LookupError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    options = f"-k {place} -c listen_addresses='' -c fsync=off"

    def do(*command: str) -> None:
        subprocess.run(command, check=True, user=user, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    do("initdb", "-D", str(place / "data"), "-A", "trust", "-U", "nested", "--no-sync")
    do("pg_ctl", "-D", str(place / "data"), "-o", options, "-l", str(place / "log"), "-w", "start")
    try:
        yield f"postgresql://nested@/postgres?host={place}"
    finally:
        do("pg_ctl", "-D", str(place / "data"), "-m", "immediate", "stop")
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def proxy(file: Path) -> Iterator[str]:
    """Optuna's gRPC proxy over a SQLite file."""
    import socket

    from optuna.storages import get_storage
    from optuna.storages._grpc.server import make_server

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = make_server(get_storage(f"sqlite:///{file}"), "127.0.0.1", port, ThreadPoolExecutor(4))
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(None)


class Killer:
    """Ends workers of a crew by SIGKILL, two of them, each at a random moment after it lets more trials begin."""

    def __init__(self, study: Study, monkeypatch: pytest.MonkeyPatch, seed: int):
        self.study, self.random, self.killed = study, random.Random(seed), 0
        start = workers.Crew._start
        let(study, 5)

        def remember(crew: workers.Crew) -> None:
            self.crew = crew
            start(crew)

        monkeypatch.setattr(workers.Crew, "_start", remember)

    def tick(self) -> None:
        if self.killed < 2 and len(self.study.trials("COMPLETE")) >= 2 + 5 * self.killed:
            let(self.study, 10 if self.killed == 0 else self.study.request.tune.n_trials)
            time.sleep(self.random.random() * 0.1)
            victim = self.random.choice(sorted(self.crew.processes))
            os.kill(self.crew.processes[victim].pid, signal.SIGKILL)
            self.killed += 1


def check_exact(study: Study, alone: Study, n: int) -> None:
    """Every trial once, whole, and equal to that of a single process."""
    trials = study.trials()
    assert [t.number for t in trials] == list(range(n))
    assert {t.state.name for t in trials} == {"COMPLETE"}
    assert told(study) == told(alone)
    assert sorted(p.name for p in study.path.glob("trial-*")) == [f"trial-{i:04d}" for i in range(n)]


@pytest.mark.parametrize("where", ["sqlite", "journal", "postgresql"])
def test_killed_workers_cost_no_trial_and_count_none_twice(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    uri = {"sqlite": "null", "journal": "journal"}.get(where) or request.getfixturevalue("postgresql")
    words = [PERIOD, RATE, "seeds=2", "tune.pruner=none", "tune.sampler=random", "tune.n_trials=16"]
    study = small_study(tmp_path / "four", *words, f"tune.storage='{uri}'" if "/" in uri else f"tune.storage={uri}",
                        "tune.grace_seconds=20", f"tune.study=killed-{where}")  # fmt: skip
    killer = Killer(study, monkeypatch, len(where))
    said: list[str] = []
    workers.crewed(study, 4, killer.tick, AS_LET, said.append)
    assert killer.killed == 2
    assert 1 <= len(said) <= 2, "who dies after the last trial is not asked for"
    assert all("a worker was lost" in line and "(exit status -9, signal Killed)" in line for line in said)
    assert sum(t.user_attrs.get("deaths", 0) for t in study.trials()) <= 2
    check_exact(study, worked(small_study(tmp_path / "one", *words)), 16)


def test_the_proxy_serves_a_study_and_takes_a_trial_back(tmp_path: Path):
    with proxy(tmp_path / "behind.db") as uri:
        words = [RATE, "tune.n_trials=5", "tune.pruner=none"]
        study = small_study(tmp_path / "proxy", *words, f"tune.storage='{uri}'")
        claimed = study.claim("lost")
        assert claimed is not None
        study.dimensions[0].suggest(claimed)
        study.put_back_all("lost")
        check_exact(worked(study), worked(small_study(tmp_path / "one", *words)), 5)


def test_workers_that_end_by_a_mistake_are_not_replaced_for_ever(tmp_path: Path):
    study = small_study(tmp_path, RATE, "tune.n_trials=4")
    said: list[str] = []
    with pytest.raises(NestedError, match=r"workers\.log"):
        workers.crewed(study, 2, lambda: None, "tuning.landscape.nothing_of_that_name", said.append)
    assert said == ["a worker was lost with no trial in hand (exit status 1, see workers.log)"] * 2
    assert "nothing_of_that_name" in (study.path / "workers.log").read_text()
    assert not study.trials("RUNNING")


def test_a_stop_puts_every_trial_back_and_the_study_goes_on(tmp_path: Path):
    words = [RATE, "tune.n_trials=12", "tune.pruner=none", "tune.sampler=random", "seeds=3"]
    study = small_study(tmp_path / "two", *words)

    def stop() -> None:
        if study.trials("COMPLETE"):
            raise KeyboardInterrupt

    let(study, 2)
    with pytest.raises(KeyboardInterrupt):
        workers.crewed(study, 2, stop, AS_LET)
    assert not study.trials("RUNNING")
    assert not study.finished()
    check_exact(worked(study), worked(small_study(tmp_path / "one", *words)), 12)


def test_a_worker_waits_for_the_last_trials_of_the_others(tmp_path: Path):
    study = small_study(tmp_path, RATE, "tune.n_trials=1", "tune.grace_seconds=0.5")
    assert study.claim("dead before it said a word")
    started = time.monotonic()
    worked(study)
    assert study.trials()[0].state.name == "COMPLETE"
    assert time.monotonic() - started > 0.5


def test_jobs_of_submitit_work_on_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("submitit")
    from nested.tuning import launcher

    monkeypatch.setattr(launcher, "POLL", 0.2)
    study = small_study(tmp_path, RATE, "tune.n_trials=6", "tune.pruner=none")
    launcher.launched(study, 2, Launcher("local", timeout_min=5), lambda: None, "tuning.landscape.run")
    check_exact(study, worked(small_study(tmp_path / "one", RATE, "tune.n_trials=6", "tune.pruner=none")), 6)


SBATCH = """#!/bin/sh
for script; do :; done
export SLURM_JOB_ID=$$ SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=here SLURM_NTASKS=1
export SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
setsid sh "$script" > /dev/null 2>&1 &
echo "Submitted batch job $$"
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do
    case "$1" in --output|--error) shift 2 ;; *) shift ;; esac
done
exec "$@"
"""


def test_jobs_of_slurm_work_on_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Slurm's commands stood in for by scripts that start the jobs here."""
    pytest.importorskip("submitit")
    from nested.tuning import launcher

    commands = {"sbatch": SBATCH, "srun": SRUN, "sacct": "#!/bin/sh\necho 'JobID|State'\n", "scancel": "#!/bin/sh\n"}
    for name, script in commands.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(launcher, "POLL", 0.2)
    jobs = Launcher("slurm", timeout_min=5, options={"slurm_partition": "mine", "cpus_per_task": 1})
    launcher.check(jobs)
    study = small_study(tmp_path, RATE, "tune.n_trials=3", "tune.pruner=none")
    launcher.launched(study, 1, jobs, lambda: None, "tuning.landscape.run")
    check_exact(study, worked(small_study(tmp_path / "one", RATE, "tune.n_trials=3", "tune.pruner=none")), 3)
    scripts = [p.read_text() for p in (study.path / "jobs").glob("*.sh")]
    assert scripts
    assert all("--partition=mine" in script and "--time=5" in script for script in scripts)


def test_without_slurm_its_jobs_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("submitit")
    from nested.tuning import launcher

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch on this machine"):
        launcher.check(Launcher("slurm"))


def test_a_job_that_runs_out_of_time_is_queued_again():
    pytest.importorskip("submitit")
    from nested.tuning.launcher import Job

    job = Job("a/study", "a.runner")
    assert job.checkpoint().function == job
