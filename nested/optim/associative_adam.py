"""Adam and AdaGrad as the optimal associative memories of gradients ("Nested Learning" arXiv 2512.24695v1, Appendix B).

A memory that maps gradients to their variance has a closed optimum, which is these optimizers:
    M <- M + beta1 g, and
    elementwise, Eq. 102-105      H <- H + beta2 g^2      W <- W - eta / sqrt(beta2) M / (sqrt(H) + eps)
    outer product, Eq. 106-111    H <- H + beta2 g g^T    W <- W - eta / sqrt(beta2) H^(-1/2) M
The paper calls the first Adam. Printed are plain sums, without decay and bias correction, which makes it AdaGrad with a
momentum that never forgets; the "ema" form has both, and there the first is Adam to the last digit. Departures: Eq. 101
sets g = -grad L and then subtracts, which would climb: g is the gradient here. Eq. 111 has no eps; here it stands with
the root, as in Eq. 105. In Eq. 106-110 M takes g^T: M is shaped as g here, so that H^(-1/2) multiplies rows.

Shapes: m and g are (O, I) matrices, or tensors of any shape which "left" reads as (O, rest).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from nested.config import Bound
from nested.errors import UserError
from nested.optim.rule import Rule, zeros
from nested.optim.second_moment import Moment, divided_by_root, second_moment

Accumulate = Literal["ema", "sums"]
Beta = Annotated[float, Bound(ge=0, le=1)]


def accumulated(held: Tensor, new: Tensor, beta: float, accumulate: Accumulate) -> Tensor:
    """beta held + (1 - beta) new, or the printed held + beta new."""
    return held + beta * new if accumulate == "sums" else torch.lerp(held, new, 1 - beta)


def adam_step(
    m: Tensor,
    h: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    accumulate: Accumulate = "ema",
    form: Moment = "diagonal",
    eps: float = 1e-8,
) -> Tensor:
    """What is added to W, shaped as m, given the memories after this gradient; `step` counts from 1."""
    if accumulate == "sums":
        return divided_by_root(m, h, form, eps) * (-lr / betas[1] ** 0.5)
    first, second = (1 - beta**step for beta in betas)  # bias corrections, as in Adam
    return divided_by_root(m, h / second, form, eps) * (-lr / first)


class AssociativeAdam(Rule):
    """Adam as the optimal memory of gradients: printed sums or averages, diagonal or matrix ("Nested Learning" App. B).

    "ema" and "diagonal" is `torch.optim.Adam`; "sums", "diagonal" and no momentum is `torch.optim.Adagrad` (at
    `betas[1]` = 1, as it scales eps). Without `momentum` the present gradient stands for M. In "sums" the betas are how
    strongly gradients are written, in "ema" how much is kept. Tensors of fewer than two dimensions are always diagonal.
    Raises UserError for betas that do not fit.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Annotated[float, Bound(ge=0)] = 1e-3,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        accumulate: Accumulate = "ema",
        form: Moment = "diagonal",
        momentum: bool = True,
        weight_decay: Annotated[float, Bound(ge=0)] = 0.0,
        eps: Annotated[float, Bound(gt=0)] = 1e-8,
    ):
        given = {"lr": lr, "betas": tuple(betas), "accumulate": accumulate, "form": form, "momentum": momentum}
        super().__init__(params, {**given, "weight_decay": weight_decay, "eps": eps})

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        square = group["form"] == "left" and p.ndim >= 2
        moments = {"second_moment": zeros(p, len(p), len(p)) if square else zeros(p)}
        return {"step": 0, **({"momentum": zeros(p)} if group["momentum"] else {}), **moments}

    def update(
        self, params: list[Tensor], gs: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        (beta1, beta2), accumulate, form = group["betas"], group["accumulate"], group["form"]
        betas = (beta1 if group["momentum"] else 0.0, beta2)
        for p, g, state in zip(params, gs, states):
            state["step"] += 1
            m, h = g, state["second_moment"]
            h.copy_(accumulated(h, second_moment(g, form), beta2, accumulate))
            if group["momentum"]:
                m = state["momentum"]
                m.copy_(accumulated(m, g, beta1, accumulate))
            p.add_(adam_step(m, h, state["step"], group["lr"], betas, accumulate, form, group["eps"]))

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        beta1, beta2 = group["betas"]
        said = ""
        if group["accumulate"] == "ema" and max(beta1, beta2) == 1:
            said = "averages keep less than everything: betas below 1"
        if group["accumulate"] == "sums" and beta2 == 0:
            said = "the rate is divided by sqrt(beta2): betas[1] above 0"
        if said:
            raise UserError(f"{[beta1, beta2]} is not allowed; {said}", key="optim.betas", seen=[beta1, beta2])
