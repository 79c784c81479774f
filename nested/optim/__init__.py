"""Optimizers made for levels; each is imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nested.optim.delta_momentum import DeltaMomentum
    from nested.optim.muon import Muon

__all__ = ["DeltaMomentum", "Muon"]

_homes = {"DeltaMomentum": "nested.optim.delta_momentum", "Muon": "nested.optim.muon"}


def __getattr__(name: str) -> Any:
    if name not in _homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_homes[name]), name)
