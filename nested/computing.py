"""How a run computes: device, threads and form of the kernels, as its trainer says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from nested_kernels.backend import using

from nested.errors import UserError

if TYPE_CHECKING:
    from nested.settings import Trainer


def check_device(accelerator: str | None, key: str, option: str) -> None:
    """Raise UserError for a GPU that is asked for, by an option as a user writes it, and not here."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        text = f"no CUDA device is visible here; use {option}cpu"
        raise UserError(text, key=key, seen="gpu", allowed=["cpu"])


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
