"""The same run on a CUDA device: it learns, its state lives there, and a stop inside an experience loses nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nested.config import compose
from nested.errors import Interrupted
from nested.export import export
from nested.generation import Asked, Writer
from nested.loop import Loop
from nested.memory import fla
from nested.memory.gated_delta_net import gated_delta_rule
from nested.memory.gates import unit
from nested.memory.mamba2 import decaying_sum
from nested.run import prepare, resume, run
from nested.rundir import SeedDir, all_runs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

QUICK = ["trainer.epochs=4", "trainer.progress=false", "tracking=off", "trainer.accelerator=gpu"]


def test_a_run_on_the_device_learns_as_on_the_processor(tmp_path: Path) -> None:
    there = run(compose([*QUICK, f"runs={tmp_path}"]))
    here = run(compose([*QUICK, f"runs={tmp_path}", "trainer.accelerator=cpu"]))
    assert there.runs[0]["learning_acc"] == pytest.approx(here.runs[0]["learning_acc"], abs=0.05)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", ["naive", "replay", "ewc", "ema"])
def test_methods_keep_their_state_on_the_device(tmp_path: Path, method: str, precision: str) -> None:
    levels = ["model=hope_attention", "levels=continuum", "optim=delta_momentum", f"method={method}"]
    result = run(compose([*QUICK, *levels, f"trainer.precision={precision}", f"runs={tmp_path}"]))
    assert result.status == "done"
    assert result.runs[0]["learning_acc"] > 0.6


def test_a_stopped_run_continues_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def after_block(self: Loop) -> None:
        self.stop = self.learner.step == 50
        inner(self)

    inner = Loop._after_block
    monkeypatch.setattr(Loop, "_after_block", after_block)
    with pytest.raises(Interrupted):
        run(compose([*QUICK, f"runs={tmp_path}"]))
    monkeypatch.undo()
    [path] = all_runs(tmp_path)
    assert resume(path).status == "done"
    state, _ = SeedDir(path / "seed-0").load_checkpoint()
    assert state is not None


@pytest.mark.parametrize("memory", ["hope", "delta_memory", "lstm", "causal_hope_attention"])
def test_memories_and_token_levels_compute_on_the_device_what_they_compute_on_the_processor(memory: str) -> None:
    torch.manual_seed(0)
    model = prepare(compose([f"model={memory}", "model.n_levels=3", "levels=tokens"]), 0).model.double()
    x, y = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.arange(4)
    found = []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        out = model(x.to(device))
        torch.nn.functional.cross_entropy(out, y.to(device)).backward()
        found.append([t.cpu() for t in (out.detach(), *(p.grad for p in model.parameters() if p.grad is not None))])
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["associative_head", "lookahead"])
@pytest.mark.parametrize("optim", ["m3", "deep_momentum", "delta_gradient_descent", "associative_adam"])
def test_optimizers_and_heads_keep_their_state_on_the_device(tmp_path: Path, method: str, optim: str) -> None:
    result = run(compose([*QUICK, f"method={method}", f"optim={optim}", f"runs={tmp_path}"]))
    assert result.status == "done"


@pytest.mark.parametrize("t", [64, 200])
@pytest.mark.parametrize("rule", [gated_delta_rule, decaying_sum])
def test_flash_linear_attention_computes_our_rules_and_refuses_a_second_derivative(rule: Callable, t: int) -> None:
    pytest.importorskip("fla")
    q, k, v = (torch.randn(2, 3, t, s, device="cuda") for s in (64, 64, 128))
    q, k, v = (x.bfloat16() for x in (unit(q), unit(k), v))
    rate, decay = torch.rand(2, 3, t, device="cuda"), 1 - 0.2 * torch.rand(2, 3, t, device="cuda")
    decay[..., 20], decay[..., 40:42] = 0, 0
    gates = (decay, rate) if rule is gated_delta_rule else (rate, decay)
    x = [s.requires_grad_() for s in (q, k, v, *gates, torch.randn(2, 3, 128, 64, device="cuda"))]
    exact = [s.detach().double().requires_grad_() for s in x]
    assert fla.serves(*x)
    assert not fla.serves(*(s.float() for s in x))
    found, wanted = rule(*x), rule(*exact)
    u = [torch.randn_like(y) for y in wanted]
    its, ours = (
        torch.autograd.grad(outputs, given, [c.to(y.dtype) for c, y in zip(u, outputs)])
        for outputs, given in ((found, x), (wanted, exact))
    )
    kept = decay > 0  # a decay of 0 has no gradient there
    for a, b in zip((*found, *its), (*wanted, *ours), strict=True):
        a, b = (s * kept if s.shape == kept.shape else s for s in (a.double(), b))
        assert (a - b).norm() < 0.02 * b.norm()
    [g] = torch.autograd.grad(rule(*x)[0].float().square().sum(), x[2:3], create_graph=True)
    with pytest.raises(NotImplementedError, match="NESTED_KERNELS_BACKEND"):
        torch.autograd.grad(g.float().sum(), x[1])


def test_a_state_saved_on_one_device_is_read_on_on_another(tmp_path: Path) -> None:
    (tmp_path / "texts" / "one").mkdir(parents=True)
    for i in range(6):
        (tmp_path / "texts" / "one" / f"{i}.txt").write_text("a text of some words, again and again; " * 8)
    tiny = ["stream=text", "stream.length=16", "model=ttt_e2e", "model.width=32", "model.mixer.window=8"]
    levels = ["levels=reading", "levels.reading.chunk_tokens=4", "levels.reading.eta_warmup_steps=0"]
    where = ["trainer.allow_idle=true", f"stream.path={tmp_path / 'texts'}", f"runs={tmp_path}"]
    made = export(run(compose([*QUICK, *tiny, *levels, *where])).path, None, tmp_path / "export")
    state, found = tmp_path / "state.safetensors", []
    for first, second in (("cpu", "cpu"), ("gpu", "cpu"), ("cpu", "gpu")):
        writer = Writer(made, Asked(accelerator=first, keep=2))
        writer.read(b"a text of some words, ag", print)
        writer.save(state)
        later = Writer(made, Asked(tokens=12, temperature=0, accelerator=second))
        later.restore(state)
        assert later.reading is not None
        assert later.reading.logits.device.type == later.device.type == ("cuda" if second == "gpu" else "cpu")
        found.append(("".join(text for [text] in later.write()), later.about()))
    for text, about in found[1:]:
        assert text == found[0][0]
        assert about["shift_norm"] == pytest.approx(found[0][1]["shift_norm"], rel=1e-3)
