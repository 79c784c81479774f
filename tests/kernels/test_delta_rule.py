"""What the delta rule is: gradient descent on its objectives written out, and one recurrence however it is computed."""

import importlib
import itertools
from functools import partial
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from nested_kernels import State, delta_rule
from probing import gradients
from torch import Tensor
from torch.testing import assert_close

Rules = list(itertools.product(["dot", "l2", "l2_doubled"], ["dgd", "gd"]))
Ways = list(itertools.product(["cumulative", "after", "anchor"], ["zero", "initial"]))
ERASE = {("dot", "dgd"): 1, ("l2", "dgd"): 2, ("l2_doubled", "dgd"): 3, ("l2", "gd"): 1, ("l2_doubled", "gd"): 2}
Bounds = [(objective, rule, 2 / c) for (objective, rule), c in ERASE.items()]
Names = ("q", "k", "v", "eta", "alpha", "state", "initial")


def draw(tokens: int, b: int = 2, h: int = 2, key: int = 3, value: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Float64 operands with unit keys; eta is 0 and alpha exactly 0 or 1 at some tokens."""
    g = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(b, h, tokens, key, generator=g, dtype=torch.float64) for _ in range(2))
    v = torch.randn(b, h, tokens, value, generator=g, dtype=torch.float64)
    alpha = torch.rand(b, h, tokens, generator=g, dtype=torch.float64)
    eta = 0.6 * torch.rand(b, h, tokens, generator=g, dtype=torch.float64)
    alpha[..., 1::4], alpha[..., 2::7], alpha[..., 3::7] = 1, 0, 0
    eta[..., 4::9] = 0
    state, initial = (torch.randn(b, h, value, key, generator=g, dtype=torch.float64) for _ in range(2))
    return dict(zip(Names, (q, F.normalize(k, dim=-1), v, eta, alpha, state, initial)))


def call(x: dict[str, Tensor], state: State | None = None, **options: Any) -> tuple[Tensor, State]:
    given = {name: x[name] for name in ("q", "k", "v", "eta", "alpha")}
    if options.get("retain") == "initial":
        options["initial"] = x["initial"]
    return delta_rule(**given, state=x["state"] if state is None else state, **options)


def everything(x: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """y, the state, and the gradient of a function of all of it with respect to every operand."""
    leaves = {name: t.detach().requires_grad_() for name, t in x.items()}
    y, state = call(leaves, **options)
    return [*flat(y, state), *gradients(flat(y, state), list(leaves.values()))]


def flat(y: Tensor, state: State) -> list[Tensor]:
    return [y, state.memory, *([] if state.anchor is None else [state.anchor])]


def part(x: dict[str, Tensor], begin: int, end: int) -> dict[str, Tensor]:
    return {n: t if n in ("state", "initial") else t[:, :, begin:end] for n, t in x.items()}


def loss(M: Tensor, k: Tensor, v: Tensor, objective: str) -> Tensor:
    if objective == "dot":
        return -(M @ k) @ v
    return (M @ k - v).square().sum() * (1.0 if objective == "l2_doubled" else 0.5)


def by_hand(x: dict[str, Tensor], objective: str, rule: str, anchor: int, read: str, retain: str) -> list[Tensor]:
    """Eq. 88 and 90 for one sequence and head after the other, the gradient taken by autograd from the objective."""
    leaves = {name: t.detach().requires_grad_() for name, t in x.items()}
    ys, ends = [], []
    for b, h in itertools.product(range(x["q"].shape[0]), range(x["q"].shape[1])):
        q, k, v, eta, alpha, M, M_0 = (leaves[name][b, h] for name in Names)
        identity, states = torch.eye(len(k[0]), dtype=M.dtype), [M]
        for t in range(1, len(q) + 1):
            M_xi = states[anchor * ((t - 1) // anchor)]
            (G,) = torch.autograd.grad(loss(M_xi, k[t - 1], v[t - 1], objective), M_xi, create_graph=True)
            erased = eta[t - 1] * torch.outer(k[t - 1], k[t - 1]) if rule == "dgd" else 0.0
            kept = states[-1] @ (alpha[t - 1] * identity - erased)
            back = (1 - alpha[t - 1]) * M_0 if retain == "initial" else 0.0
            states.append(kept + back - eta[t - 1] * G)
            ys.append({"cumulative": states[-2], "after": states[-1], "anchor": M_xi}[read] @ q[t - 1])
        ends.append(states[-1])
    y, end = torch.stack(ys).view_as(x["v"]), torch.stack(ends).view_as(x["state"])
    return [y, end, *gradients([y, end], list(leaves.values()))]


@pytest.mark.parametrize("anchor", [1, 3])
@pytest.mark.parametrize(("objective", "rule"), Rules)
def test_both_forms_are_gradient_descent_on_the_objective(objective: Any, rule: Any, anchor: int) -> None:
    x = draw(6, b=1, key=2, value=3)  # two whole anchor chunks: the state is a memory alone
    for (read, retain), backend in itertools.product(Ways, ["reference", "chunked"]):
        options = {"objective": objective, "rule": rule, "anchor": anchor, "read": read, "retain": retain}
        assert_close(everything(x, backend=backend, **options), by_hand(x, **options), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("anchor", [1, 3, 8])
@pytest.mark.parametrize(("objective", "rule"), Rules)
def test_chunked_is_the_token_loop_in_values_and_all_gradients(objective: Any, rule: Any, anchor: int) -> None:
    cases = [(33, *way) for way in Ways] + [(tokens, "cumulative", "initial") for tokens in (1, 7, 65)]
    for tokens, read, retain in cases:
        options = {"objective": objective, "rule": rule, "anchor": anchor, "read": read, "retain": retain}
        chunk = 9 if anchor == 1 else None
        loop = everything(draw(tokens), backend="reference", **options)
        assert_close(everything(draw(tokens), backend="chunked", chunk=chunk, **options), loop, rtol=1e-8, atol=1e-9)


def test_the_chunk_length_changes_nothing() -> None:
    x = draw(33)
    whole = everything(x, backend="chunked", chunk=33)
    for chunk in (1, 2, 7, 16, 32, 64):
        assert_close(everything(x, backend="chunked", chunk=chunk), whole, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("anchor", [1, 4])
@pytest.mark.parametrize("cached", [1, 200])
def test_without_gradients_it_is_read_in_pieces_that_fit_the_cache(cached: int, anchor: int, monkeypatch) -> None:
    module = importlib.import_module("nested_kernels.delta_rule.chunked")
    monkeypatch.setattr(module, "CACHED", cached)
    calls, scan = [], module._scan
    monkeypatch.setattr(module, "_scan", lambda *given: calls.append(given[0].shape) or scan(*given))
    x = draw(41)
    for read, retain in Ways:
        options = {"anchor": anchor, "read": read, "retain": retain}
        begun = call(part(x, 0, 6), backend="reference", **options)[1]  # an anchor chunk of 4 is open
        wanted = call(part(x, 6, 41), begun, backend="reference", **options)
        found = call(part(x, 6, 41), begun, backend="chunked", chunk=4 if anchor == 1 else None, **options)
        assert_close(flat(*found), flat(*wanted), rtol=1e-9, atol=1e-11)
    assert len(calls) == len(Ways) * {1: 9 + (anchor > 1), 200: 3}[cached]


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("anchor", [1, 4])
def test_pieces_are_the_whole_at_every_split(anchor: int, backend: Any) -> None:
    x = draw(13, b=1)
    for read, retain in Ways:
        options: dict[str, Any] = {"anchor": anchor, "read": read, "retain": retain, "backend": backend}
        whole = everything(x, **options)
        for split in range(1, 13):
            leaves = {name: t.detach().requires_grad_() for name, t in x.items()}
            first, state = call(part(leaves, 0, split), **options)
            assert state.position == split % anchor
            second, state = call(part(leaves, split, 13), state, **options)
            outputs = flat(torch.cat([first, second], 2), state)
            assert_close([*outputs, *gradients(outputs, list(leaves.values()))], whole, rtol=1e-9, atol=1e-10)


def test_one_token_at_a_time_through_an_anchor_chunk() -> None:
    x = draw(11)
    whole, end = call(x, anchor=4, backend="chunked")
    state, ys = None, []
    for t in range(11):
        y, state = call(part(x, t, t + 1), state, anchor=4, backend=("reference", "chunked")[t % 2])
        ys.append(y)
    assert_close(torch.cat(ys, 2), whole)
    assert_close(state, end)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_what_is_returned_shares_no_memory_with_what_is_given_but_an_open_anchor(backend: Any) -> None:
    for retain in ("zero", "initial"):
        x = draw(3)
        _, state = call(x, anchor=8, retain=retain, backend=backend)
        assert state.anchor is not None
        held = state.anchor.clone()
        assert torch.equal(held, x["state"])
        x["state"].zero_()
        assert torch.equal(state.anchor, held)
        assert call(x, state, anchor=8, retain=retain, backend=backend)[1].anchor is state.anchor


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_batch_is_its_sequences_one_by_one(backend: Any) -> None:
    x = draw(20, b=3)
    y, state = call(x, backend=backend)
    for i in range(3):
        alone, end = call({name: t[i : i + 1] for name, t in x.items()}, backend=backend)
        assert_close(alone[0], y[i], rtol=1e-12, atol=1e-12)
        assert_close(end.memory[0], state.memory[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("anchor", [1, 5])
@pytest.mark.parametrize("read", ["cumulative", "after", "anchor"])
def test_a_token_is_seen_by_no_earlier_read(read: Any, anchor: int) -> None:
    x, changed = draw(20), draw(20, seed=1)
    mixed = dict(x)
    for name in ("k", "v", "eta", "alpha"):
        mixed[name] = torch.cat([x[name][:, :, :9], changed[name][:, :, 9:]], 2)
    y, other = (call(z, anchor=anchor, read=read, backend="chunked")[0] for z in (x, mixed))
    seen_from = {"after": 9, "cumulative": 10, "anchor": 10}[read]  # token 9 is the first to differ; 10 begins a chunk
    assert torch.equal(y[:, :, :seen_from], other[:, :, :seen_from])
    assert not torch.isclose(y[:, :, seen_from:], other[:, :, seen_from:]).all(-1).any()


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_without_rate_and_with_full_retention_it_is_a_linear_layer(backend: Any) -> None:
    x = draw(20)
    x |= {"eta": torch.zeros_like(x["eta"]), "alpha": torch.ones_like(x["alpha"])}
    y, state = call(x, backend=backend)
    assert_close(y, x["q"] @ x["state"].mT)
    assert torch.equal(state.memory, x["state"])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("anchor", [1, 2])
def test_first_and_second_derivatives_are_those_of_finite_differences(anchor: int, backend: Any) -> None:
    x = {name: t.requires_grad_() for name, t in draw(5, b=1, h=1, key=2, value=2).items()}

    def f(*operands: Tensor) -> tuple[Tensor, ...]:
        y, state = call(dict(zip(Names, operands)), anchor=anchor, retain="initial", backend=backend)
        return tuple(flat(y, state))

    assert torch.autograd.gradcheck(f, tuple(x.values()))
    assert torch.autograd.gradgradcheck(f, tuple(x.values()))


@pytest.mark.parametrize("read", ["cumulative", "after", "anchor"])
@pytest.mark.parametrize(("objective", "rule"), [("dot", "gd"), ("l2", "dgd")])
def test_second_derivatives_hold_over_ragged_chunks(objective: Any, rule: Any, read: Any) -> None:
    x = [t.requires_grad_() for t in draw(3, b=1, h=1, key=2, value=1).values()][:-1]

    def f(*operands: Tensor, **lengths: Any) -> tuple[Tensor, ...]:
        given: dict[str, Tensor] = dict(zip(Names, operands))
        return tuple(flat(*call(given, objective=objective, rule=rule, read=read, backend="chunked", **lengths)))

    assert torch.autograd.gradgradcheck(partial(f, chunk=2), x)
    assert torch.autograd.gradgradcheck(partial(f, anchor=2), x)


@pytest.mark.parametrize("seen", ["y", "memory", "anchor"])
def test_gradients_of_one_result_alone_are_those_of_the_token_loop(seen: str) -> None:
    """In the second order too, where the first comes from results that were not asked for."""

    def found(backend: str) -> list[Tensor]:
        x = {name: t.requires_grad_() for name, t in draw(11).items()}
        y, state = call(x, anchor=3, retain="initial", backend=backend)
        loss = {"y": y, "memory": state.memory, "anchor": state.anchor}[seen]
        assert loss is not None
        once = torch.autograd.grad(loss.pow(3).sum(), list(x.values()), create_graph=True, materialize_grads=True)
        twice = torch.autograd.grad(
            sum((g.pow(2).sum() for g in once), loss.new_zeros(())), list(x.values()), materialize_grads=True
        )
        return [*once, *twice]

    assert_close(found("chunked"), found("reference"), rtol=1e-8, atol=1e-9)


def test_transforms_and_compiled_code_have_the_same_gradients() -> None:
    x = draw(5, b=1)

    def loss(k: Tensor, eta: Tensor) -> Tensor:
        y, state = call(x | {"k": k, "eta": eta}, chunk=2, backend="chunked")
        return y.square().sum() + state.memory.pow(3).sum()

    operands = (x["k"].requires_grad_(), x["eta"].requires_grad_())
    plain = torch.autograd.grad(loss(*operands), operands, create_graph=True)
    assert_close(torch.func.grad(loss, (0, 1))(*operands), plain)
    along = tuple(torch.randn_like(t) for t in operands)
    forward = torch.func.jvp(loss, tuple(t.detach() for t in operands), along)[1]
    assert_close(forward, sum(((g * a).sum() for g, a in zip(plain, along)), torch.zeros_like(forward)))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close(torch.autograd.grad(compiled(*operands), operands), plain)


def repeated(k: Tensor, tokens: int, eta: float, alpha: float = 1.0, v: float = 0.0) -> dict[str, Tensor]:
    """One key, one value: k (K,) unit; the memory is random."""
    key = len(k)
    rows = k.expand(1, 1, tokens, key)
    rates = {name: torch.full((1, 1, tokens), r, dtype=k.dtype) for name, r in (("eta", eta), ("alpha", alpha))}
    state = torch.randn(1, 1, key, key, dtype=k.dtype)
    return {"q": rows, "k": rows, "v": torch.full_like(rows, v), "state": state, **rates}


def unit_key(dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(5, dtype=dtype), dim=0)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("objective", "rule", "eta"), Bounds)
def test_at_the_bound_the_memory_flips_its_sign_256_times(objective, rule, eta, dtype, backend) -> None:
    x = repeated(unit_key(dtype), 256, eta)
    y, state = call(x, objective=objective, rule=rule, backend=backend)
    held = x["state"] @ x["k"][0, 0, 0]
    signs = torch.tensor([1.0, -1.0], dtype=dtype).repeat(128).view(-1, 1)
    assert_close(y[0, 0], signs * held[0, 0], rtol=1e-2, atol=0)
    assert_close(state.memory @ x["k"][0, 0, 0], held, rtol=1e-2, atol=0)


@pytest.mark.parametrize(("objective", "rule", "eta"), Bounds)
def test_it_contracts_up_to_the_bound_and_diverges_above(objective: Any, rule: Any, eta: float) -> None:
    k = unit_key()

    def norms(alpha: float, factor: float) -> Tensor:
        x = repeated(k, 300, factor * eta * alpha, alpha)
        return call(x, objective=objective, rule=rule, read="after")[0][0, 0].norm(dim=-1)

    for factor in (0.1, 0.999, 1.0):
        assert (norms(0.9, factor)[:30].diff() < 0).all()  # later there is nothing left but rounding
    assert (norms(1.0, 1.01).diff() > 0).all()
    assert norms(1.0, 1.01)[-1] > 100 * norms(1.0, 1.01)[0]


@pytest.mark.parametrize("c", [1, 2, 7, 16])
@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
def test_one_key_over_a_stale_chunk_gives_the_factor_of_the_double_erase(c: int, eta: float) -> None:
    x = repeated(unit_key(), c, eta)
    _, state = call(x, anchor=c, backend="chunked")
    k = x["k"][0, 0, 0]
    assert_close(state.memory @ k, (2 * (1 - eta) ** c - 1) * (x["state"] @ k))


@pytest.mark.parametrize(("alpha", "eta"), [(1.0, 0.5), (1.0, 0.9), (0.9, 0.3)])
def test_repeated_writes_end_at_a_scaled_value(alpha: float, eta: float) -> None:
    x = repeated(unit_key(), 400, eta, alpha, v=3.0)
    _, state = call(x)
    assert_close((state.memory @ x["k"][0, 0, 0])[0, 0], x["v"][0, 0, 0] * eta / (1 - alpha + 2 * eta))


@pytest.mark.parametrize(("objective", "rule", "eta"), Bounds)
def test_float32_holds_at_the_bound_with_correlated_keys(objective: Any, rule: Any, eta: float) -> None:
    x = draw(300, key=16, value=16)
    k = F.normalize(F.normalize(torch.randn(1, 1, 1, 16, dtype=torch.float64), dim=-1) + 0.2 * x["k"], dim=-1)
    alpha = 1 - 0.01 * torch.rand_like(x["alpha"])
    x |= {"k": k, "alpha": alpha, "eta": eta * alpha, "v": F.normalize(x["v"], dim=-1)}
    exact = call(x, objective=objective, rule=rule, backend="reference")
    y, state = call({n: t.float() for n, t in x.items()}, objective=objective, rule=rule, backend="chunked")
    for got, wanted in ((y, exact[0]), (state.memory, exact[1].memory)):
        assert (got - wanted).norm() / wanted.norm() < 2e-5  # measured: 5e-6, and 8e-7 for the loop


def test_float32_gradients_survive_an_alpha_that_underflows() -> None:
    x = draw(40)
    x["alpha"][..., ::3], x["alpha"][..., 5::6] = 1e-30, 0
    exact = everything(x, backend="reference")
    for got, wanted in zip(everything({n: t.float() for n, t in x.items()}, backend="chunked"), exact):
        assert (got - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_the_state_is_float32_whatever_the_operands_are(backend: Any) -> None:
    x = {n: t.bfloat16() for n, t in draw(20).items()}
    y, state = call(x, backend=backend)
    assert (y.dtype, state.memory.dtype) == (torch.bfloat16, torch.float32)
    exact, end = call({n: t.double() for n, t in x.items()}, backend=backend)
    assert_close(state.memory.double(), end.memory, rtol=1e-4, atol=1e-5)
    assert_close(y.double(), exact, rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(x, backend=backend)[1].memory, state.memory)


@pytest.mark.parametrize("tokens", [3, 20])
def test_on_meta_tensors_it_has_the_shapes_and_dtypes_of_what_it_would_compute(tokens: int) -> None:
    x = {n: t.bfloat16() for n, t in draw(tokens).items()}
    wanted = flat(*call(x, anchor=7))
    found = flat(*call({n: t.to("meta") for n, t in x.items()}, anchor=7))
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in wanted]
    assert {t.device.type for t in found} == {"meta"}


def test_auto_takes_the_loop_for_few_tokens_and_chunks_for_many() -> None:
    for tokens, backend in ((2, "reference"), (100, "chunked")):
        x = draw(tokens)
        assert torch.equal(call(x)[0], call(x, backend=backend)[0])


def wrong(**changes: Any) -> dict[str, Any]:
    return {**draw(4), "initial": None, **changes}


Wrong = {
    "k": (wrong(k=torch.zeros(2, 2, 5, 3)), ["k is (2, 2, 5, 3)", "(2, 2, 4, 3)"]),
    "v": (wrong(v=torch.zeros(2, 4, 4)), ["v (2, 4, 4)", "(B, H, T, V)"]),
    "eta": (wrong(eta=torch.zeros(2, 2, 4, 1)), ["eta is (2, 2, 4, 1)", "(2, 2, 4)"]),
    "state": (wrong(state=torch.zeros(1, 2, 4, 3)), ["state is (1, 2, 4, 3)", "(2, 2, 4, 3)"]),
    "no state": (wrong(state=None), ["state is None", "a tensor (B, H, V, K) is needed"]),
    "no tensor": (wrong(eta=0.1), ["eta is a float", "a tensor (B, H, T) is needed"]),
    "no tensor in the state": (
        wrong(state=State(torch.zeros(2, 2, 4, 3), cast(Any, 0.0), 1), anchor=2),
        ["state.anchor is a float", "a tensor (B, H, V, K) is needed"],
    ),
    "integers": (wrong(alpha=torch.ones(2, 2, 4, dtype=torch.long)), ["alpha is torch.int64", "floating"]),
    "devices": (wrong(v=torch.zeros(2, 2, 4, 4, device="meta")), ["v is on meta", "q on cpu"]),
    "no token": (wrong(q=torch.zeros(2, 2, 0, 3)), ["q is (2, 2, 0, 3)", "all at least 1"]),
    "no sequence": (wrong(q=torch.zeros(0, 2, 4, 3)), ["q is (0, 2, 4, 3)", "all at least 1"]),
    "no head": (wrong(q=torch.zeros(2, 0, 4, 3)), ["q is (2, 0, 4, 3)", "all at least 1"]),
    "no key": (wrong(q=torch.zeros(2, 2, 4, 0)), ["q is (2, 2, 4, 0)", "all at least 1"]),
    "no value": (wrong(v=torch.zeros(2, 2, 4, 0)), ["v (2, 2, 4, 0)", "all at least 1"]),
    "sparse": (wrong(q=torch.zeros(2, 2, 4, 3).to_sparse()), ["q has layout torch.sparse_coo", "dense"]),
    "8 bits": (wrong(v=torch.zeros(2, 2, 4, 4).to(torch.float8_e4m3fn)), ["v is torch.float8_e4m3fn", "16, 32 or 64"]),
    "anchor of text": (wrong(anchor="4"), ["anchor is '4'", "an integer, 1 or more"]),
    "anchor and a half": (wrong(anchor=2.0), ["anchor is 2.0", "an integer, 1 or more"]),
    "chunk and a half": (wrong(chunk=4.0), ["chunk is 4.0", "an integer, 1 or more"]),
    "position and a half": (
        wrong(state=State(torch.zeros(2, 2, 4, 3), torch.zeros(2, 2, 4, 3), cast(Any, 1.0)), anchor=2),
        ["state.position is 1.0", "an integer, 0 or more"],
    ),
    "objective": (wrong(objective="l3"), ["objective is 'l3'", "dot, l2, l2_doubled"]),
    "read": (wrong(read="before"), ["read is 'before'", "cumulative, after, anchor"]),
    "backend": (wrong(backend="fast"), ["backend is 'fast'", "auto, reference, chunked"]),
    "anchor": (wrong(anchor=0), ["anchor is 0", "1 or more"]),
    "chunk": (wrong(chunk=0), ["chunk is 0", "1 or more"]),
    "chunk with anchor": (wrong(chunk=8, anchor=4), ["chunk is 8 with anchor 4", "none, or 4"]),
    "initial missing": (wrong(retain="initial"), ["retain is 'initial'", "initial must be given"]),
    "initial unused": (wrong(initial=torch.zeros(2, 2, 4, 3)), ["retain is 'zero'", "initial must not be given"]),
    "initial shape": (wrong(retain="initial", initial=torch.zeros(2, 4, 3)), ["initial is (2, 4, 3)", "(2, 2, 4, 3)"]),
    "position": (wrong(state=State(torch.zeros(2, 2, 4, 3), None, 3), anchor=2), ["position is 3", "below 2"]),
    "anchor of the state": (
        wrong(state=State(torch.zeros(2, 2, 4, 3), None, 1), anchor=2),
        ["no anchor at position 1"],
    ),
}


@pytest.mark.parametrize("case", Wrong)
def test_wrong_input_is_named_with_what_is_allowed(case: str) -> None:
    given, words = Wrong[case]
    with pytest.raises(ValueError) as caught:
        delta_rule(**given)
    for word in ("delta_rule: ", *words):
        assert word in str(caught.value)
