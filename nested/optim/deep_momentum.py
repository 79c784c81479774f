"""Deep momentum (DMGD): the momentum is a small network that learns from the gradients it sees.

"Nested Learning" (arXiv 2512.24695v1) Eq. 50 and, with a nonlinearity sigma on what is read, Eq. 52:
    m <- alpha m - eta grad_m L2(m; u)        W <- W + sigma(m(u))        u = grad L(W)
The paper leaves the network and L2 open ("to be designed carefully") and prints L2 = <m(u), 1>. What is done here:
- a gradient (O, I) is read as n tokens of width d, n its larger side and d its smaller one, and each tensor has one
  memory that acts on tokens: linear, m(u) = A u, or two layers, m(u) = B tanh(C u) / sqrt(h). So a memory is never
  larger than its parameter by more than a constant, whatever its shape; vectors and scalars are tokens of width 1.
  tanh and no biases make m odd: the opposite gradients give the opposite steps.
- tokens and targets are divided by the root mean square of the token norms: the memory learns the same from
  gradients of any size. The size comes back with the read: in "identity" the step is lr |u| m(u / |u|), in "unit" it
  has the length lr |u| whatever the memory says, in "newton_schulz" it is orthogonalised as in Muon, without the size.
- lr multiplies what is read, `memory_lr` is the eta of Eq. 50: a network is not linear in its rate.
- L2 is "dot", the mean over tokens of <m(u), u>, which for the linear memory is A <- alpha A - eta mean(u u^T): past
  gradients, weighed by how much they resemble the present one; or "l2", the mean of |m(u) + u|^2 / 2, which corrects
  what the memory already says.
- alpha decays towards the start of the memory, which is 0 for A and B, as printed. C must start elsewhere, for at
  B = C = 0 nothing is ever learned; decaying to 0, it would end there.
The paper says that a linear m with Newton-Schulz is Muon. That holds where m(u) is read as m itself (Eq. 33): read as
a function of u, as Eq. 50 has it, it is Muon's direction only for the first step.

Shapes: O rows, I columns, n tokens, d their width, h hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from nested.config import Bound
from nested.errors import UserError
from nested.optim.newton_schulz import orthogonalised
from nested.optim.rule import Rule
from nested.precision import wide_dtype

Memory = Literal["linear", "mlp"]
Objective = Literal["dot", "l2"]
Output = Literal["identity", "unit", "newton_schulz"]
LEAST = 1e-12  # a gradient of a smaller root mean square token norm counts as zero


def matrix(g: Tensor) -> Tensor:
    """(O, ...) -> (O, rest); a vector is a matrix of one column, and so is a scalar."""
    return g.flatten(1) if g.ndim >= 2 else g.reshape(-1, 1)


def tokens(g: Tensor) -> Tensor:
    """(O, ...) -> (n, d), n >= d: the larger side of the matrix (O, rest) as tokens; a vector's values are tokens."""
    rows = matrix(g)  # (O, I)
    return rows if rows.shape[0] >= rows.shape[1] else rows.mT


def as_gradient(y: Tensor, g: Tensor) -> Tensor:
    """`tokens` backwards: (n, d) in the shape of g."""
    rows = matrix(g)
    return (y if rows.shape[0] >= rows.shape[1] else y.mT).reshape(g.shape)


def start_memory(n: int, d: int, kind: Memory, hidden: int, seed: int) -> list[Tensor]:
    """[A (d, d)], or [B (d, h), C (h, d)] with h = min(hidden, n) and C standard normal, the same for the same seed."""
    if kind == "linear":
        return [torch.zeros(d, d)]
    h = min(hidden, n)
    return [torch.zeros(d, h), torch.randn(h, d, generator=torch.Generator().manual_seed(seed))]


def read(memory: list[Tensor], u: Tensor) -> Tensor:
    """m(u), (n, d) -> (n, d)."""
    if len(memory) == 1:
        return u @ memory[0].mT
    b, c = memory
    return torch.tanh(u @ c.mT) @ b.mT / c.shape[0] ** 0.5


def loss(memory: list[Tensor], u: Tensor, objective: Objective) -> Tensor:
    """L2: the mean over tokens of <m(u), u>, or of |m(u) + u|^2 / 2."""
    y = read(memory, u)
    return ((y * u).sum() if objective == "dot" else (y + u).square().sum() / 2) / len(u)


def gradients(memory: list[Tensor], u: Tensor, objective: Objective) -> list[Tensor]:
    """The gradients of `loss` with respect to each tensor of the memory, by hand."""
    if len(memory) == 1:
        error = (u if objective == "dot" else u @ memory[0].mT + u) / len(u)  # (n, d)
        return [error.mT @ u]
    b, c = memory
    root = c.shape[0] ** 0.5
    a = torch.tanh(u @ c.mT)  # (n, h)
    error = (u if objective == "dot" else a @ b.mT / root + u) / (len(u) * root)  # (n, d)
    return [error.mT @ a, ((error @ b) * (1 - a * a)).mT @ u]


def shaped(y: Tensor, size: Tensor, output: Output, g: Tensor) -> Tensor:
    """sigma: what the memory says, (n, d), as a step in the shape of g; `size` is the token norm of g."""
    if output == "identity":
        return as_gradient(y * size, g)
    if output == "unit":
        return as_gradient(y * (size * len(y) ** 0.5 / (torch.linalg.vector_norm(y) + LEAST)), g)
    rows, columns = matrix(g).shape
    return as_gradient(orthogonalised(y).to(g.dtype), g) * max(1.0, rows / max(1, columns)) ** 0.5


def deep_momentum(
    memory: list[Tensor],
    starts: Sequence[Tensor | None],
    g: Tensor,
    lr: float,
    momentum: float,
    memory_lr: float,
    objective: Objective = "l2",
    output: Output = "unit",
) -> tuple[list[Tensor], Tensor]:
    """The next memory, learned from g before it is read, and the step that it says, shaped as g.

    `starts` are what the memory decays towards, None for zeros.
    """
    u = tokens(g)
    size = torch.linalg.vector_norm(u) / max(1, len(u)) ** 0.5  # (), root mean square of the token norms
    u = torch.where(size > LEAST, u / size, 0)
    learned = [
        (momentum * w if start is None else start + momentum * (w - start)) - memory_lr * grad
        for w, start, grad in zip(memory, starts, gradients(memory, u, objective))
    ]
    return learned, lr * shaped(read(learned, u), size, output, g)


class DeepMomentum(Rule):
    """SGD whose momentum is a small network that learns from gradients (DMGD, "Nested Learning" Eq. 50 and 52).

    With a linear memory, "dot" and "identity" the step is lr A g, A <- alpha A - eta mean(u u^T) over the tokens u of
    the gradient g; with "newton_schulz" that is orthogonalised, in bfloat16 unless the state is float64. `hidden` is at
    most the number of tokens; `seed` draws the first weights, so a run repeats exactly. With "l2" the error of what is
    read shrinks by momentum - memory_lr at the worst, which must lie above -1. Raises UserError for values outside
    their bounds.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Annotated[float, Bound(ge=0)] = 0.05,
        momentum: Annotated[float, Bound(ge=0, le=1)] = 0.9,
        memory_lr: Annotated[float, Bound(gt=0)] = 0.5,
        memory: Memory = "mlp",
        hidden: Annotated[int, Bound(ge=1)] = 32,
        objective: Objective = "l2",
        output: Output = "unit",
        seed: int = 0,
        weight_decay: Annotated[float, Bound(ge=0)] = 0.0,
    ):
        given = {"lr": lr, "momentum": momentum, "memory_lr": memory_lr, "memory": memory, "hidden": hidden}
        last = {"objective": objective, "output": output, "seed": seed, "weight_decay": weight_decay}
        super().__init__(params, {**given, **last})

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        n, d = tokens(p).shape
        weights = start_memory(n, d, group["memory"], group["hidden"], group["seed"])
        weights = [w.to(p.device, wide_dtype(p.dtype)) for w in weights]
        if len(weights) == 1:
            return {"weights": weights[0]}
        return {"output_weights": weights[0], "input_weights": weights[1], "input_start": weights[1].clone()}

    def update(
        self, params: list[Tensor], gs: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        names = ("lr", "momentum", "memory_lr", "objective", "output")
        rule = {name: group[name] for name in names}
        for p, g, state in zip(params, gs, states):
            linear = "weights" in state
            memory = [state["weights"]] if linear else [state["output_weights"], state["input_weights"]]
            starts = [None] if linear else [None, state["input_start"]]
            learned, step = deep_momentum(memory, starts, g, **rule)
            for held, new in zip(memory, learned):
                held.copy_(new)
            p.add_(step)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        eta, bound = group["memory_lr"], 1 + group["momentum"]
        if group["objective"] == "l2" and eta >= bound:
            raise UserError(
                f"{eta} is not allowed with momentum {group['momentum']}: the memory would overshoot more at every "
                f'step; below 1 + momentum = {bound:g} is, or objective "dot"',
                key="optim.memory_lr",
                seen=eta,
            )
