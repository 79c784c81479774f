"""Fast forms of the inner recurrences of nested learning, each beside the formula or token loop that defines it."""

from nested_kernels.attention_hvp import attention_hvp
from nested_kernels.delta_rule import State, delta_rule
from nested_kernels.level_step import LevelRule, level_step
from nested_kernels.mlp_memory import MLPState, Weights, mlp_memory
from nested_kernels.newton_schulz import newton_schulz, newton_schulz_each

__all__ = [
    "LevelRule",
    "MLPState",
    "State",
    "Weights",
    "attention_hvp",
    "delta_rule",
    "level_step",
    "mlp_memory",
    "newton_schulz",
    "newton_schulz_each",
]
