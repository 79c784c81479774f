"""Delta Momentum of all tensors in two launches, in the vector form; see kernels/README.md for what they move.

    reduce  where the level is due: of each chunk of a tensor its share of <g, g> and <g, m>; elsewhere: G <- G + grad
    apply   where the level is due: the shares of a tensor added up, m <- a m + b g, W <- W + m, G <- 0

with g = scale (G + grad) + decay W. A program has one chunk: `owner` says of which tensor t, `places` (int64, four
numbers for each tensor) how large that is and where its chunks are, `addresses` (int64, a row for each kind of tensor)
where it lies, and a row of `rules` (float32) how its level learns and whether it is due. That is read on the device:
the host waits for nothing, and chunks of levels that are not due end at once. Shares are stored and added up in one
order, the same in every program of a tensor and in every run: there are no atomic additions. Full tiles of tensors that
lie at multiples of 16 bytes are loaded and stored in vectors of 16 bytes, others one by one. All is added up in
float32; momenta and G are float32.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
from __future__ import annotations

import triton
import triton.language as tl

PLACES = ("size", "level", "first", "chunks")  # of a tensor: elements, its level, its first chunk and how many
TERMS = ("due", "lr", "momentum", "beta", "weight_decay", "eps", "scale", "printed")  # of a level
SIZE, LEVEL, FIRST, CHUNKS = (tl.constexpr(i) for i in range(len(PLACES)))
DUE, LR, MOMENTUM, BETA, DECAY, EPS, SCALE, PRINTED = (tl.constexpr(i) for i in range(len(TERMS)))
WIDTH, LENGTH = tl.constexpr(len(PLACES)), tl.constexpr(len(TERMS))
AT_ONCE = tl.constexpr(256)  # shares


@triton.jit
def pointer(address, start, KIND: tl.constexpr, VECTORS: tl.constexpr):
    """To element `start` of a tensor; with VECTORS the compiler may take its address for a multiple of 16 bytes."""
    found = address.to(tl.pointer_type(KIND))
    if VECTORS:
        found = tl.multiple_of(found, 16)
    return found + start


@triton.jit
def gradient(p, g, held, at, i, n, scale, decay, PARAM: tl.constexpr, GRAD: tl.constexpr, VECTORS: tl.constexpr):
    """Of n elements G + grad, and g = scale (G + grad) + decay W; what is not there is not read."""
    total = tl.load(pointer(g, at, GRAD, VECTORS) + i, mask=i < n, other=0.0).to(tl.float32)
    total += tl.load(pointer(held, at, tl.float32, VECTORS) + i, mask=i < tl.where(held != 0, n, 0), other=0.0)
    w = tl.load(pointer(p, at, PARAM, VECTORS) + i, mask=i < tl.where(decay != 0, n, 0), other=0.0)
    return total, scale * total + decay * w.to(tl.float32)


@triton.jit
def reduce_tile(
    p, g, m, held, at, i, n, due, along, scale, decay,
    PARAM: tl.constexpr, GRAD: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    """g * g and, where that is asked for, g * m; where the level is not due G is written."""
    total, found = gradient(p, g, held, at, i, n, scale, decay, PARAM, GRAD, VECTORS)
    tl.store(pointer(held, at, tl.float32, VECTORS) + i, total, mask=i < tl.where((held != 0) & (due == 0), n, 0))
    momentum = tl.load(pointer(m, at, tl.float32, VECTORS) + i, mask=i < tl.where(along, n, 0), other=0.0)
    return found * found, found * momentum


@triton.jit
def apply_tile(
    p, g, m, held, at, i, n, keep, write, scale, decay,
    PARAM: tl.constexpr, GRAD: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    """m <- keep m + write g, W <- W + m, G <- 0."""
    _, found = gradient(p, g, held, at, i, n, scale, decay, PARAM, GRAD, VECTORS)
    ms, ws = pointer(m, at, tl.float32, VECTORS) + i, pointer(p, at, PARAM, VECTORS) + i
    momentum = keep * tl.load(ms, mask=i < n, other=0.0) + write * found
    w = tl.load(ws, mask=i < n, other=0.0).to(tl.float32) + momentum
    tl.store(ms, momentum, mask=i < n)
    tl.store(ws, w.to(PARAM), mask=i < n)
    tl.store(pointer(held, at, tl.float32, VECTORS) + i, tl.zeros_like(momentum), mask=i < tl.where(held != 0, n, 0))


@triton.jit
def addresses_of(addresses, t, tensors):
    """Of W, grad, m and G (0 where nothing is gathered), and whether all are multiples of 16 bytes."""
    p, g = tl.load(addresses + t), tl.load(addresses + tensors + t)
    m, held = tl.load(addresses + 2 * tensors + t), tl.load(addresses + 3 * tensors + t)
    return p, g, m, held, (p | g | m | held) % 16 == 0


@triton.jit
def chunk_of(place, b, tiles, aligned, TILE: tl.constexpr):
    """Where chunk b begins in its tensor, what is left there, and its tiles: those in vectors, and all."""
    start = (b - tl.load(place + FIRST)) * tiles * TILE
    left = tl.load(place + SIZE) - start
    full = tl.where(aligned, tl.minimum(left // TILE, tiles), 0)
    return start, left, full.to(tl.int32), tl.minimum(tl.cdiv(left, TILE), tiles).to(tl.int32)


@triton.jit(do_not_specialize=["tensors", "tiles"])
def reduce(
    addresses, places, owner, rules, shares, tensors, tiles,
    PARAM: tl.constexpr, GRAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The sums of g * g and g * m over chunk b, into shares[0, b] and shares[1, b]."""
    b = tl.program_id(0)
    t = tl.load(owner + b)
    place = places + t * WIDTH
    rule = rules + tl.load(place + LEVEL) * LENGTH
    due = tl.load(rule + DUE)
    p, g, m, held, aligned = addresses_of(addresses, t, tensors)
    if (due != 0) | (held != 0):
        scale, decay = tl.load(rule + SCALE), tl.where(due != 0, tl.load(rule + DECAY), 0.0)
        asked = (due != 0) & (tl.load(rule + PRINTED) == 0)  # the printed form has no <g, m>
        start, left, full, some = chunk_of(place, b, tiles, aligned, TILE)
        i = tl.arange(0, TILE)
        square, along = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
        for j in range(full):
            gg, gm = reduce_tile(p, g, m, held, start + j * TILE, i, TILE, due, asked, scale, decay, PARAM, GRAD, True)
            square += gg
            along += gm
        for j in range(full, some):
            at, n = start + j * TILE, tl.minimum(left - j * TILE, TILE).to(tl.int32)
            gg, gm = reduce_tile(p, g, m, held, at, i, n, due, asked, scale, decay, PARAM, GRAD, False)
            square += gg
            along += gm
        tl.store(shares + b, tl.sum(square))
        tl.store(shares + tl.num_programs(0) + b, tl.sum(along))


@triton.jit
def total_of(shares, first, chunks):
    """The shares of a tensor, added up in a fixed order."""
    i = tl.arange(0, AT_ONCE)
    found = tl.zeros((AT_ONCE,), tl.float32)
    for j in range(0, chunks, AT_ONCE):
        found += tl.load(shares + first + j + i, mask=i < chunks - j, other=0.0)
    return tl.sum(found)


@triton.jit(do_not_specialize=["tensors", "tiles"])
def apply(
    addresses, places, owner, rules, shares, tensors, tiles,
    PARAM: tl.constexpr, GRAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The next m and W of chunk b; the last chunk first, for what `reduce` read last is still in the L2 cache."""
    b = tl.num_programs(0) - 1 - tl.program_id(0)
    t = tl.load(owner + b)
    place = places + t * WIDTH
    rule = rules + tl.load(place + LEVEL) * LENGTH
    if tl.load(rule + DUE) != 0:
        first, chunks = tl.load(place + FIRST), tl.load(place + CHUNKS).to(tl.int32)
        square, along = total_of(shares, first, chunks), total_of(shares + tl.num_programs(0), first, chunks)
        printed, beta = tl.load(rule + PRINTED) != 0, tl.load(rule + BETA)
        norm = tl.sqrt_rn(square) + tl.load(rule + EPS)
        keep = tl.load(rule + MOMENTUM) - tl.where(printed, beta * square, 0.0)
        write = -tl.load(rule + LR) - tl.where(printed, 0.0, beta * (along / norm / norm))
        scale, decay = tl.load(rule + SCALE), tl.load(rule + DECAY)
        p, g, m, held, aligned = addresses_of(addresses, t, tensors)
        start, left, full, some = chunk_of(place, b, tiles, aligned, TILE)
        i = tl.arange(0, TILE)
        for j in range(full):
            apply_tile(p, g, m, held, start + j * TILE, i, TILE, keep, write, scale, decay, PARAM, GRAD, True)
        for j in range(full, some):
            at, n = start + j * TILE, tl.minimum(left - j * TILE, TILE).to(tl.int32)
            apply_tile(p, g, m, held, at, i, n, keep, write, scale, decay, PARAM, GRAD, False)
