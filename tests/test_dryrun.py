"""A dry run tells what the run then does, and leaves nothing behind."""

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from nested.config import Config, compose
from nested.dryrun import TIMED, DryRun, dry_run, layers, updates
from nested.dryrun_view import duration, si
from nested.errors import Diverged, UserError
from nested.learner import Learner
from nested.levels import Level
from nested.run import run
from nested.timeline import timeline, token_timelines

LEVELS = ["model=hope_attention", "levels=continuum", "levels.mid.period_steps=3", "levels.slow.period_steps=7"]


def config(tmp_path: Path, *overrides: str) -> Config:
    quick = ["tracking=off", "trainer.progress=false", "trainer.epochs=2", f"runs={tmp_path / 'runs'}"]
    return compose([*quick, *overrides])


def text(found: DryRun, width: int = 150) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(found)
    return console.export_text()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> DryRun:
    return dry_run(config(tmp_path_factory.mktemp("dry"), *LEVELS))


def test_samples_classes_and_steps(found: DryRun):
    assert (found.sample_shape, found.n_outputs, found.scenario) == ([1, 8, 8], 10, "class")
    assert sum(e["train"] + e["validation"] + e["test"] for e in found.experiences) == 1797
    assert sorted(c for e in found.experiences for c in e["classes"]) == list(range(10))
    assert [fit["steps"] for fit in found.fits] == [2 * -(-e["train"] // 32) for e in found.experiences]
    assert found.steps == sum(fit["steps"] for fit in found.fits)


def test_layers_and_levels_account_for_every_parameter(found: DryRun):
    total = 39_508
    assert sum(row["parameters"] for row in found.layers) == total
    assert sum(row["parameters"] for row in found.levels) == total
    assert sum(row["share"] for row in found.levels) == pytest.approx(1)
    assert found.layers[-1] == {"name": "head", "kind": "Linear", "shape": [32, 10], "calls": 1, "parameters": 490}
    slow = found.levels[2]
    assert (slow["name"], slow["period"], slow["globs"]) == ("slow", 7, ["*.continuum.2.*"])
    assert all(".continuum.2." in name for name in slow["names"])


def test_the_timeline_marks_every_tick(found: DryRun):
    assert found.timeline["mid"] == ("··█" * 22)[:64]
    assert found.timeline["slow"] == ("······█" * 10)[:64]
    assert found.timeline["fast"] == "█" * 64
    assert timeline(Level("x", "rest", 2), 5) == "·█·█·"


@pytest.mark.parametrize("border, method", [("carry", "replay"), ("flush", "naive"), ("drop", "ema")])
def test_it_foretells_what_the_run_does(tmp_path: Path, border: str, method: str, monkeypatch: pytest.MonkeyPatch):
    short = ["trainer.epochs=1", "trainer.allow_idle=true", f"trainer.at_border={border}", f"method={method}"]
    asked = config(tmp_path, *LEVELS, *short, "evaluate.anytime_steps=10", "evaluate.anytime_ticks=true")
    told = dry_run(asked)
    evaluated = []
    real = Learner.judge

    def counted(self, examples, batch_size, beside=True):
        evaluated.append(len(examples))
        return real(self, examples, batch_size, beside)

    monkeypatch.setattr(Learner, "judge", counted)
    summary = run(asked).runs[0]
    assert [row["updates"] for row in told.levels] == [row["updates"] for row in summary["levels"]]
    assert told.steps == summary["cost"]["steps"]
    assert told.flops == summary["cost"]["flops"] or (method == "replay" and told.flops < summary["cost"]["flops"])
    assert told.evaluated == sum(evaluated)


def test_one_fit_of_everything(tmp_path: Path):
    told = dry_run(config(tmp_path, "method=joint", "trainer.joint_epochs=3", "seeds=4", "evaluate.gain=true"))
    train = [e["train"] for e in told.experiences]
    assert [fit["steps"] for fit in told.fits] == [3 * -(-sum(train) // 32)]
    assert told.seconds == pytest.approx(4 * (told.train_seconds + told.eval_seconds + told.alone_seconds))
    assert told.alone_seconds > 0
    assert "4 seeds" in text(told)


@pytest.mark.parametrize("method", ["naive", "replay", "ewc", "ema"])
def test_every_method_takes_its_step(tmp_path: Path, method: str):
    assert dry_run(config(tmp_path, f"method={method}")).step_seconds > 0


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    dry_run(replace(config(tmp_path), tracking=compose([]).tracking, runs="runs"))
    assert list(tmp_path.iterdir()) == []


def test_levels_on_the_token_clock_are_told_apart(tmp_path: Path):
    small = ["model=causal_hope_attention", "model.depth=1", "levels=tokens", "levels.reading.chunk_tokens=3"]
    told = dry_run(config(tmp_path, *small))
    stream, (reading,) = told.levels[:2], told.levels[2:]
    assert sum(row["share"] for row in stream) == pytest.approx(1)
    assert [row["clock"] for row in told.levels] == ["stream", "stream", "token"]
    assert (reading["name"], reading["period"], reading["eta"], reading["updates"]) == ("reading", 3, 0.05, None)
    assert all(".continuum.0." in name for name in reading["names"])
    assert told.token_timeline == {"reading": "··█··█··█··█··█·"}  # 16 patches, the last without a label
    assert "reading" not in told.timeline
    assert "all 16 tokens of a sequence" in text(told)
    assert "reading  ··█··█··█··█··█·\n" in text(told)


def test_a_model_that_reads_in_chunks_shows_the_shapes_of_one_and_its_fast_weights(tmp_path: Path):
    told = dry_run(
        config(tmp_path, "stream=recall", "stream.n_train=320", "model=hope", "model.depth=1", "levels=tokens")
    )
    shapes = {row["name"]: (row["shape"], row["calls"]) for row in told.layers}
    calls = 7  # five chunks, the open one, and that again with its last token
    assert shapes["blocks.0.continuum.0.up"] == ([32, 4, 31], calls)
    assert shapes["blocks.0.memory"] == ([32, 4, 48], calls)
    assert shapes["head"] == ([32, 23, 40], 1)
    assert told.token_timeline == {"reading": "···█" * 5 + "···"}
    weights = {row["name"]: row["shape"] for row in told.fast_weights}
    assert len(weights) == 6
    assert weights["blocks.0.continuum.0.up.weight"] == [32, 31, 48]
    assert re.search(r"reading +blocks\.\*\.continuum\.0\.up\.weight +32 x 31 x 48 +1", text(told))


def test_resets_are_drawn_in_place_of_updates():
    quick = Level("quick", ("a",), 2, "token", eta=0.1, reset=True)
    slow = Level("slow", ("b",), 4, "token", eta=0.1)
    assert token_timelines([quick, slow], 9) == {"quick": "·█·↺·█·↺·", "slow": "···█···█·"}
    assert token_timelines([quick, slow], 8) == {"quick": "·█·↺·█··", "slow": "···█····"}  # no label for the eighth
    assert token_timelines([slow], 1000) == {"slow": "···█" * 16}
    assert token_timelines([slow], None) == {"slow": "···█···█·"}
    assert token_timelines([], 9) == {}


def test_long_sequences_say_how_much_of_them_is_drawn(found: DryRun):
    level = {**found.levels[0], "clock": "token", "name": "reading", "eta": 0.1}
    told = replace(found, levels=[*found.levels, level], tokens=1000, token_timeline={"reading": "···█" * 16})
    assert "the first 64 tokens of the 1000 of a sequence" in text(told)
    assert "initial state" not in text(told)
    assert "↺: back to the initial state" in text(replace(told, token_timeline={"reading": "·↺"}))


def test_it_can_be_shown_and_sent(found: DryRun):
    assert json.loads(json.dumps(found.as_dict()))["seconds"] == found.seconds
    said = text(found)
    assert "blocks.0.continuum.1.up" in said
    assert "32 x 16 x 31" in said
    assert "slow    ······█" in said
    assert "68.1%" in said


def test_long_streams_are_cut_short(tmp_path: Path):
    told = dry_run(config(tmp_path, "stream=permuted_digits", "stream.n_experiences=20"))
    said = text(told)
    assert "permutation 11" in said
    assert "permutation 12" not in said
    assert said.count("... and 8 more") == 2  # of the experiences and of the fits
    assert len(told.experiences) == 20


@pytest.mark.parametrize(
    "override, key",
    [
        (["levels.all.period_steps=60"], "levels.all.period_steps"),
        (["trainer.devices=2"], "trainer.devices"),
        (["levels.all.params=[nothing.*]"], "levels.all.params"),
        (["stream.n_experiences=3"], "stream.n_experiences"),
        (["optim={_target_: torch.optim.LBFGS}"], "optim._target_"),
        (["model={_target_: test_dryrun.few}"], "model._target_"),
    ],
)
def test_it_refuses_what_the_run_refuses(tmp_path: Path, override: list[str], key: str):
    with pytest.raises(UserError) as told:
        dry_run(config(tmp_path, *override))
    with pytest.raises(UserError) as later:
        run(config(tmp_path, *override))
    assert told.value.key == key
    assert str(told.value) == str(later.value)


def few(n_outputs: int) -> nn.Module:
    """A model with fewer outputs than the stream has classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, n_outputs - 7))


def test_a_model_with_too_few_outputs_is_told_how_many_are_wanted(tmp_path: Path):
    with pytest.raises(UserError) as error:
        dry_run(config(tmp_path, "model={_target_: test_dryrun.few}"))
    assert "the output of test_dryrun.few for (2, 1, 8, 8) is (2, 3)" in str(error.value)
    assert "3 outputs for the 10 of split_digits" in str(error.value)
    assert (error.value.seen, error.value.allowed) == ((2, 3), (2, 10))


def test_it_says_when_the_first_steps_already_diverge(tmp_path: Path):
    with pytest.raises(Diverged):
        dry_run(config(tmp_path, "optim.lr=1e30", "trainer.epochs=3", "method=joint"))


class Odd(nn.Module):
    """One part is called, one only lends its weight, one is never used; and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.zeros(5))
        self.called = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        self.lent = nn.Linear(3, 2, bias=False)
        self.unused = nn.Linear(7, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.called(x) @ self.lent.weight.T


def test_parameters_of_parts_that_are_not_called_count_for_the_one_around():
    model = Odd().train()
    rows = layers(model, torch.zeros(6, 4))
    assert rows == [
        {"name": "", "kind": "Odd", "shape": [6, 2], "calls": 1, "parameters": 5 + 6 + 8},
        {"name": "called.0", "kind": "Linear", "shape": [6, 3], "calls": 1, "parameters": 15},
        {"name": "called.1", "kind": "ReLU", "shape": [6, 3], "calls": 1, "parameters": 0},
    ]
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_a_long_step_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made, real = [], Learner.learn
    monkeypatch.setattr(Learner, "learn", lambda self, rows: made.append(len(rows)) or real(self, rows))
    for long, steps in ((math.inf, TIMED), (0.0, 1)):
        monkeypatch.setattr("nested.dryrun.LONG", long)
        made.clear()
        assert dry_run(config(tmp_path, "method=joint")).step_seconds > 0
        assert len(made) == steps
    made.clear()
    dry_run(config(tmp_path, "method=joint", "trainer.micro_batch=2"))
    assert made == [2]  # one part of it


def test_updates_by_hand():
    level = Level("x", "rest", 4)
    assert updates(level, 0, 10, flush=False) == 2  # at 4 and 8
    assert updates(level, 0, 10, flush=True) == 3  # and what 9 and 10 left
    assert updates(level, 10, 12, flush=True) == 1  # at 12, nothing left
    assert updates(level, 12, 12, flush=True) == 0


def test_numbers_for_people():
    assert [duration(s) for s in (0.123, 42, 200, 7500)] == ["0.12 s", "42 s", "3 min 20 s", "2 h 5 min"]
    assert [si(v) for v in (12, 1_010_000, 2.5e12)] == ["12 ", "1.01 M", "2.5 T"]
