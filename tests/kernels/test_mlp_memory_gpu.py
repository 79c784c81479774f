"""The two-layer memory in Triton on the device: the float64 token loop, taken by itself, and refused what it lacks."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nested_kernels import MLPState, Weights, mlp_memory
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

HOPE: dict[str, Any] = {"values": "own", "retain": "initial"}
TITANS: dict[str, Any] = {"rule": "gd", "bounded": False, "read": "after", "momentum": True}
# tokens, memories, K, E, tokens of the open chunk, options
Cases: list[tuple[int, int, int, int, int, dict[str, Any]]] = [
    (200, 5, 64, 64, 0, {**HOPE, "anchor": 32}),
    (200, 2, 64, 256, 7, {**HOPE, "anchor": 64}),
    (1, 2, 32, 33, 3, {**HOPE, "anchor": 16}),
    (300, 1, 64, 256, 0, {**TITANS, "anchor": 32}),
    (100, 1, 128, 512, 5, {**TITANS, "anchor": 16, "retain": "initial"}),
    (130, 1, 60, 100, 0, {"erase": "input", "anchor": 64}),
]
BOUNDS = {torch.float32: (1e-5, 2e-5), torch.bfloat16: (8e-3, 2e-2)}  # of values, of gradients


def draw(tokens: int, N: int, K: int, E: int) -> list[Tensor]:
    """q, k, v, eta, alpha, beta, then weights, anchor, momentum, initial, in float64; eta at most alpha / 2."""
    g = torch.Generator().manual_seed(tokens)
    q, k, v = (F.normalize(torch.randn(2, 3, tokens, K, generator=g, dtype=torch.float64), dim=-1) for _ in range(3))
    alpha, eta, beta = (torch.rand(2, 3, tokens, generator=g, dtype=torch.float64) for _ in range(3))
    alpha = 1 - 0.1 * alpha
    layers = [(E, K), (K, E)] * 4
    held = [torch.randn(2, 3, N, *s, generator=g, dtype=torch.float64) / s[1] ** 0.5 for s in layers]
    return [q, k, v, 0.5 * alpha * eta, alpha, beta, *held]


def everything(x: list[Tensor], open_: int, options: dict[str, Any], backend: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Values, and gradients of a fixed sum of them."""
    leaves = [t.detach().requires_grad_() for t in x]
    weights, anchor, momentum, initial = (Weights(*leaves[i : i + 2]) for i in range(6, 14, 2))
    given = {**options, "backend": backend, **({"initial": initial} if options.get("retain") == "initial" else {})}
    heap = momentum if given.pop("momentum", False) else None
    state = MLPState(weights, anchor if open_ else None, heap, open_)
    q, k, v, eta, alpha, beta = leaves[:6]
    y, end = mlp_memory(q, k, v, eta, alpha, state, beta=None if heap is None else beta, **given)
    assert y is not None
    found = [y, *end.weights, *(end.momentum or ())]
    sums = [(o.double() * torch.arange(o.numel(), device=o.device).cos().view_as(o)).sum() for o in found]
    grads = torch.autograd.grad(torch.stack(sums).sum(), leaves, allow_unused=True)
    return [o.detach() for o in found], [g for g in grads if g is not None]


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("case", range(len(Cases)))
def test_it_is_the_token_loop_in_values_and_all_gradients(case: int, dtype: torch.dtype) -> None:
    *sizes, open_, options = Cases[case]
    if dtype == torch.float32:
        if sizes[2] > 64:
            pytest.skip("wider than the kernels are in float32")
        options = {**options, "anchor": min(options["anchor"], 16)}
    x = [t.to(dtype if i < 3 else torch.float32) for i, t in enumerate(draw(*sizes))]
    exact = everything([t.double().cuda() for t in x], open_, options, "reference")
    found = everything([t.cuda() for t in x], open_, options, "triton")
    for part, bound, name in zip(range(2), BOUNDS[dtype], ("values", "gradients")):
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(found[part], exact[part])]
        assert max(errors) < bound, (name, errors)


def loss(x: list[Tensor], backend: Any) -> Tensor:
    q, k, v, eta, alpha, _, *held = x
    y, state = mlp_memory(q, k, v, eta, alpha, Weights(*held), values="own", anchor=16, backend=backend)
    assert y is not None
    return y.square().sum() + state.weights.down.sin().sum()


def test_auto_is_triton_here_and_differentiates_twice() -> None:
    x = [t.float().cuda() for t in draw(65, 2, 32, 32)[:8]]
    assert torch.equal(loss(x, "auto"), loss(x, "triton"))

    def second(backend: Any) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in x]
        used = [t for i, t in enumerate(leaves) if i != 5]
        first = torch.autograd.grad(loss(leaves, backend), used, create_graph=True)
        return torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), used)

    for got, wanted in zip(second("auto"), second("chunked")):
        assert (got - wanted).norm() < 1e-4 * wanted.norm()
    with pytest.raises(NotImplementedError, match="differentiable once"):
        second("triton")


def test_compiled_it_has_no_graph_break() -> None:
    x: list[Any] = [t.float().cuda().requires_grad_() for t in draw(65, 2, 32, 32)[:8]]
    used = [t for i, t in enumerate(x) if i != 5]
    plain = torch.autograd.grad(loss(x, "auto"), used)

    def of_list(*x: Any) -> Tensor:
        return loss(list(x), "auto")

    compiled: Any = torch.compile(of_list, fullgraph=True)
    for got, wanted in zip(torch.autograd.grad(compiled(*x), used), plain):
        assert (got - wanted).norm() < 1e-4 * wanted.norm()
