"""Causal attention against torch's fused one and a loop; reading in pieces; positions only matter relatively."""

import pytest
import torch
import torch.nn.functional as F

from nested.errors import UserError
from nested.memory.attention import AttentionMemory, causal_attention, rotate


def memory() -> AttentionMemory:
    return AttentionMemory(8, 2).double()


def test_it_is_torchs_causal_attention():
    q, k, v = (torch.randn(2, 3, 7, 4, dtype=torch.float64) for _ in range(3))
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(causal_attention(q, k, v), wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("split", range(1, 9))
def test_pieces_are_the_whole(split):
    net, x = memory(), torch.randn(2, 9, 8, dtype=torch.float64)
    whole, _ = net(x)
    first, kept = net(x[:, :split])
    second, kept = net(x[:, split:], kept)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-12)
    assert kept.keys.shape == kept.values.shape == (2, 2, 9, 4)


def test_no_token_sees_a_later_one():
    net, x = memory(), torch.randn(1, 6, 8, dtype=torch.float64)
    changed = x.clone()
    changed[:, 4:] += 1
    assert torch.equal(net(x)[0][:, :4], net(changed)[0][:, :4])
    assert not torch.equal(net(x)[0][:, 4:], net(changed)[0][:, 4:])


def test_rotary_products_depend_on_distance_alone():
    q, k = (torch.randn(1, 1, 1, 6, dtype=torch.float64) for _ in range(2))
    at = [(rotate(q, i + 3) * rotate(k, i)).sum() for i in (0, 5, 100)]
    torch.testing.assert_close(at[1], at[0])
    torch.testing.assert_close(at[2], at[0])
    assert not torch.isclose((rotate(q, 4) * rotate(k, 0)).sum(), at[0])
    assert torch.equal(rotate(q, 0), q)


def test_it_can_be_differentiated_twice():
    net, x = AttentionMemory(4, 2).double(), torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: net(x)[0], x)


def test_a_width_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="twice the 3 heads"):
        AttentionMemory(8, 3)


def test_other_tokens_and_a_state_of_another_batch_or_device_are_refused_by_name():
    net, x = memory(), torch.randn(2, 3, 8, dtype=torch.float64)
    with pytest.raises(UserError, match=r"\(B, T, 8\) with B and T of at least 1"):
        net(x[:, :, :7])
    kept = net(torch.cat([x, x[:1]]))[1]
    with pytest.raises(UserError, match=r"keys has shape \(3, 2, 0, 4\), .* \(2, 3, 8\) need \(2, 2, 0, 4\)"):
        net(x, kept)
    with pytest.raises(UserError, match=r"values has device meta, .* need cpu"):
        net(x, net(x)[1]._replace(values=kept.values[:2].to("meta")))
