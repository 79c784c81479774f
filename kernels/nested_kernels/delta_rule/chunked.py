"""The recurrence for a chunk of tokens at a time: matrix products, and one loop over chunks instead of tokens.

Inside a chunk of C tokens that begins with the memory S, the write of token t is w_t k_t^T and
    M_t = G_t S + sum_{s <= t} (G_t / G_s) w_s k_s^T,      G_t = alpha_1 ... alpha_t
so the writes solve a unit lower triangular system (the WY form of a product of Householder-like factors):
    (I + tril(erase eta D * K K^T)) W = eta (V - (erase G' + fit) K S^T)
with D_ts = G_{t-1} / G_s and G'_t = G_{t-1}. It is solved by forward substitution: the Neumann series loses every digit
for correlated keys. W is affine in S, with both parts known for all chunks at once; four small products per chunk are
left for the loop.

The first gradient is in closed form (kernels/README.md), which passes over memory less often than autograd does. It is
plain torch, and all orders above it are autograd's.

Decays are products of alpha, by forward substitution, and so are their gradients; never quotients or logarithms: alpha
may be 0.

Shapes: G batch and heads, N chunks, C tokens of a chunk, B batch, T tokens, H heads, K key, V value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nested_kernels.backend import transformed, without_autocast
from nested_kernels.delta_rule.rule import Objective, Read, Rule, State, terms

Recurrence = Callable[..., tuple[Tensor, Tensor, Tensor]]  # as `read_chunks`
CACHED = 2**17  # numbers of each operand that a processor reads at once: all that is made of them stays in its cache


class Chunks(NamedTuple):
    """The operands cut into chunks, all in one batch."""

    q: Tensor  # (GN, C, K)
    k: Tensor  # (GN, C, K)
    v: Tensor  # (GN, C, V)
    eta: Tensor  # (GN, C)
    alpha: Tensor  # (GN, C)


class Prepared(NamedTuple):
    """All that does not depend on the memory S at the beginning of the chunk.

    W = by_value + by_memory S^T, then y = by_held S^T + by_write W and S^T <- whole S^T + to_memory^T W.
    """

    by_value: Tensor  # (GN, C, V)
    by_memory: Tensor  # (GN, C, K)
    by_held: Tensor  # (GN, C, K)
    whole: Tensor  # (GN, 1, 1)
    to_memory: Tensor  # (GN, C, K)
    by_write: Tensor | None  # (GN, C, C); None where no read sees what its chunk writes
    left: Tensor  # (GN, C + 1, C + 1), as `decay`; this and the rest for the gradients
    inverse: Tensor | None  # (GN, C, C) of the system; None where nothing is erased
    keys: Tensor | None  # (GN, C, C) k k^T, with the inverse
    asked: Tensor | None  # (GN, C, C) q k^T, with by_write


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
    (b, h, t, width), tokens = q.shape, (q, k, v, eta, alpha)
    recorded = _recorded((*tokens, memory))
    form: Callable[..., Any] = _Scan.apply if recorded else _scan
    cached = length * max(1, CACHED // (b * h * length * width))
    piece = before + t if recorded or memory.device.type != "cpu" else cached
    ys, last, final = [], memory, memory.mT.flatten(0, 1)
    for begin in range(-before, t, piece):
        part, read_already = [x[:, :, max(begin, 0) : begin + piece] for x in tokens], max(-begin, 0)
        y, last, final = form(*_cut(part, length, read_already), final, erase, fit, read)
        ys.append(y.unflatten(0, (b, h))[:, :, read_already : read_already + part[0].shape[2]])
    last, final = (m.mT.unflatten(0, (b, h)) for m in (last, final))
    return ys[0] if len(ys) == 1 else torch.cat(ys, 2), last, final


def _recorded(operands: Sequence[Tensor]) -> bool:
    """Is it autograd that will ask for gradients? Compilers and transforms of torch.func make their own."""
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in operands):
        return False
    return not torch.compiler.is_compiling() and transformed(*operands) is None


def _add_to_first(x: Tensor, n: int, addition: Tensor) -> Tensor:
    """x (B, H, T, V) with `addition` on its first n tokens."""
    return torch.cat([x[:, :, :n] + addition, x[:, :, n:]], 2)


def _cut(tokens: Sequence[Tensor], length: int, before: int) -> Chunks:
    """Chunks of `length`; `before` tokens at the front and the ragged tail are tokens that change nothing."""
    q, k, v, eta, alpha = tokens
    after = -(before + q.shape[2]) % length

    def cut(x: Tensor, fill: float = 0.0) -> Tensor:
        if before or after:
            x = F.pad(x, (0, 0) * (x.ndim - 3) + (before, after), value=fill)
        return x.reshape(-1, length, *x.shape[3:])

    return Chunks(cut(q), cut(k), cut(v), cut(eta), cut(alpha, 1.0))


def _prepare(x: Chunks, erase: float, fit: float, read: Read) -> Prepared:
    left, rate = decay(x.alpha), x.eta.unsqueeze(-1)  # (GN, C + 1, C + 1), (GN, C, 1)
    since, inside = left[:, :-1, :1], left[:, :-1, 1:]  # G'_t (GN, C, 1) and D (GN, C, C)
    to_end, whole = left[:, -1, 1:, None], left[:, -1:, :1]  # G_C / G_s (GN, C, 1) and G_C (GN, 1, 1)
    solved, inverse, keys = torch.diag_embed(x.eta), None, None  # (GN, C, C)
    if erase:
        keys, one = x.k @ x.k.mT, torch.eye(x.k.shape[1], dtype=x.k.dtype, device=x.k.device)
        inverse = torch.linalg.solve_triangular(erase * rate * inside * keys, one, upper=False, unitriangular=True)
        solved = inverse * rate.mT
    by_memory = (solved * -(erase * since + fit).mT) @ x.k  # (GN, C, K)
    by_held, by_write, asked = x.q, None, None
    if read != "anchor":
        rows, asked = _rows(left, read), x.q @ x.k.mT  # (GN, C, C)
        by_held, by_write = rows[..., :1] * x.q, rows[..., 1:] * asked
    return Prepared(solved @ x.v, by_memory, by_held, whole, to_end * x.k, by_write, left, inverse, keys, asked)


def _rows(left: Tensor, read: Read) -> Tensor:
    """What is left when a token is read (GN, C, C + 1): after its write one factor more, and the token itself."""
    return left[:, 1:] if read == "after" else left[:, :-1]


def decay(alpha: Tensor) -> Tensor:
    """alpha (GN, C) -> (GN, C + 1, C + 1): alpha_{s+1} ... alpha_t at row t, column s <= t (both from 0), else 0."""
    one = torch.eye(alpha.shape[-1] + 1, dtype=alpha.dtype, device=alpha.device)
    before = torch.diag_embed(-alpha, -1)  # row t of the answer is alpha_t times the row before, and 1 on the diagonal
    return torch.linalg.solve_triangular(before, one, upper=False, unitriangular=True)


def _scan(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, memory: Tensor, erase: float, fit: float, read: Read
) -> tuple[Tensor, Tensor, Tensor]:
    """The loop over chunks, from S^T (G, K, V): y (G, NC, V), S^T before the last chunk, and S^T after it.

    All of a chunk is done while its memory is in the processor's cache.
    """
    prepared = _prepare(Chunks(q, k, v, eta, alpha), erase, fit, read)
    ys, before = [], memory
    parts = [_apart(t, memory) for t in prepared[:6] if t is not None]
    for by_value, by_memory, by_held, whole, to_memory, *by_write in zip(*parts):
        write = torch.baddbmm(by_value, by_memory, memory)
        held = torch.bmm(by_held, memory)
        ys.append(torch.baddbmm(held, by_write[0], write) if by_write else held)
        before, memory = memory, torch.baddbmm(whole * memory, to_memory.mT, write)
    return torch.cat(ys, 1), before, memory


def _apart(x: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
    """x (GN, ...) as N views (G, ...)."""
    return x.unflatten(0, (len(memory), -1)).unbind(1)


class _Scan(torch.autograd.Function):
    """`_scan` with its gradient in closed form. Where that is differentiated again, it begins with the operands."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        *operands, erase, fit, read = given
        p, S, W, final = _keep(operands, erase, fit, read)
        y = torch.bmm(p.by_held, S)  # (GN, C, V)
        if p.by_write is not None:
            torch.baddbmm(y, p.by_write, W, out=y)  # in place, and counted where operations are counted
        ctx.save_for_backward(*operands, *p[1:], S, W)
        ctx.options = erase, fit, read
        ctx.set_materialize_grads(False)
        return y.view(len(final), -1, y.shape[-1]), _apart(S, final)[-1].clone(), final

    @staticmethod
    def backward(ctx: Any, *d: Tensor | None) -> tuple[Tensor | None, ...]:
        operands, (*p, S, W) = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        (*x, memory), p = operands, Prepared(operands[2], *p)  # the first field is not asked for
        with without_autocast(memory):  # of whoever differentiates
            if torch.is_grad_enabled():
                p, S, W, _ = _keep(operands, *ctx.options)
            return *_gradients(d, Chunks(*x), p, memory, S, W, *ctx.options), None, None, None


def _keep(operands: Sequence[Tensor], erase: float, fit: float, read: Read) -> tuple[Prepared, Tensor, Tensor, Tensor]:
    """What the gradients need: S^T before each chunk (GN, K, V) and the writes (GN, C, V); and the last S^T."""
    *x, memory = operands
    p = _prepare(Chunks(*x), erase, fit, read)
    return p, *_loop(p.by_value, p.by_memory, p.whole, None, p.to_memory, memory)


def _loop(
    first: Tensor, through: Tensor, whole: Tensor, extra: Tensor | None, into: Tensor, S: Tensor, back: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """W = first + through S, S <- whole S + extra + into^T W for chunk after chunk: S before each, all W, the last S.

    Its gradient is the same loop, `back` from the last chunk, with `through` and `into` exchanged.
    """
    n, anew = len(whole) // len(S), torch.is_grad_enabled() or transformed(first, S) is not None
    states, writes = S.new_empty(len(whole), *S.shape[1:]), torch.empty_like(first)
    places = [(None, None)] * n if anew else list(zip(_apart(states, S), _apart(writes, S)))
    parts = list(zip(*(_apart(t, S) for t in (first, through, whole, into, *(() if extra is None else (extra,))))))
    done = []
    for i in reversed(range(n)) if back else range(n):
        (state, write), (a, z, g, t, *b) = places[i], parts[i]
        before = S if state is None else state.copy_(S)
        write = torch.baddbmm(a, z, before, out=write)
        done.append((before, write))
        S = torch.baddbmm(torch.addcmul(b[0], g, before) if b else g * before, t.mT, write)
    if anew:
        states, writes = (torch.stack(x, 1).flatten(0, 1) for x in zip(*(done[::-1] if back else done)))
    return states, writes, S


def _gradients(
    d: Sequence[Tensor | None],
    x: Chunks,
    p: Prepared,
    memory: Tensor,
    S: Tensor,
    W: Tensor,
    erase: float,
    fit: float,
    read: Read,
) -> tuple[Tensor | None, ...]:
    """Of the operands and the memory, from the states S^T (GN, K, V) before each chunk and the writes W (GN, C, V)."""
    dy, d_last, d_final = d
    rate, left, inside = x.eta.unsqueeze(-1), p.left, p.left[:, :-1, 1:]
    d_read = None if dy is None else dy.reshape(W.shape)
    onto_W = torch.zeros_like(W) if d_read is None or p.by_write is None else torch.bmm(p.by_write.mT, d_read)
    onto_S = torch.zeros_like(S) if d_read is None else torch.bmm(p.by_held.mT, d_read)
    if d_last is not None:
        onto_S.unflatten(0, (len(memory), -1))[:, -1] += d_last
    dS = torch.zeros_like(memory) if d_final is None else d_final
    dS, dW, d_memory = _loop(onto_W, p.to_memory, p.whole, onto_S, p.by_memory, dS, back=True)  # dS after each chunk
    dR = dW if p.inverse is None else torch.bmm(p.inverse.mT, dW)  # of eta (V - c K S^T)
    asked, written = torch.bmm(dR, S.mT), torch.bmm(W, dS.mT)  # (GN, C, K)
    c, dc = erase * left[:, :-1, :1] + fit, _dot(asked, x.k)
    d_rate = _dot(dR, x.v) - c * dc
    dk = torch.addcmul(left[:, -1, 1:, None] * written, c * rate, asked, value=-1)
    d_end = torch.cat([_dot(dS.flatten(1), S.flatten(1)).unsqueeze(-1), _dot(written, x.k).mT], -1)  # (GN, 1, C + 1)
    d_left = left[:, -1:].mT * d_end
    if p.inverse is not None and p.keys is not None:
        dA = torch.bmm(dR, W.mT).mul_(-erase)
        B = inside * dA
        d_rate = d_rate + _dot(B, p.keys)
        B = rate * B
        dk = torch.baddbmm(dk, B + B.mT, x.k)
        d_left = torch.baddbmm(d_left, left[:, :-1].mT, torch.cat([-erase * rate * dc, dA * p.keys * rate], -1))
    dq = None if d_read is None else torch.bmm(d_read, S.mT)
    if dq is not None and d_read is not None and p.asked is not None:
        rows = _rows(left, read)
        dP = torch.bmm(d_read, W.mT)
        d_left = torch.baddbmm(d_left, rows.mT, torch.cat([_dot(dq, x.q), p.asked * dP], -1))
        dP = dP * rows[..., 1:]
        dq = torch.baddbmm(dq * rows[..., :1], dP, x.k)
        dk = torch.baddbmm(dk, dP.mT, x.q)
    d_alpha = (left[:, :-1] * d_left[:, 1:]).sum(-1)  # d_left is left^T times the gradient of left
    return dq, dk, rate * dR, d_rate.squeeze(-1), d_alpha, d_memory


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """(..., K) -> (..., 1)"""
    return (x * y).sum(-1, keepdim=True)
