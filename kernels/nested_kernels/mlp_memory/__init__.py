"""A residual memory of two layers, written by delta rules with stale gradients: a token loop, chunks, and Triton."""

from nested_kernels.mlp_memory.op import mlp_memory
from nested_kernels.mlp_memory.rule import Erase, MLPState, Values, Weights

__all__ = ["Erase", "MLPState", "Values", "Weights", "mlp_memory"]
