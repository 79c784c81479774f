"""MNIST and Fashion-MNIST from their IDX files (LeCun et al. 1998; Xiao et al., arXiv 1708.07747).

N images of H x W.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nested.errors import UserError
from nested.streams.files import candidates, data_directory, missing
from nested.streams.stream import Source

EXPECTED = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (or .gz)"
)
HOW = "download the files and put them there, or set stream.source.download=true"
CLOTHES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
OTHERS = ("kmnist", "emnist", "qmnist")  # sets of other images whose files have the same names


def mnist(*, root: str | None = None, download: bool = False) -> Source:
    """MNIST, images (1, 28, 28): with its official test part, or the 10,000 test images where they alone are there.

    Looked for in `root`, `root/MNIST/raw` and one folder down. Raises UserError for missing or damaged files.
    """
    return _source("mnist", "MNIST", root, download, None)


def fashion_mnist(*, root: str | None = None, download: bool = False) -> Source:
    """Fashion-MNIST, images (1, 28, 28), read as MNIST is, from a folder with "fashion" in its name.

    Looked for in `root`, `root/FashionMNIST/raw` and one folder down. Raises UserError for missing or damaged files.
    """
    return _source("fashion_mnist", "FashionMNIST", root, download, CLOTHES)


def _source(name: str, kind: str, root: str | None, download: bool, class_names: tuple[str, ...] | None) -> Source:
    if download:
        _download(kind, root)
    folder = data_directory(root, kind, EXPECTED, HOW)
    searched = [p for p in candidates(folder, f"{kind}/raw") if _holds(p, kind)]
    found = [parts for p in searched if (parts := _pairs(p))]
    if not found:
        hint = (
            "a folder with 'fashion' in its name" if kind == "FashionMNIST" else "a folder not named after another set"
        )
        raise missing(kind, folder, searched or [folder], f"{EXPECTED}, in {hint}", HOW)
    pairs = max(found, key=len)  # a folder with both parts is better than one with the test part alone
    read = {part: (read_idx(images, 3), read_idx(labels, 1)) for part, (images, labels) in pairs.items()}
    for part, (images, labels) in read.items():
        if len(images) != len(labels):
            raise UserError(
                f"{pairs[part][0]} holds {len(images)} images and {pairs[part][1]} {len(labels)} labels; they must be "
                "equally many", key="data.root",
            )  # fmt: skip
    x = torch.cat([images for images, _ in read.values()]).unsqueeze(1)
    y = torch.cat([labels for _, labels in read.values()]).long()
    if set(read) == {"train", "t10k"}:
        test = torch.arange(len(read["train"][0]), len(x))
        return Source(name, x, y, test_index=test, class_names=class_names)
    return Source(f"{name}_{next(iter(read))}", x, y, class_names=class_names)  # named after what is there


def _holds(folder: Path, kind: str) -> bool:
    """Whether the folder may hold this data set: the file names alone do not tell."""
    name = (folder.parent.name + "/" + folder.name if folder.name == "raw" else folder.resolve().name).lower()
    return ("fashion" in name) == (kind == "FashionMNIST") and not any(other in name for other in OTHERS)


def _pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """{"train" or "t10k": (images, labels)} as far as both are there. Raises UserError for one without the other."""
    found = {}
    for part in ("train", "t10k"):
        names = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
        paths = [next((p for p in (folder / n, folder / f"{n}.gz") if p.is_file()), None) for n in names]
        if all(paths):
            found[part] = tuple(paths)
        elif any(paths):
            lacking = names[paths.index(None)]
            raise UserError(f"{folder} has one of {' and '.join(names)} but not {lacking}(.gz); {HOW}", key="data.root")
    return found


def read_idx(path: Path, dims: int) -> Tensor:
    """An IDX file of bytes with `dims` dimensions, plain or gzip: uint8. Raises UserError when it is damaged."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, f"it cannot be decompressed ({error})") from None
    header = 4 + 4 * dims
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, dims)):
        raise _damaged(path, f"it does not begin as an IDX file of bytes with {dims} dimensions")
    shape = np.frombuffer(raw, dtype=">i4", count=dims, offset=4).tolist()
    if math.prod(shape) != len(raw) - header:
        raise _damaged(path, f"its header promises {math.prod(shape)} bytes of data, and {len(raw) - header} follow")
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape).copy())


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is truncated or damaged: {why}; get the file again", key="data.root", seen=str(path))


def _download(kind: str, root: str | None) -> None:
    if root is None:
        raise UserError("a download needs a directory to go to; set data.root=DIRECTORY", key="data.root")
    import torchvision.datasets

    try:
        getattr(torchvision.datasets, kind)(root, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{kind} could not be downloaded to {root}: {error}", key="stream.source.download") from None
