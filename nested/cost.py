"""What a run costs: FLOPs, seconds, updates per level, bytes."""

from __future__ import annotations

import copy
import resource
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.module_tracker import ModuleTracker

from nested.levels import assign_tokens

if TYPE_CHECKING:
    from nested.learner import Learner
    from nested.streams.stream import Batch


def step_flops(learner: Learner, batch: Batch) -> int:
    """Forward and backward FLOPs of the task loss on one batch, counted on a copy: weights and generators stay.

    Parts that are differentiated one after another count by their shape, so that one of each is computed. What a method
    computes beyond the task loss (a Fisher matrix, a penalty) is not in it.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model, found = learner.model, dict[tuple[int, ...], int]()
    parts = [part for part, _ in learner.parts(batch)]
    with torch.random.fork_rng(devices=[learner.where] if learner.where.type == "cuda" else []):
        learner.model = copy.deepcopy(model)
        try:
            for part in parts:
                if part.x.shape not in found:
                    counter = FlopCounterMode(display=False)
                    counter.mod_tracker = _Whole()
                    with counter:
                        learner.loss(part).backward()
                    found[part.x.shape] = counter.get_total_flops()
        finally:
            learner.model = model
    return sum(found[part.x.shape] for part in parts)


class _Whole(ModuleTracker):
    """Of the modules only the whole: torch's hooks on each one fail where a part is run again in the backward pass."""

    def __enter__(self) -> _Whole:
        return self

    def __exit__(self, *args: Any) -> None:
        pass


def peak_rss_bytes() -> int:
    """The most memory this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a state, however it nests; a tensor that is expanded counts whole."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(tensor_bytes(v) for v in value.values())
    return sum(tensor_bytes(v) for v in value) if isinstance(value, list | tuple) else 0


def levels_table(learner: Learner) -> list[dict[str, Any]]:
    """Name, clock, period, parameters, updates and rate of every level, those on the token clock last.

    These have eta for a rate, and updates None: they learn in each sequence anew. Their parameters are counted on the
    stream clock too, where their initial states learn.
    """
    optimizer = learner.optimizer
    stream = [
        {
            "name": level.name,
            "clock": "stream",
            "period": level.period,
            "parameters": sum(p.numel() for p in optimizer.members[level.name]),
            "updates": optimizer.updates[level.name],
            "lr": optimizer.rules[level.name].param_groups[0].get("initial_lr"),
            "eta": None,
        }
        for level in optimizer.levels
    ]
    return [*stream, *_token_levels(learner)]


def _token_levels(learner: Learner) -> list[dict[str, Any]]:
    if not learner.reading:
        return []
    sizes = {name: p.numel() for name, p in learner.model.named_parameters()}
    members = assign_tokens(learner.reading, learner.model)
    return [
        {
            "name": level.name,
            "clock": "token",
            "period": level.period,
            "parameters": sum(sizes[name] for name in members[level.name]),
            "updates": None,
            "lr": None,
            "eta": level.eta,
        }
        for level in learner.reading
    ]
