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

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from nested.config import Bound
from nested.errors import UserError

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


class DeltaMomentum(Optimizer):
    """SGD whose momentum erases what it holds along each new gradient (Delta Momentum, "Nested Learning" Eq. 48-49).

    With beta 0 it is `torch.optim.SGD` with momentum (at a constant rate: lr is inside the momentum here); with beta 1
    the printed form is Eq. 49 to the letter. The normalised form decays by alpha - beta along the gradient and by alpha
    across it, and is stable where alpha - beta lies in (-1, 1); the printed form decays by alpha - beta |g|^2, which is
    stable only while gradients are small. `weight_decay` adds to the gradient, as in `torch.optim.SGD`. Tensors of
    fewer than two dimensions always take the vector form. The momentum is at least float32, whatever the parameter is.
    Raises UserError for a rate, decay or beta outside these ranges.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Annotated[float, Bound(ge=0)] = 0.1,
        momentum: Annotated[float, Bound(ge=0, le=1)] = 0.9,
        beta: Annotated[float, Bound(ge=0, lt=2)] = 1.0,
        form: Form = "normalised",
        shape: Shape = "vector",
        weight_decay: Annotated[float, Bound(ge=0)] = 0.0,
        eps: Annotated[float, Bound(gt=0)] = 1e-8,
    ):
        given = {"lr": lr, "momentum": momentum, "beta": beta, "form": form, "shape": shape}
        super().__init__(params, {**given, "weight_decay": weight_decay, "eps": eps})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the group's values are checked."""
        super().add_param_group(param_group)
        _check(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        ms = [self._momentum(p) for p in params]
        gs = [p.grad if p.grad.dtype == m.dtype else p.grad.to(m.dtype) for p, m in zip(params, ms)]
        if group["weight_decay"]:
            gs = [g.add(p, alpha=group["weight_decay"]) for g, p in zip(gs, params)]
        if group["shape"] == "vector":
            _next_vectors(ms, gs, group)
        else:
            _next_matrices(ms, gs, group)
        torch._foreach_add_(params, ms)

    def _momentum(self, p: Tensor) -> Tensor:
        held = self.state[p].get("momentum")
        if held is None:
            if p.grad is not None and p.grad.is_sparse:
                raise UserError("DeltaMomentum needs dense gradients", key="optim", seen="sparse")
            kept = torch.promote_types(p.dtype, torch.float32)
            held = torch.zeros_like(p, dtype=kept, memory_format=torch.contiguous_format)
            self.state[p]["momentum"] = held
        return held

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but the momentum keeps its precision (torch would cast it to the parameter's)."""
        super().load_state_dict(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(saved, (p for group in self.param_groups for p in group["params"])):
            if i in state_dict["state"]:
                self.state[p]["momentum"] = state_dict["state"][i]["momentum"].to(p.device, copy=True)


def _check(group: dict[str, Any]) -> None:
    alpha, beta = group["momentum"], group["beta"]
    if not 0 <= alpha <= 1:
        raise UserError(f"{alpha} is not allowed; a decay in [0, 1] is", key="optim.momentum", seen=alpha)
    if beta < 0 or not -1 < alpha - beta < 1:
        raise UserError(
            f"{beta} is not allowed with momentum {alpha}: along the gradient the momentum decays by momentum - beta, "
            f"which must lie in (-1, 1); so beta >= 0, above {max(0.0, alpha - 1):g} and below {1 + alpha:g}",
            key="optim.beta",
            seen=beta,
        )
    if group["lr"] < 0 or group["weight_decay"] < 0:
        raise UserError("lr and weight_decay must not be negative", key="optim.lr", seen=group["lr"])


def _next_matrices(ms: list[Tensor], gs: list[Tensor], group: dict[str, Any]) -> None:
    """`delta_momentum` in the matrix form, in place; tensors of fewer than two dimensions take the vector form."""
    rule = {name: group[name] for name in ("lr", "momentum", "beta", "form", "shape", "eps")}
    for m, g in zip(ms, gs):
        m.copy_(delta_momentum(m, g, **rule))


def _next_vectors(ms: list[Tensor], gs: list[Tensor], group: dict[str, Any]) -> None:
    """`delta_momentum` in the vector form, in place and for many tensors at once: m and g only meet in scalars."""
    norms = torch.stack(torch._foreach_norm(gs))  # (tensors,)
    if group["form"] == "printed":
        decays = norms.square_().mul_(-group["beta"]).add_(group["momentum"])
        torch._foreach_mul_(ms, decays.unbind())
        torch._foreach_add_(ms, gs, alpha=-group["lr"])
        return
    dots = torch.stack([torch.dot(g.reshape(-1), m.view(-1)) for g, m in zip(gs, ms)])  # (tensors,)
    along = dots.div_(norms.add_(group["eps"]).square_())
    torch._foreach_mul_(ms, group["momentum"])
    torch._foreach_addcmul_(ms, gs, along.mul_(-group["beta"]).sub_(group["lr"]).unbind())
