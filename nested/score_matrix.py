"""The matrix R while it is being measured: sums and counts, in a metric that reduces over processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class ScoreMatrix(Metric):
    """Sums and counts of scores, one cell for each (row, experience); summed over processes.

    Rows are 0 (before training) to n. For accuracy the sum is a number of correct answers or positions, so R is exact.
    For losses it is float64; counts are whole numbers always, of examples, positions or bytes.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, rows: int, columns: int, losses: bool = False):
        super().__init__()
        dtype = torch.float64 if losses else torch.int64
        self.add_state("sums", torch.zeros(rows, columns, dtype=dtype), dist_reduce_fx="sum", persistent=True)
        self.add_state("counts", torch.zeros(rows, columns, dtype=torch.int64), dist_reduce_fx="sum", persistent=True)

    def update(self, row: int, column: int, total: float, count: int) -> None:
        """Add `total` (correct answers or positions, summed loss, or bits) of `count` to a cell."""
        self.sums[row, column] += total
        self.counts[row, column] += count

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module; what was counted before a stop is an update, or torchmetrics warns that there was none."""
        found = super().load_state_dict(state_dict, strict, assign)
        self._update_count = 1
        return found

    def compute(self) -> Tensor:
        """(rows, columns) float64: sum / count, NaN where nothing was counted."""
        return self.sums.double() / self.counts.double()
