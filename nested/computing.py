"""How a run computes: device, threads and form of the kernels, as its trainer says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from nested_kernels.backend import using

if TYPE_CHECKING:
    from nested.settings import Trainer


def device_of(accelerator: str) -> torch.device:
    """The device that a trainer's accelerator means here: the processor where there is no GPU."""
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def computing(trainer: Trainer) -> Iterator[None]:
    """Inside, torch's threads and the kernels' forms are as asked for; afterwards as they were."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(trainer.threads or before)
        with using(trainer.kernels):
            yield
    finally:
        torch.set_num_threads(before)
