"""Language models: TTT-E2E ("End-to-End Test-Time Training for Long Context", arXiv 2512.23675), which learns while it
reads, and its baselines in the same frame.

A block mixes tokens (attention over a window, or any memory), then applies MLPs to each; norms stand before and after
each part. The last blocks have a second MLP, the prime one, before the ordinary one. A level on the token clock over
the prime MLPs makes it TTT-E2E: after each chunk of C tokens each sequence's copy of them takes one gradient step on
the chunk's loss, and training passes all these steps. Without such a level the same model is a sliding-window
transformer, without a window full attention, with other mixers Mamba-2, Gated DeltaNet and others.

What no fast weight reaches, the blocks below the first one and that block's attention, runs once over all tokens,
outside of the inner loop (`prepare`), in segments that are computed again in the backward pass if asked for.

Departures: fast weights, their updates and all losses are float32 or wider, and there is no document mask (the authors'
code has none either).

Shapes: B batch, T tokens, C tokens of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint as run_again  # it may be differentiated twice, as losses of tokens are

from nested.collecting import read_features
from nested.config import Bound
from nested.errors import UserError
from nested.inner import Checkpoint, Chunk, Mode, check_truncate, initial_state, read
from nested.layers.norm import rms_norm
from nested.layers.swiglu import NormedSwiGLU
from nested.levels import Level, assign_tokens, check_chunks, check_whole_chunks
from nested.memory.contract import ask, check_memory
from nested.memory.pruned_attention import HeavyHitterAttention, StreamingAttention
from nested.memory.window_attention import Held, WindowAttention
from nested.models.warm_start import load_weights
from nested.precision import wide

Size = Annotated[int, Bound(ge=1)]
Carry = tuple[Any, ...]  # of each block, what its mixer holds
FAST = ("blocks.*.prime.mlp.w?.weight", "blocks.*.feedforward.mlp.w?.weight")  # what may have fast weights
STD = 0.02  # of initial weights
LOGITS = 2**25  # numbers: more of them are computed again in the backward pass, some tokens at a time


class Prepared(NamedTuple):
    """What `prepare` makes of tokens, token by token."""

    h: Tensor  # (B, n, D)
    kept: tuple[tuple[Tensor, Tensor], ...]  # keys and values (B, n, H, K) of the attentions that it ran


class Block(nn.Module):
    """x + norm(mixer(norm(x))), then the prime MLP if there is one, then the ordinary one."""

    mixer: Any  # a module that keeps to `nested.memory.contract`

    def __init__(self, width: int, hidden: int, mixer: nn.Module, prime: bool):
        super().__init__()
        check_memory(mixer)
        self.norm = rms_norm(width)
        self.mixer = mixer
        self.post_norm = rms_norm(width)
        self.prime = NormedSwiGLU(width, hidden) if prime else None
        self.feedforward = NormedSwiGLU(width, hidden)

    def mix(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """x (B, T, D) and what the mixer holds -> (B, T, D) and what it holds then."""
        y, state = ask(self.mixer, self.norm(x), state)
        return x + self.post_norm(y), state

    def attend(self, x: Tensor, state: Held) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `mix` where the mixer is attention that no inner gradient passes, with its keys and values of x alone."""
        z = self.norm(x)
        kept = self.mixer.kept(z)
        return x + self.post_norm(self.mixer.attend(z, kept, state, once=True)), kept

    def think(self, x: Tensor) -> Tensor:
        """x (B, T, D) through the MLPs, each token by itself."""
        return self.feedforward(x if self.prime is None else self.prime(x))


class Blocks(nn.ModuleList):
    """Blocks in order, of which the first were run by `prepare`; mixers and MLPs of the others."""

    def forward(self, x: Tensor, states: Carry, whole: int, mixed: bool) -> tuple[Tensor, Carry]:
        """x (B, C, D) after `whole` blocks and, if `mixed`, the next one's mixer -> (B, C, D), what the rest hold."""
        after = []
        for i, block in enumerate(self):
            assert isinstance(block, Block)
            if i < whole:
                continue
            if i > whole or not mixed:
                x, state = block.mix(x, states[i])
                after.append(state)
            x = block.think(x)
        return x, tuple(after)


class LanguageModel(nn.Module):
    """A language model whose MLPs may learn while it reads; for next tokens, per position.

    `mixer` is built for each block, with its `width` and `heads`; every `other_every`-th block takes `other` instead.
    `prime` is the number of last blocks with a second MLP. `inner` says how far the outer gradient passes the updates
    in training ("off" trains the model without them, to be read with them: dynamic evaluation); evaluation always reads
    with updates, and frozen beside it. `warm_start` is the folder of an exported model of this kind whose weights it
    starts from; prime MLPs that it did not have are silent at first, so that the function is the same
    (`nested.models.warm_start` says what may differ).

    Raises UserError for a token level over anything but MLPs, and for outputs that are not the vocabulary.
    """

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        n_outputs: int,
        mixer: Callable[..., nn.Module],
        vocabulary: int | None = None,
        per_position: bool = False,
        token_levels: tuple[Level, ...] = (),
        tokenizer_mark: str | None = None,
        width: Size = 128,
        depth: Size = 4,
        heads: Size = 4,
        hidden: Size = 256,
        prime: Annotated[int, Bound(ge=0)] = 0,
        other: Callable[..., nn.Module] | None = None,
        other_every: Size = 6,
        inner: Mode = "full",
        truncate: Size | None = None,
        checkpoint: Checkpoint = "none",
        segment: Size | None = None,
        warm_start: str | None = None,
    ):
        super().__init__()
        _check_outputs(n_outputs, vocabulary, per_position)
        if prime > depth:
            raise UserError(f"there are {depth} blocks", key="model.prime", seen=prime, allowed=f"0 to {depth}")
        check_truncate(inner, truncate, "model.truncate")
        check_whole_chunks(token_levels, sample_shape[0])
        self.levels, self.truncate, self.segment = token_levels, truncate, segment
        self.length, self.tokenizer_mark = sample_shape[0], tokenizer_mark
        self.other_every = other_every if other else None
        self.inner: Mode = inner
        self.checkpoint: Checkpoint = checkpoint
        self.step: int | None = None  # outer steps so far, in training: the inner rate may warm up over them
        self.embedding = nn.Embedding(n_outputs, width)
        mixers = [other if other and (i + 1) % other_every == 0 else mixer for i in range(depth)]
        if other is not None and other not in mixers:
            text = f"of {depth} blocks none is number {other_every}, which takes `other`; take fewer, or more blocks"
            raise UserError(text, key="model.other_every", seen=other_every, allowed=f"1 to {depth}")
        self.blocks = Blocks(
            Block(width, hidden, make(width=width, heads=heads), i >= depth - prime) for i, make in enumerate(mixers)
        )
        self.norm = rms_norm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=STD)
        self.remarks = [] if warm_start is None else load_weights(self, Path(warm_start))
        self._check_windows()
        self.whole, self.mixed = self._hoisted()

    def _check_windows(self) -> None:
        """Raise UserError for a window shorter than a chunk: some tokens would be neither seen any more nor learned."""
        chunk = min((level.period for level in self.levels), default=0)
        for key, window in (_window(cast(Block, block).mixer) for block in self.blocks):
            if window is not None and window < chunk:
                text = f"a window of {window} tokens is shorter than a chunk of {chunk}: tokens between them are "
                text += "neither seen nor learned; take a longer window, or shorter chunks (levels.*.chunk_tokens)"
                raise UserError(text, key=f"model.mixer.{key}", seen=window, allowed=f">= {chunk}")

    def _hoisted(self) -> tuple[int, bool]:
        """How many blocks `prepare` runs, and whether it runs the next one's mixer, too."""
        fast = [n for names in assign_tokens(self.levels, self).values() for n in names] if self.levels else []
        for name in fast:
            if not any(fnmatchcase(name, glob) for glob in FAST):
                text = f"{name!r} cannot have fast weights here; the weights of MLPs can, such as *.prime.mlp.*"
                raise UserError(text, key="levels", seen=name)
        first = min((int(name.split(".")[1]) for name in fast), default=len(self.blocks))
        attention = [isinstance(cast(Block, block).mixer, WindowAttention) for block in self.blocks]
        whole = min(first, [*attention, False].index(False))
        return whole, whole < len(self.blocks) and attention[whole]

    def initial_states(self, batch: int) -> Carry:
        """What each block's mixer holds before the first token."""
        return tuple(cast(Block, block).mixer.initial_state(batch) for block in self.blocks)

    # -- losses and outputs of whole sequences -------------------------------------------------------------------------

    def nll(self, x: Tensor, y: Tensor, frozen: bool = False) -> Tensor:
        """Minus log-likelihood of y (B, T), the tokens that follow those of x (B, T), in nats: (B, T).

        The first label of a chunk is read with what was learned from the chunks before. `frozen` learns nothing.
        Raises UserError for a y that is not what follows.
        """
        if not torch.equal(x[:, 1:], y[:, :-1]):
            text = "it learns to read from the next token, and the targets of this stream are others"
            raise UserError(text, key="model._target_", seen=type(self).__name__)
        tokens = torch.cat([x, y[:, -1:]], 1)
        check_chunks(self.levels, tokens.shape[1])
        start = initial_state(self, self.levels, len(x))
        mode: Mode = "off" if frozen else self.mode
        checkpoint: Checkpoint = self.checkpoint if torch.is_grad_enabled() else "none"
        return read(self, self.levels, start, tokens, mode, self._truncate, checkpoint, self._step)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T) -> logits of the next one at each position, (B, T, V)."""
        return self.logits(read_features(self, self.levels, x, self.mode, self._truncate, self._step))

    @property
    def mode(self) -> Mode:
        """How it reads: as `inner` says in training, else with updates."""
        return self.inner if self.training and torch.is_grad_enabled() else "full"

    @property
    def _step(self) -> int | None:
        return self.step if self.training else None

    @property
    def _truncate(self) -> int | None:
        return self.truncate if self.mode == "truncated" else None

    # -- read by `inner.read` ------------------------------------------------------------------------------------------

    def prepare(self, tokens: Tensor, carry: Carry | None = None) -> Prepared:
        """Tokens (B, n) after what the carry holds -> what no fast weight reaches, token by token."""
        states = self.initial_states(len(tokens)) if carry is None else carry
        pieces = []
        for piece in tokens.split(self.segment or tokens.shape[1], 1):
            pieces.append(self._segment_again(piece, states))
            states = self._held(states, pieces[-1].kept)
        kept = [tuple(torch.cat(t, 1) for t in zip(*of_block)) for of_block in zip(*(p.kept for p in pieces))]
        return Prepared(torch.cat([p.h for p in pieces], 1), tuple(cast(list[tuple[Tensor, Tensor]], kept)))

    def _segment_again(self, tokens: Tensor, states: Carry) -> Prepared:
        """One segment, of which nothing is kept for the backward pass where there are several."""
        if self.segment is None or not torch.is_grad_enabled():
            return self._segment(tokens, states)
        return cast(Prepared, run_again(self._segment, tokens, states, use_reentrant=False))

    def _segment(self, tokens: Tensor, states: Carry) -> Prepared:
        x, kept = self.embedding(tokens), []
        for i in range(self.whole + self.mixed):
            block = cast(Block, self.blocks[i])
            x, own = block.attend(x, states[i])
            kept.append(own)
            x = block.think(x) if i < self.whole else x
        return Prepared(x, tuple(kept))

    def _held(self, states: Carry, kept: tuple[tuple[Tensor, Tensor], ...]) -> Carry:
        """The states after tokens whose keys and values `prepare` has made; the others' are as they were."""
        after = [cast(Block, b).mixer.held(s, k) for b, s, k in zip(self.blocks, states, kept)]
        return (*after, *states[len(after) :])

    def features(self, fast: Mapping[str, Tensor], carry: Carry | None, inputs: Prepared) -> tuple[Tensor, Carry]:
        """Features (B, C, D) of C tokens with fast weights (B, *shape) in place of those they are named after."""
        states = self.initial_states(len(inputs.h)) if carry is None else carry
        weights = {name.removeprefix("blocks."): w for name, w in fast.items()}
        h, rest = functional_call(self.blocks, weights, (inputs.h, states, self.whole, self.mixed))
        return h, (*self._held(states, inputs.kept)[: len(states) - len(rest)], *rest)

    def logits(self, h: Tensor) -> Tensor:
        """Features (B, C, D) -> (B, C, V), at least float32; the head is the embedding."""
        return wide(F.linear(self.norm(h), self.embedding.weight))

    def token_loss(self, h: Tensor, labels: Tensor) -> Tensor:
        """Loss of each next token, (B, C), in nats."""
        size = max(1, LOGITS // (len(h) * self.embedding.num_embeddings))
        if h.shape[1] <= size:
            return self._loss(h, labels)
        pieces = zip(h.split(size, 1), labels.split(size, 1))
        return torch.cat([cast(Tensor, run_again(self._loss, *piece, use_reentrant=False)) for piece in pieces], 1)

    def _loss(self, h: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(h).mT, labels, reduction="none")

    def chunk_loss(self, fast: Mapping[str, Tensor], carry: Carry | None, chunk: Chunk) -> tuple[Tensor, Carry]:
        """Loss of each label, (B, C), and the states after the chunk."""
        h, states = self.features(fast, carry, chunk.inputs)
        return self.token_loss(h, chunk.labels), states


def _window(mixer: nn.Module) -> tuple[str, int | None]:
    """The key that decides how many of the last tokens attention can see, and the number; None: all, or another."""
    match mixer:
        case WindowAttention():
            return "window", mixer.window
        case StreamingAttention():
            return "budget", mixer.budget - mixer.sinks
        case HeavyHitterAttention():
            return "budget", mixer.budget
        case _:
            return "", None


def _check_outputs(n_outputs: int, vocabulary: int | None, per_position: bool) -> None:
    if vocabulary is None or not per_position or n_outputs != vocabulary:
        text = "a language model predicts the next token at every position; take a stream of text"
        seen = f"{n_outputs} outputs for {'no tokens' if vocabulary is None else f'{vocabulary} tokens'}"
        raise UserError(text, key="model._target_", seen=seen)
