"""Text as bytes: files of a directory by domain, parts by file, sequences and windows of equal length.

On every machine there is one real text: the Python standard library's own sources. `standard_library` reads them by
package; near-duplicates (code tables) and tests are left out, so that what is judged was not trained on. A file is what
bytes it has: no encoding is asked for.

Shapes: N windows, R rows, T tokens.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nested.errors import UserError

VOCABULARY = 256
LEFT_OUT = ("encodings", "lib2to3", "site-packages", "test", "tests", "idlelib", "__pycache__", "pydoc_data")
JUDGED = 10  # one file in so many is judged on, by the hash of its path: the same on every machine
PARTS = ("train", "validation", "test")


def library_root() -> Path:
    """Where the Python standard library's sources lie."""
    return Path(sysconfig.get_paths()["stdlib"])


def standard_library() -> dict[str, list[Path]]:
    """Package -> its Python files, sorted; modules outside packages are the domain "modules"."""
    root = library_root()
    files = sorted(f for f in root.rglob("*.py") if not set(f.relative_to(root).parts) & set(LEFT_OUT))
    return _by_folder(root, files, "modules")


def folders(root: Path, suffix: str = "") -> dict[str, list[Path]]:
    """Folder below `root` -> its files, sorted; files of `root` itself are the domain "text". Raises UserError.

    What is hidden (its name, or a folder's above it, begins with a dot) is no text.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no directory of text files", key="text", seen=str(root))
    files = sorted(f for f in root.rglob(f"*{suffix}") if f.is_file() and not _hidden(f.relative_to(root)))
    if not files:
        raise UserError(f"{root} holds no file{suffix and f' *{suffix}'}", key="text", seen=str(root))
    return _by_folder(root, files, "text")


def _hidden(path: Path) -> bool:
    return any(name.startswith(".") for name in path.parts)


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


def divided(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Part -> its files: in the order of the hashes of their paths below `root`, a tenth of the bytes judges.

    Another tenth chooses. A file that does not fit into its tenth any more is trained on; of three files or more every
    part has one, if need be the smallest. Raises UserError for fewer.
    """
    left = mixed(files, root)
    if len(left) < len(PARTS):
        text = f"{len(left)} with something in them; to train, to choose and to judge takes three files: split it up"
        raise UserError(text, key="text", seen=len(left), allowed=">= 3")
    share = sum(file.stat().st_size for file in left) / JUDGED
    found: dict[str, list[Path]] = {}
    for part, others in (("test", 2), ("validation", 1)):  # parts that still need a file
        found[part] = _filling(share, left, len(left) - others) or [min(left, key=lambda file: file.stat().st_size)]
        left = [file for file in left if file not in found[part]]
    return {part: sorted(found.get(part, left)) for part in PARTS}


def _filling(share: float, files: Iterable[Path], most: int) -> list[Path]:
    """The files, in order, that together have no more bytes than `share`."""
    taken, held = [], 0
    for file in files:
        size = file.stat().st_size
        if held + size <= share and len(taken) < most:
            taken.append(file)
            held += size
    return taken


def mixed(files: Iterable[Path], root: Path) -> list[Path]:
    """Files in the order of the hashes of their paths below `root`: folders mixed, on every machine the same way."""

    def place(file: Path) -> bytes:
        name = file.relative_to(root).as_posix()
        return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()

    return sorted(files, key=place)


def as_bytes(text: bytes) -> Tensor:
    """(n,) uint8."""
    return torch.from_numpy(np.frombuffer(text, np.uint8).copy())


def _bytes(texts: Iterable[bytes]) -> Tensor:
    return as_bytes(b"\n".join(texts))


def manifest(domains: Mapping[str, Iterable[Path]]) -> str:
    """A hash of names, below the folder that all files share, and contents: equal numbers need an equal one."""
    found = hashlib.blake2b(digest_size=8)
    listed = [(name, file) for name, files in domains.items() for file in files]
    root = os.path.commonpath([file.parent for _, file in listed]) if listed else ""
    for name, file in listed:
        below = f"{name}/{file.relative_to(root).as_posix()}/"
        found.update(below.encode("utf-8", "surrogateescape") + file.read_bytes())
    return found.hexdigest()


def windows(text: Tensor, length: int, n: int, draw: torch.Generator) -> Tensor:
    """n windows of `length` bytes from anywhere in the text: (N, T) int64. Raises UserError for a shorter text."""
    if len(text) < length:
        raise UserError(f"a text of {len(text)} bytes is shorter than one sequence of {length}", key="text")
    first = torch.randint(len(text) - length + 1, (n, 1), generator=draw)
    return text[first + torch.arange(length)].long()


def sequences(texts: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor, list[range]]:
    """Tokens and the next tokens, (R, T) each, and the rows of each text (n,): they follow each other without a gap.

    Row i of a text is its tokens i T to (i + 1) T, each followed by the next one, the last by token (i + 1) T. Both are
    views of one tensor, in which a text is padded by less than T tokens, in a row that is nobody's. Raises UserError
    for a text of fewer than T + 1 tokens.
    """
    whole = [(len(text) - 1) // length for text in texts]  # sequences of each
    if short := [len(text) for text, n in zip(texts, whole) if n < 1]:
        text = f"a text of {short[0]} tokens is shorter than one sequence of {length} and the token after it"
        raise UserError(text, key="text", seen=short[0], allowed=length + 1)
    ends = np.cumsum([n + 1 for n in whole]).tolist()
    held = torch.zeros(ends[-1] * length + 1, dtype=texts[0].dtype)
    rows = [range(end - n - 1, end - 1) for n, end in zip(whole, ends)]
    for text, (n, own) in zip(texts, zip(whole, rows)):
        held[own.start * length : own.stop * length + 1] = text[: n * length + 1]
    return held[:-1].view(-1, length), held[1:].view(-1, length), rows
