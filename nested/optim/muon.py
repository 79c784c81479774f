"""Muon for matrices, AdamW for everything else, as one optimizer; torch's Muon refuses what is no matrix."""

# torch's foreach functions are public in all but name
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any

import torch
from nested_kernels.newton_schulz import newton_schulz_each
from torch import Tensor

from nested.config import Bound
from nested.optim.matrix_rule import MatrixRule, follow

Rate = Annotated[float, Bound(ge=0)]


class Muon(MatrixRule):
    """Muon (orthogonalised momentum) for parameters of two dimensions, AdamW at `adamw_lr` for all others.

    Two parameter groups, matrices first, each with a rate of its own. `weight_decay` is decoupled and shared. The rules
    are `torch.optim.Muon` and `torch.optim.AdamW`; all arguments not named here keep torch's defaults. On a device
    matrices of one shape are orthogonalised in one batch, wide ones in the Gram form; on a CPU torch's Muon steps.
    Raises UserError for a value outside these ranges, in any group.
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
        if all(p.device.type == "cpu" for p in group["params"]):
            follow(torch.optim.Muon, group, self.state)
        else:
            super().step_matrices(group)

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {"momentum_buffer": torch.zeros_like(p if p.grad is None else p.grad)}

    def update(
        self, params: list[Tensor], gs: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        """torch's Muon for many matrices in few launches."""
        momenta = [state["momentum_buffer"] for state in states]
        gs = [g.to(m.dtype) for g, m in zip(gs, momenta)]
        torch._foreach_lerp_(momenta, gs, 1 - group["momentum"])
        found = torch._foreach_lerp(gs, momenta, group["momentum"]) if group["nesterov"] else momenta
        matrices = [x.bfloat16() for x in found]
        directions = newton_schulz_each(matrices, group["ns_steps"], group["ns_coefficients"])
        for p, direction in zip(params, directions):
            p.add_(direction, alpha=-group["lr"] * math.sqrt(max(1, len(p) / p.shape[1])))
