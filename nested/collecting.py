"""What a model says of every token of a sequence while its token levels learn from it: the features of all chunks.

Shapes: B batch, T tokens, C tokens of a chunk, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nested.inner import Chunk, Mode, initial_state, read
from nested.levels import Level


class Featured(Protocol):
    """A model read by `inner.read` whose chunk loss is a loss of features."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def prepare(self, tokens: Tensor, carry: Any = None) -> Any:
        """As `inner.Reader.prepare`, with the carry before the first of these tokens."""
        ...

    def features(self, fast: Mapping[str, Tensor], carry: Any, inputs: Any) -> tuple[Tensor, Any]:
        """What `prepare` made of C tokens -> features (B, C, D), and the carry after them."""
        ...

    def token_loss(self, h: Tensor, labels: Tensor) -> Tensor:
        """Features (B, C, D), next tokens (B, C, ...) -> loss of each, (B, C)."""
        ...


def read_features(
    model: Featured,
    levels: Sequence[Level],
    tokens: Tensor,
    mode: Mode = "full",
    truncate: int | None = None,
    step: int | None = None,
) -> Tensor:
    """Features (B, T, D) of tokens (B, T, ...), with weights learned from the chunks before their own."""
    collecting = _Collecting(model)
    start = initial_state(collecting, levels, len(tokens))
    _, state = read(collecting, levels, start, tokens, mode, truncate, step=step)
    assert state.pending is not None, "a token was read"
    carry, closed = state.carry or (None, ())
    h, _ = model.features(state.fast, carry, model.prepare(state.pending, carry))
    return torch.cat([*closed, h], 1)


class _Collecting:
    """The model for `read`, with a carry that also keeps the features of closed chunks."""

    def __init__(self, model: Featured):
        self.model = model
        self.named_parameters = model.named_parameters

    def prepare(self, tokens: Tensor, carry: Any = None) -> Any:
        return self.model.prepare(tokens, carry[0] if carry else None)

    def chunk_loss(self, fast: Mapping[str, Tensor], carry: Any, chunk: Chunk) -> tuple[Tensor, Any]:
        states, closed = carry or (None, ())
        h, states = self.model.features(fast, states, chunk.inputs)
        return self.model.token_loss(h, chunk.labels), (states, (*closed, h))
