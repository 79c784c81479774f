"""Per-sequence weights must give, sequence by sequence, what shared weights give."""

import torch
from torch.func import functional_call
from torch.testing import assert_close

from nested.layers.linear import LayerNorm, Linear, layer_norm, linear

B, T, D, E = 3, 5, 4, 6


def test_linear_by_hand():
    x = torch.tensor([[[1.0, 2.0]]])
    assert linear(x, torch.tensor([[1.0, 10.0]]), torch.tensor([0.5])).tolist() == [[[21.5]]]


def test_linear_per_sequence_equals_one_sequence_at_a_time():
    x, w, b = torch.randn(B, T, D), torch.randn(B, E, D), torch.randn(B, E)
    each = torch.cat([linear(x[i : i + 1], w[i], b[i]) for i in range(B)])
    assert_close(linear(x, w, b), each)


def test_layer_norm_per_sequence_equals_one_sequence_at_a_time():
    x, w, b = torch.randn(B, T, D), torch.randn(B, D), torch.randn(B, D)
    each = torch.cat([layer_norm(x[i : i + 1], w[i], b[i]) for i in range(B)])
    assert_close(layer_norm(x, w, b), each)


def test_modules_are_torchs_own_with_shared_weights():
    x = torch.randn(B, T, D)
    ours, torchs = Linear(D, E), torch.nn.Linear(D, E)
    torchs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), torchs(x))
    assert torch.equal(LayerNorm(D)(x), torch.nn.LayerNorm(D)(x))


def test_modules_take_per_sequence_weights_through_functional_call():
    x, w, b = torch.randn(B, T, D), torch.randn(B, E, D), torch.randn(B, E)
    assert torch.equal(functional_call(Linear(D, E), {"weight": w, "bias": b}, x), linear(x, w, b))
    w, b = torch.randn(B, D), torch.randn(B, D)
    assert torch.equal(functional_call(LayerNorm(D), {"weight": w, "bias": b}, x), layer_norm(x, w, b))
