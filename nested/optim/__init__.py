"""Optimizers made for levels; each is imported when it is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nested import lazy

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

__getattr__ = lazy.names(
    __name__,
    {
        "AssociativeAdam": "associative_adam",
        "DeepMomentum": "deep_momentum",
        "DeltaGradientDescent": "delta_gradient_descent",
        "DeltaMomentum": "delta_momentum",
        "M3": "m3",
        "Muon": "muon",
        "PreconditionedMomentum": "preconditioned_momentum",
    },
)
