"""The LSTM baseline is torch's, reads in pieces, and differentiates twice."""

import pytest
import torch

from nested.errors import UserError
from nested.memory.lstm import LSTMMemory


@pytest.mark.parametrize("split", range(1, 6))
def test_pieces_are_the_whole(split):
    net, x = LSTMMemory(4).double(), torch.randn(3, 6, 4, dtype=torch.float64)
    whole, last = net(x)
    first, state = net(x[:, :split])
    second, end = net(x[:, split:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-14)
    torch.testing.assert_close(end, last, rtol=0, atol=1e-14)
    assert end.output.shape == end.cell.shape == (3, 1, 4)


def test_it_is_torchs_lstm():
    net, x = LSTMMemory(4), torch.randn(2, 5, 4)
    assert torch.equal(net(x)[0], net.lstm(x)[0])


def test_it_can_be_differentiated_twice():
    net, x = LSTMMemory(3).double(), torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: net(x)[0], x)


def test_other_tokens_and_a_state_of_another_batch_or_device_are_refused_by_name():
    net, x = LSTMMemory(4), torch.randn(2, 3, 4)
    with pytest.raises(UserError, match=r"\(B, T, 4\) with B and T of at least 1"):
        net(x[0])
    with pytest.raises(UserError, match=r"output has shape \(3, 1, 4\), tokens of shape \(2, 3, 4\) need \(2, 1, 4\)"):
        net(x, net.initial_state(3))
    state = net.initial_state(2)
    with pytest.raises(UserError, match=r"cell has device meta, .* need cpu"):
        net(x, state._replace(cell=state.cell.to("meta")))
