"""How a sample becomes tokens of the model's width, and what the next token is: for token streams and for patches.

Shapes: B batch, T tokens, D width, P values in a patch, N vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nested.errors import UserError
from nested.layers.linear import Linear
from nested.layers.patches import Patches


class Tokens(nn.Module):
    """Learned embedding of integers 0 to N - 1; no positions (what needs them brings its own)."""

    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)

    def pieces(self, x: Tensor) -> Tensor:
        """(B, T) int64, as they are."""
        return x

    def embed(self, pieces: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D)."""
        return self.embedding(pieces)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D)."""
        return self.embed(x)


def entry(sample_shape: tuple[int, ...], vocabulary: int | None, patch: int | None, width: int) -> Tokens | Patches:
    """The first layer: samples (B, *S) -> (B, T, D). Raises UserError for a patch on a stream of tokens."""
    if vocabulary is None:
        return Patches(sample_shape, patch, width)
    if patch is not None:
        text = "this stream's samples are tokens already; leave it null"
        raise UserError(text, key="model.patch", seen=patch, allowed=[None])
    return Tokens(vocabulary, width)


class NextToken(nn.Module):
    """What a token level learns from where the task's labels are not in the sequence: predict the next token.

    Cross entropy over the vocabulary for tokens; for patches the squared error, mean over the patch's values.
    """

    def __init__(self, layer: Tokens | Patches, width: int):
        super().__init__()
        self.discrete = isinstance(layer, Tokens)
        size = layer.embedding.num_embeddings if isinstance(layer, Tokens) else layer.project.in_features
        self.predict = Linear(width, size)

    def forward(self, h: Tensor, labels: Tensor) -> Tensor:
        """Features (B, T, D), next tokens (B, T) or patches (B, T, P) -> loss of each, (B, T)."""
        predicted = self.predict(h)
        if self.discrete:
            return F.cross_entropy(predicted.mT, labels, reduction="none")
        return (predicted - labels).square().mean(-1)
