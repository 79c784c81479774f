"""One run as a function: Config -> Result."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nested_kernels import backend
from nested_kernels.delta_rule import op
from small_run import small_learner

from nested import rundir
from nested.config import compose
from nested.dryrun import dry_run
from nested.errors import Diverged, NestedError, UserError
from nested.evaluation import evaluate
from nested.export import export
from nested.judging import Judged
from nested.learner import Learner
from nested.levels import Level
from nested.microscope.examine import examine
from nested.models.mlp import MLP
from nested.plan import order
from nested.result import Result
from nested.run import resume, run
from nested.streams.stream import Examples

Go = Callable[..., Result]


@pytest.fixture
def go(tmp_path: Path) -> Go:
    """Run a small configuration: two passes over split digits, with SGD, unless told otherwise."""

    def call(*overrides: str) -> Result:
        base = ["optim=sgd", "trainer.epochs=2", "trainer.progress=false", "tracking=off", f"runs={tmp_path / 'runs'}"]
        return run(compose([*base, *overrides]))

    return call


def final_weights(result: Result) -> dict[str, torch.Tensor]:
    state, _ = rundir.SeedDir(next(result.path.glob("seed-*"))).load_checkpoint()
    assert state is not None
    return state["model"]


def same(a: Result, b: Result) -> bool:
    one, two = final_weights(a), final_weights(b)
    return np.array_equal(a.matrix, b.matrix) and all(torch.equal(one[k], two[k]) for k in one)


def test_a_run_gives_the_matrix_and_what_is_read_off_it(go: Go) -> None:
    result = go()
    assert result.status == "done"
    assert result.matrix.shape == (5, 5)
    assert result.matrix.dtype == np.float64
    assert result.initial.shape == (5,)
    r, summary = result.matrix, result.runs[0]
    assert summary["acc"] == pytest.approx(r[-1].mean())
    assert summary["learning_acc"] == pytest.approx(np.diag(r).mean())
    assert summary["forgetting"] == pytest.approx((r[:-1, :-1].max(0) - r[-1, :-1]).mean())
    assert summary["bwt"] == pytest.approx((r[-1, :-1] - np.diag(r)[:-1]).mean())
    assert summary["fwt"] == pytest.approx((np.diag(r, 1) - result.initial[1:]).mean())
    assert summary["learning_acc"] > 0.9  # it learns
    assert summary["forgetting"] > 0.8  # and, class-incrementally and naively, forgets
    stored = rundir.read_json(result.path / "seed-0" / "matrix.json")["views"]["model"]["test"]
    assert all(isinstance(v, int) for row in stored["sum"] for v in row)
    np.testing.assert_array_equal(np.array(stored["sum"])[1:] / np.array(stored["count"])[1:], r)
    assert (
        summary["levels"][0]["updates"]
        == summary["cost"]["steps"]
        == 2 * sum(math.ceil(n / 32) for n in train_sizes(result))
    )
    assert (result.path / "report.html").stat().st_size > 1000


def train_sizes(result: Result) -> list[int]:
    events = rundir.read_events(result.path / "seed-0" / "events.jsonl")
    return [e["n_train"] for e in events if e["event"] == "dataset"]


def test_equal_seeds_are_equal_runs_and_other_seeds_are_not(go: Go) -> None:
    assert same(go("seed=1"), go("seed=1"))
    assert not same(go("seed=1"), go("seed=2"))


def test_blocks_of_mini_batches_change_no_bit(go: Go) -> None:
    assert same(go(), go("trainer.batches_per_block=7"))


def test_the_order_of_samples_depends_on_seed_experience_and_epoch_alone() -> None:
    assert torch.equal(order(0, 1, 2, 50), order(0, 1, 2, 50))
    others = [order(1, 1, 2, 50), order(0, 2, 2, 50), order(0, 1, 3, 50)]
    assert all(not torch.equal(order(0, 1, 2, 50), o) for o in others)
    assert sorted(order(0, 1, 2, 50).tolist()) == list(range(50))


def test_methods_see_the_same_stream_and_the_same_initial_weights(go: Go) -> None:
    naive, replay = go(), go("method=replay")
    assert np.array_equal(naive.initial, replay.initial)
    assert np.array_equal(naive.matrix[0], replay.matrix[0])  # nothing to replay yet
    assert not np.array_equal(naive.matrix[-1], replay.matrix[-1])


def test_stream_seed_fixes_the_order_of_classes_alone(go: Go) -> None:
    a, b = go("seed=1", "stream.seed=9"), go("seed=2", "stream.seed=9")
    assert a.runs[0]["experiences"] == b.runs[0]["experiences"]
    assert not same(a, b)


def test_joint_has_one_row_and_no_forgetting(go: Go) -> None:
    result = go("method=joint", "trainer.joint_epochs=10")
    assert np.array_equal(result.matrix, np.tile(result.matrix[0], (5, 1)))
    summary = result.runs[0]
    assert summary["forgetting"] is summary["bwt"] is summary["fwt"] is None
    assert summary["acc"] > 0.9
    assert summary["cost"]["steps"] == 10 * math.ceil(sum(train_sizes(result)) / 32)


def test_several_seeds_have_a_mean_and_an_interval(go: Go) -> None:
    result = go("seeds=3")
    accs = [r["acc"] for r in result.runs]
    assert [r["seed"] for r in result.runs] == [0, 1, 2]
    assert result.mean["acc"] == pytest.approx(np.mean(accs))
    assert result.ci95["acc"] == pytest.approx(4.302652729911275 * np.std(accs, ddof=1) / 3**0.5)
    assert set(result.as_json()) >= {"runs", "mean", "ci95"}


def test_gain_compares_with_each_experience_alone(go: Go) -> None:
    result = go("evaluate.gain=true")
    alone = rundir.read_json(result.path / "seed-0" / "matrix.json")["standalone"]
    assert len(alone) == 5
    assert alone[0] == result.matrix[0, 0]  # the first experience has nothing before it
    assert result.runs[0]["gain"] == pytest.approx(np.mean(np.diag(result.matrix) - alone))


def test_anytime_evaluations_change_nothing_and_frame_each_tick(go: Go) -> None:
    slow = ["levels.slow={params: ['*.bias'], period_steps: 4}"]
    plain, watched = go(*slow), go(*slow, "evaluate.anytime_ticks=true", "evaluate.anytime_steps=5")
    assert same(plain, watched)
    anytime = rundir.read_json(watched.path / "seed-0" / "matrix.json")["anytime"]
    moments = list(zip(anytime["moment"], anytime["step"], strict=True))
    steps = watched.runs[0]["cost"]["steps"]
    assert [s for m, s in moments if m == "after:slow"] == list(range(4, steps + 1, 4))
    assert [s for m, s in moments if m == "before:slow"] == list(range(3, steps, 4))
    assert [s for m, s in moments if m == "step"] == list(range(5, steps + 1, 5))
    borders = [a for m, a in zip(anytime["moment"], anytime["accuracy"], strict=True) if m == "border"]
    np.testing.assert_allclose(np.array(borders), np.vstack([watched.initial, watched.matrix]))
    assert watched.runs[0]["min_acc"] is not None


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_other_precisions_learn_too(go: Go, precision: str) -> None:
    result = go(f"trainer.precision={precision}")
    assert result.runs[0]["learning_acc"] > 0.9
    wanted = torch.float64 if precision == "64-true" else torch.float32
    assert all(w.dtype is wanted for w in final_weights(result).values())


def test_masks_let_only_some_classes_compete(go: Go) -> None:
    free, seen, own = go(), go("head.mask=seen"), go("head.mask=experience")
    assert own.runs[0]["forgetting"] < free.runs[0]["forgetting"]
    assert seen.matrix[0, 0] >= free.matrix[0, 0]
    assert not np.triu(seen.matrix, 1).any()  # a class not yet met cannot be answered
    joint = go("head.mask=seen", "method=joint")
    assert joint.matrix.min() > 0.5  # all classes are met at once
    with_task = go("stream.scenario=task")
    assert with_task.runs[0]["acc"] > free.runs[0]["acc"] + 0.3


def test_regression_is_judged_by_a_loss_with_the_right_signs(go: Go, tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    x = g.normal(size=(400, 6)).astype(np.float32)
    task = np.repeat([0, 1], 200)
    y = np.where(task == 0, x[:, 0], -x[:, 0]).astype(np.float32)[
        :, None
    ]  # what is learned second contradicts the first
    np.savez(tmp_path / "mine.npz", x=x, y=y, task=task)
    result = go("stream=tensors", f"stream.path={tmp_path / 'mine.npz'}", "trainer.epochs=20")
    summary = result.runs[0]
    assert summary["lower_is_better"]
    r = result.matrix
    assert summary["forgetting"] == pytest.approx(r[1, 0] - r[0, 0])
    assert summary["forgetting"] > 0.5
    assert r[0, 0] < 0.3


@pytest.mark.parametrize("model", ["transformer", "hope_attention"])
def test_the_default_optimizer_learns(model: str, tmp_path: Path) -> None:
    """SGD at 0.05 does not, with these two: it stays where a constant guess is."""
    quiet = ["trainer.progress=false", "tracking=off", f"runs={tmp_path}"]
    result = run(compose([f"model={model}", "prefix=1", *quiet]))
    assert result.runs[0]["learning_acc"] > 0.9


def test_a_seed_that_diverges_names_level_and_step_and_keeps_what_it_has(go: Go) -> None:
    result = go("optim.lr=1e12", "optim.momentum=0")
    assert result.status == "diverged"
    assert "level 'all'" in result.problems[0]
    assert "step" in result.problems[0]
    stored = rundir.read_json(result.path / "seed-0" / "matrix.json")["views"]["model"]["test"]
    assert sum(stored["count"][0]) > 0  # the row before training
    assert result.runs[0]["acc"] is None
    assert (result.path / "result.json").exists()
    assert (result.path / "report.html").exists()


def test_a_diverged_seed_does_not_stop_the_others(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, learners = Learner.learn, []

    def learn(self: Learner, rows: torch.Tensor) -> None:
        learners.append(self)
        if self is learners[0] and self.step == 20:
            raise Diverged("planted")
        inner(self, rows)

    monkeypatch.setattr(Learner, "learn", learn)
    result = go("seeds=2")
    assert [r["status"] for r in result.runs] == ["diverged", "done"]
    assert result.mean["acc"] == result.runs[1]["acc"]


def test_weights_that_are_lost_in_the_last_step_are_noticed(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Learner.learn

    def learn(self: Learner, rows: torch.Tensor) -> None:
        inner(self, rows)
        if self.step == 17:
            next(iter(self.model.parameters())).data.fill_(math.nan)

    monkeypatch.setattr(Learner, "learn", learn)
    result = go("stream.n_experiences=5", "trainer.epochs=1", "method=joint", "trainer.batch_size=80")
    assert result.runs[0]["cost"]["steps"] == 17
    assert result.status == "diverged"
    assert "experience 0, step 17: outputs are NaN in evaluation" in result.problems[0]


def test_a_finished_run_is_not_trained_again(go: Go) -> None:
    result = go()
    before = (result.path / "seed-0" / "summary.json").read_bytes()
    again = resume(result.path)
    assert again.status == "done"
    assert (result.path / "seed-0" / "summary.json").read_bytes() == before


def test_a_resume_on_other_data_is_refused(go: Go, tmp_path: Path) -> None:
    def save(n: int) -> None:
        x = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
        np.savez(tmp_path / "mine.npz", x=x, y=np.arange(n) % 4)

    save(400)
    result = go("stream=tensors", f"stream.path={tmp_path / 'mine.npz'}")
    save(800)
    (result.path / "seed-0" / "summary.json").unlink()  # as if it had been killed just before its end
    with pytest.raises(UserError, match="not those it was begun with"):
        resume(result.path)


def test_flops_count_what_a_method_adds(go: Go) -> None:
    naive, replay = go().runs[0]["cost"], go("method=replay").runs[0]["cost"]
    assert naive["examples"] == 2 * sum(train_sizes(go()))
    assert replay["steps"] == naive["steps"]
    assert replay["examples"] > 1.5 * naive["examples"]
    assert replay["flops"] == pytest.approx(naive["flops"] * replay["examples"] / naive["examples"])


def test_what_is_judged_on_validation_data_never_sees_the_test_part(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, seen = Learner.judge, []

    def judge(self: Learner, examples: Examples, size: int, beside: bool = True) -> Judged:
        seen.append(examples)
        return inner(self, examples, size, beside)

    monkeypatch.setattr(Learner, "judge", judge)
    result = go("evaluate.parts=[validation]", "evaluate.anytime_steps=20", "evaluate.gain=true", "trainer.epochs=1")
    held = {e["n_validation"] for e in rundir.read_events(result.path / "seed-0" / "events.jsonl") if "n_test" in e}
    assert {len(examples) for examples in seen} == held
    assert result.runs[0]["judged_on"] == "validation"


def test_a_flushed_level_has_a_rate_before_its_first_tick(go: Go) -> None:
    slow = ["levels.slow={params: ['*.bias'], period_steps: 100}", "trainer.allow_idle=true", "trainer.at_border=flush"]
    result = go(*slow, "schedule.shape=linear", "schedule.scope=experience")
    assert result.status == "done"
    assert {level["name"]: level["updates"] for level in result.runs[0]["levels"]}["slow"] == 5


def test_threads_are_as_before_afterwards(go: Go) -> None:
    before = torch.get_num_threads()
    result = go(f"trainer.threads={before + 1}", "trainer.epochs=1")
    assert rundir.read_json(result.path / "seed-0" / "environment.json")["threads"] == before + 1
    assert torch.get_num_threads() == before


READS = ("model=delta_net", "model.depth=1", "model.width=16", "prefix=2", "trainer.epochs=1", "trainer.batch_size=128")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The forms of the delta rule that are taken from here on."""
    names: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        form = getattr(op, name)
        return lambda *given, **more: (names.append(name.rpartition("_")[2]), form(*given, **more))[1]

    for name in ("delta_rule_reference", "delta_rule_chunked"):
        monkeypatch.setattr(op, name, counted(name))
    return names


def test_a_run_takes_the_form_of_the_kernels_that_its_config_names(go: Go, taken, monkeypatch, caplog) -> None:
    monkeypatch.setattr(backend, "_say", backend._say.__wrapped__)
    results = {}
    for word, form in (("reference", "reference"), ("chunked", "chunked"), ("triton", "chunked")):
        results[word] = go(*READS, "trainer.allow_idle=true", f"trainer.kernels={word}")
        assert set(taken) == {form}
        taken.clear()
        assert any("cpu" in r.getMessage() for r in caplog.records) == (word == "triton")
    assert np.allclose(results["reference"].matrix, results["chunked"].matrix)
    reference, chunked = (final_weights(results[word]) for word in ("reference", "chunked"))
    assert all(torch.allclose(reference[k], chunked[k], atol=1e-4) for k in reference)
    assert same(results["chunked"], results["triton"])
    assert not same(results["reference"], results["chunked"])  # or nothing here could be told apart


def test_what_looks_at_a_run_takes_its_form_of_the_kernels_too(go: Go, taken: list[str], tmp_path: Path) -> None:
    asked = ("trainer.allow_idle=true", "trainer.kernels=reference", "evaluate.snapshots=true")
    result = go(*READS, *asked)
    exported = export(result.path, to=tmp_path / "exported")
    for look in (
        lambda: dry_run(compose(["optim=sgd", *READS, *asked, "tracking=off"])),
        lambda: evaluate(exported),
        lambda: examine(result.path),
    ):
        taken.clear()
        look()
        assert set(taken) == {"reference"}


def test_a_resume_with_another_config_shows_the_difference(go: Go) -> None:
    result = go()
    with pytest.raises(UserError, match=r"differs: optim\.lr: recorded 0\.05, now 0\.5\. Resume"):
        resume(result.path, overrides=["optim.lr=0.5", "checkpoint.every_seconds=1"])


def test_a_full_disk_in_the_middle_loses_nothing(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    whole = go("checkpoint.every_seconds=0")
    inner, calls = rundir.write_atomic, []

    def full(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) > 40:
            with rundir.said(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        inner(path, data)

    monkeypatch.setattr(rundir, "write_atomic", full)
    with pytest.raises(NestedError, match="nested resume"):
        go("checkpoint.every_seconds=0")
    monkeypatch.undo()
    stopped = next(p for p in rundir.all_runs(tmp_path / "runs") if p != whole.path)
    assert same(resume(stopped), whole)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.devices=2", "more than one device"),
        ("trainer.accelerator=gpu", "no CUDA device"),
        ("evaluate.parts=[]", "evaluate.parts"),
        ("head.mask=seen; stream.scenario=domain", "class scenario only"),
        (
            "levels.t={params: ['head.*'], chunk_tokens: 4, eta: 0.1}",
            "levels.t.chunk_tokens: .*no level on the token clock",
        ),
        ("levels.all.period_steps=50", "fewer than 10"),
        ("levels.slow={params: ['hed.*'], period_steps: 2}", "matches no parameter"),
        ("stream.n_experiences=3", "divide"),
        ("stream.n_experiences=20", "classes"),
    ],
)
def test_what_cannot_work_is_refused_before_training(go: Go, override: str, words: str) -> None:
    if override.startswith("trainer.accelerator") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(UserError, match=words):
        go(*override.split("; "))


class Reading(MLP):
    """A model that names `token_levels`, and keeps them."""

    def __init__(self, sample_shape: tuple[int, ...], n_outputs: int, token_levels: tuple[Level, ...] = ()):
        super().__init__(sample_shape, n_outputs, ())
        self.token_levels = token_levels


def test_token_levels_reach_a_model_that_names_them_fastest_first_and_beside_the_stream_levels() -> None:
    slow = "levels.slow={params: [head.bias], chunk_tokens: 8, eta: 0.1}"
    fast = "levels.fast={params: [head.weight], chunk_tokens: 4, eta: 0.2, reset: true}"
    learner = small_learner("model={_target_: test_run.Reading}", slow, fast)
    assert isinstance(learner.model, Reading)
    assert [(lv.name, lv.period, lv.eta, lv.reset) for lv in learner.model.token_levels] == [
        ("fast", 4, 0.2, True),
        ("slow", 8, 0.1, False),
    ]
    assert [lv.name for lv in learner.optimizer.levels] == ["all"]
    with pytest.raises(UserError, match=r"levels\.slow\.chunk_tokens: .*multiple of 4"):
        small_learner("model={_target_: test_run.Reading}", slow.replace("8", "6"), fast)
    with pytest.raises(UserError, match=r"model\.token_levels"):
        small_learner("model={_target_: test_run.Reading, token_levels: []}", fast)
