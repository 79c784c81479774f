"""A small transformer over patches: the baseline every memory is compared with.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from torch import Tensor, nn

from nested.config import Bound
from nested.layers.attention import Attention
from nested.layers.feedforward import FeedForward
from nested.layers.patches import Patches

Size = Annotated[int, Bound(ge=1)]


class Encoder(nn.Module):
    """Patches, blocks, norm, mean over tokens, linear head; `make_block` makes a block (B, T, D) -> (B, T, D)."""

    def __init__(self, patches: Patches, make_block: Callable[[], nn.Module], depth: int, width: int, n_outputs: int):
        super().__init__()
        self.patches = patches
        self.blocks = nn.ModuleList(make_block() for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, *sample_shape) -> (B, n_outputs)."""
        x = self.patches(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Block(nn.Module):
    """Attention, then an MLP, both residual and pre-norm."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.attention = Attention(width, heads)
        self.mlp = FeedForward(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.attention(x))


class Transformer(Encoder):
    """Pre-norm transformer over image patches (or equal pieces of a flat vector), the baseline of hope_attention."""

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        n_outputs: int,
        width: Size = 48,
        depth: Size = 2,
        heads: Size = 4,
        hidden: Size = 96,
        patch: Size | None = None,
    ):
        patches = Patches(sample_shape, patch, width)
        super().__init__(patches, lambda: Block(width, heads, hidden), depth, width, n_outputs)
