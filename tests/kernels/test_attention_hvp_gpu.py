"""Attention in Triton on the device: the formula in float64, differentiated twice, taken by itself, memory linear."""

from typing import Any

import pytest
import torch
from nested_kernels import attention_hvp
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

# queries, keys, head size, window
Cases = [
    (1, 165, 64, 100),
    (63, 63, 64, None),
    (65, 165, 80, 100),
    (65, 165, 96, None),
    (500, 700, 128, 300),
    (300, 300, 80, 1),
    (1024, 3072, 64, 2048),
    (200, 200, 40, 16),
]
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 8e-3}


def draw(t: int, n: int, size: int, b: int = 2, h: int = 3) -> list[Tensor]:
    """q, k, v, the output's gradient, and what the gradients of q, k and v are weighted with."""
    g = torch.Generator().manual_seed(t + n)
    return [torch.randn(b, tokens, h, size, generator=g).cuda() for tokens in (t, n, n, t, t, n, n)]


def everything(x: list[Tensor], window: int | None, backend: Any) -> dict[str, Tensor]:
    """The output, its gradients, and the gradients of a weighted sum of those."""
    *leaves, u_q, u_k, u_v = x
    q, k, v, d_out = leaves = [t.detach().requires_grad_() for t in leaves]
    y = attention_hvp(q, k, v, window, backend)
    first = torch.autograd.grad(y, (q, k, v), d_out, create_graph=True)
    second = torch.autograd.grad(first, leaves, (u_q, u_k, u_v))
    names = ("y", "dq", "dk", "dv", "second q", "second k", "second v", "second dy")
    return dict(zip(names, (t.detach() for t in (y, *first, *second))))


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize(("t", "n", "size", "window"), Cases)
def test_it_is_the_formula_in_values_and_both_derivatives(
    t: int, n: int, size: int, window: int | None, dtype: torch.dtype
) -> None:
    x = [o.to(dtype) for o in draw(t, n, size)]
    exact, found = everything([o.double() for o in x], window, "reference"), everything(x, window, "triton")
    for name in exact:  # a window of 1 has no gradient in its scores, and what is found there is measured at 1
        size_of_it = exact[name].norm().clamp_min(exact[name].numel() ** 0.5 if window == 1 else 0)
        assert (found[name] - exact[name]).norm() < BOUNDS[dtype] * size_of_it, name


def test_auto_is_triton_here_in_all_orders_it_has() -> None:
    x = [o.bfloat16() for o in draw(130, 200, 64)]
    auto, triton = everything(x, 100, "auto"), everything(x, 100, "triton")
    assert all(torch.equal(auto[name], triton[name]) for name in auto)  # nothing is added up in an order of chance


def test_memory_is_linear_in_tokens_to_the_second_derivative() -> None:
    def peak(tokens: int) -> int:
        x = [o.bfloat16() for o in draw(tokens, tokens, 64, b=1, h=4)]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        everything(x, None, "triton")
        return torch.cuda.max_memory_allocated() - before

    assert peak(8192) < 2.2 * peak(4096)


def test_compiled_it_has_no_graph_break() -> None:
    x = [o.requires_grad_() for o in draw(65, 102, 32)[:3]]

    def loss(*x: Tensor) -> Tensor:
        return attention_hvp(*x, 30).square().sum()  # type: ignore[misc]

    plain = torch.autograd.grad(loss(*x), x)
    for got, wanted in zip(torch.autograd.grad(torch.compile(loss, fullgraph=True)(*x), x), plain):
        assert (got - wanted).norm() < 1e-4 * wanted.norm()
