"""A step of all levels in torch, in place: the vector form in few passes, the matrix form by batched products.

On a CPU tensor by tensor, all passes over one while it is in the cache. Elsewhere launches count: `foreach` functions
for all vectors at once, and one batched product for all matrices of a shape, which cuBLAS does better than a kernel of
ours. In the vector form m and g meet only in scalars, |g|^2 and <g, m>.

Shapes: O rows, I columns; vectors of any shape.
"""

# torch's foreach functions are public in all but name
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nested_kernels.alike import alike
from nested_kernels.level_step.reference import delta_momentum
from nested_kernels.level_step.rule import LevelRule, state_dtype


def level_step_chunked(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    gathered: Sequence[Tensor | None],
    levels: Sequence[int],
    rules: Sequence[LevelRule],
    due: Sequence[bool],
) -> None:
    """As `level_step`."""
    for i, held in enumerate(gathered):
        if held is not None:
            held.add_(grads[i])
    for same in alike((level, state_dtype(p.dtype), p.device) for level, p in zip(levels, params)):
        rule = rules[levels[same[0]]]
        if not due[levels[same[0]]]:
            continue
        ps, ms = [params[i] for i in same], [momenta[i] for i in same]
        gs = [_gradient(params[i], held if (held := gathered[i]) is not None else grads[i], rule) for i in same]
        step = {("vector", True): vectors_one_by_one, ("vector", False): vectors_at_once}
        step |= {("matrix", True): matrices_one_by_one, ("matrix", False): matrices_at_once}
        step[rule.shape, ps[0].device.type == "cpu"](ps, gs, ms, rule)
        for i in same:
            if (held := gathered[i]) is not None:
                held.zero_()


def _gradient(p: Tensor, total: Tensor, rule: LevelRule) -> Tensor:
    """In the state's precision, scaled, and with what weight decay adds."""
    g = total.to(state_dtype(p.dtype))
    if rule.scale != 1:
        g = g * rule.scale
    return g.add(p, alpha=rule.weight_decay) if rule.weight_decay else g


def matrices_one_by_one(params: list[Tensor], gs: list[Tensor], ms: list[Tensor], rule: LevelRule) -> None:
    """`delta_momentum`; tensors of fewer than two dimensions take the vector form."""
    for p, g, m in zip(params, gs, ms):
        m.copy_(_next(rule)(m, g))
        p.add_(m)


def matrices_at_once(params: list[Tensor], gs: list[Tensor], ms: list[Tensor], rule: LevelRule) -> None:
    """The same, matrices of one shape stacked."""
    for same in alike(g.shape for g in gs):
        stacks = (torch.stack([xs[i] for i in same]) for xs in (ms, gs))  # (B, O, ...) each
        found = torch.vmap(_next(rule))(*stacks).unbind()
        torch._foreach_copy_([ms[i] for i in same], found)
        torch._foreach_add_([params[i] for i in same], found)


def _next(rule: LevelRule) -> Callable[[Tensor, Tensor], Tensor]:
    names = ("lr", "momentum", "beta", "form", "shape", "eps")
    return partial(delta_momentum, **{name: getattr(rule, name) for name in names})


def vectors_one_by_one(params: list[Tensor], gs: list[Tensor], ms: list[Tensor], rule: LevelRule) -> None:
    """`delta_momentum` in the vector form."""
    for p, g, m in zip(params, gs, ms):
        flat = g.reshape(-1)
        square = torch.dot(flat, flat).item()
        held = 0.0 if rule.form == "printed" else torch.dot(flat, m.view(-1)).item()
        keep, write = coefficients(square, square**0.5, held, rule)
        p.add_(m.mul_(keep).add_(g, alpha=write))


def vectors_at_once(params: list[Tensor], gs: list[Tensor], ms: list[Tensor], rule: LevelRule) -> None:
    """The same in few launches for many tensors, and without waiting for the device."""
    norms = torch.stack(torch._foreach_norm(gs))  # (tensors,)
    dots = torch.stack([torch.dot(g.reshape(-1), m.view(-1)) for g, m in zip(gs, ms)])  # (tensors,)
    keep, write = coefficients(norms.square(), norms, dots, rule)
    torch._foreach_mul_(ms, list(keep.unbind()) if isinstance(keep, Tensor) else keep)
    if isinstance(write, Tensor):
        torch._foreach_addcmul_(ms, gs, write.unbind())
    else:
        torch._foreach_add_(ms, gs, alpha=write)
    torch._foreach_add_(params, ms)


def coefficients(square: Any, norm: Any, held: Any, rule: LevelRule) -> tuple[Any, Any]:
    """(a, b) of m <- a m + b g, from |g|^2, |g| and <g, m>."""
    if rule.form == "printed":
        return rule.momentum - rule.beta * square, -rule.lr
    return rule.momentum, -rule.lr - rule.beta * held / (norm + rule.eps) ** 2
