"""A tuner's trial: the same numbers as a run, told row by row, ended early where the tuner says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nested.config import compose
from nested.errors import Pruned, UserError
from nested.run import run, run_trial
from nested.rundir import read_json

SMALL = [
    "stream=split_digits", "model=mlp", "model.hidden=[8]", "trainer.epochs=1", "trainer.threads=1", "tracking=off",
    "trainer.progress=false", "evaluate.parts=[validation]", "seeds=2",
]  # fmt: skip


def nothing(seed: int, row: int, values: dict[str, Any]) -> None: ...


def test_equals_the_run_of_its_config_to_the_last_bit(tmp_path: Path) -> None:
    config = compose([*SMALL, f"runs={tmp_path}"])
    trial, whole = run_trial(config, tmp_path / "trial-0000", nothing), run(config)
    assert np.array_equal(trial.matrix, whole.matrix)
    assert trial.mean["acc"] == whole.mean["acc"]
    assert not (tmp_path / "trial-0000" / "seed-0" / "matrix.png").exists()


def test_each_row_is_told_with_what_its_part_of_the_matrix_comes_to(tmp_path: Path) -> None:
    told: list[tuple[int, int, dict[str, Any]]] = []
    config = compose([*SMALL, f"runs={tmp_path}"])
    result = run_trial(config, tmp_path / "t", lambda *row: told.append(row))
    assert [(seed, row) for seed, row, _ in told] == [(s, r) for s in (0, 1) for r in range(1, 6)]
    last = told[4][2]
    for name in ("acc", "forgetting", "learning_acc"):
        assert last[name] == result.runs[0][name]
    assert last["flops"] == result.runs[0]["cost"]["flops"]
    matrix = np.array(result.runs[0]["matrix"])
    assert told[1][2]["acc"] == pytest.approx(matrix[1, :2].mean(), abs=1e-15)
    assert told[0][2]["forgetting"] is None
    updates = [values["parameter_updates"] for _, _, values in told[:5]]
    assert updates == sorted(updates)
    assert updates[0] > 0


def test_pruned_trial_keeps_its_rows_and_begins_no_further_seed(tmp_path: Path) -> None:
    def stop(seed: int, row: int, values: dict[str, Any]) -> None:
        if row == 2:
            raise Pruned("not worth it")

    config = compose([*SMALL, f"runs={tmp_path}"])
    result = run_trial(config, tmp_path / "t", stop)
    assert result.status == "pruned"
    assert [r["seed"] for r in result.runs] == [0]
    summary = read_json(tmp_path / "t" / "seed-0" / "summary.json")
    assert summary["status"] == "pruned"
    assert summary["acc"] is None
    assert summary["matrix"][1][0] is not None
    assert summary["matrix"][2][0] is None
    again = run_trial(config, tmp_path / "t", nothing)
    assert (again.status, len(again.runs)) == ("pruned", 1)


class Killed(BaseException): ...


@pytest.mark.filterwarnings("error::UserWarning")
def test_trial_that_was_killed_goes_on_where_it_stood(tmp_path: Path) -> None:
    config = compose([*SMALL, "checkpoint.every_seconds=0", f"runs={tmp_path}"])
    whole = run_trial(config, tmp_path / "whole", nothing)

    def kill(seed: int, row: int, values: dict[str, Any]) -> None:
        if (seed, row) == (1, 3):
            raise Killed

    with pytest.raises(Killed):
        run_trial(config, tmp_path / "t", kill)
    told: list[tuple[int, int]] = []
    result = run_trial(config, tmp_path / "t", lambda seed, row, _: told.append((seed, row)))
    assert told == [(1, 3), (1, 4), (1, 5)]
    assert np.array_equal(result.matrix, whole.matrix)


def test_directory_of_another_format_is_refused(tmp_path: Path) -> None:
    config = compose([*SMALL, f"runs={tmp_path}"])
    run_trial(config, tmp_path / "t", nothing)
    (tmp_path / "t" / "FORMAT").write_text("99\n")
    with pytest.raises(UserError, match="format '99'"):
        run_trial(config, tmp_path / "t", nothing)


def test_level_that_would_hardly_learn_is_refused_as_in_a_run(tmp_path: Path) -> None:
    config = compose([*SMALL, "levels={all: {params: rest, period_steps: 50}}", f"runs={tmp_path}"])
    with pytest.raises(UserError, match=r"levels\.all\.period_steps"):
        run_trial(config, tmp_path / "t", nothing)
    assert not list((tmp_path / "t").glob("seed-*"))


def test_trial_ends_at_the_first_seed_that_diverges(tmp_path: Path) -> None:
    config = compose([*SMALL, "optim.lr=1e30", f"runs={tmp_path}"])
    result = run_trial(config, tmp_path / "t", nothing)
    assert (result.status, len(result.runs)) == ("diverged", 1)
