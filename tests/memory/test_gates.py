"""Gates that reach what they promise to reach, and norms that are safe where there is nothing to normalise."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nested.errors import UserError
from nested.memory.gates import gate, gate_bias, rate, read_norm, unit


def test_a_hard_gate_reaches_both_ends_exactly_and_a_sigmoid_neither() -> None:
    z = torch.tensor([-8.0, -2.5, 0.0, 2.5, 8.0])
    assert gate(z, "hard").tolist() == [0, 0, 0.5, 1, 1]
    soft = gate(z)
    assert ((soft > 0) & (soft < 1)).all()
    assert_close(soft, torch.sigmoid(z))


@pytest.mark.parametrize("kind", ["sigmoid", "hard"])
@pytest.mark.parametrize("start", [0.01, 0.5, 0.99, 0.9999])
def test_a_gate_begins_where_it_is_told_to_and_can_leave(start: float, kind: Any) -> None:
    z = torch.tensor(gate_bias(start, kind), dtype=torch.float64, requires_grad=True)
    assert_close(gate(z, kind), torch.tensor(start, dtype=torch.float64))
    (slope,) = torch.autograd.grad(gate(z, kind), z)
    assert slope > 0


def test_only_a_hard_gate_begins_at_the_ends() -> None:
    for end in (0.0, 1.0):
        assert_close(gate(torch.tensor(gate_bias(end, "hard")), "hard"), torch.tensor(end))
        with pytest.raises(UserError, match=f"alpha_start: {end:g} is not allowed for a sigmoid gate"):
            gate_bias(end)
    with pytest.raises(UserError, match=r"1\.1 is not allowed for a hard gate; a value from 0 to 1 is: .* grow"):
        gate_bias(1.1, "hard")


def test_the_rate_stays_within_its_bound_and_a_hard_one_reaches_it() -> None:
    z, alpha = torch.randn(4, 100) * 10, torch.rand(4, 100)
    for eta_max in (1.0, 2 / 3):
        eta = rate(z, alpha, eta_max)
        assert ((eta >= 0) & (eta <= eta_max * alpha)).all()
    assert (rate(z, alpha, 0.5, "hard") == 0.5 * alpha).any()


def test_unit_vectors_have_length_one_in_every_precision() -> None:
    x = torch.randn(50, 7)
    assert_close(unit(x).norm(dim=-1), torch.ones(50))
    assert_close(unit(x.double()).norm(dim=-1), torch.ones(50, dtype=torch.float64), rtol=1e-14, atol=0)
    assert_close(unit(x * 1e-2), unit(x))


def barely_rounded_up(size: int, eps: float, shortened: float) -> Tensor:
    """(size,) of length 1: most entries, times `shortened`, lie just above the middle between a power of two and the
    number after it, and so are rounded up by the most there is; one has the rest."""
    entry = size**-0.5 * (1 + eps / 2) * (1 + 1e-6) / shortened
    most = int(entry**-2)
    x = torch.zeros(size, dtype=torch.float64)
    x[:most] = entry
    x[most] = math.sqrt(1 - most * entry**2)
    return x.float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [4, 16, 64, 256])
def test_unit_vectors_in_half_precision_are_rounded_to_no_more_than_length_one(size: int, dtype: torch.dtype) -> None:
    """Every entry is rounded by a factor of at most 1 + eps / 2, and (1 + eps / 2) (1 - eps / 2) < 1."""
    eps = torch.finfo(dtype).eps
    worst = [barely_rounded_up(size, eps, shortened) for shortened in (1, 1 - eps / 2)]
    assert worst[0].to(dtype).double().norm() > 1 + eps / 8  # which is what has to be shortened
    uneven = torch.randn(2000, size) * torch.randn(2000, size).exp()
    for x in (torch.stack(worst), torch.randn(2000, size), uneven, torch.eye(size)):
        for y, exact in ((unit(x, dtype), unit(x)), (unit(x.to(dtype)), unit(x.to(dtype).float()))):
            assert y.dtype == dtype
            assert y.double().norm(dim=-1).max() <= 1
            assert (y.double() - exact).norm(dim=-1).max() <= eps


def test_a_unit_vector_has_the_dtype_of_its_input_or_one_that_is_asked_for() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert unit(torch.ones(3, dtype=dtype)).dtype == dtype
    assert torch.equal(unit(torch.ones(3), torch.float64), unit(torch.ones(3)).double())
    assert unit(torch.ones(3, dtype=torch.float64), torch.float32).norm() <= 1


def test_a_normalised_read_has_root_mean_square_one() -> None:
    y = torch.randn(5, 9, dtype=torch.float64)
    assert_close(read_norm(y).square().mean(-1), torch.ones(5, dtype=torch.float64), rtol=1e-4, atol=0)
    assert read_norm(y.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("norm", [unit, read_norm])
def test_norms_have_finite_first_and_second_derivatives_at_zero(norm: Any) -> None:
    x = torch.zeros(3, 4, requires_grad=True)
    (first,) = torch.autograd.grad(norm(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum() + norm(x).sum(), x)
    assert (norm(x) == 0).all()
    for derivative in (first, second):
        assert derivative.isfinite().all()
        assert derivative.abs().max() <= 1e3
