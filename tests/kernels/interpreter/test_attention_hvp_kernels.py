"""The Triton form of attention is the formula in float64: values, first and second derivatives; and its order."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nested_kernels import attention_hvp, backend
from nested_kernels.attention_hvp.library import attention, attention_backward, attention_second, sizes_of
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 8e-3}

# queries, keys, head size, window, sequences and heads: ragged ends, blocks that a window hides, sums of two sizes
Case = tuple[int, int, int, int | None, int, int]
Bfloat16: dict[str, Case] = {
    "one query": (1, 80, 64, None, 1, 2),
    "one query, a window, 80 wide": (1, 165, 80, 100, 1, 1),
    "63 queries, 64 wide": (63, 63, 64, None, 1, 1),
    "63 queries, a window, more keys, 128 wide": (63, 142, 128, 16, 1, 1),
    "65 queries, 96 wide, two sequences": (65, 65, 96, None, 2, 1),
    "65 queries, a window, 60 wide": (65, 65, 60, 16, 1, 1),
    "65 queries, more keys, 80 wide": (65, 165, 80, None, 1, 1),
    "65 queries, a window, more keys, 96 wide": (65, 300, 96, 100, 1, 1),
    "several blocks, a window, 64 wide": (150, 200, 64, 100, 1, 1),
    "several blocks, 128 wide": (150, 200, 128, None, 1, 1),
    "63 queries, a window, more keys, 32 wide": (63, 103, 32, 16, 1, 1),
    "3 wide": (40, 70, 3, 16, 1, 1),
}
Float32: dict[str, Case] = {
    "one query": (1, 80, 64, None, 1, 2),
    "63 queries, 64 wide": (63, 63, 64, None, 1, 1),
    "65 queries, a window, more keys, 64 wide": (65, 142, 64, 16, 1, 1),
    "a window of 100, 3 wide": (33, 120, 3, 100, 1, 1),
    "65 queries, 32 wide": (65, 65, 32, None, 1, 1),
    "two sequences, 40 wide": (20, 30, 40, 9, 2, 1),
    "80 wide": (17, 40, 80, 20, 1, 1),
    "96 wide": (17, 17, 96, None, 1, 1),
    "128 wide": (18, 35, 128, None, 1, 1),
}
Cases = [(torch.bfloat16, name) for name in Bfloat16] + [(torch.float32, name) for name in Float32]


def draw(t: int, n: int, size: int, b: int = 1, h: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v, the output's gradient, and what the gradients of q, k and v are weighted with; normal, in float64."""
    g = torch.Generator().manual_seed(t + n + size)
    given = [torch.randn(b, tokens, h, size, generator=g, dtype=torch.float64) for tokens in (t, n, n, t, t, n, n)]
    return [x.to(dtype).double() for x in given]


def everything(x: list[Tensor], window: int | None, form: Any) -> dict[str, Tensor]:
    """The output, its gradients, and the gradients of a weighted sum of those."""
    *leaves, u_q, u_k, u_v = x
    q, k, v, d_out = leaves = [t.detach().requires_grad_() for t in leaves]
    y = attention_hvp(q, k, v, window, form)
    first = torch.autograd.grad(y, (q, k, v), d_out, create_graph=True)
    second = torch.autograd.grad(first, leaves, (u_q, u_k, u_v))
    found = dict(zip(("dq", "dk", "dv", "second q", "second k", "second v", "second dy"), (*first, *second)))
    return {n: t.detach() for n, t in {"y": y, **found}.items()}


def errors(x: list[Tensor], window: int | None, dtype: torch.dtype) -> dict[str, float]:
    """Relative, in the Frobenius norm, to the formula in float64."""
    exact, found = everything(x, window, "reference"), everything([t.to(dtype) for t in x], window, "triton")
    assert all(t.dtype == dtype for t in found.values())
    return {n: float((found[n] - exact[n]).norm() / exact[n].norm()) for n in exact}


@pytest.mark.parametrize(("dtype", "case"), Cases, ids=lambda x: str(x).removeprefix("torch."))
def test_it_is_the_formula_in_values_and_both_derivatives(dtype: torch.dtype, case: str) -> None:
    t, n, size, window, b, h = (Bfloat16 if dtype == torch.bfloat16 else Float32)[case]
    found = errors(draw(t, n, size, b, h, dtype), window, dtype)
    assert max(found.values()) < BOUNDS[dtype], found


@pytest.mark.parametrize(("t", "n", "window"), [(1, 1, None), (33, 50, 1)])
def test_a_query_that_sees_itself_alone_has_no_gradient_in_its_scores(t: int, n: int, window: int | None) -> None:
    x = draw(t, n, 64)
    exact, found = everything(x, window, "reference"), everything([o.float() for o in x], window, "triton")
    for name in exact:
        assert_close(found[name].double(), exact[name], rtol=1e-5, atol=1e-5)
    assert found["dq"].abs().max() < 1e-5 < found["dv"].abs().max()


def test_what_all_keys_have_in_common_costs_no_precision_where_it_cancels() -> None:
    """It moves every entry of F, whose mean is taken off before anything is rounded to bfloat16.

    dQ and barQ are not named: they are sums over keys with rounded weights, in this form and in any.
    """
    x = draw(65, 128, 64, dtype=torch.bfloat16)
    x[1] = (x[1] + 8).bfloat16().double()
    found = errors(x, None, torch.bfloat16)
    kept = {name: found[name] for name in ("y", "dk", "dv", "second k", "second v", "second dy")}
    assert max(kept.values()) < 4e-3, kept


def test_scores_that_would_overflow_an_exponential_keep_every_derivative_finite() -> None:
    x = draw(40, 70, 16)
    x[0] *= 1e3
    exact, found = everything(x, 33, "reference"), everything([t.float() for t in x], 33, "triton")
    for name in exact:  # gradients of a softmax that is all but 0 and 1 are differences that cancel
        assert_close(found[name].double(), exact[name], rtol=1e-3, atol=1e-3)


def test_operands_may_lie_in_memory_as_they_like() -> None:
    q, k, v, *_ = [x.float() for x in draw(20, 30, 16, b=2, h=3)]

    def outputs(form: Any, *given: Tensor) -> list[Tensor]:
        q, k, v = (x.detach().requires_grad_() for x in given)
        y = attention_hvp(q, k[:, ::2], v[:, 1::2, :, :], 9, form)
        first = torch.autograd.grad(y.sum(), (q, k, v), create_graph=True)  # a gradient without memory of its own
        return [y, *torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), (q, k, v))]

    turned = [x[:, :15].transpose(1, 2).contiguous().transpose(1, 2) if x is q else x for x in (q, k, v)]
    for got, wanted in zip(outputs("triton", *turned), outputs("reference", *turned)):
        assert (got - wanted).norm() <= 3e-6 * wanted.norm()


def test_a_head_is_a_sum_of_powers_of_two_where_that_is_less() -> None:
    sums = {40: (32, 16), 60: (64,), 64: (64,), 80: (64, 16), 96: (64, 32), 97: (128,), 128: (128,)}
    assert {n: sizes_of(n, torch.bfloat16) for n in sums} == sums
    assert {n: sizes_of(n, torch.float32) for n in sums} == {**sums, 40: (64,), 80: (64, 32)}


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_a_third_derivative_is_refused_and_names_who_has_it(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NESTED_KERNELS_BACKEND", "triton")
    q, k, v = (x.float().requires_grad_() for x in draw(18, 18, 16)[:3])
    (first,) = torch.autograd.grad(attention_hvp(q, k, v, backend=backend).square().sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match=r'"triton" is differentiable twice.*third.*"reference" has it'):
        torch.autograd.grad(second.sum(), v)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "nested_kernels"]


def test_what_is_no_backward_pass_is_left_to_the_chunked_form(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    backend._say.cache_clear()
    q, k, v, *_ = [x.float() for x in draw(20, 30, 16)]

    def twice(form: Any) -> Tensor:
        def first(q: Tensor) -> Tensor:
            return torch.func.grad(lambda k: attention_hvp(q, k, v, 7, form).square().sum())(k)

        return torch.func.grad(lambda q: first(q).square().sum())(q)

    exact = twice("chunked")
    monkeypatch.setenv("NESTED_KERNELS_BACKEND", "triton")
    with caplog.at_level(logging.WARNING, "nested_kernels"):
        assert torch.equal(twice("auto"), exact)
        assert lines(caplog) == [
            'attention_hvp: backend "chunked" in place of "triton": it is called inside a transform of torch.func'
        ]
    with pytest.raises(ValueError, match=r"backend is 'triton', and it is called inside a transform of torch.func"):
        twice("triton")
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, q)
        with pytest.raises(ValueError, match=r"backend is 'triton', and a forward-mode derivative is asked for"):
            attention_hvp(dual, k, v, 7, "triton")
        with pytest.raises(RuntimeError, match="jvp"):  # torch's own: the chunked form has none, and nothing is 0
            attention_hvp(dual, k, v, 7)


@pytest.mark.parametrize("at", range(3))
def test_a_forward_mode_derivative_of_any_operand_is_seen(at: int) -> None:
    x = [t.float() for t in draw(18, 20, 16)[:3]]
    with forward_ad.dual_level(), pytest.raises(ValueError, match="and a forward-mode derivative is asked for"):
        attention_hvp(*(forward_ad.make_dual(t, t) if i == at else t for i, t in enumerate(x)), backend="triton")  # type: ignore[misc]


@pytest.mark.parametrize("form", ["auto", "triton"])
def test_a_forward_mode_derivative_of_the_gradients_is_refused(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the opaque backward passes it would be 0, or None."""
    monkeypatch.setenv("NESTED_KERNELS_BACKEND", "triton")
    x = [t.float().requires_grad_() for t in draw(18, 20, 16)[:3]]
    y = attention_hvp(*x, 9, form)  # type: ignore[misc]
    u = torch.ones_like(y, requires_grad=True)
    first = torch.autograd.grad(y, x, u, create_graph=True)
    words = '"triton" is differentiated by backward passes, and {}; backend "reference" has every derivative'
    for outputs, inputs, cotangents in ((y, x, u.detach()), (first[0], (*x, u), torch.ones_like(x[0]))):

        def gradient(c: Tensor, outputs: Any = outputs, inputs: Any = inputs) -> Tensor:
            return torch.autograd.grad(outputs, inputs, c, retain_graph=True)[0]

        with pytest.raises(NotImplementedError, match=words.format("it is called inside a transform of torch.func")):
            torch.func.jvp(gradient, (cotangents,), (cotangents,))
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(cotangents, cotangents)
            with pytest.raises(NotImplementedError, match=words.format("a forward-mode derivative is asked for")):
                gradient(dual)


def learning(x: list[Tensor], form: Any, wrap: Callable[..., Any]) -> list[Tensor]:
    """The gradients of a loss after two steps of gradient descent on q, through them."""
    leaves = [t.detach().float().requires_grad_() for t in x[:3]]

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_hvp(q, k, v, 9, form).sin().sum()

    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q - 0.3 * torch.autograd.grad(loss(q, k, v), q, create_graph=True)[0]

    q = wrap(step, wrap(step, *leaves), *leaves[1:])
    return list(torch.autograd.grad(loss(q, *leaves[1:]), leaves))


def test_learning_through_it_is_that_of_the_chunked_form_computed_again_or_not() -> None:
    x = draw(20, 26, 16)
    exact = learning(x, "chunked", lambda f, *a: f(*a))
    for wrap in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=False)):
        for got, wanted in zip(learning(x, "triton", wrap), exact):
            assert (got - wanted).norm() <= 5e-6 * wanted.norm()


def test_a_model_that_learns_while_it_reads_takes_its_outer_gradient_through_it(monkeypatch, caplog) -> None:
    from nested.levels import Level
    from nested.memory.window_attention import WindowAttention
    from nested.models.language import LanguageModel
    from nested.second_order import read_losses

    level = Level("reading", ("*.prime.mlp.*",), 8, "token", gather="mean", eta=1.0)
    torch.manual_seed(0)
    model = LanguageModel(
        sample_shape=(24,), n_outputs=11, vocabulary=11, per_position=True, token_levels=(level,), width=16, depth=3,
        heads=2, hidden=16, prime=2, mixer=lambda width, heads: WindowAttention(width, heads, window=12),
    )  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p *= 8 if p.ndim > 1 else 1
    tokens = torch.randint(11, (1, 25))

    def gradient(form: str) -> list[Tensor]:
        monkeypatch.setenv("NESTED_KERNELS_BACKEND", form)
        losses = read_losses(model, model.levels, "full")(tokens)
        return [losses, *torch.autograd.grad(losses.mean(), [p for p in model.parameters() if p.requires_grad])]

    exact = gradient("chunked")
    with caplog.at_level(logging.WARNING, "nested_kernels"):
        found = gradient("triton")
    assert not lines(caplog)
    for got, wanted in zip(found, exact):
        assert (got - wanted).norm() <= 1e-4 * wanted.norm()


def test_the_ops_keep_the_rules_of_torch_library() -> None:
    q, k, v, d_out, *u = (x.float().requires_grad_() for x in draw(12, 20, 16))
    torch.library.opcheck(attention, (q, k, v, 9))
    out, lse = (x.detach() for x in attention(q, k, v, 9))
    torch.library.opcheck(attention_backward, (d_out, q, k, v, out, lse, 9))
    plain = [x.detach() for x in (*u, d_out, q, k, v, out, lse)]
    torch.library.opcheck(attention_second, (*plain, 9))


def test_compiled_code_has_no_graph_break_and_the_same_gradients() -> None:
    def loss(*x: Tensor) -> Tensor:
        return attention_hvp(*x, 9, "triton").square().sum()  # type: ignore[misc]

    x = [t.float().requires_grad_() for t in draw(18, 20, 16)[:3]]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close(torch.autograd.grad(compiled(*x), x), torch.autograd.grad(loss(*x), x))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.repeat(1, 1, 1, 9), ["q has K = 144", "at most 128 is allowed"]),
        (Tensor.double, ["the operands are torch.float64", "float32, bfloat16 and float16"]),
    ],
)
def test_what_the_kernels_cannot_do_is_refused_before_a_launch(change: Callable, words: list[str]) -> None:
    given = [change(x.float()) for x in draw(4, 6, 16)[:3]]
    with pytest.raises(ValueError) as caught:
        attention_hvp(*given, backend="triton")
    for word in ("attention_hvp: backend is 'triton'", *words):
        assert word in str(caught.value)
    assert attention_hvp(*given).isfinite().all()
