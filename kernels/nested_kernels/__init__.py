"""Fast forms of the inner recurrences of nested learning, each beside the token loop that defines it."""

from nested_kernels.delta_rule import State, delta_rule

__all__ = ["State", "delta_rule"]
