"""What a token does to a memory of two layers, as numbers, and the state that it leaves.

M(x) = x + down gelu(up x) ("Nested Learning", arXiv 2512.24695v1, Eq. 89, 91). Each layer is written by the rule for
one linear layer (Eq. 57, 88, 90) with its own input x_t as key and what the loss says at its output as error,
    W_t = alpha_t W_{t-1} - eta_t erase W_{t-1} x_t x_t^T + S_t,      S_t = beta_t S_{t-1} - eta_t error_t x_t^T
with inputs and errors of the weights at the anchor xi(t) = C floor((t - 1) / C); S is Titans' momentum (arXiv
2501.00663, Eq. 13-14), and beta = 0 without it. Retention to the initial weights adds (1 - alpha_t) W_0.

Shapes: B batch, T tokens, H heads, N memories that share tokens, K head width, E hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nested_kernels.delta_rule import Objective, Rule, terms

Erase = Literal["every", "input"]
Values = Literal["given", "own"]
Read = Literal["cumulative", "after"]


class Weights(NamedTuple):
    """The two layers, or something of their shapes."""

    up: Tensor  # (B, H, N, E, K)
    down: Tensor  # (B, H, N, K, E)


class Write(NamedTuple):
    """The loss says fit M(k) - value v at the memory's output, with M(v) in place of v where `own`.

    `bounded`: `down` takes steps of eta / max(1, |its input|^2), so that the bound on eta for unit keys holds for it.
    """

    erase_up: float
    erase_down: float
    fit: float
    value: float
    own: bool
    bounded: bool


class MLPState(NamedTuple):
    """Memories between two tokens. A state with no more than `weights` begins an anchor chunk, without momentum.

    `anchor` holds the weights at the beginning of the open anchor chunk, of which `position` tokens are read; it is
    None where no chunk is open.
    """

    weights: Weights
    anchor: Weights | None = None
    momentum: Weights | None = None
    position: int = 0


def both(f: Callable[[Tensor], Tensor], of: Weights) -> Weights:
    """f of each of the two."""
    return Weights(f(of.up), f(of.down))


def all_of(f: Callable[[Tensor], Tensor], state: MLPState) -> MLPState:
    """f of all tensors in it."""
    anchor, momentum = (None if w is None else both(f, w) for w in (state.anchor, state.momentum))
    return MLPState(both(f, state.weights), anchor, momentum, state.position)


def started(state: MLPState, beta: Tensor | None) -> MLPState:
    """With a momentum of zero where one is wanted and none is there."""
    if beta is None or state.momentum is not None:
        return state
    return state._replace(momentum=both(torch.zeros_like, state.weights))


def write_of(objective: Objective, rule: Rule, erase: Erase, values: Values, bounded: bool) -> Write:
    """The numbers of an objective and a rule; `erase` "input" lets only `up` erase."""
    of = terms(objective, rule)
    return Write(of.erase, of.erase if erase == "every" else 0.0, of.fit, of.value, values == "own", bounded)


def gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """The exact gelu and its slope, which is written out so that it can be differentiated again."""
    below = torch.special.ndtr(x)
    return x * below, below + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def operations(T: int, N: int, K: int, E: int, C: int, write: Write, asked: bool, initial: bool, momentum: bool) -> int:
    """Of the matrix products in chunks of C tokens, for one head: none is counted twice, whatever is computed again."""
    up, down = bool(write.erase_up), bool(write.erase_down)
    wide = 2 * (1 + write.own) + 1 + 2 + initial * (up + down) + 2 * momentum  # C x K times K x E, or E x C times C x K
    read = 2 * (1 + initial + momentum)
    squares = N * (up + down) + 2 * asked  # C x C times C x K, and times C x E
    return 2 * T * ((N * wide + asked * read) * K * E + C * squares * (K + E))
