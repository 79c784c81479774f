"""One computation equals another: in its values, and in the gradient of every parameter."""

import torch
from torch import Tensor, nn
from torch.testing import assert_close


def assert_same(module: nn.Module, got: Tensor, wanted: Tensor, atol: float = 1e-12) -> None:
    """Equal, with equal gradients, none of which is zero (a parameter that does nothing is not shown to be right)."""
    assert_close(got, wanted, rtol=0, atol=atol)
    names, params = zip(*module.named_parameters())
    ours, theirs = (torch.autograd.grad(y.sin().sum(), params) for y in (got, wanted))
    for name, a, b in zip(names, ours, theirs):
        assert_close(a, b, rtol=1e-9, atol=100 * atol, msg=lambda text, name=name: f"{name}: {text}")
        assert a.abs().max() > 0, name
