"""Newton-Schulz on the m x m matrix A = X X^T, for matrices that are much wider than high.

Every step multiplies X from the left by a polynomial of A, P = a I + H with H = b A + c A^2, after which A is P A P. So
a run of steps needs X only at its two ends:
    A = X X^T;    for each step:  Q <- P Q,  A <- P A P;    X <- Q X
All these are polynomials of one symmetric matrix and commute. A run must be short: rounding makes small eigenvalues of
A negative, which P drives away from 0 where it should drive them to 1. The first run has two steps, after which no
singular value is as small as it was, and the others have at most three.

Five steps take 8 m^2 n + 28 m^3 operations instead of 20 m^2 n + 10 m^3: fewer where n > 1.5 m.

Shapes: B any leading dimensions, O rows, I columns, m the smaller of O and I, n the larger.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nested_kernels.newton_schulz.reference import Coefficients, added, normalised, shaped

FIRST_RUN, LONGEST_RUN = 2, 3


def newton_schulz_gram(g: Tensor, steps: int, coefficients: Coefficients) -> Tensor:
    """As `newton_schulz`."""
    a, b, c = coefficients
    x = normalised(g)
    add = added(x)
    scaled = a * torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)  # (m, m)
    for length in runs(steps):
        gram, product = x @ x.mT, scaled  # (B, m, m)
        for step in range(length):
            h = add(gram, gram, gram, beta=b, alpha=c)
            product = scaled + h if step == 0 else add(product, h, product, beta=a)
            if step + 1 < length:
                half = add(gram, h, gram, beta=a)
                gram = add(half, half, h, beta=a)
        x = product @ x
    return shaped(x, g)


def runs(steps: int) -> Iterator[int]:
    """The lengths of runs: 2, 3, 3, ..., as long as there are steps."""
    longest = FIRST_RUN
    while steps > 0:
        yield min(steps, longest)
        steps, longest = steps - longest, LONGEST_RUN
