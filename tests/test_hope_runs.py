"""HOPE and its baselines as a user runs them: every stream, levels on both clocks, stopped and continued."""

import json

import pytest
import torch

from nested.config import compose
from nested.errors import Interrupted, UserError
from nested.loop import Loop
from nested.result import Result
from nested.run import resume, run
from nested.rundir import SeedDir, all_runs

SMALL = ["stream.n_train=24", "stream.n_validation=4", "stream.n_test=8", "model.width=16", "model.depth=1",
         "trainer.epochs=1", "trainer.batch_size=8", "trainer.allow_idle=true", "trainer.progress=false",
         "tracking=off", "optim=adamw", "optim.lr=0.01", "model.n_levels=3", "model.hidden=32"]  # fmt: skip
STREAMS = {
    "recall": ["stream.n_experiences=2"],
    "mad": ["stream.tasks=[selective_copying,memorization]"],
    "formal_languages": ["stream.languages=[aa,anbn]", "stream.train_lengths=[2,8]", "stream.test_lengths=[9,12]"],
}
MODELS = [
    "hope",
    "causal_hope_attention",
    "causal_transformer",
    "delta_memory",
    "delta_net",
    "linear_attention",
    "lstm",
]


def config(tmp_path, *overrides: str, stream: str = "recall", model: str = "hope"):
    chosen = [f"stream={stream}", f"model={model}", *SMALL, *STREAMS[stream], f"runs={tmp_path / 'runs'}"]
    return compose([*chosen, *overrides])


def weights(result: Result) -> dict[str, torch.Tensor]:
    """The model as the last checkpoint has it."""
    state, _ = SeedDir(result.path / "seed-0").load_checkpoint()
    assert state is not None
    return state["model"]


@pytest.mark.parametrize("model", MODELS)
def test_every_memory_runs_with_levels_on_both_clocks(tmp_path, model):
    result = run(config(tmp_path, "levels=tokens", model=model))
    assert result.status == "done"
    assert result.matrix.shape == (2, 2)


@pytest.mark.parametrize("stream", STREAMS)
def test_hope_runs_on_every_stream_of_tokens(tmp_path, stream):
    assert run(config(tmp_path, "levels=tokens", stream=stream)).status == "done"


def test_hope_runs_on_patches(tmp_path):
    plain = [o for o in SMALL if not o.startswith("stream.")]
    digits = ["stream=split_digits", "model=hope", "levels=tokens", "model.patch=4", "levels.reading.chunk_tokens=1"]
    result = run(compose([*digits, *plain, "trainer.batch_size=64", f"runs={tmp_path / 'runs'}"]))
    assert result.matrix.shape == (5, 5)


@pytest.mark.parametrize("more", [["model.inner=truncated", "model.truncate=1"], ["model.inner=off"]])
def test_the_outer_gradient_may_end_sooner(tmp_path, more):
    assert run(config(tmp_path, "levels=tokens", *more)).status == "done"


@pytest.mark.parametrize("method", ["ewc", "replay", "ema", "joint"])
def test_every_method_goes_with_levels_on_both_clocks(tmp_path, method):
    assert run(config(tmp_path, "levels=tokens", f"method={method}")).status == "done"


def test_the_result_and_the_page_name_the_levels_of_both_clocks(tmp_path):
    result = run(config(tmp_path, "levels=tokens", model="lstm"))
    kept = json.loads((result.path / "result.json").read_text())["runs"][0]
    rows = {row["name"]: row for row in kept["levels"]}
    assert [(n, r["clock"], r["period"]) for n, r in rows.items()] == [
        ("fast", "stream", 1),
        ("slow", "stream", 8),
        ("reading", "token", 4),
    ]
    assert (rows["reading"]["eta"], rows["reading"]["updates"]) == (0.05, None)
    learned = sum(rows[n]["parameters"] * rows[n]["updates"] for n in ("fast", "slow"))
    assert kept["cost"]["parameter_updates"] == learned
    assert "4 tokens" in (result.path / "report.html").read_text()


def test_a_stopped_run_with_levels_on_both_clocks_ends_bit_for_bit_as_one_that_was_not(tmp_path, monkeypatch):
    asked = ["levels=tokens", "checkpoint.every_seconds=0", "method=replay"]
    whole = run(config(tmp_path / "whole", *asked))
    inner = Loop._after_block

    def after_block(self: Loop) -> None:
        self.stop = self.learner.step == 4
        inner(self)

    monkeypatch.setattr(Loop, "_after_block", after_block)
    with pytest.raises(Interrupted):
        run(config(tmp_path / "stopped", *asked))
    monkeypatch.undo()
    continued = resume(all_runs(tmp_path / "stopped" / "runs")[0])
    ours, theirs = weights(continued), weights(whole)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_that_diverges_within_its_sequences_keeps_what_it_has_and_names_the_level(tmp_path):
    wild = ["levels=tokens", "optim=sgd", "optim.lr=1e9", "optim.momentum=0", "stream.n_train=48"]
    result = run(config(tmp_path, *wild, model="causal_transformer"))
    assert result.status == "diverged"
    assert "level 'reading'" in result.problems[0]
    assert "experience 0, step" in result.problems[0]
    assert "levels.reading.eta" in result.problems[0]
    assert (result.path / "report.html").exists()


@pytest.mark.parametrize(
    ("model", "overrides", "key"),
    [
        ("delta_memory", ["model.memory.eta_max=1.5"], "model.memory.eta_max"),
        ("delta_memory", ["model.memory.anchor=25"], "model.memory.anchor"),
        ("hope", ["model.memory.eta_max=1"], "model.memory.eta_max"),
        ("hope", ["model.memory.chunk=25"], "model.memory.chunk"),
        ("hope", ["model.heads=3"], "model.heads"),
        ("hope", ["model.patch=2"], "model.patch"),
        ("hope", ["model.inner=truncated"], "model.truncate"),
        ("lstm", ["levels=tokens", "levels.reading.chunk_tokens=24"], "levels.reading.chunk_tokens"),
        ("lstm", ["levels=tokens", "levels.reading.params=['*.mlp.*']"], "levels.reading.params"),
    ],
)
def test_what_is_refused_has_the_key_that_was_written_and_leaves_no_run(tmp_path, model, overrides, key):
    with pytest.raises(UserError) as caught:
        run(config(tmp_path, *overrides, model=model))
    assert caught.value.key == key
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_key_of_the_memory_is_found_where_it_is():
    with pytest.raises(UserError, match=r"did you mean 'model\.memory\.eta_max'"):
        compose(["model=delta_memory", "model.eta_max=1"])
