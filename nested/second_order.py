"""A numeric guard: is the outer gradient of a model that learns while it reads the one through its updates?

Code compiled around `torch.autograd.grad(..., create_graph=True)` can return the first-order gradient, as if updates
were constants, with equal losses and without an error. `inner.read` is never compiled, so it cannot happen there;
whoever compiles or rewrites a reading loop asks this guard before training with it.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nested.errors import UserError
from nested.inner import Mode, Reader, initial_state, read
from nested.levels import Level


def check_outer_gradient(
    losses: Callable[[Tensor], Tensor], model: Reader, levels: Sequence[Level], tokens: Tensor, tolerance: float = 1e-3
) -> None:
    """Compare `losses(tokens (B, T)) -> (B, T - 1)` and its mean's gradient with what `read` gives for `model`.

    Raises UserError where either differs by more than `tolerance` (relative norm, over all parameters), saying so if it
    is the first-order gradient; and where these tokens cannot tell the two apart, for want of two chunks or of a rate.
    """
    params = [p for _, p in model.named_parameters() if p.requires_grad]
    value, exact = _of(read_losses(model, levels, "full"), tokens, params)
    _, first = _of(read_losses(model, levels, "first_order"), tokens, params)
    if (apart := _distance(first, exact)) <= 10 * tolerance:
        text = f"first- and second-order gradients differ by {apart:.1e} only here; take longer tokens or a larger eta"
        raise UserError(text, key="tokens", seen=tuple(tokens.shape))
    seen_value, seen = _of(losses, tokens, params)
    if _distance([seen_value], [value]) > tolerance:
        raise UserError("its losses are not those of the model that it is compared with", key="losses")
    if (off := _distance(seen, exact)) > tolerance:
        text = f"its outer gradient is off by {off:.1e} (allowed: {tolerance:.0e})"
        if _distance(seen, first) < 0.1 * off:
            text = "its outer gradient is the first-order one: no gradient passes the updates, although none is cut"
        raise UserError(f"{text}; do not compile around the inner gradient", key="losses", seen=off, allowed=tolerance)


def read_losses(model: Reader, levels: Sequence[Level], mode: Mode) -> Callable[[Tensor], Tensor]:
    """Tokens (B, T) -> their losses (B, T - 1) as `read` computes them."""
    return lambda tokens: read(model, levels, initial_state(model, levels, len(tokens)), tokens, mode)[0]


def _of(losses: Callable[[Tensor], Tensor], tokens: Tensor, params: list[Any]) -> tuple[Tensor, list[Tensor]]:
    found = losses(tokens)
    grads = torch.autograd.grad(found.mean(), params, allow_unused=True)
    return found.detach(), [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads)]


def _distance(seen: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm of what is wanted."""
    off = sum(float((a - b).double().square().sum()) for a, b in zip(seen, wanted))
    return (off / max(sum(float(b.double().square().sum()) for b in wanted), 1e-300)) ** 0.5
