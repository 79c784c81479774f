"""The two-layer memory in Triton is the float64 token loop: reads, state, all gradients; and its order."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nested_kernels import MLPState, Weights, mlp_memory
from nested_kernels.mlp_memory import library
from nested_kernels.mlp_memory.library import recurrence, recurrence_backward
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

Tokens = ("q", "k", "v", "eta", "alpha", "beta")
Pairs = ("weights", "anchor", "momentum", "initial")
HOPE: dict[str, Any] = {"values": "own", "retain": "initial"}
TITANS: dict[str, Any] = {"rule": "gd", "bounded": False, "read": "after"}

# tokens, memories, K, E, tokens of the open chunk, momentum, options: every objective, rule, read, retention, a ragged
# end, blocks wider than K, E and the chunk
Case = tuple[int, int, int, int, int, bool, dict[str, Any]]
Float32: dict[str, Case] = {
    "HOPE": (20, 2, 32, 32, 0, False, {**HOPE, "anchor": 16}),
    "HOPE, one token of an open chunk": (1, 2, 16, 16, 3, False, {**HOPE, "anchor": 16}),
    "HOPE, an open chunk and its end": (13, 1, 16, 33, 5, False, {**HOPE, "anchor": 16, "objective": "l2_doubled"}),
    "Titans": (17, 1, 32, 32, 0, True, {**TITANS, "anchor": 16}),
    "Titans towards its start": (21, 1, 16, 32, 2, True, {"rule": "gd", "retain": "initial", "anchor": 10}),
    "60 wide": (17, 1, 60, 32, 0, False, {"erase": "input", "anchor": 16, "read": "after"}),
    "64 wide": (3, 1, 64, 32, 0, False, {**TITANS, "anchor": 64, "objective": "l2_doubled"}),
    "65 tokens": (65, 1, 16, 32, 0, False, {"anchor": 16, "objective": "dot"}),
    "token by token": (2, 2, 16, 16, 0, False, {"anchor": 1, "bounded": False}),
}
Bfloat16: dict[str, Case] = {
    "HOPE": (20, 2, 32, 32, 0, False, {**HOPE, "anchor": 16}),
    "HOPE, 64 wide": (33, 1, 64, 16, 0, False, {**HOPE, "anchor": 32}),
    "Titans": (33, 1, 32, 32, 0, True, {**TITANS, "anchor": 32}),
    "63 tokens, 60 wide": (63, 1, 60, 32, 0, False, {"erase": "input", "anchor": 64, "read": "after"}),
    "128 wide": (17, 1, 128, 32, 0, False, {**TITANS, "anchor": 32, "objective": "l2_doubled"}),
}


def draw(T: int, N: int, K: int, E: int, b: int = 1, h: int = 1) -> dict[str, Any]:
    """Float64 operands that float32 holds exactly: unit tokens, eta at most alpha / 2, alpha exactly 0 at some."""
    g = torch.Generator().manual_seed(T)

    def normal(*shape: int) -> Tensor:
        return torch.randn(b, h, *shape, generator=g, dtype=torch.float64)

    q, k, v = (F.normalize(normal(T, K), dim=-1) for _ in range(3))
    alpha, eta, beta = (torch.rand(b, h, T, generator=g, dtype=torch.float64) for _ in range(3))
    alpha = 1 - 0.1 * alpha
    eta, alpha[..., 9::11], beta[..., 7::10] = 0.5 * alpha * eta, 0, 0
    x: dict[str, Any] = {n: t.float().double() for n, t in zip(Tokens, (q, k, v, eta, alpha, beta))}
    for name in Pairs:
        x[name] = Weights(*(w.float().double() for w in (normal(N, E, K) / K**0.5, normal(N, K, E) / E**0.5)))
    return x


def cast(x: dict[str, Any], wide: torch.dtype, narrow: torch.dtype) -> dict[str, Any]:
    return {
        n: Weights(*(w.to(wide) for w in t)) if isinstance(t, tuple) else t.to(narrow if n in "qkv" else wide)
        for n, t in x.items()
    }


def call(x: dict[str, Any], open_: int, momentum: bool, **options: Any) -> tuple[Tensor, MLPState]:
    if options.get("retain") == "initial":
        options["initial"] = x["initial"]
    if momentum:
        options["beta"] = x["beta"]
    state = MLPState(x["weights"], x["anchor"] if open_ else None, x["momentum"] if momentum else None, open_)
    return mlp_memory(*(x[n] for n in Tokens[:5]), state, **options)  # type: ignore[return-value]


def everything(x: dict[str, Any], open_: int, momentum: bool, **options: Any) -> dict[str, Tensor]:
    """y, the state, and the gradient of a fixed sum of them with respect to every operand."""
    leaves, named = {}, {}
    for n, t in x.items():
        parts = tuple(w.detach().requires_grad_() for w in (t if isinstance(t, tuple) else (t,)))
        leaves[n] = Weights(*parts) if isinstance(t, tuple) else parts[0]
        named |= {f"d {n} {i}": w for i, w in enumerate(parts)}
    y, state = call(leaves, open_, momentum, **options)
    found = [y, *(w for pair in state[:3] if pair is not None for w in pair)]
    loss = torch.stack([(o.double() * torch.arange(o.numel()).cos().view_as(o)).sum() for o in found]).sum()
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    values = {f"output {i}": o.detach() for i, o in enumerate(found)}
    return {**values, **{n: g for n, g in zip(named, grads) if g is not None}}


def errors(case: Case, narrow: torch.dtype, b: int = 1, h: int = 1) -> dict[str, float]:
    """Relative, in the Frobenius norm, to the token loop in float64."""
    T, N, K, E, open_, momentum, options = case
    x = cast(cast(draw(T, N, K, E, b, h), torch.float64, narrow), torch.float64, torch.float64)
    exact = everything(x, open_, momentum, backend="reference", **options)
    found = everything(cast(x, torch.float32, narrow), open_, momentum, backend="triton", **options)
    assert found.keys() == exact.keys()
    return {n: float((found[n] - exact[n]).norm() / exact[n].norm().clamp_min(1e-12)) for n in exact}


@pytest.mark.parametrize("case", Float32)
def test_float32_is_the_token_loop_in_values_and_all_gradients(case: str) -> None:
    found = errors(Float32[case], torch.float32)
    assert max(found.values()) < 2e-6, found


@pytest.mark.parametrize("case", Bfloat16)
def test_bfloat16_operands_are_multiplied_as_such_and_added_up_in_float32(case: str) -> None:
    found = errors(Bfloat16[case], torch.bfloat16)
    assert max(found.values()) < 8e-3, found


def test_bfloat16_operands_have_a_float32_state() -> None:
    x = cast(draw(3, 1, 16, 16), torch.bfloat16, torch.bfloat16)
    y, state = call(x, 0, False, backend="triton", anchor=4)
    assert (y.dtype, state.weights.up.dtype) == (torch.bfloat16, torch.float32)


def test_a_backward_pass_in_several_segments_is_that_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x = cast(draw(6, 1, 16, 16), torch.float32, torch.float32)
    options = {**TITANS, "anchor": 2, "backend": "triton"}
    whole = everything(x, 0, True, **options)
    monkeypatch.setattr(library, "SEGMENT", 2)
    assert_close(everything(x, 0, True, **options), whole)


def test_several_sequences_and_heads_have_the_gradients_of_the_token_loop() -> None:
    found = errors((4, 2, 16, 16, 0, False, {**HOPE, "anchor": 4}), torch.float32, b=2, h=2)
    assert max(found.values()) < 2e-6, found


def test_what_is_returned_shares_no_memory_with_what_is_given_but_an_open_anchor() -> None:
    x = cast(draw(3, 1, 16, 16), torch.float32, torch.float32)
    held = [w.clone() for w in x["weights"]]
    _, state = call(x, 0, False, anchor=8, backend="triton")
    for w in x["weights"]:
        w.zero_()
    assert state.anchor is not None
    assert all(torch.equal(a, b) for a, b in zip(state.anchor, held))


def test_heads_beside_each_other_in_memory_and_none_that_asks() -> None:
    x = draw(12, 2, 16, 16, b=2, h=2)
    x |= {n: x[n].transpose(1, 2).contiguous().transpose(1, 2) for n in Tokens}
    exact = call(x, 0, False, anchor=8, backend="reference")[1]
    y, found = call({**cast(x, torch.float32, torch.float32), "q": None}, 0, False, anchor=8, backend="triton")
    assert y is None
    for got, wanted in zip(found.weights, exact.weights):
        assert (got - wanted).norm() < 2e-6 * wanted.norm()


# tokens of the open chunk, momentum, options
SECOND: list[tuple[int, bool, dict[str, Any]]] = [
    (0, False, {"anchor": 8, "values": "own"}),
    (3, False, {**HOPE, "anchor": 4}),
    (0, True, {**TITANS, "anchor": 4}),
    (0, False, {"anchor": 5, "erase": "input", "read": "after", "objective": "dot"}),
]


def second(x: dict[str, Any], backend: str, way: int) -> tuple[Tensor, ...]:
    open_, momentum, options = SECOND[way]
    names = ["weights", *["initial"] * ("retain" in options), *["anchor"] * (open_ > 0), *["momentum"] * momentum]
    tokens = [x[n].requires_grad_() for n in Tokens[: 5 + momentum]]
    leaves = [*tokens, *(w.requires_grad_() for n in names for w in x[n])]
    y, state = call(x, open_, momentum, backend=backend, **options)
    loss = y.square().sum() + state.weights.up.sin().sum() + state.weights.down.sin().sum()
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    return torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), leaves)


@pytest.mark.parametrize("way", range(len(SECOND)))
def test_a_second_derivative_is_refused_by_triton_and_taken_from_the_chunked_form_by_auto(way, monkeypatch) -> None:
    x = cast(draw(8, 2, 16, 16), torch.float32, torch.float32)
    with pytest.raises(NotImplementedError, match=r'"triton" is differentiable once.*"chunked" has every order'):
        second(x, "triton", way)
    exact = second(x, "chunked", way)
    monkeypatch.setenv("NESTED_KERNELS_BACKEND", "triton")  # the first derivative, and the forward pass
    for got, wanted in zip(second(x, "auto", way), exact):
        assert (got - wanted).norm() < 5e-6 * wanted.norm()


def test_what_is_no_backward_pass_is_taken_from_the_chunked_form(monkeypatch: pytest.MonkeyPatch) -> None:
    x = cast(draw(8, 1, 16, 16), torch.float32, torch.float32)

    def loss(backend: Any) -> Any:
        return lambda v: call({**x, "v": v}, 0, False, anchor=4, backend=backend)[0].square().sum()

    exact = torch.func.jvp(loss("chunked"), (x["v"],), (x["v"],))[1]
    monkeypatch.setenv("NESTED_KERNELS_BACKEND", "triton")
    assert_close(torch.func.jvp(loss("auto"), (x["v"],), (x["v"],))[1], exact)  # of the op itself it would be 0
    with pytest.raises(ValueError, match=r"backend is 'triton', and it is called inside a transform of torch.func"):
        torch.func.grad(loss("triton"))(x["v"])
    with forward_ad.dual_level(), pytest.raises(ValueError, match=r"and a forward-mode derivative is asked for"):
        loss("triton")(forward_ad.make_dual(x["v"], x["v"]))


@pytest.mark.parametrize("name", [*Tokens, *Pairs])
def test_a_forward_mode_derivative_of_any_operand_is_seen(name: str) -> None:
    x = cast(draw(4, 1, 16, 16), torch.float32, torch.float32)
    options = {"rule": "gd", "anchor": 6, "retain": "initial", "backend": "triton"}
    with forward_ad.dual_level():
        *others, last = x[name] if name in Pairs else [x[name]]
        dual = forward_ad.make_dual(last, last)
        x[name] = Weights(*others, dual) if name in Pairs else dual
        with pytest.raises(ValueError, match="and a forward-mode derivative is asked for"):
            call(x, 2, True, **options)


def test_a_forward_mode_derivative_of_the_gradient_is_taken_from_the_chunked_form(monkeypatch) -> None:
    """Of the opaque backward pass it would be 0, or None."""
    monkeypatch.setenv("NESTED_KERNELS_BACKEND", "triton")
    x = cast(draw(6, 1, 16, 16), torch.float32, torch.float32)
    leaves = [t.requires_grad_() for t in (*(x[n] for n in Tokens[:5]), *x["weights"])]

    def of(backend: Any) -> Any:
        y = call(x, 0, False, anchor=4, backend=backend)[0]
        return lambda c: torch.cat([g.flatten() for g in torch.autograd.grad(y, leaves, c, retain_graph=True)])

    u = torch.ones(1, 1, 6, 16)
    exact = torch.func.jvp(of("chunked"), (u,), (u,))[1]
    assert exact.norm() > 1
    assert_close(torch.func.jvp(of("auto"), (u,), (u,))[1], exact, rtol=1e-4, atol=1e-5)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(u, u)
        assert_close(forward_ad.unpack_dual(of("auto")(dual)).tangent, exact, rtol=1e-4, atol=1e-5)
        with pytest.raises(
            NotImplementedError, match=r"a forward-mode derivative is asked for; backend \"chunked\" has"
        ):
            of("triton")(dual)


def operands(momentum: bool) -> list[Any]:
    """Of the ops themselves: flat, without an anchor and a start."""
    x = cast(draw(6, 1, 16, 16), torch.float32, torch.float32)
    tokens = [x[n].flatten(0, 1).requires_grad_() for n in Tokens]
    pairs = [[w.flatten(0, 1).requires_grad_() for w in x[n]] for n in ("weights", "momentum")]
    none = [None] * 4
    return [*tokens[:5], tokens[5] if momentum else None, *pairs[0], *none, *(pairs[1] if momentum else (None, None))]


def test_operations_are_counted_where_kernels_run_as_where_torch_does() -> None:
    """Else a memory would cost nothing on a GPU, and equal FLOPs mean something else there."""
    x = cast(draw(16, 2, 16, 32), torch.float32, torch.float32)
    counted = []
    for backend in ("triton", "chunked"):
        with FlopCounterMode(display=False) as counter:
            call(x, 0, False, backend=backend, anchor=16, **HOPE)
        counted.append(counter.get_total_flops())
    assert counted[0] == pytest.approx(counted[1], rel=0.3)


@pytest.mark.parametrize("momentum", [False, True])
def test_the_ops_keep_the_rules_of_torch_library(momentum: bool) -> None:
    erase = 0.0 if momentum else 1.0
    x, options = operands(momentum), (erase, erase, 1.0, 1.0, False, True, "after", 8, True)
    torch.library.opcheck(recurrence, (*x, *options))
    plain = [None if t is None else t.detach() for t in x]
    torch.library.opcheck(recurrence_backward, (*recurrence(*plain, *options), *plain, *options))


def test_compiled_code_has_no_graph_break_and_the_same_gradients() -> None:
    x = cast(draw(10, 1, 16, 16), torch.float32, torch.float32)
    leaves = [t.requires_grad_() for t in (*(x[n] for n in Tokens[:5]), *x["weights"])]

    def loss(*x: Tensor) -> Tensor:
        y, state = mlp_memory(*x[:5], Weights(*x[5:]), anchor=8, backend="triton")  # type: ignore[misc]
        return y.square().sum() + state.weights.down.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close(torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(loss(*leaves), leaves))


ALLOWED = "K up to 64 and 64 tokens, K up to 128 and 32 tokens where q, k and v are bfloat16, else 64 and 16"


@pytest.mark.parametrize(
    ("size", "narrow", "momentum", "anchor", "words"),
    [
        ((4, 1, 256, 16), torch.bfloat16, False, 4, ["k has K = 256 and a chunk 4 tokens", ALLOWED]),
        ((65, 1, 16, 16), torch.bfloat16, False, 80, ["k has K = 16 and a chunk 65 tokens", ALLOWED]),
        ((33, 1, 65, 16), torch.bfloat16, False, 33, ["k has K = 65 and a chunk 33 tokens", ALLOWED]),
        ((17, 1, 16, 16), torch.float32, False, 80, ["k has K = 16 and a chunk 17 tokens", ALLOWED]),
        ((4, 1, 65, 16), torch.float32, False, 4, ["k has K = 65 and a chunk 4 tokens", ALLOWED]),
        ((4, 1, 16, 16), torch.float32, True, 4, ["beta is given with rule 'dgd'", "rule 'gd' is allowed"]),
        ((4, 1, 16, 16), torch.float64, False, 4, ["an operand is torch.float64", "float32 and bfloat16"]),
    ],
)
def test_what_the_kernels_cannot_do_is_refused_before_a_launch(
    size: Any, narrow: torch.dtype, momentum: bool, anchor: int, words: Any
) -> None:
    x = cast(draw(*size), torch.float32, narrow)
    with pytest.raises(ValueError) as caught:
        call(x, 0, momentum, backend="triton", anchor=anchor)
    for word in ("mlp_memory: backend is 'triton'", *words):
        assert word in str(caught.value)
    assert call(x, 0, momentum, anchor=anchor)[0].isfinite().all()
