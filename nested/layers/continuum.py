"""The Continuum Memory System: residual MLPs, each of which learns at a frequency of its own.

"Nested Learning" (arXiv 2512.24695v1) section 7.1. Sequential, Eq. 70: y_t = MLP^(f_k)( ... MLP^(f_1)(x_t)). Head-wise,
Eq. 74: y_t = Agg(MLP^(f_k)(x_t), ..., MLP^(f_1)(x_t)). Nested, Eq. 72: the sequential chain on the token clock, with
levels that are reset (`Level.reset`); where nothing is reset, as on the stream clock, it is the chain. When a level
learns (Eq. 71) is no business of this file: on the stream clock the levels are parameter groups, on the token clock
the functions are called with weights of each sequence's own.

What the paper leaves open, and what is done here:
- order: Eq. 70 and Eq. 73 number the levels in opposite directions; here level 0 is always the fastest, and by default,
  as in Fig. 5, nearest the mixer; `slow_first` puts the slowest there;
- aggregation: a sum weighted by the softmax of one learned number per level (equal weights at first), so that the
  input, which every level's residual holds, passes exactly once;
- residuals and norms, left out of Eq. 70 for clarity: every level is residual and has its own pre-norm, which learns
  with it;
- width: the levels share out the hidden width of the one MLP they replace, so that the number of parameters stays
  (but for the head-wise weights, one number per level).

Shapes: B batch, T tokens, D width, E hidden, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from nested.errors import UserError, unknown
from nested.layers.feedforward import FeedForward, Names, feedforward, feedforward_parameters

Connection = Literal["sequential", "headwise"]
Order = Literal["fast_first", "slow_first"]


def chain(weights: Mapping[str, Tensor], x: Tensor, order: Order = "fast_first") -> Tensor:
    """Eq. 70: x (B, T, D) -> (B, T, D); `weights` is named as in `Continuum`, each shared or with the batch first."""
    levels = range(_count(weights))
    for level in levels if order == "fast_first" else reversed(levels):
        x = feedforward(_level(weights, level), x)
    return x


def headwise(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Eq. 74: x (B, T, D) -> (B, T, D), every level reading x; `weights` as in `chain`, with `mix`, (L,) or (B, L)."""
    outputs = [feedforward(_level(weights, level), x) for level in range(_count(weights))]
    return aggregate(weights["mix"], outputs)


def aggregate(mix: Tensor, outputs: list[Tensor]) -> Tensor:
    """Sum over levels of softmax(mix)_l times output_l; mix (L,) or (B, L), outputs L of (B, T, D) -> (B, T, D)."""
    shares = mix.softmax(-1)[..., None, None]  # (L, 1, 1) or (B, L, 1, 1)
    return torch.stack([shares[..., level, :, :] * y for level, y in enumerate(outputs)]).sum(0)


def _count(weights: Mapping[str, Tensor]) -> int:
    return len(weights) // len(Names)


def _level(weights: Mapping[str, Tensor], level: int) -> dict[str, Tensor]:
    return {name: weights[f"{level}.{name}"] for name in Names}


def hidden_widths(width: int, hidden: int, n_levels: int) -> tuple[int, ...]:
    """Hidden width of each level such that all levels together have the parameters of one MLP of `hidden`.

    Every level beyond the first costs a norm and an output bias, 3D parameters, which its hidden units pay for. Units
    that do not divide go to the fast levels, one each. Raises UserError when a level would be left without a unit.
    """
    budget = feedforward_parameters(width, hidden) - n_levels * feedforward_parameters(width, 0)
    units = round(budget / (2 * width + 1))
    if units < n_levels:
        raise UserError(
            f"{n_levels} levels cannot be made of one MLP of hidden width {hidden} at width {width}: "
            f"a hidden width of at least {_least_hidden(width, n_levels)} is needed, or fewer levels",
            key="model.n_levels",
            seen=n_levels,
        )
    each, rest = divmod(units, n_levels)
    return tuple(each + (level < rest) for level in range(n_levels))


def _least_hidden(width: int, n_levels: int) -> int:
    fixed = (n_levels - 1) * feedforward_parameters(width, 0)
    return -(-fixed // (2 * width + 1)) + n_levels


class Continuum(nn.ModuleList):
    """`chain` or `headwise` with weights of its own: level l is `self[l]`, so its parameters are `<l>.norm.weight`, ...

    Head-wise it has one more, `mix` (L,). Raises UserError for an unknown connection or order, and for an order where
    there is none.
    """

    def __init__(
        self,
        width: int,
        hiddens: tuple[int, ...],
        connection: Connection = "sequential",
        order: Order = "fast_first",
    ):
        super().__init__(FeedForward(width, hidden) for hidden in hiddens)
        _check(connection, order)
        self.connection, self.order = connection, order
        if connection == "headwise":
            self.mix = nn.Parameter(torch.zeros(len(hiddens)))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        if self.connection == "headwise":
            return aggregate(self.mix, [level(x) for level in self])
        for level in self if self.order == "fast_first" else reversed(self):
            x = level(x)
        return x


def _check(connection: str, order: str) -> None:
    for name, word, allowed in (
        ("connection", connection, ("sequential", "headwise")),
        ("order", order, ("fast_first", "slow_first")),
    ):
        if word not in allowed:
            raise unknown(name, word, allowed, f"model.{name}")
    if connection == "headwise" and order != "fast_first":
        text = "head-wise levels read one input side by side and have no order; leave it fast_first"
        raise UserError(text, key="model.order", seen=order, allowed=["fast_first"])
