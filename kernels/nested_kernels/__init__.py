"""Fast forms of the inner recurrences of nested learning, each beside the formula or token loop that defines it."""

from nested_kernels.attention_hvp import attention_hvp
from nested_kernels.delta_rule import State, delta_rule

__all__ = ["State", "attention_hvp", "delta_rule"]
