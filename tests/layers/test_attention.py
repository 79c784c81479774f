"""Attention against a loop over heads and queries, and what it must not know: the order of the tokens."""

import math

import pytest
import torch
from torch.testing import assert_close

from nested.errors import UserError
from nested.layers.attention import Attention

B, T, D, H = 2, 5, 12, 3


def by_hand(layer: Attention, x: torch.Tensor) -> torch.Tensor:
    q, k, v = layer.qkv(layer.norm(x)).chunk(3, dim=-1)
    size, out = D // H, torch.zeros_like(x)
    for b in range(B):
        for h in range(H):
            part = slice(h * size, (h + 1) * size)
            for t in range(T):
                weights = torch.softmax(k[b, :, part] @ q[b, t, part] / math.sqrt(size), dim=0)  # (T,)
                out[b, t, part] = weights @ v[b, :, part]
    return x + layer.out(out)


def test_equals_a_loop_over_heads_and_queries():
    layer, x = Attention(D, H).double(), torch.randn(B, T, D, dtype=torch.float64)
    assert_close(layer(x), by_hand(layer, x), rtol=1e-10, atol=1e-10)


def test_permuting_tokens_permutes_outputs():
    layer, x, order = Attention(D, H), torch.randn(B, T, D), torch.tensor([3, 1, 4, 0, 2])
    assert_close(layer(x[:, order]), layer(x)[:, order])


def test_heads_that_do_not_divide_are_refused_with_what_would():
    with pytest.raises(UserError, match="5 heads do not divide a width of 12") as error:
        Attention(12, 5)
    assert error.value.allowed == [1, 2, 3, 4, 6, 12]
