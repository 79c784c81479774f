"""Every control's config, by hand; what it promises of updates and FLOPs, counted in tiny runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nested.config import Config, compose, from_dict
from nested.contest.arms import Arm, Facts, scaled
from nested.contest.controls import CAPACITY, PERIODS, Idle, arms, shares
from nested.contest.facts import measure
from nested.levels import LevelConfig
from nested.run import run_trial
from nested.rundir import as_stored

FACTS = Facts(
    parameters={"fast": 600, "mid": 100, "slow": 100}, bytes={"fast": 2400, "mid": 400, "slow": 400},
    sample_bytes=72, experiences=5, flops=100.0, bare_flops=100.0,
)  # fmt: skip
THREE = [
    "levels={fast: {params: rest, period_steps: 1}, mid: {params: ['a.*'], period_steps: 2, lr_scale: 3.0}, "
    "slow: {params: ['b.*'], period_steps: 8}}"
]
TOKENS = ["model=hope", "levels=tokens"]


def candidate(*words: str) -> Config:
    return compose(["trainer.epochs=5", "trainer.batch_size=16", "seeds=2", *words])


def fighting(config: Config, facts: Facts = FACTS) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms(config, facts)[0]}


def absent(config: Config, facts: Facts = FACTS) -> dict[str, str]:
    return {one.title: one.why for one in arms(config, facts)[1]}


def level(arm: Arm, name: str) -> LevelConfig:
    return arm.config.level_configs()[name]


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_all_controls_of_a_candidate_with_slow_levels_are_there():
    found = fighting(candidate(*THREE))
    assert list(found) == [
        "candidate", "one_level", "equal_updates", "one_level_same_drift", "same_drift", "frozen", "ema-2", "ema-8",
        "lookahead-2", "lookahead-8", "class_means", "least_squares", "replay", "reset", "joint",
    ]  # fmt: skip
    assert absent(candidate(*THREE)) == {"eta = 0": "the candidate has no level that learns while it reads"}
    assert [a.name for a in found.values() if not a.ordered] == ["joint"]


def test_equal_updates_is_the_harmonic_mean_of_periods_and_the_mean_rate_of_updates():
    """200 parameters, 100/2 + 100/8 = 62.5 updates a step: period 3.2; rates (50 * 3 + 12.5 * 1) / 62.5 = 2.6."""
    arm = fighting(candidate(*THREE))["equal_updates"]
    assert set(arm.config.level_configs()) == {"fast", "slow"}
    assert level(arm, "slow").params == ["a.*", "b.*"]
    assert level(arm, "slow").period_steps == 3
    assert level(arm, "slow").lr_scale == pytest.approx(2.6)
    assert level(arm, "fast").period_steps == 1


def test_equal_updates_of_one_slow_level_is_all_as_one():
    """100 parameters at every step, 700 at rate 2 every 16th: 143.75 updates a step, period 5.6, mean rate 1.3."""
    words = "levels={fast: {params: ['a.*'], period_steps: 1}, slow: {params: rest, period_steps: 16, lr_scale: 2.0}}"
    facts = replace(FACTS, parameters={"fast": 100, "slow": 700}, bytes={"fast": 400, "slow": 2800})
    arm = fighting(candidate(words), facts)["equal_updates"]
    assert set(arm.config.level_configs()) == {"all"}
    assert (level(arm, "all").params, level(arm, "all").period_steps) == ("rest", 6)
    assert level(arm, "all").lr_scale == pytest.approx((100 + 43.75 * 2) / 143.75)
    mostly_fast = replace(FACTS, parameters={"fast": 700, "slow": 100}, bytes={"fast": 2800, "slow": 400})
    words = words.replace(", lr_scale: 2.0", "")
    assert (
        absent(candidate(words), mostly_fast)["one level, equal updates"] == "it is the same as: one level, equal FLOPs"
    )


def test_the_rest_may_be_among_the_slow_levels():
    words = "levels={fast: {params: ['a.*'], period_steps: 1}, mid: {params: ['c.*'], period_steps: 4}, "
    arm = fighting(candidate(words + "slow: {params: rest, period_steps: 4}}"))["equal_updates"]
    assert level(arm, "slow").params == "rest"
    assert set(arm.config.level_configs()) == {"fast", "slow"}


def test_same_drift_divides_each_rate_by_its_period():
    arm = fighting(candidate(*THREE))["same_drift"]
    assert [level(arm, n).period_steps for n in ("fast", "mid", "slow")] == [1, 1, 1]
    assert [level(arm, n).lr_scale for n in ("fast", "mid", "slow")] == [1.0, 1.5, 0.125]


def test_a_sum_of_gathered_gradients_drifts_at_its_rate():
    summed = THREE[0].replace("lr_scale: 3.0", "lr_scale: 3.0, gather: sum")
    assert level(fighting(candidate(summed))["same_drift"], "mid").lr_scale == 3.0
    assert "sum of what they gathered" in absent(candidate(summed))["one level, equal updates"]


def test_one_level_has_the_rate_of_the_fastest_or_the_mean_drift():
    found = fighting(candidate(*THREE))
    assert set(found["one_level"].config.level_configs()) == {"all"}
    assert level(found["one_level"], "all").lr_scale == 1.0
    drift = (600 * 1 + 100 * 3 / 2 + 100 / 8) / 800
    assert level(found["one_level_same_drift"], "all").lr_scale == pytest.approx(drift)


def test_levels_with_rules_of_their_own_have_no_common_rate():
    own = THREE[0].replace("lr_scale: 3.0", "optim: {_target_: torch.optim.SGD, lr: 0.1}")
    why = absent(candidate(own))
    assert "different rules" in why["one level, equal updates"]
    assert "different rules" in why["one level, same drift"]
    assert level(fighting(candidate(own))["same_drift"], "mid").optim == {"_target_": "torch.optim.SGD", "lr": 0.1}


def test_eta_zero_leaves_everything_else():
    config = candidate(*TOKENS)
    facts = replace(FACTS, parameters={"fast": 700, "slow": 100}, bytes={"fast": 2800, "slow": 400})
    arm = fighting(config, facts)["eta_zero"]
    assert level(arm, "reading").eta == 0.0
    assert level(arm, "reading").chunk_tokens == 4
    assert arm.config.model == config.model
    mostly_slow = replace(facts, parameters={"fast": 100, "slow": 700})
    one = fighting(config, mostly_slow)["equal_updates"].config
    assert set(one.level_configs()) == {"all", "reading"}  # it reads as the candidate does, for as many epochs
    assert (one.trainer.epochs, one.method) == (config.trainer.epochs, config.method)


def test_levels_that_read_are_paid_for_in_epochs():
    facts = replace(FACTS, parameters={"fast": 700, "slow": 100}, bytes={"fast": 2800, "slow": 400}, flops=180.0)
    found = fighting(candidate(*TOKENS, "model.inner=truncated", "model.truncate=2"), facts)
    assert found["one_level"].config.trainer.epochs == 9
    assert found["joint"].config.trainer.joint_epochs == 9
    assert found["same_drift"].config.trainer.epochs == 5
    assert "truncate" not in found["one_level"].config.model
    assert found["frozen"].config.method["levels"] == ("slow", "reading")


def test_averages_and_slow_weights_take_the_periods_of_slow_levels():
    found = fighting(candidate(*THREE))
    assert found["ema-2"].config.method["periods"] == (2.0, 8.0)
    assert (found["ema-8"].home, found["ema-8"].view) == ("ema", "ema-8")  # one training, two sets of weights
    assert [found[f"lookahead-{k}"].config.method["k"] for k in (2, 8)] == [2, 8]
    assert set(found["ema-2"].config.level_configs()) == {"all"}
    single = fighting(candidate(), replace(FACTS, parameters={"all": 800}, bytes={"all": 3200}))
    assert single["ema-4"].config.method["periods"] == PERIODS


def test_heads_and_resets_keep_the_candidates_levels():
    config = candidate(*THREE)
    found = fighting(config)
    for name in ("class_means", "least_squares", "frozen", "reset"):
        assert found[name].config.level_configs() == config.level_configs()
    assert found["least_squares"].config.method["features"] == "learned"
    assert found["frozen"].config.method["levels"] == ("mid", "slow")


def test_replay_keeps_as_many_bytes_as_slow_levels_gather():
    arm = fighting(candidate(*THREE))["replay"]
    assert arm.config.method["capacity"] == 800 // 72
    facts = replace(FACTS, parameters={"all": 800}, bytes={"all": 3200})
    assert fighting(candidate(), facts)["replay"].config.method["capacity"] == CAPACITY
    assert (
        fighting(candidate("method=ewc"), replace(facts, method_bytes=7200))["replay"].config.method["capacity"] == 100
    )


@pytest.mark.parametrize("epochs", [2, 3, 5, 6, 10, 20])
@pytest.mark.parametrize("batch_size", [16, 32])
def test_replay_in_fewer_epochs_sees_as_many_examples(epochs: int, batch_size: int):
    """Nothing is replayed in the first of five experiences."""
    fewer, old = shares(epochs, batch_size, 5, 1000)
    assert fewer * (1 + 0.8 * old / batch_size) == pytest.approx(epochs, rel=0.03)


def test_replay_takes_more_epochs_where_it_keeps_little_and_little_of_it_in_one():
    fewer, old = shares(10, 16, 5, 6)
    assert (fewer, old) == (8, 5)  # 8 (1 + .8 * 5 / 16) = 10
    assert shares(1, 16, 5, 1000) == (1, 1)  # 1 + .8 / 16 = 1.05
    with pytest.raises(Idle, match="FLOPs equal"):
        shares(1, 8, 5, 1000)


def test_a_single_level_meets_what_is_not_about_levels_once():
    facts = replace(FACTS, parameters={"all": 800}, bytes={"all": 3200})
    found, why = fighting(candidate(), facts), absent(candidate(), facts)
    assert list(found) == [
        "candidate", "ema-4", "ema-16", "ema-64", "lookahead-5", "class_means", "least_squares", "replay", "reset",
        "joint",
    ]  # fmt: skip
    assert why["one level, equal FLOPs"] == "it is the candidate itself"
    assert why["levels frozen after the first experience"] == "the candidate has no level but that of every step"
    ewc = fighting(candidate("method=ewc"), facts)
    assert "one_level" in ewc
    assert "reset" not in ewc
    assert "cannot have both" in absent(candidate("method=ewc"), facts)["class means on the same features"]


def test_a_factor_scales_every_outer_rate_alike():
    levels = scaled(candidate(*THREE), 0.25).level_configs()
    assert [levels[n].lr_scale for n in ("fast", "mid", "slow")] == [0.25, 0.75, 0.25]
    tokens = scaled(candidate(*TOKENS), 4.0).level_configs()
    assert (tokens["slow"].lr_scale, tokens["reading"].lr_scale, tokens["reading"].eta) == (4.0, 1.0, 0.05)


def test_every_config_comes_back_from_a_file_as_it_is():
    for arm in fighting(candidate(*THREE)).values():
        config = scaled(arm.config, 2.0)
        again = from_dict(as_stored(config.to_dict()))
        assert as_stored(again.to_dict()) == as_stored(config.to_dict())


def test_what_depends_on_the_candidate_is_measured_on_it():
    """An MLP of 64-8-10 with a level for each layer; EWC keeps weights and importance of both experiences."""
    levels = "levels={fast: {params: rest, period_steps: 1}, slow: {params: ['head.*'], period_steps: 8}}"
    facts, stream = measure(compose(["model.hidden=[8]", "method=ewc", "prefix=2", "head.mask=seen", levels]))
    assert facts.parameters == {"fast": 64 * 8 + 8, "slow": 8 * 10 + 10}
    assert facts.bytes == {name: 4 * n for name, n in facts.parameters.items()}
    assert facts.method_bytes == 2 * 2 * sum(facts.bytes.values())
    assert len(stream.experiences) == facts.experiences == 2
    assert facts.sample_bytes == 64 * 4 + 8
    assert facts.flops == facts.bare_flops == 2 * (2 * 64 * 8 + 3 * 8 * 10)  # no gradient of the input


def test_where_no_flops_are_counted_an_ordinary_network_has_as_many_epochs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    config = candidate("stream=split_digits", "model={_target_: elementwise.Elementwise}")
    facts, _ = measure(config)
    assert facts.flops == facts.bare_flops == 0
    found = fighting(config, facts)
    assert {"ema-16", "lookahead-5", "replay", "reset", "joint"} <= set(found)
    assert {found[name].config.trainer.epochs for name in ("ema-16", "joint")} == {5}


@pytest.mark.parametrize("flops", [(0.0, 0.0), (100.0, 0.0), (0.0, 100.0)])
def test_with_levels_that_read_controls_at_equal_flops_are_left_out_where_none_are_counted(flops):
    size = {"fast": 700, "slow": 100}
    facts = replace(FACTS, parameters=size, bytes=size, flops=flops[0], bare_flops=flops[1])
    left_out = absent(candidate(*TOKENS), facts)
    assert "no FLOPs are counted" in left_out["one level, equal FLOPs"]
    assert {"eta_zero", "frozen", "reset"} <= set(fighting(candidate(*TOKENS), facts))


# -- counted -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One order of a tiny network with two slow levels of equal periods' ratio, and of its controls."""
    config = compose(
        [
            "stream=split_digits", "model.hidden=[16,16]", "prefix=2", "trainer.epochs=4", "trainer.batch_size=16",
            "trainer.threads=1", "trainer.progress=false", "trainer.allow_idle=true", "evaluate.parts=[validation]",
            "levels={fast: {params: rest, period_steps: 1}, mid: {params: ['layers.1.*'], period_steps: 2}, "
            "slow: {params: ['head.*'], period_steps: 8}}",
        ]
    )  # fmt: skip
    path = tmp_path_factory.mktemp("counted")
    facts, _ = measure(config)
    found = {}
    for arm in arms(config, facts)[0]:
        if arm.home not in found:
            (found[arm.home],) = run_trial(arm.config, path / arm.home, lambda *_: None).runs
    return found


def updates(summary: dict[str, Any]) -> dict[str, int]:
    return {lv["name"]: lv["parameters"] * lv["updates"] for lv in summary["levels"]}


def test_as_one_level_the_slow_ones_make_as_many_updates(counted: dict[str, dict[str, Any]]):
    ours, theirs = updates(counted["candidate"]), updates(counted["equal_updates"])
    assert theirs["fast"] == ours["fast"]
    assert theirs["slow"] == pytest.approx(ours["mid"] + ours["slow"], rel=0.1)  # the period is a whole number
    (slow,) = [lv for lv in counted["equal_updates"]["levels"] if lv["name"] == "slow"]
    steps = counted["candidate"]["cost"]["steps"]
    assert slow["updates"] == steps // slow["period"]


def test_same_drift_updates_at_every_step_and_frozen_and_reset_as_the_candidate(counted: dict[str, dict[str, Any]]):
    steps = counted["candidate"]["cost"]["steps"]
    assert all(lv["updates"] == steps for lv in counted["same_drift"]["levels"])
    assert updates(counted["reset"]) == updates(counted["frozen"]) == updates(counted["candidate"])
    rates = [lv["lr"] * lv["updates"] for lv in counted["candidate"]["levels"]]
    assert [lv["lr"] * lv["updates"] for lv in counted["same_drift"]["levels"]] == pytest.approx(rates, rel=0.1)


def test_all_train_at_equal_flops(counted: dict[str, dict[str, Any]]):
    flops = counted["candidate"]["cost"]["flops"]
    assert {name: s["cost"]["flops"] for name, s in counted.items()} == {
        name: pytest.approx(flops, rel=0.05) for name in counted
    }


def test_an_average_is_of_the_ordinary_network_and_a_head_of_the_candidate(counted: dict[str, dict[str, Any]]):
    assert updates(counted["ema"]) == updates(counted["one_level"])
    assert updates(counted["least_squares"]) == updates(counted["candidate"])
