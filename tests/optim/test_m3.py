"""What M3 is: Algorithm 1 by hand, its practical form by hand, and torch's Muon where nothing is slow or divided."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nested.errors import UserError
from nested.optim import M3
from nested.optim.newton_schulz import newton_schulz

Shapes = [(4, 6), (6, 4), (3, 2, 2, 2), (1, 5)]


def parameters(dtype: torch.dtype = torch.float64, shapes=Shapes) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def gradient(shape: tuple[int, ...], step: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * step + sum(shape)), dtype=torch.float64)


def run(params: list[Tensor], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for p in params:
            p.grad = gradient(tuple(p.shape), step).to(p.dtype)
        optimizer.step()


def by_svd(m: Tensor) -> Tensor:
    """Five steps of Muon's quintic on the singular values of (O, I)."""
    u, s, vt = torch.linalg.svd(m, full_matrices=False)
    s = s / s.square().sum().sqrt().clamp_min(1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ vt


def algorithm_1(w: Tensor, steps: int, lr, beta1, beta2, beta3, alpha, f, eps, divide) -> Tensor:
    """The printed algorithm, loop for loop; gradients[t] is g_t, t = 1, 2, ..., and the slow sum holds the last f."""
    gradients = {t: gradient(tuple(w.shape), t) for t in range(1, steps + 1)}
    m1, m2, v, k = torch.zeros_like(w), torch.zeros_like(w), torch.zeros_like(w), 0
    while k * f < steps:
        m2 = m2 + beta3 * sum(gradients[i] for i in range((k - 1) * f + 1, k * f + 1) if i >= 1)
        o2 = by_svd(m2)
        for t in range(k * f + 1, min((k + 1) * f, steps) + 1):
            g = gradients[t]
            m1, v = m1 + beta1 * g, v + beta2 * g**2
            w = w - lr * (by_svd(m1) + alpha * o2) / (v.sqrt() + eps if divide else 1.0)
        k += 1
    return w


def practical(w: Tensor, steps: int, lr, beta1, beta2, beta3, alpha, f, eps, divide) -> Tensor:
    """Averages that forget, bias correction of V, Muon's factor for tall matrices."""
    m1, m2, v, o2, chunk = *(torch.zeros_like(w) for _ in range(4)), []
    for t in range(1, steps + 1):
        g = gradient(tuple(w.shape), t)
        m1, v = beta1 * m1 + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        deviation = (v / (1 - beta2**t)).sqrt() + eps if divide else 1.0
        w = w - lr * max(1.0, w.shape[0] / w.shape[1]) ** 0.5 * (by_svd(m1) + alpha * o2) / deviation
        chunk.append(g)
        if len(chunk) == f:
            m2 = beta3 * m2 + (1 - beta3) * torch.stack(chunk).mean(0)
            o2, chunk = by_svd(m2), []
    return w


@pytest.mark.parametrize(("form", "by_hand"), [("literal", algorithm_1), ("ema", practical)])
@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("frequency", [1, 3, 5, 20])
def test_equals_a_hand_loop(form, by_hand, divide, frequency):
    ours = parameters(shapes=[(4, 6), (6, 4)])
    expected = [by_hand(p.detach(), 11, 0.1, 0.9, 0.99, 0.8, 0.7, frequency, 1e-8, divide) for p in ours]
    optimizer = M3(ours, 0.1, 0.9, 0.99, 0.8, 0.7, frequency, form, divide)
    run(ours, optimizer, range(1, 12))
    assert_close([p.detach() for p in ours], expected, rtol=1e-9, atol=1e-9)


def test_the_slow_memory_is_empty_until_it_has_a_whole_chunk():
    fast_only, both = parameters(), parameters()
    a, b = M3(fast_only, alpha=0.0, frequency=4), M3(both, alpha=1.0, frequency=4)
    run(fast_only, a, range(4))
    run(both, b, range(4))
    assert all(torch.equal(p, q) for p, q in zip(fast_only, both))
    run(fast_only, a, range(4, 5))
    run(both, b, range(4, 5))
    assert not any(torch.equal(p, q) for p, q in zip(fast_only, both))


def test_the_slow_memory_is_orthogonalised_once_per_chunk(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "nested.optim.newton_schulz.newton_schulz", lambda m, steps: calls.append(steps) or newton_schulz(m, steps)
    )
    params = parameters(shapes=[(3, 4)])
    run(params, M3(params, frequency=5, steps=3), range(20))
    assert calls == [3] * (20 + 20 // 5 + 1)  # every step, every chunk, and the empty one


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.95])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_is_torchs_muon_without_nesterov_when_nothing_slow_is_in_it(momentum, weight_decay):
    shapes = [(6, 9), (9, 6), (20, 3), (64, 10), (10, 64), (5, 5)]
    ours, torchs = (parameters(torch.float32, shapes) for _ in range(2))
    run(ours, M3(ours, 0.02, beta1=momentum, alpha=0.0, weight_decay=weight_decay), range(20))
    muon = torch.optim.Muon(torchs, 0.02, weight_decay, momentum, nesterov=False)
    run(torchs, muon, range(20))
    assert_close(ours, torchs, rtol=0, atol=1e-6)


def test_what_is_no_matrix_is_torchs_adamw_at_a_rate_of_its_own():
    ours, torchs = (parameters(shapes=[(), (5,), (3, 4)]) for _ in range(2))
    run(ours, M3(ours, 0.5, weight_decay=0.1, adamw_lr=0.003), range(10))
    run(torchs[:2], torch.optim.AdamW(torchs[:2], 0.003, weight_decay=0.1), range(10))
    assert all(torch.equal(a, b) for a, b in zip(ours[:2], torchs[:2]))
    assert [g["lr"] for g in M3(ours, 0.5, adamw_lr=0.003).param_groups] == [0.5, 0.003]


def test_a_convolution_is_the_matrix_of_its_output_channels():
    (filters,) = parameters(shapes=[(3, 2, 2, 2)])
    matrix = filters.detach().flatten(1).clone().requires_grad_()
    ours, flat = M3([filters], divide=True, frequency=2), M3([matrix], divide=True, frequency=2)
    for step in range(5):
        filters.grad = gradient((3, 2, 2, 2), step)
        matrix.grad = filters.grad.flatten(1)
        ours.step()
        flat.step()
    assert torch.equal(filters.flatten(1), matrix)


def test_in_the_literal_form_beta1_makes_no_difference():
    first, second = parameters(), parameters()
    run(first, M3(first, beta1=0.9, form="literal"), range(6))
    run(second, M3(second, beta1=0.1, form="literal"), range(6))
    assert_close(first, second)


@pytest.mark.parametrize("form", ["literal", "ema"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_element_that_never_had_a_gradient_is_not_moved_by_the_division(form, dtype):
    """O is not zero there, though V is: undivided by anything but eps it would move by 1e8 rates."""
    (p,) = parameters(dtype, [(4, 6)])
    before = p.detach().clone()
    optimizer = M3([p], 1e-3, form=form, divide=True, frequency=2)
    for step in range(6):
        p.grad = gradient((4, 6), step).to(dtype)
        p.grad[1, 2] = p.grad[3, 0] = 0.0
        optimizer.step()
    moved = (p.detach() - before).abs()
    assert moved[1, 2] == moved[3, 0] == 0.0
    assert 0 < moved[0].min() < moved.max() < 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", ["literal", "ema"])
@pytest.mark.parametrize("divide", [True, False])
def test_continues_from_its_state_to_the_last_bit(form, divide, dtype, tmp_path):
    shapes = [*Shapes, (5,)]
    straight, halved = parameters(dtype, shapes), parameters(dtype, shapes)
    values = {"lr": 0.05, "frequency": 3, "form": form, "divide": divide}
    run(straight, M3(straight, **values), range(10))
    first = M3(halved, **values)
    run(halved, first, range(5))  # inside a chunk
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = M3(halved, lr=0.3, frequency=7, alpha=0.2)  # everything about the rule comes from the state
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(halved, second, range(5, 10))
    assert all(torch.equal(a, b) for a, b in zip(straight, halved, strict=True))
    assert all(p.isfinite().all() for p in straight)
    assert second.state[halved[0]]["fast"].dtype == torch.promote_types(dtype, torch.float32)


def test_loading_a_state_shares_no_memory_with_it():
    params = parameters()
    first, second = M3(params), M3(params)
    run(params, first, range(1))
    state = first.state_dict()
    second.load_state_dict(state)
    before = state["state"][0]["fast"].clone()
    run(params, second, range(1))
    assert torch.equal(state["state"][0]["fast"], before)


def test_the_clock_of_a_parameter_stands_while_it_has_no_gradient():
    ours, other = parameters(), parameters()
    optimizer = M3(ours, frequency=2)
    run(ours, optimizer, range(3))
    for p in ours:
        p.grad = None
    optimizer.step()
    run(ours, optimizer, range(3, 6))
    run(other, M3(other, frequency=2), range(6))
    assert all(torch.equal(a, b) for a, b in zip(ours, other))


@pytest.mark.parametrize("form", ["literal", "ema"])
def test_converges_on_a_quadratic(form):
    (w,) = parameters(shapes=[(4, 6)])
    goal = gradient((4, 6), 1)
    optimizer = M3([w], 0.1, form=form, frequency=4, beta1=0.5)
    start = (w - goal).norm().item()
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 400)
        optimizer.zero_grad()
        (w - goal).square().sum().backward()
        optimizer.step()
    assert (w - goal).norm() < (0.02 if form == "ema" else 0.5) * start  # sums that never forget overshoot


@pytest.mark.parametrize("name", ["beta1", "beta2", "beta3"])
def test_a_weight_of_nothing_is_refused_in_the_literal_form(name):
    with pytest.raises(UserError, match=f"optim.{name}: 0 is not allowed in the literal form"):
        M3(parameters(), form="literal", **{name: 0.0})
    M3(parameters(), form="ema", **{name: 0.0})


def test_sparse_gradients_are_refused():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="dense"):
        M3(embedding.parameters()).step()
