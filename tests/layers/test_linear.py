"""Per-sequence weights must give, sequence by sequence, what shared weights give."""

import pytest
import torch
from torch.func import functional_call
from torch.testing import assert_close

from nested.layers.linear import LayerNorm, Linear, layer_norm, linear

B, T, D, E = 3, 5, 4, 6


def test_linear_by_hand():
    x = torch.tensor([[[1.0, 2.0]]])
    assert linear(x, torch.tensor([[1.0, 10.0]]), torch.tensor([0.5])).tolist() == [[[21.5]]]


@pytest.mark.parametrize("own", [("weight", "bias"), ("weight",), ("bias",)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_per_sequence_equals_one_sequence_at_a_time(own: tuple[str, ...], biased: bool):
    x, w, b = torch.randn(B, T, D), torch.randn(B, E, D), torch.randn(B, E)
    w, b = w if "weight" in own else w[:1].expand(B, E, D), b if "bias" in own else b[:1].expand(B, E)
    each = torch.cat([linear(x[i : i + 1], w[i], b[i] if biased else None) for i in range(B)])
    given = w if "weight" in own else w[0], b if "bias" in own else b[0]
    assert_close(linear(x, given[0], given[1] if biased else None), each)


@pytest.mark.parametrize("own", [("weight", "bias"), ("weight",), ("bias",)])
@pytest.mark.parametrize("biased", [True, False])
def test_layer_norm_per_sequence_equals_one_sequence_at_a_time(own: tuple[str, ...], biased: bool):
    x, w, b = torch.randn(B, T, D), torch.randn(B, D), torch.randn(B, D)
    w, b = w if "weight" in own else w[:1].expand(B, D), b if "bias" in own else b[:1].expand(B, D)
    each = torch.cat([layer_norm(x[i : i + 1], w[i], b[i] if biased else None, 0.1) for i in range(B)])
    given = w if "weight" in own else w[0], b if "bias" in own else b[0]
    assert_close(layer_norm(x, given[0], given[1] if biased else None, 0.1), each)


def test_an_input_without_tokens_is_refused_where_it_would_mix_sequences():
    x = torch.randn(B, D)
    with pytest.raises(ValueError, match=r"\(batch, tokens, width\), not \(3, 4\)"):
        linear(x, torch.randn(B, E, D), None)
    with pytest.raises(ValueError, match=r"\(batch, tokens, width\), not \(3, 4\)"):
        layer_norm(x, torch.randn(B, D), None)


def test_modules_are_torchs_own_with_shared_weights():
    x = torch.randn(B, T, D)
    ours, torchs = Linear(D, E), torch.nn.Linear(D, E)
    torchs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), torchs(x))
    assert torch.equal(LayerNorm(D)(x), torch.nn.LayerNorm(D)(x))
    assert torch.equal(LayerNorm(D, eps=0.1)(x), torch.nn.LayerNorm(D, eps=0.1)(x))


def test_modules_take_per_sequence_weights_through_functional_call():
    x, w, b = torch.randn(B, T, D), torch.randn(B, E, D), torch.randn(B, E)
    assert torch.equal(functional_call(Linear(D, E), {"weight": w, "bias": b}, x), linear(x, w, b))
    w, b = torch.randn(B, D), torch.randn(B, D)
    assert torch.equal(functional_call(LayerNorm(D), {"weight": w, "bias": b}, x), layer_norm(x, w, b))
