"""Causal softmax attention that is differentiated twice: the formula, and query blocks in memory linear in tokens."""

from nested_kernels.attention_hvp.op import attention_hvp

__all__ = ["attention_hvp"]
