"""The two launches of a step as a torch op: the table of addresses, the shares of the sums, and what is compiled.

An optimizer's step has no derivative. The op records nothing; `level_step` refuses calls for which autograd would.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from triton import language as tl

from nested_kernels.launch import AotCase, launch
from nested_kernels.level_step import triton as kernels
from nested_kernels.level_step.rule import LevelRule

TILE = 1024  # elements that a program has at a time: two vectors of float32 for each of its threads
MOST_TILES = 16  # of a chunk, one after the other
ENOUGH = 2048  # chunks: more than the largest device holds at a time; until then a chunk is one tile
KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    gathered: Sequence[Tensor],
    levels: Sequence[int],
    rules: Tensor,
) -> None:
    """One step, `rules` as `table_of_rules` makes it.

    `gathered` is empty, or has one tensor for each parameter, without elements where nothing is gathered. Tensors are
    contiguous, of one device, params of one dtype and grads of one.
    """
    sizes, device = tuple(p.numel() for p in params), rules.device
    tiles = min(MOST_TILES, max(1, sum(sizes) // (TILE * ENOUGH)))
    owner, places = _chunks(sizes, tuple(levels), tiles * TILE, device)
    if not len(owner):
        return
    held = [x.data_ptr() if x.numel() else 0 for x in gathered] or [0] * len(params)
    addresses = _sent([x.data_ptr() for xs in (params, grads, momenta) for x in xs] + held, torch.int64, device)
    shares = torch.empty(2, len(owner), device=device)
    kinds = {"PARAM": KINDS[params[0].dtype], "GRAD": KINDS[grads[0].dtype], "TILE": TILE}
    for kernel in (kernels.reduce, kernels.apply):
        launch(kernel, (len(owner),), addresses, places, owner, rules, shares, len(params), tiles, **kinds)


def table_of_rules(rules: Sequence[LevelRule], due: Sequence[bool], device: torch.device) -> Tensor:
    """(levels, TERMS) float32: numbers of every level's rule, and first whether it is due."""
    rows = [
        (now, r.lr, r.momentum, r.beta, r.weight_decay, r.eps, r.scale, r.form == "printed")
        for r, now in zip(rules, due, strict=True)
    ]
    return _sent([float(x) for row in rows for x in row], torch.float32, device).view(len(rows), -1)


@lru_cache(16)
def _chunks(
    sizes: tuple[int, ...], levels: tuple[int, ...], length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The tensor that each chunk is of (chunks,) int32, and the PLACES of each tensor (tensors, 4) int64."""
    counts = [-(-size // length) for size in sizes]
    owner = torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32), torch.tensor(counts))
    places = torch.tensor(list(zip(sizes, levels, accumulate(counts, initial=0), counts)))  # (tensors, 4)
    return owner.to(device), places.to(device)


def _sent(values: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor on the device, for which the host does not wait."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


step = torch.library.custom_op("nested_kernels::level_step", step_, mutates_args=("params", "momenta", "gathered"))


@step.register_fake
def _(*_: Any) -> None:
    return None


def _example(param: torch.dtype, grad: torch.dtype) -> None:
    """Three tensors of two levels on meta tensors."""
    shapes = [(1024, 4096), (4096,), (1023, 77)]
    params, grads = ([torch.empty(s, dtype=d, device="meta") for s in shapes] for d in (param, grad))
    momenta, gathered = ([torch.empty(s, device="meta") for s in shapes] for _ in range(2))
    rules = table_of_rules([LevelRule(0.1, 0.9)] * 2, [True, False], torch.device("meta"))
    step_(params, grads, momenta, gathered, [0, 1, 0], rules)


AOT_CASES = [
    AotCase("step of levels, float32", partial(_example, torch.float32, torch.float32)),
    AotCase("step of levels, bfloat16", partial(_example, torch.bfloat16, torch.bfloat16)),
    AotCase("step of levels, float16", partial(_example, torch.float16, torch.float16), slow=True),
    AotCase("step of levels, gradients in float32", partial(_example, torch.bfloat16, torch.float32), slow=True),
]
