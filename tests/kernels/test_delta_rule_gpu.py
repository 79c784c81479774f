"""The Triton recurrence on the device: the token loop in float64, taken by itself, and refused what it lacks."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nested_kernels import State, delta_rule
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

Cases: list[tuple[int, int, int, dict[str, Any]]] = [
    (1, 64, 64, {"read": "after"}),
    (63, 60, 32, {"objective": "l2_doubled", "rule": "gd"}),
    (65, 64, 64, {"read": "after"}),
    (500, 128, 128, {"objective": "dot"}),
    (100, 64, 194, {"objective": "dot", "retain": "initial"}),
    (200, 32, 60, {"anchor": 20, "read": "anchor", "retain": "initial"}),
    (200, 64, 64, {"anchor": 64, "read": "after"}),
    (100, 16, 16, {"objective": "dot", "rule": "gd"}),
]
BOUNDS = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (5e-3, 2e-2)}  # of values, of gradients


def draw(tokens: int, key: int, value: int) -> list[Tensor]:
    """q, k, v, eta, alpha, state, initial in float64: unit keys, eta at most alpha, alpha in [0.9, 1]."""
    g = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(2, 3, tokens, n, generator=g, dtype=torch.float64) for n in (key, key, value))
    alpha = 1 - 0.1 * torch.rand(2, 3, tokens, generator=g, dtype=torch.float64)
    eta = alpha * torch.rand(2, 3, tokens, generator=g, dtype=torch.float64)
    held = [torch.randn(2, 3, value, key, generator=g, dtype=torch.float64) / key**0.5 for _ in range(2)]
    return [F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, eta, alpha, *held]


def everything(x: list[Tensor], options: dict[str, Any], **more: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Values, and gradients of a fixed sum of them."""
    leaves = [t.detach().requires_grad_() for t in x]
    *operands, state, initial = leaves
    given = {**options, **({"initial": initial} if options.get("retain") == "initial" else {}), **more}
    y, end = delta_rule(*operands, State(state), **given)
    found = [y, end.memory, *([] if end.anchor is None else [end.anchor])]
    weights = [torch.arange(o.numel(), device=o.device).cos().view_as(o) for o in found]
    loss = torch.stack([(o.double() * w).sum() for o, w in zip(found, weights)]).sum()
    grads = torch.autograd.grad(loss, leaves if "initial" in given else leaves[:-1])
    return [o.detach() for o in found], list(grads)


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("case", range(len(Cases)))
def test_it_is_the_token_loop_in_values_and_all_gradients(case: int, dtype: torch.dtype) -> None:
    tokens, key, value, options = Cases[case]
    if dtype == torch.float32 and "anchor" in options:
        options = {**options, "anchor": min(options["anchor"], 16)}
    x = draw(tokens, key, value)
    rounded = [t.to(dtype if i < 3 else torch.float32) for i, t in enumerate(x)]
    exact = everything([t.double().cuda() for t in rounded], options, backend="reference")
    found = everything([t.cuda() for t in rounded], options, backend="triton")
    for part, bound, name in zip(range(2), BOUNDS[dtype], ("values", "gradients")):
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(found[part], exact[part])]
        assert max(errors) < bound, (name, errors)


def test_auto_is_triton_here_and_differentiates_twice() -> None:
    x = [t.float().cuda() for t in draw(65, 32, 32)[:6]]
    assert torch.equal(delta_rule(*x)[0], delta_rule(*x, backend="triton")[0])

    def second(backend: Any) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in x]
        y, state = delta_rule(*leaves, backend=backend)
        first = torch.autograd.grad(y.square().sum() + state.memory.sin().sum(), leaves, create_graph=True)
        return torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), leaves)

    for got, wanted in zip(second("auto"), second("chunked")):
        assert (got - wanted).norm() < 1e-4 * wanted.norm()
    with pytest.raises(NotImplementedError, match="differentiable once"):
        second("triton")


def test_compiled_it_has_no_graph_break() -> None:
    x = [t.float().cuda().requires_grad_() for t in draw(65, 32, 32)[:6]]
    plain = torch.autograd.grad(delta_rule(*x)[0].square().sum(), x)
    compiled = torch.compile(lambda *x: delta_rule(*x)[0].square().sum(), fullgraph=True)
    for got, wanted in zip(torch.autograd.grad(compiled(*x), x), plain):
        assert (got - wanted).norm() < 1e-4 * wanted.norm()
