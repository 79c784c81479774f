"""Newton-Schulz: nearly the closest matrix with orthonormal rows (or columns), by matrix products alone."""

from nested_kernels.newton_schulz.op import newton_schulz, newton_schulz_each
from nested_kernels.newton_schulz.reference import QUINTIC

__all__ = ["QUINTIC", "newton_schulz", "newton_schulz_each"]
