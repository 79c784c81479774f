"""The memory as a loop over tokens, as its equations are printed in `rule.py`. It defines the other forms.

Shapes: B batch, T tokens, H heads, N memories, K head width, E hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nested_kernels.mlp_memory.rule import MLPState, Read, Weights, Write, gelu


def apply(W: Tensor, x: Tensor) -> Tensor:
    """W (..., rows, columns) times x (..., columns)."""
    return (W @ x.unsqueeze(-1)).squeeze(-1)


def ask(M: Weights, x: Tensor) -> Tensor:
    """x + down gelu(up x), x (B, H, N, K)."""
    return x + apply(M.down, gelu(apply(M.up, x))[0])


def mlp_memory_reference(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    alpha: Tensor,
    beta: Tensor | None,
    state: MLPState,
    *,
    write: Write,
    anchor: int,
    read: Read,
    initial: Weights | None,
) -> tuple[Tensor | None, MLPState]:
    """As `mlp_memory`, with all of one floating dtype; retention is towards `initial`, or towards zero without it."""
    M, M_xi, S, position = state
    ys: list[Tensor] = []
    for t in range(k.shape[2]):
        if position == 0:
            M_xi = M
        assert M_xi is not None
        k_t, v_t = (x[:, :, None, t].expand(M.up[..., 0, :].shape) for x in (k, v))  # (B, H, N, K)
        eta_t, alpha_t = eta[:, :, t, None, None], alpha[:, :, t, None, None, None]
        if q is not None and read == "cumulative":
            ys.append(ask(first(M), q[:, :, t]))
        active, slope = gelu(apply(M_xi.up, k_t))  # (B, H, N, E)
        outer = write.fit * ask(M_xi, k_t) - write.value * (ask(M_xi, v_t) if write.own else v_t)
        inner = apply(M_xi.down.mT, outer) * slope
        eta_down = eta_t / active.square().sum(-1, keepdim=True).clamp_min(1) if write.bounded else eta_t
        steps = (k_t, inner, eta_t, write.erase_up), (active, outer, eta_down, write.erase_down)
        written, heaps = [], []
        for layer, (x, error, rate, erase) in enumerate(steps):
            W = M[layer]
            kept = alpha_t * W if initial is None else initial[layer] + alpha_t * (W - initial[layer])
            heap = -outer_product(rate * error, x)
            if beta is not None and S is not None:
                heap = beta[:, :, t, None, None, None] * S[layer] + heap
            written.append(kept - outer_product(rate * erase * apply(W, x), x) + heap)
            heaps.append(heap)
        M, S = Weights(*written), None if beta is None else Weights(*heaps)
        if q is not None and read == "after":
            ys.append(ask(first(M), q[:, :, t]))
        position = (position + 1) % anchor
    return torch.stack(ys, 2) if ys else None, MLPState(M, M_xi if position else None, S, position)


def first(M: Weights) -> Weights:
    return Weights(*(w[:, :, 0] for w in M))


def outer_product(x: Tensor, y: Tensor) -> Tensor:
    return x.unsqueeze(-1) * y.unsqueeze(-2)
