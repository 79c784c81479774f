"""What of a run directory a tracker has not got: events behind an offset, and files that changed.

`tracking.json` remembers it for each directory and store. It only saves time: what is sent twice is stored once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nested.errors import NestedError
from nested.rundir import read_json, write_json

EVENTS = "events.jsonl"
RUN_FILES = ("config.yaml", "result.json", "report.html", "figures/*.png")
SEED_FILES = ("config.yaml", "environment.json", "matrix.json", "matrix.csv", "matrix.png")
CHILDREN = ("seed-", "trial-")  # of a run, and of a study; a trial's own seeds are no runs of the store
BLOCK = 1 << 16  # bytes of events sent between two notes of how far we are: about one call's metrics
SEAL = 4096  # bytes before the offset by which a rewritten events file is recognised


class TrackerError(NestedError):
    """The tracker has not got everything (exit code 4); all of it is in the run directory."""

    exit_code = 4


@dataclass
class Memory:
    """How much of one directory one store has got."""

    run: str = ""  # the store's id of the run
    offset: int = 0  # bytes of events that were sent
    seal: str = ""  # digest of the bytes just before the offset
    files: dict[str, str] = field(default_factory=dict)  # path -> stamp when it was sent, "" = still to be sent
    status: str = ""  # as last told to the store
    last: int = 0  # time of the last event, unix ms
    ended: int = 0  # time of the last end event, unix ms


def recall(directory: Path, store: str) -> Memory:
    """What is remembered; a missing or damaged file, or one of another shape, remembers nothing."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        known = read_json(directory / "tracking.json")["stores"][store]
        return Memory(**{f.name: known[f.name] for f in fields(Memory)})
    return Memory()


def remember(directory: Path, store: str, memory: Memory) -> None:
    """Note how far we are, keeping what other stores have got; a full disk only costs time later."""
    with contextlib.suppress(OSError, NestedError):
        try:
            stores = dict(read_json(directory / "tracking.json")["stores"])
        except (OSError, ValueError, KeyError, TypeError):
            stores = {}
        write_json(directory / "tracking.json", {"format": 1, "stores": {**stores, store: asdict(memory)}})


@contextlib.contextmanager
def locked(path: Path, seconds: float, owner: str) -> Iterator[None]:
    """Hold a lock file, waiting up to `seconds`. Raises TrackerError."""
    deadline = time.monotonic() + seconds
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TrackerError(f"another process is using {owner}") from None
                time.sleep(0.05)
        yield


def children(run_dir: Path) -> list[Path]:
    """Directories of seeds, or of a study's trials, that have begun, in order of their numbers."""
    found = (p.parent for kind in CHILDREN for p in run_dir.glob(f"{kind}*/{EVENTS}"))
    return sorted(found, key=lambda p: (len(p.name), p.name))


def is_child(directory: Path) -> bool:
    """Whether it is a seed's or a trial's, by its name."""
    return directory.name.startswith(CHILDREN)


def directories(run_dir: Path) -> list[Path]:
    """Every directory that is a run of the store: the children, then the run itself; none when nothing has begun."""
    begun = children(run_dir)
    own = [run_dir] if begun or (run_dir / EVENTS).exists() or (run_dir / "result.json").exists() else []
    return [*begun, *own]


def first_event(directory: Path) -> dict[str, Any]:
    """The first whole event, or {}."""
    for _, events in unsent_events(directory, Memory()):
        if events:
            return events[0]
    return {}


def unsent_events(directory: Path, memory: Memory) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Blocks of whole events behind the offset, each with the offset after it; torn and foreign lines are left out."""
    path = directory / EVENTS
    if not path.is_file():
        return
    offset = memory.offset if seal(path, memory.offset) == memory.seal else 0
    with path.open("rb") as file:
        file.seek(offset)
        while lines := file.readlines(BLOCK):
            if not lines[-1].endswith(b"\n"):
                lines.pop()
            offset += sum(map(len, lines))
            if not lines:
                return
            yield offset, [e for line in lines if (e := _event(line)) is not None]


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("t"), int) else None


def seal(path: Path, offset: int) -> str:
    """Digest of the bytes just before `offset`, "" at the start or beyond the end."""
    if not 0 < offset <= path.stat().st_size:
        return ""
    with path.open("rb") as file:
        file.seek(max(0, offset - SEAL))
        return hashlib.sha256(file.read(offset - file.tell())).hexdigest()[:16]


def changed_files(directory: Path, memory: Memory) -> dict[str, str]:
    """Path -> stamp of every file a tracker wants that is not there as it is now; never one outside `directory`."""
    patterns = SEED_FILES if is_child(directory) else RUN_FILES
    paths = {p for pattern in patterns for p in directory.glob(pattern)} | {directory / name for name in memory.files}
    found = {}
    for path in sorted(paths):
        if path.is_file() and path.resolve().is_relative_to(directory.resolve()):
            name, stamp = path.relative_to(directory).as_posix(), stamp_of(path)
            if memory.files.get(name) != stamp:
                found[name] = stamp
    return found


def stamp_of(path: Path) -> str:
    """What changes when a file does; "" when there is none."""
    try:
        state = path.stat()
    except OSError:
        return ""
    return f"{state.st_size}:{state.st_mtime_ns}"


def pending(run_dir: Path, store: str) -> int:
    """How many events and files the store has not got."""
    count = 0
    for directory in directories(run_dir):
        memory = recall(directory, store)
        count += sum(len(events) for _, events in unsent_events(directory, memory))
        count += len(changed_files(directory, memory))
    return count
