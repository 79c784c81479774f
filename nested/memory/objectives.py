"""How fast a matrix memory may learn: the contractive bound of eta / alpha for every objective and learning rule.

"Nested Learning" (arXiv 2512.24695v1) Eq. 88-93. The paper gives no bound. Along a unit key that is repeated over an
anchor chunk of C tokens, at alpha = 1, with g = eta / alpha and the coefficients of `nested_kernels.delta_rule.terms`:
    DGD: M_{xi + C} k = (x - (1 - x) s) M_xi k,  x = (1 - g)^C           GD: (1 - C g s) M_xi k
s is `fit` for values that do not depend on the memory, and fit - value <v, k> for self-generated ones M v (Eq. 84): at
worst fit + value for a unit v. The memory does not grow along k while this factor is at least -1, and does not change
sign while it is at least 0 (`monotone`). With C = 1 all bounds are 2 / (erase + s), and alpha < 1 only shrinks it.
A GD rule that takes its gradients at the start of a chunk (C > 1) overshoots C-fold; DGD erases at every token instead.

What alpha < 1 does over a chunk: the gradient corrects what the chunk began with, however much of that is forgotten by
now. With one alpha for all of its tokens the memory still does not grow, though under `monotone` it may change sign (to
-0.3 of itself at most). Where the first token forgets all and the others write at the bound, s > 1 gives more than -1:
-s (1 - (1 - g)^(C - 1)) under DGD, at worst -1.6, and -(C - 1) g s under GD, above -2. To grow on it takes such chunks
of one key again and again; a bound that no alpha breaks would cost every other memory a third of its rate or more.
"""

from __future__ import annotations

import math
from typing import Literal

from nested_kernels.delta_rule import Objective, Rule, terms
from torch import Tensor

from nested.errors import UserError

Values = Literal["fixed", "self"]


def erase(objective: Objective, rule: Rule) -> float:
    """c of M_t = alpha M_{t-1} - eta (c M_{t-1} k - v) k^T, token by token: the eigenvalue along k is alpha - c eta."""
    of = terms(objective, rule)
    return of.erase + of.fit


def bound(
    objective: Objective, rule: Rule = "dgd", values: Values = "fixed", *, anchor: int = 1, monotone: bool = False
) -> float:
    """The largest eta / alpha that contracts; infinite for "dot" under "gd" with fixed values, which erases nothing.

    `values` "self" is for values M v with |v| <= 1. `anchor` is the length of the chunks whose gradients are taken at
    their start. Raises UserError where no rate contracts: a memory that writes what it generates and erases less.
    """
    of = terms(objective, rule)
    if values == "self" and of.erase + of.fit < of.value:
        raise UserError(
            f"objective {objective!r} with rule {rule!r} has no stable rate for self-generated values: it writes what "
            "the memory generates and erases nothing; choose rule 'dgd', or objective 'l2'",
            key="model.objective",
            seen=objective,
        )
    s = of.fit + (of.value if values == "self" else 0.0)
    least = 0.0 if monotone else -1.0  # of the factor
    if anchor == 1 or not of.erase:
        slope = of.erase + anchor * s
        return (1 - least) / slope if slope else math.inf
    root = (s + least) / (s + 1)  # of x
    return 1 - math.copysign(abs(root) ** (1 / anchor), root)


def check_rate(
    eta_max: float,
    objective: Objective,
    rule: Rule = "dgd",
    values: Values = "fixed",
    *,
    anchor: int = 1,
    monotone: bool = False,
) -> None:
    """Raises UserError with the bound and its reason when eta_max is not in (0, bound]."""
    most = bound(objective, rule, values, anchor=anchor, monotone=monotone)
    if 0 < eta_max <= most * (1 + 1e-12) and math.isfinite(eta_max):
        return
    over = f" over chunks of {anchor} tokens" if anchor > 1 else ""
    why = "keeps its sign" if monotone else "does not grow"
    raise UserError(
        f"{eta_max:g} is not allowed; above 0 and at most {most:g} is: up to there a memory with objective "
        f"{objective!r}, rule {rule!r} and {'self-generated' if values == 'self' else 'fixed'} values {why} "
        f"along a key that is repeated{over}",
        key="model.eta_max",
        seen=eta_max,
        allowed=f"(0, {most:g}]",
    )


def check_rates(eta: Tensor, alpha: Tensor, objective: Objective, rule: Rule, *, anchor: int = 1) -> None:
    """Raises UserError with the bound and its reason for an alpha outside [0, 1], or an eta outside [0, bound alpha].

    Both of one shape, for values that do not depend on the memory; it looks at every number.
    """
    outside = ~((alpha >= 0) & (alpha <= 1))
    if outside.any():
        seen = alpha[outside][0].item()
        text = f"{seen:g} is not allowed; from 0 to 1 is: above 1 the memory grows at every token"
        raise UserError(text, key="alpha", seen=seen, allowed="[0, 1]")
    most = bound(objective, rule, anchor=anchor)
    limit = most * alpha if math.isfinite(most) else alpha.new_full(alpha.shape, math.inf)
    outside = ~((eta >= 0) & (eta <= (1 + 1e-6) * limit))
    if outside.any():
        seen, held, high = (x[outside][0].item() for x in (eta, alpha, limit))
        allowed = f"from 0 to {high:g}" if math.isfinite(high) else "at least 0"
        raise UserError(
            f"{seen:g} is not allowed with an alpha of {held:g}; {allowed} is: outside, a memory with objective "
            f"{objective!r} and rule {rule!r} grows along a key, or learns the opposite",
            key="eta",
            seen=seen,
            allowed=allowed,
        )
