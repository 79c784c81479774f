"""What attention_hvp is: softmax attention over the keys that a query sees, and its derivatives to the second."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nested_kernels import attention_hvp
from nested_kernels.attention_hvp import chunked
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

Backends = ["reference", "chunked"]
Operands = tuple[Tensor, Tensor, Tensor]


def draw(t: int, n: int, b: int = 2, h: int = 2, size: int = 3, dtype: torch.dtype = torch.float64) -> Operands:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(b, tokens, h, size, generator=g, dtype=torch.float64).to(dtype) for tokens in (t, n, n))
    return q, k, v


def weights(x: Tensor) -> Tensor:
    return torch.arange(1, x.numel() + 1, dtype=torch.float64, device=x.device).sin().view_as(x).to(x.dtype)


def total(*outputs: Tensor) -> Tensor:
    """A function of all of them whose first and second derivatives are all different."""
    return torch.stack([(weights(o) * o).sum() + (o * o.roll(1, 1)).sum() for o in outputs]).sum()


def everything(x: Operands, f: Callable[..., Tensor], needed: str = "qkv") -> list[Tensor]:
    """The output, its gradients, and the gradients of a function of those gradients."""
    q, k, v = leaves = [t.detach().requires_grad_(name in needed) for name, t in zip("qkv", x)]
    wanted = [t for t in leaves if t.requires_grad]
    y = f(q, k, v)
    first = torch.autograd.grad(total(y), wanted, create_graph=True)
    return [y, *first, *torch.autograd.grad(total(*first), wanted)]


def attend(**options: Any) -> Callable[..., Tensor]:
    return lambda q, k, v: attention_hvp(q, k, v, **options)


@pytest.mark.parametrize("backend", Backends)
@pytest.mark.parametrize("window", [None, 1, 3, 7, 20])
@pytest.mark.parametrize(("t", "n"), [(9, 9), (4, 9), (1, 1), (1, 9)])
def test_it_is_scaled_dot_product_attention_over_the_keys_that_end_at_the_query(
    t: int, n: int, window: int | None, backend: Any
) -> None:
    q, k, v = draw(t, n)
    seen = torch.zeros(t, n, dtype=torch.bool)
    for row, key in itertools.product(range(t), range(n)):
        position = n - t + row
        seen[row, key] = position - (window or n) < key <= position
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=seen).transpose(1, 2)
    assert_close(attention_hvp(q, k, v, window, backend), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", Backends)
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize(("t", "n", "size"), [(5, 5, 2), (3, 6, 3), (1, 4, 1)])
def test_first_and_second_derivatives_are_those_of_finite_differences(
    t: int, n: int, size: int, window: int | None, backend: Any
) -> None:
    x = tuple(o.requires_grad_() for o in draw(t, n, b=1, size=size))
    f = attend(window=window, backend=backend, block=2)
    assert gradcheck(f, x)
    assert gradgradcheck(f, x)


@pytest.mark.parametrize("window", [None, 1, 17, 64, 101])
@pytest.mark.parametrize("t", [1, 63, 65])
def test_blocks_are_the_formula_in_values_and_both_derivatives(t: int, window: int | None) -> None:
    for n, size in ((t, 5), (t + 37, 4)):
        x = draw(t, n, size=size)
        expected = everything(x, attend(window=window, backend="reference"))
        for block in (None, 7, 63, 200):
            found = everything(x, attend(window=window, backend="chunked", block=block))
            assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_few_heads_at_a_time_are_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    x, f = draw(33, 40, b=3, h=3), attend(window=9, backend="chunked", block=8)
    whole = everything(x, f)
    for scores in (1, 300, 600):
        monkeypatch.setattr(chunked, "SCORES", scores)
        assert_close(everything(x, f), whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("needed", ["q", "k", "v", "qk", "kv", "qv"])
def test_operands_that_need_no_gradient_change_nothing_for_the_others(needed: str) -> None:
    x = draw(20, 31)
    expected = everything(x, attend(window=9, backend="reference"), needed)
    assert_close(everything(x, attend(window=9, backend="chunked", block=6), needed), expected, rtol=1e-12, atol=1e-12)


def test_what_no_one_asks_for_is_not_computed() -> None:
    def flops(needed: str, second: str = "qkv") -> int:
        q, k, v = (t.requires_grad_(name in needed) for name, t in zip("qkv", draw(32, 32, b=1, h=1)))
        y = attention_hvp(q, k, v, backend="chunked")
        leaves = [t for name, t in zip("qkv", (q, k, v)) if name in needed]
        with FlopCounterMode(display=False) as counter:
            first = dict(zip(needed, torch.autograd.grad(total(y), leaves, create_graph=bool(second))))
            if second:
                torch.autograd.grad(total(*(first[name] for name in second)), leaves)
        return counter.get_total_flops()

    product = 2 * 32 * 32 * 3
    assert flops("qkv", "") == 5 * product  # scores, dP, dV, dQ, dK
    assert flops("q", "") == 3 * product
    assert flops("v", "") == 2 * product
    assert flops("qkv") > flops("qkv", "qk") > flops("qkv", "q") > flops("qkv", "v")


def test_operations_of_the_kernels_are_counted_as_those_of_the_chunked_form() -> None:
    """Else attention would cost nothing on a GPU, and equal FLOPs mean something else there."""
    pytest.importorskip("triton")
    from nested_kernels.attention_hvp.library import attention

    forms = {"cpu": attend(window=50, backend="chunked"), "meta": lambda q, k, v: attention(q, k, v, 50)[0]}
    counted = []
    for device, f in forms.items():
        q, k, v = (torch.zeros(2, n, 3, 16, device=device, requires_grad=True) for n in (70, 100, 100))
        u = [torch.zeros_like(x) for x in (q, k, v)]
        with FlopCounterMode(display=False) as counter:
            y = f(q, k, v)
            forward = counter.get_total_flops()
            d_out = torch.zeros_like(y, requires_grad=True)
            first = torch.autograd.grad(y, (q, k, v), d_out, create_graph=True)
            both = counter.get_total_flops()
            torch.autograd.grad(first, (q, k, v, d_out), u)
        counted.append((forward, both - forward, counter.get_total_flops() - both))
    assert counted[0] == counted[1]
    assert min(counted[0]) > 0


@pytest.mark.parametrize("backend", Backends)
@pytest.mark.parametrize("window", [None, 5])
def test_later_keys_and_keys_before_the_window_change_nothing(window: int | None, backend: Any) -> None:
    q, k, v = draw(20, 24)
    y = attention_hvp(q, k, v, window, backend, block=8)
    k[:, 15:], v[:, 15:] = 7.0, -3.0  # query 11 stands at 15
    if window:
        k[:, :4], v[:, :4] = 9.0, 5.0  # before the first window, which has keys 0 to 4
    changed = attention_hvp(q, k, v, window, backend, block=8)
    first = 4 if window else 0
    assert torch.equal(changed[:, first:11], y[:, first:11])
    assert not torch.isclose(changed[:, 11:], y[:, 11:]).all(-1).any()
    assert torch.equal(changed[:, :first], y[:, :first]) == (not window)


@pytest.mark.parametrize("backend", Backends)
@pytest.mark.parametrize("window", [None, 6])
def test_pieces_that_keep_the_keys_they_see_are_the_whole_at_every_split(window: int | None, backend: Any) -> None:
    q, k, v = draw(19, 19)
    whole = attention_hvp(q, k, v, window, backend, block=4)
    for split in range(1, 19):
        start = max(0, split - window + 1) if window else 0
        first = attention_hvp(q[:, :split], k[:, :split], v[:, :split], window, backend, block=4)
        second = attention_hvp(q[:, split:], k[:, start:], v[:, start:], window, backend, block=4)
        assert_close(torch.cat([first, second], 1), whole, rtol=1e-12, atol=1e-12)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that was computed."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.bytes = max(self.bytes, out.numel() * out.element_size())
        return out


def memory(t: int, window: int | None, backend: Any) -> tuple[int, int]:
    """Bytes of storage saved by a forward pass and two derivatives, and of the largest tensor on the way."""
    saved: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x
        return x

    leaves = [x.requires_grad_() for x in draw(t, t, b=1, h=1, size=4)]
    with Largest() as largest, saved_tensors_hooks(pack, lambda x: x):
        y = attention_hvp(*leaves, window=window, backend=backend, block=16)
        first = torch.autograd.grad(y, leaves, torch.ones_like(y).requires_grad_(), create_graph=True)
        torch.autograd.grad(first, leaves, [torch.ones_like(x) for x in first], create_graph=True)
    return sum(x.untyped_storage().nbytes() for x in saved.values()), largest.bytes


@pytest.mark.parametrize("window", [None, 24])
def test_memory_is_linear_in_tokens(window: int | None) -> None:
    tensor = 256 * 4 * 8  # bytes of q
    saved, largest = memory(256, window, "chunked")
    assert saved == 4 * tensor  # q, k, v and the output's gradient
    assert largest == (16 * 256 * 8 if window is None else tensor)  # the scores of a block
    assert memory(1024, window, "chunked") == (4 * saved, 4 * largest)
    assert memory(256, window, "reference")[0] > 256 * 256 * 8  # what would show


@pytest.mark.parametrize("order", [3, 4])
def test_derivatives_of_third_order_are_exact_or_refused(order: int) -> None:
    q, k, v = (x.requires_grad_() for x in draw(18, 18, b=1, h=1))

    def differentiate(backend: Any, times: int) -> Tensor:
        y = attention_hvp(q, k, v, backend=backend)
        for _ in range(times):
            (y,) = torch.autograd.grad(total(y), q, create_graph=True)
        return y

    assert differentiate("reference", order).abs().max() > 0
    for backend in ("chunked", "auto"):
        differentiate(backend, 2)
        with pytest.raises(NotImplementedError, match=r'attention_hvp: .*"chunked".*third derivative.*"reference"'):
            differentiate(backend, order)


def test_auto_takes_the_formula_for_few_tokens_and_blocks_for_many() -> None:
    for tokens, has_third in ((16, True), (17, False)):
        q, k, v = (x.requires_grad_() for x in draw(tokens, 40, b=1, h=1))
        (g,) = torch.autograd.grad(total(attention_hvp(q, k, v)), q, create_graph=True)
        (g,) = torch.autograd.grad(total(g), q, create_graph=True)
        if has_third:
            torch.autograd.grad(total(g), q)
        else:
            with pytest.raises(NotImplementedError):
                torch.autograd.grad(total(g), q)


def learning(f: Callable[..., Tensor], x: Operands, steps: int, wrap: Callable[..., Any]) -> list[Tensor]:
    """The gradients of the loss after `steps` of gradient descent on q, through them."""
    leaves = [t.detach().requires_grad_() for t in x]

    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q - 0.1 * torch.autograd.grad(total(f(q, k, v)), q, create_graph=True)[0]

    def group(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return wrap(step, wrap(step, q, k, v), k, v)

    q = leaves[0]
    for _ in range(steps // 2):
        q = wrap(group, q, *leaves[1:])
    return list(torch.autograd.grad(total(f(q, *leaves[1:])), leaves))


def test_learning_through_it_is_the_same_under_nested_checkpoints() -> None:
    f, x = attend(window=7, backend="chunked", block=5), draw(20, 26)
    plain = learning(f, x, 4, lambda g, *a: g(*a))
    again = learning(f, x, 4, lambda g, *a: checkpoint(g, *a, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(again, plain))
    assert_close(plain, learning(attend(window=7, backend="reference"), x, 4, lambda g, *a: g(*a)))


def test_functional_gradients_of_gradients_are_those_of_the_formula() -> None:
    q, k, v = draw(20, 26)

    def twice(backend: Any) -> Tensor:
        def first(q: Tensor) -> Tensor:
            return torch.func.grad(lambda k: total(attention_hvp(q, k, v, 7, backend, block=6)))(k)

        return torch.func.grad(lambda q: total(first(q)))(q)

    assert_close(twice("chunked"), twice("reference"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", Backends)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_are_in_float32_whatever_the_operands_and_autocast_are(dtype: torch.dtype, backend: Any) -> None:
    x, f = draw(40, 40, size=16, dtype=dtype), attend(window=20, backend=backend, block=16)
    wide = (t.float() for t in x)
    y = f(*x)
    assert y.dtype == dtype
    assert torch.equal(y, f(*wide).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(f(*x), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_derivatives_of_blocks_are_the_same_under_autocast(dtype: torch.dtype) -> None:
    x, f = draw(40, 40, size=16, dtype=dtype), attend(window=20, backend="chunked", block=16)
    plain = everything(x, f)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(everything(x, f), plain))
    exact = everything(tuple(t.double() for t in x), f)
    for got, wanted in zip(plain, exact):
        assert (got - wanted).norm() <= (8e-3 if dtype == torch.bfloat16 else 2e-6) * wanted.norm()


@pytest.mark.parametrize("backend", Backends)
def test_scores_that_would_overflow_an_exponential_keep_every_derivative_finite(backend: Any) -> None:
    q, k, v = draw(20, 20, dtype=torch.float32)
    found = everything((1e3 * q, k, v), attend(window=7, backend=backend, block=6))
    exact = everything((1e3 * q.double(), k.double(), v.double()), attend(window=7, backend="reference"))
    for got, wanted in zip(found, exact):
        assert (got - wanted).norm() <= 1e-3 * wanted.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 17])
def test_it_computes_on_the_device_what_it_computes_on_the_processor(window: int | None) -> None:
    x = draw(65, 102, size=4)
    here = everything(x, attend(window=window, backend="chunked"))
    q, k, v = (t.cuda() for t in x)
    there = everything((q, k, v), attend(window=window, backend="chunked"))
    assert_close([t.cpu() for t in there], here, rtol=1e-10, atol=1e-10)


def wrong(**changes: Any) -> dict[str, Any]:
    return {**dict(zip("qkv", draw(4, 6))), **changes}


Wrong = {
    "more queries": (wrong(q=torch.zeros(2, 7, 2, 3)), ["k is (2, 6, 2, 3)", "q (2, 7, 2, 3)", "N of 7 or more"]),
    "heads": (wrong(k=torch.zeros(2, 6, 1, 3)), ["k is (2, 6, 1, 3)", "(2, N, 2, 3)"]),
    "head size": (wrong(k=torch.zeros(2, 6, 2, 4)), ["k is (2, 6, 2, 4)", "(2, N, 2, 3)"]),
    "batch": (wrong(k=torch.zeros(1, 6, 2, 3)), ["k is (1, 6, 2, 3)", "(2, N, 2, 3)"]),
    "values": (wrong(v=torch.zeros(2, 5, 2, 3)), ["v is (2, 5, 2, 3)", "as k", "(2, 6, 2, 3)"]),
    "axes": (wrong(q=torch.zeros(4, 2, 3)), ["q is (4, 2, 3)", "(B, T, H, K)"]),
    "no token": (wrong(q=torch.zeros(2, 0, 2, 3)), ["q is (2, 0, 2, 3)", "each 1 or more"]),
    "no tensor": (wrong(v=None), ["v is None", "a tensor (B, N, H, K) is needed"]),
    "integers": (wrong(k=torch.ones(2, 6, 2, 3, dtype=torch.long)), ["k is torch.int64", "floating-point"]),
    "dtypes": (wrong(v=torch.zeros(2, 6, 2, 3).half()), ["v is torch.float16", "q torch.float64", "one dtype"]),
    "devices": (wrong(k=torch.zeros(2, 6, 2, 3, device="meta").double()), ["k is on meta", "q on cpu"]),
    "window": (wrong(window=0), ["window is 0", "1 or more"]),
    "window and a half": (wrong(window=2.5), ["window is 2.5", "an integer, 1 or more"]),
    "window of text": (wrong(window="2"), ["window is '2'", "an integer, 1 or more"]),
    "block": (wrong(block=0), ["block is 0", "1 or more"]),
    "backend": (wrong(backend="fast"), ["backend is 'fast'", "auto, reference, chunked, triton, fused"]),
    "no device": (wrong(backend="triton"), ["backend is 'triton'", "float64"]),
}


@pytest.mark.parametrize("case", Wrong)
def test_wrong_input_is_named_with_what_is_allowed(case: str) -> None:
    given, words = Wrong[case]
    if case in ("more queries", "heads", "head size", "batch", "values", "axes", "no token"):
        given = {name: x.double() for name, x in given.items()}
    with pytest.raises(ValueError) as caught:
        attention_hvp(**given)
    for word in ("attention_hvp: ", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(("n", "window"), [(65, None), (65, 65), (65, 9), (102, None), (102, 9)])
def test_fused_is_the_same_function_differentiable_once(n: int, window: int | None) -> None:
    q, k, v = (x.requires_grad_() for x in draw(65, n))
    fused, wanted = (attention_hvp(q, k, v, window, backend=b) for b in ("fused", "reference"))
    assert_close(fused, wanted, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(total(fused), (q, k, v), create_graph=True)
    for a, b in zip(found, torch.autograd.grad(total(wanted), (q, k, v))):
        assert_close(a, b, rtol=1e-11, atol=1e-12)
    with pytest.raises(NotImplementedError, match='"fused" is differentiable once'):
        torch.autograd.grad(total(*found), (q, k, v))


@pytest.mark.parametrize("needed", ["q", "k", "v"])
def test_fused_refuses_a_second_derivative_of_every_operand(needed: str) -> None:
    q, k, v = (x.requires_grad_(name == needed) for name, x in zip("qkv", draw(5, 5)))
    leaf = {"q": q, "k": k, "v": v}[needed]
    y = attention_hvp(q, k, v, backend="fused")
    (found,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match='"fused" is differentiable once'):
        torch.autograd.grad(found.square().sum(), leaf)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_on_meta_tensors_it_has_the_shape_of_what_it_would_compute(backend: Any) -> None:
    q, k, v = (torch.empty(2, 9, 3, 4, device="meta", requires_grad=True) for _ in range(3))
    y = attention_hvp(q, k, v, window=4, backend=backend)
    assert (y.shape, y.device.type) == (q.shape, "meta")
    assert torch.autograd.grad(y.sum(), k)[0].shape == k.shape
