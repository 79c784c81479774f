"""The memory a chunk of tokens at a time, in plain torch: differentiable to any order.

All inputs and errors of a chunk are those of the weights at its anchor, so each layer is a delta rule with values that
are known (`nested_kernels.delta_rule` on the dot product), and `down` is asked with what `up` answers. With momentum
the steps of a token have a rank above one, but they lie in the span of the chunk's inputs x. With a_ts = alpha_{s+1}
... alpha_t, b alike of beta and c = a b, the product of both as matrices over all s <= t,
    W_t = a_t0 W + (1 - a_t0) W_0 + c_t0 S - sum_{s <= t} (c_ts eta_s error_s + a_ts erased_s) x_s^T
    erased_t = erase eta_t W_{t-1} x_t
where the second line is one triangular system for all tokens of the chunk.

Shapes: Z batch and heads, N memories, L tokens of a chunk, K head width, E hidden width, I and O in and out of a layer.
"""

from __future__ import annotations

from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from nested_kernels.delta_rule import delta_rule
from nested_kernels.delta_rule.chunked import decay
from nested_kernels.delta_rule.op import FEW, Backend
from nested_kernels.mlp_memory.rule import MLPState, Read, Weights, Write, all_of, both, gelu, started

LONG = 64  # tokens with momentum at a time: their decays take L^3 operations


class Chunk(NamedTuple):
    """The tokens of a chunk, or of a part of one. Rates are (Z, L, 1)."""

    q: Tensor | None  # (Z, L, K)
    k: Tensor  # (Z, L, K)
    v: Tensor  # (Z, L, K)
    eta: Tensor
    alpha: Tensor
    beta: Tensor | None


class Steps(NamedTuple):
    """What the tokens of a chunk do to a layer, and what they ask it. Y: batch, heads, memories."""

    key: Tensor  # (Y, L, I)
    error: Tensor  # (Y, L, O)
    eta: Tensor  # (Y, L, 1), as the other rates
    alpha: Tensor
    beta: Tensor | None
    query: Tensor | None  # (Y, L, I)


def mlp_memory_chunked(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    alpha: Tensor,
    beta: Tensor | None,
    state: MLPState,
    *,
    write: Write,
    anchor: int,
    read: Read,
    initial: Weights | None,
) -> tuple[Tensor | None, MLPState]:
    """As `mlp_memory_reference`."""
    B, H, T, _ = k.shape
    tokens = [None if x is None else x.flatten(0, 1) for x in (q, k, v)]
    tokens += [None if x is None else x.flatten(0, 1).unsqueeze(-1) for x in (eta, alpha, beta)]
    M, M_xi, S, position = all_of(flat, started(state, beta))
    start = None if initial is None else both(flat, initial)
    ys, begin = [], 0
    while begin < T:
        end = min(T, begin + anchor - position)
        if M_xi is None or position == 0:
            M_xi = M
        chunk = Chunk._make(None if x is None else x[:, begin:end] for x in tokens)
        y, M, S = read_chunk(chunk, M, M_xi, S, start, write, read)
        ys.append(y)
        position, begin = (position + end - begin) % anchor, end
    y = None if q is None else torch.cat(ys, 1).unflatten(0, (B, H))
    return y, all_of(lambda x: x.unflatten(0, (B, H)), MLPState(M, M_xi if position else None, S, position))


def flat(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def read_chunk(
    at: Chunk,
    live: Weights,
    anchor: Weights,
    momentum: Weights | None,
    initial: Weights | None,
    write: Write,
    read: Read,
) -> tuple[Tensor | None, Weights, Weights | None]:
    """Tokens whose gradients are all taken at `anchor`: y (Z, L, K), the weights and the momentum after them."""
    keys, inner, outer = gradients(at, anchor, write)
    (_, N, L, E), starts, heaps = keys.shape, initial or (None, None), momentum or (None, None)
    start, heap = (None if w is None else w.flatten(1, 2) for w in (starts[0], heaps[0]))  # (Z, N E, K)
    steps = Steps(at.k, inner.transpose(1, 2).flatten(2), at.eta, at.alpha, at.beta, at.q if L > 1 else None)
    asked, up, heap_up = advance(steps, write.erase_up, live.up.flatten(1, 2), start, heap, read)
    if asked is not None:  # the first memory is asked; what the others would answer is not looked at
        asked = torch.cat([gelu(asked[..., :E])[0].unsqueeze(1), keys[:, 1:]], 1).flatten(0, 1)
    eta, alpha = at.eta.unsqueeze(1), at.alpha.unsqueeze(1).expand(-1, N, -1, -1)
    eta = eta / keys.square().sum(-1, keepdim=True).clamp_min(1.0) if write.bounded else eta.expand_as(alpha)
    beta = None if at.beta is None else at.beta.unsqueeze(1).expand_as(alpha).flatten(0, 1)
    start, heap = (None if w is None else w.flatten(0, 1) for w in (starts[1], heaps[1]))  # (Z N, K, E)
    key, error, eta, alpha = (x.flatten(0, 1) for x in (keys, outer, eta, alpha))
    steps = Steps(key, error, eta, alpha, beta, asked)
    answer, down, heap_down = advance(steps, write.erase_down, live.down.flatten(0, 1), start, heap, read)
    after = Weights(up.view_as(live.up), down.view_as(live.down))
    gathered = (
        None if heap_up is None or heap_down is None else (heap_up.view_as(live.up), heap_down.view_as(live.down))
    )
    y = None
    if at.q is not None:
        y = (
            ask(live if read == "cumulative" else after, at.q)
            if answer is None
            else at.q + answer.unflatten(0, (-1, N))[:, 0]
        )
    return y, after, None if gathered is None else Weights(*gathered)


def ask(weights: Weights, q: Tensor) -> Tensor:
    """What the first memory answers: q and result (Z, L, K)."""
    up, down = (w[:, 0] for w in weights)
    return q + gelu(q @ up.mT)[0] @ down.mT


def gradients(at: Chunk, anchor: Weights, write: Write) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs of `down` (Z, N, L, E), and what the loss says at the output of `up` (same) and of `down` (K)."""
    L = at.k.shape[1]
    asked = torch.cat([at.k, at.v], 1) if write.own else at.k
    active, slope = gelu(fan(asked, anchor.up))  # (Z, N, L or 2L, E)
    out = asked.unsqueeze(1) + active @ anchor.down.mT
    made = out[:, :, L:] if write.own else at.v.unsqueeze(1)
    outer = write.fit * out[:, :, :L] - write.value * made  # (Z, N, L, K)
    inner = (outer @ anchor.down) * slope[:, :, :L]
    return active[:, :, :L], inner, outer


def fan(x: Tensor, up: Tensor) -> Tensor:
    """x (Z, L, K) through every memory's `up` (Z, N, E, K) -> (Z, N, L, E), as one product."""
    return (x @ up.flatten(1, 2).mT).unflatten(-1, up.shape[1:3]).transpose(1, 2)


def advance(
    steps: Steps,
    erase: float,
    weight: Tensor,
    initial: Tensor | None,
    momentum: Tensor | None,
    read: Read,
    backend: Backend | None = None,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Answers (Y, L, O), a layer (Y, O, I) after all steps, and its momentum.

    `backend` is that of the delta rule without momentum, None plain torch.
    """
    if steps.key.shape[1] == 1:
        after, gathered = step(steps, erase, weight, initial, momentum)
        asked = weight if read == "cumulative" else after
        return None if steps.query is None else steps.query @ asked.mT, after, gathered
    if momentum is None:
        return *delta(steps, erase, weight, initial, read, backend), None
    reads = []
    for part in zip(*(repeat(None) if x is None else x.split(LONG, 1) for x in steps)):
        asked, weight, momentum = with_momentum(Steps._make(part), erase, weight, initial, momentum, read)
        reads.append(asked)
    return None if steps.query is None else torch.cat(reads, 1), weight, momentum


def step(
    at: Steps, erase: float, weight: Tensor, initial: Tensor | None, momentum: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The equation itself, for one token: a delta rule costs more than it does."""
    kept = at.alpha * weight if initial is None else torch.lerp(initial, weight, at.alpha)
    if momentum is None or at.beta is None:
        change = at.eta * (at.error + erase * (at.key @ weight.mT) if erase else at.error)
        return torch.baddbmm(kept, change.mT, at.key, alpha=-1), None
    momentum = torch.baddbmm(at.beta * momentum, (at.eta * at.error).mT, at.key, alpha=-1)
    erased = at.eta * erase * (at.key @ weight.mT)
    return torch.baddbmm(kept, erased.mT, at.key, alpha=-1) + momentum, momentum


def delta(
    at: Steps, erase: float, weight: Tensor, initial: Tensor | None, read: Read, backend: Backend | None
) -> tuple[Tensor | None, Tensor]:
    """The delta rule with -error as fixed values, whose objective is the dot product."""
    reads, state = delta_rule(
        (at.key if at.query is None else at.query).unsqueeze(1),
        at.key.unsqueeze(1),
        -at.error.unsqueeze(1),
        at.eta.mT,
        at.alpha.mT,
        weight.unsqueeze(1),
        objective="dot",
        rule="dgd" if erase else "gd",
        read=read,
        retain="zero" if initial is None else "initial",
        initial=None if initial is None else initial.unsqueeze(1),
        backend=backend or ("reference" if at.key.shape[1] <= FEW else "chunked"),
    )
    return None if at.query is None else reads.squeeze(1), state.memory.squeeze(1)


def with_momentum(
    at: Steps, erase: float, weight: Tensor, initial: Tensor | None, momentum: Tensor, read: Read
) -> tuple[Tensor | None, Tensor, Tensor]:
    """All tokens at once, from the second line above to the first."""
    assert at.beta is not None
    a, b = decay(at.alpha.squeeze(-1)), decay(at.beta.squeeze(-1))  # (Y, L + 1, L + 1)
    c = a[:, :, 1:] @ b[:, 1:]
    g = at.eta * at.error  # (Y, L, O)

    def held(rows: slice, x: Tensor) -> Tensor:
        """Without what is erased in the chunk, the weights of `rows` times x (Y, L, I)."""
        out = a[:, rows, :1] * (x @ weight.mT) + c[:, rows, :1] * (x @ momentum.mT)
        if initial is not None:
            out = out + (1 - a[:, rows, :1]) * (x @ initial.mT)
        return out - (c[:, rows, 1:] * (x @ at.key.mT)) @ g

    before, after = slice(None, -1), slice(1, None)
    erased = None
    if erase:
        rate = erase * at.eta
        system = rate * a[:, before, 1:] * (at.key @ at.key.mT)
        asked = rate * held(before, at.key)
        erased = torch.linalg.solve_triangular(system, asked, upper=False, unitriangular=True)
    reads = None
    if at.query is not None:
        rows = before if read == "cumulative" else after
        reads = held(rows, at.query)
        if erased is not None:
            reads = reads - (a[:, rows, 1:] * (at.query @ at.key.mT)) @ erased
    a, b, c = (x[:, -1, :, None] for x in (a, b, c))  # (Y, L + 1, 1): what is left at the end
    change = c[:, 1:] * g if erased is None else c[:, 1:] * g + a[:, 1:] * erased
    kept = a[:, :1] * weight + c[:, :1] * momentum - change.mT @ at.key
    if initial is not None:
        kept = kept + (1 - a[:, :1]) * initial
    return reads, kept, b[:, :1] * momentum - (b[:, 1:] * g).mT @ at.key
