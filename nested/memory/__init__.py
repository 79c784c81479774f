"""Memories that learn while they read: each holds fast weights per sequence, started from a learned state.

Each is imported when it is first asked for; all keep to `nested.memory.contract`. `heads`: memories in place of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nested import lazy

if TYPE_CHECKING:
    from nested.memory.attention import AttentionMemory
    from nested.memory.delta import DeltaMemory
    from nested.memory.gated_delta_net import GatedDeltaNet
    from nested.memory.lstm import LSTMMemory
    from nested.memory.mamba2 import Mamba2
    from nested.memory.pruned_attention import HeavyHitterAttention, StreamingAttention
    from nested.memory.self_modifying import SelfModifyingTitans
    from nested.memory.ttt import TTTMLP, TTTLinear
    from nested.memory.window_attention import WindowAttention

__all__ = [
    "TTTMLP",
    "AttentionMemory",
    "DeltaMemory",
    "GatedDeltaNet",
    "HeavyHitterAttention",
    "LSTMMemory",
    "Mamba2",
    "SelfModifyingTitans",
    "StreamingAttention",
    "TTTLinear",
    "WindowAttention",
]

__getattr__ = lazy.names(
    __name__,
    {
        "AttentionMemory": "attention",
        "DeltaMemory": "delta",
        "GatedDeltaNet": "gated_delta_net",
        "HeavyHitterAttention": "pruned_attention",
        "LSTMMemory": "lstm",
        "Mamba2": "mamba2",
        "SelfModifyingTitans": "self_modifying",
        "StreamingAttention": "pruned_attention",
        "TTTLinear": "ttt",
        "TTTMLP": "ttt",
        "WindowAttention": "window_attention",
    },
)
