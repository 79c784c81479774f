"""flash-linear-attention in place of our kernels: when, with which operands, and to which order of differentiation.

Its ops are stood in for by token loops in float64 that take what its ops take.
"""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nested_kernels.backend import ENVIRONMENT, using
from torch import Tensor
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from nested.memory import fla
from nested.memory.gated_delta_net import GatedDeltaNet, gated_delta_rule
from nested.memory.mamba2 import Mamba2, decaying_sum

F64 = torch.float64
both = pytest.mark.parametrize("rule", ["gated_delta_rule", "decaying_sum"])


def chunk_simple_gla(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None = None, *, scale: float, initial_state: Tensor,
    output_final_state: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q, k (B, T, H, K), v (B, T, H, V), g, beta (B, T, H), state (B, H, K, V): S <- e^g S, then + k u^T, o = q S."""
    assert output_final_state
    assert g.isfinite().all()
    S, reads = initial_state, []
    for t in range(q.shape[1]):
        S = g[:, t].exp()[..., None, None] * S
        u = v[:, t] if beta is None else beta[:, t, :, None] * (v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], S))
        S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], u)
        reads.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], S))
    return torch.stack(reads, 1), S


@pytest.fixture(autouse=True)
def standing_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, op in (("gated_delta_rule", "chunk_gated_delta_rule"), ("simple_gla", "chunk_simple_gla")):
        monkeypatch.setitem(sys.modules, f"fla.ops.{module}", SimpleNamespace(**{op: chunk_simple_gla}))


def operands(rule: str, t: int = 19, gate: float | None = None) -> list[Tensor]:
    """Of 2 sequences and 3 heads, K 4, V 5; `gate` in place of two decays."""
    q, k = (F.normalize(torch.randn(2, 3, t, 4, dtype=F64), dim=-1) for _ in range(2))
    v, decay, rate = torch.randn(2, 3, t, 5, dtype=F64), *torch.rand(2, 2, 3, t, dtype=F64)
    if gate is not None:
        decay[..., 7], decay[..., 11] = gate, gate
    gates = [decay, rate] if rule == "gated_delta_rule" else [rate, decay]
    return [x.requires_grad_() for x in (q, k, v, *gates, torch.randn(2, 3, 5, 4, dtype=F64))]


def called(rule: str, x: list[Tensor], ours: bool = False) -> tuple[Tensor, ...]:
    if ours:
        return gated_delta_rule(*x) if rule == "gated_delta_rule" else decaying_sum(*x)  # type: ignore[call-arg]
    return getattr(fla, rule)(*x)


@both
def test_values_states_and_gradients_are_those_of_our_rule(rule: str) -> None:
    x = operands(rule)
    found, wanted = called(rule, x), called(rule, x, ours=True)
    assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    u = [torch.randn_like(y) for y in wanted]
    assert_close(*(torch.autograd.grad(y, x, u) for y in (found, wanted)), rtol=1e-11, atol=1e-11)
    for output in (0, 1):  # nothing is asked of the other
        ours, its = (called(rule, x, ours)[output].square().sum() for ours in (True, False))
        assert_close(*(torch.autograd.grad(y, x[2:]) for y in (its, ours)), rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        assert_close(called(rule, x), wanted, rtol=1e-12, atol=1e-12)


@both
@pytest.mark.parametrize("split", [1, 8])
def test_pieces_are_the_whole(rule: str, split: int) -> None:
    *tokens, memory = operands(rule)
    y, after = called(rule, [*tokens, memory])
    first, between = called(rule, [*(x[:, :, :split] for x in tokens), memory])
    second, end = called(rule, [*(x[:, :, split:] for x in tokens), between])
    assert_close((torch.cat([first, second], 2), end), (y, after), rtol=1e-12, atol=1e-12)


@both
def test_decays_of_zero_forget_everything_and_their_own_gradient_is_zero(rule: str) -> None:
    """The gradient of our rule there is what the forgotten memory would have changed; Decay multiplies it by the 0."""
    x = operands(rule, gate=0.0)
    found, wanted = called(rule, x), called(rule, x, ours=True)
    assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    u, at = [torch.randn_like(y) for y in wanted], 3 if rule == "gated_delta_rule" else 4
    ours, its = (list(torch.autograd.grad(y, x, u)) for y in (wanted, found))
    assert all(g.isfinite().all() for g in its)
    assert not its[at][..., [7, 11]].any()
    ours[at][..., [7, 11]] = 0
    assert_close(its, ours, rtol=1e-11, atol=1e-11)


@both
def test_some_operands_need_no_gradient(rule: str) -> None:
    x = operands(rule)
    fixed = [x[0].detach(), *x[1:-1], x[-1].detach()]
    wanted = torch.autograd.grad(called(rule, x, ours=True)[0].square().sum(), x[1:-1])
    assert_close(torch.autograd.grad(called(rule, fixed)[0].square().sum(), x[1:-1]), wanted, rtol=1e-11, atol=1e-11)


@both
@pytest.mark.parametrize("which", ["operand", "cotangent"])
def test_a_second_derivative_is_refused_and_what_has_it_is_named(rule: str, which: str) -> None:
    """Also in what comes after it alone: the gradient depends on that through its cotangents."""
    x = operands(rule)
    after = torch.ones((), dtype=F64, requires_grad=True)
    [g] = torch.autograd.grad((after * called(rule, x)[0]).sum(), x[2:3], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"differentiable once.*trainer\.kernels=triton.*NESTED_KERNELS_BACK"):
        torch.autograd.grad(g.square().sum(), x[1] if which == "operand" else after)


@both
def test_it_may_be_computed_again_in_the_backward_pass(rule: str) -> None:
    x = operands(rule)
    found = [
        torch.autograd.grad(y[0].square().sum() + y[1].sum(), x)
        for y in (called(rule, x), checkpoint(called, rule, x, use_reentrant=False))
    ]
    assert_close(found[1], found[0], rtol=0, atol=0)


@both
def test_its_graph_is_kept_for_as_long_as_the_one_around_it(rule: str) -> None:
    x = operands(rule)
    y = called(rule, x)[0].square().sum()
    twice = [torch.autograd.grad(y, x, retain_graph=True) for _ in range(2)]
    assert_close(twice[0], twice[1], rtol=0, atol=0)
    torch.autograd.grad(y, x)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x)


@pytest.mark.parametrize("layer", [GatedDeltaNet, Mamba2])
def test_the_layers_compute_with_it_where_it_serves(monkeypatch: pytest.MonkeyPatch, layer: Any) -> None:
    m, x = layer(8, 2, key_size=4).double(), torch.randn(2, 21, 8, dtype=F64)
    found = []
    for serves in (False, True):
        asked = []
        monkeypatch.setattr(fla, "serves", lambda *x, serves=serves, asked=asked: asked.append(x) or serves)
        y, state = m(x)
        found.append([y, state.memory, *torch.autograd.grad(y.square().sum(), list(m.parameters()))])
        assert len(asked) == 1
    assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def of(t: int = 32, dtype: torch.dtype = torch.bfloat16, k: int = 64, v: int = 64, cuda: bool = True) -> list[Any]:
    """What `serves` asks of q, k and v, on a device that need not be there."""
    return [SimpleNamespace(is_cuda=cuda, dtype=dtype, shape=(1, 2, t, s), device="cuda") for s in (k, k, v)]


def test_it_serves_bfloat16_on_a_device_where_it_is_installed_and_nothing_else_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(fla, "_installed", lambda: True)
    monkeypatch.setattr(fla, "without_triton", lambda device: None)
    monkeypatch.setattr(fla, "transformed", lambda *x: None)
    assert fla.serves(*of())
    unfit = [{"t": 8}, {"dtype": torch.float32}, {"dtype": F64}, {"k": 258}, {"v": 65}, {"k": 3}, {"cuda": False}]
    assert not any(fla.serves(*of(**given)) for given in unfit)
    for named in ("reference", "chunked", "triton"):
        with using(named):
            assert not fla.serves(*of())
        monkeypatch.setenv(ENVIRONMENT, named)
        assert not fla.serves(*of())
    monkeypatch.setenv(ENVIRONMENT, "auto")
    for name, why in (("without_triton", "too old"), ("transformed", "a forward-mode derivative is asked for")):
        with monkeypatch.context() as m:
            m.setattr(fla, name, lambda *x, why=why: why)
            assert not fla.serves(*of())
    monkeypatch.setattr(fla, "_installed", lambda: False)
    assert not fla.serves(*of())
