"""Attention in Triton, forward, backward and the backward pass of that: no T x N matrix and no atomics.

    forward            queries   O and L, the logsumexp of each row of S
    backward_rows      queries   dQ, and D = rowsum(P * dP) = rowsum(dO * O)
    backward_columns   keys      dK, dV
    second_rows        queries   barQ, bar(dO), and alpha = rowsum(P * F), E = rowsum(P * X)
    second_columns     keys      barK, barV

Each program owns a block of queries, or of keys, and goes through the blocks of keys that its queries see, or of
queries that see its keys: what is hidden from a whole block is left out by the bounds of the loop. With L and the sums
over rows kept, every tile is computed again where it is needed:

    S = Q K^T / sqrt(K);    P = exp(S - L);    dP = dO V^T;    dS = P * (dP - D)
    F = (U_Q K^T + Q U_K^T) / sqrt(K);    X = (F - alpha) * (dP - D) + dO U_V^T
    A = P * (F - alpha);    R = P * (X - E)

A and R are centred before they are rounded, so `second_rows` goes through its keys twice: see kernels/README.md.
Products take operands of the dtype of q, k and v and add up in float32; float32 operands are multiplied as three tf32
products, never as one. The softmax and all sums are float32. A head size is a sum of powers of two, SIZES, so that
80 = 64 + 16 and 96 = 64 + 32 are multiplied as such and not as 128.

Exponentials are of base 2, and L is, too. A query that is not there is loaded as zeros, and sees what it likes: it adds
zeros to keys. A key that is not there stands after every query, so none sees it.

Shapes: G batch and heads, T tokens (queries), N keys and values, K head size, BM queries and BN keys of a block.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl

PRECISION = tl.constexpr("tf32x3")  # of float32 operands: three tf32 products, the error of float32
LOG2_E = tl.constexpr(1.4426950408889634)
VARY = ["T", "N", "window"]  # not worth a compilation each


@triton.jit
def places(g, start, length, H: tl.constexpr, B: tl.constexpr):
    """Of B rows from `start` of a head of (B, length, H): the first one, what to add for each, and is it there?"""
    r = tl.arange(0, B)
    return ((g // H) * length + start) * H + g % H, r * H, start + r < length


@triton.jit
def load(x, rows, K: tl.constexpr, SIZES: tl.constexpr):
    """Rows of x (., K), one block for each of SIZES, and zeros for rows that are not there."""
    first, more, there = rows
    found = ()
    for n in tl.static_range(len(SIZES)):
        d = n * SIZES[0] + tl.arange(0, SIZES[n])
        mask = there[:, None] & (d[None, :] < K)
        found += (tl.load(x + first * K + (more * K)[:, None] + d[None, :], mask=mask, other=0.0),)
    return found


@triton.jit
def store(x, rows, parts, factor, K: tl.constexpr, SIZES: tl.constexpr):
    first, more, there = rows
    for n in tl.static_range(len(SIZES)):
        d = n * SIZES[0] + tl.arange(0, SIZES[n])
        block = (parts[n] * factor).to(x.dtype.element_ty)
        tl.store(x + first * K + (more * K)[:, None] + d[None, :], block, mask=there[:, None] & (d[None, :] < K))


@triton.jit
def load_numbers(x, rows):
    first, more, there = rows
    return tl.load(x + first + more, mask=there, other=0.0)


@triton.jit
def store_numbers(x, rows, values):
    first, more, there = rows
    tl.store(x + first + more, values, mask=there)


@triton.jit
def zeros(M: tl.constexpr, SIZES: tl.constexpr):
    found = ()
    for n in tl.static_range(len(SIZES)):
        found += (tl.zeros((M, tl.constexpr(SIZES[n])), tl.float32),)  # Triton 3.6 has the plain number there
    return found


@triton.jit
def scores(a, b, onto):
    """a b^T, added to `onto`."""
    for n in tl.static_range(len(a)):
        onto = tl.dot(a[n], tl.trans(b[n]), onto, input_precision=PRECISION)
    return onto


@triton.jit
def add(onto, weights, x):
    """`onto` + weights x."""
    found = ()
    for n in tl.static_range(len(x)):
        found += (tl.dot(weights.to(x[n].dtype), x[n], onto[n], input_precision=PRECISION),)
    return found


@triton.jit
def times(parts, factor):
    found = ()
    for n in tl.static_range(len(parts)):
        found += (parts[n] * factor,)
    return found


@triton.jit
def inner(a, b):
    """The sum of a * b over each row."""
    total = tl.sum(a[0].to(tl.float32) * b[0].to(tl.float32), 1)
    for n in tl.static_range(1, len(a)):
        total += tl.sum(a[n].to(tl.float32) * b[n].to(tl.float32), 1)
    return total


@triton.jit
def sees(distance, window):
    """Does a query see a key so far before it? 0 <= distance < window, in one comparison."""
    return distance.to(tl.uint32) < tl.cast(window, tl.uint32)


@triton.jit
def probabilities(S, L, distance, window, SCALE: tl.constexpr):
    """P, 0 where a query does not see a key."""
    return tl.exp2(tl.where(sees(distance, window), S * (SCALE * LOG2_E) - L, float("-inf")))


@triton.jit
def block_of(blocks):
    """Which head and which block: those of one head beside each other in time, so that they read the same keys."""
    return tl.cast(tl.program_id(0) // blocks, tl.int64), tl.program_id(0) % blocks


@triton.jit
def keys_seen(m, T, N, window, BM: tl.constexpr, BN: tl.constexpr):
    """By a block of queries: from a multiple of BN."""
    first = N - T + m * BM
    return tl.maximum(first - window + 1, 0) // BN * BN, tl.minimum(first + BM, N)


@triton.jit
def seeing_queries(n, T, N, window, BM: tl.constexpr, BN: tl.constexpr):
    """Those that see a block of keys: from a multiple of BM."""
    first = n * BN - (N - T)
    return tl.maximum(first, 0) // BM * BM, tl.minimum(first + BN - 1 + window, T)


@triton.jit(do_not_specialize=VARY)
def forward(
    q, k, v, out, lse,
    T, N, window, SCALE: tl.constexpr,
    H: tl.constexpr, K: tl.constexpr, SIZES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """O (BM, K) and L (BM,)."""
    blocks = tl.cdiv(T, BM)
    g, m = block_of(blocks)
    m = blocks - 1 - m  # the longest first
    i = m * BM + tl.arange(0, BM)
    rows, own = places(g, m * BM, T, H, BM), N - T + i
    Q = load(q, rows, K, SIZES)
    most, total, sums = tl.full((BM,), float("-inf"), tl.float32), tl.zeros((BM,), tl.float32), zeros(BM, SIZES)
    begin, end = keys_seen(m, T, N, window, BM, BN)
    for n in range(begin, end, BN):
        j = n + tl.arange(0, BN)
        at = places(g, n, N, H, BN)
        S = scores(Q, load(k, at, K, SIZES), tl.zeros((BM, BN), tl.float32)) * (SCALE * LOG2_E)
        S = tl.where(sees(own[:, None] - j[None, :], window), S, float("-inf"))
        now = tl.maximum(most, tl.max(S, 1))
        base = tl.where(now == float("-inf"), 0.0, now)  # a row that has seen nothing yet
        P = tl.exp2(S - base[:, None])
        left = tl.exp2(most - base)
        most, total = now, total * left + tl.sum(P, 1)
        sums = add(times(sums, left[:, None]), P, load(v, at, K, SIZES))
    total = tl.where(i < T, total, 1.0)
    store(out, rows, sums, (1 / total)[:, None], K, SIZES)
    store_numbers(lse, rows, most + tl.log2(total))


@triton.jit(do_not_specialize=VARY)
def backward_rows(
    d_out, q, k, v, out, lse, dq, sums,
    T, N, window, SCALE: tl.constexpr,
    H: tl.constexpr, K: tl.constexpr, SIZES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dQ (BM, K) and D (BM,)."""
    blocks = tl.cdiv(T, BM)
    g, m = block_of(blocks)
    m = blocks - 1 - m
    i = m * BM + tl.arange(0, BM)
    rows, own = places(g, m * BM, T, H, BM), N - T + i
    Q, dO = load(q, rows, K, SIZES), load(d_out, rows, K, SIZES)
    L = load_numbers(lse, rows)
    D = inner(dO, load(out, rows, K, SIZES))
    store_numbers(sums, rows, D)
    dQ = zeros(BM, SIZES)
    begin, end = keys_seen(m, T, N, window, BM, BN)
    for n in range(begin, end, BN):
        j = n + tl.arange(0, BN)
        at = places(g, n, N, H, BN)
        keys = load(k, at, K, SIZES)
        S = scores(Q, keys, tl.zeros((BM, BN), tl.float32))
        P = probabilities(S, L[:, None], own[:, None] - j[None, :], window, SCALE)
        dP = scores(dO, load(v, at, K, SIZES), tl.zeros((BM, BN), tl.float32))
        dQ = add(dQ, P * (dP - D[:, None]), keys)
    store(dq, rows, dQ, SCALE, K, SIZES)


@triton.jit(do_not_specialize=VARY)
def backward_columns(
    d_out, q, k, v, lse, sums, dk, dv,
    T, N, window, SCALE: tl.constexpr,
    H: tl.constexpr, K: tl.constexpr, SIZES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dK and dV (BN, K), from tiles whose rows are keys."""
    g, n = block_of(tl.cdiv(N, BN))
    j = n * BN + tl.arange(0, BN)
    at = places(g, n * BN, N, H, BN)
    keys, values = load(k, at, K, SIZES), load(v, at, K, SIZES)
    dK, dV = zeros(BN, SIZES), zeros(BN, SIZES)
    begin, end = seeing_queries(n, T, N, window, BM, BN)
    for m in range(begin, end, BM):
        i = m + tl.arange(0, BM)
        rows, own = places(g, m, T, H, BM), N - T + i
        Q, dO = load(q, rows, K, SIZES), load(d_out, rows, K, SIZES)
        L, D = load_numbers(lse, rows), load_numbers(sums, rows)
        S = scores(keys, Q, tl.zeros((BN, BM), tl.float32))
        P = probabilities(S, L[None, :], own[None, :] - j[:, None], window, SCALE)
        dV = add(dV, P, dO)
        dP = scores(values, dO, tl.zeros((BN, BM), tl.float32))
        dK = add(dK, P * (dP - D[None, :]), Q)
    store(dk, at, dK, SCALE, K, SIZES)
    store(dv, at, dV, 1.0, K, SIZES)


@triton.jit(do_not_specialize=VARY)
def second_rows(
    u_q, u_k, u_v, d_out, q, k, v, out, lse, bar_q, bar_d_out, sums, means, centres,
    T, N, window, SCALE: tl.constexpr,
    H: tl.constexpr, K: tl.constexpr, SIZES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """barQ and bar(dO) (BM, K); D, alpha and E (BM,)."""
    blocks = tl.cdiv(T, BM)
    g, m = block_of(blocks)
    m = blocks - 1 - m
    i = m * BM + tl.arange(0, BM)
    rows, own = places(g, m * BM, T, H, BM), N - T + i
    Q, dO, UQ = load(q, rows, K, SIZES), load(d_out, rows, K, SIZES), load(u_q, rows, K, SIZES)
    L = load_numbers(lse, rows)
    D = inner(dO, load(out, rows, K, SIZES))
    store_numbers(sums, rows, D)
    barQ, bar_dO = zeros(BM, SIZES), zeros(BM, SIZES)
    alpha, E, off = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    begin, end = keys_seen(m, T, N, window, BM, BN)
    for n in range(begin, end, BN):  # what needs neither alpha nor E, and they
        j = n + tl.arange(0, BN)
        at = places(g, n, N, H, BN)
        keys, UK = load(k, at, K, SIZES), load(u_k, at, K, SIZES)
        S = scores(Q, keys, tl.zeros((BM, BN), tl.float32))
        P = probabilities(S, L[:, None], own[:, None] - j[None, :], window, SCALE)
        F = scores(UQ, keys, scores(Q, UK, tl.zeros((BM, BN), tl.float32))) * SCALE
        dS = P * (scores(dO, load(v, at, K, SIZES), tl.zeros((BM, BN), tl.float32)) - D[:, None])
        alpha, E, off = alpha + tl.sum(P * F, 1), E + tl.sum(dS * F, 1), off + tl.sum(dS, 1)
        barQ = add(barQ, dS, UK)
        bar_dO = add(bar_dO, P, load(u_v, at, K, SIZES))
    E += inner(load(d_out, rows, K, SIZES), bar_dO) - alpha * off  # dO itself would stay in registers until here
    for n in range(begin, end, BN):
        j = n + tl.arange(0, BN)
        at = places(g, n, N, H, BN)
        keys, values = load(k, at, K, SIZES), load(v, at, K, SIZES)
        S = scores(Q, keys, tl.zeros((BM, BN), tl.float32))
        P = probabilities(S, L[:, None], own[:, None] - j[None, :], window, SCALE)
        UK = load(u_k, at, K, SIZES)
        F = scores(UQ, keys, scores(Q, UK, tl.zeros((BM, BN), tl.float32))) * SCALE - alpha[:, None]
        bar_dO = add(bar_dO, P * F, values)
        X = F * (scores(dO, values, tl.zeros((BM, BN), tl.float32)) - D[:, None])
        X = scores(dO, load(u_v, at, K, SIZES), X)
        barQ = add(barQ, P * (X - E[:, None]), keys)
    store(bar_q, rows, barQ, SCALE, K, SIZES)
    store(bar_d_out, rows, bar_dO, 1.0, K, SIZES)
    store_numbers(means, rows, alpha)
    store_numbers(centres, rows, E)


@triton.jit(do_not_specialize=VARY)
def second_columns(
    u_q, u_k, u_v, d_out, q, k, v, lse, sums, means, centres, bar_k, bar_v,
    T, N, window, SCALE: tl.constexpr,
    H: tl.constexpr, K: tl.constexpr, SIZES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """barK and barV (BN, K), from tiles whose rows are keys."""
    g, n = block_of(tl.cdiv(N, BN))
    j = n * BN + tl.arange(0, BN)
    at = places(g, n * BN, N, H, BN)
    keys, values = load(k, at, K, SIZES), load(v, at, K, SIZES)
    UK, UV = load(u_k, at, K, SIZES), load(u_v, at, K, SIZES)
    barK, barV = zeros(BN, SIZES), zeros(BN, SIZES)
    begin, end = seeing_queries(n, T, N, window, BM, BN)
    for m in range(begin, end, BM):
        i = m + tl.arange(0, BM)
        rows, own = places(g, m, T, H, BM), N - T + i
        Q, dO, UQ = load(q, rows, K, SIZES), load(d_out, rows, K, SIZES), load(u_q, rows, K, SIZES)
        L = load_numbers(lse, rows)
        D = load_numbers(sums, rows)
        alpha, E = load_numbers(means, rows), load_numbers(centres, rows)
        S = scores(keys, Q, tl.zeros((BN, BM), tl.float32))
        P = probabilities(S, L[None, :], own[None, :] - j[:, None], window, SCALE)
        F = scores(keys, UQ, scores(UK, Q, tl.zeros((BN, BM), tl.float32))) * SCALE - alpha[None, :]
        barV = add(barV, P * F, dO)
        dP = scores(values, dO, tl.zeros((BN, BM), tl.float32)) - D[None, :]
        barK = add(barK, P * dP, UQ)
        barK = add(barK, P * (scores(UV, dO, F * dP) - E[None, :]), Q)
    store(bar_k, at, barK, SCALE, K, SIZES)
    store(bar_v, at, barV, 1.0, K, SIZES)
