"""Mamba-2 against its recurrence, written token by token and head by head."""

import pytest
import torch
import torch.nn.functional as F
from same import assert_same
from torch import Tensor
from torch.testing import assert_close

from nested.cost import tensor_bytes
from nested.errors import UserError
from nested.memory.decay import RATES, STEPS, Decay
from nested.memory.mamba2 import Mamba2


def by_hand(m: Mamba2, x: Tensor) -> Tensor:
    """y (T, D) of one sequence x (T, D): S <- exp(-A dt) S + dt v k^T, y = S q + D v, the norm of y silu(z)."""
    e, n, _ = m.sizes
    u, taps = x @ m.input.weight.T, m.convolution.weight[:, 0]
    S = [x.new_zeros(e // m.heads, n)] * m.heads
    ys = []
    for t, x_t in enumerate(x):
        mixed = torch.stack([taps[:, -1 - back] * u[t - back] for back in range(min(t + 1, taps.shape[1]))]).sum(0)
        v, k, q = F.silu(mixed).split([e, n, n])
        heads = []
        for h, v_h in enumerate(v.split(e // m.heads)):
            dt = F.softplus(m.decay.project.weight[h] @ x_t + m.decay.bias[h])
            S[h] = torch.exp(-m.decay.log_rate[h].exp() * dt) * S[h] + dt * torch.outer(v_h, k)
            heads.append(S[h] @ q + m.skip[h] * v_h)
        y = torch.cat(heads) * F.silu(m.gate.weight @ x_t)
        ys.append(m.norm.weight * y / (y.square().mean() + 1e-5).sqrt())
    return torch.stack(ys) @ m.output.weight.T


@pytest.mark.parametrize("options", [{}, {"key_size": 5, "expand": 1, "convolution": 2}])
def test_it_is_the_printed_recurrence_in_values_and_all_gradients(options: dict[str, int]) -> None:
    m, x = Mamba2(6, 2, **options).double(), torch.randn(1, 37, 6, dtype=torch.float64)
    torch.nn.init.normal_(m.convolution.weight)
    assert_same(m, m(x)[0][0], by_hand(m, x[0]))


def test_its_state_is_one_matrix_for_each_head_and_the_convolutions_last_tokens() -> None:
    m = Mamba2(12, 3, key_size=10)
    _, state = m(torch.randn(2, 70, 12))
    assert state.memory.shape == (2, 3, 8, 10)
    assert tensor_bytes(state) == tensor_bytes(m.initial_state(2)) == 2 * 4 * (3 * 8 * 10 + 3 * (24 + 10 + 10))


def test_a_head_starts_with_a_step_and_a_rate_from_their_ranges() -> None:
    decay = Decay(4, 5000)
    step, kept = decay(torch.zeros(1, 1, 4))
    step, rate = step.flatten(), -kept.flatten().log() / step.flatten()
    for value, (low, high), median in ((step, STEPS, 0.01), (rate, RATES, 8.5)):
        assert value.min() >= low * 0.999
        assert value.max() <= high * 1.001
        assert_close(value.median().item(), median, rtol=0.1, atol=0)


@pytest.mark.parametrize("name", ["key_size", "expand", "convolution", "heads"])
def test_values_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="0 is not allowed; allowed: int >= 1") as caught:
        Mamba2(**{"width": 6, "heads": 2, name: 0})
    assert caught.value.key == f"model.{name}"
