"""The two-layer memory in Triton, backward: one launch for a segment of chunks, from the last to the first.

Four passes over the blocks of hidden units, as in `triton.py`; kernels/README.md has the derivation:

    look       what the loss says at the output, as forward
    again      w, what the queries ask, and A times the gradient of `down` at the end: what its writes are told
    back       block by block all but what reaches the loss through R, whose gradient is a sum over blocks
    through R  that

Shapes: Z batch and heads, N memories, C tokens of a chunk's block (a power of two), T tokens, K head width, E hidden.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from nested_kernels.delta_rule.triton import LEAST, PRECISION, alpha_gradient, inverse, tokens_of
from nested_kernels.mlp_memory.triton import (
    AFTER,
    NONE,
    VARY,
    factors,
    load_down,
    load_up,
    look,
    normal,
    plus,
    reading,
    store_down,
    store_up,
    times,
    with_momentum,
)


@triton.jit(do_not_specialize=VARY)
def gradients(
    q, k, v, eta, alpha, beta, anchor_up, anchor_down, initial_up, initial_down, up, down, heap_up, heap_down,
    dy, d_up, d_down, d_heap_up, d_heap_down, d_anchor_up, d_anchor_down, d_initial_up, d_initial_down,
    wrote, asked, dq, dk, dv, d_eta, d_alpha, d_beta,
    T, apart, length, chunks, slots, N, first, count,
    ERASE_UP: tl.constexpr, ERASE_DOWN: tl.constexpr, FIT: tl.constexpr, VALUE: tl.constexpr, OWN: tl.constexpr,
    BOUNDED: tl.constexpr, READ: tl.constexpr, STALE: tl.constexpr, INITIAL: tl.constexpr, MOMENTUM: tl.constexpr,
    K: tl.constexpr, E: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Gradients of tokens and rates, chunk after chunk from the last; those of the weights in their place.

    `up`, `down` and the heaps are kept at the beginning of each chunk; `wrote` and `asked` (programs, C, E) hold w and
    gelu's argument for the queries from one pass to the next.
    """
    kind: tl.constexpr = k.dtype.element_ty
    program = tl.cast(tl.program_id(0), tl.int64)
    z = program // count
    m = z * N + first + program % count
    i, d = tl.arange(0, C), tl.arange(0, BK)
    same = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    at = m * E * K
    initial_up, initial_down, d_up, d_down = initial_up + at, initial_down + at, d_up + at, d_down + at
    d_initial_up, d_initial_down = d_initial_up + at, d_initial_down + at
    d_heap_up, d_heap_down = d_heap_up + at, d_heap_down + at
    d_seen_up, d_seen_down = d_up, d_down
    if STALE:
        d_seen_up, d_seen_down = d_anchor_up + at, d_anchor_down + at
    held_at = (m * slots + chunks) * E * K
    up, down, heap_up, heap_down = up + held_at, down + held_at, heap_up + held_at, heap_down + held_at
    for back in range(chunks):
        n = chunks - 1 - back
        up, down, heap_up, heap_down = up - E * K, down - E * K, heap_up - E * K, heap_down - E * K
        t, there = tokens_of(n, length, 0, T, C)
        row, own_row = z * apart + t, m * apart + t
        some, place = there[:, None] & (d[None, :] < K), row[:, None] * K + d[None, :]
        scratch = program * C * E + i[:, None] * E
        keys = tl.load(k + place, mask=some, other=0.0)
        values = tl.load(v + place, mask=some, other=0.0)
        rate = tl.load(eta + row, mask=there, other=0.0)
        now, start, end, whole, inside = factors(alpha, z * apart, t, T, length, C, LEAST)
        seen_up, seen_down = up, down
        if STALE:
            seen_up, seen_down = anchor_up + at, anchor_down + at
        # as forward
        R, size, AA, held, begun = look(
            keys, values, seen_up, seen_down, down, initial_down,
            FIT, VALUE, OWN, ERASE_DOWN, BOUNDED, STALE, INITIAL, K, E, C, BK, BE,
        )  # fmt: skip
        bound = tl.maximum(size, 1.0) if BOUNDED else tl.full((C,), 1.0, tl.float32)
        rate_down = rate / bound
        B = R
        if ERASE_DOWN != 0:
            B += ERASE_DOWN * (start[:, None] * held)
            if INITIAL:
                B += ERASE_DOWN * ((1 - start)[:, None] * begun)
            X_down = inverse((ERASE_DOWN * rate_down)[:, None] * inside * AA, C).to(kind)
            W = times(X_down, rate_down[:, None] * B, kind)
        else:
            W = rate_down[:, None] * B
        if ERASE_UP != 0:
            KK = times(keys, tl.trans(keys), kind)
            X = inverse((ERASE_UP * rate)[:, None] * inside * KK, C).to(kind)
        R, to_end = R.to(kind), end
        if MOMENTUM:
            now_b, start_b, end_b, whole_b, inside_b = factors(beta, z * apart, t, T, length, C, LEAST)
            end = tl.where(there, end, 0.0)
            _, _, to_end, _, s = with_momentum(inside, end, now_b, start_b, inside_b, C)
            left = tl.sum(end * s)
        if READ != NONE:
            F, reads, part = reading(alpha, beta, z * apart, t, T, length, READ, MOMENTUM, C, LEAST)
            queries = tl.load(q + place, mask=some, other=0.0)
            P = (F * times(queries, tl.trans(keys), kind)).to(kind)
        # w and what the queries ask, and of `down` what its writes are told: A times the gradient at the end
        QA, told, told_b = tl.zeros((C, C), tl.float32), tl.zeros((C, BK), tl.float32), tl.zeros((C, BK), tl.float32)
        for j in range(0, E, BE):
            e = j + tl.arange(0, BE)
            keys = tl.load(k + place, mask=some, other=0.0)
            Ux, Dx = load_up(seen_up, j, K, E, BK, BE), load_down(seen_down, j, K, E, BK, BE)
            Z = times(keys, tl.trans(Ux), kind)
            below, density = normal(Z)
            A = (Z * below).to(kind)
            told = plus(told, A, tl.trans(load_down(d_down, j, K, E, BK, BE)), kind)
            if MOMENTUM:
                told_b = plus(told_b, A, tl.trans(load_down(d_heap_down, j, K, E, BK, BE)), kind)
            w = times(R, Dx, kind) * (below + Z * density)
            U = Ux
            if STALE:
                U = load_up(up, j, K, E, BK, BE)
            if INITIAL:
                U0 = load_up(initial_up, j, K, E, BK, BE)
            if ERASE_UP != 0:
                if STALE:
                    Z = times(keys, tl.trans(U), kind)
                w += (ERASE_UP * start)[:, None] * Z
                if INITIAL:
                    w += (ERASE_UP * (1 - start))[:, None] * times(keys, tl.trans(U0), kind)
            w *= rate[:, None]
            if ERASE_UP != 0:
                w = times(X, w, kind)
            tl.store(wrote + scratch + e[None, :], w, mask=e[None, :] < E)
            if READ != NONE:
                queries = tl.load(q + place, mask=some, other=0.0)
                Z = reads[:, None] * times(queries, tl.trans(U), kind)
                if INITIAL:
                    Z += (1 - reads)[:, None] * times(queries, tl.trans(U0), kind)
                if MOMENTUM:
                    Z += part[:, None] * times(queries, tl.trans(load_up(heap_up, j, K, E, BK, BE)), kind)
                Z -= times(P, w, kind)
                tl.store(asked + scratch + e[None, :], Z, mask=e[None, :] < E)
                QA = plus(QA, Z * normal(Z)[0], tl.trans(A), kind)
        tl.debug_barrier()
        # of what is written to `down`
        dW = -to_end[:, None] * told
        d_to_end = -tl.sum(W * told, 1)
        d_start, d_now = tl.zeros((C,), tl.float32), tl.zeros((C,), tl.float32)
        d_inside = tl.zeros((C, C), tl.float32)
        if MOMENTUM:
            dW -= end_b[:, None] * told_b
            d_end_b = -tl.sum(W * told_b, 1)
        if READ != NONE:
            dY = tl.load(dy + place, mask=some, other=0.0)
            dW -= times(tl.trans(F * QA), dY, kind)
            dP = -times(dY, tl.trans(W.to(kind)), kind)
            dF, dQA = QA * dP, (F * dP).to(kind)
        if ERASE_DOWN != 0:
            dW = times(tl.trans(X_down), dW, kind)
            d_system = -times(dW, tl.trans(W.to(kind)), kind)
            d_rate_down = tl.sum(dW * B, 1) + ERASE_DOWN * tl.sum(inside * AA * d_system, 1)
            d_inside += (ERASE_DOWN * rate_down)[:, None] * AA * d_system
            d_AA = (ERASE_DOWN * rate_down)[:, None] * inside * d_system
            d_AA += tl.trans(d_AA)
            d_held = (ERASE_DOWN * rate_down)[:, None] * dW
            d_start += tl.sum(d_held * (held - begun), 1)
        else:
            d_rate_down = tl.sum(dW * B, 1)
            d_AA = tl.zeros((C, C), tl.float32)
        dR = rate_down[:, None] * dW
        d_rate = d_rate_down / bound
        if BOUNDED:
            d_AA -= same * (2 * tl.where(size > 1, d_rate_down * rate_down / bound, 0.0))[:, None]
        if ERASE_DOWN != 0 or BOUNDED:
            d_AA = d_AA.to(kind)
        W_end = (to_end[:, None] * W).to(kind)
        if MOMENTUM:
            W_end_b = (end_b[:, None] * W).to(kind)
        # block by block, but for what reaches the loss through R
        dQ, dK = tl.zeros((C, BK), tl.float32), tl.zeros((C, BK), tl.float32)
        dP, d_KK = tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32)
        d_reads, d_part = tl.zeros((C,), tl.float32), tl.zeros((C,), tl.float32)
        d_whole, d_left, d_whole_b = 0.0, 0.0, 0.0
        for j in range(0, E, BE):
            e = j + tl.arange(0, BE)
            keys = tl.load(k + place, mask=some, other=0.0)
            U, D = load_up(up, j, K, E, BK, BE), load_down(down, j, K, E, BK, BE)
            Ux, Dx = U, D
            if STALE:
                Ux, Dx = load_up(seen_up, j, K, E, BK, BE), load_down(seen_down, j, K, E, BK, BE)
            dU, dD = load_up(d_up, j, K, E, BK, BE), load_down(d_down, j, K, E, BK, BE)
            if INITIAL:
                U0, D0 = load_up(initial_up, j, K, E, BK, BE), load_down(initial_down, j, K, E, BK, BE)
                dU0 = load_up(d_initial_up, j, K, E, BK, BE) + (1 - whole) * dU
                dD0 = load_down(d_initial_down, j, K, E, BK, BE) + (1 - whole) * dD
                d_whole += tl.sum(dU * (U - U0)) + tl.sum(dD * (D - D0))
            else:
                d_whole += tl.sum(dU * U) + tl.sum(dD * D)
            w = tl.load(wrote + scratch + e[None, :], mask=e[None, :] < E, other=0.0)
            Z = times(keys, tl.trans(Ux), kind)
            below, density = normal(Z)
            A, slope = (Z * below).to(kind), below + Z * density
            bend = density * (2 - Z * Z)
            # of the ends
            found = times(keys, tl.trans(dU), kind)
            d_to_end -= tl.sum(w * found, 1)
            dw = -to_end[:, None] * found
            dK = plus(dK, -to_end[:, None] * w, dU, kind)
            dA = -times(W_end, dD, kind)
            if MOMENTUM:
                SU, SD = load_up(heap_up, j, K, E, BK, BE), load_down(heap_down, j, K, E, BK, BE)
                dSU, dSD = load_up(d_heap_up, j, K, E, BK, BE), load_down(d_heap_down, j, K, E, BK, BE)
                found = times(keys, tl.trans(dSU), kind)
                d_end_b -= tl.sum(w * found, 1)
                dw -= end_b[:, None] * found
                dK = plus(dK, -end_b[:, None] * w, dSU, kind)
                dA -= times(W_end_b, dSD, kind)
                d_left += tl.sum(dU * SU) + tl.sum(dD * SD)
                d_whole_b += tl.sum(dSU * SU) + tl.sum(dSD * SD)
                dSU, dSD = left * dU + whole_b * dSU, left * dD + whole_b * dSD
            dU, dD = whole * dU, whole * dD
            # of the reads
            if READ != NONE:
                queries = tl.load(q + place, mask=some, other=0.0)
                dY = tl.load(dy + place, mask=some, other=0.0)
                Zq = tl.load(asked + scratch + e[None, :], mask=e[None, :] < E, other=0.0)
                below, density = normal(Zq)
                Aq = Zq * below
                found = times(dY, D, kind)
                d_reads += tl.sum(Aq * found, 1)
                dZ = reads[:, None] * found + times(dQA, A, kind)
                dA += times(tl.trans(dQA), Aq, kind)
                seen = (reads[:, None] * dY.to(tl.float32)).to(kind)
                dD = plus(dD, tl.trans(seen), Aq, kind)
                if INITIAL:
                    found = times(dY, D0, kind)
                    d_reads -= tl.sum(Aq * found, 1)
                    dZ += (1 - reads)[:, None] * found
                    dD0 = plus(dD0, tl.trans((1 - reads)[:, None] * dY.to(tl.float32)), Aq, kind)
                if MOMENTUM:
                    found = times(dY, SD, kind)
                    d_part += tl.sum(Aq * found, 1)
                    dZ += part[:, None] * found
                    dSD = plus(dSD, tl.trans(part[:, None] * dY.to(tl.float32)), Aq, kind)
                dZ *= below + Zq * density
                d_reads += tl.sum(dZ * times(queries, tl.trans(U), kind), 1)
                dQ = plus(dQ, reads[:, None] * dZ, U, kind)
                dU = plus(dU, tl.trans(reads[:, None] * dZ), queries, kind)
                if INITIAL:
                    d_reads -= tl.sum(dZ * times(queries, tl.trans(U0), kind), 1)
                    dQ = plus(dQ, (1 - reads)[:, None] * dZ, U0, kind)
                    dU0 = plus(dU0, tl.trans((1 - reads)[:, None] * dZ), queries, kind)
                if MOMENTUM:
                    d_part += tl.sum(dZ * times(queries, tl.trans(SU), kind), 1)
                    dQ = plus(dQ, part[:, None] * dZ, SU, kind)
                    dSU = plus(dSU, tl.trans(part[:, None] * dZ), queries, kind)
                dP = plus(dP, -dZ, tl.trans(w), kind)
                dw -= times(tl.trans(P), dZ, kind)
            # of what is written to `up`
            raw = times(R, Dx, kind)
            rhs = raw * slope
            if ERASE_UP != 0:
                dw = times(tl.trans(X), dw, kind)
                d_KK = plus(d_KK, -dw, tl.trans(w), kind)
                found = Z
                if STALE:
                    found = times(keys, tl.trans(U), kind)
                rhs += (ERASE_UP * start)[:, None] * found
                dZ = (ERASE_UP * rate)[:, None] * dw
                d_start += tl.sum(dZ * found, 1)
                dK = plus(dK, start[:, None] * dZ, U, kind)
                dU = plus(dU, tl.trans(start[:, None] * dZ), keys, kind)
                if INITIAL:
                    found = times(keys, tl.trans(U0), kind)
                    rhs += (ERASE_UP * (1 - start))[:, None] * found
                    d_start -= tl.sum(dZ * found, 1)
                    dK = plus(dK, (1 - start)[:, None] * dZ, U0, kind)
                    dU0 = plus(dU0, tl.trans((1 - start)[:, None] * dZ), keys, kind)
            d_rate += tl.sum(dw * rhs, 1)
            dw *= rate[:, None]
            # of A, as the key of `down`
            if ERASE_DOWN != 0 or BOUNDED:
                dA += times(d_AA, A, kind)
            if ERASE_DOWN != 0:
                dA += times(start[:, None] * d_held, D, kind)
                dD = plus(dD, tl.trans(start[:, None] * d_held), A, kind)
                if INITIAL:
                    dA += times((1 - start)[:, None] * d_held, D0, kind)
                    dD0 = plus(dD0, tl.trans((1 - start)[:, None] * d_held), A, kind)
            dZ = dA * slope + dw * raw * bend
            dw *= slope
            dR = plus(dR, dw, tl.trans(Dx), kind)
            dK = plus(dK, dZ, Ux, kind)
            if STALE:
                store_up(d_seen_up, times(tl.trans(dZ), keys, kind), j, K, E, BK, BE)
                store_down(d_seen_down, times(tl.trans(R), dw, kind), j, K, E, BK, BE)
            else:
                dU = plus(dU, tl.trans(dZ), keys, kind)
                dD = plus(dD, tl.trans(R), dw, kind)
            store_up(d_up, dU, j, K, E, BK, BE)
            store_down(d_down, dD, j, K, E, BK, BE)
            if INITIAL:
                store_up(d_initial_up, dU0, j, K, E, BK, BE)
                store_down(d_initial_down, dD0, j, K, E, BK, BE)
            if MOMENTUM:
                store_up(d_heap_up, dSU, j, K, E, BK, BE)
                store_down(d_heap_down, dSD, j, K, E, BK, BE)
        tl.debug_barrier()
        # through R, whose gradient is known now
        dO, dV = (FIT * dR).to(kind), -VALUE * dR
        dM = dV.to(kind)
        dK += FIT * dR
        for j in range(0, E, BE):
            keys = tl.load(k + place, mask=some, other=0.0)
            Ux, Dx = load_up(seen_up, j, K, E, BK, BE), load_down(seen_down, j, K, E, BK, BE)
            dU, dD = load_up(d_seen_up, j, K, E, BK, BE), load_down(d_seen_down, j, K, E, BK, BE)
            Z = times(keys, tl.trans(Ux), kind)
            below, density = normal(Z)
            dZ = times(dO, Dx, kind) * (below + Z * density)
            dK = plus(dK, dZ, Ux, kind)
            dU = plus(dU, tl.trans(dZ), keys, kind)
            dD = plus(dD, tl.trans(dO), Z * below, kind)
            if OWN:
                values = tl.load(v + place, mask=some, other=0.0)
                Z = times(values, tl.trans(Ux), kind)
                below, density = normal(Z)
                dZ = times(dM, Dx, kind) * (below + Z * density)
                dV = plus(dV, dZ, Ux, kind)
                dU = plus(dU, tl.trans(dZ), values, kind)
                dD = plus(dD, tl.trans(dM), Z * below, kind)
            store_up(d_seen_up, dU, j, K, E, BK, BE)
            store_down(d_seen_down, dD, j, K, E, BK, BE)
        # of what is C x C, and of the rates
        keys = tl.load(k + place, mask=some, other=0.0)
        d_end = d_to_end
        if MOMENTUM:
            d_s, dL = d_left * end, end[:, None] * d_to_end[None, :]
            L = now_b[:, None] * inside_b + same
            d_end = d_left * s + tl.sum(L * d_to_end[None, :], 1)
        if READ != NONE:
            queries = tl.load(q + place, mask=some, other=0.0)
            dF += times(queries, tl.trans(keys), kind) * dP
            dP *= F
            dQ = plus(dQ, dP, keys, kind) + tl.load(dy + place, mask=some, other=0.0).to(tl.float32)
            dK = plus(dK, tl.trans(dP), queries, kind)
            tl.store(dq + place, dQ.to(dq.dtype.element_ty), mask=some)
            if MOMENTUM:
                both, before, _, _, _ = with_momentum(inside, end, now_b, start_b, inside_b, C)
            else:
                both, before = inside, start
            if READ == AFTER:
                d_now += tl.sum(both * dF, 1) + start * d_reads
                if MOMENTUM:
                    d_now += before * d_part
                    dL, d_s = dL + dF, d_s + d_part
                dF, d_reads, d_part = now[:, None] * dF, now * d_reads, now * d_part
            d_start += d_reads
            if MOMENTUM:
                d_inside += tl.dot(dF, tl.trans(L), input_precision=PRECISION) + d_part[:, None] * s[None, :]
                dL += tl.dot(tl.trans(inside), dF, input_precision=PRECISION)
                d_s += tl.sum(inside * d_part[:, None], 0)
            else:
                d_inside += dF
        if ERASE_UP != 0:
            KK = times(keys, tl.trans(keys), kind)
            d_rate += ERASE_UP * tl.sum(inside * KK * d_KK, 1)
            d_inside += (ERASE_UP * rate)[:, None] * KK * d_KK
            d_KK *= (ERASE_UP * rate)[:, None] * inside
            dK = plus(dK, d_KK + tl.trans(d_KK), keys, kind)
        own_place = own_row[:, None] * K + d[None, :]
        tl.store(dk + own_place, dK, mask=some)
        tl.store(dv + own_place, dV, mask=some)
        tl.store(d_eta + own_row, d_rate, mask=there)
        d_now += alpha_gradient(now, start * d_start, end * d_end, whole * d_whole, inside * d_inside, C)
        tl.store(d_alpha + own_row, d_now, mask=there)
        if MOMENTUM:
            d_now = tl.sum(dL * inside_b, 1) + d_s * start_b
            d_start, d_inside = start_b * now_b * d_s, inside_b * now_b[:, None] * dL
            d_now += alpha_gradient(now_b, d_start, end_b * d_end_b, whole_b * d_whole_b, d_inside, C)
            tl.store(d_beta + own_row, d_now, mask=there)
        tl.debug_barrier()
