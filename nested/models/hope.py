"""HOPE: blocks of a memory that learns while it reads, and a continuum of MLPs ("Nested Learning", arXiv 2512.24695v1,
section 8.3, Eq. 94-97).

The memory is whatever `model.memory` names: self-modifying Titans make it HOPE, softmax attention Hope-Attention, a
delta rule, an LSTM and others its baselines in the same frame and with the same code around them. Levels of the
continuum on the token clock learn within each sequence from the loss of its next token (Eq. 71, `inner.py`).

What the paper leaves open ("we remove the normalization and convolution layers for clarity"), and what is done here:
- block: h = x + memory(convolution(norm(x))), then the chain of residual, pre-norm levels (Eq. 97);
- a depthwise causal convolution of width 4 before each memory, which starts as the identity;
- levels in every block; together they have the parameters of the one MLP they replace;
- a classifier's labels are not in the sequence it reads, so its token levels learn to predict the next token or patch
  with a head of their own, which the outer loss trains through their updates.

Shapes: B batch, T tokens, D width, C tokens of a chunk, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from nested.collecting import read_features
from nested.config import Bound
from nested.errors import UserError
from nested.inner import Chunk, Mode, check_truncate
from nested.layers.continuum import Connection, Continuum, Order, hidden_widths
from nested.layers.convolution import CausalConvolution
from nested.layers.linear import LayerNorm, Linear
from nested.layers.tokens import NextToken, Tokens, entry
from nested.levels import Level, assign_tokens, check_chunks
from nested.memory.contract import ask, check_memory
from nested.memory.state import check_length

Size = Annotated[int, Bound(ge=1)]
States = tuple[Any, ...]  # per block: what convolution and memory hold after the last token


class MemoryBlock(nn.Module):
    """x + memory(convolution(norm(x))), then the chain of levels."""

    memory: Any  # a module that keeps to `nested.memory.contract`

    def __init__(self, width: int, convolution: int, memory: nn.Module, continuum: Continuum):
        super().__init__()
        check_memory(memory)
        self.norm = LayerNorm(width)
        self.convolution = CausalConvolution(width, convolution)
        self.memory = memory
        self.continuum = continuum

    def initial_state(self, batch: int) -> tuple[Any, Any]:
        """What convolution and memory hold before the first token, (B, ...)."""
        return self.convolution.initial_state(batch), self.memory.initial_state(batch)

    def forward(self, x: Tensor, state: tuple[Any, Any]) -> tuple[Tensor, tuple[Any, Any]]:
        """x (B, T, D) and the state before it -> (B, T, D) and the state after it."""
        seen, held = state
        y, seen = self.convolution(self.norm(x), seen)
        y, held = ask(self.memory, y, held)
        return self.continuum(x + y), (seen, held)


class Blocks(nn.ModuleList):
    """Memory blocks one after another."""

    def forward(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """x (B, T, D) and each block's state before it -> (B, T, D) and each block's state after it."""
        after = []
        for block, state in zip(self, states, strict=True):
            x, state = block(x, state)
            after.append(state)
        return x, tuple(after)


class Hope(nn.Module):
    """HOPE: memory blocks and levels over tokens or patches, for one row of outputs per sample or one per token.

    `inner` says how far the outer gradient passes the updates of the token levels (`inner.read`), `inner_loss` what
    these learn from: the next token by a head of their own, or the task itself where that is the next token already (a
    language model). Raises UserError for a memory that does not keep to `nested.memory.contract`, for token levels
    outside the continuum, for `inner` and `inner_loss` without such a level, and for a combination in which the
    next-token head would never learn.
    """

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        n_outputs: int,
        memory: Callable[..., nn.Module],
        vocabulary: int | None = None,
        per_position: bool = False,
        token_levels: tuple[Level, ...] = (),
        width: Size = 48,
        depth: Size = 2,
        heads: Size = 4,
        hidden: Size = 96,
        n_levels: Size = 3,
        connection: Connection = "sequential",
        order: Order = "fast_first",
        convolution: Size = 4,
        patch: Size | None = None,
        inner: Mode = "full",
        truncate: Size | None = None,
        inner_loss: Literal["next_token", "task"] = "next_token",
    ):
        super().__init__()
        self.per_position, self.levels = per_position, token_levels
        self.inner: Mode = inner
        self.truncate = truncate
        self.step: int | None = None  # outer steps so far, in training: inner rates may warm up over them
        self.entry = entry(sample_shape, vocabulary, patch, width)
        hiddens = hidden_widths(width, hidden, n_levels)
        self.blocks = Blocks(
            MemoryBlock(
                width, convolution, memory(width=width, heads=heads), Continuum(width, hiddens, connection, order)
            )
            for _ in range(depth)
        )
        self.norm = LayerNorm(width)
        self.head = Linear(width, n_outputs)
        self.next_token: NextToken | None = None
        check_truncate(inner, truncate, "model.truncate")
        if not token_levels:
            _check_unused(inner, inner_loss)
        if token_levels:
            _check_levels(self)
            if inner_loss == "task":
                _check_language_model(self, n_outputs)
            elif inner != "off":
                _check_trained(inner)
                self.next_token = NextToken(self.entry, width)

    def initial_states(self, batch: int) -> States:
        """What every block holds before the first token: each memory's own initial state, (B, ...)."""
        return tuple(cast(MemoryBlock, block).initial_state(batch) for block in self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, *sample_shape) -> (B, n_outputs), or (B, T, n_outputs) where every position is judged.

        Raises UserError for a chunk, of a token level or of a memory, that is longer than the sequence.
        """
        pieces = self.entry.pieces(x)
        for block in self.blocks:
            check_length(cast(MemoryBlock, block).memory, pieces.shape[1], "model.memory")
        if self.levels and self.inner != "off":
            check_chunks(self.levels, pieces.shape[1])
            step = self.step if self.training else None
            return self.outputs(read_features(self, self.levels, pieces, self.inner, self.truncate, step))
        h, _ = self.blocks(self.entry.embed(pieces), self.initial_states(len(x)))
        return self.outputs(h)

    def outputs(self, h: Tensor) -> Tensor:
        """Features (B, T, D) -> (B, T, n_outputs), or of their mean (B, n_outputs)."""
        h = self.norm(h)
        return self.head(h if self.per_position else h.mean(1))

    # -- read by `inner.read` ------------------------------------------------------------------------------------------

    def prepare(self, tokens: Tensor, carry: States | None = None) -> Tensor:
        """Tokens (B, n), or the first n patches (B, n, P), -> (B, n, D), whatever came before them."""
        return self.entry.embed(tokens)

    def features(self, fast: Mapping[str, Tensor], carry: States | None, inputs: Tensor) -> tuple[Tensor, States]:
        """Inputs (B, C, D) through the blocks with fast weights (B, *shape) in place of those they are named after."""
        states = self.initial_states(len(inputs)) if carry is None else carry
        weights = {name.removeprefix("blocks."): w for name, w in fast.items()}
        return functional_call(self.blocks, weights, (inputs, states))

    def logits(self, h: Tensor) -> Tensor:
        """Features (B, C, D) -> what is expected next, (B, C, n_outputs)."""
        return self.head(self.norm(h))

    def token_loss(self, h: Tensor, labels: Tensor) -> Tensor:
        """Loss of each next token, (B, C), given the features before it (B, C, D)."""
        if self.next_token is not None:
            return self.next_token(self.norm(h), labels)
        return F.cross_entropy(self.outputs(h).mT, labels, reduction="none")

    def chunk_loss(self, fast: Mapping[str, Tensor], carry: States | None, chunk: Chunk) -> tuple[Tensor, States]:
        """Loss of each label, (B, C), and the states after the chunk."""
        h, states = self.features(fast, carry, chunk.inputs)
        return self.token_loss(h, chunk.labels), states


def _check_levels(model: Hope) -> None:
    for level, names in assign_tokens(model.levels, model).items():
        outside = [name for name in names if ".continuum." not in name]
        if outside:
            text = f"{outside[0]!r} cannot have fast weights here; parameters of the continuum can, *.continuum.*"
            raise UserError(text, key=f"levels.{level}.params", seen=outside[0])


def _check_unused(inner: Mode, inner_loss: str) -> None:
    for key, seen, plain in (("inner", inner, "full"), ("inner_loss", inner_loss, "next_token")):
        if seen != plain:
            text = "there is no level on the token clock for it; leave it out, or give a level chunk_tokens and eta"
            raise UserError(text, key=f"model.{key}", seen=seen, allowed=[plain])


def _check_language_model(model: Hope, n_outputs: int) -> None:
    if not isinstance(model.entry, Tokens) or not model.per_position:
        text = "the task's loss can be an inner one only where every position predicts the next token; use next_token"
        raise UserError(text, key="model.inner_loss", seen="task", allowed=["next_token"])
    if n_outputs != model.entry.embedding.num_embeddings:
        text = f"{n_outputs} outputs are no prediction of {model.entry.embedding.num_embeddings} tokens; use next_token"
        raise UserError(text, key="model.inner_loss", seen="task", allowed=["next_token"])


def _check_trained(inner: Mode) -> None:
    if inner == "first_order":
        text = "the head that predicts the next token would never learn: no gradient passes the updates; use full"
        raise UserError(text, key="model.inner", seen=inner, allowed=["full", "truncated", "off"])
