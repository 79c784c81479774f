"""experiments/cells.py: studies resume, and lose neither what is on file nor what other cells find."""

import json
import os
import signal
import sys
import time
from importlib import import_module, util
from pathlib import Path
from typing import Any

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
NAMES = ("arm", "seed")
CELLS = [(arm, seed) for arm in ("a", "b") for seed in (0, 1)]


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXPERIMENTS)  # as in `python experiments/x.py`


def compute(file: Path, cells: list[Any], one: Any, **options: Any) -> list[dict[str, Any]]:
    return import_module("cells").compute(file, cells, one, NAMES, str, **options)


def row(cell: tuple[str, int]) -> dict[str, Any]:
    return {"arm": cell[0], "seed": cell[1], "process": os.getpid()}


def views(cell: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**cell, "view": view} for view in ("model", "average")]


def failing(cell: tuple[str, int]) -> dict[str, Any]:
    if cell == ("a", 1):
        raise ValueError("no such number")
    return row(cell)


def killed(cell: tuple[str, int]) -> dict[str, Any]:
    if cell == ("a", 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return row(cell)


def of(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return sorted((r["arm"], r["seed"]) for r in rows)


def on_file(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("name, under", [("x.jsonl", None), ("x.json", None), ("x.json", "cells")])
def test_what_is_on_file_is_not_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, under: str | None
):
    file = tmp_path / "reports" / name
    first = compute(file, CELLS[:2], row, under=under)
    whole = compute(file, CELLS, row, under=under)
    assert whole[:2] == first
    assert of(whole) == CELLS
    assert f"{file}: 2 of 4 cells left" in capsys.readouterr().out
    before = file.read_bytes()
    assert compute(file, CELLS, failing, under=under) == whole
    assert file.read_bytes() == before
    assert compute(file, CELLS[2:], failing, under=under) == whole[2:]  # other cells' rows stay on file


def test_a_file_of_json_looks_as_it_always_did(tmp_path: Path):
    rows = compute(tmp_path / "x.json", CELLS[:1], row)
    assert (tmp_path / "x.json").read_text() == json.dumps(rows, indent=1) + "\n"
    rows = compute(tmp_path / "y.json", CELLS[:1], row, under="cells")
    assert (tmp_path / "y.json").read_text() == json.dumps({"cells": rows}, indent=1) + "\n"


def test_a_cell_may_be_a_dict_and_give_several_rows(tmp_path: Path):
    cells = [{"arm": "a", "seed": 0}, {"arm": "b"}]
    rows = compute(tmp_path / "x.jsonl", cells, views)
    assert [r["view"] for r in rows] == ["model", "average"] * 2
    assert compute(tmp_path / "x.jsonl", cells, failing) == rows == on_file(tmp_path / "x.jsonl")


def test_a_line_that_a_kill_left_unfinished_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "x.jsonl"
    whole = {"arm": "a", "seed": 0}
    file.write_text(json.dumps(whole) + '\n{"arm": "a", "se')
    rows = compute(file, CELLS[:2], row)
    assert rows[0] == whole
    assert of(rows) == CELLS[:2]
    assert on_file(file) == rows
    assert "its last line was not finished" in capsys.readouterr().err


@pytest.mark.parametrize("one, why", [(failing, "failed"), (killed, "its process died")])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_cell_that_fails_is_named_and_costs_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one: Any, why: str, workers: int
):
    file = tmp_path / "x.jsonl"
    with pytest.raises(SystemExit, match=r"1 of 4 cells failed, run again for them: a 1$"):
        compute(file, CELLS, one, workers=workers)
    assert of(on_file(file)) == [cell for cell in CELLS if cell != ("a", 1)]
    said = capsys.readouterr()
    assert f"a 1: {why}" in said.out
    assert ("no such number" in said.err) == (one is failing)
    assert of(compute(file, CELLS, row)) == CELLS


def test_a_row_is_on_file_before_it_is_said(tmp_path: Path):
    def said(_: dict[str, Any]) -> str:
        raise RuntimeError("cannot be said")

    with pytest.raises(RuntimeError, match="cannot be said"):
        import_module("cells").compute(tmp_path / "x.jsonl", CELLS[:1], row, NAMES, said)
    assert of(on_file(tmp_path / "x.jsonl")) == CELLS[:1]


def test_a_process_that_dies_between_two_cells_is_replaced(monkeypatch: pytest.MonkeyPatch):
    found = import_module("cells").outcomes(row, CELLS, 1)
    _, first = next(found)
    os.kill(first["process"], signal.SIGKILL)
    begun = time.monotonic()
    while Path(f"/proc/{first['process']}").exists() and time.monotonic() < begun + 30:
        time.sleep(0.01)  # until its death is known
    assert of([first, *(row for _, row in found)]) == CELLS


def test_the_parity_claim_loads_without_the_folder_on_the_path():
    sys.modules.pop("cells", None)
    sys.path.remove(str(EXPERIMENTS))
    spec = util.spec_from_file_location("of_a_claim", EXPERIMENTS / "formal_languages.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(util.module_from_spec(spec))
    assert "cells" not in sys.modules
