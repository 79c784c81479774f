"""What a learning rule does to a matrix memory, as three numbers, and the state it leaves.

"Nested Learning" (arXiv 2512.24695v1) Eq. 88 and 90. The gradient of the objective is a residual times k^T, and DGD
adds an erase term of its own, so every rule and objective is
    M_t = alpha_t M_{t-1} - eta_t (erase M_{t-1} k_t + fit M_xi k_t - value v_t) k_t^T
with xi(t) = C floor((t - 1) / C), the last token of the anchor chunk before t. Eq. 90 prints C ceil(t / C), the end of
the present chunk, which is not known at t. With C = 1 the two memories are one, and erase + fit is what counts.

Shapes: B batch, T tokens, H heads, K key, V value.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Objective = Literal["dot", "l2", "l2_doubled"]
Rule = Literal["dgd", "gd"]
Read = Literal["cumulative", "after", "anchor"]
Retain = Literal["zero", "initial"]


class Terms(NamedTuple):
    """Coefficients of what is held now, of what was held at the anchor, and of the value."""

    erase: float
    fit: float
    value: float


def terms(objective: Objective, rule: Rule) -> Terms:
    """The coefficients of `objective` under `rule`.

    dot: -<M k, v>, gradient -v k^T (Eq. 92, whose printed sign would store -v). l2: gradient (M k - v) k^T with the
    factor 2 dropped, as Eq. 93. l2_doubled keeps the factor.
    """
    fit, value = {"dot": (0.0, 1.0), "l2": (1.0, 1.0), "l2_doubled": (2.0, 2.0)}[objective]
    return Terms({"dgd": 1.0, "gd": 0.0}[rule], fit, value)


class State(NamedTuple):
    """A memory between two tokens. A state with no more than `memory` begins an anchor chunk.

    `anchor` is the memory at the beginning of the open anchor chunk, of which `position` tokens are read; it is None
    where no chunk is open.
    """

    memory: Tensor  # (B, H, V, K)
    anchor: Tensor | None = None  # (B, H, V, K)
    position: int = 0
