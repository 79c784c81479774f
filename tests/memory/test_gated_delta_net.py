"""Gated DeltaNet against its recurrence, written token by token and head by head."""

import pytest
import torch
import torch.nn.functional as F
from nested_kernels.delta_rule import delta_rule
from same import assert_same
from torch import Tensor
from torch.testing import assert_close

from nested.cost import tensor_bytes
from nested.errors import UserError
from nested.memory.gated_delta_net import GatedDeltaNet, gated_delta_rule


def by_hand(m: GatedDeltaNet, x: Tensor) -> Tensor:
    """y (T, D) of one sequence x (T, D): S <- a S (I - b k k^T) + b v k^T, y = S q, normalised and gated."""
    u, taps, (K, V) = x @ m.input.weight.T, m.convolution.weight[:, 0], (m.key_size, m.value_size)
    S = [x.new_zeros(V, K)] * m.heads
    ys = []
    for t, x_t in enumerate(x):
        mixed = torch.stack([taps[:, -1 - back] * u[t - back] for back in range(min(t + 1, taps.shape[1]))]).sum(0)
        gates, heads = F.silu(m.gate.weight @ x_t).split(V), []
        for h, part in enumerate(F.silu(mixed).split(2 * K + V)):
            q, k, v = part.split([K, K, V])
            q, k = F.normalize(q, dim=0), F.normalize(k, dim=0)
            a = torch.exp(-m.decay.log_rate[h].exp() * F.softplus(m.decay.project.weight[h] @ x_t + m.decay.bias[h]))
            b = torch.sigmoid(m.rate.weight[h] @ x_t)
            S[h] = a * S[h] @ (torch.eye(K, dtype=x.dtype) - b * torch.outer(k, k)) + b * torch.outer(v, k)
            y = S[h] @ q
            heads.append(gates[h] * m.norm.weight * y / (y.square().mean() + 1e-5).sqrt())
        ys.append(torch.cat(heads))
    return torch.stack(ys) @ m.output.weight.T


@pytest.mark.parametrize("options", [{}, {"key_size": 2, "expand": 3, "convolution": 1}])
def test_it_is_the_printed_recurrence_in_values_and_all_gradients(options: dict[str, int]) -> None:
    m, x = GatedDeltaNet(6, 2, **options).double(), torch.randn(1, 37, 6, dtype=torch.float64)
    torch.nn.init.normal_(m.convolution.weight)
    assert_same(m, m(x)[0][0], by_hand(m, x[0]), atol=1e-11)


def operands(t: int = 40) -> tuple[Tensor, ...]:
    q, k = (F.normalize(torch.randn(2, 3, t, 4, dtype=torch.float64), dim=-1) for _ in range(2))
    v, b = torch.randn(2, 3, t, 5, dtype=torch.float64), torch.rand(2, 3, t, dtype=torch.float64)
    return q, k, v, b, torch.randn(2, 3, 5, 4, dtype=torch.float64)


def test_without_forgetting_it_is_the_delta_rule() -> None:
    q, k, v, b, memory = operands()
    one = torch.ones_like(b)
    y, after = gated_delta_rule(q, k, v, one, b, memory)
    wanted, state = delta_rule(q, k, v, b, one, memory, rule="gd", read="after")
    assert_close(y, wanted)
    assert_close(after, state.memory)


@pytest.mark.parametrize("t", [0, 17, 39])
def test_a_gate_of_zero_forgets_all_that_was_before_and_nothing_of_its_own_token(t: int) -> None:
    q, k, v, b, memory = operands()
    a = torch.full_like(b, 0.9)
    a[:, :, t] = 0
    y, after = gated_delta_rule(q, k, v, a, b, memory)
    rest = [s[:, :, t:] for s in (q, k, v, a, b)]
    fresh, end = gated_delta_rule(*rest, torch.zeros_like(memory))
    assert_close(y[:, :, t:], fresh)
    assert_close(after, end)
    assert y.isfinite().all()


def test_thousands_of_tokens_stay_finite_and_its_state_is_one_matrix_for_each_head() -> None:
    m = GatedDeltaNet(16, 2)
    y, state = m(3 * torch.randn(2, 4096, 16))
    assert y.isfinite().all()
    assert state.memory.shape == (2, 2, 16, 8)
    assert tensor_bytes(state) == tensor_bytes(m.initial_state(2)) == 2 * 4 * (2 * 16 * 8 + 3 * 2 * (8 + 8 + 16))


@pytest.mark.parametrize("name", ["key_size", "expand", "convolution", "heads"])
def test_values_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="0 is not allowed; allowed: int >= 1") as caught:
        GatedDeltaNet(**{"width": 6, "heads": 2, name: 0})
    assert caught.value.key == f"model.{name}"
