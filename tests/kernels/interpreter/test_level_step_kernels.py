"""The two launches are Delta Momentum in float64, each tensor by itself: sizes, levels, gathering, what is refused."""

import logging
from typing import Any

import pytest
import torch
import triton.language as tl
from nested_kernels import LevelRule, backend, level_step
from nested_kernels.launch import recording
from nested_kernels.level_step import library
from nested_kernels.level_step import triton as kernels
from torch import Tensor

from nested.optim import DeltaMomentum
from nested.optim.delta_momentum import delta_momentum

SIZES = [(3, 4), (5,), (), (1,), (1023,), (1024,), (33, 63), (2, 3, 5, 7), (0, 3)]
RULES = [LevelRule(0.1, 0.9, 0.7, weight_decay=0.1, scale=0.5), LevelRule(0.2, 0.8, 0.5), LevelRule(0.1, 0.9)]
LEVELS = [0, 1, 2, 0, 1, 2, 0, 1, 2]
Tensors = dict[str, list[Any]]


def draw(shapes: list[tuple[int, ...]] = SIZES, size: float = 1.0) -> Tensors:
    """float32 tensors, of which every third gathers nothing."""
    g = torch.Generator().manual_seed(0)
    names = ("params", "grads", "momenta", "gathered")
    x: Tensors = {n: [torch.randn(s, generator=g) * (size if n != "params" else 1) for s in shapes] for n in names}
    x["gathered"] = [t if i % 3 else None for i, t in enumerate(x["gathered"])]
    return x


def copied(x: Tensors, dtype: torch.dtype | None = None) -> Tensors:
    return {n: [None if t is None else t.to(dtype or t.dtype, copy=True) for t in ts] for n, ts in x.items()}


def expected(x: Tensors, rules: list[LevelRule], levels: list[int], due: list[bool]) -> Tensors:
    """In float64, tensor by tensor, with the pure rule."""
    y = copied(x, torch.float64)
    for i, level in enumerate(levels):
        p, g, m, held = (y[n][i] for n in ("params", "grads", "momenta", "gathered"))
        r, total = rules[level], g if held is None else g + held
        if due[level]:
            mean = r.scale * total + r.weight_decay * p
            y["momenta"][i] = delta_momentum(m, mean, r.lr, r.momentum, r.beta, r.form, r.shape, r.eps)
            y["params"][i] = p + y["momenta"][i]
        if held is not None:
            y["gathered"][i] = torch.zeros_like(total) if due[level] else total
    return y


def stepped(x: Tensors, rules: Any, levels: Any = None, due: Any = None, chosen: Any = "triton") -> Tensors:
    y = copied(x)
    level_step(y["params"], y["grads"], y["momenta"], rules, levels=levels, gathered=y["gathered"], due=due,
               backend=chosen)  # fmt: skip
    return y


def error(found: Tensors, exact: Tensors) -> float:
    """The largest relative one of any tensor."""
    pairs = [(a, b) for n in exact for a, b in zip(found[n], exact[n]) if b is not None and b.numel()]
    return max(float((a.double() - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)


@pytest.mark.parametrize("form", ["normalised", "printed"])
@pytest.mark.parametrize("due", [[True, True, True], [True, False, False], [False, True, True]])
def test_it_is_the_rule_for_all_sizes_and_levels_with_flags_of_their_own(form: Any, due: list[bool]) -> None:
    x = draw(size=0.1 if form == "printed" else 1.0)
    rules = [r._replace(form=form) for r in RULES]
    found = stepped(x, rules, LEVELS, due)
    assert error(found, expected(x, rules, LEVELS, due)) < 2e-6
    for i, level in enumerate(LEVELS):
        if not due[level]:
            assert torch.equal(found["params"][i], x["params"][i])
            assert torch.equal(found["momenta"][i], x["momenta"][i])


def test_flags_on_the_device_are_those_of_the_host() -> None:
    x, due = draw(), [False, True, False]
    flags = stepped(x, RULES, LEVELS, torch.tensor(due))
    assert error(flags, copied(stepped(x, RULES, LEVELS, due), torch.float64)) == 0


def test_levels_of_different_forms_take_part_in_one_call() -> None:
    x, rules = draw(size=0.1), [RULES[0]._replace(form="printed"), *RULES[1:]]
    assert error(stepped(x, rules, LEVELS), expected(x, rules, LEVELS, [True] * 3)) < 2e-6


@pytest.mark.parametrize("odd", ["params", "grads", "momenta", "gathered"])
def test_tensors_between_multiples_of_16_bytes_are_read_and_nothing_beside_them_is_written(odd: str) -> None:
    x = draw([(2100,), (2048,)])
    x["gathered"] = [torch.randn(2100), torch.randn(2048)]
    exact = expected(x, RULES[:1], [0, 0], [True])
    around = {n: torch.full((4400,), 7.0) for n in x}
    for n, ts in x.items():
        shift = 1 if n == odd else 4
        first, second = around[n][shift : shift + 2100], around[n][shift + 2104 : shift + 4152]
        assert (first.data_ptr() % 16 > 0) == (n == odd)
        x[n] = [first.copy_(ts[0]), second.copy_(ts[1])]
    level_step(x["params"], x["grads"], x["momenta"], RULES[0], gathered=x["gathered"], backend="triton")
    assert error(x, exact) < 2e-6
    for n, buffer in around.items():
        shift = 1 if n == odd else 4
        rest = torch.cat([buffer[:shift], buffer[shift + 2100 : shift + 2104], buffer[shift + 4152 :]])
        assert torch.equal(rest, torch.full_like(rest, 7.0)), n


@pytest.mark.parametrize(("enough", "chunks"), [(1000, 41), (20, 21)])  # one tile each, and two
def test_a_tensor_of_many_chunks_is_added_up_as_one(monkeypatch: pytest.MonkeyPatch, enough: int, chunks: int) -> None:
    monkeypatch.setattr(library, "TILE", 16)
    monkeypatch.setattr(library, "ENOUGH", enough)
    monkeypatch.setattr(kernels, "AT_ONCE", tl.constexpr(16))
    x = draw([(40 * 16 + 5,)])
    with recording() as launches:
        stepped(x, RULES[0])
    assert [launch.grid for launch in launches] == [(chunks,)] * 2
    assert error(stepped(x, RULES[0]), expected(x, RULES[:1], [0], [True])) < 2e-6


def test_300_small_tensors_are_two_launches_each_with_a_place_for_every_tensor() -> None:
    x, levels = draw([(i % 7 + 1, 5) for i in range(300)]), [i % 3 for i in range(300)]
    with recording() as launches:
        level_step(
            x["params"], x["grads"], x["momenta"], RULES, levels=levels, gathered=x["gathered"], backend="triton"
        )
    assert [(launch.kernel.__name__, launch.grid) for launch in launches] == [("reduce", (300,)), ("apply", (300,))]
    addresses, places, owner = launches[0].arguments[:3]
    rows = (x["params"], x["grads"], x["momenta"], x["gathered"])
    assert addresses.tolist() == [0 if t is None else t.data_ptr() for ts in rows for t in ts]
    assert places.tolist() == [[p.numel(), level, i, 1] for i, (p, level) in enumerate(zip(x["params"], levels))]
    assert owner.tolist() == list(range(300))
    some = {n: ts[:40] for n, ts in x.items()}
    assert error(stepped(some, RULES, levels[:40]), expected(some, RULES, levels[:40], [True] * 3)) < 2e-6


@pytest.mark.parametrize("form", ["normalised", "printed"])
def test_zero_gradients_only_decay_and_from_nothing_move_nothing(form: Any) -> None:
    x = draw([(7,), (1030,)])
    x |= {"grads": [torch.zeros(7), torch.zeros(1030)], "gathered": [None, None]}
    found = stepped(x, LevelRule(0.1, 0.5, 0.7, form))
    assert all(torch.equal(m, 0.5 * old) for m, old in zip(found["momenta"], x["momenta"]))
    x["momenta"] = [torch.zeros(7), torch.zeros(1030)]
    assert all(torch.equal(p, old) for p, old in zip(stepped(x, LevelRule(0.1, 0.5, 0.7, form))["params"], x["params"]))


@pytest.mark.parametrize(
    "kinds", [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16,) * 2]
)
def test_narrow_parameters_are_rounded_once_and_have_a_wide_state(kinds: tuple[torch.dtype, torch.dtype]) -> None:
    x = draw()
    x |= {n: [t.to(kind) for t in x[n]] for n, kind in zip(("params", "grads"), kinds)}
    found, exact = stepped(x, RULES, LEVELS), expected(x, RULES, LEVELS, [True] * 3)
    assert (
        error({"m": found["momenta"], "h": found["gathered"]}, {"m": exact["momenta"], "h": exact["gathered"]}) < 2e-6
    )
    for p, q in zip(found["params"], exact["params"]):
        assert p.dtype == kinds[0]
        one_place = torch.finfo(kinds[0]).eps * q.abs()  # of which half is rounding; the rest where float32 tips it
        assert ((p.double() - q).abs() <= 0.5001 * one_place + 1e-6).all()


def test_kinds_of_tensors_are_stepped_each_by_its_own_launches_and_matrices_by_torch(monkeypatch, caplog) -> None:
    monkeypatch.setenv(backend.ENVIRONMENT, "triton")
    backend._say.cache_clear()
    x = draw([(4, 6), (6,), (4, 6), (8,)])
    x |= {"params": [t.bfloat16() if i == 3 else t for i, t in enumerate(x["params"])]}
    rules, levels = [LevelRule(0.1, 0.9, shape="matrix"), LevelRule(0.1, 0.9)], [0, 0, 1, 1]
    with recording() as launches:
        stepped(x, rules, levels, chosen="auto")
    assert len(launches) == 4  # the first matrix in none, vectors in float32 in two and in bfloat16 in two
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith('level_step: backend "chunked" in place of "triton": rules[0].shape is \'matrix\'')
    with pytest.raises(ValueError, match=r"'triton', and rules\[0\].shape is 'matrix'.* 'vector' is allowed"):
        stepped(x, rules, levels)
    found, exact = stepped(x, rules, levels, chosen="auto"), expected(x, rules, levels, [True] * 2)
    exact["params"][3] = exact["params"][3].bfloat16().double()
    assert error(found, exact) < 2e-6


def test_the_optimizer_steps_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for word in ("chunked", "triton"):
        monkeypatch.setenv(backend.ENVIRONMENT, word)
        params = [t.requires_grad_() for t in draw([(3, 4), (1030,), ()])["params"]]
        optimizer = DeltaMomentum(params, 0.1, 0.9, 0.7, weight_decay=0.1)
        for step in range(3):
            g = torch.Generator().manual_seed(step)
            for p in params:
                p.grad = torch.randn(p.shape, generator=g)
            optimizer.step()
        ends.append([p.detach() for p in params] + [optimizer.state[p]["momentum"] for p in params])
    assert not all(torch.equal(a, b) for a, b in zip(*ends))  # it was another form
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def test_autograd_is_told_of_the_change_and_asked_for_no_derivative() -> None:
    x = draw([(4,)])
    p, m = x["params"][0], x["momenta"][0]
    before = p._version, m._version
    level_step([p], x["grads"], [m], RULES[0], backend="triton")
    assert (p._version, m._version) > before
    with pytest.raises(ValueError, match=r"an optimizer's step has no derivative: call it under torch\.no_grad"):
        level_step([p], [x["grads"][0].requires_grad_()], [m], RULES[0], backend="triton")
    with pytest.raises(ValueError, match=r"inside a transform of torch\.func; an optimizer's step has no derivative"):
        torch.func.vmap(lambda g: level_step([p], [g], [m], RULES[0]))(torch.ones(2, 4))


def arguments() -> tuple[Any, ...]:
    x = draw([(4, 3), (1030,)])
    x["gathered"] = [torch.randn(4, 3), torch.empty(0)]
    rules = library.table_of_rules(RULES[:1], [True], torch.device("cpu"))
    return x["params"], x["grads"], x["momenta"], x["gathered"], [0, 0], rules


def test_the_op_keeps_the_rules_of_torch_library() -> None:
    torch.library.opcheck(library.step, arguments())


def test_compiled_code_has_no_graph_break_and_the_same_step() -> None:
    def step(p: Tensor, g: Tensor, m: Tensor) -> None:
        level_step([p], [g], [m], RULES[0], backend="triton")

    x = draw([(1030,)])
    plain, compiled = copied(x), copied(x)
    for step_by, y in ((step, plain), (torch.compile(step, fullgraph=True, backend="aot_eager"), compiled)):
        step_by(y["params"][0], y["grads"][0], y["momenta"][0])
    assert error(compiled, copied(plain, torch.float64)) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: {n: [t.double() for t in ts] for n, ts in x.items()}, "params has torch.float64; float32"),
        (lambda x: x | {"params": [x["params"][0].t()]}, "params has a tensor that is not contiguous"),
        (lambda x: x | {"grads": [x["grads"][0].as_subclass(Other)]}, "grads has a Other; plain tensors"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused_or_done_by_torch_with_one_line(
    change: Any, words: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    x = draw([(3, 3)])
    del x["gathered"]
    x = change(x)
    with pytest.raises(ValueError, match=f"level_step: backend is 'triton', and {words}"):
        level_step(x["params"], x["grads"], x["momenta"], RULES[0], backend="triton")
    backend._say.cache_clear()
    monkeypatch.setenv(backend.ENVIRONMENT, "triton")
    exact = expected(x | {"gathered": [None]}, RULES[:1], [0], [True])
    with caplog.at_level(logging.WARNING, "nested_kernels"):
        level_step(x["params"], x["grads"], x["momenta"], RULES[0])
    assert caplog.records[0].getMessage().startswith(f'level_step: backend "chunked" in place of "triton": {words}')
    assert float((x["params"][0].double() - exact["params"][0]).abs().max()) < 1e-6


class Other(Tensor):
    """Whose memory may be anything."""
