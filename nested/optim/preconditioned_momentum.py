"""Preconditioned and feature-map momentum: a momentum that associates gradients with something better than one.

"Nested Learning" (arXiv 2512.24695v1) Eq. 46-47 and, with a feature map phi of the gradient, Eq. 51:
    W <- W + m        m <- alpha m - eta P phi(g)
Eq. 47 is printed without the forget gate alpha that its text names. The paper leaves P and phi open. Here:
- P is the identity; "diagonal", 1 / (sqrt(mean of phi(g)^2) + eps), as in RMSProp; or "left", the inverse root of the
  mean of phi(g) phi(g)^T, a matrix that multiplies from the left, as Eq. 47 has it (Shampoo with one side). Means are
  exponential and bias-corrected; they are of phi(g), which P multiplies, so P phi(g) is of unit size for every phi.
- phi is the identity; "sign"; "tanh" of the gradient in units of its root mean square, between the two: small values
  stay in proportion, large ones are cut; or "unit", the gradient at Frobenius norm 1, so that every step of the past
  counts the same.

Shapes: m and g are (O, I) matrices, or tensors of any shape which "left" reads as (O, rest).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from nested.config import Bound
from nested.optim.rule import Rule, zeros
from nested.optim.second_moment import divided_by_root, second_moment

Preconditioner = Literal["identity", "diagonal", "left"]
FeatureMap = Literal["identity", "sign", "tanh", "unit"]


def feature(g: Tensor, kind: FeatureMap, eps: float = 1e-8) -> Tensor:
    """phi(g), shaped as g; zero stays zero."""
    if kind == "identity":
        return g
    if kind == "sign":
        return g.sign()
    norm = torch.linalg.vector_norm(g)
    if kind == "unit":
        return g / (norm + eps)
    return torch.tanh(g / (norm / max(1, g.numel()) ** 0.5 + eps))


def preconditioned_momentum(
    m: Tensor,
    g: Tensor,
    h: Tensor | None,
    step: int,
    lr: float,
    momentum: float,
    beta2: float = 0.99,
    precondition: Preconditioner = "diagonal",
    feature_map: FeatureMap = "identity",
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor | None]:
    """The next m and h: alpha m - eta P phi(g), and the running second moment that P is made of (None for identity).

    `step` counts from 1 and corrects the bias of h, which begins as zeros.
    """
    key = feature(g, feature_map, eps)
    if precondition == "identity" or h is None:
        return torch.sub(momentum * m, key, alpha=lr), None
    h = torch.lerp(h, second_moment(key, precondition), 1 - beta2)
    value = divided_by_root(key, h / (1 - beta2**step), precondition, eps)
    return torch.sub(momentum * m, value, alpha=lr), h


class PreconditionedMomentum(Rule):
    """SGD whose momentum holds preconditioned features of the gradient ("Nested Learning" Eq. 46-47 and 51).

    With identity and identity it is `torch.optim.SGD` with momentum (at a constant rate: lr is inside the momentum
    here). With "diagonal" and momentum 0 it is `torch.optim.Adam` without its first moment. With "left" and beta2 = 0
    each gradient is orthogonalised exactly. Tensors of fewer than two dimensions take "diagonal" for "left".
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Annotated[float, Bound(ge=0)] = 5e-4,
        momentum: Annotated[float, Bound(ge=0, le=1)] = 0.9,
        beta2: Annotated[float, Bound(ge=0, lt=1)] = 0.99,
        precondition: Preconditioner = "diagonal",
        feature_map: FeatureMap = "identity",
        weight_decay: Annotated[float, Bound(ge=0)] = 0.0,
        eps: Annotated[float, Bound(gt=0)] = 1e-8,
    ):
        given = {"lr": lr, "momentum": momentum, "beta2": beta2, "precondition": precondition}
        super().__init__(params, {**given, "feature_map": feature_map, "weight_decay": weight_decay, "eps": eps})

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        if group["precondition"] == "identity":
            return {"step": 0, "momentum": zeros(p)}
        square = group["precondition"] == "left" and p.ndim >= 2
        moment = zeros(p, len(p), len(p)) if square else zeros(p)
        return {"step": 0, "momentum": zeros(p), "second_moment": moment}

    def update(
        self, params: list[Tensor], gs: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        names = ("lr", "momentum", "beta2", "precondition", "feature_map", "eps")
        rule = {name: group[name] for name in names}
        for p, g, state in zip(params, gs, states):
            state["step"] += 1
            h = state.get("second_moment")
            state["momentum"], h = preconditioned_momentum(state["momentum"], g, h, state["step"], **rule)
            if h is not None:
                state["second_moment"] = h
            p.add_(state["momentum"])
