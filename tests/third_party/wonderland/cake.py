"""An optimizer: every bite has the same size."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from torch import Tensor

from nested.config import Bound


class Cake(torch.optim.Optimizer):
    """Move every weight by `lr` against the sign of its gradient."""

    def __init__(self, params: Iterable[Tensor], lr: Annotated[float, Bound(gt=0)] = 0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])
