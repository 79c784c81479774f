"""Continual-learning experiments built around nested learning. Importing this package imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"


def load(path: str | Path, device: str = "cpu") -> nn.Module:
    """The model that `nested export` wrote to `path`, in evaluation mode. Raises nested.errors.UserError."""
    from nested.exported import read

    return read(path).model(device)
