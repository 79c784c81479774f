"""The delta rule with decay, erase and stale gradients: one recurrence, a token loop and a chunk-parallel form."""

from nested_kernels.delta_rule.op import delta_rule
from nested_kernels.delta_rule.rule import Objective, Read, Retain, Rule, State, Terms, terms

__all__ = ["Objective", "Read", "Retain", "Rule", "State", "Terms", "delta_rule", "terms"]
