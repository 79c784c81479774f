"""Hope-Attention: a transformer with a Continuum Memory System in place of each MLP (arXiv 2512.24695v1, section 8.3).

Level l of block b is `blocks.<b>.continuum.<l>.*`; level 0, nearest the attention, is meant as the fastest.

Shapes: B batch, T tokens, D width, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nested.errors import UserError
from nested.layers.attention import Attention
from nested.layers.continuum import Continuum, hidden_widths
from nested.layers.patches import Patches
from nested.models.transformer import Encoder, Size, Transformer

TOLERANCE = 0.02  # of the baseline's parameters


class HopeBlock(nn.Module):
    """Attention, then the chain of levels."""

    def __init__(self, width: int, heads: int, hiddens: tuple[int, ...]):
        super().__init__()
        self.attention = Attention(width, heads)
        self.continuum = Continuum(width, hiddens)

    def forward(self, x: Tensor) -> Tensor:
        return self.continuum(self.attention(x))


class HopeAttention(Encoder):
    """Transformer whose MLPs are chains of levels for different update frequencies, at the baseline's parameter count.

    `width`, `depth`, `heads`, `hidden` and `patch` are those of the transformer it is compared with; `hidden` is shared
    out among the levels. With one level it is that transformer. Raises UserError when the counts differ by more than
    2 percent.
    """

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        n_outputs: int,
        width: Size = 48,
        depth: Size = 2,
        heads: Size = 4,
        hidden: Size = 96,
        n_levels: Size = 3,
        patch: Size | None = None,
    ):
        patches = Patches(sample_shape, patch, width)
        hiddens = hidden_widths(width, hidden, n_levels)
        super().__init__(patches, lambda: HopeBlock(width, heads, hiddens), depth, width, n_outputs)
        with torch.device("meta"):
            baseline = Transformer(sample_shape, n_outputs, width, depth, heads, hidden, patch)
        _check_match(_count(self), _count(baseline))


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _check_match(ours: int, baseline: int) -> None:
    if abs(ours - baseline) > TOLERANCE * baseline:
        raise UserError(
            f"hope_attention has {ours} parameters and the transformer of the same arguments {baseline}: "
            f"they differ by more than {TOLERANCE:.0%}; choose a larger model.hidden or fewer levels",
            key="model",
            seen=ours,
            allowed=baseline,
        )
