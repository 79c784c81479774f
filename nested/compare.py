"""The story of a comparison: words -> run directories -> configurations over seeds -> table, page, files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nested import report, rundir
from nested.errors import NestedError, UserError
from nested.report.rendering import writing
from nested.selection import TOLD, selected

if TYPE_CHECKING:
    from rich.table import Table

Say = Callable[[str], None]
WHOLE = 60  # run directories up to which all files of each are read
BRIEFLY = (
    f"Of more than {WHOLE} runs nothing but result.json is read: training loss, anytime curves, sizes of the data and "
    "environment are on the page of each run."
)


@dataclass(frozen=True)
class Compared:
    """What was compared, and its page."""

    paths: list[Path]
    comparison: report.Comparison
    page: Path

    def as_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        return {"page": str(self.page), "runs": [p.name for p in self.paths], **self.comparison.as_dict()}

    def tables(self) -> list[Table]:
        """For the terminal."""
        return self.comparison.tables()


def compare(
    words: Sequence[str],
    runs: str | Path = "runs",
    out: Path | None = None,
    baseline: str | None = None,
    uri: str | None = None,
    files: Sequence[tuple[str, Path]] = (),
    say: Say = lambda _: None,
) -> Compared:
    """Compare what `words` name and write the page; `files` are ("csv" | "latex", file). Raises UserError."""
    paths = selected(words, runs, uri, say)
    whole = len(paths) <= WHOLE
    loaded = [report.load(p, whole) for p in paths]
    if not any(run.shown for run in loaded):
        text = f"nothing to compare, no experience has been evaluated yet: {', '.join(p.name for p in paths[:TOLD])}"
        raise UserError(f"{text}; nested resume RUN goes on with one", key="run", seen=[p.name for p in paths])
    comparison = report.Comparison.of(loaded, baseline)
    parent = _parent(paths)
    alone = len(paths) == 1 and not parent
    page = out or (paths[0] / "report.html" if alone else home(paths, baseline) / "report.html")
    notes = [] if whole else [BRIEFLY]
    with writing(page):
        if not out and not alone:
            for old in (page.parent / "figures").glob("*.png"):
                old.unlink()  # of the same runs, when they had not come so far
        comparison.page(page, notes)
    for kind, file in files:
        with writing(file, f"--{kind}"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(comparison.sheet(kind), encoding="utf-8")
    if parent and not out:
        _told(parent, page, say)
    return Compared(paths, comparison, page)


def home(paths: Sequence[Path], baseline: str | None = None) -> Path:
    """The folder of a comparison, beside its first run: its own, and the same when it is made again."""
    others = len(paths) - 1
    more = f"-and-{others}-other{'s' * (others > 1)}" if others else ""
    digest = hashlib.blake2b("\n".join([*map(str, paths), baseline or ""]).encode(), digest_size=3).hexdigest()
    return paths[0].parent / "compare" / f"{paths[0].name}{more}-{digest}"


def _parent(paths: Sequence[Path]) -> Path | None:
    """The one run that all are children of: the study of trials."""
    parents = {p.parent for p in paths}
    parent = parents.pop()
    return parent if not parents and (parent / "FORMAT").is_file() else None


def _told(parent: Path, page: Path, say: Say) -> None:
    """Make the page an artifact of the parent run, and send it where runs are tracked."""
    from nested import tracking
    from nested.rundir import SeedDir
    from nested.settings import Tracking
    from nested.signature import checked

    SeedDir(parent).event("artifact", path=str(page.relative_to(parent)))
    settings = Tracking(**checked(Tracking, rundir.read_config(parent)["tracking"], "tracking"))
    if settings.enabled:
        try:
            tracking.sync(parent, settings)
        except NestedError as error:
            say(str(error))
