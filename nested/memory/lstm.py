"""A long short-term memory (Hochreiter and Schmidhuber, 1997) behind the interface of our memories: a baseline.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nested.memory.state import check_state, check_tokens


class LSTMState(NamedTuple):
    """Output and cell after the last token, each (B, 1, D): batch first, one layer."""

    output: Tensor
    cell: Tensor


class LSTMMemory(nn.Module):
    """One LSTM layer of the model's width."""

    def __init__(self, width: int):
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def initial_state(self, batch: int) -> LSTMState:
        """Zeros."""
        weight = next(self.lstm.parameters())
        zero = torch.zeros(batch, 1, self.lstm.hidden_size, dtype=weight.dtype, device=weight.device)
        return LSTMState(zero, zero)

    def forward(self, x: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """x (B, T, D) -> y (B, T, D) and the state after the last token. Raises UserError for a state not of x."""
        check_tokens(x, self.lstm.input_size)
        wanted = self.initial_state(len(x))
        before = wanted if state is None else state
        for part, held, new in zip(LSTMState._fields, before, wanted):
            check_state(part, held, new, x, dtype=False)
        start = (before.output.transpose(0, 1).contiguous(), before.cell.transpose(0, 1).contiguous())
        with torch.backends.cudnn.flags(enabled=False):  # it has no second derivative, which levels on tokens take
            y, (h, c) = self.lstm(x, start)
        return y, LSTMState(h.transpose(0, 1), c.transpose(0, 1))
