"""Muon for matrices, AdamW for everything else, as one optimizer; torch's Muon refuses what is no matrix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from torch import Tensor

from nested.config import Bound
from nested.optim.matrix_rule import MatrixRule, follow

Rate = Annotated[float, Bound(ge=0)]


class Muon(MatrixRule):
    """Muon (orthogonalised momentum) for parameters of two dimensions, AdamW at `adamw_lr` for all others.

    Two parameter groups, matrices first, each with a rate of its own. `weight_decay` is decoupled and shared. The rules
    are `torch.optim.Muon` and `torch.optim.AdamW`; all arguments not named here keep torch's defaults. Raises UserError
    for a value outside these ranges, in any group.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Rate = 0.02,
        momentum: Annotated[float, Bound(ge=0, lt=1)] = 0.95,
        nesterov: bool = True,
        weight_decay: Rate = 0.0,
        adamw_lr: Rate = 1e-3,
    ):
        given = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, torch.optim.Muon([torch.zeros(0, 0)]).defaults | given | {"adamw_lr": adamw_lr})

    def serves(self, p: Tensor) -> bool:
        return p.ndim == 2 and p.numel() > 0  # torch's Muon divides by the number of columns

    def step_matrices(self, group: dict[str, Any]) -> None:
        follow(torch.optim.Muon, group, self.state)
