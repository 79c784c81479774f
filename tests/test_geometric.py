"""Geometric levels: what they are, that the model's number of levels reaches them, what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nested.config import amend, compose, from_dict
from nested.errors import UserError
from nested.geometric import steps, tokens
from nested.run import run

CHAIN = ["stream=split_digits", "model=hope_attention", "levels=geometric"]


@given(st.integers(1, 6), st.integers(1, 50), st.integers(1, 9))
def test_every_period_is_a_multiple_of_the_one_before(n: int, base: int, ratio: int) -> None:
    chain = steps(n, base, ratio)
    periods = [section["period_steps"] for section in chain.values()]
    assert periods == [1, *(base * ratio**level for level in range(n))]
    assert all(slow % fast == 0 for fast, slow in itertools.pairwise(periods))
    assert [s["chunk_tokens"] for s in list(tokens(n, base, ratio).values())[1:]] == periods[1:]


def test_rates_are_a_first_one_and_a_factor() -> None:
    assert [s["lr_scale"] for s in list(steps(3, lr_scale=2.0, lr_ratio=0.5).values())[1:]] == [2.0, 1.0, 0.5]
    assert [s["eta"] for s in list(tokens(3, eta=0.1, eta_ratio=3.0).values())[1:]] == pytest.approx([0.1, 0.3, 0.9])


def test_config_keeps_the_numbers_and_makes_the_levels() -> None:
    config = compose([*CHAIN, "model.n_levels=2", "levels.base=3", "levels.ratio=5"])
    assert config.levels["base"] == 3
    assert {n: c.period_steps for n, c in config.level_configs().items()} == {"fast": 1, "l0": 3, "l1": 15}
    assert config.level_configs()["l1"].params == ["*.continuum.1.*"]
    again = from_dict(config.to_dict())
    assert again == config
    assert amend(config, ["levels.base=7"]).level_configs()["l1"].period_steps == 35


def test_trains_as_the_levels_written_out_do(tmp_path: Path) -> None:
    small = ["trainer.epochs=2", "tracking=off", "trainer.progress=false", f"runs={tmp_path}", "prefix=3"]
    written = (
        "levels={fast: {params: rest, period_steps: 1}, l0: {params: ['*.continuum.0.*'], period_steps: 2},"
        "l1: {params: ['*.continuum.1.*'], period_steps: 4, lr_scale: 0.5}}"
    )
    size = ["model.n_levels=2", "model.width=8", "model.heads=2", "model.hidden=8"]
    made = [*CHAIN, *size, "levels.base=2", "levels.ratio=2", "levels.lr_ratio=0.5", *small]
    plain = [*CHAIN[:2], *size, written, *small]
    assert (run(compose(made)).matrix == run(compose(plain)).matrix).all()


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("levels.base=0", "levels.base", "0"),
        ("levels.bse=2", "levels.bse", "levels.base"),
        ("levels.glob='*.continuum.*'", "levels.glob", "{level}"),
        ("levels.n_levels='${model.levels}'", "levels.n_levels", "model.levels"),
    ],
)
def test_what_is_refused(override: str, key: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([*CHAIN, override])
    assert caught.value.key == key
    assert message in str(caught.value)


def test_component_that_makes_no_levels_is_refused() -> None:
    with pytest.raises(UserError, match="a mapping from names to levels is needed"):
        compose([*CHAIN[:2], "levels={_target_: nested.geometric._glob, glob: 'a{level}', level: 1}"])


def test_model_without_such_parameters_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\*\.continuum\.0\.\*"):
        run(compose(["stream=split_digits", "model=mlp", "levels=geometric", "tracking=off", f"runs={tmp_path}"]))


def test_prefix_is_the_stream_cut_short_with_the_outputs_of_all(tmp_path: Path) -> None:
    small = ["stream=split_digits", "model=mlp", "model.hidden=[8]", "trainer.epochs=1", "tracking=off"]
    config = compose([*small, "trainer.progress=false", f"runs={tmp_path}"])
    whole, cut = run(config), run(amend(config, ["prefix=2"]))
    assert (cut.matrix == whole.matrix[:2, :2]).all()
    with pytest.raises(UserError, match="has 5 experiences"):
        run(amend(config, ["prefix=6"]))
