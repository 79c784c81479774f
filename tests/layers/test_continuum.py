"""Levels one after another and side by side: Eq. 70 and 74 written out, names that globs rely on, widths that keep the
parameter count; the nested variant on the token clock."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from nested.errors import UserError
from nested.inner import Chunk, initial_state, read
from nested.layers.continuum import Connection, Continuum, Order, chain, headwise, hidden_widths
from nested.layers.feedforward import FeedForward, feedforward, feedforward_parameters
from nested.levels import Level

B, T, D = 3, 5, 8


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_feedforward_written_out():
    layer, x = FeedForward(D, 7), torch.randn(B, T, D)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    hidden = torch.nn.functional.gelu(normed @ layer.up.weight.mT + layer.up.bias)
    assert_close(layer(x), x + hidden @ layer.down.weight.mT + layer.down.bias)


def test_chain_is_equation_70_level_zero_innermost():
    levels, x = Continuum(D, (6, 5, 4)), torch.randn(B, T, D)
    assert torch.equal(levels(x), levels[2](levels[1](levels[0](x))))


def test_slow_first_is_the_order_of_equation_73_with_the_same_names():
    levels, x = Continuum(D, (6, 5, 4), order="slow_first"), torch.randn(B, T, D)
    assert torch.equal(levels(x), levels[0](levels[1](levels[2](x))))
    assert torch.equal(chain(dict(levels.named_parameters()), x, "slow_first"), levels(x))
    assert set(levels.state_dict()) == set(Continuum(D, (6, 5, 4)).state_dict())


def test_headwise_is_equation_74_with_a_softmax_over_levels():
    levels, x = Continuum(D, (6, 5, 4), connection="headwise").double(), torch.randn(B, T, D, dtype=torch.float64)
    assert_close(levels(x), (levels[0](x) + levels[1](x) + levels[2](x)) / 3)  # equal at first
    levels.mix.data = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
    e = torch.exp(levels.mix)
    expected = x + sum(e[i] / e.sum() * (level(x) - x) for i, level in enumerate(levels))
    assert_close(levels(x), expected)
    levels(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in levels.parameters())


def test_headwise_levels_do_not_hear_of_each_other():
    levels, x = Continuum(D, (6, 5), connection="headwise"), torch.randn(B, T, D)
    before = levels(x)
    with torch.no_grad():
        levels[1].down.weight.add_(1.0)
    moved = levels(x) - before
    with torch.no_grad():
        levels[0].down.weight.mul_(-3.0)
    other = levels(x)
    with torch.no_grad():
        levels[1].down.weight.sub_(1.0)
    assert_close(other - levels(x), moved, rtol=1e-4, atol=1e-5)


def test_the_pure_function_and_the_module_are_equal_to_the_last_bit():
    levels, x = Continuum(D, (6, 5, 4)), torch.randn(B, T, D)
    weights = dict(levels.named_parameters())
    assert torch.equal(chain(weights, x), levels(x))
    one = dict(levels[0].named_parameters())
    assert torch.equal(feedforward(one, x), levels[0](x))
    side = Continuum(D, (6, 5, 4), connection="headwise")
    assert torch.equal(headwise(dict(side.named_parameters()), x), side(x))


@pytest.mark.parametrize(
    ("connection", "order"), [("sequential", "fast_first"), ("sequential", "slow_first"), ("headwise", "fast_first")]
)
def test_per_sequence_weights_equal_one_sequence_at_a_time(connection: Connection, order: Order):
    models = [Continuum(D, (6, 4), connection, order) for _ in range(B)]
    for model in models:
        for p in model.parameters():
            nn.init.normal_(p, std=0.3)
    x = torch.randn(B, T, D)
    stacked = {n: torch.stack([m.state_dict()[n] for m in models]) for n in models[0].state_dict()}  # (B, ...)
    each = torch.cat([m(x[i : i + 1]) for i, m in enumerate(models)])
    pure = headwise(stacked, x) if connection == "headwise" else chain(stacked, x, order)
    assert_close(pure, each)
    assert_close(functional_call(models[0], stacked, x), each)


def test_a_step_through_the_chain_can_be_differentiated_again():
    levels, x = Continuum(D, (6, 4)).double(), torch.randn(B, T, D, dtype=torch.float64)
    start = {n: p.expand(B, *p.shape) for n, p in levels.named_parameters()}
    grads = torch.autograd.grad(chain(start, x).square().sum(), list(start.values()), create_graph=True)
    after = {n: w - 0.1 * g for (n, w), g in zip(start.items(), grads)}
    chain(after, x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in levels.parameters())


def test_names_of_parameters_are_the_levels_numbers():
    names = {n for n, _ in Continuum(D, (6, 5)).named_parameters()}
    parts = ("norm.weight", "norm.bias", "up.weight", "up.bias", "down.weight", "down.bias")
    assert names == {f"{level}.{part}" for level in (0, 1) for part in parts}


def test_projections_are_linear_modules_whose_inputs_hooks_see():
    levels, seen = Continuum(D, (6, 5)), []
    for module in levels.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    levels(torch.randn(B, T, D))
    assert seen == [(B, T, D), (B, T, 6), (B, T, D), (B, T, 5)]


def test_unknown_words_and_an_order_where_there_is_none_are_refused():
    for connection, order, words in (
        ("sequntial", "fast_first", "did you mean 'sequential'"),
        ("sequential", "slowfirst", "did you mean 'slow_first'"),
        ("headwise", "slow_first", "no order"),
    ):
        with pytest.raises(UserError, match=words):
            Continuum(D, (6, 5), connection, order)  # type: ignore[arg-type]


class NextVector(nn.Module):
    """Predicts the next vector by a continuum whose levels are fast weights."""

    def __init__(self, hiddens: tuple[int, ...], connection: Connection = "sequential"):
        super().__init__()
        self.continuum = Continuum(D, hiddens, connection).double()

    def prepare(self, tokens: Tensor) -> Tensor:
        return tokens

    def chunk_loss(self, fast: Mapping[str, Tensor], carry: Any, chunk: Chunk) -> tuple[Tensor, Any]:
        weights = {n.removeprefix("continuum."): w for n, w in fast.items()}
        y = functional_call(self.continuum, weights, chunk.inputs)
        return (y - chunk.labels).square().mean(-1), carry


def nested(chunks: tuple[int, ...], reset: bool) -> list[Level]:
    return [
        Level(f"l{i}", (f"continuum.{i}.*",), c, "token", eta=0.1, reset=reset and i < len(chunks) - 1)
        for i, c in enumerate(chunks)
    ]


def test_the_nested_variant_starts_each_level_anew_where_the_next_slower_one_learns():
    """Against a chain read by hand, context by context: Eq. 72's re-initialisation, Eq. 71's updates."""
    model, x, chunks = NextVector((4, 5, 3)), torch.randn(B, 14, D, dtype=torch.float64), (1, 3, 6)
    nll, state = read(model, nested(chunks, True), initial_state(model, nested(chunks, True), B), x)
    names = [n for n, _ in model.continuum.named_parameters()]
    for b in range(B):
        start = {n: p.detach().clone() for n, p in model.continuum.named_parameters()}
        w, sums = dict(start), {n: torch.zeros_like(p) for n, p in start.items()}
        for t in range(13):
            here = {n: v.clone().requires_grad_() for n, v in w.items()}
            loss = (chain(here, x[b : b + 1, t : t + 1])[0, 0] - x[b, t + 1]).square().mean()
            assert_close(nll[b, t], loss, rtol=1e-11, atol=1e-12)
            for n, g in zip(names, torch.autograd.grad(loss, [here[n] for n in names])):
                sums[n] += g
            for n in names:
                level = int(n[0])
                if level < 2 and (t + 1) % chunks[level + 1] == 0:
                    w[n], sums[n] = start[n], torch.zeros_like(sums[n])
                elif (t + 1) % chunks[level] == 0:
                    w[n], sums[n] = w[n] - 0.1 * sums[n], torch.zeros_like(sums[n])
        for n in names:
            assert_close(state.fast[f"continuum.{n}"][b], w[n], rtol=1e-11, atol=1e-12)


def test_an_mlp_that_learns_while_it_reads_is_linear_attention_with_a_learned_initial_state():
    """Each matrix in its dual form, W_0 h - eta sum of delta_i <h_i, h> over closed chunks: no weight ever changes."""
    model, x, chunk, eta = NextVector((5,)), torch.randn(B, 11, D, dtype=torch.float64), 3, 0.1
    names = ("continuum.0.up.weight", "continuum.0.down.weight")
    level = [Level("mlp", names, chunk, "token", eta=eta)]
    nll, _ = read(model, level, initial_state(model, level, B), x)
    block, written, losses = model.continuum[0], {"up": [], "down": []}, []

    def attend(name: str, h: Tensor) -> Tensor:
        y = getattr(block, name)(h)
        for keys, values in written[name]:
            y = y - eta * (h @ keys.mT) @ values
        return y

    for first in range(0, 10, chunk):
        h, labels = x[:, first : min(first + chunk, 10)], x[:, first + 1 : first + chunk + 1]
        key = block.norm(h)
        up = attend("up", key)
        hidden = nn.functional.gelu(up)
        down = attend("down", hidden)
        losses.append((h + down - labels).square().mean(-1))
        errors = torch.autograd.grad(losses[-1].sum(), [up, down], create_graph=True)
        written["up"].append((key, errors[0]))
        written["down"].append((hidden, errors[1]))
    expected = torch.cat(losses, 1)
    assert_close(nll, expected, rtol=1e-11, atol=1e-12)
    params = list(model.parameters())
    weights = torch.linspace(0.5, 1.5, 10, dtype=torch.float64)
    found = [torch.autograd.grad((loss * weights).sum(), params) for loss in (nll, expected)]
    assert_close(*found, rtol=1e-9, atol=1e-11)


def test_headwise_levels_and_their_mix_learn_on_the_token_clock_too():
    model, x = NextVector((4, 5), "headwise"), torch.randn(B, 9, D, dtype=torch.float64)
    levels = [*nested((2, 4), False), Level("mix", ("continuum.mix",), 8, "token", eta=0.1)]
    nll, state = read(model, levels, initial_state(model, levels, B), x)
    assert all(not torch.equal(w, model.get_parameter(n).expand(w.shape)) for n, w in state.fast.items())
    alone = [read(model, levels, initial_state(model, levels, 1), x[i : i + 1])[0] for i in range(B)]
    assert_close(nll, torch.cat(alone), rtol=1e-12, atol=1e-13)


def test_hidden_widths_by_hand():
    # one MLP of 96 at width 48 has 96 * 97 + 144 = 9456 parameters; three norms and output biases take 3 * 144 = 432,
    # the remaining 9024 make 93.03 units of 97
    assert hidden_widths(48, 96, 3) == (31, 31, 31)
    assert hidden_widths(48, 96, 1) == (96,)
    assert hidden_widths(48, 96, 2) == (48, 47)


@given(width=st.integers(1, 512), hidden=st.integers(1, 2048), n_levels=st.integers(1, 6))
def test_levels_have_the_parameters_of_the_mlp_they_replace(width: int, hidden: int, n_levels: int):
    try:
        widths = hidden_widths(width, hidden, n_levels)
    except UserError as error:
        least = int(str(error).split("at least ")[1].split()[0])
        assert hidden < least
        assert len(hidden_widths(width, least, n_levels)) == n_levels
        return
    assert len(widths) == n_levels
    assert min(widths) >= 1
    assert max(widths) - min(widths) <= 1
    assert list(widths) == sorted(widths, reverse=True)
    ours = sum(feedforward_parameters(width, w) for w in widths)
    assert abs(ours - feedforward_parameters(width, hidden)) <= (2 * width + 1) / 2


def test_feedforward_parameters_counts_the_module():
    assert count(FeedForward(D, 7)) == feedforward_parameters(D, 7)
