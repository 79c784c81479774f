"""A run that ended well and learned nothing, or that reading made worse, says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nested.config import compose
from nested.remarks import remarks
from nested.run import run

QUIET = ["tracking=off", "trainer.progress=false", "trainer.epochs=1"]


@pytest.mark.parametrize(("rate", "said"), [(0.0, True), (0.1, False)])
def test_a_run_that_learned_nothing_says_so(rate: float, said: bool, tmp_path: Path) -> None:
    told: list[str] = []
    config = compose([*QUIET, "optim=sgd", f"optim.lr={rate}", "stream.scenario=domain", f"runs={tmp_path}"])
    found = run(config, say=told.append).runs[0]
    assert any("nothing was learned" in sentence for sentence in told) == said, found["learning_acc"]


def looped(regression: bool = False) -> SimpleNamespace:
    examples = type("Part", (), {"targets": torch.tensor([0, 0, 0, 1]), "__len__": lambda self: 4})()
    experience = SimpleNamespace(test=examples)
    stream = SimpleNamespace(experiences=[experience], regression=regression, per_position=regression)
    level = SimpleNamespace(name="reading")
    learner = SimpleNamespace(reading=[level], model=torch.nn.Linear(1, 1))
    return SimpleNamespace(stream=stream, judged="test", learner=learner)


def test_the_bound_is_the_commonest_target() -> None:
    assert "a constant guess to 0.750" in remarks(looped(), {"learning_acc": 0.75, "acc": 0.75})[0]
    assert not remarks(looped(), {"learning_acc": 0.76, "acc": 0.76})


def test_reading_that_makes_it_worse_names_the_rate() -> None:
    worse = {"learning_acc": 3.0, "acc": 3.06, "frozen": 3.0}
    assert "lower levels.reading.eta" in remarks(looped(regression=True), worse)[0]
    assert not remarks(looped(regression=True), {**worse, "acc": 3.04})


def test_reading_that_changes_nothing_is_named() -> None:
    idle = {"learning_acc": 3.0, "acc": 3.00001, "frozen": 3.0}
    assert "changes nothing: 3.00001" in remarks(looped(regression=True), idle)[0]
    assert not remarks(looped(regression=True), {**idle, "acc": 2.9995})


def test_prime_mlps_in_which_nothing_learns_are_named() -> None:
    loop = looped(regression=True)
    loop.learner.model = torch.nn.ModuleDict({"prime": torch.nn.ModuleDict({"mlp": torch.nn.Linear(1, 1)})})
    loop.learner.model = torch.nn.ModuleDict({"block": loop.learner.model})
    none = {"learning_acc": 3.0, "acc": 3.0}
    assert not remarks(loop, none)
    loop.learner.reading = []
    assert "levels=reading" in remarks(loop, none)[0]
