"""Preconditioned and feature-map momentum: torch's SGD, RMSProp and Adam where they meet, Eq. 47 and 51 by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nested.errors import UserError
from nested.optim import PreconditionedMomentum
from nested.optim.preconditioned_momentum import feature, preconditioned_momentum

Shapes = [(3, 4), (5,), (), (2, 3, 2, 2), (5, 2)]


def parameters(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in Shapes]


def run(params: list[Tensor], optimizer: torch.optim.Optimizer, steps: int = 20) -> None:
    for step in range(steps):
        for p, g in zip(params, parameters(100 + step)):
            p.grad = g.detach()
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_identities_are_torchs_sgd_with_momentum(weight_decay):
    ours, torchs = parameters(), parameters()
    rule = PreconditionedMomentum(
        ours, 0.1, 0.9, precondition="identity", feature_map="identity", weight_decay=weight_decay
    )
    run(ours, rule)
    run(torchs, torch.optim.SGD(torchs, 0.1, 0.9, weight_decay=weight_decay))
    assert_close(ours, torchs, rtol=0, atol=1e-12)
    assert all(set(state) == {"step", "momentum"} for state in rule.state.values())


def test_diagonal_without_momentum_is_adam_without_its_first_moment():
    ours, torchs = parameters(), parameters()
    run(ours, PreconditionedMomentum(ours, 0.1, 0.0, beta2=0.97))
    run(torchs, torch.optim.Adam(torchs, 0.1, betas=(0.0, 0.97)))
    assert_close(ours, torchs, rtol=0, atol=1e-12)


def test_diagonal_is_torchs_rmsprop_with_momentum_once_its_mean_has_no_bias():
    """Torch's RMSProp corrects no bias: started at the same mean and a late step they are equal."""
    ours, torchs = parameters(), parameters()
    rule = PreconditionedMomentum(ours, 0.1, 0.9, beta2=0.97)
    theirs = torch.optim.RMSprop(torchs, 0.1, alpha=0.97, momentum=0.9)
    for optimizer, params in ((rule, ours), (theirs, torchs)):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for p, q in zip(ours, torchs):
        rule.state[p]["second_moment"].fill_(0.5)
        rule.state[p]["step"] = 10**6
        theirs.state[q]["square_avg"].fill_(0.5)
    run(ours, rule)
    run(torchs, theirs)
    assert_close(ours, torchs, rtol=0, atol=1e-12)


def phi(values: list[float], kind: str) -> list[float]:
    norm = math.sqrt(sum(v * v for v in values))
    root_mean_square = norm / math.sqrt(len(values))
    return {
        "identity": values,
        "sign": [math.copysign(1.0, v) for v in values],
        "tanh": [math.tanh(v / root_mean_square) for v in values],
        "unit": [v / norm for v in values],
    }[kind]


@pytest.mark.parametrize("kind", ["identity", "sign", "tanh", "unit"])
def test_diagonal_equals_loops_over_numbers(kind):
    ours = parameters()
    expected = [p.flatten().tolist() for p in ours]
    run(ours, PreconditionedMomentum(ours, 0.1, 0.8, 0.9, "diagonal", kind, eps=1e-12), 10)
    for index, w in enumerate(expected):
        m, v = [0.0] * len(w), [0.0] * len(w)
        for step in range(10):
            key = phi(parameters(100 + step)[index].flatten().tolist(), kind)
            for j, k in enumerate(key):
                v[j] = 0.9 * v[j] + 0.1 * k * k
                m[j] = 0.8 * m[j] - 0.1 * k / math.sqrt(v[j] / (1 - 0.9 ** (step + 1)))
                w[j] += m[j]
        assert_close(ours[index].flatten().tolist(), w, rtol=1e-9, atol=1e-9)


def test_left_is_equation_47_with_the_inverse_root_of_the_mean_gram_matrix():
    """The inverse root of H is the one positive matrix P with P H P = 1."""
    m, h = torch.zeros(3, 7, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    gs = torch.randn(6, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for step, g in enumerate(gs, 1):
        before = m
        m, h = preconditioned_momentum(m, g, h, step, 0.1, 0.8, 0.9, "left", eps=1e-30)
        value = (0.8 * before - m) / 0.1  # P g
        p = value @ torch.linalg.pinv(g)
        weights = [0.1 * 0.9 ** (step - i) / (1 - 0.9**step) for i in range(1, step + 1)]
        mean = sum(w * (x @ x.mT) for w, x in zip(weights, gs))
        assert_close(p @ mean @ p, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-10)
        assert_close(p, p.mT)
        assert torch.linalg.eigvalsh((p + p.mT) / 2).min() > 0


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 2, 3)])
def test_left_without_memory_orthogonalises_each_gradient(shape):
    """(g g^T)^(-1/2) g = U V^T: what Muon's Newton-Schulz is near to."""
    p = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    g = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p.grad = g
    PreconditionedMomentum([p], 1.0, 0.0, beta2=0.0, precondition="left").step()
    u, _, v = torch.linalg.svd(g.flatten(1), full_matrices=False)
    assert_close(-p.detach().flatten(1), u @ v, rtol=0, atol=1e-6)


def test_unit_and_sign_do_not_care_for_the_size_of_the_gradient_and_tanh_lies_between_sign_and_proportion():
    g = parameters()[0].detach()
    for kind in ("sign", "unit", "tanh"):
        assert_close(feature(100 * g, kind), feature(g, kind))
    small, large = feature(torch.tensor([0.01, 3.0]), "tanh")
    assert small < 0.01
    assert 0.8 < large < 1


@pytest.mark.parametrize("kind", ["identity", "sign", "tanh", "unit"])
def test_zero_has_zero_features(kind):
    for p in parameters():
        assert torch.equal(feature(torch.zeros_like(p), kind), torch.zeros_like(p))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"momentum": 1.1}, "momentum: 1.1 is not allowed; allowed: float >= 0 and <= 1"),
        ({"beta2": 1.0}, "beta2: 1.0 is not allowed; allowed: float >= 0 and < 1"),
        ({"precondition": "diag"}, "did you mean 'diagonal'.*allowed: identity | diagonal | left"),
        ({"feature_map": "relu"}, "feature_map: 'relu' is not allowed; allowed: identity | sign | tanh | unit"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(values, words):
    with pytest.raises(UserError, match=words):
        PreconditionedMomentum(parameters(), **values)
