"""Two small problems for optimizers, from "Nested Learning" (arXiv 2512.24695v1): Eq. 45 and Eq. 53.

Eq. 45, tasks one after another whose gradients are orthogonal: L_i(W) = E |W^T x - y|^2 over the data of task i. Here
the data of task i is one unit input u_i, the u_i are orthonormal and point anywhere, and y_i is drawn at random: so the
gradients of task i are u_i times something, and a step along one task's gradients leaves every other task as it was.
What a momentum still holds of an old task when the next begins can then be seen, and what that costs too.

Eq. 53, a valley whose floor is curved: psi(r, theta) = r^2 + k (r - theta + alpha sin(omega r))^2, from (-3.5, 2). The
paper gives no k, alpha and omega. Here k = 10 (the walls are ten times as steep as the floor), alpha = 1, omega = 2:
on the way from r = -3.5 to the minimum at (0, 0) the floor turns back twice.

Shapes: D width, O outputs, K tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

START = (-3.5, 2.0)


@dataclass(frozen=True)
class OrthogonalTasks:
    """`inputs` (K, D) orthonormal rows, `targets` (K, O), float64."""

    inputs: Tensor
    targets: Tensor

    def loss(self, w: Tensor, task: int) -> Tensor:
        """L_i of Eq. 45 for w (D, O): a scalar."""
        return (w.mT @ self.inputs[task] - self.targets[task]).square().sum()


def orthogonal_tasks(n_tasks: int = 4, width: int = 8, outputs: int = 3, seed: int = 0) -> OrthogonalTasks:
    """Tasks drawn from the seed. Raises ValueError for more tasks than there are directions."""
    if n_tasks > width:
        raise ValueError(f"{n_tasks} orthogonal tasks need a width of at least {n_tasks}; it is {width}")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator)).Q
    return OrthogonalTasks(
        directions[:n_tasks], torch.randn(n_tasks, outputs, dtype=torch.float64, generator=generator)
    )


def valley(point: Tensor, k: float = 10.0, alpha: float = 1.0, omega: float = 2.0) -> Tensor:
    """psi of Eq. 53 at `point` (..., 2), r and theta: (...)."""
    r, theta = point.unbind(-1)
    return r.square() + k * (r - theta + alpha * torch.sin(omega * r)).square()
