"""Levels: which parameters, when they are due, and every way of getting that wrong."""

import pytest
from torch import nn

from nested.errors import UserError
from nested.levels import Level, assign, check_ticks, due, ticks


def network() -> nn.Module:
    return nn.ModuleDict({"body": nn.Linear(2, 3), "head": nn.Linear(3, 1)})


def test_due_at_multiples_of_the_period() -> None:
    level = Level("slow", ("*",), period=3)
    assert [t for t in range(1, 10) if due(level, t)] == [3, 6, 9]
    assert ticks(level, 0, 9) == 3
    assert ticks(level, 3, 8) == 1


def test_assign_gives_each_parameter_one_level() -> None:
    levels = [Level("fast", "rest"), Level("slow", ("head.*",), period=4)]
    assert assign(levels, network()) == {"fast": ["body.weight", "body.bias"], "slow": ["head.weight", "head.bias"]}


def test_frozen_parameters_have_no_level() -> None:
    model = network()
    model["body"].requires_grad_(False)  # type: ignore[index]
    assert assign([Level("all", "rest")], model) == {"all": ["head.weight", "head.bias"]}


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([Level("a", "rest"), Level("b", ("haed.*",))], ["'haed.*' matches no parameter", "head.weight"]),
        ([Level("a", ("*",)), Level("b", ("head.*",))], ["'head.weight' is in two levels", "'a'", "'b'"]),
        ([Level("a", ("head.*",))], ["2 parameters are in no level", "body.weight", "rest"]),
        ([Level("a", "rest"), Level("b", "rest")], ["only one level may have params: rest"]),
        ([Level("a", "rest"), Level("b", ("*",))], ["nothing is left"]),
    ],
)
def test_wrong_assignments_are_named(levels: list[Level], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        assign(levels, network())
    for word in words:
        assert word in str(caught.value)


def test_a_level_that_hardly_ticks_is_refused() -> None:
    levels = [Level("fast", "rest"), Level("slow", ("head.*",), period=11)]
    check_ticks(levels, 110, allow_idle=False)
    check_ticks(levels, 20, allow_idle=True)
    with pytest.raises(UserError, match=r"period 11 gives 9 updates in 109 steps.*at most 10"):
        check_ticks(levels, 109, allow_idle=False)
