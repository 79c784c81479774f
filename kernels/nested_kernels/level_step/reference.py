"""The next momentum of one tensor, as it is printed, and a step of all levels as a loop over tensors.

"Nested Learning" (arXiv 2512.24695v1) Eq. 48-49 with P = I, gathering as in Eq. 71:
    G <- G + grad
and at every boundary of the level, with what weight decay adds to the mean or sum of the gradients,
    g = scale G + decay W        m <- m (alpha I - beta u^T u) - eta g        W <- W + m        G <- 0

Shapes: m and g are (O, I) matrices, or tensors of any shape which the vector form reads as one vector of N values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nested_kernels.level_step.rule import Form, LevelRule, Shape, state_dtype


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


def level_step_reference(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    gathered: Sequence[Tensor | None],
    levels: Sequence[int],
    rules: Sequence[LevelRule],
    due: Sequence[bool],
) -> None:
    """As `level_step`, tensor by tensor."""
    for p, grad, m, held, level in zip(params, grads, momenta, gathered, levels, strict=True):
        rule, total = rules[level], grad.to(state_dtype(p.dtype))
        total = total if held is None else held + total
        if due[level]:
            g = rule.scale * total + rule.weight_decay * p.to(total.dtype)
            m.copy_(delta_momentum(m, g, rule.lr, rule.momentum, rule.beta, rule.form, rule.shape, rule.eps))
            p.add_(m)
        if held is not None:
            held.copy_(torch.zeros_like(held) if due[level] else total)
