"""The inner loop of every problem whose loss is the task's own: levels on the token clock learn while a model reads.

"Nested Learning" (arXiv 2512.24695v1) section 7.1, Eq. 71, with gradient descent on next-token prediction: every C
tokens of a level, W <- W - eta * (sum over these tokens of the gradient of their loss), for each sequence its own W,
started from a parameter of the model, its initial state (Eq. 73). The gradient is exact: it passes all later layers.

A model takes part with two pure methods (`Reader`); what is special to it stays there. A chunk is as long as the
shortest level's period; with no level on the token clock it is whatever is read at once. Its weights change when the
label of its last token has been observed, before that token, the first of the next chunk, is read.

What the paper leaves open, and what is done here:
- Eq. 71 prints a range of C + 1 tokens: here i - C + 1 to i;
- the carry (caches, memories) is an input of a chunk: the inner gradient ends there, the outer one does not;
- nested variant (Eq. 72, `Level.reset`): back to the initial state when the next slower level learns, in place of an
  update; the initial state itself learns on the stream clock, not on the slower level's;
- "BPTT length" (Fig. 5) is read as: the outer gradient passes at most that many updates of one level in a row.

Shapes: B batch, n tokens read, p tokens of the open chunk, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from nested.errors import Diverged, UserError
from nested.levels import Level, assign_tokens, due, eta_at, next_slower, token_levels
from nested.precision import wide, wide_dtype
from nested.recompute import OTHERWISE, Handed, plain, recomputed
from nested.signature import accepts, pair

Mode = Literal["full", "truncated", "first_order", "off"]
Modes = ("full", "truncated", "first_order", "off")
Checkpoint = Literal["none", "chunk", "group"]
Weights = dict[str, Tensor]


class Chunk(NamedTuple):
    """What a model is given of C tokens."""

    inputs: Any  # what `prepare` made of them, a pytree of tensors (B, C, ...)
    labels: Tensor  # the next tokens, (B, C)


class Reader(Protocol):
    """A model that can be read by `read`: parameters by name, and two methods without side effects."""

    def named_parameters(self) -> Iterator[tuple[str, Any]]: ...

    def prepare(self, tokens: Tensor) -> Any:
        """Tokens (B, n) -> a pytree of tensors (B, n, ...): all that no fast weight reaches.

        Each token by itself: what mixes tokens belongs in `chunk_loss`, whose carry remembers across pieces. A model
        whose `prepare` takes a second argument is given the carry at the first of these tokens: it may mix tokens, and
        must hand on in what it returns, token by token, what the carry of later chunks needs.
        """
        ...

    def chunk_loss(self, fast: Mapping[str, Tensor], carry: Any, chunk: Chunk) -> tuple[Tensor, Any]:
        """Loss of each label, (B, C), and the carry after the chunk, given that before it (None at the start).

        `fast` holds (B, *shape) for each fast parameter, to be used in its place. The carry is a pytree of tensors,
        numbers and None. One sequence's loss depends on that sequence alone.
        """
        ...


@dataclass(frozen=True)
class FastState:
    """What `read` knows after some tokens. Never changed in place."""

    fast: Weights  # (B, *shape), at least float32
    gathered: Weights  # (B, *shape): sum of the gradients since the level's last update
    carry: Any  # the model's own, at the start of the open chunk
    pending: Tensor | None  # (B, p) tokens of the open chunk, the last without a label; None before the first token
    tick: int  # tokens in closed chunks

    def detach(self) -> FastState:
        """The same numbers, cut off from the graph: for outer gradients that end at a piece of a long sequence.

        Where later updates are detached (truncated, first_order), they tie the weights to their initial state again.
        """
        fast, gathered = ({n: t.detach() for n, t in ts.items()} for ts in (self.fast, self.gathered))
        return replace(self, fast=fast, gathered=gathered, carry=_detached(self.carry))


def initial_state(model: Reader, levels: Sequence[Level], batch: int) -> FastState:
    """Fast weights of `batch` sequences that have read nothing: the model's parameters, with their gradient.

    They are views: until a level first learns, a change of the parameters in place is one of its weights too. Raises
    UserError as `levels.assign_tokens` does.
    """
    start = _Loop(model, levels).start
    fast = {name: w.expand(batch, *w.shape) for name, w in start.items()}
    return FastState(fast, {n: _zero(w) for n, w in fast.items()}, None, None, 0)


def read(
    model: Reader,
    levels: Sequence[Level],
    state: FastState,
    tokens: Tensor,
    mode: Mode = "full",
    truncate: int | Mapping[str, int] | None = None,
    checkpoint: Checkpoint = "none",
    step: int | None = None,
) -> tuple[Tensor, FastState]:
    """Read tokens (B, n): the loss of each observed label, in order, and the state after them.

    Losses are (B, n - 1) from a fresh state and (B, n) from one that has read before (the first is that of the token
    whose label was missing), so reading in pieces equals reading at once. An open chunk is read again from its start
    with each piece; it changes no weight until it is closed. In mode "off" no weight ever changes and nothing is
    gathered; an update that falls into it is left out, with what its level had gathered before.

    The outer gradient passes all updates (full), at most `truncate` of a level in a row (truncated: one number or one
    by level name, a level not named being full), or none (first_order). Initial states always get theirs. Without grad
    the modes are equal and no graph is kept. `checkpoint` computes each chunk again in the outer backward pass, or
    groups of about sqrt(chunks), and within a group each chunk: what is kept is the state before each chunk, or before
    about 2 sqrt(chunks) of them, for one forward pass more, or two. Losses and gradients are those of "none" to the bit
    (`recompute` says how, and but for what), and a gradient of the outer gradient is refused. `step` counts the outer
    steps before this one, for levels whose rate warms up; None is after it. Always computed eagerly: code compiled
    around it is left for it, since a compiled backward pass has no second derivative, and may return the first-order
    gradient without a word.

    Raises UserError for a state of other batch size, device, dtype or names, for inference mode, and for a fast weight
    without a gradient; Diverged, naming the level, when a loss or an inner gradient is not finite.
    """
    return _eagerly()(_Loop(model, levels, mode, truncate, step), state, tokens, checkpoint)


@cache
def _eagerly() -> Callable[..., tuple[Tensor, FastState]]:
    """`_read`, never compiled; made on the first call, since it imports the compiler."""
    return torch.compiler.disable(_read)  # type: ignore[return-value]


def _read(loop: _Loop, state: FastState, tokens: Tensor, checkpoint: Checkpoint) -> tuple[Tensor, FastState]:
    _check_state(loop, state, tokens)
    before, start = state.pending, state.tick
    returned = 0 if before is None else before.shape[1] - 1  # losses of the open chunk that an earlier call returned
    tokens = tokens if before is None else torch.cat([before, tokens], 1)
    labelled = max(tokens.shape[1] - 1, 0)
    inputs = loop.prepare(tokens[:, :labelled], state.carry) if labelled else None
    length = loop.chunk or max(labelled, 1)
    chunks = [
        Chunk(_sliced(inputs, first, first + length), tokens[:, first + 1 : first + length + 1])
        for first in range(0, labelled, length)
    ]
    given = (loop.apart(), vars(state), chunks)
    _, (_, after, losses, finite) = _in_parts(loop, _sizes(checkpoint, len(chunks)), loop.parameters(), given)
    loop.check_finite(finite, start)
    nll = torch.cat(losses, 1)[:, returned:] if losses else loop.none(tokens)
    closed = labelled // length * length
    return nll, FastState(**{**after, "pending": tokens[:, closed:] if tokens.shape[1] else None})


def _in_parts(loop: _Loop, sizes: Sequence[int], parameters: Handed, given: Any) -> tuple[Handed, Any]:
    """Chunks in order; in parts of the first size that are computed again, if any, and these in parts of the second.

    Given are the initial states that are no parameters, the state, and the chunks; returned are, after the parameters,
    these initial states and the state after the chunks, and losses of each and what was finite in it.
    """
    start, state, chunks = given
    if not sizes:
        return parameters, (start, *loop.steps(parameters, start, FastState(**state), chunks))
    handed, losses, finite = parameters, [], []
    for first in range(0, len(chunks), sizes[0]):
        part = (start, state, chunks[first : first + sizes[0]])
        run = partial(_in_parts, loop, sizes[1:])
        handed, (start, state, nll, fine) = recomputed(run, parameters, handed, part)
        losses += nll
        finite += fine
    return handed, (start, state, losses, finite)


class _Loop:
    """What one call of `read` keeps: levels with their parameters and initial states, and how gradients pass."""

    def __init__(
        self,
        model: Reader,
        levels: Sequence[Level],
        mode: Mode = "full",
        truncate: int | Mapping[str, int] | None = None,
        step: int | None = None,
    ):
        self.model, self.mode = model, mode if levels else "off"
        self.members = assign_tokens(levels, model) if levels else {}
        self.levels = token_levels(levels)
        self.slower = {level.name: next_slower(level, levels) for level in self.levels}
        self.eta = {level.name: eta_at(level, step) for level in self.levels}
        self.chunk = self.levels[0].period if levels else None  # None: whatever is read at once
        self.passed = _passed(mode, truncate, self.members)
        params = dict(model.named_parameters())
        self.dtype = next(iter(params.values())).dtype
        self.start = {n: wide(params[n]) for members in self.members.values() for n in members}  # initial states

    def prepare(self, tokens: Tensor, carry: Any) -> Any:
        """What the model makes of tokens (B, n), given the carry before them if it wants it."""
        given = (tokens, carry) if accepts(self.model.prepare, 2) else (tokens,)
        return self.model.prepare(*given)

    def loss(self, fast: Mapping[str, Tensor], carry: Any, chunk: Chunk) -> tuple[Tensor, Any]:
        """The model's loss, (B, C), and carry, checked for their form."""
        whose = f"{type(self.model).__name__}.chunk_loss"
        nll, carry = pair(self.model.chunk_loss(fast, carry, chunk), whose, "(loss, carry)")
        wanted, seen = tuple(chunk.labels.shape[:2]), tuple(nll.shape) if isinstance(nll, Tensor) else None
        if seen != wanted:
            text = f"{whose} returned a loss of shape {seen}; (batch, tokens) = {wanted} is needed"
            raise UserError(text, seen=seen, allowed=wanted)
        return nll, carry

    def parameters(self) -> list[Tensor]:
        """The model's."""
        return [p for _, p in self.model.named_parameters()]

    def apart(self) -> Weights:
        """Initial states that are not the parameters themselves, but wider copies."""
        own = {id(p) for p in self.parameters()}
        return {n: w for n, w in self.start.items() if id(w) not in own}

    def steps(
        self, parameters: Handed, start: Weights, state: FastState, chunks: Sequence[Chunk]
    ) -> tuple[dict[str, Any], list[Tensor], list[Tensor]]:
        """Chunks in order: the state after them, losses of each, and what was finite in each."""
        if any(p is not q for p, q in zip(self.parameters(), parameters, strict=True)):
            text = "the model's parameters are others in the backward pass than they were in the forward pass"
            raise UserError(f"{text}; leave them in place until then, or {OTHERWISE}", key="checkpoint")
        loop, losses, finite = copy(self), [], []
        loop.start = self.start | start
        for chunk in chunks:
            nll, state, fine = loop.step(state, chunk)
            losses.append(nll)
            finite.append(fine)
        return vars(state), losses, finite

    def step(self, state: FastState, chunk: Chunk) -> tuple[Tensor, FastState, Tensor]:
        """One chunk: its losses, the state after the updates due, and what was finite (loss, then levels).

        An open chunk, shorter than the others, changes nothing until it is closed.
        """
        outer, tick = torch.is_grad_enabled(), state.tick + chunk.labels.shape[1]
        if self.chunk and chunk.labels.shape[1] < self.chunk:
            nll, _ = self.loss(state.fast, state.carry, chunk)
            return nll, state, self.finite(nll)
        if self.mode == "off":
            nll, carry = self.loss(state.fast, state.carry, chunk)
            skipped = [n for level in self.levels if due(level, tick) for n in self.members[level.name]]
            gathered = state.gathered | {n: _zero(state.gathered[n]) for n in skipped}
            return nll, replace(state, gathered=gathered, carry=carry, tick=tick), self.finite(nll)
        nll, carry, grads = self._gradients(state, chunk, outer)
        gathered, fast = dict(grads), dict(state.fast)
        for level in self.levels:
            if state.tick % level.period:  # since its last update it has gathered
                gathered.update({n: state.gathered[n] + grads[n] for n in self.members[level.name]})
        for level in self.levels:
            if due(level, tick):
                self._learn(level, tick, fast, gathered)
        return nll, FastState(fast, gathered, carry, None, tick), self.finite(nll, grads)

    def _gradients(self, state: FastState, chunk: Chunk, outer: bool) -> tuple[Tensor, Any, Weights]:
        """Loss, carry, and the gradient of each sequence's summed loss by its own fast weights, (B, *shape)."""
        second = outer and any(b != 0 for b in self.passed.values())
        with torch.enable_grad():
            # aliases: the gradient is that of this chunk, not also of earlier ones which the carry remembers
            fast = {n: w.view_as(w) if w.requires_grad else w.detach().requires_grad_() for n, w in state.fast.items()}
            nll, carry = self.loss(fast, state.carry, chunk)
            names = list(fast)
            if not nll.requires_grad:
                raise self._unused(names[0])
            # weights differ between sequences, so the gradient of the batch's sum is each sequence's own
            found = torch.autograd.grad(
                nll.sum(), list(fast.values()), create_graph=second, retain_graph=outer, allow_unused=True
            )
        grads = {n: g for n, g in zip(names, found, strict=True) if g is not None}
        if len(grads) < len(names):
            raise self._unused(next(n for n in names if n not in grads))
        return (nll, carry, grads) if outer else (nll.detach(), _detached(carry), grads)

    def _learn(self, level: Level, tick: int, fast: Weights, gathered: Weights) -> None:
        """Eq. 71 for one level that is due, put into `fast` and `gathered`."""
        names, slower = self.members[level.name], self.slower[level.name]
        sums = {n: gathered[n] for n in names}
        gathered.update({n: _zero(g) for n, g in sums.items()})
        if level.reset and slower is not None and due(slower, tick):
            fast.update({n: self.start[n].expand(fast[n].shape) for n in names})
            return
        cut = self._cuts(level, tick % slower.period if level.reset and slower else tick)
        share = 1 / level.period if level.gather == "mean" else 1.0
        rate = self.eta[level.name] * share
        if level.clip_norm is None:
            fast.update({n: torch.sub(fast[n], g, alpha=rate) for n, g in sums.items()})
        else:
            scale = -rate * _clip(sums, level.clip_norm / share)
            fast.update({n: torch.addcmul(fast[n], g, _beside(scale, g)) for n, g in sums.items()})
        if level.shift_norm is not None:
            shifts = {n: fast[n] - self.start[n] for n in names}
            scale = _clip(shifts, level.shift_norm)
            fast.update({n: torch.addcmul(self.start[n], d, _beside(scale, d)) for n, d in shifts.items()})
        if cut:
            fast.update({n: _attached(fast[n], self.start[n]) for n in names})

    def _cuts(self, level: Level, tick: int) -> bool:
        """Whether the update at `tick` of the level's context is detached, and all before it with it."""
        passed = self.passed[level.name]
        return passed is not None and tick // level.period % (passed + 1) == 0

    def _unused(self, name: str) -> UserError:
        level = next(level for level, names in self.members.items() if name in names)
        text = f"{name!r} gets no gradient: {type(self.model).__name__}.chunk_loss does not use its fast weight"
        return UserError(f"{text}; use it, or leave it out", key=f"levels.{level}.params", seen=name)

    def none(self, tokens: Tensor) -> Tensor:
        """No losses, (B, 0)."""
        return torch.empty(len(tokens), 0, device=tokens.device, dtype=wide_dtype(self.dtype))

    def finite(self, nll: Tensor, grads: Weights | None = None) -> Tensor:
        """Whether the loss is finite and, by level, the gradients: (1 + levels,) booleans, not looked at yet."""
        loss = nll.detach().sum().isfinite()
        if grads is None:
            return loss.expand(1 + len(self.members))
        sums = [torch.stack([grads[n].detach().sum() for n in names]) for names in self.members.values()]
        return torch.stack([loss, *(s.isfinite().all() for s in sums)])

    def check_finite(self, finite: Sequence[Tensor], tick: int) -> None:
        """Raise Diverged for the first chunk after `tick` that was not finite; one look at the device for all."""
        if not finite or bool((table := torch.stack(list(finite)).cpu()).all()):
            return
        first = int((~table.all(1)).nonzero()[0])
        if self.chunk is None:
            raise Diverged(f"the loss is not finite in the tokens read after token {tick}: it is the model's own")
        start = tick + first * self.chunk
        where = f"in the chunk of tokens {start} to {start + self.chunk - 1}"
        if table[first, 0]:
            bad = self.levels[int((~table[first, 1:]).nonzero()[0])]
            raise Diverged(f"level {bad.name!r}: its inner gradient is not finite {where}; take a smaller eta")
        learned = [repr(level.name) for level in self.levels if start and due(level, start)]
        cause = f"after an update of level {' and '.join(learned)}; take a smaller eta or clip_norm"
        if not learned or self.mode == "off":
            cause = f"before any update of level {self.levels[0].name!r}: it is the model's own"
        raise Diverged(f"the loss is not finite {where}, {cause}")


def _sizes(checkpoint: Checkpoint, chunks: int) -> tuple[int, ...]:
    """Of the parts that are computed again, in chunks, and of their parts in turn; none without grad."""
    if checkpoint == "none" or not torch.is_grad_enabled():
        return ()
    return (1,) if checkpoint == "chunk" else (max(1, round(chunks**0.5)), 1)


def check_truncate(mode: str, truncate: object, key: str = "truncate") -> None:
    """Raise UserError for mode truncated without its number of updates, and for a number without the mode."""
    if (truncate is not None) == (mode == "truncated"):
        return
    text = f"belongs to mode truncated, and this is mode {mode}; leave it out"
    if truncate is None:
        text = "mode truncated needs it: the number of updates in a row that the outer gradient passes"
    raise UserError(text, key=key, seen=truncate)


def _passed(mode: str, truncate: int | Mapping[str, int] | None, names: Mapping[str, Any]) -> dict[str, int | None]:
    """Level -> updates in a row that the outer gradient passes; None = all."""
    if mode not in Modes:
        raise UserError(f"unknown mode {mode!r}; allowed: {', '.join(Modes)}", key="mode", seen=mode, allowed=Modes)
    check_truncate(mode, truncate)
    given = truncate if isinstance(truncate, Mapping) else dict.fromkeys(names, truncate)
    for name, number in given.items():
        if name not in names or (number is not None and number < 0):
            text = f"{name!r}: {number} is not allowed; a number >= 0 for each of {', '.join(names)} is"
            raise UserError(text, key="truncate", seen=number)
    return {name: 0 if mode == "first_order" else given.get(name) for name in names}


def _check_state(loop: _Loop, state: FastState, tokens: Tensor) -> None:
    if torch.is_inference_mode_enabled() and loop.mode != "off":
        raise UserError("inner gradients cannot be taken in inference mode; use torch.no_grad instead", key="mode")
    if set(state.fast) != set(loop.start):
        text = f"the state holds {sorted(state.fast)}, the levels name {sorted(loop.start)}; start with initial_state"
        raise UserError(text, key="state", seen=sorted(state.fast), allowed=sorted(loop.start))
    for name, w in state.fast.items():
        start = loop.start[name]
        for what, seen, wanted in (
            ("batch size", len(w), len(tokens)),
            ("device", str(w.device), str(tokens.device)),
            ("dtype", w.dtype, start.dtype),
            ("shape", tuple(w.shape[1:]), tuple(start.shape)),
        ):
            if seen != wanted:
                whose = "the tokens'" if what in ("batch size", "device") else "the model's"
                text = f"its {what} is {seen} ({name}) and {whose} is {wanted}; they must be equal"
                raise UserError(text, key="state", seen=str(seen), allowed=str(wanted))


def _clip(grads: Weights, limit: float) -> Tensor:
    """(B,): what makes the common norm of each sequence's gradients at most `limit`; differentiable at zero too."""
    norms = [torch.linalg.vector_norm(g.unsqueeze(-1), dim=tuple(range(1, g.ndim + 1))) for g in grads.values()]
    squares = torch.stack(norms).square().sum(0)
    over = squares > limit**2
    return torch.where(over, limit * torch.where(over, squares, 1.0).rsqrt(), 1.0)


def _beside(scale: Tensor, weights: Tensor) -> Tensor:
    """A number for each sequence, (B,), in the dimensions of its weights (B, *shape)."""
    return scale.view(-1, *(1,) * (weights.ndim - 1))


def _attached(value: Tensor, start: Tensor) -> Tensor:
    """The numbers of `value`, (B, *shape), with the gradient of the initial state alone: W = W0 + constant."""
    return value.detach() + (start - start.detach()) if start.requires_grad else value.detach()


def _zero(like: Tensor) -> Tensor:
    return like.new_zeros(()).expand(like.shape)  # no memory until something is gathered


def _sliced(tree: Any, first: int, last: int) -> Any:
    return tree_map(lambda t: t[:, first:last], tree)


def _detached(tree: Any) -> Any:
    """Raises UserError for a leaf that may hide a graph."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else plain(x), tree)
