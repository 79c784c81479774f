"""What the two-layer memory is: gradient descent on its objectives written out, however it is computed."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nested_kernels import MLPState, Weights, mlp_memory
from probing import gradients
from torch import Tensor
from torch.testing import assert_close

Rules = list(itertools.product(["dot", "l2", "l2_doubled"], ["dgd", "gd"]))
Sizes = {"T": 6, "N": 2, "K": 2, "E": 3}
Tokens = ("q", "k", "v", "eta", "alpha", "beta")
Pairs = ("weights", "initial", "anchor", "momentum")
# objective, rule, erase, values, bounded, read, retain, momentum
Ways: list[dict[str, Any]] = [
    {},
    {"values": "own", "retain": "initial"},
    {"values": "own", "retain": "initial", "momentum": True},
    {"erase": "input", "read": "after", "bounded": False},
    {"erase": "input", "read": "after", "retain": "initial", "momentum": True},
    {"rule": "gd", "read": "after", "bounded": False, "momentum": True},
    {"rule": "gd", "read": "cumulative", "retain": "initial", "objective": "l2_doubled", "momentum": True},
    {"rule": "gd", "objective": "dot", "values": "own"},
]


def draw(T: int = 6, N: int = 2, K: int = 2, E: int = 3, b: int = 1, h: int = 1, seed: int = 0) -> dict[str, Any]:
    """Float64 operands with unit keys; eta is 0 and alpha and beta exactly 0 or 1 at some tokens."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(b, h, *shape, generator=g, dtype=torch.float64)

    q, k, v = normal(T, K), F.normalize(normal(T, K), dim=-1), normal(T, K)
    eta, alpha, beta = (torch.rand(b, h, T, generator=g, dtype=torch.float64) for _ in range(3))
    eta, alpha[..., 1::4], alpha[..., 2::7], beta[..., 3::5], eta[..., 4::9] = 0.4 * eta, 1, 0, 0, 0
    pairs = {name: Weights(normal(N, E, K), normal(N, K, E) / E) for name in Pairs}
    return {**dict(zip(Tokens, (q, k, v, eta, alpha, beta))), **pairs}


def call(x: dict[str, Any], state: MLPState | None = None, momentum: bool = False, **options: Any) -> Any:
    given = {name: x[name] for name in Tokens[:5]}
    if options.get("retain") == "initial":
        options["initial"] = x["initial"]
    if momentum:
        options["beta"] = x["beta"]
    state = state or MLPState(x["weights"], momentum=x["momentum"] if momentum else None)
    return mlp_memory(**given, state=state, **options)


def flat(y: Tensor, state: MLPState) -> list[Tensor]:
    return [y, *(x for pair in state[:3] if pair is not None for x in pair)]


def leaves_of(x: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
    leaves = {
        n: Weights(*(w.detach().requires_grad_() for w in t)) if isinstance(t, tuple) else t.detach().requires_grad_()
        for n, t in x.items()
    }
    return leaves, [w for t in leaves.values() for w in (t if isinstance(t, tuple) else (t,))]


def everything(x: dict[str, Any], **options: Any) -> list[Tensor]:
    """y, the state, and the gradient of a function of all of it with respect to every operand."""
    leaves, all_ = leaves_of(x)
    outputs = flat(*call(leaves, **options))
    return [*outputs, *gradients(outputs, all_)]


def part(x: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    return {n: t[:, :, begin:end] if n in Tokens else t for n, t in x.items()}


def loss(M: Sequence[Tensor], k: Tensor, target: Tensor, objective: str) -> Tensor:
    out = k + M[1] @ F.gelu(M[0] @ k)
    if objective == "dot":
        return -out @ target
    return (out - target).square().sum() * (1.0 if objective == "l2_doubled" else 0.5)


def by_hand(
    x: dict[str, Any], anchor: int, objective: str = "l2", rule: str = "dgd", erase: str = "every",
    values: str = "given", bounded: bool = True, read: str = "cumulative", retain: str = "zero", momentum: bool = False,
) -> list[Tensor]:  # fmt: skip
    """One memory after the other, the gradient of each layer taken by autograd from the objective."""
    leaves, all_ = leaves_of(x)
    q, k, v, eta, alpha, beta = (leaves[name][0, 0] for name in Tokens)
    ys, ends, heaps = [], [], []
    for n in range(leaves["weights"].up.shape[2]):
        M, M_0, S = ([w[0, 0, n] for w in leaves[name]] for name in ("weights", "initial", "momentum"))
        history = [M]
        for t in range(1, len(q) + 1):
            M_xi, M = history[anchor * ((t - 1) // anchor)], history[-1]
            hidden = F.gelu(M_xi[0] @ k[t - 1])
            target = v[t - 1] + M_xi[1] @ F.gelu(M_xi[0] @ v[t - 1]) if values == "own" else v[t - 1]
            alias = [w.clone() for w in M_xi]
            fixed = target  # of the inner gradient; the outer one flows through it
            G = torch.autograd.grad(loss(alias, k[t - 1], fixed, objective), alias, create_graph=True)
            after = []
            for layer, key in enumerate((k[t - 1], hidden)):
                rate = eta[t - 1] / (key @ key).clamp_min(1) if layer and bounded else eta[t - 1]
                erases = rule == "dgd" and not (layer and erase == "input")
                step = -rate * G[layer]
                S[layer] = beta[t - 1] * S[layer] + step if momentum else step
                erased = rate * torch.outer(M[layer] @ key, key) if erases else 0.0
                back = (1 - alpha[t - 1]) * M_0[layer] if retain == "initial" else 0.0
                after.append(alpha[t - 1] * M[layer] - erased + back + S[layer])
            history.append(after)
            asked = history[-1] if read == "after" else history[-2]
            if n == 0:
                ys.append(q[t - 1] + asked[1] @ F.gelu(asked[0] @ q[t - 1]))
        ends.append(history[-1])
        heaps.append(S)
    pairs = [torch.stack([m[layer] for m in ends])[None, None] for layer in range(2)]
    if momentum:
        pairs += [torch.stack([m[layer] for m in heaps])[None, None] for layer in range(2)]
    outputs = [torch.stack(ys)[None, None], *pairs]
    return [*outputs, *gradients(outputs, all_)]


@pytest.mark.parametrize("anchor", [1, 3])
@pytest.mark.parametrize("way", range(len(Ways)))
def test_both_forms_are_gradient_descent_on_the_objective(way: int, anchor: int) -> None:
    x, options = draw(), Ways[way]
    exact = by_hand(x, anchor, **options)
    for backend in ("reference", "chunked"):
        assert_close(everything(x, backend=backend, anchor=anchor, **options), exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("anchor", [1, 3, 8])
@pytest.mark.parametrize("way", range(len(Ways)))
def test_chunked_is_the_token_loop_in_values_and_all_gradients(way: int, anchor: int) -> None:
    for tokens, (objective, rule) in zip((1, 7, 13, 17, 20, 11), Rules):
        x = draw(tokens, N=1 + tokens % 3, K=3, E=4, b=2, h=2)
        options = {"objective": objective, "rule": rule, **Ways[way], "anchor": anchor}
        loop = everything(x, backend="reference", **options)
        assert_close(everything(x, backend="chunked", **options), loop, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("way", [1, 2, 5])
def test_pieces_are_the_whole_at_every_split(way: int, backend: Any) -> None:
    x, options = draw(10), {**Ways[way], "anchor": 4, "backend": backend}
    whole = everything(x, **options)
    for split in range(1, 10):
        leaves, all_ = leaves_of(x)
        first, state = call(part(leaves, 0, split), **options)
        assert state.position == split % 4
        second, state = call(part(leaves, split, 10), state, **options)
        outputs = flat(torch.cat([first, second], 2), state)
        assert_close([*outputs, *gradients(outputs, all_)], whole, rtol=1e-9, atol=1e-10)


def test_an_anchor_that_is_given_is_where_gradients_are_taken() -> None:
    x = draw(5)
    state = MLPState(x["weights"], x["anchor"], position=2)
    loop, chunked = (flat(*call(x, state, anchor=7, values="own", backend=b)) for b in ("reference", "chunked"))
    assert_close(chunked, loop, rtol=1e-9, atol=1e-11)
    elsewhere, _ = call(x, MLPState(x["weights"]), anchor=7, values="own")
    assert not torch.allclose(loop[0], elsewhere)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_what_is_returned_shares_no_memory_with_what_is_given_but_an_open_anchor(backend: Any) -> None:
    x = draw(3)
    _, state = call(x, anchor=8, backend=backend)
    held = [w.clone() for w in state.anchor]
    assert all(torch.equal(a, b) for a, b in zip(held, x["weights"]))
    for w in x["weights"]:
        w.zero_()
    assert all(torch.equal(a, b) for a, b in zip(held, state.anchor))
    after = call(x, state, anchor=8, backend=backend)[1]
    assert all(torch.equal(a, b) for a, b in zip(after.anchor, held))


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_memories_that_share_tokens_are_those_one_by_one(backend: Any) -> None:
    x = draw(9, N=3)
    y, state = call(x, anchor=4, values="own", backend=backend)
    for n in range(3):
        alone = {**x, "weights": Weights(*(w[:, :, n : n + 1] for w in x["weights"]))}
        asked, end = call(alone, anchor=4, values="own", backend=backend)
        for found, all_ in zip(end.weights, state.weights):
            assert_close(found[:, :, 0], all_[:, :, n], rtol=1e-11, atol=1e-12)
        assert torch.allclose(asked, y) == (n == 0)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_without_queries_the_same_is_written(backend: Any) -> None:
    x = draw(9)
    y, state = call({**x, "q": None}, anchor=4, backend=backend)
    assert y is None
    assert_close(state.weights, call(x, anchor=4, backend=backend)[1].weights)


@pytest.mark.parametrize("read", ["cumulative", "after"])
def test_a_token_is_seen_by_no_earlier_read(read: Any) -> None:
    x, changed = draw(20), draw(20, seed=1)
    mixed = dict(x)
    for name in ("k", "v", "eta", "alpha", "beta"):
        mixed[name] = torch.cat([x[name][:, :, :9], changed[name][:, :, 9:]], 2)
    y, other = (call(z, anchor=5, read=read, momentum=True)[0] for z in (x, mixed))
    seen_from = 9 if read == "after" else 10
    assert_close(y[:, :, :seen_from], other[:, :, :seen_from], rtol=0, atol=1e-14)
    assert not torch.allclose(y[:, :, seen_from], other[:, :, seen_from])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("way", range(len(Ways)))
def test_it_is_differentiable_twice(way: int, backend: Any) -> None:
    x = draw(4 if backend == "reference" else 5)
    _, all_ = leaves_of(x)
    names = list(x)

    def outputs(*tensors: Tensor) -> tuple[Tensor, ...]:
        it = iter(tensors)
        made = {n: Weights(next(it), next(it)) if isinstance(x[n], tuple) else next(it) for n in names}
        return tuple(flat(*call(made, **Ways[way], anchor=3, backend=backend)))

    assert torch.autograd.gradgradcheck(outputs, all_, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_the_state_is_float32_whatever_the_operands_are(backend: Any) -> None:
    x = {n: Weights(*(w.bfloat16() for w in t)) if isinstance(t, tuple) else t.bfloat16() for n, t in draw(20).items()}
    y, state = call(x, anchor=8, backend=backend)
    assert y.dtype == torch.bfloat16
    assert {w.dtype for w in (*state.weights, *state.anchor)} == {torch.float32}
    wide = {n: Weights(*(w.double() for w in t)) if isinstance(t, tuple) else t.double() for n, t in x.items()}
    exact, end = call(wide, anchor=8, backend=backend)
    assert_close(state.weights.up.double(), end.weights.up, rtol=1e-4, atol=1e-5)
    assert_close(y.double(), exact, rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(x, anchor=8, backend=backend)[1].weights.up, state.weights.up)


def test_on_meta_tensors_it_has_the_shapes_and_dtypes_of_what_it_would_compute() -> None:
    def on(device: str) -> dict[str, Any]:
        return {
            n: Weights(*(w.to(device) for w in t)) if isinstance(t, tuple) else t.to(device)
            for n, t in draw(20).items()
        }

    found, wanted = (flat(*call(on(device), anchor=8)) for device in ("meta", "cpu"))
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in wanted]
    assert {t.device.type for t in found} == {"meta"}


def wrong(**changes: Any) -> dict[str, Any]:
    x = draw(4)
    return {**{n: x[n] for n in Tokens[:5]}, "state": x["weights"], **changes}


UP, DOWN = torch.zeros(1, 1, 2, 3, 2), torch.zeros(1, 1, 2, 2, 3)
Wrong = {
    "k": (wrong(k=torch.zeros(1, 1, 5, 2)), ["is (1, 1, 4, 2)", "k (1, 1, 5, 2)", "it must be (1, 1, 5, 2)"]),
    "axes": (wrong(k=torch.zeros(1, 4, 2)), ["k is (1, 4, 2)", "(B, H, T, K)"]),
    "no token": (wrong(k=torch.zeros(1, 1, 0, 2)), ["k is (1, 1, 0, 2)", "all at least 1"]),
    "eta": (wrong(eta=torch.zeros(1, 1, 4, 1)), ["eta is (1, 1, 4, 1)", "(1, 1, 4)"]),
    "down": (wrong(state=Weights(UP, UP)), ["state.weights.down is (1, 1, 2, 3, 2)", "(1, 1, 2, 2, 3)"]),
    "no state": (wrong(state=None), ["state.weights.up is None", "a tensor (B, H, N, E, K) is needed"]),
    "a tensor as state": (wrong(state=UP), ["state.weights is a Tensor", "Weights(up, down)"]),
    "no tensor": (wrong(eta=0.1), ["eta is a float", "a tensor (B, H, T) is needed"]),
    "integers": (wrong(alpha=torch.ones(1, 1, 4, dtype=torch.long)), ["alpha is torch.int64", "floating"]),
    "devices": (wrong(v=torch.zeros(1, 1, 4, 2, device="meta")), ["v is on meta", "k on cpu"]),
    "objective": (wrong(objective="l3"), ["objective is 'l3'", "dot, l2, l2_doubled"]),
    "values": (wrong(values="self"), ["values is 'self'", "given, own"]),
    "erase": (wrong(erase="output"), ["erase is 'output'", "every, input"]),
    "read": (wrong(read="anchor"), ["read is 'anchor'", "cumulative, after"]),
    "backend": (wrong(backend="fast"), ["backend is 'fast'", "auto, reference, chunked, triton"]),
    "anchor": (wrong(anchor=0), ["anchor is 0", "1 or more"]),
    "anchor and a half": (wrong(anchor=2.0), ["anchor is 2.0", "an integer, 1 or more"]),
    "sparse": (wrong(v=torch.zeros(1, 1, 4, 2).to_sparse()), ["v has layout torch.sparse_coo", "dense"]),
    "initial missing": (wrong(retain="initial"), ["retain is 'initial'", "initial must be given"]),
    "initial unused": (wrong(initial=Weights(UP, DOWN)), ["retain is 'zero'", "initial must not be given"]),
    "position": (wrong(state=MLPState(Weights(UP, DOWN), None, None, 3), anchor=2), ["position is 3", "below 2"]),
    "anchor of the state": (wrong(state=MLPState(Weights(UP, DOWN), None, None, 1), anchor=2), ["no anchor at"]),
    "momentum": (wrong(state=MLPState(Weights(UP, DOWN), None, Weights(UP, DOWN))), ["a momentum and beta is None"]),
}


@pytest.mark.parametrize("case", Wrong)
def test_wrong_input_is_named_with_what_is_allowed(case: str) -> None:
    given, words = Wrong[case]
    with pytest.raises(ValueError) as caught:
        mlp_memory(**given)
    for word in ("mlp_memory: ", *words):
        assert word in str(caught.value)
