"""Workers: each takes trials until none is left; several are processes of this machine, jobs of a cluster, or both.

A worker says that it lives by a counter in the study, on any storage and by no clock but the reader's: whoever waits
and sees a counter unchanged for `grace_seconds` puts the trial back. A process of ours that dies is noticed at once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nested.errors import NestedError
from nested.signature import locate
from nested.stopping import terminable
from nested.tuning.study import Study
from nested.tuning.trial import Busy, Runner, run

RUNNER = "nested.run.run_trial"
POLL = 0.2  # seconds between two looks at what others do, of a worker that has nothing to do
LOOK = 1.0  # the same of who only waits for processes of its own: each look reads the storage, on a core they could use
STOP_SECONDS = 60  # for a worker to save
MOST_BROKEN = 3  # trials in a row that end in an error of the code: the next ones would, too


def name_of_worker() -> str:
    """A name that no other worker has."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


def work(study: Study, runner: Runner, worker: str, tick: Callable[[], None] = lambda: None) -> None:
    """Take trials until all of the study have ended; `tick` is called after each, and while waiting for others.

    Raises Interrupted or KeyboardInterrupt with the trial put back, NestedError when the machine failed.
    """
    pulse, broken, last = Pulse(study), 0, 0
    with _beating(study, worker):
        while broken < MOST_BROKEN:
            trial = study.claim(worker)
            if trial is None:
                if study.finished():
                    return
                pulse.put_back_stale()
                tick()
                time.sleep(POLL)
                continue
            try:
                last = trial.number
                broken = broken + 1 if run(study, trial, worker, runner) == "broken" else 0
            except Busy:  # its worker lives after all, and will tell
                study.put_back(trial._trial_id, worker)
                time.sleep(POLL)
            except BaseException:
                study.put_back(trial._trial_id, worker)
                raise
            pulse.put_back_stale()
            tick()
    text = f"{broken} trials in a row ended in an error of the code, the last in {study.directory(last)}"
    raise NestedError(f"{text}; mend it, and give the same command again: the trials that are left wait")


class Pulse:
    """When each running trial's worker was last heard of, by this process's own clock."""

    def __init__(self, study: Study):
        self.study = study
        self.seen: dict[tuple[int, str | None], tuple[int | None, float]] = {}

    def put_back_stale(self) -> None:
        """Let the trials wait again whose workers have not been heard of for too long."""
        running, beats, now = self.study.trials("RUNNING"), self.study.beats(), time.monotonic()
        before, self.seen = self.seen, {}
        for trial in running:
            worker = trial.user_attrs.get("worker")
            key, count = (trial._trial_id, worker), beats.get(str(worker))
            last, since = before.get(key, (count, now))
            self.seen[key] = (count, since if last == count else now)
            if now - self.seen[key][1] > self.study.request.tune.grace_seconds:
                self.study.put_back(trial._trial_id, worker, died=True)


@contextlib.contextmanager
def _beating(study: Study, worker: str) -> Iterator[None]:
    """Say from a thread that this worker lives."""
    over = threading.Event()
    every = min(5.0, study.request.tune.grace_seconds / 4)

    def beat() -> None:
        count = 0
        while not over.is_set():
            with contextlib.suppress(Exception):  # a storage that is away for a moment: the next beat will do
                study.beat(worker, count)
            count += 1
            over.wait(every)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=every)


# -- processes of this machine ----------------------------------------------------------------------------------------


class Crew:
    """So many worker processes, one that is killed being replaced."""

    def __init__(self, study: Study, n: int, runner: str = RUNNER, say: Callable[[str], None] = lambda _: None):
        self.study, self.runner, self.say = study, runner, say
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.left = len(study.trials()) + n  # replacements: trials that kill their worker end as failed before that
        for _ in range(n):
            self._start()

    def _start(self) -> None:
        worker = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        with (self.study.path / "workers.log").open("ab") as log:
            self.processes[worker] = subprocess.Popen(
                [sys.executable, "-m", "nested.tuning.workers", str(self.study.path), worker, self.runner,
                 str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def look(self) -> None:
        """Replace the killed, put their trials back, say who died. Raises NestedError when nobody is left."""
        for worker, process in list(self.processes.items()):
            code = process.poll()
            if code is None:
                continue
            del self.processes[worker]
            held = self.study.put_back_all(worker)
            again = code < 0 and self.left > 0 and not self.study.finished()  # by a signal: nobody's mistake
            if code or held:
                self.say(_obituary(code, held, again))
            if again:
                self.left -= 1
                self._start()
        if not self.processes and not self.study.finished():
            raise NestedError(
                f"every worker of {self.study.name} ended before its trials: see {self.study.path / 'workers.log'}, "
                "mend it, and give the same command again"
            )

    def stop(self) -> None:
        """Let every worker save and end; a second Ctrl-C, or too long a wait, ends them at once."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        try:
            until = time.monotonic() + STOP_SECONDS
            for process in self.processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, until - time.monotonic()))
        finally:
            for worker, process in self.processes.items():
                if process.poll() is None:
                    process.kill()
                    process.wait()
                self.study.put_back_all(worker)
            self.processes = {}


def _obituary(code: int, held: list[int], again: bool) -> str:
    """What is said of a worker that is gone: how, on which trial, and whether another one takes its place."""
    how = f"exit status {code}" + (f", signal {signal.strsignal(-code)}" if code < 0 else ", see workers.log")
    trial = f" on trial {held[0]}" if held else " with no trial in hand"
    return f"a worker was lost{trial} ({how})" + ("; another takes its place" if again else "")


def crewed(
    study: Study, n: int, tick: Callable[[], None], runner: str = RUNNER, say: Callable[[str], None] = lambda _: None
) -> None:
    """Work with n processes to the end. Raises KeyboardInterrupt with everything saved."""
    crew, pulse = Crew(study, n, runner, say), Pulse(study)
    try:
        while not study.finished():
            time.sleep(LOOK)
            crew.look()
            pulse.put_back_stale()  # of workers that joined from elsewhere
            tick()
        for process in crew.processes.values():
            process.wait(STOP_SECONDS)
    finally:
        crew.stop()


def main(path: str, worker: str, runner: str, parent: str) -> None:
    """One worker as a process of its own, started by a `Crew`; when that is gone, this trial is its last."""

    def tick() -> None:
        if os.getppid() != int(parent):
            raise KeyboardInterrupt

    with terminable(), contextlib.suppress(KeyboardInterrupt):
        work(Study(Path(path)), locate(runner, "runner"), worker, tick)


if __name__ == "__main__":
    main(*sys.argv[1:])
