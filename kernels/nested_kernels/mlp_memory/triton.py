"""The two-layer memory in Triton, forward: one launch for all chunks.

A program has one memory. Its weights, float32, stay in global memory (in L2, as far as they fit) and go by in blocks of
hidden units, which are independent of each other once what the loss says at the output is known; so a chunk is two
passes over the blocks. With U, D a block of `up` and `down`, Ux, Dx that of the anchor, and C x C, C x K in registers:

    look      A = gelu(K Ux^T),   R = fit (K + A Dx^T) - value (V + gelu(V Ux^T) Dx^T),   A A^T
    between   W = (I + erase eta F * A A^T)^-1 eta (R + erase g A D^T)                         what is written to `down`
    advance   w = (I + erase eta F * K K^T)^-1 eta (R Dx * gelu'(K Ux^T) + erase g K U^T)      and to this block of `up`
              Aq = gelu(g Q U^T - (F * Q K^T) w),   Y += g Aq D^T,   Aq A^T
              U <- G U - (e w)^T K,   D <- G D - (e W)^T A
    and last  Y = Q + Y - (F * Aq A^T) W

F, g, e, G are decays inside the chunk, from its beginning, to its end, and over all of it. With momentum F is a product
of both decays, and what is held has a part of S.

A barrier follows each pass that writes: threads of a program read what others of it wrote. Tokens behind the ragged end
and beyond the length of a chunk are loaded as eta = 0, alpha = beta = 1 and zeros. Products take operands of the dtype
of k and add up in float32; float32 operands are multiplied as three tf32 products. What a pass needs of the tokens is
loaded for each block: kept, it would not fit into registers.

Shapes: Z batch and heads, N memories, C tokens of a chunk's block (a power of two), T tokens, K head width, E hidden.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from nested_kernels.delta_rule.triton import PRECISION, decay_matrix, decays, inverse, tokens_of

READS = {"none": 0, "cumulative": 1, "after": 2}
NONE, AFTER = tl.constexpr(READS["none"]), tl.constexpr(READS["after"])
VARY = ["T", "apart", "length", "chunks", "slots", "N", "first", "count"]  # not worth a compilation each


@triton.jit
def times(a, b, kind: tl.constexpr):
    return tl.dot(a.to(kind), b.to(kind), input_precision=PRECISION)


@triton.jit
def plus(onto, a, b, kind: tl.constexpr):
    return tl.dot(a.to(kind), b.to(kind), onto, input_precision=PRECISION)


@triton.jit
def normal(x):
    """The normal distribution below x, and its density: gelu is x below, its slope below + x density."""
    return 0.5 * (1 + tl.erf(0.7071067811865476 * x)), 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def up_block(at, j, K: tl.constexpr, E: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr):
    """Where a block (BE, BK) of `up` is, and which of it is there."""
    e, d = j + tl.arange(0, BE), tl.arange(0, BK)
    return at + e[:, None] * K + d[None, :], (e[:, None] < E) & (d[None, :] < K)


@triton.jit
def down_block(at, j, K: tl.constexpr, E: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr):
    """Where a block (BK, BE) of `down` is, and which of it is there."""
    e, d = j + tl.arange(0, BE), tl.arange(0, BK)
    return at + d[:, None] * E + e[None, :], (d[:, None] < K) & (e[None, :] < E)


@triton.jit
def load_up(at, j, K: tl.constexpr, E: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr):
    place, there = up_block(at, j, K, E, BK, BE)
    return tl.load(place, mask=there, other=0.0)


@triton.jit
def load_down(at, j, K: tl.constexpr, E: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr):
    place, there = down_block(at, j, K, E, BK, BE)
    return tl.load(place, mask=there, other=0.0)


@triton.jit
def store_up(at, W, j, K: tl.constexpr, E: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr):
    place, there = up_block(at, j, K, E, BK, BE)
    tl.store(place, W, mask=there)


@triton.jit
def store_down(at, W, j, K: tl.constexpr, E: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr):
    place, there = down_block(at, j, K, E, BK, BE)
    tl.store(place, W, mask=there)


@triton.jit
def factors(rates, begin, t, T, length, C: tl.constexpr, least: tl.constexpr = 0.0):
    """Of a decay: its values, from the beginning, to the end (C,), over all (), and inside before each token (C, C)."""
    now, start, end, whole = decays(rates, begin, 1, t, T, length, 0, C, least)
    return now, start, end, whole, decay_matrix(rates, begin, 1, t, T, length, 0, C, least)


@triton.jit
def with_momentum(inside, end, now_b, start_b, inside_b, C: tl.constexpr):
    """Products with beta's decays: inside (C, C) and of S (C,), before each token; to the end (C,); b itself."""
    i = tl.arange(0, C)
    L = now_b[:, None] * inside_b + tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    s = now_b * start_b
    both = tl.dot(inside, L, input_precision=PRECISION)
    return both, tl.sum(inside * s[None, :], 1), tl.sum(end[:, None] * L, 0), L, s


@triton.jit
def reading(
    alpha, beta, begin, t, T, length, READ: tl.constexpr, MOMENTUM: tl.constexpr, C: tl.constexpr,
    least: tl.constexpr = 0.0,
):  # fmt: skip
    """What a read of each token sees: F (C, C) of the writes, and of the weights and of S at the beginning (C,)."""
    i = tl.arange(0, C)
    now, reads, end, _, F = factors(alpha, begin, t, T, length, C, least)
    L, part, s = tl.where(i[:, None] == i[None, :], 1.0, 0.0), reads, reads
    if MOMENTUM:
        now_b, start_b, _, _, inside_b = factors(beta, begin, t, T, length, C, least)
        F, part, _, L, s = with_momentum(F, end, now_b, start_b, inside_b, C)
    if READ == AFTER:
        F, reads, part = now[:, None] * F + L, now * reads, now * part + s
    return F, reads, part


@triton.jit
def look(
    keys, values, seen_up, seen_down, down, initial_down,
    FIT: tl.constexpr, VALUE: tl.constexpr, OWN: tl.constexpr, ERASE: tl.constexpr, BOUNDED: tl.constexpr,
    STALE: tl.constexpr, INITIAL: tl.constexpr,
    K: tl.constexpr, E: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """R (C, BK), |a|^2 (C,), A A^T (C, C), and what `down` and its initial weights answer to A (C, BK)."""
    kind: tl.constexpr = keys.dtype
    out, made = tl.zeros((C, BK), tl.float32), tl.zeros((C, BK), tl.float32)
    held, begun = tl.zeros((C, BK), tl.float32), tl.zeros((C, BK), tl.float32)
    size, AA = tl.zeros((C,), tl.float32), tl.zeros((C, C), tl.float32)
    for j in range(0, E, BE):
        Ux, Dx = load_up(seen_up, j, K, E, BK, BE), load_down(seen_down, j, K, E, BK, BE)
        Z = times(keys, tl.trans(Ux), kind)
        A = Z * normal(Z)[0]
        if BOUNDED:
            size += tl.sum(A * A, 1)
        out = plus(out, A, tl.trans(Dx), kind)
        if OWN:
            Z = times(values, tl.trans(Ux), kind)
            made = plus(made, Z * normal(Z)[0], tl.trans(Dx), kind)
        if ERASE != 0:
            AA = plus(AA, A, tl.trans(A), kind)
            if STALE:
                held = plus(held, A, tl.trans(load_down(down, j, K, E, BK, BE)), kind)
            if INITIAL:
                begun = plus(begun, A, tl.trans(load_down(initial_down, j, K, E, BK, BE)), kind)
    if not STALE:
        held = out
    R = FIT * (keys.to(tl.float32) + out) - VALUE * (values.to(tl.float32) + made)
    return R, size, AA, held, begun


@triton.jit(do_not_specialize=VARY)
def advance(
    q, k, v, eta, alpha, beta, anchor_up, anchor_down, initial_up, initial_down, up, down, heap_up, heap_down, y,
    T, apart, length, chunks, slots, N, first, count,
    ERASE_UP: tl.constexpr, ERASE_DOWN: tl.constexpr, FIT: tl.constexpr, VALUE: tl.constexpr, OWN: tl.constexpr,
    BOUNDED: tl.constexpr, READ: tl.constexpr, STALE: tl.constexpr, INITIAL: tl.constexpr, MOMENTUM: tl.constexpr,
    K: tl.constexpr, E: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Y of every chunk, and the weights after them: in their place, or with more slots than one each in its own."""
    kind: tl.constexpr = k.dtype.element_ty
    program = tl.cast(tl.program_id(0), tl.int64)
    z = program // count
    m = z * N + first + program % count
    d = tl.arange(0, BK)
    moves = tl.minimum(slots - 1, 1) * E * K
    up, down, heap_up, heap_down = (
        up + m * slots * E * K, down + m * slots * E * K, heap_up + m * slots * E * K, heap_down + m * slots * E * K
    )  # fmt: skip
    initial_up, initial_down = initial_up + m * E * K, initial_down + m * E * K
    for n in range(chunks):
        t, there = tokens_of(n, length, 0, T, C)
        row = z * apart + t
        place, some = row[:, None] * K + d[None, :], there[:, None] & (d[None, :] < K)
        keys = tl.load(k + place, mask=some, other=0.0)
        values = tl.load(v + place, mask=some, other=0.0)
        rate = tl.load(eta + row, mask=there, other=0.0)
        _, start, end, whole, inside = factors(alpha, z * apart, t, T, length, C)
        seen_up, seen_down = up, down
        if STALE:
            seen_up, seen_down = anchor_up + m * E * K, anchor_down + m * E * K
        R, size, AA, held, begun = look(
            keys, values, seen_up, seen_down, down, initial_down,
            FIT, VALUE, OWN, ERASE_DOWN, BOUNDED, STALE, INITIAL, K, E, C, BK, BE,
        )  # fmt: skip
        rate_down = rate / tl.maximum(size, 1.0) if BOUNDED else rate
        W = rate_down[:, None] * R
        if ERASE_DOWN != 0:
            held = start[:, None] * held
            if INITIAL:
                held += (1 - start)[:, None] * begun
            W += (ERASE_DOWN * rate_down)[:, None] * held
            W = times(inverse((ERASE_DOWN * rate_down)[:, None] * inside * AA, C), W, kind)
        if ERASE_UP != 0:
            KK = times(keys, tl.trans(keys), kind)
            X = inverse((ERASE_UP * rate)[:, None] * inside * KK, C).to(kind)
        R, to_end = R.to(kind), end
        if MOMENTUM:
            now_b, start_b, end_b, whole_b, inside_b = factors(beta, z * apart, t, T, length, C)
            end = tl.where(there, end, 0.0)  # S would go on being added where there are no tokens
            _, _, to_end, _, s = with_momentum(inside, end, now_b, start_b, inside_b, C)
            left = tl.sum(end * s)
            to_end_b = (end_b[:, None] * W).to(kind)
        if READ != NONE:
            F, reads, part = reading(alpha, beta, z * apart, t, T, length, READ, MOMENTUM, C)
            P = (F * times(tl.load(q + place, mask=some, other=0.0), tl.trans(keys), kind)).to(kind)
            Y, QA = tl.zeros((C, BK), tl.float32), tl.zeros((C, C), tl.float32)
        W_end = (to_end[:, None] * W).to(kind)
        W = W.to(kind)
        for j in range(0, E, BE):
            keys = tl.load(k + place, mask=some, other=0.0)
            U, D = load_up(up, j, K, E, BK, BE), load_down(down, j, K, E, BK, BE)
            Ux, Dx = U, D
            if STALE:
                Ux, Dx = load_up(seen_up, j, K, E, BK, BE), load_down(seen_down, j, K, E, BK, BE)
            Z = times(keys, tl.trans(Ux), kind)
            below, density = normal(Z)
            A = (Z * below).to(kind)
            w = times(R, Dx, kind) * (below + Z * density)
            if INITIAL:
                U0, D0 = load_up(initial_up, j, K, E, BK, BE), load_down(initial_down, j, K, E, BK, BE)
            if ERASE_UP != 0:
                if STALE:
                    Z = times(keys, tl.trans(U), kind)
                w += (ERASE_UP * start)[:, None] * Z
                if INITIAL:
                    w += (ERASE_UP * (1 - start))[:, None] * times(keys, tl.trans(U0), kind)
            w *= rate[:, None]
            if ERASE_UP != 0:
                w = times(X, w, kind)
            if MOMENTUM:
                SU, SD = load_up(heap_up, j, K, E, BK, BE), load_down(heap_down, j, K, E, BK, BE)
            if READ != NONE:
                queries = tl.load(q + place, mask=some, other=0.0)
                Z = reads[:, None] * times(queries, tl.trans(U), kind)
                if INITIAL:
                    Z += (1 - reads)[:, None] * times(queries, tl.trans(U0), kind)
                if MOMENTUM:
                    Z += part[:, None] * times(queries, tl.trans(SU), kind)
                Z -= times(P, w, kind)
                Z *= normal(Z)[0]
                QA = plus(QA, Z, tl.trans(A), kind)
                Y = plus(Y, reads[:, None] * Z, tl.trans(D), kind)
                if INITIAL:
                    Y = plus(Y, (1 - reads)[:, None] * Z, tl.trans(D0), kind)
                if MOMENTUM:
                    Y = plus(Y, part[:, None] * Z, tl.trans(SD), kind)
            U = whole * U - times(tl.trans(to_end[:, None] * w), keys, kind)
            D = whole * D - times(tl.trans(W_end), A, kind)
            if INITIAL:
                U, D = U + (1 - whole) * U0, D + (1 - whole) * D0
            if MOMENTUM:
                U, D = U + left * SU, D + left * SD
                SU = whole_b * SU - times(tl.trans(end_b[:, None] * w), keys, kind)
                SD = whole_b * SD - times(tl.trans(to_end_b), A, kind)
                store_up(heap_up + moves, SU, j, K, E, BK, BE)
                store_down(heap_down + moves, SD, j, K, E, BK, BE)
            store_up(up + moves, U, j, K, E, BK, BE)
            store_down(down + moves, D, j, K, E, BK, BE)
        if READ != NONE:
            F, _, _ = reading(alpha, beta, z * apart, t, T, length, READ, MOMENTUM, C)
            Y += tl.load(q + place, mask=some, other=0.0).to(tl.float32) - times(F * QA, W, kind)
            tl.store(y + place, Y.to(y.dtype.element_ty), mask=some)
        up, down, heap_up, heap_down = up + moves, down + moves, heap_up + moves, heap_down + moves
        tl.debug_barrier()
