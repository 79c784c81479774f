"""Newton-Schulz as one function: arguments checked, a form chosen; and for many matrices in few launches.

Plain torch, by choice: all of it is products of matrices, which cuBLAS does at the chip's speed (kernels/README.md).
Order of differentiation: any; compiled code has one, and refuses a backward pass that keeps its graph (`orders.py`).

Shapes: B any leading dimensions, O rows, I columns, m the smaller of O and I, n the larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor

from nested_kernels.alike import alike
from nested_kernels.arguments import check_device, check_floating, check_length, check_tensor
from nested_kernels.backend import chosen
from nested_kernels.newton_schulz.gram import newton_schulz_gram
from nested_kernels.newton_schulz.reference import QUINTIC, Coefficients, newton_schulz_reference
from nested_kernels.orders import once_if_compiled

Backend = Literal["auto", "reference", "gram"]
WIDE = 3  # n / m from which the Gram form is taken on a device: three quarters of the operations


def newton_schulz(
    g: Tensor, steps: int = 5, coefficients: Coefficients = QUINTIC, *, backend: Backend = "auto"
) -> Tensor:
    """G = U S V^T -> about U V^T, (*B, O, I) both, computed in G's own precision.

    Five steps bring the singular values of a Gaussian matrix with n >= 1.5 m into [0.6, 1.2]; one below |G| / 1000
    stays below 0.5. The size of G makes no difference unless |G| is below 1e-7. A NaN spreads over its matrix.

    `backend` "auto" is the quintic as printed, but on a CUDA device the Gram form where n >= 3 m. Raises ValueError for
    a tensor of fewer than two dimensions or of integers, and for fewer than 0 steps.
    """
    named = chosen("newton_schulz", backend, get_args(Backend))
    _check("g", g, steps, coefficients)
    wide = max(g.shape[-2:]) >= WIDE * min(g.shape[-2:])
    if named == "gram" or (named == "auto" and g.is_cuda and wide):
        return once_if_compiled(newton_schulz_gram(g, steps, coefficients))
    return once_if_compiled(newton_schulz_reference(g, steps, coefficients))


def newton_schulz_each(
    gs: Sequence[Tensor], steps: int = 5, coefficients: Coefficients = QUINTIC, *, backend: Backend = "auto"
) -> list[Tensor]:
    """`newton_schulz` of each matrix (O, I); on a device all of one shape, or its transpose, in one batch.

    On a CPU they are taken one by one, with the bits of `newton_schulz`. Raises ValueError for what is no list, for
    tensors of other than two dimensions or of several devices, and as `newton_schulz`.
    """
    _check_each(gs, steps, coefficients)
    if all(g.device.type == "cpu" for g in gs):
        return [newton_schulz(g, steps, coefficients, backend=backend) for g in gs]
    return stacked(gs, steps, coefficients, backend)


def stacked(gs: Sequence[Tensor], steps: int, coefficients: Coefficients, backend: Backend) -> list[Tensor]:
    """`newton_schulz_each` in batches; results of one batch share memory."""
    wide = [g if g.shape[0] <= g.shape[1] else g.mT for g in gs]  # (m, n) each
    found = list(wide)
    for same in alike((x.shape, x.dtype) for x in wide):
        batch = torch.stack([wide[i] for i in same]) if len(same) > 1 else wide[same[0]]  # (B, m, n), or (m, n)
        solved = newton_schulz(batch, steps, coefficients, backend=backend)
        for i, x in zip(same, solved.unbind() if len(same) > 1 else [solved]):
            found[i] = x
    return [x if x.shape == g.shape else x.mT for x, g in zip(found, gs)]


def _check(name: str, g: Tensor, steps: int, coefficients: Coefficients) -> None:
    check_tensor("newton_schulz", name, g, ("*B", "O", "I"))
    if g.ndim < 2:
        raise ValueError(f"newton_schulz: {name} has shape {tuple(g.shape)}; it needs a matrix, (*B, O, I)")
    check_floating("newton_schulz", name, g)
    check_length("newton_schulz", "steps", steps, 0)
    if not isinstance(coefficients, Sequence) or len(coefficients) != 3:
        raise ValueError(f"newton_schulz: coefficients is {coefficients!r}; three numbers are allowed")
    if strange := [c for c in coefficients if not isinstance(c, float | int) or not -inf < c < inf]:
        raise ValueError(f"newton_schulz: coefficients has {strange[0]!r}; finite numbers are allowed")


def _check_each(gs: Sequence[Tensor], steps: int, coefficients: Coefficients) -> None:
    if not isinstance(gs, Sequence):
        seen = "None" if gs is None else f"a {type(gs).__name__}"
        raise ValueError(f"newton_schulz: gs is {seen}; a list of matrices is needed")
    for i, g in enumerate(gs):
        _check(f"gs[{i}]", g, steps, coefficients)
        if g.ndim > 2:
            raise ValueError(f"newton_schulz: gs[{i}] has shape {tuple(g.shape)}; it needs a matrix, (O, I)")
        check_device("newton_schulz", f"gs[{i}]", g, "gs[0]", gs[0].device)
