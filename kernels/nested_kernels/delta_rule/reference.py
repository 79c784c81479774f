"""The recurrence as a loop over tokens, in the order in which the equations are printed. It defines the chunked form.

"Nested Learning" (arXiv 2512.24695v1) Eq. 88 (token by token) and Eq. 90 (gradients at an anchor).

Shapes: B batch, T tokens, H heads, K key, V value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nested_kernels.delta_rule.rule import Objective, Read, Rule, State


def residual(M: Tensor, k: Tensor, v: Tensor, objective: Objective) -> Tensor:
    """r (B, H, V) of the objective's gradient r k^T at M (B, H, V, K)."""
    if objective == "dot":
        return -v
    error = apply(M, k) - v
    return error if objective == "l2" else 2 * error


def apply(M: Tensor, x: Tensor) -> Tensor:
    """M (B, H, V, K) times x (B, H, K) -> (B, H, V)."""
    return (M @ x.unsqueeze(-1)).squeeze(-1)


def delta_rule_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    alpha: Tensor,
    state: State,
    *,
    objective: Objective,
    rule: Rule,
    anchor: int,
    read: Read,
    initial: Tensor | None,
) -> tuple[Tensor, State]:
    """As `delta_rule`, with all of one floating dtype; retention is towards `initial`, or towards zero without it."""
    M, M_xi, position = state
    ys: list[Tensor] = []
    for q_t, k_t, v_t, eta_t, alpha_t in zip(q.unbind(2), k.unbind(2), v.unbind(2), eta.unbind(2), alpha.unbind(2)):
        if position == 0:
            M_xi = M
        assert M_xi is not None
        if read != "after":
            ys.append(apply(M if read == "cumulative" else M_xi, q_t))
        step = residual(M_xi, k_t, v_t, objective)  # (B, H, V)
        if rule == "dgd":
            step = step + apply(M, k_t)
        kept = alpha_t[..., None, None] * M
        if initial is not None:
            kept = kept + (1 - alpha_t)[..., None, None] * initial
        M = kept - (eta_t[..., None] * step).unsqueeze(-1) * k_t.unsqueeze(-2)
        if read == "after":
            ys.append(apply(M, q_t))
        position = (position + 1) % anchor
    return torch.stack(ys, 2), State(M, M_xi if position else None, position)
