"""What Delta Momentum is: torch's SGD at beta 0, Eq. 49 by hand in all four forms, and a memory that erases."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nested.errors import UserError
from nested.optim import DeltaMomentum
from nested.optim.delta_momentum import delta_momentum

Shapes = [(3, 4), (5,), (), (2, 3, 2, 2), (5, 2)]
Forms = list(itertools.product(["normalised", "printed"], ["vector", "matrix"]))


def parameters(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in Shapes]


def give_gradients(params: list[Tensor], step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = (scale * torch.randn(p.shape, generator=generator, dtype=torch.float64)).to(p.dtype)


def run(params: list[Tensor], optimizer: torch.optim.Optimizer, steps: range, scale: float = 1.0) -> None:
    for step in steps:
        give_gradients(params, step, scale)
        optimizer.step()


@pytest.mark.parametrize(("form", "shape"), Forms)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_is_torchs_sgd_with_momentum_at_beta_zero(form, shape, weight_decay):
    ours, torchs = parameters(), parameters()
    run(ours, DeltaMomentum(ours, 0.1, 0.9, 0.0, form, shape, weight_decay), range(20))
    run(torchs, torch.optim.SGD(torchs, 0.1, 0.9, weight_decay=weight_decay), range(20))
    assert_close(ours, torchs, rtol=0, atol=1e-12)


def loop_matrix(m: list[list[float]], g: list[list[float]], u: list[list[float]], alpha, beta, lr):
    """m (alpha I - beta u^T u) - lr g with plain numbers."""
    rows, columns = len(g), len(g[0])
    gram = [[sum(u[o][i] * u[o][j] for o in range(rows)) for j in range(columns)] for i in range(columns)]
    factor = [[alpha * (i == j) - beta * gram[i][j] for j in range(columns)] for i in range(columns)]
    return [
        [sum(m[o][k] * factor[k][j] for k in range(columns)) - lr * g[o][j] for j in range(columns)]
        for o in range(rows)
    ]


def loop_vector(m: list[float], g: list[float], u: list[float], alpha, beta, lr, scalar: bool):
    """alpha m - beta u <u, m> - lr g, or (alpha - beta <u, u>) m - lr g where the product is a scalar."""
    held = sum(a * b for a, b in zip(u, m))
    square = sum(a * a for a in u)
    return [alpha * a - beta * (square * a if scalar else held * b) - lr * c for a, b, c in zip(m, u, g)]


def by_hand(m: Tensor, g: Tensor, lr: float, alpha: float, beta: float, form: str, shape: str) -> Tensor:
    norm = sum(v * v for v in g.flatten().tolist()) ** 0.5
    u = g if form == "printed" else g / (norm + 1e-8)
    if shape == "matrix" and g.ndim >= 2:
        lists = (t.reshape(len(t), -1).tolist() for t in (m, g, u))
        new = loop_matrix(*lists, alpha, beta, lr)
    else:
        new = loop_vector(*(t.flatten().tolist() for t in (m, g, u)), alpha, beta, lr, scalar=form == "printed")
    return torch.tensor(new, dtype=torch.float64).reshape(m.shape)


@pytest.mark.parametrize(("form", "shape"), Forms)
def test_pure_rule_equals_loops_over_numbers(form, shape):
    for m, g in zip(parameters(1), parameters(2)):
        expected = by_hand(m.detach(), g.detach(), 0.1, 0.9, 0.7, form, shape)
        assert_close(
            delta_momentum(m.detach(), g.detach(), 0.1, 0.9, 0.7, form, shape), expected, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize(("form", "shape"), Forms)
def test_optimizer_equals_loops_over_numbers_for_ten_steps(form, shape):
    ours, expected = parameters(), [p.detach().clone() for p in parameters()]
    optimizer = DeltaMomentum(ours, 0.1, 0.9, 0.7, form, shape)
    ms = [torch.zeros_like(p) for p in expected]
    for step in range(10):
        give_gradients(ours, step, 0.3)
        ms = [by_hand(m, p.grad, 0.1, 0.9, 0.7, form, shape) for m, p in zip(ms, ours)]
        expected = [w + m for w, m in zip(expected, ms)]
        optimizer.step()
    assert_close([p.detach() for p in ours], expected, rtol=1e-10, atol=1e-10)


def test_printed_form_is_equation_49_with_its_default_beta():
    g = torch.tensor([[0.5, 0.0], [0.0, 0.2]])
    m = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = m @ (0.9 * torch.eye(2) - g.mT @ g) - 0.1 * g
    assert_close(delta_momentum(m, g, 0.1, 0.9, form="printed"), expected)


@pytest.mark.parametrize("shape", ["vector", "matrix"])
def test_normalised_form_does_not_care_for_the_size_of_what_it_erases_along(shape):
    m, g = parameters(1)[0].detach(), parameters(2)[0].detach()
    write = delta_momentum(m, g, 0.1, 0.9, 0.7, shape=shape) + 0.1 * g
    assert_close(delta_momentum(m, 100 * g, 0.1, 0.9, 0.7, shape=shape) + 10 * g, write)


def test_matrix_form_erases_along_the_gradients_rows_and_only_there():
    """m = a u^T + b w^T, u and w orthonormal, gradient c u^T: along u it decays by alpha - beta, along w by alpha."""
    u, w = torch.tensor([0.6, 0.8, 0.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double()
    a, b, c = torch.randn(3, 2, dtype=torch.float64)
    m, g = torch.outer(a, u) + torch.outer(b, w), torch.outer(c, u)
    for _ in range(3):
        m = delta_momentum(m, g, lr=0.0, momentum=0.9, beta=0.6, shape="matrix", eps=1e-30)
    assert_close(m @ u, a * (0.9 - 0.6) ** 3)
    assert_close(m @ w, b * 0.9**3)


def test_vector_form_erases_along_the_gradient_and_only_there():
    u, w = torch.tensor([0.6, 0.8, 0.0]).double(), torch.tensor([0.8, -0.6, 2.0]).double()
    m = delta_momentum(3 * u + w, 5 * u, lr=0.0, momentum=0.9, beta=0.6, shape="vector", eps=1e-30)
    assert_close(m, 3 * (0.9 - 0.6) * u + 0.9 * w)


def test_a_constant_gradient_is_held_at_its_fixed_point():
    """m = (alpha - beta) m - lr g holds -lr g / (1 - alpha + beta); SGD's momentum would hold -lr g / (1 - alpha)."""
    g, m = torch.tensor([3.0, -4.0]).double(), torch.zeros(2).double()
    for _ in range(200):
        m = delta_momentum(m, g, 0.1, 0.9, 0.5, shape="vector", eps=1e-30)
    assert_close(m, -0.1 * g / 0.6)


@pytest.mark.parametrize(("form", "shape"), Forms)
def test_converges_on_a_quadratic(form, shape):
    """f(W) = |A W - B|^2 / 2 from W = 0, small enough for the printed form to be stable."""
    generator = torch.Generator().manual_seed(0)
    a = torch.diag(torch.tensor([1.0, 0.7, 0.5])).double()
    w = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    b = 0.5 * torch.randn(3, 2, generator=generator, dtype=torch.float64)
    optimizer = DeltaMomentum([w], 0.05, 0.9, 0.9, form, shape)
    for _ in range(2000):
        optimizer.zero_grad()
        (0.5 * (a @ w - b).square().sum()).backward()
        optimizer.step()
    assert_close(w.detach(), torch.linalg.solve(a, b), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("form", "shape"), Forms)
def test_continues_from_its_state_to_the_last_bit(form, shape, dtype, tmp_path):
    straight, halved = parameters(dtype=dtype), parameters(dtype=dtype)
    run(straight, DeltaMomentum(straight, 0.1, 0.9, 0.7, form, shape), range(8), 0.3)
    first = DeltaMomentum(halved, 0.1, 0.9, 0.7, form, shape)
    run(halved, first, range(4), 0.3)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = DeltaMomentum(halved, 0.3, 0.5, 0.2)  # everything about the rule comes from the state
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(halved, second, range(4, 8), 0.3)
    assert all(torch.equal(a, b) for a, b in zip(straight, halved, strict=True))
    assert all(s["momentum"].dtype == torch.promote_types(dtype, torch.float32) for s in second.state.values())


def test_loading_a_state_shares_no_memory_with_it():
    params = parameters()
    first, second = DeltaMomentum(params, 0.1), DeltaMomentum(params, 0.1)
    run(params, first, range(1))
    state = first.state_dict()
    second.load_state_dict(state)
    before = state["state"][0]["momentum"].clone()
    run(params, second, range(1))
    assert torch.equal(state["state"][0]["momentum"], before)


def test_bfloat16_parameters_follow_float32_momentum():
    p = torch.zeros(4, dtype=torch.bfloat16, requires_grad=True)
    optimizer = DeltaMomentum([p], 1.0, 0.9, 0.0)
    expected = torch.zeros(4)
    for _ in range(6):
        p.grad = torch.full((4,), 0.1, dtype=torch.bfloat16)
        optimizer.step()
        expected = 0.9 * expected - p.grad.float()
    assert_close(optimizer.state[p]["momentum"], expected)


def test_the_same_twice():
    first, second = parameters(dtype=torch.float32), parameters(dtype=torch.float32)
    run(first, DeltaMomentum(first, 0.1), range(5))
    run(second, DeltaMomentum(second, 0.1), range(5))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_groups_keep_their_own_rates_and_parameters_without_gradient_stay():
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    optimizer = DeltaMomentum([{"params": [a], "lr": 1.0}, {"params": [b, c]}], lr=0.1, beta=0.0)
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    assert [p.tolist() for p in (a, b, c)] == [[0.0, 0.0], [pytest.approx(0.9)] * 2, [1.0, 1.0]]
    assert c not in optimizer.state


def test_a_closure_is_called_with_gradients_and_its_loss_returned():
    p = torch.tensor([2.0], requires_grad=True)
    optimizer = DeltaMomentum([p], 0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert p.item() == pytest.approx(1.6)


def test_a_zero_gradient_only_decays():
    p = torch.zeros(3, requires_grad=True)
    optimizer = DeltaMomentum([p], 0.1, 0.9, 0.5)
    for gradient in (torch.ones(3), torch.zeros(3)):
        p.grad = gradient
        optimizer.step()
    assert_close(optimizer.state[p]["momentum"], torch.full((3,), -0.09))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"momentum": 1.1}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"momentum": 0.9, "beta": 1.95}, r"must lie in \(-1, 1\); so beta >= 0, above 0 and below 1.9"),
        ({"momentum": 0.9, "beta": -0.1}, "beta"),
        ({"momentum": 1.0, "beta": 0.0}, "beta"),
        ({"lr": -1.0}, "lr: -1.0 is not allowed; allowed: float >= 0"),
    ],
)
def test_values_outside_the_stable_region_are_refused(values, words):
    with pytest.raises(UserError, match=words):
        DeltaMomentum(parameters(), **values)


def test_the_edge_of_the_stable_region():
    """Just inside a repeated gradient decays, just outside it would grow."""
    m, g = torch.tensor([1.0, 0.0]).double(), torch.tensor([1.0, 0.0]).double()
    inside, outside = m, m
    for _ in range(400):
        inside = delta_momentum(inside, g, 0.0, 0.9, 1.88, shape="vector")
        outside = delta_momentum(outside, g, 0.0, 0.9, 1.92, shape="vector")
    assert inside.abs().max() < 1e-3
    assert outside.abs().max() > 1e3
    DeltaMomentum(parameters(), momentum=0.9, beta=1.88)


def test_sparse_gradients_are_refused():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="dense"):
        DeltaMomentum(embedding.parameters(), 0.1).step()
