"""How long an optimizer remembers: steps until a gradient planted at step 0 no longer moves the weights.

"Nested Learning" (arXiv 2512.24695v1) section 4.3 asks it of momentum, where the gradient i steps ago weighs beta^i:
at 0.9 the weight falls below one percent at step 43.7. Here it is measured, so that it can be asked of any optimizer.

What is measured. Two copies get the same gradients, but at step 0 one gets a planted gradient on top. Gradients are
given, not taken from a loss, and the weights are zero before every step: so what differs is the optimizer's memory
alone. The influence at step n is |difference of the two updates at step n| / |difference at step 0|. For linear
optimizers it does not depend on the other gradients. For all others it does: they are standard normal here ("noise"),
after a warm-up in which running means settle, and the planted one is another of the same size; so for them it is the
memory of one gradient among many of its kind. Everything is float64 and drawn from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from nested.errors import UserError

Background = Literal["noise", "zero"]
MakeOptimizer = Callable[[list[Tensor]], Optimizer]


def influence(
    make_optimizer: MakeOptimizer,
    steps: int = 1000,
    warm_up: int = 200,
    shape: Sequence[int] = (8, 6),
    background: Background = "noise",
    seed: int = 0,
) -> Tensor:
    """Influence of the planted gradient on the updates of steps 0, 1, ..., `steps`, (steps + 1,) float64.

    `make_optimizer` gets a list of one parameter of `shape`, zeros. Raises UserError where the planted gradient moves
    nothing at step 0, so that nothing can be compared with it.
    """
    with_it, without = (_updates(make_optimizer, steps, warm_up, shape, background, seed, p) for p in (True, False))
    sizes = (with_it - without).flatten(1).norm(dim=1)  # (steps + 1,)
    if not (sizes[0] > 0 and sizes.isfinite().all()):
        raise UserError(
            "the planted gradient must move the weights at step 0, by finite steps; choose a rate above 0 at which the "
            "optimizer is stable",
            key="horizon",
            seen=sizes[0].item(),
        )
    return sizes / sizes[0]


def horizon(
    make_optimizer: MakeOptimizer,
    steps: int = 1000,
    warm_up: int = 200,
    shape: Sequence[int] = (8, 6),
    background: Background = "noise",
    seed: int = 0,
    least: float = 0.01,
) -> float | None:
    """The step from which on the influence stays below `least`; None where it is not below by the last step.

    Between the last step above and the first one below it is interpolated, in the logarithm of the influence.
    """
    return crossing(influence(make_optimizer, steps, warm_up, shape, background, seed), least)


def crossing(curve: Tensor, least: float = 0.01) -> float | None:
    """Where an influence curve falls below `least` for good, as in `horizon`."""
    above = (curve >= least).nonzero().flatten()
    if len(above) == 0:
        return 0.0
    last = int(above[-1])
    if last + 1 == len(curve):
        return None
    high, low = curve[last].item(), curve[last + 1].item()
    return last + (math.log(high / least) / math.log(high / low) if low > 0 else 1.0)


def _updates(
    make_optimizer: MakeOptimizer,
    steps: int,
    warm_up: int,
    shape: Sequence[int],
    background: Background,
    seed: int,
    planted: bool,
) -> Tensor:
    """What each step from step 0 on adds to the parameter, (steps + 1, *shape)."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, tuple(shape), dtype=torch.float64, generator=generator)
    extra = draw()
    p = torch.zeros_like(extra, requires_grad=True)
    optimizer = make_optimizer([p])
    updates = []
    for step in range(-warm_up, steps + 1):
        g = draw() if background == "noise" else torch.zeros_like(extra)
        p.grad = g + extra if step == 0 and planted else g
        p.detach().zero_()
        optimizer.step()
        updates.append(p.detach().clone())
    return torch.stack(updates[warm_up:])
