"""Disk: what each run takes, and what may go. Results never go, nor anything of a run that is not finished."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from nested import rundir
from nested.errors import NestedError

if TYPE_CHECKING:
    from rich.console import Group

ENDED = ("done", "diverged")
TEMPORARY = re.compile(r"\..+\.(\d+)")  # .NAME.PID: a file that was being written when its process was killed


@dataclass(frozen=True)
class Removal:
    """One file that may go, and why."""

    path: str
    bytes: int
    why: str


@dataclass(frozen=True)
class Usage:
    """What one run takes on disk, and what of it may go; `kept` says why nothing may."""

    run_id: str
    bytes: int
    removals: tuple[Removal, ...] = ()
    kept: str | None = None

    @property
    def removable(self) -> int:
        return sum(r.bytes for r in self.removals)


@dataclass(frozen=True)
class Cleaning:
    """What a cleaning removed, or would remove when it is applied."""

    runs: tuple[Usage, ...]
    applied: bool
    problems: tuple[str, ...] = field(default=())

    @property
    def bytes(self) -> int:
        return sum(u.removable for u in self.runs)

    def as_dict(self) -> dict[str, Any]:
        runs = [{**vars(u), "removals": [vars(r) for r in u.removals]} for u in self.runs]
        return {"runs": runs, "applied": self.applied, "bytes": self.bytes, "problems": list(self.problems)}

    def __rich__(self) -> Group:
        return _rendered(self)


def survey(runs: str | Path) -> list[Usage]:
    """Disk used by each run, oldest first, and what of it may go. Touches nothing."""
    return [_usage(path) for path in rundir.all_runs(runs)]


def clean(runs: str | Path, apply: bool = False) -> Cleaning:
    """Remove checkpoints of finished seeds and leftover temporary files; without `apply`, only say which."""
    found, problems = survey(runs), []
    if apply:
        kept = []
        for usage in found:
            done, problem = _remove(Path(runs).expanduser() / usage.run_id, usage)
            kept.append(done)
            problems += [problem] if problem else []
        found = kept
    return Cleaning(tuple(found), apply, tuple(problems))


def _remove(path: Path, usage: Usage) -> tuple[Usage, str | None]:
    """The usage with what really went, holding the run so that nobody begins to write it meanwhile."""
    gone = []
    try:
        if usage.removals:
            with rundir.locked(path):
                for removal in usage.removals:
                    Path(removal.path).unlink(missing_ok=True)
                    gone.append(removal)
    except (OSError, NestedError) as error:
        return Usage(usage.run_id, usage.bytes, tuple(gone)), str(error)
    return usage, None


def _usage(path: Path) -> Usage:
    size = sum(file.lstat().st_size for file in _files(path))
    kept = _reason_to_keep(path)
    return Usage(path.name, size, () if kept else tuple(_removable(path)), kept)


def _reason_to_keep(path: Path) -> str | None:
    """Why nothing of a run may go, or None."""
    try:
        rundir.check_format(path)
    except (NestedError, OSError):
        return "of a format that this version does not know"
    if rundir.being_written(path):
        return "being written"
    return None if _status(path / "result.json") in ENDED else "not finished"


def _removable(path: Path) -> Iterator[Removal]:
    for file in sorted(_files(path)):
        if file.parent.name == "checkpoints" and re.fullmatch(r"\d+\.pt", file.name):
            last = max(file.parent.glob("[0-9]*.pt"))  # it holds the final weights: a result
            if file != last and _status(file.parent.parent / "summary.json") == "done":
                yield Removal(str(file), file.lstat().st_size, "an older checkpoint of a finished seed")
        elif (found := TEMPORARY.fullmatch(file.name)) and not psutil.pid_exists(int(found[1])):
            yield Removal(str(file), file.lstat().st_size, "left by a process that was killed")


def _files(path: Path) -> Iterator[Path]:
    """All files below, no link being followed."""
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry)
        elif entry.is_file() or entry.is_symlink():
            yield entry


def unfinished(path: Path) -> bool:
    """Whether a run has begun, has not come to its end, and is not being written now: `nested resume` continues it."""
    begun = any((seed / "FORMAT").is_file() for seed in path.glob("seed-*"))
    return begun and _status(path / "result.json") not in ENDED and not rundir.being_written(path)


def _status(file: Path) -> str | None:
    """The status in a result or a summary; None where there is none that can be read."""
    try:
        found = rundir.read_json(file)
    except (OSError, ValueError):
        return None
    return found.get("status") if isinstance(found, dict) else None


def _rendered(cleaning: Cleaning) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("run", box=None, pad_edge=False)
    for column in ("on disk", "removed" if cleaning.applied else "would go"):
        table.add_column(column, justify="right")
    table.add_column("")
    for u in cleaning.runs:
        files = f"{len(u.removals)} files" if u.removals else ""
        note = f"kept: {u.kept}" if u.kept else files
        table.add_row(*(Text(t) for t in (u.run_id, size(u.bytes), size(u.removable), note)))
    end = (
        f"{size(cleaning.bytes)} removed"
        if cleaning.applied
        else f"{size(cleaning.bytes)} would be freed: nested gc --yes"
    )
    if not cleaning.runs:
        return Group(Text("no runs here"))
    return Group(
        table, Text(end if cleaning.bytes or cleaning.applied else "nothing to remove"), *map(Text, cleaning.problems)
    )


def size(count: int) -> str:
    """`512 B`, `3.1 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
