"""Delta Momentum: a momentum that is corrected along the current gradient instead of only decaying.

"Nested Learning" (arXiv 2512.24695v1) Eq. 48-49, with P = I:
    W <- W + m        m <- m (alpha I - g^T g) - eta g
The momentum m is an associative memory of gradients, written by the delta rule: what it holds in the direction of the
new gradient g is erased before g is written, everything else only decays by alpha.

Shapes: m and g are (O, I) matrices, or tensors of any shape which the vector form reads as one vector of N values.
"""

# torch's foreach functions are public in all but name
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from nested.config import Bound
from nested.errors import UserError
from nested.optim.rule import Rule, zeros

Form = Literal["normalised", "printed"]
Shape = Literal["vector", "matrix"]


def delta_momentum(
    m: Tensor,
    g: Tensor,
    lr: float,
    momentum: float,
    beta: float = 1.0,
    form: Form = "normalised",
    shape: Shape = "matrix",
    eps: float = 1e-8,
) -> Tensor:
    """The next m, same shape as m and g: alpha m - beta (what m holds along u) - eta g.

    u is g itself in the printed form and g / (|g| + eps), Frobenius norm, in the normalised one. "matrix": m u^T u with
    tensors read as (O, rest), Eq. 49. "vector": what m holds along u is u <u, m> in the normalised form (Eq. 22 of the
    paper's short version, which multiplies from the left: the scalar u^T u of Eq. 49 is 1 for every unit vector, which
    would make it ordinary momentum with decay alpha - beta); in the printed form it is the scalar |g|^2 times m.
    """
    u = g if form == "printed" else g / (torch.linalg.vector_norm(g) + eps)
    if shape == "matrix" and g.ndim >= 2:
        along = _along_matrix(m.flatten(1), u.flatten(1)).view_as(m)
    elif form == "printed":
        along = m * (u * u).sum()
    else:
        along = u * (u * m).sum()
    return momentum * m - beta * along - lr * g


def _along_matrix(m: Tensor, u: Tensor) -> Tensor:
    """m u^T u, (O, I), multiplied in the cheaper order."""
    return (m @ u.mT) @ u if u.shape[0] <= u.shape[1] else m @ (u.mT @ u)


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
        eps: Annotated[float, Bound(gt=0)] = 1e-8,
    ):
        given = {"lr": lr, "momentum": momentum, "beta": beta, "form": form, "shape": shape}
        super().__init__(params, {**given, "weight_decay": weight_decay, "eps": eps})

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {"momentum": zeros(p)}

    def update(
        self, params: list[Tensor], gs: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        ms = [state["momentum"] for state in states]
        if group["shape"] == "matrix":
            _next_matrices(params, gs, ms, group)
        elif gs[0].device.type == "cpu":
            _next_vectors_one_by_one(params, gs, ms, group)
        else:
            _next_vectors_at_once(params, gs, ms, group)

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


def _next_matrices(params: list[Tensor], gs: list[Tensor], ms: list[Tensor], group: dict[str, Any]) -> None:
    """`delta_momentum` in the matrix form; tensors of fewer than two dimensions take the vector form."""
    rule = {name: group[name] for name in ("lr", "momentum", "beta", "form", "shape", "eps")}
    for p, g, m in zip(params, gs, ms):
        m.copy_(delta_momentum(m, g, **rule))
        p.add_(m)


def _next_vectors_one_by_one(params: list[Tensor], gs: list[Tensor], ms: list[Tensor], group: dict[str, Any]) -> None:
    """`delta_momentum` in the vector form, on a CPU: all passes over a tensor while it is in the cache."""
    for p, g, m in zip(params, gs, ms):
        flat = g.reshape(-1)
        square = torch.dot(flat, flat).item()
        held = 0.0 if group["form"] == "printed" else torch.dot(flat, m.view(-1)).item()
        keep, write = _vector_coefficients(square, square**0.5, held, group)
        p.add_(m.mul_(keep).add_(g, alpha=write))


def _next_vectors_at_once(params: list[Tensor], gs: list[Tensor], ms: list[Tensor], group: dict[str, Any]) -> None:
    """`delta_momentum` in the vector form, on an accelerator: few launches for many tensors, and no waiting."""
    norms = torch.stack(torch._foreach_norm(gs))  # (tensors,)
    dots = torch.stack([torch.dot(g.reshape(-1), m.view(-1)) for g, m in zip(gs, ms)])  # (tensors,)
    keep, write = _vector_coefficients(norms.square(), norms, dots, group)
    torch._foreach_mul_(ms, list(keep.unbind()) if isinstance(keep, Tensor) else keep)
    if isinstance(write, Tensor):
        torch._foreach_addcmul_(ms, gs, write.unbind())
    else:
        torch._foreach_add_(ms, gs, alpha=write)
    torch._foreach_add_(params, ms)


def _vector_coefficients(square: Any, norm: Any, held: Any, group: dict[str, Any]) -> tuple[Any, Any]:
    """(a, b) of m <- a m + b g: in the vector form m and g meet only in scalars, |g|^2 and <g, m>."""
    if group["form"] == "printed":
        return group["momentum"] - group["beta"] * square, -group["lr"]
    return group["momentum"], -group["lr"] - group["beta"] * held / (norm + group["eps"]) ** 2
