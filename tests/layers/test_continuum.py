"""The chain of levels: Eq. 70 written out, names that globs rely on, widths that keep the parameter count."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call
from torch.testing import assert_close

from nested.errors import UserError
from nested.layers.continuum import Continuum, chain, hidden_widths
from nested.layers.feedforward import FeedForward, feedforward, feedforward_parameters

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


def test_the_pure_function_and_the_module_are_equal_to_the_last_bit():
    levels, x = Continuum(D, (6, 5, 4)), torch.randn(B, T, D)
    weights = dict(levels.named_parameters())
    assert torch.equal(chain(weights, x), levels(x))
    one = dict(levels[0].named_parameters())
    assert torch.equal(feedforward(one, x), levels[0](x))


def test_per_sequence_weights_equal_one_sequence_at_a_time():
    models = [Continuum(D, (6, 4)) for _ in range(B)]
    x = torch.randn(B, T, D)
    stacked = {n: torch.stack([m.state_dict()[n] for m in models]) for n in models[0].state_dict()}  # (B, ...)
    each = torch.cat([m(x[i : i + 1]) for i, m in enumerate(models)])
    assert_close(chain(stacked, x), each)
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
