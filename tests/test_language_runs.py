"""Runs on text: bits per byte by hand, forgetting of the right sign, frozen beside reading, methods, pages, exports."""

import json
import math
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reading_model import READING, Bigram, config_dir
from small_run import begin, end, train

from nested import claims, exported, report
from nested.config import Config, compose
from nested.cost import step_flops
from nested.errors import Diverged, UserError
from nested.evaluation import evaluate
from nested.export import export
from nested.learner import Learner
from nested.microscope.examine import examine
from nested.prepare import prepare
from nested.result import Result
from nested.run import run, run_trial
from nested.streams.stream import Examples, Stream

SMALL = [
    "stream=text", "stream.length=16", "stream.n_train=40", "stream.n_validation=4", "stream.n_test=6", "tracking=off",
    "trainer.progress=false", "trainer.epochs=2", "trainer.batch_size=8", "optim=adamw", "optim.lr=0.05",
]  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects of few words each, which have letters in common."""
    root, draw = tmp_path_factory.mktemp("texts"), random.Random(0)
    for domain, words in (("animals", "cat dog cow hen"), ("birds", "owl hen tit auk")):
        (root / domain).mkdir()
        for i in range(12):
            text = " ".join(draw.choice(words.split()) for _ in range(60))
            (root / domain / f"{i}.txt").write_text(text)
    return root


def config(texts: Path, tmp_path: Path, *overrides: str) -> Config:
    own = {o.partition("=")[0] for o in overrides}
    base = [o for o in ("model=bigram", *SMALL) if o.partition("=")[0] not in own]
    where = [f"stream.path={texts}", f"runs={tmp_path / 'runs'}"]
    return compose([*base, *where, *overrides], config_dir(tmp_path))


def learner(texts: Path, tmp_path: Path, *overrides: str) -> Learner:
    return prepare(config(texts, tmp_path, *overrides), 0)


def by_hand(table: torch.Tensor, part: Examples) -> tuple[float, int]:
    """Bits and bytes of a table of logits, one token after another."""
    x, y, _ = part.batch(torch.arange(len(part)))
    rows = table.detach().double().tolist()
    total = 0.0
    for token, following in zip(x.flatten().tolist(), y.flatten().tolist()):
        row = rows[token]
        total -= math.log2(math.exp(row[following]) / sum(map(math.exp, row)))
    return total, y.numel()


# -- one evaluation and one step ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["bigram", "plain"])
def test_bits_per_byte_are_those_of_a_count_by_hand(texts, tmp_path, model):
    made = learner(texts, tmp_path, f"model={model}", "trainer.precision=64-true")
    for part in (made.stream.experiences[0].test, made.stream.experiences[1].validation):
        bits, count = by_hand(made.model.table, part)
        found = made.judge(part, 4)
        assert found.total == pytest.approx(bits, rel=1e-12)
        assert (found.count, found.beside) == (count, {})
        assert made.evaluate(part, 3) == (pytest.approx(bits, rel=1e-12), count)
        assert made.count(part) == count == 16 * len(part)


def test_with_tokens_of_several_bytes_the_same_bits_are_over_the_bytes(texts, tmp_path):
    made = learner(texts, tmp_path)
    part = made.stream.experiences[0].test
    before = made.judge(part, 8)
    table = torch.arange(256)
    object.__setattr__(made.stream, "token_bytes", table)
    found = made.judge(part, 8)
    assert found.total == before.total
    assert found.count == sum(whole_text(part)) != before.count


def whole_text(part: Examples) -> list[int]:
    return part.batch(torch.arange(len(part))).y.flatten().tolist()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_loss_is_the_mean_of_the_nats_of_all_tokens(texts, tmp_path, precision):
    made = learner(texts, tmp_path, f"trainer.precision={precision}")
    batch = made.fetch(made.examples, torch.arange(5))
    part = made.examples.subset(torch.arange(5))
    bits, count = by_hand(made.model.table, part)
    loss = made.loss(batch)
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(bits / count * math.log(2), rel=1e-5 if precision == "32-true" else 1e-2)
    loss.backward()
    assert made.model.table.grad.abs().sum() > 0


def test_the_models_own_nll_is_asked_and_one_of_another_shape_is_refused(texts, tmp_path, monkeypatch):
    made = learner(texts, tmp_path)
    monkeypatch.setattr(Bigram, "nll", lambda self, x, y: torch.full(y.shape, 2.0))
    part = made.stream.experiences[0].test
    assert made.judge(part, 8).total == pytest.approx(2 / math.log(2) * 16 * len(part))
    monkeypatch.setattr(Bigram, "nll", lambda self, x, y: torch.full((len(x),), 2.0))
    with pytest.raises(UserError, match=r"Bigram.nll returned \(6,\); \(batch, T\) = \(6, 16\) is needed"):
        made.judge(part, 8)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_no_score(texts, tmp_path, monkeypatch, value):
    made = learner(texts, tmp_path)
    monkeypatch.setattr(Bigram, "nll", lambda self, x, y: torch.full(y.shape, value))
    with pytest.raises(Diverged, match=f"the loss is {value} in evaluation"):
        made.judge(made.stream.experiences[0].test, 8)


# -- frozen beside reading ---------------------------------------------------------------------------------------------


def test_frozen_is_the_same_model_with_updates_off(texts, tmp_path):
    reading, plain = learner(texts, tmp_path, READING), learner(texts, tmp_path)
    part = reading.stream.experiences[0].test
    found, without = reading.judge(part, 4), plain.judge(part, 4)
    assert list(found.beside) == ["/frozen"]
    assert found.beside["/frozen"] == (pytest.approx(without.total, rel=1e-6), without.count)
    assert found.total < 0.95 * without.total  # words come again within a sequence
    assert without.beside == {}
    assert reading.evaluate(part, 4) == (found.total, found.count)


def test_only_a_model_whose_nll_takes_frozen_is_judged_so(texts, tmp_path, monkeypatch):
    made = learner(texts, tmp_path, READING)
    monkeypatch.setattr(Bigram, "nll", lambda self, x, y: torch.ones(y.shape))
    assert made.judge(made.stream.experiences[0].test, 8).beside == {}


# -- methods -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["naive", "replay", "ewc", "ema", "lookahead", "frozen", "reset"])
def test_a_method_learns_from_text(texts, tmp_path, method):
    made = learner(texts, tmp_path, f"method={method}", "trainer.epochs=4")
    before = made.judge(made.stream.experiences[1].test, 8).total
    for i in range(2):
        begin(made, i)
        train(made, torch.arange(40).split(8))
        end(made, i)
    with next(iter(made.method.views().values())):
        after = made.judge(made.stream.experiences[1].test, 8).total
    assert after < before or method == "frozen"


@pytest.mark.parametrize(
    "overrides, key",
    [
        (["method=associative_head"], "method._target_"),
        (["method=replay", "method.policy=class_balanced"], "method.policy"),
    ],
)
def test_a_method_that_needs_classes_is_refused_by_name(texts, tmp_path, overrides, key):
    with pytest.raises(UserError, match="one for each position") as refused:
        learner(texts, tmp_path, *overrides)
    assert refused.value.key == key


@pytest.mark.parametrize(
    "model", [["model=hope", "levels=tokens", "model.inner_loss=task"], ["model=causal_hope_attention"]]
)
def test_hope_learns_from_text(texts, tmp_path, model):
    small = ["model.width=8", "model.hidden=12", "model.heads=2", "model.depth=1", "stream.n_test=2"]
    made = learner(texts, tmp_path, *model, *small, "trainer.allow_idle=true")
    begin(made, 0)
    first = made.method.loss(made, made.fetch(made.examples, torch.arange(2)))
    train(made, [torch.arange(2)])
    assert 4 < first.item() < 7  # nats: an even guess is 5.5
    found = made.judge(made.stream.experiences[0].test, 2)
    assert 5 < found.total / found.count < 10
    assert found.beside == {}


def test_a_model_of_images_is_refused_by_name(texts, tmp_path):
    with pytest.raises(UserError, match=r"takes no `vocabulary`, and the samples of texts.* are tokens"):
        learner(texts, tmp_path, "model=mlp")


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run of a model that learns while it reads."""
    more = [READING, "optim.lr=1.0", "evaluate.snapshots=true", "evaluate.anytime_steps=8", "evaluate.gain=true"]
    return run(config(texts, tmp_path_factory.mktemp("done"), *more))


def matrix_of(done: Result) -> dict:
    return json.loads((done.path / "seed-0" / "matrix.json").read_text())


def test_the_matrix_holds_bits_and_whole_bytes(done):
    about = matrix_of(done)
    assert (about["measure"], about["lower_is_better"]) == ("bits per byte", True)
    parts = about["views"]["model"]
    assert set(parts) == {"test", "validation", "test/frozen", "validation/frozen"}
    assert parts["test"]["count"] == parts["test/frozen"]["count"] == [[96, 96]] * 3
    assert all(isinstance(n, int) for row in parts["test"]["count"] for n in row)
    rows = np.array(parts["test"]["sum"]) / 96
    assert np.allclose(done.initial, rows[0])
    assert np.allclose(done.matrix, rows[1:])
    assert (rows[0] > 5).all()
    assert (rows[1:].diagonal() < 0.8 * rows[0]).all()


def test_forgetting_and_transfer_have_the_signs_of_a_count_by_hand(done):
    r, r0, found = done.matrix, done.initial, done.runs[0]
    assert r[1, 0] > r[0, 0]  # learning of birds made animals worse
    assert found["forgetting"] == pytest.approx(r[1, 0] - r[0, 0])
    assert found["bwt"] == pytest.approx(r[0, 0] - r[1, 0])
    assert found["fwt"] == pytest.approx(r0[1] - r[0, 1])
    assert found["forgetting"] > 0 > found["bwt"]
    assert found["fwt"] < 0  # it is sure of what follows, and wrong
    assert found["acc"] == pytest.approx(r[1].mean())
    assert found["learning_acc"] == pytest.approx((r[0, 0] + r[1, 1]) / 2)
    alone = matrix_of(done)["standalone"]
    assert found["gain"] == pytest.approx((alone[0] - r[0, 0] + alone[1] - r[1, 1]) / 2)
    assert found["min_acc"] >= r[0, 0]  # the worst, where less is better


def test_frozen_is_beside_and_worse(done):
    frozen = np.array(matrix_of(done)["views"]["model"]["test/frozen"]["sum"])[-1] / 96
    assert done.runs[0]["frozen"] == pytest.approx(frozen.mean())
    assert done.runs[0]["frozen"] > done.runs[0]["acc"]
    assert done.runs[0]["positions"] is None


def test_the_page_says_bits_per_byte_and_shows_the_frozen_matrix(done):
    page = (done.path / "report.html").read_text()
    for words in ("learning bits per byte", "final bits per byte", "Bits per byte matrix", "<h3>Frozen</h3>"):
        assert words in page
    assert "learning accuracy and" not in page
    assert "manifest" in page
    loaded = report.load(done.path)
    assert (loaded.measure, loaded.frozen.shape) == ("bits per byte", (1, 3, 2))
    assert report.load(done.path, whole=False).measure == "bits per byte"
    assert sorted(p.name for p in (done.path / "figures").glob("frozen-*.png"))
    text = "".join(str(c.header) for c in report.table([loaded]).columns)
    assert "final\nbits\nper\nbyte" in text


def test_where_the_text_comes_from_is_recorded(done):
    events = [json.loads(line) for line in (done.path / "seed-0" / "events.jsonl").read_text().splitlines()]
    data = [e for e in events if e["event"] == "dataset"]
    assert [e["measure"] for e in data] == ["bits per byte"] * 2
    assert len(data[0]["about"]["manifest"]) == 16
    tags = next(e for e in events if e["event"] == "tags")["values"]
    assert tags["manifest"] == data[0]["about"]["manifest"]


def test_an_export_repeats_the_last_row_frozen_too_and_on_other_text_it_does_not(done, texts, tmp_path):
    made = export(done.path)
    found = evaluate(made)
    assert found.repeats
    assert set(found.parts) == {"test", "validation", "test/frozen", "validation/frozen"}
    assert "bits per byte" in str(found.__rich__().renderables[0])
    other = tmp_path / "other"
    for domain in ("animals", "birds"):
        (other / domain).mkdir(parents=True)
        for file in (texts / domain).iterdir():
            (other / domain / file.name).write_bytes(file.read_bytes().upper())
    elsewhere = evaluate(made, [f"stream.path={other}"])
    assert elsewhere.repeats is None
    assert elsewhere.parts["test"].mean > found.parts["test"].mean


def test_the_microscope_shares_out_the_bits_lost(done):
    found = examine(done.path)
    mean, r = (
        found["mean"],
        json.loads((done.path / "seed-0" / "matrix.json").read_text())["views"]["model"]["validation"],
    )
    rows = np.array(r["sum"]) / np.array(r["count"])
    assert mean["forgot"]["total"][0] == pytest.approx(rows[2, 0] - rows[1, 0]) != 0
    assert mean["learned"]["total"] == pytest.approx([rows[0, 0] - rows[1, 0], rows[1, 1] - rows[2, 1]])


# -- claims ------------------------------------------------------------------------------------------------------------


def test_a_claim_on_other_text_is_not_measured(tmp_path):
    file = tmp_path / "claimed.py"
    file.write_text(
        "from nested.claims import Claim\n"
        "CLAIM = Claim(name='text', statement='s', command=['x'], budget_seconds=60, metric='measure', expected=1,\n"
        "              tolerance=0, manifest='0123456789abcdef', domains=('json',))\n"
        "def measure(seeds):\n    return 1\n"
    )
    claim = claims.read(file)
    assert claim is not None
    outcome = claims.check(claim)
    assert not outcome.holds
    assert "sources of Python" in (outcome.problem or "")
    assert "it was 0123456789abcdef; nothing can be compared" in (outcome.problem or "")
    here = (outcome.problem or "").partition("has manifest ")[2][:16]
    file.write_text(file.read_text().replace("0123456789abcdef", here))
    again = claims.read(file)
    assert again is not None
    assert claims.check(again).holds


def test_a_joint_fit_of_text_has_no_forgetting(texts, tmp_path):
    made = learner(texts, tmp_path, "method=joint")
    assert isinstance(made.stream, Stream)
    assert len(made.curriculum[0].train) == 80
    assert made.loss(made.fetch(made.curriculum[0].train, torch.tensor([0, 79]))).isfinite()


# -- TTT-E2E in a run --------------------------------------------------------------------------------------------------


TTT_E2E = [
    "model=ttt_e2e", "model.width=16", "model.hidden=16", "model.depth=2", "model.mixer.window=8", "levels=reading",
    "levels.reading.chunk_tokens=4", "levels.reading.eta=5",
]  # fmt: skip


def test_the_inner_rate_warms_up_over_the_steps_of_a_run_and_not_in_evaluation(texts, tmp_path):
    slow, fast = (learner(texts, tmp_path, *TTT_E2E, f"levels.reading.eta_warmup_steps={n}") for n in (100, 0))
    rows = torch.arange(4)
    for each in (slow, fast):
        each.model.train()
        each.learn(rows)
    assert slow.model.step == 0
    x, y, _ = slow.fetch(slow.examples, rows)
    fast.model.load_state_dict(slow.model.state_dict())
    assert not torch.equal(slow.model.nll(x, y), fast.model.nll(x, y))
    assert torch.equal(slow.model.eval().nll(x, y), fast.model.eval().nll(x, y))


def test_a_step_in_parts_is_the_same_step(texts, tmp_path):
    plain = ["trainer.precision=64-true", "optim=sgd", "optim.lr=1"]  # Adam's first step hides a gradient's scale
    whole, parts = (learner(texts, tmp_path, *TTT_E2E, f"trainer.micro_batch={n}", *plain) for n in ("null", 3))
    for each in (whole, parts):
        each.learn(torch.arange(8))
    assert parts.cursor.loss_sum == pytest.approx(whole.cursor.loss_sum, rel=1e-12)
    for a, b in zip(whole.model.parameters(), parts.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_operations_are_counted_as_a_step_computes_them(texts, tmp_path):
    """In parts no fewer; and what is computed again in the backward pass is counted again."""

    def flops(*more: str) -> int:
        made = learner(texts, tmp_path, *TTT_E2E, *more)
        return step_flops(made, made.fetch(made.examples, torch.arange(8)))

    whole, once, twice = (flops(f"model.checkpoint={how}") for how in ("none", "chunk", "group"))
    assert whole == flops("trainer.micro_batch=3")
    assert 0 < once - whole == twice - once < whole / 3  # one more forward pass each


def test_parts_of_a_step_are_counted_once_for_each_size(texts, tmp_path, monkeypatch):
    made, counted = learner(texts, tmp_path, *TTT_E2E, "trainer.micro_batch=3"), []
    monkeypatch.setattr(made, "loss", lambda batch: counted.append(len(batch.y)) or made.nll(batch.x, batch.y).mean())
    step_flops(made, made.fetch(made.examples, torch.arange(8)))
    assert counted == [3, 2]


def test_a_warm_up_that_the_model_cannot_be_told_of_is_refused(texts, tmp_path):
    warm = READING.replace("eta: 1.0", "eta: 1.0, eta_warmup_steps: 5")
    with pytest.raises(UserError, match="has no attribute `step`"):
        learner(texts, tmp_path, warm)


# -- warm starts -------------------------------------------------------------------------------------------------------


SIZES = ["stream.length=40", "model.width=16", "model.hidden=16", "model.heads=2", "model.depth=2"]
FEW = ["stream.n_train=8", "trainer.epochs=1", "trainer.allow_idle=true"]
HYBRID = ["model=hybrid_attention", "model.other_every=2", "model.mixer.window=24", *SIZES]
LEARNS = [
    "levels=reading", "levels.reading.chunk_tokens=20", "levels.reading.eta_warmup_steps=0", "model.prime=1",
]  # fmt: skip


def trial(config: Config, path: Path) -> Path:
    """The directory of a run without its page."""
    return run_trial(config, path, lambda *_: None).path


def plain_export(texts: Path, tmp_path: Path, *overrides: str) -> Path:
    """The export of a short run on few sequences."""
    return export(trial(config(texts, tmp_path, *FEW, "stream.n_test=4", *overrides), tmp_path / "run"))


@pytest.fixture(scope="module")
def hybrid(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_export(texts, tmp_path_factory.mktemp("hybrid"), *HYBRID)


def test_a_warm_start_from_float64_is_said_to_be_rounded(texts, tmp_path):
    wide = plain_export(texts, tmp_path, *HYBRID, "trainer.precision=64-true")
    model = learner(texts, tmp_path, *HYBRID, f"model.warm_start={wide}", "trainer.precision=64-true").model
    assert [remark.partition(":")[0] for remark in model.remarks] == ["the warm start is rounded"]
    for name, p in exported.read(wide).model().named_parameters():
        assert torch.equal(model.get_parameter(name), p.float().double())


def test_an_export_of_a_warm_start_stands_alone(texts, tmp_path, hybrid):
    base = tmp_path / "base"
    shutil.copytree(hybrid, base)
    begun = [*HYBRID, *LEARNS, f"model.warm_start={base}", "trainer.precision=64-true"]
    made, x = learner(texts, tmp_path, *begun), torch.randint(256, (2, 40))
    torch.testing.assert_close(made.model.eval()(x), exported.read(base).model().double()(x), rtol=1e-12, atol=1e-12)
    found = plain_export(texts, tmp_path, *begun)
    shutil.rmtree(base)
    assert exported.read(found).model()(x).isfinite().all()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("model.mixer.theta=10000", "blocks.0.mixer.theta is 500000.0 there and 10000.0 here"),
        ("model.other.theta=10000", "blocks.1.mixer.theta is 500000.0 there and 10000.0 here"),
        ("model.other_every=1", "model.other_every is 2 there and 1 here"),
        ("model=language_streaming", "blocks.0.mixer is WindowAttention there and StreamingAttention here"),
    ],
)
def test_a_warm_start_that_would_begin_with_another_function_is_refused(texts, tmp_path, hybrid, more, said):
    chosen = SIZES if more.startswith("model=") else HYBRID
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        learner(texts, tmp_path, *chosen, more, f"model.warm_start={hybrid}")
    assert refused.value.key == "model.warm_start"
    assert "\n" not in str(refused.value)


def test_a_warm_start_with_another_tokenizer_is_refused(texts, tmp_path, hybrid):
    begun = config(texts, tmp_path, *HYBRID, f"model.warm_start={hybrid}")
    stream = prepare(begun, 0).stream
    with pytest.raises(UserError, match=r"stream.tokenizer is None there and 5eed here"):
        prepare(begun, 0, replace(stream, about={**stream.about, "tokenizer": "5eed"}))


def test_a_warm_start_may_see_less_and_a_higher_theta_is_remarked_where_it_sees_more(texts, tmp_path, hybrid):
    assert not learner(texts, tmp_path, *HYBRID, "model.other.window=24", f"model.warm_start={hybrid}").model.remarks
    longer = [*HYBRID, "stream.length=80", "model.other.theta=2e6", f"model.warm_start={hybrid}"]
    made = trial(config(texts, tmp_path, *longer, *FEW), tmp_path / "run")
    said = (made / "seed-0" / "events.jsonl").read_text()
    assert "another function: blocks.1.mixer.theta is 500000.0 there and 2000000.0 here; set it back" in said
