"""Appendix B: the printed sums by hand, Adam and AdaGrad of torch where they meet."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nested.errors import UserError
from nested.optim import AssociativeAdam
from nested.optim.associative_adam import adam_step

Shapes = [(3, 4), (5,), (), (2, 3, 2, 2), (5, 2)]


def parameters(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in Shapes]


def run(params: list[Tensor], optimizer: torch.optim.Optimizer, steps: int = 30) -> None:
    for step in range(steps):
        for p, g in zip(params, parameters(100 + step)):
            p.grad = g.detach()
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_averages_and_diagonal_are_torchs_adam(weight_decay):
    ours, torchs = parameters(), parameters()
    run(ours, AssociativeAdam(ours, 0.1, weight_decay=weight_decay))
    run(torchs, torch.optim.Adam(torchs, 0.1, weight_decay=weight_decay))
    assert_close(ours, torchs, rtol=0, atol=1e-12)


def test_sums_and_diagonal_without_momentum_are_torchs_adagrad():
    ours, torchs = parameters(), parameters()
    run(ours, AssociativeAdam(ours, 0.1, (0.9, 1.0), "sums", momentum=False, eps=1e-10))
    run(torchs, torch.optim.Adagrad(torchs, 0.1, eps=1e-10))
    assert_close(ours, torchs, rtol=0, atol=1e-12)


def test_printed_elementwise_form_equals_loops_over_numbers():
    """Eq. 102, 105, letter by letter."""
    ours = parameters()
    expected = [p.flatten().tolist() for p in ours]
    run(ours, AssociativeAdam(ours, 0.1, (0.7, 0.4), "sums", eps=1e-3), 10)
    for index, w in enumerate(expected):
        m, h = [0.0] * len(w), [0.0] * len(w)
        for step in range(10):
            for j, g in enumerate(parameters(100 + step)[index].flatten().tolist()):
                m[j] += 0.7 * g
                h[j] += 0.4 * g * g
                w[j] -= 0.1 / math.sqrt(0.4) * m[j] / (math.sqrt(h[j]) + 1e-3)
        assert_close(ours[index].flatten().tolist(), w, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (2, 3, 2)])
def test_printed_outer_form_equals_equation_111_with_an_explicit_inverse_root(shape):
    """X = H^(-1/2) by the Denman-Beavers iteration; an identity in H at the start makes it regular and eps zero."""
    generator = torch.Generator().manual_seed(0)
    p = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = AssociativeAdam([p], 0.1, (0.7, 0.4), "sums", "left", eps=1e-30)
    h = torch.eye(shape[0], dtype=torch.float64)
    m, w = torch.zeros(shape[0], math.prod(shape[1:]), dtype=torch.float64), torch.zeros_like(p).flatten(1)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.state[p]["second_moment"].copy_(h)
    for _ in range(8):
        p.grad = torch.randn(shape, dtype=torch.float64, generator=generator)
        optimizer.step()
        g = p.grad.flatten(1)
        m, h = m + 0.7 * g, h + 0.4 * g @ g.mT
        y, z = h, torch.eye(shape[0], dtype=torch.float64)
        for _ in range(30):
            y, z = (y + torch.linalg.inv(z)) / 2, (z + torch.linalg.inv(y)) / 2
        w = w - 0.1 / math.sqrt(0.4) * z @ m
    assert_close(p.detach().flatten(1), w, rtol=1e-9, atol=1e-9)


def test_sums_never_forget_and_averages_do():
    """Without further gradients: the printed step stays as it is, Adam's dies away."""
    steps = {}
    for accumulate in ("sums", "ema"):
        p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = AssociativeAdam([p], 0.1, accumulate=accumulate)
        for step in range(100):
            p.grad = torch.ones_like(p) if step == 0 else torch.zeros_like(p)
            before = p.detach().clone()
            optimizer.step()
            steps[accumulate, step] = (p.detach() - before)[0].item()
    assert steps["sums", 99] == pytest.approx(steps["sums", 0], rel=1e-6)
    assert abs(steps["ema", 99]) < 1e-2 * abs(steps["ema", 0])


def test_outer_form_of_a_matrix_with_orthogonal_rows_is_its_rows_normalised():
    """G G^T is diagonal there: H^(-1/2) divides each row by its length."""
    g = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]).double()
    step = adam_step(g, g @ g.mT, 1, 1.0, (1.0, 1.0), "sums", "left", eps=1e-30)
    assert_close(step, -g / torch.linalg.vector_norm(g, dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"betas": (0.9, 1.0)}, "betas below 1"),
        ({"betas": (1.0, 0.9)}, "betas below 1"),
        ({"betas": (0.9, 0.0), "accumulate": "sums"}, "above 0"),
        ({"betas": (0.9, 1.5)}, r"betas\[1\]: 1.5 is not allowed; allowed: float >= 0 and <= 1"),
        ({"betas": (0.9,)}, "betas: .* is not allowed"),
        ({"form": "outer"}, "form: 'outer' is not allowed; allowed: diagonal | left"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(values, words):
    with pytest.raises(UserError, match=words):
        AssociativeAdam(parameters(), **values)
