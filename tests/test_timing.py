"""experiments/timing.py and its tables: all forms beside ours, and none in them that is wrong."""

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
NAN = float("nan")


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXPERIMENTS)  # as in `python experiments/x.py`


@pytest.fixture
def timing() -> ModuleType:
    import timing

    return timing


@pytest.fixture
def steps() -> ModuleType:
    import bench_optimizers

    return bench_optimizers


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_says_how_many_times_as_long_as_ours_a_form_takes(timing: ModuleType) -> None:
    times = {"slow": [3.0, 3.0, 3.0], "ours": [2.0, 2.0, 2.0], "quick": [1.0, 1.0, 4.0]}
    found = timing.rows("forward", times, dict.fromkeys(times, 1e-7), "ours", 0, 0, "cpu")
    assert cells(timing.head("ours")[0])[3] == "its time / ours"
    assert [cells(line)[3] for line in found[:2]] == ["1.50 (1.50 to 1.50)", "1"]
    assert cells(found[2])[:4] == ["quick", "forward", "1", "0.50 (0.50 to 2.00)"]
    del times["ours"]
    assert {cells(x)[3] for x in timing.rows("", times, dict.fromkeys(times, 0.0), "ours", 1, 1, "cpu")} == {""}


def test_only_what_is_right_is_timed_and_all_else_is_said(timing: ModuleType) -> None:
    def missing() -> float:
        raise ImportError("no\nsuch package")

    errors = {"right": lambda: 1e-7, "wrong": lambda: 0.5, "no number": lambda: NAN, "theirs": missing}
    right, said = timing.checked(errors, "right", 1e-5)
    assert right == {"right": 1e-7}
    assert said == [
        "Not timed, theirs raised ImportError: no such package",
        "Not timed, wrong is wrong by 5.0e-01.",
        "Not timed, no number is wrong by nan.",
    ]
    with pytest.raises(ImportError):
        timing.checked(errors, "theirs", 1e-5)


def test_an_error_is_the_largest_and_no_nan_hides(timing: ModuleType) -> None:
    one, two = torch.ones(4), torch.full((4,), 2.0)
    assert timing.apart([one, two], [one, two]) == 0
    assert timing.apart([one, one], [one, two]) == 0.5
    assert timing.apart([torch.zeros(3)], [torch.zeros(3)]) == 0
    assert timing.apart([torch.full((3,), 1e-9)], [torch.zeros(3)]) > 1
    for place in (0, 1):
        found = [one, two]
        found[place] = found[place] * NAN
        assert timing.apart(found, [one, one]) != timing.apart(found, [one, one])


@pytest.mark.parametrize("spoiled", [0, 1])
def test_a_form_of_the_delta_rule_that_is_wrong_in_any_result_is_no_row(spoiled: int) -> None:
    import bench_kernels as bench

    def wrong(x: list[Tensor]) -> tuple[Tensor, Tensor]:
        found = list(bench.of_backend("chunked", 16)(x))
        found[spoiled] = found[spoiled] * 1.01
        return found[0], found[1]

    forms = {"chunked": bench.Form(bench.of_backend("chunked", 16)), "other": bench.Form(wrong)}
    lines = bench.table(bench.Shape(1, 1, 40, 4, 16, torch.float32), forms, "chunked", "cpu", 1e-5, 3)
    assert [cells(line)[:2] for line in lines[4:6]] == [["chunked", "forward"], ["chunked", "forward and backward"]]
    assert any(line.startswith("Not timed, other is wrong by") for line in lines)
    assert not any(line.startswith("| other") for line in lines)


@pytest.mark.parametrize("levels", [1, 4])
@pytest.mark.parametrize("spoiled", [None, "params", "momenta", "gathered"])
def test_a_step_is_checked_in_all_that_it_writes(
    monkeypatch: pytest.MonkeyPatch, steps: ModuleType, levels: int, spoiled: str | None
) -> None:
    x, step = steps.Tensors(steps.transformer(4, 1), "cpu", levels), steps.level_step

    def other(*given: Any, **more: Any) -> None:
        step(*given, **more)
        if spoiled is not None:
            getattr(x, spoiled)[-1].mul_(1.001)

    monkeypatch.setattr(steps, "level_step", other)
    assert (x.error("chunked") < 1e-5) == (spoiled is None)


def test_an_optimizer_is_checked_beside_its_rule_in_float64(steps: ModuleType) -> None:
    error = partial(steps.error, shapes=[(6, 8), (8, 6)], device="cpu", steps=3)
    assert error(torch.optim.AdamW, torch.optim.AdamW) < 1e-5
    assert error(partial(torch.optim.AdamW, betas=(0.9, 0.99)), torch.optim.AdamW) > 1e-3
    assert error(steps.Muon, steps.ExactMuon) < 5e-2 < error(partial(steps.Muon, momentum=0.5), steps.ExactMuon)
    assert error(partial(steps.M3, frequency=2), partial(steps.M3, frequency=2)) < 5e-2
    assert error(partial(steps.M3, frequency=3), partial(steps.M3, frequency=2)) > 5e-2
