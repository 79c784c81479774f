"""The Continuum Memory System: a chain of residual MLPs, each of which learns at a frequency of its own.

"Nested Learning" (arXiv 2512.24695v1) Eq. 70: y_t = MLP^(f_k)( ... MLP^(f_1)(x_t)). When a level learns (Eq. 71) is no
business of this file: on the stream clock the levels are parameter groups, on the token clock `chain` is called with
weights of each sequence's own.

What the paper leaves open, and what is done here:
- order: Eq. 70 and Eq. 73 number the levels in opposite directions; here, as in Fig. 5, level 0 is the fastest and
  nearest the mixer;
- residuals and norms, left out of Eq. 70 for clarity: every level is residual and has its own pre-norm, which learns
  with it;
- width: the levels share out the hidden width of the one MLP they replace, so that the number of parameters stays.

Shapes: B batch, T tokens, D width, E hidden, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from nested.errors import UserError
from nested.layers.feedforward import FeedForward, Names, feedforward, feedforward_parameters


def chain(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Eq. 70: x (B, T, D) -> (B, T, D); `weights` is named as in `Continuum`, each shared or with the batch first."""
    for level in range(len(weights) // len(Names)):
        x = feedforward({name: weights[f"{level}.{name}"] for name in Names}, x)
    return x


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
    """`chain` with weights of its own: level l is `self[l]`, so its parameters are named `<l>.norm.weight`, ..."""

    def __init__(self, width: int, hiddens: tuple[int, ...]):
        super().__init__(FeedForward(width, hidden) for hidden in hiddens)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        for level in self:
            x = level(x)
        return x
