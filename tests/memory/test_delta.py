"""The memory with static projections: Eq. 76-78 token by token, linear attention and DeltaNet as special cases."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from nested.config import compose
from nested.errors import UserError
from nested.memory.delta import DeltaMemory
from nested.memory.objectives import bound
from nested.signature import build


def tokens(t: int = 11, b: int = 2, width: int = 6) -> Tensor:
    return torch.randn(b, t, width, dtype=torch.float64)


def memory(**options: Any) -> DeltaMemory:
    made = DeltaMemory(6, 2, **options).double()
    if made.alpha is not None:
        nn.init.normal_(made.alpha.weight)  # so that retention differs from token to token
    return made


def configured(*overrides: str) -> DeltaMemory:
    """The memory of a model as the catalogue has it."""
    return build(compose(list(overrides)).model["memory"], "model.memory", width=6, heads=2).double()


PRINTED = {
    "objective": "l2", "rule": "dgd", "retain": "zero", "anchor": 1, "read": "after", "gates": "sigmoid",
    "eta": "gate", "alpha": "gate",
}  # fmt: skip


def by_hand(m: DeltaMemory, x: Tensor, **options: Any) -> Tensor:
    """y (T, D) of one sequence x (T, D): Eq. 88 and 90 with `options`, each head on its own."""
    c = PRINTED | options

    def gated(layer: nn.Linear, h: int, x_t: Tensor) -> Tensor:
        share = torch.sigmoid(layer.weight[h] @ x_t + layer.bias[h])
        return share if c["gates"] == "sigmoid" else torch.clamp(1.2 * share - 0.1, 0, 1)

    ys = []
    for h in range(m.heads):
        rows = slice(h * m.size, (h + 1) * m.size)
        states, y_h = [m.initial[h]], []
        for t, x_t in enumerate(x):
            q, k = (F.normalize(p.weight[rows] @ x_t, dim=0) for p in (m.query, m.key))
            v = m.value.weight[rows] @ x_t
            alpha = gated(m.alpha, h, x_t) if c["alpha"] == "gate" else torch.ones((), dtype=x.dtype)
            eta = m.eta_max * alpha * (gated(m.eta, h, x_t) if c["eta"] == "gate" else 1.0)
            M, M_xi = states[-1], states[t - t % c["anchor"]]
            slope = {"dot": -v, "l2": M_xi @ k - v, "l2_doubled": 2 * (M_xi @ k - v)}[c["objective"]]
            erased = eta * torch.outer(k, k) if c["rule"] == "dgd" else 0.0
            back = (1 - alpha) * m.initial[h] if c["retain"] == "initial" else 0.0
            after = M @ (alpha * torch.eye(m.size, dtype=x.dtype) - erased) + back - eta * torch.outer(slope, k)
            states.append(after)
            y_h.append({"after": after, "cumulative": M, "anchor": M_xi}[c["read"]] @ q)
        ys.append(torch.stack(y_h))
    normed = [y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() for y in ys]
    return torch.cat(normed, -1) @ m.output.weight.T


MODES = list(product(("dot", "l2", "l2_doubled"), ("dgd", "gd"), (1, 4), ("after", "cumulative", "anchor")))


@pytest.mark.parametrize("i", range(len(MODES)))
def test_it_is_the_printed_recurrence_in_values_and_all_gradients(i: int) -> None:
    objective, rule, anchor, read = MODES[i]
    options = {"objective": objective, "rule": rule, "anchor": anchor, "read": read}
    options |= {"retain": ("zero", "initial")[(i // 2 + i // 6) % 2], "gates": ("sigmoid", "hard")[i // 3 % 2]}
    options |= {"eta": "constant" if i % 5 == 2 else "gate", "alpha": "one" if i % 7 == 3 else "gate"}
    m, x = memory(**options), tokens(b=1)
    got, wanted = m(x)[0][0], by_hand(m, x[0], **options)
    assert_close(got, wanted)
    names = [name for name, _ in m.named_parameters()]
    found = [torch.autograd.grad(y.sin().sum(), list(m.parameters())) for y in (got, wanted)]
    for name, ours, theirs in zip(names, *found):
        assert_close(ours, theirs, rtol=1e-6, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
        assert ours.abs().max() > 0, name


def test_linear_attention_is_the_masked_product() -> None:
    m, x = configured("model=linear_attention"), tokens()
    q, k, v = (p(x).view(2, 11, 2, 3).transpose(1, 2) for p in (m.query, m.key, m.value))
    y = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).tril() @ v
    y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert_close(m(x)[0], y.transpose(1, 2).flatten(2) @ m.output.weight.T)
    assert {name.split(".")[0] for name, _ in m.named_parameters()} == {"query", "key", "value", "output"}


def test_delta_net_replaces_what_a_key_held() -> None:
    m = configured("model=delta_net")
    k = F.normalize(torch.randn(1, 2, 4, 3, dtype=torch.float64), dim=-1)
    v = torch.randn(1, 2, 4, 3, dtype=torch.float64)
    one = torch.ones(1, 2, 4, dtype=torch.float64)
    state = m.write(m.initial_state(1), k, v, one, one)
    assert_close(m.read(state, k)[:, :, -1], v[:, :, -1])
    assert not m.initial_state(1).memory.any()
    assert m.eta_max == 1
    assert configured("model=delta_net", "model.memory.eta_max=2.0").eta_max == 2


OPTIONS = [
    {},
    {"objective": "dot", "gates": "hard", "retain": "initial"},
    {"objective": "l2_doubled", "anchor": 4, "read": "anchor"},
    {"rule": "gd", "anchor": 3, "read": "cumulative", "eta": "constant", "start": "zero"},
    {"anchor": 16, "retain": "initial", "alpha": "one"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_pieces_are_the_whole_at_every_split(options: dict[str, Any]) -> None:
    m, x = memory(**options), tokens()
    y, end = m(x, m.initial_state(2))
    for split in range(1, 11):
        first, state = m(x[:, :split], m.initial_state(2))
        second, state = m(x[:, split:], state)
        assert_close(torch.cat([first, second], 1), y)
        assert_close(state.memory, end.memory)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_batch_is_its_sequences_and_no_token_sees_a_later_one(options: dict[str, Any]) -> None:
    m, x = memory(**options), tokens()
    y, state = m(x, m.initial_state(2))
    for b in range(2):
        alone, end = m(x[b : b + 1], m.initial_state(1))
        assert_close(alone[0], y[b])
        assert_close(end.memory[0], state.memory[b])
    later = torch.cat([x[:, :6], tokens(5)], 1)
    other, _ = m(later, m.initial_state(2))
    assert torch.equal(other[:, :6], y[:, :6])
    assert not torch.equal(other, y)


def test_read_and_write_are_what_forward_is_made_of() -> None:
    m, x = memory(), tokens(5)
    q, k, v = (p(x).unflatten(-1, (2, 3)).transpose(1, 2) for p in (m.query, m.key, m.value))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    eta, alpha = m.rates(x)
    state, ys = m.initial_state(2), []
    for t in range(5):
        one = slice(t, t + 1)
        state = m.write(state, k[:, :, one], v[:, :, one], eta[:, :, one], alpha[:, :, one])
        ys.append(m.read(state, q[:, :, one]))
    y = F.rms_norm(torch.cat(ys, 2), (3,), eps=1e-6)
    assert_close(m.output(y.transpose(1, 2).flatten(2)), m(x)[0])
    assert_close(state.memory, m(x)[1].memory)


@pytest.mark.parametrize("gates", ["sigmoid", "hard"])
def test_retention_starts_where_told_and_the_rate_below_its_bound(gates: Any) -> None:
    m = DeltaMemory(6, 2, gates=gates, alpha_start=0.97).double()
    eta, alpha = m.rates(5 * tokens(50, b=3))
    assert alpha.shape == eta.shape == (3, 2, 50)
    assert_close(alpha, torch.full_like(alpha, 0.97))
    assert ((eta >= 0) & (eta <= m.eta_max * alpha)).all()
    assert (gates == "hard") == bool((eta == m.eta_max * alpha).any())


@pytest.mark.parametrize("objective", ["dot", "l2", "l2_doubled"])
@pytest.mark.parametrize("retain", ["zero", "initial"])
def test_thousands_of_tokens_at_the_highest_rate_stay_finite_and_bounded(objective: Any, retain: Any) -> None:
    m = DeltaMemory(16, 2, objective=objective, retain=retain, gates="hard", eta="constant", alpha_start=0.98)
    y, state = m(torch.randn(2, 4096, 16))
    assert y.isfinite().all()
    assert state.memory.norm(dim=(-1, -2)).max() < 100 * m.initial.norm(dim=(-1, -2)).min()


@pytest.mark.parametrize("anchor", [1, 8])
def test_the_default_rate_is_the_bound(anchor: int) -> None:
    for objective, rule in (("l2", "dgd"), ("l2_doubled", "dgd"), ("l2", "gd")):
        for monotone in (False, True):
            m = DeltaMemory(6, 2, objective=objective, rule=rule, anchor=anchor, monotone=monotone)
            assert m.eta_max == bound(objective, rule, anchor=anchor, monotone=monotone)
    assert DeltaMemory(6, 2, objective="dot", rule="gd").eta_max == 1


def test_the_state_is_float32_under_half_precision() -> None:
    m, x = DeltaMemory(6, 2), torch.randn(2, 40, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = m(x)
    assert (y.dtype, state.memory.dtype) == (torch.bfloat16, torch.float32)
    assert_close(y.float(), m(x)[0], rtol=0.1, atol=0.1)
    m.bfloat16()
    y, state = m(x.bfloat16())
    assert (y.dtype, state.memory.dtype) == (torch.bfloat16, torch.float32)
    m(x.bfloat16(), state)


WRONG = {
    "heads": ({"heads": 4}, "model.heads", "4 heads do not divide a width of 6"),
    "rate": ({"eta_max": 1.5}, "model.eta_max", "1.5 is not allowed; above 0 and at most 1 is"),
    "rate over a chunk": ({"rule": "gd", "anchor": 8, "eta_max": 1.0}, "model.eta_max", "at most 0.25"),
    "retention": ({"retain": "initial", "start": "zero"}, "model.retain", "needs start: learned"),
    "objective": ({"objective": "l3"}, "model.objective", r"'l3' is not allowed.*allowed: dot \| l2 \| l2_doubled"),
    "gates": ({"gates": "Hard"}, "model.gates", r"'Hard' is not allowed.*sigmoid \| hard"),
    "no head": ({"heads": 0}, "model.heads", "0 is not allowed; allowed: int >= 1"),
    "anchor": ({"anchor": 0}, "model.anchor", "0 is not allowed; allowed: int >= 1"),
    "alpha": ({"alpha_start": 1.0}, "model.alpha_start", "1 is not allowed for a sigmoid gate.*reaches neither end"),
    "more than all": (
        {"alpha_start": 1.5},
        "model.alpha_start",
        "1.5 is not allowed.*below 1 is: .*make a memory grow",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_refused_with_what_is_allowed(case: str) -> None:
    options, key, words = WRONG[case]
    with pytest.raises(UserError, match=words) as caught:
        DeltaMemory(**{"width": 6, "heads": 2, **options})
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("eta", "alpha", "key", "words"),
    [
        (0.5, 1.1, "alpha", "1.1 is not allowed; from 0 to 1 is: above 1 the memory grows"),
        (0.5, -0.1, "alpha", "-0.1 is not allowed"),
        (1.01, 1.0, "eta", "1.01 is not allowed with an alpha of 1; from 0 to 1 is: outside, .* grows along"),
        (0.5, 0.4, "eta", "0.5 is not allowed with an alpha of 0.4; from 0 to 0.4 is"),
        (-0.1, 1.0, "eta", "-0.1 is not allowed"),
        (float("nan"), 1.0, "eta", "nan is not allowed"),
    ],
)
def test_rates_in_which_a_memory_does_not_contract_are_refused_by_write(eta, alpha, key, words) -> None:
    m, (k, v) = memory(), torch.randn(2, 1, 2, 4, 3, dtype=torch.float64)
    rates = {name: torch.full((1, 2, 4), r, dtype=torch.float64) for name, r in (("eta", 0.0), ("alpha", 1.0))}
    m.write(m.initial_state(1), k, v, **rates)
    rates["eta"][0, 1, 2], rates["alpha"][0, 1, 2] = eta, alpha
    with pytest.raises(UserError, match=words) as caught:
        m.write(m.initial_state(1), k, v, **rates)
    assert caught.value.key == key


def test_linear_attention_takes_every_rate_that_is_not_negative() -> None:
    m, (k, v) = configured("model=linear_attention"), torch.randn(2, 1, 2, 1, 3, dtype=torch.float64)
    rates = torch.tensor([[[9.0], [3.0]]], dtype=torch.float64)
    state = m.write(m.initial_state(1), k, v, rates, torch.zeros_like(rates))
    assert_close(state.memory, rates.unsqueeze(-1) * v.mT @ k)
    with pytest.raises(UserError, match="-9 is not allowed with an alpha of 1; at least 0 is"):
        m.write(m.initial_state(1), k, v, -rates, torch.ones_like(rates))


def test_a_state_of_another_batch_or_precision_is_refused_by_name() -> None:
    m, x = memory(), tokens()
    with pytest.raises(UserError, match=r"shape \(3, 2, 3, 3\).*\(2, 11, 6\) need \(2, 2, 3, 3\).*initial_state\(2\)"):
        m(x, m.initial_state(3))
    state = m.initial_state(2)
    with pytest.raises(UserError, match=r"dtype torch.float32.*torch.float64"):
        m(x, state._replace(memory=state.memory.float()))
    with pytest.raises(UserError, match=r"device meta.*cpu"):
        m(x, state._replace(memory=state.memory.to("meta")))


def test_other_tokens_and_an_anchor_longer_than_the_sequence_are_refused() -> None:
    m = memory(anchor=8)
    for wrong in (tokens()[0], tokens(width=5), tokens(0), tokens(b=0)):
        with pytest.raises(UserError, match=r"\(B, T, 6\) with B and T of at least 1"):
            m(wrong)
    with pytest.raises(UserError, match="a chunk of 8 tokens is longer than the sequence of 5") as caught:
        m(tokens(5))
    assert caught.value.key == "model.anchor"
    m(tokens(5), m.initial_state(2))  # the rest follows
