"""A run that ended well and learned nothing, or that reading made worse, says so; so does one that cannot be meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reading_model import READING, config_dir

from nested.config import compose
from nested.levels import Level
from nested.remarks import MARGIN, after, before
from nested.result import Result
from nested.run import run
from nested.rundir import read_events

QUIET = ["tracking=off", "trainer.progress=false", "trainer.epochs=1"]
TEXT = [
    *QUIET, "stream=text", "stream.length=8", "stream.n_train=4", "stream.n_validation=2", "stream.n_test=2",
    "trainer.batch_size=4", "trainer.allow_idle=true", "optim.lr=0.01",
]  # fmt: skip
TTT_E2E = [
    "model=ttt_e2e", "model.width=16", "model.hidden=16", "model.depth=2", "model.mixer.window=8", "levels=reading",
    "levels.reading.chunk_tokens=4", "evaluate.parts=[test]",
]  # fmt: skip
DIVERGES = "learning while it reads makes it worse by more than 0.05 bits per byte: "
COLD = "the inner rate never reaches levels.reading.eta: "
FEWER = "the text has fewer sequences than asked for: "


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    (root / "one").mkdir()
    for i in range(6):
        (root / "one" / f"{i}.txt").write_text("a text of some words, again and again; " * 4)
    return root


def recorded(made: Result, seed: int = 0) -> list[str]:
    return [event["text"] for event in events(made, seed, "remark")]


def events(made: Result, seed: int, kind: str) -> list[dict]:
    return [event for event in read_events(made.path / f"seed-{seed}" / "events.jsonl") if event["event"] == kind]


@pytest.mark.parametrize(("rate", "said"), [(0.0, True), (0.1, False)])
def test_a_run_that_learned_nothing_says_so(rate: float, said: bool, tmp_path: Path) -> None:
    told: list[str] = []
    config = compose([*QUIET, "optim=sgd", f"optim.lr={rate}", "stream.scenario=domain", f"runs={tmp_path}"])
    found = run(config, say=told.append).runs[0]
    assert any("nothing was learned" in sentence for sentence in told) == said, found["learning_acc"]


def looped(regression: bool = False) -> SimpleNamespace:
    examples = type("Part", (), {"targets": torch.tensor([0, 0, 0, 1]), "__len__": lambda self: 4})()
    experience = SimpleNamespace(test=examples)
    stream = SimpleNamespace(experiences=[experience], regression=regression, per_position=regression, about={})
    learner = SimpleNamespace(reading=[Level("reading", ("*",), 4, "token", eta=1.0)], model=torch.nn.Linear(1, 1))
    return SimpleNamespace(stream=stream, judged="test", learner=learner, plan=SimpleNamespace(total_steps=2))


def test_the_bound_is_the_commonest_target() -> None:
    assert "a constant guess to 0.750" in after(looped(), {"learning_acc": 0.75, "acc": 0.75})[0]
    assert not after(looped(), {"learning_acc": 0.76, "acc": 0.76})


def test_reading_that_makes_it_worse_names_the_rate() -> None:
    worse = {"learning_acc": 3.0, "acc": 3.06, "frozen": 3.0}
    [said] = after(looped(regression=True), worse)
    assert said == DIVERGES + "3.060 bits per byte with updates and 3.000 without; lower levels.reading.eta"
    assert not after(looped(regression=True), {**worse, "acc": 3.04})


def test_a_rate_that_diverges_is_said_once_and_recorded_of_every_seed(texts: Path, tmp_path: Path) -> None:
    wild = ["model=bigram", READING.replace("eta: 1.0", "eta: 1000.0"), "seeds=2", "evaluate.parts=[test]"]
    told: list[str] = []
    config = compose([*TEXT, *wild, f"stream.path={texts}", f"runs={tmp_path}"], config_dir(tmp_path))
    made = run(config, say=told.append)
    assert made.status == "done"
    assert min(found["acc"] - found["frozen"] for found in made.runs) > 10 * MARGIN
    [first], [second] = recorded(made, 0), recorded(made, 1)
    assert [sentence.startswith(DIVERGES) for sentence in (first, second)] == [True, True]
    assert first != second
    assert first.endswith("; lower levels.reading.eta")
    assert [sentence for sentence in told if DIVERGES in sentence] == [f"seed 0: {first}"]
    assert f"seed 0 (and 1 more seed): {first}." in (made.path / "report.html").read_text()


def test_a_cold_inner_rate_and_too_little_text_are_said_before_training(texts: Path, tmp_path: Path) -> None:
    told: list[str] = []
    asked = ["stream.n_train=1000", "stream.n_test=900", "trainer.batch_size=64", "levels.reading.eta_warmup_steps=3"]
    made = run(compose([*TEXT, *TTT_E2E, *asked, f"stream.path={texts}", f"runs={tmp_path}"]), say=told.append)
    [held] = events(made, 0, "dataset")
    fewer = f"n_train=1000, and one has {held['n_train']}; n_test=900, and one has {held['n_test']}"
    cold = "it rises over 3 optimizer steps, and the last of this run's 2 takes 0.7 of it, but judging takes all"
    wanted = [
        f"{FEWER}{fewer}; give more text, or ask for fewer",
        f"{COLD}{cold}; lower levels.reading.eta_warmup_steps",
    ]
    assert recorded(made)[:2] == wanted
    assert told[:2] == [f"seed 0: {sentence}" for sentence in wanted]


def test_a_warm_up_that_ends_or_does_not_matter_is_not_remarked() -> None:
    loop, level = looped(), Level("reading", ("*",), 4, "token", eta=1.0, eta_warmup_steps=3)  # of 2 steps
    loop.learner.reading = [level]
    assert before(loop)[0].startswith(COLD)
    loop.learner.model.inner = "off"
    assert not before(loop)
    loop = looped()
    loop.learner.reading = [replace(level, eta_warmup_steps=2), replace(level, eta=0.0)]
    assert not before(loop)


def test_reading_that_changes_nothing_is_named() -> None:
    idle = {"learning_acc": 3.0, "acc": 3.00001, "frozen": 3.0}
    assert "changes nothing: 3.00001" in after(looped(regression=True), idle)[0]
    assert not after(looped(regression=True), {**idle, "acc": 2.9995})
    still = looped(regression=True)
    still.learner.reading = [replace(level, eta=0.0) for level in still.learner.reading]
    assert after(still, idle)[0].endswith("levels.reading.eta is 0, and a larger one learns")


def test_prime_mlps_in_which_nothing_learns_are_named() -> None:
    loop = looped(regression=True)
    loop.learner.model = torch.nn.ModuleDict({"prime": torch.nn.ModuleDict({"mlp": torch.nn.Linear(1, 1)})})
    loop.learner.model = torch.nn.ModuleDict({"block": loop.learner.model})
    assert not before(loop)
    loop.learner.reading = []
    assert "levels=reading" in before(loop)[0]
