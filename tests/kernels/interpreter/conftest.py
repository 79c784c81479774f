"""An interpreter that is as strict as the chip: bfloat16 and tf32 are rounded, and memory that nobody wrote is NaN."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import rounding
import torch

rounding.install()


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `nested_kernels` allocates begins as NaN, so that an element which no kernel wrote is seen."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def with_nan(*arguments: Any, **options: Any) -> torch.Tensor:
        found = allocate(*arguments, **options)
        ours = sys._getframe(1).f_globals.get("__name__", "").startswith("nested_kernels")
        return found.fill_(float("nan")) if ours and found.is_floating_point() else found

    return with_nan
