"""The causal convolution against a loop over taps, in pieces and at its start."""

import pytest
import torch

from nested.layers.convolution import CausalConvolution


def trained(width: int = 3, size: int = 4) -> CausalConvolution:
    layer = CausalConvolution(width, size).double()
    torch.nn.init.normal_(layer.weight)
    return layer


def test_it_is_the_sum_over_its_taps():
    layer, x = trained(), torch.randn(2, 7, 3, dtype=torch.float64)
    y, _ = layer(x)
    wanted = torch.zeros_like(x)
    for t in range(7):
        for s in range(4):
            if t - 3 + s >= 0:
                wanted[:, t] += layer.weight[:, 0, s] * x[:, t - 3 + s]
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("split", range(1, 7))
@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_pieces_are_the_whole(split, size):
    layer, x = trained(size=size), torch.randn(2, 7, 3, dtype=torch.float64)
    whole, last = layer(x)
    first, state = layer(x[:, :split])
    second, end = layer(x[:, split:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-14)
    assert torch.equal(end, last)
    assert end.shape == (2, size - 1, 3)


def test_it_starts_as_the_identity():
    x = torch.randn(2, 5, 3)
    assert torch.equal(CausalConvolution(3)(x)[0], x)
