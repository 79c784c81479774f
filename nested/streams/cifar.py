"""CIFAR-10 and CIFAR-100 through torchvision (Krizhevsky 2009)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from nested.errors import UserError
from nested.streams.files import candidates, data_directory, missing
from nested.streams.stream import Source

HOW = "unpack the official python archive there, or set stream.source.download=true"


def cifar10(*, root: str | None = None, download: bool = False) -> Source:
    """CIFAR-10, images (3, 32, 32), with the official test part.

    Read by torchvision from `cifar-10-batches-py`, in `root` or one folder down. Raises UserError
    for missing or damaged files.
    """
    return _source("cifar10", "CIFAR10", root, download)


def cifar100(*, root: str | None = None, download: bool = False) -> Source:
    """CIFAR-100, images (3, 32, 32), with the official test part.

    Read by torchvision from `cifar-100-python`, in `root` or one folder down. Raises UserError
    for missing or damaged files.
    """
    return _source("cifar100", "CIFAR100", root, download)


def _source(name: str, kind: Literal["CIFAR10", "CIFAR100"], root: str | None, download: bool) -> Source:
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, kind)
    expected = f"the folder {dataset.base_folder}"
    folder = data_directory(root, kind, expected, HOW)
    searched = candidates(folder)
    held = next((p for p in searched if (p / dataset.base_folder).is_dir()), None)
    if held is None and not download:
        raise missing(kind, folder, searched, expected, HOW)
    try:
        train, test = (dataset(held or folder, train=part, download=download) for part in (True, False))
    except (OSError, RuntimeError) as error:
        place = (held or folder) / dataset.base_folder
        raise UserError(f"{kind} in {place} cannot be read: {error}; {HOW}", key="data.root", seen=str(place)) from None
    x = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2).contiguous()  # (N, 3, 32, 32)
    y = torch.tensor([*train.targets, *test.targets])
    return Source(name, x, y, torch.arange(len(train.data), len(x)), class_names=tuple(train.classes))
