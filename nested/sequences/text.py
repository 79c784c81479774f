"""Text as bytes: files of a directory by domain, parts by file, windows of equal length.

On every machine there is one real text: the Python standard library's own sources. `standard_library` reads them by
package; near-duplicates (code tables) and tests are left out, so that what is judged was not trained on.

Shapes: N windows, T tokens.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nested.errors import UserError

VOCABULARY = 256
LEFT_OUT = ("encodings", "lib2to3", "site-packages", "test", "tests", "idlelib", "__pycache__", "pydoc_data")
JUDGED = 10  # one file in so many is judged on, by the hash of its path: the same on every machine


def standard_library() -> dict[str, list[Path]]:
    """Package -> its Python files, sorted; modules outside packages are the domain "modules"."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(f for f in root.rglob("*.py") if not set(f.relative_to(root).parts) & set(LEFT_OUT))
    return _by_folder(root, files, "modules")


def folders(root: Path, suffix: str = "") -> dict[str, list[Path]]:
    """Folder below `root` -> its files, sorted; files of `root` itself are the domain "text". Raises UserError."""
    if not root.is_dir():
        raise UserError(f"{root} is no directory of text files", key="text", seen=str(root))
    files = sorted(f for f in root.rglob(f"*{suffix}") if f.is_file())
    if not files:
        raise UserError(f"{root} holds no file *{suffix}", key="text", seen=str(root))
    return _by_folder(root, files, "text")


def _by_folder(root: Path, files: Iterable[Path], rest: str) -> dict[str, list[Path]]:
    domains: dict[str, list[Path]] = {}
    for file in files:
        parts = file.relative_to(root).parts
        domains.setdefault(parts[0] if len(parts) > 1 else rest, []).append(file)
    return domains


def parts(files: Iterable[Path]) -> tuple[Tensor, Tensor]:
    """All bytes to train on and all bytes to judge on, (n,) uint8 each, divided by file."""
    train, judged = [], []
    for file in files:
        place = int.from_bytes(hashlib.blake2b(file.name.encode(), digest_size=4).digest(), "big")
        (judged if place % JUDGED == 0 else train).append(file.read_bytes())
    return _bytes(train), _bytes(judged)


def _bytes(texts: Iterable[bytes]) -> Tensor:
    return torch.from_numpy(np.frombuffer(b"\n".join(texts), np.uint8).copy())


def manifest(domains: Mapping[str, Iterable[Path]]) -> str:
    """A hash of names and contents: numbers are comparable only where it is equal."""
    found = hashlib.blake2b(digest_size=8)
    for name, files in domains.items():
        for file in files:
            found.update(f"{name}/{file.name}/".encode() + file.read_bytes())
    return found.hexdigest()


def windows(text: Tensor, length: int, n: int, draw: torch.Generator) -> Tensor:
    """n windows of `length` bytes from anywhere in the text: (N, T) int64. Raises UserError for a shorter text."""
    if len(text) < length:
        raise UserError(f"a text of {len(text)} bytes is shorter than one sequence of {length}", key="text")
    first = torch.randint(len(text) - length + 1, (n, 1), generator=draw)
    return text[first + torch.arange(length)].long()
