"""What a model asks of a memory, whoever wrote it, so that one that does not keep to it is named before anything runs.

    initial_state(batch) -> state                       what it holds before the first token
    forward(x (B, T, D), state) -> (y (B, T, D), state)     what it answers, and what it holds after the last one

A state is any nest of tuples, lists and dicts; the batch comes first in each of its tensors.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nested.errors import UserError
from nested.signature import accepts, pair

NEEDED = "a module with initial_state(batch) -> state and forward(x, state) -> (y, state)"


def check_memory(memory: Any) -> None:
    """Raises UserError for what is no module, lacks a method, or has a state whose batch does not come first."""
    name = type(memory).__name__
    if not isinstance(memory, nn.Module):
        raise _refused(f"a {name} is no memory; {NEEDED} is needed", name)
    start = getattr(memory, "initial_state", None)
    if not callable(start) or not accepts(start, 1):
        raise _refused(f"{name} has no initial_state(batch); {NEEDED} is needed", name)
    if not accepts(memory.forward, 2):
        raise _refused(f"{name}.forward does not take (x, state); {NEEDED} is needed", name)
    for batch in (2, 3):  # one of them could be a number of heads
        _check_batch(f"{name}.initial_state({batch})", start(batch), batch)


def ask(memory: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """The memory's answer to x (B, T, D) and its state after it. Raises UserError where they are not that."""
    whose = f"{type(memory).__name__}.forward"
    y, after = pair(memory(x, state), whose, "(y, state)", "model.memory")
    if not isinstance(y, Tensor) or y.shape != x.shape:
        seen = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise _refused(f"{whose} returned y {seen}; the shape of x, {tuple(x.shape)}, is needed", seen)
    if after is None and state is not None:
        raise _refused(f"{whose} returned no state; what it holds after the last token is needed", None)
    _check_batch(f"{whose} of {len(x)} sequences", after, len(x))
    return y, after


def _check_batch(whose: str, state: Any, batch: int) -> None:
    for leaf in tree_leaves(state):
        if isinstance(leaf, Tensor) and leaf.shape[:1] != (batch,):
            seen = tuple(leaf.shape)
            raise _refused(f"{whose} gave a state with a tensor {seen}; the batch comes first: ({batch}, ...)", seen)


def _refused(text: str, seen: Any) -> UserError:
    return UserError(text, key="model.memory", seen=seen)
