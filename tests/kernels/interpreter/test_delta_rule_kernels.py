"""The Triton recurrence is the float64 token loop: reads, the state, the gradient of every operand; and its order."""

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nested_kernels import State, backend, delta_rule
from nested_kernels.delta_rule.library import backward, forward, recurrence, recurrence_backward
from nested_kernels.launch import recording
from nested_kernels.mlp_memory.chunked import Steps, advance
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing import assert_close

Names = ("q", "k", "v", "eta", "alpha", "state", "initial")
STALE: dict[str, Any] = {"anchor": 12, "read": "anchor", "retain": "initial"}

# tokens, K, V, options: every objective, rule, read, retention, a ragged end, blocks wider than K, V and the chunk
Case = tuple[int, int, int, dict[str, Any]]
Float32: dict[str, Case] = {
    "one token, read after": (1, 32, 32, {"read": "after"}),
    "one token of a stale chunk": (1, 16, 32, STALE),
    "63 tokens, 60 and 32 wide": (63, 60, 32, {"rule": "gd", "objective": "l2_doubled"}),
    "65 tokens, 64 wide": (65, 64, 64, {"read": "after"}),
    "128 wide": (18, 128, 128, {"objective": "dot"}),
    "a memory of 130 rows": (18, 16, 130, {"read": "after", "retain": "initial"}),
    "one token, 130 rows": (1, 16, 130, {"read": "after"}),
    "stale, read at the anchor": (37, 32, 16, STALE),
    "stale, read after, objective doubled": (30, 16, 60, {"anchor": 14, "read": "after", "objective": "l2_doubled"}),
    "all of a longer stale chunk": (16, 16, 16, {"anchor": 40, "read": "after"}),
    "linear attention": (34, 16, 16, {"objective": "dot", "rule": "gd", "retain": "initial"}),
    "stale linear attention": (20, 16, 16, {"objective": "l2", "rule": "gd", "anchor": 10}),
}
Bfloat16: dict[str, Case] = {
    "one token, 32 wide": (1, 32, 32, {"read": "after", "rule": "gd"}),
    "one token, 60 wide": (1, 60, 60, {"read": "after"}),
    "63 tokens, 60 and 32 wide": (63, 60, 32, {"objective": "dot", "retain": "initial"}),
    "65 tokens, 32 and 60 wide, stale": (65, 32, 60, {"anchor": 20, "read": "anchor"}),
    "65 tokens, 64 wide": (65, 64, 64, {"read": "after"}),
    "65 tokens, 64 wide, towards its start": (65, 64, 64, {"read": "after", "retain": "initial"}),
}


def draw(tokens: int, key: int, value: int, b: int = 1, h: int = 1) -> dict[str, Tensor]:
    """Float64 operands that float32 holds exactly: unit keys, eta at most alpha, alpha in [0.9, 1], twice exactly 0."""
    g = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    q, k = (F.normalize(normal(b, h, tokens, key), dim=-1) for _ in range(2))
    alpha = 1 - 0.1 * torch.rand(b, h, tokens, generator=g, dtype=torch.float64)
    eta = alpha * torch.rand(b, h, tokens, generator=g, dtype=torch.float64)
    alpha[..., 9::11], alpha[..., 13::17] = 0, 1e-30
    held = (normal(b, h, value, key) / key**0.5 for _ in range(2))
    return {n: x.float().double() for n, x in zip(Names, (q, k, normal(b, h, tokens, value), eta, alpha, *held))}


def call(x: dict[str, Tensor], state: State | None = None, **options: Any) -> tuple[Tensor, State]:
    given = {n: x[n] for n in Names[:5]}
    if options.get("retain") == "initial":
        options["initial"] = x["initial"]
    return delta_rule(**given, state=x["state"] if state is None else state, **options)


def outputs(x: dict[str, Tensor], **options: Any) -> list[Tensor]:
    y, state = call(x, **options)
    return [y, state.memory, *([] if state.anchor is None else [state.anchor])]


def everything(x: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """y, the state, and the gradient of a fixed sum of them with respect to every operand."""
    leaves = {n: t.detach().requires_grad_() for n, t in x.items()}
    found = outputs(leaves, **options)
    loss = torch.stack([(o.double() * torch.arange(o.numel()).cos().view_as(o)).sum() for o in found]).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    named = {f"d {n}": g for n, g in zip(leaves, grads) if g is not None}
    return {**dict(zip(("y", "memory", "anchor"), (o.detach() for o in found))), **named}


def errors(x: dict[str, Tensor], dtypes: dict[str, torch.dtype], **options: Any) -> dict[str, float]:
    """Relative, in the Frobenius norm, to the token loop in float64."""
    options_there = {n: o for n, o in options.items() if n != "chunk"}
    exact = everything(x, backend="reference", **options_there)
    found = everything({n: t.to(dtypes.get(n, torch.float32)) for n, t in x.items()}, backend="triton", **options)
    assert found.keys() == exact.keys()
    return {n: float((found[n] - exact[n]).norm() / exact[n].norm()) for n in exact}


@pytest.mark.parametrize("case", Float32)
def test_float32_is_the_token_loop_in_values_and_all_gradients(case: str) -> None:
    tokens, key, value, options = Float32[case]
    found = errors(draw(tokens, key, value), {}, **options)
    assert max(found.values()) < 2e-6, found


@pytest.mark.parametrize("case", Bfloat16)
def test_bfloat16_operands_are_multiplied_as_such_and_added_up_in_float32(case: str) -> None:
    tokens, key, value, options = Bfloat16[case]
    x = draw(tokens, key, value, h=1 + (tokens == 1))  # of one rate alone, the gradient may be what cancelling leaves
    x |= {n: x[n].bfloat16().double() for n in ("q", "k", "v")}
    found = errors(x, dict.fromkeys(("q", "k", "v"), torch.bfloat16), **options)
    assert max(found.values()) < 8e-3, found


def test_bfloat16_operands_have_a_float32_state() -> None:
    x = {n: t.bfloat16() for n, t in draw(9, 16, 16).items()}
    y, state = call(x, backend="triton")
    assert (y.dtype, state.memory.dtype) == (torch.bfloat16, torch.float32)


def test_it_holds_at_the_bound_with_correlated_keys() -> None:
    x = draw(128, 16, 16)
    k = F.normalize(F.normalize(torch.randn(1, 1, 1, 16, dtype=torch.float64), dim=-1) + 0.1 * x["k"], dim=-1)
    x |= {"k": k, "alpha": torch.full_like(x["alpha"], 0.999)}
    x |= {"eta": 2 / 3 * x["alpha"]}
    exact = outputs(x, objective="l2_doubled", backend="reference")
    narrow = {n: t.float() for n, t in x.items()}
    found = outputs(narrow, objective="l2_doubled", backend="triton")
    y, _, memory = recurrence(
        *list((narrow | {"v": 2 * narrow["v"]}).values())[:6], 3.0, 0.0, "cumulative", 64, 0, True
    )
    for got, wanted in zip((*found, y, memory), (*exact, *exact)):  # and the blocks that bfloat16 has, without rounding
        assert (got - wanted).norm() / wanted.norm() < 2e-5


Pieces: list[dict[str, Any]] = [{"read": "after"}, {"anchor": 4, "read": "anchor"}, {"anchor": 24, "read": "anchor"}]


@pytest.mark.parametrize("options", Pieces)
def test_decoding_and_pieces_are_the_whole(options: dict[str, Any]) -> None:
    x = draw(30, 16, 32, h=2)
    exact, end = call(x, backend="reference", **options)
    state, ys = None, []
    for begin, stop in ((0, 1), (1, 2), (2, 11), (11, 24), (24, 30)):  # whole steps, and chunks opened and closed
        piece = {n: t[:, :, begin:stop] if n in Names[:5] else t for n, t in x.items()}
        y, state = call({n: t.float() for n, t in piece.items()}, state, backend="triton", **options)
        ys.append(y)
    assert state is not None
    assert_close(torch.cat(ys, 2).double(), exact, rtol=1e-4, atol=1e-6)
    assert_close(state.memory.double(), end.memory, rtol=1e-4, atol=1e-6)
    assert (state.anchor is None) == (end.anchor is None)


def test_a_part_of_a_longer_chunk_takes_no_larger_blocks_than_it_needs() -> None:
    x = [t.float().to("meta") for t in list(draw(16, 16, 16).values())[:6]]
    options = (1.0, 1.0, "after", 64, 48, False)
    with recording() as launches:
        backward(*forward(*x, *options), *x, *options)  # type: ignore[call-arg]
    assert {launch.constants["C"] for launch in launches} == {16}


def test_heads_beside_each_other_in_memory_are_read_where_they_are() -> None:
    x = draw(12, 16, 16, b=2, h=2)
    x |= {n: x[n].transpose(1, 2).contiguous().transpose(1, 2) for n in Names[:5]}
    assert not x["q"].is_contiguous()
    found = errors(x, {}, read="after")
    assert max(found.values()) < 2e-6, found


def test_several_heads_of_several_chunks_have_the_gradients_of_the_token_loop() -> None:
    found = errors(draw(40, 16, 16, b=2, h=2), {}, chunk=16, read="after")
    assert max(found.values()) < 2e-6, found


@pytest.mark.parametrize("retain", ["zero", "initial"])
def test_what_is_returned_shares_no_memory_with_what_is_given_but_an_open_anchor(retain: str) -> None:
    x = {n: t.float() for n, t in draw(3, 16, 16).items()}
    _, state = call(x, anchor=8, retain=retain, backend="triton")
    assert state.anchor is not None
    held = state.anchor.clone()
    assert torch.equal(held, x["state"])
    x["state"].zero_()
    assert torch.equal(state.anchor, held)
    assert call(x, state, anchor=8, retain=retain, backend="triton")[1].anchor is state.anchor


SECOND: list[dict[str, Any]] = [{}, STALE, {"objective": "dot", "rule": "gd", "read": "after"}, {"anchor": 8}]


def second(x: dict[str, Tensor], form: str, **options: Any) -> tuple[Tensor, ...]:
    leaves = [t.float().requires_grad_() for t in list(x.values())[: 7 if "retain" in options else 6]]
    y, state = call(dict(zip(Names, leaves)), backend=form, **options)
    loss = y.square().sum() + state.memory.sin().sum()
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    return torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), leaves)


@pytest.mark.parametrize("way", range(len(SECOND)))
def test_a_second_derivative_is_refused_by_triton_and_taken_from_the_chunked_form_by_auto(way, monkeypatch) -> None:
    x, options = draw(20, 16, 16), SECOND[way]
    with pytest.raises(NotImplementedError, match=r'"triton" is differentiable once.*"chunked" has every order'):
        second(x, "triton", **options)
    exact = second(x, "chunked", **options)
    monkeypatch.setenv("NESTED_KERNELS_BACKEND", "triton")  # the first derivative, and the forward pass
    for got, wanted in zip(second(x, "auto", **options), exact):
        assert (got - wanted).norm() < 2e-6 * wanted.norm()


def test_what_is_no_backward_pass_is_taken_from_the_chunked_form(monkeypatch: pytest.MonkeyPatch) -> None:
    x = [t.float() for t in list(draw(12, 16, 16).values())[:6]]

    def loss(form: Any) -> Any:
        return lambda v: delta_rule(*x[:2], v, *x[3:], backend=form)[0].square().sum()

    exact = torch.func.jvp(loss("chunked"), (x[2],), (x[2],))[1]
    monkeypatch.setenv("NESTED_KERNELS_BACKEND", "triton")
    assert_close(torch.func.jvp(loss("auto"), (x[2],), (x[2],))[1], exact)  # of the op itself it would be 0
    assert_close(torch.func.grad(loss("auto"))(x[2]), torch.func.grad(loss("chunked"))(x[2]))
    with pytest.raises(ValueError, match=r"backend is 'triton', and it is called inside a transform of torch.func"):
        torch.func.jvp(loss("triton"), (x[2],), (x[2],))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x[2], x[2])
        assert_close(forward_ad.unpack_dual(loss("auto")(dual)).tangent, exact)
        with pytest.raises(ValueError, match=r"backend is 'triton', and a forward-mode derivative is asked for"):
            loss("triton")(dual)


@pytest.mark.parametrize("name", Names)
def test_a_forward_mode_derivative_of_any_operand_is_seen(name: str) -> None:
    x = {n: t.float() for n, t in draw(4, 16, 16).items()}
    with forward_ad.dual_level(), pytest.raises(ValueError, match="and a forward-mode derivative is asked for"):
        call(x | {name: forward_ad.make_dual(x[name], x[name])}, retain="initial", backend="triton")


def test_a_forward_mode_derivative_of_the_gradient_is_taken_from_the_chunked_form(monkeypatch) -> None:
    """Of the opaque backward pass it would be 0, or None."""
    monkeypatch.setenv("NESTED_KERNELS_BACKEND", "triton")
    x = operands(12)

    def of(form: Any) -> Any:
        y = delta_rule(*x, backend=form)[0]  # type: ignore[misc]
        return lambda c: torch.cat([g.flatten() for g in torch.autograd.grad(y, x, c, retain_graph=True)])

    u = torch.ones(1, 1, 12, 32)
    exact = torch.func.jvp(of("chunked"), (u,), (u,))[1]
    assert exact.norm() > 1
    assert_close(torch.func.jvp(of("auto"), (u,), (u,))[1], exact)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(u, u)
        assert_close(forward_ad.unpack_dual(of("auto")(dual)).tangent, exact)
        with pytest.raises(
            NotImplementedError, match=r"a forward-mode derivative is asked for; backend \"chunked\" has"
        ):
            of("triton")(dual)
    with pytest.raises(NotImplementedError, match=r"inside a transform of torch.func; backend \"chunked\" has every"):
        torch.func.jvp(of("triton"), (u,), (u,))


def test_memories_that_are_rows_of_one_matrix_take_the_kernels_however_many_they_are(monkeypatch, caplog) -> None:
    """As a bank of matrices writes them, by the recurrence on the dot product."""
    backend._say.cache_clear()
    monkeypatch.setenv("NESTED_KERNELS_BACKEND", "triton")
    x = {n: t[0].float() for n, t in draw(9, 16, 130).items()}
    steps = Steps(x["k"], -x["v"], x["eta"].unsqueeze(-1), x["alpha"].unsqueeze(-1), None, x["q"])
    with caplog.at_level(logging.WARNING, "nested_kernels"):
        reads, memory, _ = advance(steps, 1.0, x["state"], x["initial"], None, "cumulative", "auto")
    assert not caplog.records
    exact = advance(steps, 1.0, x["state"], x["initial"], None, "cumulative", "reference")
    assert reads is not None
    assert_close((reads, memory), exact[:2], rtol=1e-5, atol=1e-5)
    assert not torch.equal(memory, exact[1])


def operands(tokens: int) -> list[Tensor]:
    return [x.float().requires_grad_() for x in list(draw(tokens, 16, 32).values())[:6]]


def test_the_ops_keep_the_rules_of_torch_library() -> None:
    x, options = operands(12), (2.0, 0.0, "after", 16, 0, True)
    torch.library.opcheck(recurrence, (*x, *options))
    plain = [t.detach() for t in x]
    torch.library.opcheck(recurrence_backward, (*recurrence(*plain, *options), *plain, *options))


def test_compiled_code_has_no_graph_break_and_the_same_gradients() -> None:
    def loss(*x: Tensor) -> Tensor:
        y, state = delta_rule(*x, backend="triton")  # type: ignore[misc]
        return y.square().sum() + state.memory.sum()

    x = operands(18)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close(torch.autograd.grad(compiled(*x), x), torch.autograd.grad(loss(*x), x))


HALF = dict.fromkeys("qkv", torch.zeros(1, 1, 66, 16, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"q": torch.zeros(1, 1, 66, 256), "k": torch.zeros(1, 1, 66, 256)}, ["q has K = 256", "at most 128"]),
        ({"anchor": 17}, ["a chunk has 17 tokens", "at most 64 are allowed where q, k and v are bfloat16, else 16"]),
        ({"chunk": 17}, ["a chunk has 17 tokens", "at most 64 are allowed where q, k and v are bfloat16, else 16"]),
        ({"anchor": 65} | HALF, ["a chunk has 65 tokens", "at most 64 are allowed"]),
        ({"anchor": 64} | HALF | {"v": torch.zeros(1, 1, 66, 16)}, ["a chunk has 64 tokens", "else 16"]),
        ({"eta": torch.zeros(1, 1, 66, dtype=torch.float64)}, ["an operand is torch.float64", "float32 and bfloat16"]),
    ],
)
def test_what_the_kernels_cannot_do_is_refused_before_a_launch(changes: dict[str, Any], words: list[str]) -> None:
    given: dict[str, Any] = {n: x.float() for n, x in draw(66, 16, 16).items() if n != "initial"} | changes
    given["state"] = torch.zeros(1, 1, 16, given["q"].shape[3])
    with pytest.raises(ValueError) as caught:
        delta_rule(**given, backend="triton")
    for word in ("delta_rule: backend is 'triton'", *words):
        assert word in str(caught.value)
    y, _ = delta_rule(**given)
    assert y.isfinite().all()
