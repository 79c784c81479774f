"""The Gram form is the quintic in float64, has its error in float32 and bfloat16, and batches are their matrices."""

import re
from typing import Any

import pytest
import torch
from nested_kernels import backend, newton_schulz, newton_schulz_each
from nested_kernels.newton_schulz.gram import runs
from nested_kernels.newton_schulz.op import stacked
from nested_kernels.newton_schulz.reference import QUINTIC
from torch import Tensor
from torch.testing import assert_close


def matrix(m: int, n: int, spectrum: str = "gaussian", seed: int = 0) -> Tensor:
    """(m, n) float64: Gaussian, or with singular values that fall off, as those of momenta do."""
    g = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if spectrum == "gaussian":
        return g
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    i = torch.arange(1, m + 1, dtype=torch.float64)
    falling = {"1 / i": 1 / i, "1 / i^2": i**-2, "1e-8 at the end": 10 ** (-8 * i / m), "rank 4": (i <= 4).double()}
    return u @ torch.diag(falling[spectrum]) @ v


@pytest.mark.parametrize("shape", [(4, 12), (12, 4), (5, 5), (1, 7), (3, 2, 4, 16), (0, 3, 9), (3, 0)])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 6, 9])
@pytest.mark.parametrize("coefficients", [QUINTIC, (1.5, -0.5, 0.0)])
def test_the_gram_form_is_the_quintic(shape: tuple[int, ...], steps: int, coefficients: Any) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = newton_schulz(g, steps, coefficients, backend="reference")
    assert_close(newton_schulz(g, steps, coefficients, backend="gram"), exact, rtol=1e-9, atol=1e-10)


def test_runs_are_short() -> None:
    assert [list(runs(n)) for n in (0, 1, 2, 5, 9)] == [[], [1], [2], [2, 3], [2, 3, 3, 1]]


@pytest.mark.parametrize("spectrum", ["gaussian", "1 / i", "1 / i^2", "1e-8 at the end", "rank 4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_error_is_that_of_the_quintic(spectrum: str, dtype: torch.dtype) -> None:
    """In one run, without a restart, it would be 40 to 40,000 in bfloat16, for all spectra but the first."""
    found: dict[str, list[float]] = {"reference": [], "gram": []}
    for seed in range(3):
        g = matrix(48, 192, spectrum, seed).to(dtype)
        exact = newton_schulz(g.double(), backend="reference")
        for name, errors in found.items():
            y = newton_schulz(g, backend=name)  # type: ignore[arg-type]
            assert y.dtype == dtype
            errors.append(float((y.double() - exact).norm() / exact.norm()))
    assert max(found["gram"]) < 3 * max(found["reference"])


@pytest.mark.parametrize("form", ["reference", "gram"])
def test_it_is_differentiated_to_any_order(form: Any) -> None:
    g = matrix(2, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: newton_schulz(x, 3, backend=form), (g,))
    assert torch.autograd.gradgradcheck(lambda x: newton_schulz(x, 3, backend=form), (g,))


@pytest.mark.parametrize("form", ["reference", "gram"])
def test_what_devices_batch_is_each_matrix_by_itself(form: Any) -> None:
    shapes = [(4, 12), (12, 4), (3, 5), (4, 12), (5, 5), (5, 3), (1, 9), (3, 0)]
    gs = [matrix(*s, seed=i) for i, s in enumerate(shapes)]
    gs.append(gs[0].float())
    found = stacked(gs, 5, QUINTIC, form)
    assert [(x.shape, x.dtype) for x in found] == [(g.shape, g.dtype) for g in gs]
    assert_close(found, [newton_schulz(g, backend=form) for g in gs], rtol=1e-6, atol=1e-6)
    assert_close(newton_schulz_each(gs, backend=form), found, rtol=1e-6, atol=1e-6)


def test_a_cpu_keeps_the_quintic_one_by_one() -> None:
    gs = [matrix(4, 12).float(), matrix(4, 12, seed=1).float()]
    assert all(torch.equal(a, newton_schulz(g, backend="reference")) for a, g in zip(newton_schulz_each(gs), gs))


def test_wrong_input_is_named(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    with pytest.raises(ValueError, match=r"g has shape \(3,\); it needs a matrix"):
        newton_schulz(torch.ones(3))
    with pytest.raises(ValueError, match=r"g is torch.int64; floating-point dtypes are allowed"):
        newton_schulz(torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"g is None; a tensor \(\*B, O, I\) is needed"):
        newton_schulz(None)  # type: ignore[arg-type]
    for steps in (-1, 1.5):
        with pytest.raises(ValueError, match=f"steps is {steps}; an integer, 0 or more is allowed"):
            newton_schulz(torch.ones(3, 4), steps)  # type: ignore[arg-type]
    for wrong in ((1.0, 2.0), 1.0, None):
        with pytest.raises(ValueError, match=f"coefficients is {re.escape(repr(wrong))}; three numbers are allowed"):
            newton_schulz(torch.ones(3, 4), 5, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="coefficients has 'c'; finite numbers are allowed"):
        newton_schulz(torch.ones(3, 4), 5, (1.0, 2.0, "c"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend is 'triton'; allowed: auto, reference, gram"):
        newton_schulz(torch.ones(3, 4), backend="triton")  # type: ignore[arg-type]
    monkeypatch.setenv(backend.ENVIRONMENT, "chunked")
    backend._say.cache_clear()
    newton_schulz(torch.ones(3, 4))
    line = 'newton_schulz: backend "auto" in place of "chunked": it has no such form'
    assert [r.getMessage() for r in caplog.records] == [line]


@pytest.mark.parametrize(
    ("gs", "words"),
    [
        (None, "gs is None; a list of matrices is needed"),
        (torch.ones(2, 3, 4), "gs is a Tensor; a list of matrices is needed"),
        ((torch.ones(3, 4) for _ in range(2)), "gs is a generator; a list of matrices is needed"),
        ([torch.ones(3, 4), None], r"gs\[1\] is None; a tensor \(\*B, O, I\) is needed"),
        ([torch.ones(3, device="meta")], r"gs\[0\] has shape \(3,\); it needs a matrix"),
        ([torch.ones(2, 3, 4)], r"gs\[0\] has shape \(2, 3, 4\); it needs a matrix, \(O, I\)"),
        ([torch.ones(3, 4), torch.ones(3, 4).int()], r"gs\[1\] is torch.int32; floating-point"),
        ([torch.ones(3, 4)] * 2 + [torch.ones(3, 4, device="meta")], r"gs\[2\] is on meta and gs\[0\] on cpu; one dev"),
    ],
)
def test_what_is_wrong_with_many_is_named(gs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"newton_schulz: {words}"):
        newton_schulz_each(gs)
    assert newton_schulz_each([]) == []
