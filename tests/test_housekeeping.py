"""Disk is freed of what nobody needs, and of nothing else."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from nested import rundir
from nested.housekeeping import clean, size, survey, unfinished

DEAD = 2**22 + 1  # above any process id that Linux gives


def put(file: Path, content: str = "x") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def make_run(runs: Path, name: str, status: str | None, seeds: dict[int, str | None]) -> Path:
    path = runs / name
    put(path / "FORMAT", "1\n")
    if status:
        put(path / "result.json", json.dumps({"status": status}))
    for seed, ended in seeds.items():
        folder = path / f"seed-{seed}"
        put(folder / "FORMAT", "1\n")
        put(folder / "matrix.json", "{}")
        put(folder / "checkpoints" / "00000001.pt", "c" * 1000)
        put(folder / "checkpoints" / "00000002.pt", "c" * 500)
        put(folder / f".matrix.json.{DEAD}", "half")
        if ended:
            put(folder / "summary.json", json.dumps({"status": ended}))
    return path


def files(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    make_run(runs, "a-done", "done", {0: "done", 1: "done"})
    put(runs / "a-done/seed-0/alone/exp-0/summary.json", '{"status": "done"}')
    put(runs / "a-done/seed-0/alone/exp-0/checkpoints/00000001.pt", "c" * 10)
    make_run(runs, "b-open", None, {0: "done", 1: None})
    make_run(runs, "c-stopped", "interrupted", {0: "done", 1: "interrupted"})
    make_run(runs, "d-diverged", "diverged", {0: "done", 1: "diverged"})
    put(runs / "not-a-run/checkpoints/00000001.pt")
    return runs


def test_without_apply_it_only_says(runs: Path):
    before = files(runs)
    plan = clean(runs)
    assert files(runs) == before
    assert not list(runs.rglob(".lock"))
    assert {u.run_id: len(u.removals) for u in plan.runs} == {"a-done": 4, "b-open": 0, "c-stopped": 0, "d-diverged": 3}
    assert plan.runs[0].removable == 2 * 1000 + 2 * 4
    assert plan.bytes == plan.runs[0].removable + 1000 + 2 * 4
    assert plan.runs[1].kept == "not finished"


def test_applied_it_removes_older_checkpoints_of_finished_seeds_and_leftovers(runs: Path):
    before = files(runs)
    done = clean(runs, apply=True)
    gone = before - files(runs)
    older = {f"{seed}/checkpoints/00000001.pt" for seed in ("a-done/seed-0", "a-done/seed-1", "d-diverged/seed-0")}
    left = {f"{run}/seed-{s}/.matrix.json.{DEAD}" for run in ("a-done", "d-diverged") for s in (0, 1)}
    assert gone == older | left  # the last checkpoint holds the final weights
    assert done.applied
    assert done.problems == ()
    assert clean(runs, apply=True).bytes == 0


def test_a_run_that_is_being_written_is_left_alone(runs: Path):
    before = files(runs / "a-done")
    with rundir.locked(runs / "a-done"):
        assert rundir.being_written(runs / "a-done")
        done = clean(runs, apply=True)
    assert files(runs / "a-done") == before
    assert done.runs[0].kept == "being written"
    assert not rundir.being_written(runs / "a-done")


def test_a_file_of_a_living_process_is_left_alone(runs: Path):
    mine = put(runs / f"a-done/.report.html.{os.getpid()}")
    clean(runs, apply=True)
    assert mine.exists()


def test_a_run_of_another_format_is_left_alone(runs: Path):
    put(runs / "a-done/FORMAT", "7\n")
    before = files(runs / "a-done")
    assert "format" in (clean(runs, apply=True).runs[0].kept or "")
    assert files(runs / "a-done") == before


def test_a_damaged_result_is_no_finished_run(runs: Path):
    put(runs / "a-done/result.json", '{"status": "do')
    assert clean(runs).runs[0].kept == "not finished"


def test_links_are_not_followed(runs: Path, tmp_path: Path):
    outside = put(tmp_path / "elsewhere/checkpoints/00000001.pt", "c" * 10**6)
    (runs / "a-done/seed-0/link").symlink_to(tmp_path / "elsewhere")
    before = survey(runs)[0]
    assert before.bytes < 10**6
    clean(runs, apply=True)
    assert outside.exists()


def test_the_survey_counts_every_byte(runs: Path):
    counted = sum(p.stat().st_size for p in (runs / "b-open").rglob("*") if p.is_file())
    assert survey(runs)[1].bytes == counted


def test_what_cannot_be_removed_is_said(runs: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    done = clean(runs, apply=True)
    assert done.bytes == 0
    assert len(done.problems) == 2
    assert "Permission denied" in done.problems[0]


def test_it_can_be_shown(runs: Path):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(clean(runs))
    said = console.export_text()
    assert "nested gc --yes" in said
    assert "kept: not finished" in said
    assert json.loads(json.dumps(clean(runs).as_dict()))["applied"] is False


def test_which_runs_can_be_continued(runs: Path):
    put(runs / "e-refused/FORMAT", "1\n")  # its config was refused before any seed began
    assert [p.name for p in rundir.all_runs(runs) if unfinished(p)] == ["b-open", "c-stopped"]
    with rundir.locked(runs / "b-open"):
        assert not unfinished(runs / "b-open")


def test_no_runs_at_all(tmp_path: Path):
    assert clean(tmp_path / "nowhere", apply=True).runs == ()


def test_sizes():
    assert [size(n) for n in (0, 512, 1536, 5 * 2**20, 2**41)] == ["0 B", "512 B", "1.5 KiB", "5.0 MiB", "2.0 TiB"]
