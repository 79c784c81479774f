"""What is compiled around an op has its gradients, and never a second derivative that is lost without a word."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from nested_kernels import Weights, attention_hvp, delta_rule, mlp_memory, newton_schulz
from nested_kernels.attention_hvp import op
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch.testing import assert_close

Function = Callable[..., Tensor]


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g).requires_grad_() for s in shapes]


def rule(*x: Tensor, backend: Any) -> Tensor:
    return delta_rule(*x[:3], *(t.sigmoid() for t in x[3:5]), x[5], backend=backend)[0]  # type: ignore[misc]


def layers(*x: Tensor, backend: Any) -> Tensor:
    y, _ = mlp_memory(*x[:3], *(t.sigmoid() for t in x[3:5]), Weights(*x[5:]), anchor=5, backend=backend)  # type: ignore[misc]
    assert y is not None
    return y


def attend(*x: Tensor, backend: Any) -> Tensor:
    return attention_hvp(*x, window=7, backend=backend)  # type: ignore[misc]


Tokens, Rates, Heads = (1, 2, 5, 4), (1, 2, 5), (1, 18, 2, 4)
Memory = [Tokens, Tokens, Tokens, Rates, Rates]
Cases: dict[str, tuple[Function, list[tuple[int, ...]], Any]] = {
    "delta rule, chunked": (rule, [*Memory, (1, 2, 4, 4)], "chunked"),
    "delta rule, the loop": (rule, [*Memory, (1, 2, 4, 4)], "reference"),
    "two layers, chunked": (layers, [*Memory, (1, 2, 1, 3, 4), (1, 2, 1, 4, 3)], "chunked"),
    "attention, chunked": (attend, [Heads] * 3, "chunked"),
    "attention, the formula": (attend, [Heads] * 3, "reference"),
    "attention, fused": (attend, [Heads] * 3, "fused"),
    "Newton-Schulz": (lambda g, backend: newton_schulz(g, backend=backend), [(3, 5)], "gram"),
}


@pytest.mark.parametrize("case", Cases)
def test_what_is_compiled_has_the_gradients_and_refuses_to_be_differentiated_twice(case: str) -> None:
    f, shapes, backend = Cases[case]

    def loss(*x: Tensor) -> Tensor:
        """A region that is larger than the op."""
        return f(*(t * 0.5 for t in x), backend=backend).sin().sum()

    torch._dynamo.reset()
    x = drawn(*shapes)
    with torch._functorch.config.patch(donated_buffer=False):  # which would be another reason to refuse
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        assert_close(torch.autograd.grad(compiled(*x), x), torch.autograd.grad(loss(*x), x), rtol=1e-4, atol=1e-5)
        with pytest.raises(NotImplementedError, match=r"create_graph=True or retain_graph=True; compiled code has no"):
            torch.autograd.grad(compiled(*x), x[0], create_graph=True)


def learned(f: Function, x: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a loss after one step of gradient descent on the values, through that step."""
    (step,) = torch.autograd.grad(f(*x), x[2], create_graph=True)
    return torch.autograd.grad(f(*x[:2], x[2] - step, *x[3:]), x)


def test_without_the_guard_compiled_code_would_take_the_inner_gradient_for_a_constant(monkeypatch) -> None:
    """The trap itself, with no error. If this fails, torch has learned to refuse it."""

    def loss(*x: Tensor) -> Tensor:
        return attend(*x, backend="reference").sin().sum()

    x = drawn(Heads, Heads, Heads)
    exact = learned(loss, x)
    torch._dynamo.reset()
    with pytest.raises(NotImplementedError, match="differentiate twice outside"):
        learned(torch.compile(loss, fullgraph=True, backend="aot_eager"), x)
    monkeypatch.setattr(op, "once_if_compiled", lambda t: t)
    torch._dynamo.reset()
    found = learned(torch.compile(loss, fullgraph=True, backend="aot_eager"), x)
    assert max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact)) > 1e-2


def regions(f: Function) -> dict[str, Function]:
    """A scalar of f by way of a transform of torch.func: what autograd outside then sees is the whole of it."""

    def by(transform: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> Function:
        return lambda *x: transform(lambda v: f(*x[:2], v, *x[3:]).sin().sum(), x[2] * 1.0)

    return {
        "vmap": by(lambda g, v: torch.func.vmap(g)(v[None])[0]),
        "vjp": by(lambda g, v: torch.func.vjp(g, v)[0]),
        "jvp": by(lambda g, v: torch.func.jvp(g, (v,), (v,))[1]),
        "vmap of grad": by(lambda g, v: torch.func.vmap(torch.func.grad(g))(v[None]).sum()),
    }


@torch._functorch.config.patch(donated_buffer=False)  # which would be another reason to refuse
def test_no_transform_of_compiled_code_hides_an_op_from_autograd_outside() -> None:
    x = drawn(Heads, Heads, Heads)
    for name, region in regions(partial(attend, backend="reference")).items():
        torch._dynamo.reset()
        compiled = torch.compile(region, fullgraph=True, backend="aot_eager")
        if name == "vmap":
            assert_close(torch.autograd.grad(compiled(*x), x), torch.autograd.grad(region(*x), x), rtol=1e-4, atol=1e-5)
            with pytest.raises(NotImplementedError, match="differentiate twice outside"):
                learned(compiled, x)
        else:
            with pytest.raises(Unsupported, match=r"call the compiled code under torch\.no_grad"):
                compiled(*x)
        with torch.no_grad():
            assert_close(compiled(*x), region(*x))
