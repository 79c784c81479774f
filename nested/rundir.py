"""The run directory: the only writer of results, and the way back to them.

runs/<id>/{FORMAT, config.yaml, result.json, seed-<s>/{FORMAT, config.yaml, environment.json, events.jsonl, matrix.json,
checkpoints/}}. Events are appended with fixed timestamps and never rewritten; files are replaced atomically.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nested.errors import NestedError, UserError, nearest
from nested.wording import counted

FORMAT = "1"


@contextlib.contextmanager
def said(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one that says where the results lie."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT):
            raise UserError(
                f"cannot write in {path}: {error.strerror}; choose another directory with runs=...",
                key="runs",
                seen=str(path),
            ) from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise NestedError(
                f"{error.strerror} while writing {path}; everything recorded so far is in {path.parent}: "
                "make room, then continue with nested resume"
            ) from None
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file as `replace_file` does. Raises UserError or NestedError that says where the results lie."""
    with said(path):
        replace_file(path, data)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file as a whole: after a kill there is the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1).encode())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def check_writable(runs: str | Path) -> None:
    """Raise UserError where run directories cannot be made. Makes nothing: what is refused later leaves no trace."""
    root = Path(runs).expanduser().resolve()
    with said(root):
        there = standing(root)
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def standing(path: Path) -> Path:
    """The path, or the nearest of its parents that is there: it is in this that the first run makes directories."""
    path = path.resolve()
    return next(p for p in (path, *path.parents) if p.exists())


def create(runs: str | Path, name: str, config: Mapping[str, Any]) -> Path:
    """A new run directory, its id made of the time, the stream's name and four random letters. Raises UserError."""
    root = Path(runs).expanduser().resolve()
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{secrets.token_hex(2)}"
    path = root / run_id
    with said(root):
        path.mkdir(parents=True)
    found(path, config)
    return path


def open_at(path: Path, config: Mapping[str, Any]) -> None:
    """Make a run directory at `path`, unless there is one. Raises UserError."""
    if not (path / "FORMAT").exists():
        found(path, config)
    check_format(path)


def found(path: Path, config: Mapping[str, Any]) -> None:
    """Make a run directory at `path`, or give the one that is there this config."""
    from omegaconf import OmegaConf

    with said(path):
        path.mkdir(parents=True, exist_ok=True)
    write_atomic(path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode())
    write_atomic(path / "FORMAT", f"{FORMAT}\n".encode())  # last: whatever has it is whole


def read_config(path: Path) -> dict[str, Any]:
    """The config of a run or seed directory as plain values."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def check_format(path: Path) -> None:
    """Raise UserError for a directory that is no run, or one of a format this version does not read."""
    file = path / "FORMAT"
    if not file.is_file():
        raise UserError(f"{path} is not a run directory: it has no FORMAT file", key="run", seen=str(path))
    seen = file.read_text().strip()
    if seen != FORMAT:
        raise UserError(
            f"{path} has format {seen!r}; this version reads format {FORMAT}: use the version that wrote it",
            key="run",
            seen=seen,
        )


def find(name: str, runs: str | Path = "runs", what: str = "run") -> Path:
    """A run directory by id, path or unique prefix. Raises UserError for no `what`, naming what is near."""
    root = Path(runs).expanduser()
    for candidate in (Path(name).expanduser(), root / name):
        if (candidate / "FORMAT").is_file():
            check_format(candidate)
            return candidate.resolve()
    known = all_runs(root)
    hits = [p for p in known if p.name.startswith(name)]
    if len(hits) == 1:
        check_format(hits[0])
        return hits[0].resolve()
    names = [p.name for p in hits or known]
    if hits:
        raise UserError(
            f"{name!r} begins {len(hits)} runs: {', '.join(names[:5])}; give more of the id",
            key="run",
            seen=name,
            allowed=names,
        )
    if name in (p.name for p in all_contests(root)):
        text = f"{root / name} is a contest; its runs are in it, {root / name / 'candidate-1'} and others"
        raise UserError(text, key="run", seen=name, allowed=names[-10:])
    last = f"; the newest is {max(known, key=lambda p: (p / 'FORMAT').stat().st_mtime).name}" if known else ""
    raise UserError(
        f"no {what} {name!r} in {root.resolve()}{nearest(name, names)}{last}", key="run", seen=name, allowed=names[-10:]
    )


def all_runs(runs: str | Path) -> list[Path]:
    """Run directories by name, which begins with the time where nobody gave one."""
    return sorted(p.parent for p in Path(runs).expanduser().glob("*/FORMAT") if p.is_file())


def all_contests(runs: str | Path) -> list[Path]:
    """Directories of contests, each with a run for every arm and rate."""
    return sorted(p.parents[1] for p in Path(runs).expanduser().glob("*/candidate-1/FORMAT"))


def status(path: Path) -> str:
    """How a run stands, in words: what `result.json` says, or that there is none yet; of a study how many trials."""
    if (path / "study.json").is_file():
        wanted = read_json(path / "study.json")["n_trials"]
        last = (read_events(p)[-1:] for p in path.glob("trial-*/events.jsonl"))
        ended = sum(event["event"] == "end" for events in last for event in events)
        return f"study, {ended} of {counted(wanted, 'trial')}"
    if (path / "candidate-1").is_dir():
        return "contest" if (path / "contest.json").is_file() else "contest, unfinished"
    file = path / "result.json"
    if not file.is_file():
        return _unfinished(path)
    result = read_json(file)
    return f"{result['status']}, {result['label']}, {counted(len(result['runs']), 'seed')}"


def _unfinished(path: Path) -> str:
    """Since when a run without a result has said nothing, and how it is continued; or that it is being written."""
    if being_written(path):
        return "being written"
    last = max(file.stat().st_mtime for file in (path / "FORMAT", *path.glob("seed-*/events.jsonl")))
    return f"unfinished since {time.strftime('%Y-%m-%d %H:%M', time.localtime(last))}; nested resume {path.name}"


def being_written(path: Path) -> bool:
    """Whether another process holds the run directory."""
    if not (path / ".lock").exists():
        return False
    try:
        with locked(path):
            return False
    except NestedError:
        return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a run directory: two processes writing one run would mix their results. Raises UserError."""
    with said(path), (path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{path.name} is being written by another process; wait for it, or stop it", key="run", seen=path.name
            ) from None
        yield


def read_events(path: Path) -> list[dict[str, Any]]:
    """All whole lines of an events file; a torn line (a kill, a full disk) is passed over."""
    events = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                events.append(json.loads(line))
    return [e for e in events if isinstance(e, dict)]


class SeedDir:
    """The directory of one seed. An event already recorded is not recorded again (a resumed run repeats some)."""

    def __init__(self, path: Path):
        self.path = path
        self._once = {_identity(e) for e in read_events(path / "events.jsonl")}

    @classmethod
    def open(cls, path: Path, config: Mapping[str, Any]) -> SeedDir:
        """The directory at `path`, made if it is not there."""
        with said(path):
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        open_at(path, config)
        return cls(path)

    def event(self, kind: str, **values: Any) -> None:
        """Append one event as a whole line, unless it is there already."""
        event = {"t": time.time_ns() // 1_000_000, "event": kind, **values}
        identity = _identity(event)
        if identity is not None and identity in self._once:
            return
        path = self.path / "events.jsonl"
        line = json.dumps(event).encode() + b"\n"
        with said(path), path.open("ab") as file:
            if file.tell() and _last_byte(path) != b"\n":
                line = b"\n" + line  # after a torn line
            file.write(line)
        self._once.add(identity)

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Append numbers at a step; those that are not defined (None) are left out."""
        self.event("metrics", step=step, values={k: v for k, v in values.items() if v is not None})

    def events(self) -> list[dict[str, Any]]:
        return read_events(self.path / "events.jsonl")

    def write(self, name: str, value: Any) -> None:
        """Replace a JSON file of this seed."""
        write_json(self.path / name, value)

    def save_checkpoint(self, state: Mapping[str, Any], keep: int) -> Path:
        """Write a checkpoint, then drop the oldest beyond `keep`: its first 32 bytes are the SHA-256 of the rest."""
        import torch

        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        data = buffer.getvalue()
        number = max((int(p.stem) for p in self.checkpoints()), default=0) + 1
        path = self.path / "checkpoints" / f"{number:08d}.pt"
        write_atomic(path, hashlib.sha256(data).digest() + data)
        for old in self.checkpoints()[:-keep]:
            old.unlink(missing_ok=True)
        return path

    def checkpoints(self) -> list[Path]:
        """Checkpoint files, oldest first."""
        return sorted((self.path / "checkpoints").glob("[0-9]*.pt"))

    def load_checkpoint(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest whole checkpoint, a sentence for each damaged one passed over. Raises NestedError if all are."""
        import torch

        complaints = []
        for path in reversed(self.checkpoints()):
            raw = path.read_bytes()
            if hashlib.sha256(raw[32:]).digest() == raw[:32]:
                return torch.load(io.BytesIO(raw[32:]), weights_only=True), complaints
            path.rename(path.with_suffix(".damaged"))  # kept to be looked at, counted no more
            complaints.append(f"{path} is damaged ({len(raw)} bytes, checksum differs); the one before it is used")
        if complaints:
            raise NestedError(
                f"no whole checkpoint in {self.path / 'checkpoints'}: {'; '.join(complaints)}. Start the run again"
            )
        return None, complaints


def _identity(event: Mapping[str, Any]) -> bytes | None:
    """All that an event says but its time; None where saying it again means that it happened again."""
    if event.get("event") in ("end", "resume"):
        return None
    text = json.dumps({k: v for k, v in event.items() if k != "t"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def as_stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back from a YAML or JSON file: tuples as lists, keys as text."""
    return json.loads(json.dumps(dict(values)))
