"""Levels: which parameters, when they are due, and every way of getting that wrong."""

import re
from pathlib import Path

import pytest
from torch import nn

from nested.errors import UserError
from nested.levels import (
    Level,
    assign,
    assign_tokens,
    check_chunks,
    check_ticks,
    due,
    level_config,
    next_slower,
    ticks,
    token_levels,
)


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


def token(name: str, params: tuple[str, ...], period: int, **more: object) -> Level:
    return Level(name, params, period, "token", eta=0.1, **more)  # type: ignore[arg-type]


def test_gradients_are_gathered_as_a_mean_on_the_stream_clock_and_as_equation_71_prints_on_the_token_clock() -> None:
    assert Level("a", "rest").gather == "mean"
    assert token("a", ("*",), 4).gather == "sum"
    assert token("a", ("*",), 4, gather="mean").gather == "mean"


def test_a_parameter_may_have_a_level_on_each_clock() -> None:
    model = network()
    levels = [Level("all", "rest"), token("slow", ("head.*",), 8), token("fast", ("body.weight",), 4)]
    assert assign(levels, model) == {"all": ["body.weight", "body.bias", "head.weight", "head.bias"]}
    assert assign_tokens(levels, model) == {"fast": ["body.weight"], "slow": ["head.weight", "head.bias"]}
    assert [level.name for level in token_levels(levels)] == ["fast", "slow"]


def test_a_frozen_parameter_may_learn_on_the_token_clock() -> None:
    model = network().requires_grad_(False)
    assert assign_tokens([token("fast", ("head.weight",), 2)], model) == {"fast": ["head.weight"]}


def test_the_next_slower_level_ends_a_context() -> None:
    levels = [token("c", ("c",), 12), token("a", ("a",), 2), token("b", ("b",), 4), token("a2", ("d",), 2)]
    found = [next_slower(level, levels) for level in levels]
    assert [level.name if level else None for level in found] == [None, "b", "c", "b"]


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([Level("all", "rest")], ["none on the token clock", "chunk_tokens"]),
        ([token("a", ("haed.*",), 2)], ["'haed.*' matches no parameter", "head.weight"]),
        ([token("a", ("*",), 2), token("b", ("head.*",), 4)], ["'head.weight' is in two levels", "'a'", "'b'"]),
        ([Level("a", "rest", 2, "token", eta=0.1)], ["levels.a.params", "a list of globs"]),
        (
            [token("a", ("head.*",), 4), token("b", ("body.*",), 6)],
            ["levels.b.chunk_tokens", "6 tokens do not nest with those of 'a'", "a multiple of 4"],
        ),
        (
            [token("a", ("head.bias",), 2), token("b", ("head.weight",), 4, reset=True), token("c", ("body.*",), 6)],
            ["levels.c.chunk_tokens", "6 tokens do not hold whole chunks of 'b'", "a multiple of 4"],
        ),
        ([token("a", ("head.*",), 2, reset=True)], ["levels.a.reset", "slowest"]),
    ],
)
def test_wrong_token_levels_are_named_with_their_bound(levels: list[Level], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        assign_tokens(levels, network())
    for word in words:
        assert word in str(caught.value)


def test_chunks_need_not_nest_where_nothing_is_reset_beyond_the_shortest() -> None:
    levels = [token("a", ("head.bias",), 2), token("b", ("head.weight",), 4), token("c", ("body.*",), 6)]
    assert list(assign_tokens(levels, network())) == ["a", "b", "c"]


def test_a_token_level_needs_its_inner_rate() -> None:
    with pytest.raises(UserError, match=r"levels\.a\.eta: .*token clock"):
        Level("a", ("*",), 4, "token")


def test_a_chunk_longer_than_the_sequence_is_refused_with_the_longest() -> None:
    levels = [Level("all", "rest", 99), token("a", ("head.*",), 8)]
    check_chunks(levels, 9)
    with pytest.raises(UserError, match=r"levels\.a\.chunk_tokens: a chunk of 8 tokens .* 8 tokens have 7 labels"):
        check_chunks(levels, 8)


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ({"period": 0}, "period_steps", ["0 is not allowed", "int >= 1"]),
        ({"period": 2.5}, "period_steps", ["2.5 is not allowed", "int >= 1"]),
        ({"period": 0, "clock": "token", "eta": 0.1}, "chunk_tokens", ["0 is not allowed", "int >= 1"]),
        ({"clock": "tokens"}, "clock", ["'tokens' is not allowed", "did you mean 'token'", "stream | token"]),
        ({"clock": "token", "eta": -0.1}, "eta", ["-0.1 is not allowed", "float >= 0"]),
        ({"clock": "token", "eta": float("nan")}, "eta", ["it must be finite"]),
        ({"clock": "token", "eta": 0.1, "clip_norm": 0}, "clip_norm", ["float > 0"]),
        ({"clock": "token", "eta": 0.1, "reset": "yes"}, "reset", ["'yes' is not allowed", "bool"]),
        ({"clock": "token", "eta": 0.1, "lr_scale": 2.0}, "lr_scale", ["belongs to the stream clock"]),
        ({"clock": "token", "eta": 0.1, "rule": {"lr": 1.0}}, "optim", ["belongs to the stream clock"]),
        ({"eta": 0.1}, "eta", ["belongs to the token clock"]),
        ({"reset": True}, "reset", ["belongs to the token clock"]),
        ({"lr_scale": 0}, "lr_scale", ["float > 0"]),
        ({"gather": "max"}, "gather", ["'max' is not allowed", "mean | sum"]),
        ({"rule": "sgd"}, "optim", ["'sgd' is not allowed"]),
        ({"params": "head.*"}, "params", ["'head.*' is not allowed", "['head.*']", "rest"]),
        ({"params": ()}, "params", ["a list of globs"]),
        ({"params": (3,)}, "params[0]", ["3 is not allowed", "str"]),
    ],
)
def test_a_level_made_in_python_is_refused_for_what_a_config_could_not_say_either(given, key, words) -> None:
    with pytest.raises(UserError) as caught:
        Level("a", **{"params": ("*",)} | given)
    assert caught.value.key == f"levels.a.{key}"
    for word in words:
        assert word in str(caught.value)


def test_globs_may_be_given_as_a_list() -> None:
    assert Level("a", ["head.*"]) == Level("a", ("head.*",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("period", "words"),
    [
        ("chunk_tokens", "inner rate of a level on the token clock is levels.quick.eta"),
        ("period_steps", "optim.lr, times levels.quick.lr_scale"),
    ],
)
def test_a_level_that_is_given_a_rate_as_an_optimizer_has_it_is_told_where_its_own_is(period: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        level_config("quick", {"params": ["*"], period: 4, "lr": 0.1})
    assert caught.value.key == "levels.quick.lr"


def examples() -> list[str]:
    text = (Path(__file__).parents[1] / "docs" / "design.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("number", range(4))
def test_the_examples_in_the_design_document_run(number: int) -> None:
    assert len(examples()) == 4
    exec(compile(examples()[number], "docs/design.md", "exec"), {"__name__": "example"})
