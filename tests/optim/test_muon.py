"""Muon for matrices and AdamW for the rest must be torch's two optimizers side by side."""

import pytest
import torch
from nested_kernels.newton_schulz.op import stacked
from torch import nn
from torch.testing import assert_close

from nested.optim import Muon
from nested.optim.matrix_rule import MatrixRule


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.LayerNorm(108), nn.Linear(108, 5))


def train(net: nn.Module, *optimizers: torch.optim.Optimizer, steps: range = range(5)) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(4, 1, 8, 8, generator=generator), torch.randint(5, (4,), generator=generator)
        net.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_equals_torchs_two_optimizers():
    ours, theirs = network(), network()
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    others = [p for p in theirs.parameters() if p.ndim != 2]
    train(ours, Muon(ours.parameters(), 0.02, 0.9, weight_decay=0.1, adamw_lr=0.003))
    muon = torch.optim.Muon(matrices, 0.02, momentum=0.9, weight_decay=0.1)
    train(theirs, muon, torch.optim.AdamW(others, 0.003, weight_decay=0.1))
    assert len(matrices) == 1
    assert equal(ours, theirs)
    assert not equal(ours, network())


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_what_devices_do_at_once_is_torchs_muon(nesterov, batched, monkeypatch):
    """To the last bit where matrices are taken one by one; a batch of them rounds otherwise, in bfloat16."""
    if batched:
        monkeypatch.setattr("nested.optim.muon.newton_schulz_each", lambda *given: stacked(*given, "gram"))
    g, shapes = torch.Generator(), [(6, 20), (20, 6), (6, 20), (5, 5)]
    ours, torchs = ([torch.randn(s, generator=g.manual_seed(0)).requires_grad_() for s in shapes] for _ in range(2))
    first = Muon(ours, 0.02, 0.9, nesterov=nesterov, weight_decay=0.1)
    second = torch.optim.Muon(torchs, 0.02, momentum=0.9, nesterov=nesterov, weight_decay=0.1)
    for _ in range(5):
        for p, q in zip(ours, torchs):
            p.grad = q.grad = torch.randn(p.shape, generator=g)
        with torch.no_grad():
            MatrixRule.step_matrices(first, first.param_groups[0])  # as `step` does on a device
        second.step()
    assert all(torch.equal(first.state[p]["momentum_buffer"], second.state[q]["momentum_buffer"]) for p, q in
               zip(ours, torchs))  # fmt: skip
    assert all(torch.equal(p, q) for p, q in zip(ours, torchs)) == (not batched)
    assert_close(ours, torchs, rtol=0, atol=5 * 0.02 * 2 * 2**-6)


def test_continues_from_its_state_to_the_last_bit(tmp_path):
    straight, halved = network(), network()
    train(straight, Muon(straight.parameters()), steps=range(6))
    first = Muon(halved.parameters())
    train(halved, first, steps=range(3))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Muon(halved.parameters(), lr=0.5, adamw_lr=0.5)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(halved, second, steps=range(3, 6))
    assert equal(straight, halved)


def test_rates_written_into_the_groups_count():
    net, before = network(), network()
    optimizer = Muon(net.parameters())
    assert [g["lr"] for g in optimizer.param_groups] == [0.02, 1e-3]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(net, optimizer)
    assert equal(net, before)


def test_a_level_of_vectors_only_and_one_of_matrices_only():
    for shapes in [(3,), (2, 3, 4)], [(3, 4)]:
        params = [torch.ones(s, requires_grad=True) for s in shapes]
        for p in params:
            p.grad = torch.ones_like(p)
        Muon(params).step()
        assert all(not torch.equal(p, torch.ones_like(p)) for p in params)


def test_a_closures_loss_is_returned():
    p = torch.ones(2, 2, requires_grad=True)

    def closure() -> torch.Tensor:
        loss = p.sum()
        loss.backward()
        return loss

    assert Muon([p]).step(closure).item() == 4.0
