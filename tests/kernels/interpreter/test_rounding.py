"""The interpreter rounds as the chip does, and the NaN that it begins with is there: what other tests here rely on."""

import pytest
import torch
import triton
import triton.language as tl
from nested_kernels import backend as ours
from torch import Tensor
from torch.testing import assert_close


@triton.jit
def multiply(a, b, c, PRECISION: tl.constexpr):
    i = tl.arange(0, 32)
    at = i[:, None] * 32 + i[None, :]
    found = tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION)
    tl.store(c + at, found.to(c.dtype.element_ty))


@triton.jit
def arithmetic(a, b, c):
    i = tl.arange(0, 32)
    at = i[:, None] * 32 + i[None, :]
    x, y = tl.load(a + at), tl.load(b + at)
    found = tl.where(x > y, x + y, x * y) + tl.exp(tl.sum(x.to(tl.float32), 1) / 32)[:, None].to(tl.bfloat16)
    tl.store(c + at, found)


def operands(dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(32, 32).to(dtype) for _ in range(2)]


def error(precision: str) -> float:
    a, b = operands(torch.float32)
    c = torch.empty(32, 32)
    multiply[(1,)](a, b, c, precision)
    exact = a.double() @ b.double()
    return float((c - exact).norm() / exact.norm())


def test_float32_products_have_the_error_of_their_precision() -> None:
    assert error("ieee") < 2e-7
    assert error("tf32x3") < 5e-7
    assert 1e-4 < error("tf32") < 1e-3


def test_bfloat16_products_are_exact_and_rounded_to_nearest() -> None:
    a, b = operands(torch.bfloat16)
    c = torch.empty(32, 32, dtype=torch.bfloat16)
    multiply[(1,)](a, b, c, "ieee")
    assert_close(c, (a.double() @ b.double()).bfloat16(), rtol=2**-8, atol=1e-6)
    x = torch.randn(32, 32)
    multiply[(1,)](x, torch.eye(32), c, "ieee")  # a copy: only the store rounds
    assert torch.equal(c, x.bfloat16())


def test_bfloat16_arithmetic_is_torchs() -> None:
    a, b = operands(torch.bfloat16)
    c = torch.empty(32, 32, dtype=torch.bfloat16)
    arithmetic[(1,)](a, b, c)
    added = (a.float().sum(1, keepdim=True) / 32).exp().bfloat16()
    assert_close(c, torch.where(a > b, a + b, a * b) + added, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("allocate", ["torch.empty(3)", "torch.empty_like(x)", "x.new_empty(3)"])
def test_what_the_package_allocates_begins_as_nan(allocate: str) -> None:
    x = torch.ones(3)
    assert eval(allocate, {**vars(ours), "x": x}).isnan().all()
    assert not eval(allocate, {"torch": torch, "x": x}).isnan().any()
