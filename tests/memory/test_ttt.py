"""TTT-Linear and TTT-MLP against the paper's loop: the W of every token, from gradients that autograd takes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from same import assert_same
from torch import Tensor, nn

from nested.cost import tensor_bytes
from nested.errors import UserError
from nested.layers.rotary import rotate
from nested.memory.ttt import TTTMLP, TTTLinear

both = pytest.mark.parametrize("kind", [TTTLinear, TTTMLP])


def network(W: list[Tensor], x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """f(x; W) = x + LN(net(x; W)), W as weight, bias, weight, bias; x (K,)."""
    z = W[0] @ x + W[1]
    for weight, bias in zip(W[2::2], W[3::2]):
        z = weight @ F.gelu(z) + bias
    return x + F.layer_norm(z, z.shape, scale, shift, eps=1e-6)


def start(m: TTTLinear, h: int) -> list[Tensor]:
    return [part for weight, bias in zip(m.weights, m.biases) for part in (weight[h], bias[h, 0])]


def by_hand(m: TTTLinear, x: Tensor) -> Tensor:
    """y (T, D) of one sequence x (T, D), each head on its own."""
    places = torch.arange(len(x)) % m.mini_batch
    q, k, v = ((x @ p.weight.T).view(1, len(x), m.heads, m.size) for p in (m.query, m.key, m.value))
    q, k = (rotate(s, places, 10000.0) for s in (q, k))
    heads = []
    for h in range(m.heads):
        scale, shift, y_h = m.scale[h, 0], m.shift[h, 0], []
        W = start(m, h)
        began, moved = W, [torch.zeros_like(w) for w in W]
        for t, x_t in enumerate(x):
            if t % m.mini_batch == 0:
                began, moved = W, [torch.zeros_like(w) for w in W]
            eta = m.base_rate * torch.sigmoid(m.rate.weight[h] @ x_t + m.rate.bias[h]) / m.size
            alias = [w.clone() for w in began]
            loss = (network(alias, k[0, t, h], scale, shift) - v[0, t, h]).square().sum() / 2
            moved = [s + eta * g for s, g in zip(moved, torch.autograd.grad(loss, alias, create_graph=True))]
            place = t % m.mini_batch
            share = torch.clamp(1 / (place + 1) + m.offset[place], min=0)
            W = [w - share * s for w, s in zip(began, moved)]
            y_h.append(network(W, q[0, t, h], scale, shift))
        heads.append(torch.stack(y_h))
    return F.layer_norm(torch.cat(heads, -1), (len(x[0]),), m.norm.weight, m.norm.bias, 1e-6) @ m.output.weight.T


def memory(kind: type[TTTLinear], width: int = 8, **options: Any) -> TTTLinear:
    """All parameters anywhere, so that a step counts; one place of a mini-batch learns nothing."""
    m = kind(width, 2, **{"mini_batch": 4, **options}).double()
    for p in (*m.weights, *m.biases, m.scale, m.shift, m.norm.weight, m.norm.bias):
        nn.init.normal_(p, std=0.5)
    nn.init.uniform_(m.offset, -0.2, 0.2)
    with torch.no_grad():
        m.offset[-2] = -1.0
    return m


@both
@pytest.mark.parametrize("t", [19, 4, 3])
def test_it_is_the_papers_loop_in_values_and_all_gradients(kind: type[TTTLinear], t: int) -> None:
    m, x = memory(kind, base_rate=3.0), torch.randn(1, t, 8, dtype=torch.float64)
    assert_same(m, m(x)[0][0], by_hand(m, x[0]), atol=1e-11)


@both
def test_what_it_learned_stays_after_the_mini_batch_and_only_then(kind: type[TTTLinear]) -> None:
    m, x = memory(kind), torch.randn(2, 9, 8, dtype=torch.float64)
    before, states = m.initial_state(2), [m(x[:, :t])[1] for t in range(1, 10)]
    for t, state in enumerate(states, 1):
        assert state.keys.shape == (2, 2, t % 4, 4)
        for layer, first, full in zip(state.layers, before.layers, states[3].layers):
            assert torch.equal(layer.weight, first.weight) == (t < 4)
            assert torch.equal(layer.weight, full.weight) == (4 <= t < 8)


@both
def test_its_state_is_the_network_and_less_than_a_mini_batch_of_tokens(kind: type[TTTLinear]) -> None:
    m = kind(12, 3)
    numbers = 4 * 4 + 4 if kind is TTTLinear else 2 * 4 * 16 + 16 + 4
    assert tensor_bytes(m.initial_state(2)) == tensor_bytes(m(torch.randn(2, 32, 12))[1]) == 2 * 4 * 3 * numbers
    assert tensor_bytes(m(torch.randn(2, 47, 12))[1]) == 2 * 4 * 3 * (numbers + 15 * (4 + 4 + 1))


@both
def test_thousands_of_tokens_stay_finite(kind: type[TTTLinear]) -> None:
    assert kind(16, 2)(3 * torch.randn(1, 4096, 16))[0].isfinite().all()


def test_the_two_differ_in_their_network_and_base_rate_alone() -> None:
    linear, mlp = TTTLinear(8, 2), TTTMLP(8, 2)
    assert [tuple(w.shape) for w in linear.weights] == [(2, 4, 4)]
    assert [tuple(w.shape) for w in mlp.weights] == [(2, 16, 4), (2, 4, 16)]
    assert (linear.base_rate, mlp.base_rate, linear.mini_batch, mlp.mini_batch) == (1.0, 0.1, 16, 16)
    assert {n for n, _ in mlp.named_parameters()} - {n for n, _ in linear.named_parameters()} == {
        "weights.1",
        "biases.1",
    }


WRONG = {
    "heads": ({"heads": 4}, "model.heads", "4 heads do not divide a width of 12 into even sizes; .*: 1, 2, 3, 6"),
    "mini-batch": ({"mini_batch": 0}, "model.mini_batch", "0 is not allowed; allowed: int >= 1"),
    "rate": ({"base_rate": 0.0}, "model.base_rate", "0.0 is not allowed; allowed: float > 0"),
}


@both
@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_refused_with_what_is_allowed(kind: type[TTTLinear], case: str) -> None:
    options, key, words = WRONG[case]
    with pytest.raises(UserError, match=words) as caught:
        kind(**{"width": 12, "heads": 2, **options})
    assert caught.value.key == key


def test_a_state_of_longer_mini_batches_is_refused() -> None:
    x = torch.randn(1, 7, 8)
    _, state = TTTLinear(8, 2, mini_batch=8)(x)
    with pytest.raises(UserError, match="7 open tokens are too many for mini-batches of 4"):
        TTTLinear(8, 2, mini_batch=4)(x, state)
    assert TTTLinear(8, 2, mini_batch=16)(x, state)[1].keys.shape[2] == 14
