"""Independent random numbers from one seed: each purpose has a generator of its own."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A generator fixed by seed and purpose alone, so that no draw depends on which others were made before it."""
    words = "/".join(map(str, (seed, *purpose)))
    number = int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big")
    return torch.Generator().manual_seed(number >> 1)  # 63 bits: what manual_seed takes as it is
