"""Heads as associative memories: features in, outputs out, each with its own objective, context and update frequency.

"Nested Learning" (arXiv 2512.24695v1) reads every linear layer as an associative memory that compresses its own context
(section 3); here the context of the last layer is the stream of its features, and the memory is written, not trained by
backpropagation. The rules, for a key h, a target y and a memory W that reads W h:

- `hebb`          W + eta y h^T, the gradient step on -<W h, y>;
- `delta`         W - eta (W h - y) h^T, the gradient step on |W h - y|^2 / 2;
- `dgd`           Eq. 57 with that objective: W (I - eta' h h^T) - eta' (W h - y) h^T;
- `own_class`     delta, in which only the row of the true class learns: other classes are not pushed to zero;
- `class_means`   the nearest class mean: no objective but the mean of each class's keys;
- `least_squares` the exact minimiser of sum |W h - y|^2 + ridge |W|^2 over all that was written: the bound.

Departures: eta' = eta / (1 + eta |h|^2), the exact solution of Eq. 56, where Eq. 57 prints eta / (1 + eta), exact for
unit keys only. Under `dgd` with this objective W h goes to y / 2, since retention and gradient both erase: classes are
ranked alike, numbers are not. Least squares keeps the two sums that determine it, in place of the inverse that
recursive least squares updates: the same solution after every sample, whatever the order and the batches.

Writes are one sample after another, exactly: a batch of N is N single writes. A rule in which sample i corrects what is
left of its error after those before it is a triangular system of N unknowns, so no loop over samples is needed.

Shapes: N samples, D width of a key, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = Literal["hebb", "delta", "dgd", "own_class", "class_means", "least_squares"]
State = dict[str, Tensor]

CONSTANT = 0.3  # the key's last entry, beside features of norm 1: what a bias is to a linear layer


# -- keys --------------------------------------------------------------------------------------------------------------


class Whitening(NamedTuple):
    """Keys are centred by `mean` (D,) and turned and scaled by `matrix` (D, D)."""

    mean: Tensor
    matrix: Tensor


def keys(features: Tensor, whitening: Whitening | None = None) -> Tensor:
    """features (N, D - 1) -> keys (N, D) of norm 1, float64: the direction of the features and a constant, whitened."""
    h = F.pad(F.normalize(features.double(), dim=1), (0, 1), value=CONSTANT)
    return F.normalize(h if whitening is None else whiten(h, whitening), dim=1)


def whiten(h: Tensor, whitening: Whitening) -> Tensor:
    """h (N, D) -> (N, D), of mean 0 and covariance I where h are the keys that the whitening was made from."""
    return (h - whitening.mean) @ whitening.matrix


def whitening_of(h: Tensor, floor: float = 1e-3) -> Whitening:
    """The whitening that keys h (N, D) ask for: (cov + floor I)^(-1/2).

    `floor` keeps directions in which they hardly vary from being blown up.
    """
    mean = h.mean(0)
    variances, axes = torch.linalg.eigh((h - mean).mT @ (h - mean) / len(h))
    return Whitening(mean, (axes * (variances.clamp(min=0) + floor).rsqrt()) @ axes.mT)


# -- rules that keep the weights ---------------------------------------------------------------------------------------


def hebb(weight: Tensor, h: Tensor, y: Tensor, eta: float) -> Tensor:
    """weight (C, D), keys h (N, D), targets y (N, C) -> weight (C, D) after N writes."""
    return weight + eta * y.mT @ h


def delta(weight: Tensor, h: Tensor, y: Tensor, eta: float) -> Tensor:
    """As `hebb`; for each sample in order W - eta (W h - y) h^T."""
    return _in_order(weight, h, y, h.new_full((len(h),), eta))


def dgd(weight: Tensor, h: Tensor, y: Tensor, eta: float) -> Tensor:
    """As `hebb`; for each sample in order Eq. 57, with eta' = eta / (1 + eta |h|^2)."""
    return _in_order(weight, h, y, eta / (1 + eta * h.square().sum(1)), erase=2.0)


def own_class(weight: Tensor, h: Tensor, y: Tensor, eta: float) -> Tensor:
    """As `delta`, but y (N, C) is one-hot and only that row of the weight learns."""
    return _in_order(weight, h, y, h.new_full((len(h),), eta), own=True)


def _in_order(weight: Tensor, h: Tensor, y: Tensor, rate: Tensor, erase: float = 1.0, own: bool = False) -> Tensor:
    """W + rate_i (y_i - erase W h_i) h_i^T for i = 1 to N, each with the W that the one before it left.

    The errors e_i = y_i - erase W_0 h_i - erase sum_{j < i} rate_j <h_j, h_i> e_j are one triangular system.
    """
    overlap = (h @ h.mT).tril(-1) * rate  # (N, N)
    error = y - erase * h @ weight.mT  # (N, C)
    if own:
        overlap, error = overlap * (y @ y.mT), error * y
    error = torch.linalg.solve_triangular(erase * overlap, error, upper=False, unitriangular=True)
    return weight + (rate.unsqueeze(1) * error).mT @ h


STEPS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "hebb": hebb,
    "delta": delta,
    "dgd": dgd,
    "own_class": own_class,
}


# -- rules that keep sums ----------------------------------------------------------------------------------------------


def class_means(cross: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of keys (C, D) and numbers of samples (C,) -> weight (C, D) and bias (C,) that rank the nearest mean first.

    -|h - m|^2 / 2 without the part that all classes share; a class without samples is at minus infinity.
    """
    means = cross / counts.clamp(min=1).unsqueeze(1)
    return means, (means.square().sum(1) / -2).masked_fill(counts == 0, -torch.inf)


def least_squares(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """gram H^T H (D, D), cross Y^T H (C, D) -> weight (C, D) = Y^T H (H^T H + ridge I)^-1."""
    system = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(cross.mT, torch.linalg.cholesky(system)).mT


# -- one memory of any rule --------------------------------------------------------------------------------------------


def empty(rule: Rule, width: int, n_outputs: int, device: torch.device | None = None) -> State:
    """A memory of keys of this width before its first write; float64, since it sums over streams of any length."""
    shapes: dict[str, tuple[int, ...]] = {"weight": (n_outputs, width)}
    if rule not in STEPS:
        extra = {"counts": (n_outputs,)} if rule == "class_means" else {"gram": (width, width)}
        shapes = {"cross": (n_outputs, width), **extra}
    return {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}


def write(rule: Rule, state: State, h: Tensor, y: Tensor, eta: float) -> State:
    """The memory after keys h (N, D) with targets y (N, C), one after another; `state` is left as it is."""
    if rule in STEPS:
        return {"weight": STEPS[rule](state["weight"], h, y, eta)}
    cross = state["cross"] + y.mT @ h
    if rule == "class_means":
        return {"cross": cross, "counts": state["counts"] + y.sum(0)}
    return {"cross": cross, "gram": state["gram"] + h.mT @ h}


def linear(rule: Rule, state: State, ridge: float) -> tuple[Tensor, Tensor]:
    """weight (C, D) and bias (C,) with which the memory reads a key h: W h + b."""
    if rule == "class_means":
        return class_means(state["cross"], state["counts"])
    weight = state["weight"] if rule in STEPS else least_squares(state["gram"], state["cross"], ridge)
    return weight, weight.new_zeros(len(weight))
