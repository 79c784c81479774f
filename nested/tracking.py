"""Tracking, seen from the run: where the store is, whether it answers, and the sender that replays a run directory.

Nothing here imports MLflow or waits for a store: `tracking_sender` does, in a process of its own, so that a tracker
that hangs, fails or eats a processor cannot touch training, and holds up the end of a command by a stated time only.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import importlib.util
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from nested import tracking_outbox as outbox
from nested.errors import UserError, nearest
from nested.settings import Tracking
from nested.tracking_outbox import TrackerError

__all__ = ["Sender", "Sent", "TrackerError", "check", "pending", "probe", "sender", "store_uri", "sync", "ui_command"]

DRIVERS = {"postgresql": "psycopg2", "mysql": "pymysql", "mssql": "pyodbc"}
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433, "http": 80, "https": 443}
SCHEMES = ("sqlite", "http", "https", *DRIVERS)


@dataclass
class Sent:
    """What was given to the store: runs found or made, and the rest as far as it was not known to be there."""

    runs: int = 0
    params: int = 0
    metrics: int = 0
    datasets: int = 0
    artifacts: int = 0


@dataclass(frozen=True)
class Target:
    """Where one run directory goes, and how long an answer may take."""

    run_dir: str
    uri: str
    experiment: str
    artifacts: str | None  # root of the artifacts of a new experiment; None = the server's own
    timeout: float  # seconds
    follow: bool  # until told to finish; otherwise one attempt
    system: bool = False  # sample processor and memory meanwhile

    @property
    def store(self) -> str:
        """What names this store in a run directory: no password in it."""
        return f"{shown(self.uri)} {self.experiment}"


def shown(text: str) -> str:
    """`text` without the passwords of the addresses in it."""
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1:***@", text)


def store_uri(settings: Tracking, runs: str | Path) -> str:
    """The store's address; files by absolute path, the default being `mlflow.db` in the directory of runs."""
    if settings.uri is None:
        return f"sqlite:///{Path(runs).expanduser().resolve() / 'mlflow.db'}"
    if settings.uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(settings.uri.removeprefix('sqlite:///')).expanduser().resolve()}"
    return re.sub(r"(?<=[^:/])/+$", "", settings.uri)


def target(run_dir: Path, settings: Tracking, follow: bool = False) -> Target:
    """Where `run_dir` goes: artifacts lie beside a database, and where a server says."""
    uri = store_uri(settings, run_dir.parent)
    file = database_file(uri)
    root = file.parent if file else run_dir.parent
    artifacts = None if uri.startswith("http") else (root.resolve() / "mlflow-artifacts").as_uri()
    system = follow and settings.system_metrics
    return Target(str(run_dir.resolve()), uri, settings.experiment, artifacts, settings.timeout_seconds, follow, system)


def database_file(uri: str) -> Path | None:
    """The file of a SQLite store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def check(settings: Tracking, runs: str | Path) -> None:
    """Refuse before the run what no tracker can take; makes the directory of a store it names. Raises UserError."""
    if not settings.enabled:
        return
    if not settings.experiment.strip() or len(settings.experiment) > 500:
        raise UserError("a name of 1 to 500 characters is needed", key="tracking.experiment", seen=settings.experiment)
    uri = store_uri(settings, runs)
    scheme = uri.partition("://")[0].partition("+")[0]
    if "://" not in uri or scheme not in SCHEMES:
        raise _unusable(uri, scheme)
    file = database_file(uri)
    if scheme == "sqlite":
        _check_file(uri, file, settings.uri is not None)
        return
    if not _names_host(uri):
        raise UserError(f"no host in {shown(uri)!r}; {scheme}://HOST:PORT", key="tracking.uri", seen=shown(uri))
    driver = None if "+" in uri.partition("://")[0] else DRIVERS.get(scheme)
    if driver and importlib.util.find_spec(driver) is None:
        raise UserError(f"{scheme}:// needs the package {driver}: install it", key="tracking.uri", seen=shown(uri))


def _unusable(uri: str, scheme: str) -> UserError:
    if scheme == "file" or "://" not in uri:
        path = Path(urllib.parse.urlsplit(uri).path if scheme == "file" else uri).expanduser().resolve()
        how = f"MLflow keeps no runs in plain files: sqlite:///{path}/mlflow.db, or http://HOST:PORT for a server"
    else:
        how = f"allowed: {', '.join(f'{s}://' for s in SCHEMES)}{nearest(scheme, SCHEMES)}"
    return UserError(f"cannot use {shown(uri)!r}; {how}", key="tracking.uri", seen=shown(uri), allowed=list(SCHEMES))


def _names_host(uri: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(uri)
        return bool(parts.hostname) and parts.port != 0  # reading a port that is no number raises
    except ValueError:
        return False


def _check_file(uri: str, file: Path | None, named: bool) -> None:
    if file is None or file.name in ("", ":memory:") or any(c in str(file) for c in "?%"):
        raise UserError(f"{uri!r} is no file another process can open; write sqlite:///PATH/mlflow.db, "
                        "PATH without ? and %", key="tracking.uri", seen=uri)  # fmt: skip
    try:
        if named:
            file.parent.mkdir(parents=True, exist_ok=True)  # else it is that of the runs, made with the first of them
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not all(os.access(p, os.W_OK) for p in (file.parent, file) if p.exists()):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; choose another file, or tracking=off",
                        key="tracking.uri", seen=uri) from None  # fmt: skip
    if file.exists() and not _is_database(file):
        raise UserError(f"{file} is not a SQLite file; choose another name", key="tracking.uri", seen=uri)


def _is_database(file: Path) -> bool:
    # asked of SQLite: whoever opens and closes the file by himself takes away the locks this process has on it
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=0)) as connection:
        try:
            connection.execute("pragma schema_version")
        except sqlite3.OperationalError:  # locked: somebody is using it
            return True
        except sqlite3.DatabaseError:
            return False
    return True


def pending(run_dir: Path, settings: Tracking) -> int:
    """How many events and files of a run the tracker has not got."""
    return outbox.pending(run_dir, target(run_dir, settings).store)


def environment(timeout_seconds: float) -> dict[str, str]:
    """This environment for a process with MLflow in it: short waits, no telemetry, no job runners, our package."""
    request = str(max(1, int(timeout_seconds / 4)))
    ours = str(Path(__file__).resolve().parents[1])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([ours, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": request,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
        "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
        "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": request,
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


@dataclass
class Sender:
    """The process that replays one run directory; `problem` says afterwards what has not been sent, and why."""

    run_dir: Path
    settings: Tracking
    follow: bool = True
    problem: str | None = None
    sent: Sent = field(default_factory=Sent)
    _process: subprocess.Popen[str] | None = None
    _complaints: IO[str] | None = None

    def start(self) -> None:
        """Start it; a machine that cannot is a problem told at the end."""
        where = target(self.run_dir, self.settings, self.follow)
        try:
            self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 (read when the process has ended)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "nested.tracking_sender"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints, text=True, bufsize=1,
                env=environment(self.settings.timeout_seconds),
                start_new_session=True,  # Ctrl-C is for the run; the sender is told by `finish`
            )  # fmt: skip
            assert self._process.stdin
            self._process.stdin.write(json.dumps(asdict(where)) + "\n")
        except OSError as error:
            self.problem = self._say(f"the sender cannot be started: {error.strerror}")

    def finish(self, unended: str, seconds: float | None) -> None:
        """Let it send the rest, for at most `seconds`; a run without an end is marked `unended` ("" leaves it)."""
        process, self._process = self._process, None
        if process is None:
            return
        reason = None
        try:
            if self.follow and not outbox.directories(self.run_dir):
                return  # nothing was recorded: nothing to wait for
            report, _ = process.communicate(unended + "\n", seconds)
            reason = self._read(report)
        except subprocess.TimeoutExpired:
            reason = f"no end after {seconds:g} s"
        finally:
            process.kill()
            process.communicate()
            if self._complaints:
                self._complaints.close()
        if reason and (pending(self.run_dir, self.settings) or not self.follow):
            self.problem = self._say(reason)

    def _read(self, report: str) -> str | None:
        """Why something was not sent, from the last line that the process wrote."""
        try:
            values = json.loads(report.splitlines()[-1])
        except (IndexError, ValueError):
            assert self._complaints
            self._complaints.seek(0)
            lines = self._complaints.read().strip().splitlines()
            return f"the sender stopped: {lines[-1] if lines else 'it said nothing'}"
        self.sent = Sent(**values["sent"])
        return values["error"]

    def _say(self, reason: str) -> str:
        uri = shown(store_uri(self.settings, self.run_dir.parent))
        count = pending(self.run_dir, self.settings)
        return (
            f"the tracker {uri} has not got {count} records of {self.run_dir.name} ({shown(reason)}); "
            f"nothing is lost: nested sync {self.run_dir.name} sends them"
        )


@contextlib.contextmanager
def sender(run_dir: Path, settings: Tracking, alone: bool = True) -> Iterator[Sender]:
    """Send what is recorded in `run_dir` while the block runs, and the rest within `timeout_seconds` after it.

    What has no end then is marked killed or failed, unless others may be writing there, too (not `alone`). The sender's
    `problem` is None when the tracker has got everything. Never raises an error of the tracker.
    """
    one = Sender(run_dir, settings)
    if settings.enabled:
        one.start()
    try:
        yield one
    except BaseException as error:
        word = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        one.finish(word if alone else "", settings.timeout_seconds)
        raise
    one.finish("KILLED" if alone else "", settings.timeout_seconds)


def sync(run_dir: Path, settings: Tracking) -> Sent:
    """Send what the tracker has not got of a run, whatever it takes. Raises TrackerError when it does not answer."""
    if not settings.enabled:
        how = f"to send it nevertheless write tracking.enabled: true in {run_dir / 'config.yaml'}"
        raise UserError(f"{run_dir.name} was made with tracking off; {how}", key="tracking.enabled", seen=False)
    if outbox.is_child(run_dir) and (run_dir.parent / "FORMAT").is_file():
        run_dir = run_dir.parent  # a seed is sent with its run, a trial with its study
    check(settings, run_dir.parent)
    one = Sender(run_dir, settings, follow=False)
    one.start()
    one.finish("", None)
    if one.problem:
        raise TrackerError(one.problem)
    return one.sent


def probe(uri: str, timeout: float) -> str:
    """One line on a store that answers within `timeout` seconds. Raises TrackerError."""
    file, parts = database_file(uri), urllib.parse.urlsplit(uri)
    try:
        if file:
            return _probe_file(file, timeout)
        if uri.startswith("http"):
            address = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=f"{parts.path.rstrip('/')}/version")
            with urllib.request.urlopen(urllib.parse.urlunsplit(address), timeout=timeout) as answer:
                return f"{shown(uri)}: MLflow {answer.read(100).decode(errors='replace').strip()}"
        port = parts.port or PORTS[parts.scheme.partition("+")[0]]
        socket.create_connection((parts.hostname or "", port), timeout).close()
        return f"{shown(uri)}: accepts connections"
    except (OSError, http.client.HTTPException, sqlite3.Error, ValueError, KeyError) as error:
        reason = getattr(error, "reason", None) or error
        raise TrackerError(f"{shown(uri)} does not answer: {shown(str(reason))}") from None


def _probe_file(file: Path, timeout: float) -> str:
    if not file.exists() or not file.stat().st_size:
        return f"{file}: not there yet; the first run makes it"
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=timeout)) as connection:
        runs = connection.execute("select count(*) from runs").fetchone()[0]
    return f"{file}: {runs} runs"


def ui_command(settings: Tracking, runs: str | Path, port: int = 5000) -> list[str]:
    """The command that shows the store on 127.0.0.1, for `environment`. Raises UserError for a server's address."""
    uri = store_uri(settings, runs)
    if uri.startswith("http"):
        raise UserError(f"the tracker is a server already: open {shown(uri)}", key="tracking.uri", seen=shown(uri))
    check(settings, runs)
    serve = ["-P", "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, *serve, "--workers", "1"]
