"""The recurrence for a chunk of tokens at a time: matrix products, and one loop over chunks instead of tokens.

Inside a chunk of C tokens that begins with the memory S, the write of token t is w_t k_t^T and
    M_t = G_t S + sum_{s <= t} (G_t / G_s) w_s k_s^T,      G_t = alpha_1 ... alpha_t
so the writes solve a unit lower triangular system (the WY form of a product of Householder-like factors):
    (I + tril(erase eta D * K K^T)) W = eta (V - (erase G' + fit) K S^T)
with D_ts = G_{t-1} / G_s and G'_t = G_{t-1}. It is solved by forward substitution: the Neumann series loses every digit
for correlated keys. W is affine in S, with both parts known for all chunks at once; four small products per chunk are
left for the loop.

Decays are products of alpha (a cumulative product over a masked matrix), never quotients or logarithms: alpha may be 0.

Shapes: G batch and heads, N chunks, C tokens of a chunk, B batch, T tokens, H heads, K key, V value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nested_kernels.delta_rule.rule import Objective, Read, Rule, State, terms

Recurrence = Callable[..., tuple[Tensor, Tensor, Tensor]]  # as `read_chunks`


class Chunks(NamedTuple):
    """The operands cut into chunks, all in one batch."""

    q: Tensor  # (GN, C, K)
    k: Tensor  # (GN, C, K)
    v: Tensor  # (GN, C, V)
    eta: Tensor  # (GN, C)
    alpha: Tensor  # (GN, C)


class Prepared(NamedTuple):
    """All that does not depend on the memory S at the beginning of the chunk.

    W = by_value + by_memory S^T, then y = by_held S^T + by_write W and S^T <- whole S^T + to_memory W.
    """

    by_value: Tensor  # (GN, C, V)
    by_memory: Tensor  # (GN, C, K)
    by_held: Tensor  # (GN, C, K)
    whole: Tensor  # (GN, 1, 1)
    to_memory: Tensor  # (GN, K, C)
    by_write: Tensor | None = None  # (GN, C, C); None where no read sees what its chunk writes


def delta_rule_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    alpha: Tensor,
    state: State,
    *,
    objective: Objective,
    rule: Rule,
    anchor: int,
    read: Read,
    initial: Tensor | None,
    chunk: int,
    recurrence: Recurrence | None = None,
) -> tuple[Tensor, State]:
    """As `delta_rule_reference`, in chunks of `chunk` tokens, or of `anchor` tokens where that is more than 1.

    What is left when open chunks, initial memories and objectives are folded into the operands is the recurrence of one
    memory: `read_chunks`, or another one that does the same faster. The operands of another one may be of lower
    precision than the state; what is folded into them here is computed in that of the state.
    """
    erase, fit, value = terms(objective, rule)
    if anchor == 1:
        erase, fit = erase + fit, 0.0
        read = "cumulative" if read == "anchor" else read
    t, position = q.shape[2], state.position
    memory, behind = state.memory, state.anchor
    wide = memory.dtype
    ahead = None if behind is None else (behind - memory).mT  # (B, H, K, V) what the anchor has beyond the memory
    v = v if value == 1 else value * v
    if ahead is not None and fit:
        v = _add_to_first(v, anchor - position, -fit * k[:, :, : anchor - position].to(wide) @ ahead)
    if initial is not None:  # what decays towards the initial memory is the deviation from it
        v = v - (erase + fit) * (k.to(wide) @ initial.mT)
        memory = memory - initial
    length = min(chunk if anchor == 1 else anchor, position + t)
    y, last, final = (recurrence or read_chunks)(q, k, v, eta, alpha, memory, erase, fit, read, length, position)
    if ahead is not None and read == "anchor":
        y = _add_to_first(y, anchor - position, q[:, :, : anchor - position].to(wide) @ ahead)
    if initial is not None:
        y = y + q.to(wide) @ initial.mT
        last, final = last + initial, final + initial
    open_ = (position + t) % anchor
    if not open_:
        return y, State(final)
    return y, State(final, behind if behind is not None and position + t < anchor else last, open_)


def read_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    alpha: Tensor,
    memory: Tensor,
    erase: float,
    fit: float,
    read: Read,
    length: int,
    before: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Chunks of `length` tokens, `before` of them already read -> y, the memory before the last chunk, and at the end.

    M_t = alpha_t M_{t-1} - eta_t (erase M_{t-1} k_t + fit M_xi k_t - v_t) k_t^T, with M_xi the memory at the beginning
    of the chunk. Shapes as in `delta_rule`, all of one dtype.
    """
    (b, h, t, _) = q.shape
    chunks = _cut(q, k, v, eta, alpha, length, before)
    y, last, final = _scan(_prepare(chunks, erase, fit, read), memory.mT.flatten(0, 1))
    last, final = (m.mT.unflatten(0, (b, h)) for m in (last, final))
    return y.unflatten(0, (b, h))[:, :, before : before + t], last, final


def _add_to_first(x: Tensor, n: int, addition: Tensor) -> Tensor:
    """x (B, H, T, V) with `addition` on its first n tokens."""
    return torch.cat([x[:, :, :n] + addition, x[:, :, n:]], 2)


def _cut(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, length: int, before: int) -> Chunks:
    """Chunks of `length`; `before` tokens at the front and the ragged tail are tokens that change nothing."""
    after = -(before + q.shape[2]) % length

    def cut(x: Tensor, fill: float = 0.0) -> Tensor:
        if before or after:
            x = F.pad(x, (0, 0) * (x.ndim - 3) + (before, after), value=fill)
        return x.reshape(-1, length, *x.shape[3:])

    return Chunks(cut(q), cut(k), cut(v), cut(eta), cut(alpha, 1.0))


def _prepare(x: Chunks, erase: float, fit: float, read: Read) -> Prepared:
    left = decay(x.alpha)  # (GN, C + 1, C + 1)
    since, inside = left[:, :-1, :1], left[:, :-1, 1:]  # G'_t (GN, C, 1) and D (GN, C, C)
    to_end, whole = left[:, -1, 1:, None], left[:, -1:, :1]  # G_C / G_s (GN, C, 1) and G_C (GN, 1, 1)
    solved = torch.diag_embed(x.eta)  # (GN, C, C)
    if erase:
        system = (erase * x.eta).unsqueeze(-1) * inside * (x.k @ x.k.mT)
        solved = torch.linalg.solve_triangular(system, solved, upper=False, unitriangular=True)
    by_memory = (solved * -(erase * since + fit).mT) @ x.k  # (GN, C, K)
    to_memory = (to_end * x.k).mT  # (GN, K, C)
    if read == "anchor":
        return Prepared(solved @ x.v, by_memory, x.q, whole, to_memory)
    if read == "after":  # one factor more, and the token itself
        since, inside = left[:, 1:, :1], left[:, 1:, 1:]
    seen = inside * (x.q @ x.k.mT)  # (GN, C, C)
    return Prepared(solved @ x.v, by_memory, since * x.q, whole, to_memory, seen)


def decay(alpha: Tensor) -> Tensor:
    """alpha (GN, C) -> (GN, C + 1, C + 1): alpha_{s+1} ... alpha_t at row t, column s <= t (both from 0), else 0."""
    n = alpha.shape[-1] + 1
    below = torch.ones(n, n, dtype=alpha.dtype, device=alpha.device).tril(-1)
    factors = torch.addcmul(1 - below, F.pad(alpha, (1, 0)).unsqueeze(-1), below)  # alpha below the diagonal, else 1
    return factors.cumprod(-2).tril()


def _scan(x: Prepared, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loop over chunks, from S^T (G, K, V): y (G, NC, V), S^T before the last chunk, and S^T after it.

    All of a chunk is done while its memory is in the processor's cache.
    """
    ys, before = [], memory
    parts = [t.unflatten(0, (len(memory), -1)).unbind(1) for t in x if t is not None]
    for by_value, by_memory, by_held, whole, to_memory, *by_write in zip(*parts):
        write = torch.baddbmm(by_value, by_memory, memory)
        held = by_held @ memory
        ys.append(torch.baddbmm(held, by_write[0], write) if by_write else held)
        before, memory = memory, torch.baddbmm(whole * memory, to_memory, write)
    return torch.cat(ys, 1), before, memory
