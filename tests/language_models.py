"""Small language models in float64 whose weights are large enough for updates to matter."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from nested.levels import Level
from nested.memory.window_attention import WindowAttention
from nested.models.language import LanguageModel

V, WINDOW = 11, 6


def reading(eta: float = 1.0, chunk: int = 3, **more: Any) -> tuple[Level, ...]:
    """The one level of TTT-E2E."""
    given = {"gather": "mean", "clip_norm": 1.0, "eta": eta, **more}
    return (Level("reading", ("*.prime.mlp.*",), chunk, "token", **given),)


def small(levels: tuple[Level, ...] = (), seed: int = 1, window: int | None = WINDOW, **more: Any) -> LanguageModel:
    """Three blocks, the last two with prime MLPs; weights ten times the usual."""
    torch.manual_seed(seed)
    given = {
        "mixer": partial(WindowAttention, window=window),
        "width": 8,
        "depth": 3,
        "heads": 2,
        "hidden": 12,
        "prime": 2,
    }
    model = LanguageModel((12,), V, vocabulary=V, per_position=True, token_levels=levels, **{**given, **more}).double()
    if "warm_start" in more:
        return model
    with torch.no_grad():
        for p in model.parameters():
            p *= 10 if p.ndim > 1 else 1
    return model


def some(tokens: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Random tokens (batch, tokens)."""
    return torch.randint(V, (batch, tokens), generator=torch.Generator().manual_seed(seed))
