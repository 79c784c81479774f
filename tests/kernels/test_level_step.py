"""A step of all levels in torch: every form is the pure rule; what is wrong is named before anything moves."""

import itertools
from typing import Any

import pytest
import torch
from nested_kernels import LevelRule, backend, level_step
from nested_kernels.level_step import chunked
from nested_kernels.level_step.reference import delta_momentum
from torch.testing import assert_close

SHAPES = [(3, 4), (5,), (), (2, 3, 2, 2), (3, 4), (4, 3)]
RULES = [LevelRule(0.1, 0.9, 0.7, weight_decay=0.1, scale=0.5), LevelRule(0.2, 0.8, 0.5)]
LEVELS = [0, 1, 0, 1, 0, 0]


def draw(dtype: torch.dtype = torch.float64) -> dict[str, list[Any]]:
    g = torch.Generator().manual_seed(0)
    names = ("params", "grads", "momenta", "gathered")
    x: dict[str, list[Any]] = {n: [torch.randn(s, generator=g).to(dtype) for s in SHAPES] for n in names}
    x["gathered"][0] = x["gathered"][3] = None
    return x


def step(x: dict[str, list[Any]], rules: Any = RULES, levels: Any = LEVELS, due: Any = None, **more: Any) -> None:
    level_step(x["params"], x["grads"], x["momenta"], rules, levels=levels, gathered=x["gathered"], due=due, **more)


@pytest.mark.parametrize("due", [[True, True], [True, False], torch.tensor([False, True])])
@pytest.mark.parametrize(("form", "shape"), list(itertools.product(["normalised", "printed"], ["vector", "matrix"])))
@pytest.mark.parametrize("backend", ["reference", "chunked", "auto"])
def test_it_gathers_and_steps_where_a_level_is_due(due: Any, form: Any, shape: Any, backend: Any) -> None:
    x, before = draw(), draw()
    rules = [r._replace(form=form, shape=shape) for r in RULES]
    step(x, rules, due=due, backend=backend)
    for i, level in enumerate(LEVELS):
        rule, total = rules[level], before["grads"][i]
        total = total if before["gathered"][i] is None else total + before["gathered"][i]
        p, m = before["params"][i], before["momenta"][i]
        if due[level]:
            g = rule.scale * total + rule.weight_decay * p
            m = delta_momentum(m, g, rule.lr, rule.momentum, rule.beta, form, shape)
            p, total = p + m, torch.zeros_like(total)
        found = [x[n][i] for n in ("params", "momenta", "gathered")]
        assert_close([t for t in found if t is not None], [p, m, total][: 2 + (found[2] is not None)])


def test_a_sum_over_a_period_makes_the_step_of_its_mean() -> None:
    x, others = draw(), [draw()["grads"], [2 * g for g in draw()["grads"]]]
    x["gathered"] = [torch.zeros_like(p) for p in x["params"]]
    once = draw()
    for t, grads in enumerate(others):
        step(x | {"grads": grads}, [RULES[0]] * 2, due=[t == 1] * 2)
    step(once | {"grads": [(a + b) for a, b in zip(*others)], "gathered": [None] * 6}, [RULES[0]] * 2)
    assert_close(x["params"], once["params"])
    assert all(not held.any() for held in x["gathered"])


AT_ONCE = [(chunked.vectors_at_once, chunked.vectors_one_by_one, "vector")]
AT_ONCE += [(chunked.matrices_at_once, chunked.matrices_one_by_one, "matrix")]


@pytest.mark.parametrize(("at_once", "one_by_one", "shape"), AT_ONCE, ids=["vectors", "matrices"])
@pytest.mark.parametrize("form", ["normalised", "printed"])
def test_what_devices_do_at_once_is_the_rule_too(at_once: Any, one_by_one: Any, shape: Any, form: Any) -> None:
    rule = LevelRule(0.1, 0.9, 0.7, form, shape)
    ends = []
    for form_of_it in (at_once, one_by_one):
        x = draw()
        form_of_it(x["params"], x["grads"], x["momenta"], rule)
        ends.append([*x["params"], *x["momenta"]])
    assert_close(*ends, rtol=1e-12, atol=1e-12)


def test_narrow_parameters_have_a_float32_state() -> None:
    x = draw(torch.bfloat16)
    x |= {n: [None if t is None else t.float() for t in x[n]] for n in ("momenta", "gathered")}
    wide = {n: [None if t is None else t.double() for t in ts] for n, ts in x.items()}
    step(x)
    step(wide)
    assert_close(x["momenta"], wide["momenta"], rtol=1e-5, atol=1e-5, check_dtype=False)
    assert_close(x["params"], [p.bfloat16() for p in wide["params"]], rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("name", ["grads", "gathered"])
@pytest.mark.parametrize("backend", ["auto", "reference", "chunked"])
def test_a_step_is_not_differentiated(backend: Any, name: str) -> None:
    x = draw()
    x[name][1].requires_grad_()
    before = x["params"][0].clone()
    with pytest.raises(ValueError, match=r"requires a gradient.*no derivative: call it under torch\.no_grad"):
        step(x, backend=backend)
    assert torch.equal(x["params"][0], before)
    with torch.no_grad():
        step(x, backend=backend)
    assert not torch.equal(x["params"][0], before)


def test_a_forward_mode_derivative_is_refused() -> None:
    x = draw()
    with torch.autograd.forward_ad.dual_level():
        x["grads"][0] = torch.autograd.forward_ad.make_dual(x["grads"][0], x["grads"][0])
        with pytest.raises(ValueError, match="forward-mode derivative is asked for; an optimizer's step has no"):
            step(x)


def test_matrices_have_no_kernel_and_it_says_so(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    rules = [r._replace(shape="matrix") for r in RULES]
    with pytest.raises(ValueError, match=r"'triton', and rules\[0\].shape is 'matrix'.* 'vector' is allowed"):
        step(draw(), rules, backend="triton")
    monkeypatch.setenv(backend.ENVIRONMENT, "triton")
    backend._say.cache_clear()
    x, exact = draw(), draw()
    step(x, rules)
    assert any("rules[0].shape is 'matrix'" in r.getMessage() for r in caplog.records)
    step(exact, rules, backend="chunked")
    assert_close(x, exact, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["reference", "chunked"])
@pytest.mark.parametrize("shape", ["vector", "matrix"])
def test_what_is_given_to_be_read_is_as_it_was(form: Any, shape: Any) -> None:
    x, before = draw(), draw()
    step(x, [r._replace(shape=shape) for r in RULES], backend=form)
    assert_close(x["grads"], before["grads"], rtol=0, atol=0)


WRONG: list[Any] = [RULES[0]._replace(form="plain"), RULES[0]._replace(shape="row")]  # type: ignore[arg-type]


def replaced(name: str, i: int, value: Any) -> Any:
    return lambda x: x[name].__setitem__(i, value)


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        (
            replaced("grads", 1, torch.ones(4).double()),
            {},
            r"grads\[1\] has shape \(4,\); beside .* have \(5,\)",
        ),
        (replaced("gathered", 4, torch.ones(12).double()), {}, r"gathered\[4\] has shape \(12,\); beside params\[4\]"),
        (replaced("momenta", 2, torch.ones(())), {}, r"momenta\[2\] has dtype torch.float32; .* have torch.float64"),
        (replaced("grads", 0, torch.ones(3, 4).int()), {}, r"grads\[0\] is torch.int32; floating-point"),
        (replaced("grads", 5, torch.ones(4, 3, device="meta")), {}, r"grads\[5\] has device meta; .* have cpu"),
        (replaced("grads", 0, torch.ones(3, 4).double().to_sparse()), {}, r"grads\[0\] has layout torch.sparse_coo"),
        (replaced("momenta", 0, torch.ones(4, 3).double().t()), {}, r"momenta\[0\] is not contiguous"),
        (lambda x: x["momenta"].pop(), {}, "momenta has 5 entries; as params it must have 6"),
        (lambda x: [ts.clear() for ts in x.values()], {"levels": []}, "params is empty; one tensor or more"),
        (lambda x: None, {"levels": [0, 0, 0, 0, 0, 2]}, "levels has 0 to 2; allowed: 0 to 1"),
        (lambda x: None, {"levels": [0]}, "levels has 1 entries; as params it must have 6"),
        (lambda x: None, {"due": [True]}, r"due is \(1,\); beside 2 rules it must be \(2,\)"),
        (lambda x: None, {"due": torch.ones(3) > 0}, r"due is \(3,\); beside 2 rules it must be \(2,\)"),
        (lambda x: None, {"due": True}, r"due is True; a list of 2 flags, or a tensor \(2,\), is allowed"),
        (lambda x: None, {"due": [True, "no"]}, r"due\[1\] is 'no'; True or False is allowed"),
        (lambda x: None, {"due": [0.5, True]}, r"due\[0\] is 0.5; True or False is allowed"),
        (lambda x: None, {"due": torch.tensor([0.5, 0])}, r"due is torch.float32; torch.bool is allowed"),
        (
            lambda x: None,
            {"due": torch.ones(2, dtype=torch.bool, device="meta")},
            "due is on meta and params on cpu; flags on cpu are allowed",
        ),
        (
            lambda x: None,
            {"rules": WRONG[0]},
            r"rules\[0\].form is 'plain'; allowed: normalised",
        ),
        (
            lambda x: None,
            {"rules": WRONG[1]},
            r"rules\[0\].shape is 'row'; allowed: vector, matrix",
        ),
        (lambda x: None, {"rules": []}, r"rules is \[\]; a LevelRule, or a list of one or more"),
        (lambda x: None, {"rules": (0.1, 0.9)}, r"rules\[0\] is 0.1; a LevelRule is needed"),
        (lambda x: None, {"rules": RULES[0]._replace(eps=0.0)}, r"rules\[0\].eps is 0.0; 1e-15 or more is allowed"),
        (lambda x: None, {"rules": "fast"}, "rules is 'fast'; a LevelRule, or a list of one or more"),
        *[
            (
                lambda x: None,
                {"rules": [RULES[0], RULES[1]._replace(**{name: value})]},
                rf"rules\[1\].{name} is {value!r}; finite numbers are allowed",
            )
            for name, value in {
                "lr": "a",
                "momentum": None,
                "beta": "1",
                "weight_decay": float("nan"),
                "eps": float("inf"),
                "scale": -float("inf"),
            }.items()
        ],
        (lambda x: None, {"levels": 1}, "levels is a int; a list of integers is needed"),
        (lambda x: None, {"levels": torch.zeros(6).int()}, "levels is a Tensor; a list of integers is needed"),
        (lambda x: None, {"levels": [0, 0, 0, 0, 0, 1.0]}, "levels has 1.0; integers are allowed"),
        (replaced("params", 1, None), {}, r"params\[1\] is None; a tensor is needed"),
        (replaced("grads", 1, None), {}, r"grads\[1\] is None; a tensor is needed"),
        (replaced("momenta", 1, None), {}, r"momenta\[1\] is None; a tensor is needed"),
        (replaced("gathered", 1, 0.0), {}, r"gathered\[1\] is 0.0; a tensor is needed"),
        (replaced("grads", 0, torch.ones(3, 4).to(torch.float8_e4m3fn)), {}, r"grads\[0\] is torch.float8_e4m3fn"),
        (lambda x: x.update(params=torch.ones(6)), {}, "params is a Tensor; a list of tensors is needed"),
        (lambda x: x["params"].__setitem__(4, x["params"][0]), {}, "two of params.*have the same memory"),
        (lambda x: x["params"].__setitem__(4, x["params"][0].view(3, 4)), {}, "two of params.*have the same memory"),
        (lambda x: x["gathered"].__setitem__(1, x["grads"][1]), {}, "two of params.*one of grads.* the same memory"),
        (lambda x: x["gathered"].__setitem__(1, x["momenta"][1]), {}, "two of params.*have the same memory"),
        (lambda x: None, {"backend": "fast"}, "backend is 'fast'; allowed: auto, reference, chunked, triton"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_moves(change: Any, more: dict[str, Any], words: str) -> None:
    x, before = draw(), draw()
    given = {name: list(ts) for name, ts in x.items()}
    change(x)
    with pytest.raises(ValueError, match=f"level_step: {words}"):
        step(x, **more)
    assert_close(given, before, rtol=0, atol=0)
