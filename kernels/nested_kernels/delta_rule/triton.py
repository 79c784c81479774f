"""The recurrence of `chunked.read_chunks` in Triton: forward in two launches, backward in four, decoding in one.

    prepare    chunk by chunk: X = (I + A)^-1, U = X eta V, Z = X eta c K, P = r * Q K^T
    scan       the loop over chunks, S in float32 registers: W = U - Z S, Y = g Q S + P W, S <- G S + K^T (e * W)
    scan_back  the same loop from the end: dW = P^T dY + e * K dS, dS <- G dS + Q^T (g dY) - Z^T dW
    gradients  chunk by chunk: from S, W, dS and dW those of every operand
    step       a few tokens, one after the other

with A_ij = erase eta_i D_ij k_i.k_j for i > j, c_i = erase G'_i + fit, D_ij the decay from the write of token j to just
before token i, G' that from the beginning of the chunk, e that to its end and G over all of it. Of a read, (g, r) is
(G', D) before the write, (alpha G', D with the token itself) after it, and (1, 0) at the anchor. See kernels/README.md
for the backward pass. X comes from forward substitution in blocks of 16 and exact merges of blocks in float32: the
Neumann series loses every digit for correlated keys.

Decays are products of alpha over masked factors, never exp of differences of logarithms: alpha may be 0, values and
gradients stay exact there. Tokens before an open chunk, behind the ragged end and beyond the length of a chunk are
loaded as eta = 0, alpha = 1 and zeros: they change nothing. Products take operands of the dtype of q and k, and add up
in float32; float32 operands are multiplied as three tf32 products, or exactly (`ieee`), never as one.

Shapes: G batch and heads, N chunks, C tokens of a chunk's block (a power of two), T tokens, K key, V value.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
from __future__ import annotations

import triton
import triton.language as tl

READS = {"cumulative": 0, "after": 1, "anchor": 2}
BEFORE, AFTER, ANCHOR = (tl.constexpr(n) for n in READS.values())
LEAST = tl.constexpr(1e-18)  # of alpha where it is divided by: a product with it is no different from 0 in float32
PRECISION = tl.constexpr("tf32x3")  # of float32 operands: three tf32 products, the error of float32


@triton.jit
def tokens_of(chunk, length, before, T, C: tl.constexpr):
    """The tokens of a chunk's block, and which of them are there."""
    i = tl.arange(0, C)
    t = chunk * length + i - before
    return t, (i < length) & (t >= 0) & (t < T)


@triton.jit
def load_alpha(alpha, first, apart, t, shift, T, length, before, C: tl.constexpr, least: tl.constexpr):
    """alpha of the token `shift` places on in the same chunk's block, 1 where there is none."""
    i = tl.arange(0, C) + shift
    moved = t + shift
    there = (i >= 0) & (i < length) & (moved >= 0) & (moved < T)
    found = tl.load(alpha + first + moved * apart, mask=there, other=1.0)
    return tl.where(tl.abs(found) < least, least, found)


@triton.jit
def product(a, b):
    return a * b


@triton.jit
def decays(alpha, first, apart, t, T, length, before, C: tl.constexpr, least: tl.constexpr = 0.0):
    """alpha, G' and e (C,) and G () of a chunk."""
    now = load_alpha(alpha, first, apart, t, 0, T, length, before, C, least)
    start = tl.cumprod(load_alpha(alpha, first, apart, t, -1, T, length, before, C, least), 0)
    end = tl.cumprod(load_alpha(alpha, first, apart, t, 1, T, length, before, C, least), 0, reverse=True)
    return now, start, end, tl.reduce(now, 0, product)


@triton.jit
def decay_matrix(alpha, first, apart, t, T, length, before, C: tl.constexpr, least: tl.constexpr = 0.0):
    """D (C, C): what is left just before token i of the write of token j < i, and 0 elsewhere."""
    i = tl.arange(0, C)
    last = load_alpha(alpha, first, apart, t, -1, T, length, before, C, least)
    factors = tl.where(i[:, None] - 1 > i[None, :], last[:, None], 1.0)
    return tl.where(i[:, None] > i[None, :], tl.cumprod(factors, 0), 0.0)


@triton.jit
def alpha_gradient(now, start, end, whole, inside, C: tl.constexpr):
    """What decays times their gradients, of G', e (C,), G () and D (C, C), are as a gradient of alpha.

    alpha_m is in all D_tj with t > m > j, in G'_t with t > m, and in e_j with j < m.
    """
    i = tl.arange(0, C)
    one_before = tl.maximum(i - 1, 0)[None, :] + tl.zeros((C, C), tl.int32)
    through = tl.gather(tl.cumsum(inside, 1), one_before, 1)  # (C, C): over j < m, but for m = 0
    through = tl.where(i[None, :] > 0, through, 0.0) + start[:, None]
    through = tl.where(i[:, None] > i[None, :], through, 0.0)
    ended = tl.sum(tl.where(i[:, None] < i[None, :], end[:, None], 0.0), 0)
    return (tl.sum(through, 0) + ended + whole) / now


@triton.jit
def blocks_of(A, N: tl.constexpr, S: tl.constexpr, BELOW: tl.constexpr):
    """Of A (N S, N S) the blocks (N, S, S) on the diagonal, or BELOW blocks under it."""
    n = tl.arange(0, N)
    wanted = n[:, None, None, None] == n[None, None, :, None] + BELOW
    return tl.sum(tl.where(wanted, tl.reshape(A, (N, S, N, S)), 0.0), 2)


@triton.jit
def merged(X, A, N: tl.constexpr, S: tl.constexpr):
    """Inverses of N diagonal blocks (N, S, S) -> those of the N / 2 blocks (N / 2, 2 S, 2 S) that they are halves of.

    [[I + A1, 0], [L, I + A2]]^-1 = [[X1, 0], [-X2 L X1, X2]], in float32.
    """
    half = tl.arange(0, 2)
    upper, pairs = half[None, :, None, None] == 0, tl.reshape(X, (N // 2, 2, S, S))
    X1, X2 = tl.sum(tl.where(upper, pairs, 0.0), 1), tl.sum(tl.where(upper, 0.0, pairs), 1)
    L = tl.sum(tl.where(upper, 0.0, tl.reshape(blocks_of(A, N, S, 1), (N // 2, 2, S, S))), 1)
    lower = tl.dot(tl.dot(X2, L, input_precision="ieee"), X1, input_precision="ieee")
    row, column = half[None, :, None, None, None], half[None, None, None, :, None]
    whole = tl.where(row == column, pairs[:, :, :, None, :], 0.0)
    whole -= tl.where(row > column, lower[:, None, :, None, :], 0.0)  # (N / 2, 2, S, 2, S)
    return tl.reshape(whole, (N // 2, 2 * S, 2 * S))


@triton.jit
def inverse(A, C: tl.constexpr):
    """(I + A)^-1 for a strictly lower triangular A (C, C): diagonal blocks by forward substitution, then merged."""
    N: tl.constexpr = C // 16
    r = tl.arange(0, 16)
    rows, diagonal = r[None, :, None], blocks_of(A, N, 16, 0)
    X = tl.where(rows == r[None, None, :], 1.0, 0.0) + tl.zeros_like(diagonal)  # (N, 16, 16)
    for i in range(1, 16):
        a = tl.sum(tl.where(rows == i, diagonal, 0.0), 1)  # (N, 16)
        X -= tl.where(rows == i, tl.sum(a[:, :, None] * X, 1)[:, None, :], 0.0)
    if C >= 32:
        X = merged(X, A, N, 16)
    if C >= 64:
        X = merged(X, A, N // 2, 32)
    return tl.reshape(X, (C, C))


VARY = ["T", "length", "before", "chunks"]  # not worth a compilation each


@triton.jit(do_not_specialize=VARY)
def prepare(
    q, k, v, eta, alpha, by_value, by_memory, reads, solved,
    T, length, before, H, stride_b, stride_h, stride_t, chunks,
    ERASE: tl.constexpr, FIT: tl.constexpr, READ: tl.constexpr, KEEP: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr,
):  # fmt: skip
    """U (C, VP), Z (C, BK), P (C, C), and X (C, C) where it is to be kept, of one chunk."""
    g, n = tl.cast(tl.program_id(0), tl.int64), tl.program_id(1)
    first, block = (g // H) * stride_b + (g % H) * stride_h, g * chunks + n
    i, d = tl.arange(0, C), tl.arange(0, BK)
    t, there = tokens_of(n, length, before, T, C)
    row = first + t * stride_t
    square = block * C * C + i[:, None] * C + i[None, :]
    keys = tl.load(k + row[:, None] * K + d[None, :], mask=there[:, None] & (d[None, :] < K), other=0.0)
    rate = tl.load(eta + row, mask=there, other=0.0)
    now, start, _, _ = decays(alpha, first, stride_t, t, T, length, before, C)
    D = decay_matrix(alpha, first, stride_t, t, T, length, before, C)
    if READ != ANCHOR:
        queries = tl.load(q + row[:, None] * K + d[None, :], mask=there[:, None] & (d[None, :] < K), other=0.0)
        P = D * tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        if READ == AFTER:
            same = tl.sum(queries.to(tl.float32) * keys.to(tl.float32), 1)
            P = now[:, None] * P + tl.where(i[:, None] == i[None, :], same[:, None], 0.0)
        tl.store(reads + square, P.to(reads.dtype.element_ty))
    fitted = (rate * (ERASE * start + FIT))[:, None] * keys.to(tl.float32)  # eta c K
    X = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    if ERASE != 0:
        A = (ERASE * rate)[:, None] * D * tl.dot(keys, tl.trans(keys), input_precision=PRECISION)
        X = inverse(A, C)
        fitted = tl.dot(X.to(keys.dtype), fitted.to(keys.dtype), input_precision=PRECISION)
    if KEEP:
        tl.store(solved + square, X.to(solved.dtype.element_ty))
    tl.store(by_memory + (block * C + i[:, None]) * BK + d[None, :], fitted.to(by_memory.dtype.element_ty))
    for j in range(0, VP, BV):
        c = j + tl.arange(0, BV)
        values = tl.load(v + row[:, None] * V + c[None, :], mask=there[:, None] & (c[None, :] < V), other=0.0)
        written = rate[:, None] * values.to(tl.float32)
        if ERASE != 0:
            written = tl.dot(X.to(keys.dtype), written.to(keys.dtype), input_precision=PRECISION)
        tl.store(by_value + (block * C + i[:, None]) * VP + c[None, :], written.to(by_value.dtype.element_ty))


@triton.jit(do_not_specialize=VARY)
def scan(
    q, k, alpha, by_value, by_memory, reads, memory, y, last, final, states, writes,
    T, length, before, H, stride_b, stride_h, stride_t, chunks,
    READ: tl.constexpr, KEEP: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr,
):  # fmt: skip
    """Y (C, BV) of every chunk and the memory at the end; with KEEP, instead, each chunk's S (BK, BV) and W (C, BV)."""
    g = tl.cast(tl.program_id(0), tl.int64)
    first = (g // H) * stride_b + (g % H) * stride_h
    i, d, c = tl.arange(0, C), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    held = (d[:, None] < K) & (c[None, :] < V)
    at = g * K * V + c[None, :] * K + d[:, None]
    S = tl.load(memory + at, mask=held, other=0.0)
    for n in range(chunks):
        block = g * chunks + n
        t, there = tokens_of(n, length, before, T, C)
        row = first + t * stride_t
        some = there[:, None] & (d[None, :] < K)
        tile = (block * C + i[:, None]) * VP + c[None, :]
        keys = tl.load(k + row[:, None] * K + d[None, :], mask=some, other=0.0)
        now, start, end, whole = decays(alpha, first, stride_t, t, T, length, before, C)
        Z = tl.load(by_memory + (block * C + i[:, None]) * BK + d[None, :])
        U = tl.load(by_value + tile).to(tl.float32)
        old = S.to(keys.dtype)
        W = U - tl.dot(Z, old, input_precision=PRECISION)
        if KEEP:
            tl.store(states + (block * BK + d[:, None]) * VP + c[None, :], old)
            tl.store(writes + tile, W.to(writes.dtype.element_ty))
        else:
            queries = tl.load(q + row[:, None] * K + d[None, :], mask=some, other=0.0)
            Y = tl.dot(queries, old, input_precision=PRECISION)
            if READ != ANCHOR:
                Y *= (start if READ == BEFORE else now * start)[:, None]
                P = tl.load(reads + (block * C + i[:, None]) * C + i[None, :])
                Y = tl.dot(P, W.to(keys.dtype), Y, input_precision=PRECISION)
            place = row[:, None] * V + c[None, :]
            tl.store(y + place, Y.to(y.dtype.element_ty), mask=there[:, None] & (c[None, :] < V))
            if n == chunks - 1:
                tl.store(last + at, S, mask=held)
        W = (end[:, None] * W).to(keys.dtype)
        S = tl.dot(tl.trans(keys), W, whole * S, input_precision=PRECISION)
    if not KEEP:
        tl.store(final + at, S, mask=held)


@triton.jit(do_not_specialize=VARY)
def scan_back(
    q, k, alpha, by_memory, reads, dy, d_last, d_final, d_memory, d_states, d_writes,
    T, length, before, H, stride_b, stride_h, stride_t, chunks,
    READ: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr,
):  # fmt: skip
    """dS at the end (BK, BV) and dW (C, BV) of every chunk, and that of the memory."""
    g = tl.cast(tl.program_id(0), tl.int64)
    first = (g // H) * stride_b + (g % H) * stride_h
    i, d, c = tl.arange(0, C), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    held = (d[:, None] < K) & (c[None, :] < V)
    at = g * K * V + c[None, :] * K + d[:, None]
    dS = tl.load(d_final + at, mask=held, other=0.0)
    for m in range(chunks):
        n = chunks - 1 - m
        block = g * chunks + n
        t, there = tokens_of(n, length, before, T, C)
        row = first + t * stride_t
        some = there[:, None] & (d[None, :] < K)
        keys = tl.load(k + row[:, None] * K + d[None, :], mask=some, other=0.0)
        queries = tl.load(q + row[:, None] * K + d[None, :], mask=some, other=0.0)
        now, start, end, whole = decays(alpha, first, stride_t, t, T, length, before, C)
        Z = tl.load(by_memory + (block * C + i[:, None]) * BK + d[None, :])
        dY = tl.load(dy + row[:, None] * V + c[None, :], mask=there[:, None] & (c[None, :] < V), other=0.0)
        dY = dY.to(tl.float32)
        after = dS.to(keys.dtype)
        tl.store(d_states + (block * BK + d[:, None]) * VP + c[None, :], after)
        dW = end[:, None] * tl.dot(keys, after, input_precision=PRECISION)
        if READ != ANCHOR:
            P = tl.load(reads + (block * C + i[:, None]) * C + i[None, :])
            dW = tl.dot(tl.trans(P), dY.to(keys.dtype), dW, input_precision=PRECISION)
            dY *= (start if READ == BEFORE else now * start)[:, None]
        tl.store(d_writes + (block * C + i[:, None]) * VP + c[None, :], dW.to(d_writes.dtype.element_ty))
        dS = tl.dot(tl.trans(queries), dY.to(keys.dtype), whole * dS, input_precision=PRECISION)
        dS -= tl.dot(tl.trans(Z), dW.to(keys.dtype), input_precision=PRECISION)
        if m == 0:
            dS += tl.load(d_last + at, mask=held, other=0.0)
    tl.store(d_memory + at, dS, mask=held)


@triton.jit(do_not_specialize=VARY)
def gradients(
    q, k, v, eta, alpha, solved, states, writes, d_states, d_writes, dy, dq, dk, dv, d_eta, d_alpha,
    T, length, before, H, stride_b, stride_h, stride_t, chunks,
    ERASE: tl.constexpr, FIT: tl.constexpr, READ: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr,
):  # fmt: skip
    """dq, dk (C, K), dv (C, V), d_eta and d_alpha (C,) of one chunk."""
    g, n = tl.cast(tl.program_id(0), tl.int64), tl.program_id(1)
    first, block = (g // H) * stride_b + (g % H) * stride_h, g * chunks + n
    i, d = tl.arange(0, C), tl.arange(0, BK)
    t, there = tokens_of(n, length, before, T, C)
    row = first + t * stride_t
    place, some = row[:, None] * K + d[None, :], there[:, None] & (d[None, :] < K)
    keys = tl.load(k + place, mask=some, other=0.0)
    rate = tl.load(eta + row, mask=there, other=0.0)
    now, start, end, whole = decays(alpha, first, stride_t, t, T, length, before, C, LEAST)
    D = decay_matrix(alpha, first, stride_t, t, T, length, before, C, LEAST)
    if ERASE != 0:
        X = tl.load(solved + (block * C + i[:, None]) * C + i[None, :])
    # of the values, and three sums over them: dY W^T, dW W^T and <dS, S>
    d_rate, d_whole = tl.zeros((C,), tl.float32), 0.0
    YW, WW = tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32)
    for j in range(0, VP, BV):
        c = j + tl.arange(0, BV)
        shown, spot = there[:, None] & (c[None, :] < V), row[:, None] * V + c[None, :]
        tile, matrix = (block * C + i[:, None]) * VP + c[None, :], (block * BK + d[:, None]) * VP + c[None, :]
        W, dW = tl.load(writes + tile), tl.load(d_writes + tile)
        if READ != ANCHOR:
            dY = tl.load(dy + spot, mask=shown, other=0.0).to(keys.dtype)
            YW = tl.dot(dY, tl.trans(W), YW, input_precision=PRECISION)
        if ERASE != 0:
            WW = tl.dot(dW, tl.trans(W), WW, input_precision=PRECISION)
            dR = tl.dot(tl.trans(X), dW, input_precision=PRECISION)
        else:
            dR = dW.to(tl.float32)
        tl.store(dv + spot, (rate[:, None] * dR).to(dv.dtype.element_ty), mask=shown)
        d_rate += tl.sum(dR * tl.load(v + spot, mask=shown, other=0.0).to(tl.float32), 1)
        d_whole += tl.sum(tl.load(states + matrix).to(tl.float32) * tl.load(d_states + matrix).to(tl.float32))
    # of the queries
    queries = tl.load(q + place, mask=some, other=0.0)
    dQ = tl.zeros((C, BK), tl.float32)
    for j in range(0, VP, BV):
        c = j + tl.arange(0, BV)
        dY = tl.load(dy + row[:, None] * V + c[None, :], mask=there[:, None] & (c[None, :] < V), other=0.0)
        S = tl.load(states + (block * BK + d[:, None]) * VP + c[None, :])
        dQ = tl.dot(dY.to(keys.dtype), tl.trans(S), dQ, input_precision=PRECISION)
    dD, d_start, d_now = tl.zeros((C, C), tl.float32), tl.zeros((C,), tl.float32), tl.zeros((C,), tl.float32)
    dK = tl.zeros((C, BK), tl.float32)
    if READ != ANCHOR:
        read = tl.sum(dQ * queries.to(tl.float32), 1)
        dD = YW * tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        if READ == BEFORE:
            d_start = read
            dQ *= start[:, None]
            YW *= D
        else:
            d_start = now * read
            d_now = start * read + tl.sum(D * dD, 1)
            dQ *= (now * start)[:, None]
            dD *= now[:, None]
            YW *= now[:, None] * D + tl.where(i[:, None] == i[None, :], 1.0, 0.0)
        seen = YW.to(keys.dtype)
        dQ = tl.dot(seen, keys, dQ, input_precision=PRECISION)
        dK = tl.dot(tl.trans(seen), queries, dK, input_precision=PRECISION)
    tl.store(dq + place, dQ.to(dq.dtype.element_ty), mask=some)
    # of the keys: as what is written to, as what is erased with, and between tokens
    found = tl.zeros((C, BK), tl.float32)
    for j in range(0, VP, BV):
        c = j + tl.arange(0, BV)
        W = tl.load(writes + (block * C + i[:, None]) * VP + c[None, :])
        dS = tl.load(d_states + (block * BK + d[:, None]) * VP + c[None, :])
        found = tl.dot(W, tl.trans(dS), found, input_precision=PRECISION)
    dK += end[:, None] * found
    d_end = tl.sum(found * keys.to(tl.float32), 1)
    if ERASE + FIT != 0:
        found = tl.zeros((C, BK), tl.float32)
        for j in range(0, VP, BV):
            c = j + tl.arange(0, BV)
            dW = tl.load(d_writes + (block * C + i[:, None]) * VP + c[None, :])
            S = tl.load(states + (block * BK + d[:, None]) * VP + c[None, :])
            found = tl.dot(dW, tl.trans(S), found, input_precision=PRECISION)
        if ERASE != 0:
            found = tl.dot(tl.trans(X), found.to(keys.dtype), input_precision=PRECISION)
        fitted = ERASE * start + FIT
        along = tl.sum(found * keys.to(tl.float32), 1)
        d_rate -= fitted * along
        d_start -= ERASE * rate * along
        dK -= (rate * fitted)[:, None] * found
    if ERASE != 0:
        dA = -ERASE * tl.dot(tl.trans(X), WW.to(keys.dtype), input_precision=PRECISION)
        overlap = dA * tl.dot(keys, tl.trans(keys), input_precision=PRECISION)
        d_rate += tl.sum(D * overlap, 1)
        dD += rate[:, None] * overlap
        seen = (rate[:, None] * D * dA).to(keys.dtype)
        dK = tl.dot(seen, keys, dK, input_precision=PRECISION)
        dK = tl.dot(tl.trans(seen), keys, dK, input_precision=PRECISION)
    tl.store(dk + place, dK.to(dk.dtype.element_ty), mask=some)
    tl.store(d_eta + row, d_rate, mask=there)
    d_now += alpha_gradient(now, start * d_start, end * d_end, whole * d_whole, D * dD, C)
    tl.store(d_alpha + row, d_now, mask=there)


@triton.jit(do_not_specialize=["T", "length", "before"])
def step(
    q, k, v, eta, alpha, memory, y, last, final,
    T, length, before, H, stride_b, stride_h, stride_t,
    ERASE: tl.constexpr, FIT: tl.constexpr, READ: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The recurrence as it is printed, for V-blocks of a memory: y of T tokens and the memory at the end."""
    g = tl.cast(tl.program_id(0), tl.int64)
    first = (g // H) * stride_b + (g % H) * stride_h
    d, c = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    held = (c[:, None] < V) & (d[None, :] < K)
    at = g * K * V + c[:, None] * K + d[None, :]
    M = tl.load(memory + at, mask=held, other=0.0)  # (BV, BK)
    anchor = M
    for t in range(T):
        if (before + t) % length == 0:
            anchor = M
        row = first + t * stride_t
        key = tl.load(k + row * K + d, mask=d < K, other=0.0).to(tl.float32)[None, :]
        query = tl.load(q + row * K + d, mask=d < K, other=0.0).to(tl.float32)[None, :]
        W = tl.load(v + row * V + c, mask=c < V, other=0.0).to(tl.float32)
        if ERASE != 0:
            W -= ERASE * tl.sum(M * key, 1)
        if FIT != 0:
            W -= FIT * tl.sum(anchor * key, 1)
        Y = tl.sum((anchor if READ == ANCHOR else M) * query, 1)
        M = tl.load(alpha + row) * M + (tl.load(eta + row) * W)[:, None] * key
        if READ == AFTER:
            Y = tl.sum(M * query, 1)
        tl.store(y + row * V + c, Y.to(y.dtype.element_ty), mask=c < V)
    tl.store(last + at, anchor, mask=held)
    tl.store(final + at, M, mask=held)
