"""Runs on streams of tokens: what the learner makes of them, with every method, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_run import begin, end, train
from token_model import TokenGRU, config_dir

from nested.config import Config, compose
from nested.dryrun import dry_run
from nested.errors import Interrupted, UserError
from nested.learner import Learner
from nested.loop import Loop
from nested.metrics import acc
from nested.report import load
from nested.run import prepare, resume, run
from nested.rundir import all_runs, read_events, read_json
from nested.sequences.exact_match import IGNORED
from nested.streams.arrange import by_task
from nested.streams.stream import Source

SMALL = ["stream.n_train=48", "stream.n_validation=8", "stream.n_test=16"]
STREAMS = {
    "formal_languages": ["stream.languages=[parity,anbn]", "stream.train_lengths=[2,9]", "stream.test_lengths=[10,13]"],
    "mad": ["stream.tasks=[compression,memorization]", "stream.memory_tokens=16"],
    "recall": ["stream.n_experiences=2", "stream.length=12", "stream.pairs=2"],
}
QUICK = [
    "model=token_gru",
    "trainer.progress=false",
    "tracking=off",
    "trainer.epochs=2",
    "trainer.batch_size=8",
    "optim=adamw",
]


def config(tmp_path: Path, stream: str, *overrides: str) -> Config:
    every = [f"stream={stream}", *SMALL, *STREAMS[stream], *QUICK, f"runs={tmp_path / 'runs'}", *overrides]
    return compose(every, config_dir(tmp_path))


def learner(tmp_path: Path, stream: str = "formal_languages", *overrides: str) -> Learner:
    return prepare(config(tmp_path, stream, *overrides), 0)


# -- one step and one evaluation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_tokens_stay_integers_and_outputs_have_the_precision(tmp_path, precision):
    made = learner(tmp_path, "mad", f"trainer.precision={precision}")
    x, y, _ = made.fetch(made.examples, torch.arange(4))
    assert x.dtype == y.dtype == torch.int64
    out = made.logits(x, torch.zeros(4, dtype=torch.int64), training=True)
    assert out.shape == (*y.shape, made.stream.n_outputs)
    assert out.dtype is {"32-true": torch.float32, "64-true": torch.float64, "bf16-mixed": torch.bfloat16}[precision]
    loss = made.loss(made.fetch(made.examples, torch.arange(4)))
    assert loss.dtype is (torch.float64 if precision == "64-true" else torch.float32)


def test_the_loss_is_the_mean_over_judged_positions(tmp_path):
    made = learner(tmp_path, "formal_languages", "trainer.precision=64-true")
    batch = made.fetch(made.examples, torch.arange(5))
    p = made.model(batch.x).log_softmax(-1)
    judged = [(b, t) for b in range(5) for t in range(batch.y.shape[1]) if batch.y[b, t] != IGNORED]
    by_hand = -torch.stack([p[b, t, batch.y[b, t]] for b, t in judged]).mean()
    assert 5 < len(judged) < batch.y.numel()
    torch.testing.assert_close(made.loss(batch), by_hand, rtol=1e-12, atol=0)


def test_what_is_not_judged_has_no_gradient(tmp_path):
    made = learner(tmp_path, "recall")
    batch = made.fetch(made.examples, torch.arange(5))
    out = made.model(batch.x)
    out.retain_grad()
    F.cross_entropy(out.flatten(0, 1), batch.y.flatten()).backward()
    assert out.grad is not None
    assert torch.equal(out.grad.abs().sum(-1) > 0, batch.y != IGNORED)


class Table(torch.nn.Module):
    """Answers position by position, by a table of tokens."""

    def __init__(self, answers: list[int]):
        super().__init__()
        self.answers = torch.nn.Parameter(F.one_hot(torch.tensor(answers), 3).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answers[x]


def test_a_sequence_is_one_answer_right_only_where_all_of_it_is(tmp_path):
    made = learner(tmp_path)
    x = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 2], [2, 2, 2]])
    y = torch.tensor([[0, 1, 2], [0, 1, 0], [0, IGNORED, IGNORED], [IGNORED, 2, 2]])
    made.stream = by_task(
        Source("mine", x, y, torch.tensor([3]), torch.tensor([2]), torch.zeros(4).long(), vocabulary=3)
    )
    made.model = Table([0, 1, 2])
    (experience,) = made.stream.experiences
    assert made.evaluate(experience.train, 10) == (1, 2)
    assert made.judge(experience.train, 1) == (1, 2, {"/positions": (5, 6)})
    assert made.judge(experience.test, 1).beside == {"/positions": (2, 2)}  # of three
    assert made.evaluate(experience.validation, 10) == (1, 1)
    assert made.evaluate(experience.test, 1) == (1, 1)
    made.model = Table([0, 0, 2])
    assert made.judge(experience.train, 10) == made.judge(experience.train, 1) == (0, 2, {"/positions": (3, 6)})
    assert made.evaluate(experience.train, 1) == (0, 2)
    assert made.evaluate(experience.validation, 10) == (1, 1)


@pytest.mark.parametrize(
    ("overrides", "training", "told"),
    [
        (["stream.scenario=task"], False, lambda task: {8 * task + k for k in range(8)}),
        (["head.mask=experience"], True, lambda task: {8 * task + k for k in range(8)}),
        (["head.mask=seen"], False, lambda _: set(range(8))),
        (["head.mask=none"], False, lambda _: set(range(16))),
    ],
)
def test_masks_hold_at_every_position(tmp_path, overrides, training, told):
    made = learner(tmp_path, "recall", *overrides)
    made.cursor.experience = 0
    task = torch.tensor([0, 1])
    x = torch.randint(made.stream.vocabulary or 0, (2, 7))
    out = made.logits(x, task, training)
    for row, k in zip(out, task.tolist(), strict=True):
        for position in row:
            assert set(position.isfinite().nonzero().flatten().tolist()) == told(k)


def test_labels_of_whole_sequences_are_judged_as_ever(tmp_path):
    made = learner(tmp_path)
    x, y = torch.tensor([[0, 1], [1, 1], [2, 0], [0, 0]]), torch.tensor([0, 1, 0, 1])
    source = Source("mine", x, y, torch.tensor([1]), torch.tensor([2]), torch.zeros(4).long(), vocabulary=3)
    made.stream = stream = by_task(source)
    made.model = TokenGRU(3, 2, stream.per_position)
    assert not stream.per_position
    assert made.fetch(stream.train, torch.arange(2)).x.dtype is torch.int64
    assert made.judge(stream.experiences[0].train, 5)[1:] == (2, {})
    assert made.loss(made.fetch(stream.train, torch.arange(2))).shape == ()


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", STREAMS)
def test_a_run_ends_with_a_matrix_of_whole_sequences_and_a_page(tmp_path, stream):
    result = run(config(tmp_path, stream))
    assert result.status == "done"
    assert result.matrix.shape == (2, 2)
    assert acc(result.matrix) == result.runs[0]["acc"]
    assert (result.matrix * 16 == (result.matrix * 16).round()).all()  # of 16 test sequences
    assert "exact match" in (result.path / "report.html").read_text()


def test_right_positions_are_recorded_beside_whole_sequences_and_told_as_metrics(tmp_path):
    result = run(config(tmp_path, "recall"))
    seed = result.path / "seed-0"
    stored = read_json(seed / "matrix.json")["views"]["model"]
    assert set(stored) == {"test", "test/positions", "validation", "validation/positions"}
    fine = stored["test/positions"]
    assert fine["count"] == [[32, 32]] * 3  # 16 sequences of 2 questions
    right = np.array(fine["sum"]) / 32
    assert right.max() > 0
    assert result.runs[0]["positions"] == result.mean["positions"] == right[-1].mean()
    rows = [e for e in read_events(seed / "events.jsonl") if e["event"] == "row" and e["part"] == "test/positions"]
    assert [e["sum"] for e in rows] == fine["sum"]
    told = [e for e in read_events(seed / "events.jsonl") if e["event"] == "metrics"]
    means = [e["values"]["experience/test/positions/mean"] for e in told if "experience/test/mean" in e["values"]]
    assert means == right.mean(1).tolist()
    assert np.array_equal(load(result.path).positions[0], right)


def test_a_language_is_learned_to_the_last_position_and_forgotten(tmp_path):
    more = ["stream.languages=[aa,anbn]", "stream.train_lengths=[2,8]", "stream.test_lengths=[2,8]", "optim.lr=0.01"]
    result = run(config(tmp_path, "formal_languages", *more, "stream.n_train=96", "trainer.epochs=12"))
    assert result.initial.max() == 0
    assert result.matrix.diagonal().min() > 0.9
    assert result.runs[0]["forgetting"] is not None


@pytest.mark.parametrize("method", ["replay", "ewc", "joint", "ema"])
def test_every_method_takes_sequences(tmp_path, method):
    result = run(config(tmp_path, "formal_languages", f"method={method}", "trainer.epochs=1"))
    assert result.status == "done"


def test_replay_joins_old_sequences_of_the_same_width(tmp_path):
    made = learner(tmp_path, "formal_languages", "method=replay")
    begin(made, 0)
    train(made, torch.arange(48).split(16))
    end(made, 0)
    begin(made, 1)
    batch = made.method.batch(made, made.fetch(made.examples, torch.arange(6)))
    assert batch.x.shape == batch.y.shape == (12, 10)
    assert batch.task.tolist() == [1] * 6 + [0] * 6
    assert (batch.x[:, 0] == batch.x[0, 0]).tolist() == [True] * 6 + [False] * 6


def test_importance_is_the_squared_gradient_of_each_sequence(tmp_path):
    made = learner(tmp_path, "recall", "method=ewc", "stream.n_train=4", "trainer.precision=64-true")
    begin(made, 0)
    end(made, 0)
    expected = torch.zeros_like(made.model.head.weight)
    for row in range(4):
        x, y, _ = made.fetch(made.examples, torch.tensor([row]))
        loss = F.cross_entropy(made.model(x)[0], y[0])
        expected += torch.autograd.grad(loss, made.model.head.weight)[0] ** 2 / 4
    torch.testing.assert_close(made.method.importances[0]["head.weight"], expected, rtol=1e-10, atol=0)


def test_a_stopped_run_on_tokens_continues_to_the_same_end(tmp_path, monkeypatch):
    whole = run(config(tmp_path, "mad"))
    inner = Loop._after_block

    def after_block(self: Loop) -> None:
        self.stop = self.learner.step == 15
        inner(self)

    monkeypatch.setattr(Loop, "_after_block", after_block)
    with pytest.raises(Interrupted):
        run(config(tmp_path / "again", "mad"))
    monkeypatch.undo()
    (left,) = all_runs(tmp_path / "again" / "runs")
    continued = resume(left, config_dir=config_dir(tmp_path / "again"))
    assert (continued.matrix == whole.matrix).all()
    assert continued.runs[0]["acc"] == whole.runs[0]["acc"]
    after, uncut = (read_json(r.path / "seed-0" / "matrix.json")["views"] for r in (continued, whole))
    assert after == uncut


def test_dry_run_counts_sequences_and_shows_the_shapes(tmp_path):
    told = dry_run(config(tmp_path, "formal_languages"))
    assert told.sample_shape == [14]
    assert [e["train"] for e in told.experiences] == [48, 48]
    assert next(row["shape"] for row in told.layers if row["name"] == "head") == [8, 10, told.n_outputs]
    assert told.flops_per_step > 0
    assert told.evaluated == 3 * 2 * (8 + 16)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_model_of_pixels_says_that_it_reads_no_tokens(tmp_path):
    plain = ["stream=recall", *SMALL, *STREAMS["recall"], "trainer.progress=false", "tracking=off"]
    with pytest.raises(UserError, match="takes no `vocabulary`, and the samples of recall are tokens") as refused:
        run(compose([*plain, "model=mlp", f"runs={tmp_path}"]))
    assert refused.value.key == "model._target_"
    assert "mlp" not in refused.value.allowed
    assert not list(tmp_path.iterdir())


class LastOnly(TokenGRU):
    """Answers once, whatever it is told."""

    def __init__(self, vocabulary: int | None, n_outputs: int, per_position: bool, width: int = 16):
        super().__init__(vocabulary, n_outputs, False, width)


def test_outputs_without_positions_are_refused_with_the_shape_that_is_needed(tmp_path):
    wrong = config(tmp_path, "recall", f"model._target_={__name__}.LastOnly")
    with pytest.raises(UserError, match=r"is \(2, 16\); \(batch, T, n_outputs\) = \(2, 11, 16\) is needed"):
        run(wrong)


class FixedLength(TokenGRU):
    """Made for the sequences of training alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, :10]


def test_a_model_that_cannot_read_the_longer_test_sequences_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match=r"is \(2, 10, 6\); .* \(2, 14, 6\) is needed"):
        run(config(tmp_path, "formal_languages", f"model._target_={__name__}.FixedLength"))


def test_balance_by_class_is_refused_where_a_sample_has_no_class(tmp_path):
    with pytest.raises(UserError, match="targets are one for each position; use reservoir"):
        learner(tmp_path, "recall", "method=replay", "method.policy=class_balanced")
