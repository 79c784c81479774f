from pathlib import Path
from typing import Any

import pytest

from nested.config import composer, options, read_override
from nested.errors import UserError
from nested.tuning.objective import objective
from nested.tuning.settings import request
from nested.tuning.space import Dimension, defaults, fitted, grid, override, read
from nested.tuning.storage import address

BASE = composer(["model.hidden=[8]", "optim=sgd"])


def test_a_range_of_whole_numbers_is_one_for_whole_numbers_only():
    space = {"trainer.batch_size": {"low": 1, "high": 64, "log": True}, "optim.lr": {"low": 0, "high": 1}}
    size, rate = fitted(read(space), BASE)
    assert type(size.distribution()).__name__ == "IntDistribution"
    assert type(rate.distribution()).__name__ == "FloatDistribution", "the path decides, not how its bounds look"


def test_choices_may_be_of_every_scalar_kind_and_of_a_group():
    section = {"optim": {"choices": ["sgd", "adamw"]}, "trainer.clip_norm": {"choices": [None, 1.0]}}
    every = [*fitted(read(section), BASE), *fitted(read({"trainer.allow_idle": {"choices": [True, False]}}), BASE)]
    config = BASE([override(d.path, d.points()[-1]) for d in every])
    assert (config.choices["optim"], config.trainer.clip_norm, config.trainer.allow_idle) == ("adamw", 1.0, False)


@pytest.mark.parametrize(
    "value", ["two words", "null", "it's", "a,b", "7", "x=y", "", "back\\slash", True, None, 0.1, -3]
)
def test_every_scalar_comes_back_as_it_was_given(value: Any):
    assert read_override(override("label", value)) == ("label", value)


@pytest.mark.parametrize(
    "space, key, said",
    [
        ({"optim.lrr": {"low": 0.1, "high": 1}}, "optim.lrr", "did you mean 'optim.lr'"),
        ({"optim.lr": {"low": 1, "high": 0.1}}, "tune.space.optim.lr", "exchange them"),
        ({"optim.momentum": {"low": "a", "high": 1}}, "tune.space.optim.lr.low", "not allowed"),
        ({"trainer.batch_size": {"low": 0, "high": 8}}, "trainer.batch_size", "int >= 1"),
        ({"trainer.batch_size": {"low": 1, "high": 8.5}}, "trainer.batch_size", "int >= 1"),
        ({"optim.lr": {"low": 0, "high": 1, "log": True}}, "tune.space.optim.lr.low", "above 0"),
        ({"optim.lr": {"low": 0.1, "high": 1, "steps": 2}}, "tune.space.optim.lr.steps", "did you mean"),
        ({"optim.lr": {"low": 0.1}}, "tune.space.optim.lr.high", "a value is needed"),
        ({"optim.lr": {"low": 0.1, "high": 1, "log": True, "step": 0.1}}, "tune.space.optim.lr", "exclude each other"),
        ({"trainer.epochs": {"low": 1, "high": 8, "step": 2}}, "tune.space.trainer.epochs.high", "7 is"),
        ({"optim.lr": {"choices": [[0.1], 0.2]}}, "tune.space.optim.lr.choices", "no number, word"),
        ({"optim.lr": {"choices": []}}, "tune.space.optim.lr.choices", "one or more"),
        ({"optim.lr": {"choices": [0.1, 0.1]}}, "tune.space.optim.lr.choices", "twice"),
        ({"optim.lr": {"choices": [0.1], "low": 0}}, "tune.space.optim.lr", "exclude each other"),
        ({"optim.lr": 0.1}, "tune.space.optim.lr", "is needed"),
        ({"optim": {"choices": ["sgd", "adamm"]}}, "optim", "did you mean 'adamw'"),
        ({"head.mask": {"choices": ["none", "sean"]}}, "head.mask", "did you mean 'seen'"),
        ({}, "tune.space", "nothing is searched"),
    ],
)
def test_a_space_that_cannot_be_is_refused(space: dict[str, Any], key: str, said: str):
    with pytest.raises(UserError, match=said) as error:
        fitted(read(space), BASE)
    assert error.value.key == key or "momentum" in str(space)


def test_defaults_are_the_values_of_the_config_and_one_outside_is_said():
    space = {
        "optim.lr": {"low": 0.001, "high": 1}, "trainer.batch_size": {"low": 64, "high": 128},
        "optim.nesterov": {"choices": [True, False]}, "method": {"choices": ["naive", "ewc"]},
    }  # fmt: skip
    found, notes = defaults(fitted(read(space), BASE), BASE())
    assert found == {"optim.lr": 0.05, "optim.nesterov": False, "method": "naive"}
    assert len(notes) == 1
    assert "trainer.batch_size=32 is not in 64 to 128" in notes[0]


def test_a_grid_is_every_combination_with_the_defaults_first():
    dimensions = [Dimension("a", choices=("x", "y")), Dimension("b", 1, 5, step=2), Dimension("c", 0.0, 1.0, step=0.5)]
    rows = grid(dimensions, {"a": "y", "b": 3, "c": 0.5})
    assert len(rows) == 18
    assert len({tuple(r.items()) for r in rows}) == 18
    assert rows[0] == {"a": "y", "b": 3, "c": 0.5}


def test_a_grid_needs_ends_of_points():
    with pytest.raises(UserError, match="`step`"):
        grid([Dimension("a", 0.0, 1.0)], {})
    with pytest.raises(UserError, match="at most"):
        grid([Dimension(n, 1, 1000) for n in "ab"], {})


def test_the_command_line_has_two_parts_and_a_dimension_two_ends():
    asked = request(
        ["tune=rate", "model=mlp", "tune.space.optim.lr.high=0.1", "workers=3", "seeds=2", "tune.n_trials=7",
         "tune.space.trainer.batch_size={low:8,high:32}", "tune.budget.flops=1e9"]
    )  # fmt: skip
    assert asked.overrides == ["model=mlp", "seeds=2"]
    assert (asked.workers, asked.tune.n_trials, asked.choice, asked.tune.budget) == (3, 7, "rate", {"flops": 1e9})
    assert asked.tune.space["optim.lr"] == {"low": 0.0003, "high": 0.1, "log": True}
    assert asked.tune.space["trainer.batch_size"] == {"low": 8, "high": 32}
    assert asked.name(asked.config()) == "tune-rate-split_digits-mlp"
    assert asked.config().evaluate.parts == ["validation"], "test data is not looked at"


def test_no_word_of_a_space_is_dropped_wherever_it_stands():
    rate, size = "tune.space.optim.lr={low:0.1,high:1}", "+tune.space.trainer.batch_size={low:8,high:32}"
    for words in ([rate, size, "tune.space={optim.momentum:{low:0,high:0.9}}"], [size, "tune.space={}", rate]):
        space = request(["tune=rate", *words]).tune.space
        assert {"optim.lr", "trainer.batch_size"} <= set(space)
        assert space["optim.lr"] == {"low": 0.1, "high": 1}
    kept = request(["tune=rate", "tune.space.optim.lr.log=null"]).tune.space
    assert kept == {"optim.lr": {"low": 0.0003, "high": 0.3}}


@pytest.mark.parametrize(
    "word, said",
    [
        ("tune=ratee", "did you mean 'rate'"), ("tune.n_trial=3", "did you mean 'tune.n_trials'"),
        ("tune.n_trials=0", "int >= 1"), ("launcher=slurmm", "did you mean 'slurm'"),
        ("workers=0", "^workers: 0 is not allowed; allowed: int >= 1"), ("workers=-2", "^workers: -2"),
        ("workers=all", "^workers: 'all'"),
        ("tune.sampler=tpee", "did you mean 'tpe'"), ("tune.study=../x", "letters, digits"),
        ("tune.x.y=1", "unknown key"),
        ("tune.space.optim.lr=3", "low=1"), ("tune.space.optim.lr=null", "nothing is searched"),
        ("tune.space={}", "nothing"), ("tune.space=3", "^tune.space: 3 is not allowed"),
        ("tune.space.optim.eps=null", "^tune.space.optim.eps: None is not allowed"),
        ("tune.space.optim.lr.low=null", "^tune.space.optim.lr.low: a value is needed"),
        ("tune.space.optim.eps={}", "^tune.space.optim.eps.low: a value is needed"),
        ("launcher.timeout_min=3", "^launcher.timeout_min: nothing takes it"), ("workers.n=3", "^workers.n: nothing"),
        ("tune.storage=mysql://x", "grpc://HOST:PORT"), ("tune.budget.watts=3", "flops, seconds"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_refused(word: str, said: str, tmp_path: Path):
    def all_checks() -> None:
        asked = request(["tune=rate", word])
        read(asked.tune.space)
        asked.name(asked.config())
        address(asked.tune.storage, tmp_path)
        objective("acc", asked.tune.budget, 5, True)

    with pytest.raises(UserError, match=said):
        all_checks()


def test_a_search_of_the_users_own_lies_beside_theirs(tmp_path: Path):
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / "mine.yaml").write_text(
        "# My own.\nspace: {optim.lr: {low: 0.1, high: 1.0}}\noverrides: [optim=adamw, trainer.epochs=2]\nseed: 4\n"
    )
    asked = request(["tune=mine", "trainer.epochs=3"], tmp_path)
    assert asked.tune.seed == 4
    assert (asked.config().choices["optim"], asked.config().trainer.epochs) == ("adamw", 3), "the user's own come after"


READY = [("rate", ["model=mlp"]), ("chunks", ["model=hope"])]
READY += [(name, ["model=hope_attention"]) for name in ("frequencies", "levels")]


@pytest.mark.parametrize("name, words", READY, ids=[name for name, _ in READY])
def test_a_ready_space_holds_its_defaults(name: str, words: list[str]):
    asked = request([f"tune={name}", *words])
    dimensions = fitted(read(asked.tune.space), asked.config)
    found, notes = defaults(dimensions, asked.config())
    assert not notes
    assert set(found) == set(asked.tune.space)
    assert set(options("tune")) == {n for n, _ in READY}
