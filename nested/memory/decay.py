"""The step of a token and how much of the past it leaves, as Mamba-2 and Gated DeltaNet have them.

"Transformers are SSMs" (arXiv 2405.21060): a state that falls at the rate A for a time dt keeps exp(-A dt) of itself.
Both A > 0 and dt > 0 belong to a head; dt is the token's own. They start spread out, so that some heads remember for
ten tokens and some for a thousand: A uniform in 1 to 16, dt log-uniform in 0.001 to 0.1.

Shapes: B batch, T tokens, D width, H heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nested.precision import wide

RATES, STEPS = (1.0, 16.0), (1e-3, 1e-1)


class Decay(nn.Module):
    """dt = softplus(W x + b) of each token and head, and the share exp(-A dt) of the state that it keeps."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.project = nn.Linear(width, heads, bias=False)
        self.log_rate = nn.Parameter(torch.empty(heads).uniform_(*RATES).log())
        step = torch.empty(heads).uniform_(*map(math.log, STEPS)).exp()
        self.bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D) -> dt > 0 and the kept share in 0 to 1, both (B, H, T), at least float32."""
        step = F.softplus(wide(self.project(x)) + wide(self.bias)).mT
        return step, torch.exp(-wide(self.log_rate).exp().unsqueeze(-1) * step)
