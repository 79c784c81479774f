"""The run directory: nothing recorded is lost, nothing is recorded twice, damage is named."""

import errno
import json
import os
import time
from pathlib import Path

import pytest
import torch

from nested import rundir
from nested.errors import NestedError, UserError
from nested.rundir import SeedDir


def seed_dir(tmp_path: Path) -> SeedDir:
    return SeedDir.open(tmp_path / "seed-0", {"seed": 0})


def test_runs_are_found_by_id_prefix_and_path(tmp_path: Path) -> None:
    a = rundir.create(tmp_path, "digits", {"seed": 0})
    b = tmp_path / ("1" + a.name)
    a.rename(b)
    c = rundir.create(tmp_path, "digits", {"seed": 0})
    assert rundir.find(b.name, tmp_path) == b
    assert rundir.find(b.name[:2], tmp_path) == b
    assert rundir.find(str(c), tmp_path) == c
    with pytest.raises(UserError, match="no run 'zzz'"):
        rundir.find("zzz", tmp_path)
    (d := c.with_name(c.name + "x")).mkdir()
    (d / "FORMAT").write_text("1")
    with pytest.raises(UserError, match="begins 2 runs"):
        rundir.find(c.name[:-1], tmp_path)


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    run = rundir.create(tmp_path, "digits", {})
    (run / "FORMAT").write_text("7\n")
    with pytest.raises(UserError, match=r"format '7'.*reads format 1"):
        rundir.find(run.name, tmp_path)


def test_an_event_recorded_again_after_a_resume_is_there_once(tmp_path: Path) -> None:
    first = seed_dir(tmp_path)
    first.metrics(3, {"a": 1.0, "b": None})
    first.event("row", row=1, view="model", part="test", sum=[1], count=[2])
    again = seed_dir(tmp_path)
    again.metrics(3, {"a": 1.0})
    again.metrics(4, {"a": 1.0})
    again.event("row", row=1, view="model", part="test", sum=[1], count=[2])
    again.event("row", row=1, view="model", part="validation", sum=[1], count=[2])
    kinds = [(e["event"], e.get("step"), e.get("part")) for e in again.events()]
    assert kinds == [("metrics", 3, None), ("row", None, "test"), ("metrics", 4, None), ("row", None, "validation")]


def test_a_torn_line_is_passed_over_and_the_next_one_is_whole(tmp_path: Path) -> None:
    directory = seed_dir(tmp_path)
    directory.metrics(1, {"a": 1.0})
    with (directory.path / "events.jsonl").open("ab") as file:
        file.write(b'{"t": 1, "event": "met')
    again = seed_dir(tmp_path)
    again.metrics(2, {"a": 2.0})
    assert [e["step"] for e in again.events()] == [1, 2]


def test_checkpoints_are_kept_in_number_and_damage_is_named(tmp_path: Path) -> None:
    directory = seed_dir(tmp_path)
    assert directory.load_checkpoint() == (None, [])
    for step in range(5):
        directory.save_checkpoint({"step": step, "w": torch.ones(3)}, keep=2)
    older, newest = directory.checkpoints()
    raw = bytearray(newest.read_bytes())
    raw[-10] ^= 1
    newest.write_bytes(bytes(raw))
    state, complaints = directory.load_checkpoint()
    assert state is not None
    assert state["step"] == 3
    assert newest.name in complaints[0]
    older.write_bytes(older.read_bytes()[:100])
    with pytest.raises(NestedError, match="no whole checkpoint"):
        directory.load_checkpoint()


def test_a_checkpoint_cannot_carry_code(tmp_path: Path) -> None:
    directory = seed_dir(tmp_path)
    directory.save_checkpoint({"bad": Path("x")}, keep=2)
    with pytest.raises(Exception, match="Weights only"):
        directory.load_checkpoint()


def test_an_unfinished_run_says_since_when_and_how_it_is_continued(tmp_path: Path) -> None:
    run = rundir.create(tmp_path, "digits", {})
    SeedDir.open(run / "seed-0", {}).metrics(1, {"a": 1.0})
    heard = time.mktime((2031, 2, 3, 4, 5, 0, 0, 0, -1))
    os.utime(run / "seed-0" / "events.jsonl", (heard, heard))
    assert rundir.status(run) == f"unfinished since 2031-02-03 04:05; nested resume {run.name}"
    with rundir.locked(run):
        assert rundir.status(run) == "being written"


def test_two_writers_are_refused(tmp_path: Path) -> None:
    run = rundir.create(tmp_path, "digits", {})
    with rundir.locked(run), pytest.raises(UserError, match="being written by another process"), rundir.locked(run):
        pass


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write in"):
        rundir.create(tmp_path / "file", "digits", {})


def test_a_full_disk_says_where_the_results_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = seed_dir(tmp_path)
    directory.metrics(1, {"a": 1.0})
    directory.save_checkpoint({"step": 1}, keep=2)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NestedError, match=r"No space left.*nested resume") as caught:
        directory.save_checkpoint({"step": 2}, keep=2)
    assert caught.value.exit_code == 1
    monkeypatch.undo()
    state, complaints = directory.load_checkpoint()
    assert state is not None
    assert (state["step"], complaints) == (1, [])
    assert json.loads((directory.path / "events.jsonl").read_text())["step"] == 1
    assert [p.name for p in (directory.path / "checkpoints").iterdir()] == ["00000001.pt"]
