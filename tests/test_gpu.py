"""The same run on a CUDA device: it learns, its state lives there, and a stop inside an experience loses nothing."""

from pathlib import Path

import pytest
import torch

from nested.config import compose
from nested.errors import Interrupted
from nested.loop import Loop
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
