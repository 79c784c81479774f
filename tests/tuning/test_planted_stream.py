"""The stream of experiments/planted_landscape.py: one period works on it, and a study finds that."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXPERIMENTS)
    return import_module("planted_landscape")


def test_the_noise_adds_up_to_nothing_over_an_experience_and_validation_has_none(planted: Any, tmp_path: Path):
    planted.write(tmp_path / "planted.npz")
    with np.load(tmp_path / "planted.npz") as file:
        x, y, split, task = (file[name] for name in ("x", "y", "split", "task"))
    truth = x.sum(1)
    assert set(task) == set(range(planted.EXPERIENCES))
    for part, noise in (("train", planted.NOISE), ("validation", 0.0)):
        rows = (task == 3) & (split == part)
        assert np.abs(y - truth)[rows] == pytest.approx(noise)
        assert (x[rows] * (y - truth)[rows, None]).sum(0) == pytest.approx(0, abs=1e-12)
        assert rows.sum() == (2 * planted.PLANTED if part == "train" else planted.PLANTED)
    assert np.cov(x[(task == 0) & (split == "validation")].T, bias=True) == pytest.approx(np.diag(planted.VARIANCES))


def test_one_period_works(planted: Any, tmp_path: Path):
    best = {1: 0.05, 2: 0.05, 4: 0.1, 8: 0.7, 16: 0.7, 32: 0.7}  # of each the best rate of the grid
    losses = {period: planted.loss(period, rate, tmp_path) for period, rate in best.items()}
    assert losses.pop(planted.PLANTED) < 0.02
    assert min(losses.values()) > 0.04


def test_a_study_finds_it_and_pruning_spares_two_fifths_of_the_steps(planted: Any, tmp_path: Path):
    found = planted.search(0, "median", tmp_path)
    assert found["period"] == planted.PLANTED
    assert found["done"] + found["pruned"] == planted.TRIALS
    whole = planted.TRIALS * planted.EXPERIENCES * planted.PLANTED
    assert found["steps"] <= 0.6 * whole
