"""The cells of a study: those on file are read, those left are computed and put on file one by one, as they come.

A study gives its file, its cells, `one(cell)` that computes one (a row, or several), and the columns that say which
cell a row is of. The rows are lines of JSON (.jsonl) or one JSON list (.json; `under` a name, if the file holds more).
A cell that fails, or whose process is killed, costs itself alone: the others go on, and it is named at the end.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

from nested.cells import outcomes
from nested.rundir import write_atomic

Row = dict[str, Any]


def read(file: Path, under: str | None = None) -> list[Row]:
    """The rows on file; a last line that a kill left unfinished is none."""
    if not file.exists():
        return []
    text = file.read_text()
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return json.loads(text) if under is None else json.loads(text)[under]


def put(file: Path, rows: list[Row], new: list[Row], under: str | None = None) -> None:
    """Add the last of the rows, the new ones, to the file: as lines at its end, or by writing the list anew."""
    if file.suffix == ".jsonl":
        with file.open("a") as out:
            out.write("".join(json.dumps(row) + "\n" for row in new))
    else:
        value = rows if under is None else {under: rows}
        write_atomic(file, (json.dumps(value, indent=1) + "\n").encode())


def key(cell: Any, names: Sequence[str]) -> tuple[Any, ...]:
    """Which cell this is: what stands in these columns of a row, or of a cell that is a dict; else the cell itself."""
    return tuple(cell.get(name) for name in names) if isinstance(cell, dict) else tuple(cell)


def compute(
    file: Path,
    cells: Sequence[Any],
    one: Callable[[Any], Row | list[Row]],
    names: Sequence[str],
    said: Callable[[Row], str],
    workers: int = 1,
    under: str | None = None,
) -> list[Row]:
    """The rows of these cells, with those left computed first; each new row is said on a line of its own.

    Raises SystemExit, which names them, where cells failed; the rows of all others are on file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = read(file, under)
    if file.suffix == ".jsonl" and file.exists():
        _cut(file)
    known, wanted = {key(row, names) for row in rows}, {key(cell, names) for cell in cells}
    left = [cell for cell in cells if key(cell, names) not in known]
    print(f"{file}: {len(left)} of {len(cells)} cells left", flush=True)
    failed = []
    for done, (cell, found) in enumerate(outcomes(one, left, workers), 1):
        if isinstance(found, BaseException):
            failed.append(" ".join(str(v) for v in key(cell, names) if v is not None))
            why = "its process died (killed, or out of memory)" if isinstance(found, BrokenExecutor) else "failed"
            print(f"{done} of {len(left)}: {failed[-1]}: {why}", flush=True)
            traceback.print_exception(found, file=sys.stderr)
            continue
        new = found if isinstance(found, list) else [found]
        rows += new
        put(file, rows, new, under)
        for row in new:
            print(f"{done} of {len(left)}: {said(row)}", flush=True)
    if failed:
        raise SystemExit(f"{file}: {len(failed)} of {len(left)} cells failed, run again for them: {'; '.join(failed)}")
    return [row for row in rows if key(row, names) in wanted]


def _cut(file: Path) -> None:
    """Cut off a last line that a kill left unfinished."""
    with file.open("r+b") as held:
        content = held.read()
        if not content.endswith(b"\n"):
            held.truncate(content.rfind(b"\n") + 1)
            print(f"{file}: its last line was not finished and is cut off", file=sys.stderr)
