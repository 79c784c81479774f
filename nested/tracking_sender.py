"""The process that sends: `python -m nested.tracking_sender`, started and told when to finish by `tracking.Sender`.

Standard input: one line with a `Target`, later one line with the status of a run that has no end, or end of file when
the command was killed. Standard output: one line with what was sent and why something was not.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from nested import tracking_outbox as outbox
from nested.tracking import Sent, Target
from nested.tracking_system import watch

if TYPE_CHECKING:
    from nested.tracking_replay import Replay

POLL = 2.0  # seconds between two looks at the run directory
PATIENCE = 30.0  # longest pause, in seconds, between two attempts at a tracker that fails
IMPORT = 60.0  # seconds that importing MLflow may take from a cold disk


class Leash:
    """What the command says, and the end of this process when a tracker stops answering after it."""

    def __init__(self, stop: Callable[[], None], timeout: float):
        self.over = threading.Event()
        self.unended = "KILLED"  # the status for runs without an end, when nobody says
        self._beat = time.monotonic() + IMPORT
        self._stop, self._timeout = stop, timeout
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def beat(self) -> None:
        """The tracker has answered."""
        self._beat = time.monotonic()

    def _listen(self) -> None:
        line = sys.stdin.readline()
        if line:
            self.unended = line.strip()
        self.over.set()

    def _watch(self) -> None:
        self.over.wait()
        since = time.monotonic()
        while time.monotonic() < max(since, self._beat) + self._timeout:
            time.sleep(0.1)
        self._stop()


def main() -> None:
    """One target, from start to report."""
    answers = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr  # libraries may print; the report is the only line on standard output
    target = Target(**json.loads(sys.stdin.readline()))
    if target.follow:
        os.nice(10)  # training comes first
    sent = Sent()

    def stop() -> None:
        report(answers, sent, f"no answer within {target.timeout:g} s")
        os._exit(1)

    leash = Leash(stop, target.timeout)
    error = follow(target, sent, leash) if target.follow else attempt(target, sent, leash)
    report(answers, sent, error)
    os._exit(0)  # no exit handler of a library may wait for the tracker


def report(answers: TextIO, sent: Sent, error: str | None) -> None:
    """Write the one line; nobody may be there to read it."""
    try:
        answers.write(json.dumps({"sent": asdict(sent), "error": error}) + "\n")
        answers.flush()
    except OSError:
        pass


def attempt(target: Target, sent: Sent, leash: Leash) -> str | None:
    """Send once. Returns why something was not sent."""
    try:
        connect(target, sent, leash).send()
    except Exception as error:
        return reason(error)
    return None


def follow(target: Target, sent: Sent, leash: Leash) -> str | None:
    """Send what is new until told to finish, patiently. Returns why something was not sent."""
    replay: Replay | None = None
    sampling = watch(Path(target.run_dir), os.getppid(), leash.over) if target.system else None
    pause = POLL
    while True:
        last, error = leash.over.is_set(), None
        if last and sampling:
            sampling.join()  # nothing is recorded after the last look
        try:
            replay = replay or connect(target, sent, leash)
            replay.send()
            if last and leash.unended:
                replay.end(leash.unended)
            pause = POLL
        except Exception as failure:
            replay, error, pause = None, reason(failure), min(2 * pause, PATIENCE)
        if last or (error and leash.over.is_set()):
            return error
        leash.over.wait(pause)


def connect(target: Target, sent: Sent, leash: Leash) -> Replay:
    """MLflow is imported here, after the threads that guard it have started."""
    from nested.tracking_replay import Replay

    leash.beat()  # from here on it is the tracker that we wait for
    return Replay(target, sent, leash.beat)


def reason(error: Exception) -> str:
    """Why a tracker did not take something, in a few words where they are known."""
    if isinstance(error, outbox.TrackerError):
        return str(error)
    text = " ".join(str(error).split()) or type(error).__name__
    known = {
        "refused": "connection refused",
        "timed out": "no answer in time",
        "timeout exception": "no answer in time",
        "resolve": "unknown host",
        "Name or service": "unknown host",
        "database is locked": "the database is locked by another process",
    }
    for sign, words in known.items():
        if sign in text:
            return words
    return text[:300]


if __name__ == "__main__":
    main()
