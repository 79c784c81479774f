"""Workers as jobs of a cluster, by submitit: the only file that knows it."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nested.errors import NestedError, UserError, install
from nested.signature import locate
from nested.stopping import terminable
from nested.tuning import storage
from nested.tuning.study import Study
from nested.tuning.workers import RUNNER, Pulse, name_of_worker, work

if TYPE_CHECKING:
    from nested.tuning.settings import Launcher

POLL = 2.0  # seconds between two looks at the jobs


@dataclass(frozen=True)
class Job:
    """One worker; a job that runs out of time is queued again, its trial having been put back."""

    path: str
    runner: str = RUNNER

    def __call__(self) -> None:
        with terminable():
            work(Study(Path(self.path)), locate(self.runner, "runner"), name_of_worker())

    def checkpoint(self) -> Any:
        """What submitit queues again."""
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports]

        return DelayedSubmission(Job(self.path, self.runner))


def check(launcher: Launcher) -> None:
    """Raise UserError when jobs cannot be submitted from here."""
    if importlib.util.find_spec("submitit") is None:
        text = f"jobs need the package submitit: {install('cluster')}; or leave launcher out"
        raise UserError(text, key="launcher", seen=launcher.cluster)
    import submitit  # pyright: ignore[reportMissingImports]

    if launcher.cluster == "slurm" and not submitit.SlurmExecutor.affinity() > 0:
        text = "there is no sbatch on this machine; submit from a login node, or take launcher=local"
        raise UserError(text, key="launcher", seen="slurm", allowed=["local"])


def launched(study: Study, n: int, launcher: Launcher, tick: Callable[[], None], runner: str = RUNNER) -> None:
    """Work with n jobs to the end. Raises KeyboardInterrupt with the jobs cancelled, UserError for unknown options."""
    import submitit  # pyright: ignore[reportMissingImports]

    executor = submitit.AutoExecutor(folder=study.path / "jobs", cluster=launcher.cluster)
    try:
        executor.update_parameters(name=study.name, timeout_min=launcher.timeout_min, **launcher.options)
    except (NameError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UserError(text, key="launcher.options", seen=launcher.options) from None
    os.environ.setdefault(storage.VARIABLE, study.record["storage"])
    jobs = [executor.submit(Job(str(study.path), runner)) for _ in range(n)]
    pulse = Pulse(study)
    try:
        while not study.finished():
            time.sleep(POLL)
            pulse.put_back_stale()
            tick()
            if all(job.done() for job in jobs) and not study.finished():
                text = f"every job of {study.name} ended before its trials: see {study.path / 'jobs'}"
                raise NestedError(f"{text}, mend it, and give the same command again")
    finally:
        for job in jobs:
            if not job.done():
                job.cancel(check=False)
