"""One linear layer of fast weights, written by the tokens of a segment one after the other.

"Nested Learning" (arXiv 2512.24695v1) Eq. 88 and 90 with the loss's part given: the gradient of token t is
error_t k_t^T, taken wherever the caller took it; decay and erase look at the weights of that very token,
    W_t = alpha_t W_{t-1} - eta_t (error_t + erase W_{t-1} k_t) k_t^T.
Retention towards the initial state, which the paper has not, puts W_0 + alpha_t (W_{t-1} - W_0) first.

Momentum: the paper's Table 6 takes one away that none of its equations has. This is that of Titans (arXiv 2501.00663,
Eq. 13-14): S_t = beta_t S_{t-1} - eta_t error_t k_t^T is added in place of the gradient's step, decay and erase stay.
Such writes have a rank above one, so the delta rule's chunks do not serve, and it goes token by token.

Shapes: Z all leading axes (batch, heads, memories), L tokens, K in, V out. Rates are (..., L, 1).
"""

from __future__ import annotations

from itertools import repeat
from typing import NamedTuple

import torch
from nested_kernels.delta_rule import delta_rule
from torch import Tensor


class Steps(NamedTuple):
    """What each token does to a layer: key (..., L, K), error (..., L, V), rates, and query (..., L, K) for a read."""

    key: Tensor
    error: Tensor
    eta: Tensor
    alpha: Tensor
    beta: Tensor | None = None  # with momentum
    query: Tensor | None = None


def advance(
    steps: Steps, erase: float, weight: Tensor, initial: Tensor | None, momentum: Tensor | None
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Reads W_{t-1} q_t (..., L, V), the layer (..., V, K) after all steps, and the last momentum.

    `initial` (..., V, K) is what it decays towards, None for zero. Reads and momentum are None where none is asked for.
    """
    flat = steps._make(None if x is None else x.flatten(0, -3) for x in steps)
    after = weight.flatten(0, -3)
    start, gathered = (None if x is None else x.flatten(0, -3) for x in (initial, momentum))
    if gathered is None and steps.key.shape[-2] > 1:  # for one token the kernel costs more than it does
        reads, after = _together(flat, erase, after, start)
    else:
        reads, after, gathered = _one_by_one(flat, erase, after, start, gathered)
    reads = None if reads is None else reads.view_as(steps.error)
    return reads, after.view_as(weight), None if gathered is None else gathered.view_as(weight)


def _one_by_one(
    steps: Steps, erase: float, weight: Tensor, initial: Tensor | None, momentum: Tensor | None
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    reads = []
    for token in zip(*(repeat(None) if x is None else x.split(1, 1) for x in steps)):
        key, error, eta, alpha, beta, query = Steps._make(token)
        if query is not None:
            reads.append(query @ weight.mT)
        if momentum is None or beta is None:
            change = eta * (error + erase * (key @ weight.mT) if erase else error)  # (Z, 1, V)
            weight = _write(weight, initial, alpha, change, key)
        else:
            momentum = _write(momentum, None, beta, eta * error, key)
            weight = _write(weight, initial, alpha, eta * erase * (key @ weight.mT), key) + momentum
    return torch.cat(reads, 1) if reads else None, weight, momentum


def _together(steps: Steps, erase: float, weight: Tensor, initial: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """All tokens at once: the delta rule with -error as fixed values, whose objective is the dot product."""
    key, error, eta, alpha, _, query = steps
    reads, state = delta_rule(
        (key if query is None else query).unsqueeze(1),
        key.unsqueeze(1),
        -error.unsqueeze(1),
        eta.mT,
        alpha.mT,
        weight.unsqueeze(1),
        objective="dot",
        rule="dgd" if erase else "gd",
        retain="zero" if initial is None else "initial",
        initial=None if initial is None else initial.unsqueeze(1),
    )
    return None if query is None else reads.squeeze(1), state.memory.squeeze(1)


def _write(weight: Tensor, initial: Tensor | None, alpha: Tensor, change: Tensor, key: Tensor) -> Tensor:
    """alpha W - change k^T, or W_0 + alpha (W - W_0) - ...: W (Z, V, K), alpha (Z, 1, 1), change (Z, 1, V)."""
    kept = alpha * weight if initial is None else torch.lerp(initial, weight, alpha)
    return torch.baddbmm(kept, change.mT, key, alpha=-1)
