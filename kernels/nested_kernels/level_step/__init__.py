"""Delta Momentum for all tensors of all levels at once: gathering, the rule, and the update where a level is due."""

from nested_kernels.level_step.op import level_step
from nested_kernels.level_step.reference import delta_momentum
from nested_kernels.level_step.rule import Form, LevelRule, Shape

__all__ = ["Form", "LevelRule", "Shape", "delta_momentum", "level_step"]
