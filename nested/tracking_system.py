"""What the machine does while a run goes on: processor and memory, sampled by the sender's process, never by the run's.

Samples are events of the run directory itself: a tracker that is away gets them later, as everything else. Names that
MLflow knows are MLflow's, so that its pages show them under system metrics.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import psutil

from nested import tracking_outbox as outbox
from nested.errors import NestedError
from nested.rundir import SeedDir

EVERY = 10.0  # seconds between two samples
FIRST = 1.0  # seconds before the first one


class Watched:
    """A process and those it has started, this one apart."""

    def __init__(self, pid: int):
        self._pid = pid
        self._known: dict[int, psutil.Process] = {}  # a process object remembers when it was asked last

    def sample(self) -> tuple[float, int]:
        """(percent of one core since the last sample, resident bytes) of all of them together."""
        percent, resident = 0.0, 0
        for process in self._processes():
            with contextlib.suppress(psutil.Error), process.oneshot():
                percent += process.cpu_percent()
                resident += process.memory_info().rss
        return percent, resident

    def _processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            first = self._known.get(self._pid) or psutil.Process(self._pid)
            found = [p for p in (first, *first.children(recursive=True)) if p.pid != os.getpid()]
            self._known = {p.pid: self._known.get(p.pid, p) for p in found}
            return list(self._known.values())
        return []


def sample(watched: Watched) -> dict[str, float]:
    """Megabytes are 10^6 bytes, as MLflow counts them; the machine's processor is in percent of all its cores."""
    memory = psutil.virtual_memory()
    percent, resident = watched.sample()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": round(memory.used / 1e6, 1),
        "system/system_memory_usage_percentage": round(100 * memory.used / memory.total, 1),
        "system/run_cpu_percentage_of_one_core": round(percent, 1),
        "system/run_memory_megabytes": round(resident / 1e6, 1),
    }


def watch(run_dir: Path, pid: int, over: threading.Event) -> threading.Thread:
    """Record a sample of the machine and of process `pid` every ten seconds until `over`, once something has begun."""
    thread = threading.Thread(target=_watch, args=(run_dir, Watched(pid), over), daemon=True)
    thread.start()
    return thread


def _watch(run_dir: Path, watched: Watched, over: threading.Event) -> None:
    sample(watched)  # what processors do is counted from the last time they were asked
    pause = FIRST
    while not over.wait(pause):
        if outbox.directories(run_dir):
            pause = EVERY
            with contextlib.suppress(OSError, NestedError):  # a full disk is the run's to report
                _record(run_dir, sample(watched))


def _record(run_dir: Path, values: dict[str, float]) -> None:
    """The step is the time in seconds since the first sample, that of a resumed run, too."""
    first = outbox.first_event(run_dir).get("t", time.time() * 1000)
    SeedDir(run_dir).metrics(max(0, round(time.time() - first / 1000)), values)
