"""Optimizers made for levels; each is imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nested.optim.associative_adam import AssociativeAdam
    from nested.optim.deep_momentum import DeepMomentum
    from nested.optim.delta_gradient_descent import DeltaGradientDescent
    from nested.optim.delta_momentum import DeltaMomentum
    from nested.optim.m3 import M3
    from nested.optim.muon import Muon
    from nested.optim.preconditioned_momentum import PreconditionedMomentum

__all__ = [
    "M3",
    "AssociativeAdam",
    "DeepMomentum",
    "DeltaGradientDescent",
    "DeltaMomentum",
    "Muon",
    "PreconditionedMomentum",
]

_homes = {
    "AssociativeAdam": "nested.optim.associative_adam",
    "DeepMomentum": "nested.optim.deep_momentum",
    "DeltaGradientDescent": "nested.optim.delta_gradient_descent",
    "DeltaMomentum": "nested.optim.delta_momentum",
    "M3": "nested.optim.m3",
    "Muon": "nested.optim.muon",
    "PreconditionedMomentum": "nested.optim.preconditioned_momentum",
}


def __getattr__(name: str) -> Any:
    if name not in _homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_homes[name]), name)
