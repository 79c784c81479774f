"""Delta Momentum: a momentum that is corrected along the current gradient instead of only decaying.

"Nested Learning" (arXiv 2512.24695v1) Eq. 48-49, with P = I:
    W <- W + m        m <- m (alpha I - g^T g) - eta g
The momentum m is an associative memory of gradients, written by the delta rule: what it holds in the direction of the
new gradient g is erased before g is written, everything else only decays by alpha. The mathematics is in
`nested_kernels.level_step`; `delta_momentum` is the pure rule.

Shapes: m and g are (O, I) matrices, or tensors of any shape which the vector form reads as one vector of N values.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Annotated, Any, NamedTuple

from nested_kernels.level_step import Form, LevelRule, Shape, delta_momentum, level_step
from torch import Tensor

from nested.config import Bound
from nested.errors import UserError
from nested.optim.rule import Rule, zeros
from nested.precision import wide_dtype

__all__ = ["DeltaMomentum", "Form", "Shape", "delta_momentum"]


class DeltaMomentum(Rule):
    """SGD whose momentum erases what it holds along each new gradient (Delta Momentum, "Nested Learning" Eq. 48-49).

    With beta 0 it is `torch.optim.SGD` with momentum (at a constant rate: lr is inside the momentum here); with beta 1
    the printed form is Eq. 49 to the letter. The normalised form decays by alpha - beta along the gradient and by alpha
    across it, and is stable where alpha - beta lies in (-1, 1); the printed form decays by alpha - beta |g|^2, which is
    stable only while gradients are small. Tensors of fewer than two dimensions always take the vector form. Raises
    UserError for a rate, decay or beta outside these ranges.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Annotated[float, Bound(ge=0)] = 0.05,
        momentum: Annotated[float, Bound(ge=0, le=1)] = 0.9,
        beta: Annotated[float, Bound(ge=0, lt=2)] = 1.0,
        form: Form = "normalised",
        shape: Shape = "vector",
        weight_decay: Annotated[float, Bound(ge=0)] = 0.0,
        eps: Annotated[float, Bound(ge=1e-15)] = 1e-8,  # its square is not 0 in float32
    ):
        given = {"lr": lr, "momentum": momentum, "beta": beta, "form": form, "shape": shape}
        super().__init__(params, {**given, "weight_decay": weight_decay, "eps": eps})

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {"momentum": zeros(p)}

    def step_group(self, group: dict[str, Any]) -> None:
        """One update of the group's parameters that have a gradient, all at once: two launches on a device."""
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        momenta = [self._state(p, group)["momentum"] for p in params]
        level_step(params, [p.grad for p in params if p.grad is not None], momenta, _rule(group))

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        alpha, beta = group["momentum"], group["beta"]
        if not -1 < alpha - beta < 1:
            raise UserError(
                f"{beta} is not allowed with momentum {alpha}: along the gradient the momentum decays by momentum - "
                f"beta, which must lie in (-1, 1); so beta >= 0, above {max(0.0, alpha - 1):g} and below {1 + alpha:g}",
                key="optim.beta",
                seen=beta,
            )


class Turn(NamedTuple):
    """What a tick is for a level: is it due, what it has gathered, and what the sum is multiplied by, then.

    `gathered` has one entry for each parameter, in the order of the rule's groups; None is no gathering.
    """

    rule: DeltaMomentum
    due: bool
    gathered: list[Tensor | None] | None
    scale: float


def step_together(turns: Iterable[Turn]) -> None:
    """A tick of all levels in one call of `level_step`: every gradient is gathered, and levels that are due learn."""
    rules: list[LevelRule] = []
    now: list[bool] = []
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor | None, int]] = []
    for turn in turns:
        places = count()
        for group in turn.rule.param_groups:
            rules.append(_rule(group)._replace(scale=turn.scale))
            now.append(turn.due)
            for p, i in zip(group["params"], places):
                found = _gradient(p, turn, i)
                if found is not None:
                    rows.append((p, found[0], turn.rule._state(p, group)["momentum"], found[1], len(rules) - 1))
    if rows:
        params, grads, momenta, gathered, levels = zip(*rows)
        level_step(params, grads, momenta, rules, levels=levels, gathered=gathered, due=now)


def _gradient(p: Tensor, turn: Turn, i: int) -> tuple[Tensor, Tensor | None] | None:
    """The gradient and what it is added to (None: nothing); None where there is nothing to add or to learn from."""
    held = None if turn.gathered is None else turn.gathered[i]
    if p.grad is None:
        return None if held is None or not turn.due else (held, None)
    if turn.gathered is None or (held is None and turn.due):
        return p.grad, None
    if held is None:
        turn.gathered[i] = p.grad.to(wide_dtype(p.dtype), copy=True)  # a copy: `.grad` may be written again
        return None
    turn.gathered[i] = held.to(wide_dtype(p.dtype))
    return p.grad, turn.gathered[i]


def _rule(group: dict[str, Any]) -> LevelRule:
    return LevelRule(**{name: group[name] for name in LevelRule._fields if name in group})
