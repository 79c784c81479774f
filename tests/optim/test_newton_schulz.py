"""What Newton-Schulz is: a polynomial of the singular values that ends near 1, and a step down a gradient."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nested.optim.newton_schulz import QUINTIC, newton_schulz, orthogonalisation_step


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (100, 150), (64, 256), (256, 64), (10, 784), (256, 384)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_singular_values_of_gaussian_matrices_end_near_one(shape, dtype):
    for seed in range(3):
        out = newton_schulz(gaussian(*shape, seed=seed, dtype=dtype))
        assert out.dtype is dtype
        values = torch.linalg.svdvals(out.double())
        assert 0.6 < values.min() < values.max() < 1.2


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (6, 6), (7, 11), (11, 7)])
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("coefficients", [QUINTIC, (1.5, -0.5, 0.0)])
def test_is_its_polynomial_applied_to_each_singular_value(shape, steps, coefficients):
    g = gaussian(*shape)
    a, b, c = coefficients
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    assert_close(newton_schulz(g, steps, coefficients), u @ torch.diag(s) @ vt, rtol=1e-10, atol=1e-10)


def test_the_cubic_converges_to_the_orthogonal_factor():
    g = gaussian(6, 10)
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    assert_close(newton_schulz(g, 30, (1.5, -0.5, 0.0)), u @ vt, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 5, 3), (2, 3, 4, 4), (1, 2, 9), (0, 3, 4)])
def test_a_batch_is_its_matrices_one_by_one(shape):
    g = gaussian(*shape)
    singles = [newton_schulz(m) for m in g.reshape(-1, *shape[-2:])]
    expected = torch.stack(singles).reshape(shape) if singles else g
    assert_close(newton_schulz(g), expected, rtol=1e-12, atol=1e-12)


def test_the_transposed_matrix_gives_the_transposed_result():
    assert_close(newton_schulz(gaussian(5, 9).mT), newton_schulz(gaussian(5, 9)).mT)


@pytest.mark.parametrize("size", [1e-4, 1e6])
def test_the_size_of_the_matrix_makes_no_difference(size):
    assert_close(newton_schulz(size * gaussian(5, 9)), newton_schulz(gaussian(5, 9)))


@pytest.mark.parametrize("size", [0.0, 1e-30])
def test_almost_nothing_stays_almost_nothing(size):
    out = newton_schulz(size * gaussian(4, 6, dtype=torch.float32))
    assert out.isfinite().all()
    assert out.abs().max() < 1e-18


def test_a_matrix_that_is_not_finite_spoils_itself_and_no_other():
    g = gaussian(3, 4, 6)
    g[1, 0, 0] = torch.nan
    out = newton_schulz(g)
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()


def test_leaves_its_input_alone_and_passes_gradients():
    g = gaussian(3, 5).requires_grad_()
    before = g.detach().clone()
    assert torch.autograd.gradcheck(newton_schulz, (g,))
    assert torch.equal(g, before)


@pytest.mark.parametrize("shape", [(), (5,)])
def test_a_tensor_that_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match="it needs a matrix"):
        newton_schulz(torch.ones(shape))


@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 3), (2, 5, 3)])
def test_orthogonalisation_step_goes_down_the_gradient_of_both_terms(shape):
    o, g = gaussian(*shape, seed=1).requires_grad_(), gaussian(*shape, seed=2)
    excess = o.mT @ o - torch.eye(shape[-1], dtype=torch.float64)
    objective = 0.5 * (o - g).square().sum() + 0.5 * excess.square().sum()
    (gradient,) = torch.autograd.grad(objective, o)
    assert_close(orthogonalisation_step(o.detach(), g, 0.3), o.detach() - 0.3 * gradient)


def test_orthogonalisation_steps_stop_between_the_gradient_and_orthogonality():
    """At the fixed point each singular value solves o - s + 2 o (o^2 - 1) = 0, which lies between s and 1."""
    u, s, vt = torch.linalg.svd(gaussian(4, 4), full_matrices=False)
    g = u @ torch.diag(s / s.max() * 0.9) @ vt
    o = g
    for _ in range(2000):
        o = orthogonalisation_step(o, g, 0.02)
    before, after = torch.linalg.svdvals(g), torch.linalg.svdvals(o)
    assert_close(after - before + 2 * after * (after.square() - 1), torch.zeros(4).double(), rtol=0, atol=1e-6)
    assert ((before < after) & (after < 1)).all()
