"""scikit-learn's handwritten digits: 1797 grey images of 8 x 8, embedded in the library."""

from __future__ import annotations

import torch

from nested.streams.stream import Source


def digits() -> Source:
    """The 1797 digits of scikit-learn, images (1, 8, 8) in 0..1; no official test part."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16  # printed values are 0..16
    return Source("digits", x, torch.tensor(labels, dtype=torch.int64))
