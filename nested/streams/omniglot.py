"""Omniglot: handwritten characters of many alphabets, each alphabet a task (Lake et al., Science 2015)."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from nested.config import Bound
from nested.errors import UserError
from nested.streams.files import candidates, data_directory, missing
from nested.streams.stream import Source

FULL = ("images_background.zip", "images_evaluation.zip")
SMALL = ("images_background_small1.zip", "images_background_small2.zip")
EXPECTED = f"{' and '.join(FULL)}, or {' and '.join(SMALL)}"
HOW = "get the zips from github.com/brendenlake/omniglot (folder python) and leave them packed"


def omniglot(*, root: str | None = None, size: Annotated[int, Bound(ge=1, le=105)] = 28) -> Source:
    """Omniglot from its official zips, ink bright, images (1, size, size): alphabets are tasks, characters classes.

    The whole zips are used where they are, else the two small ones; an alphabet that is in both small ones is taken
    once. Looked for in `root` and one folder down. Raises UserError for missing or unreadable zips.
    """
    folder = data_directory(root, "Omniglot", EXPECTED, HOW)
    searched = candidates(folder)
    archives = _archives(searched)
    if not archives:
        raise missing("Omniglot", folder, searched, EXPECTED, HOW)
    drawings: dict[tuple[str, str, str], Tensor] = {}  # (alphabet, character, file): (size, size)
    for archive in archives:
        _read(archive, size, drawings)
    keys = sorted(drawings)
    characters = sorted({key[:2] for key in keys})
    alphabets = sorted({key[0] for key in keys})
    label, task = {c: i for i, c in enumerate(characters)}, {a: i for i, a in enumerate(alphabets)}
    return Source(
        "omniglot" if archives[0].name in FULL else "omniglot_small",
        torch.stack([drawings[key] for key in keys]).unsqueeze(1),
        torch.tensor([label[key[:2]] for key in keys]),
        task=torch.tensor([task[key[0]] for key in keys]),
        class_names=tuple("/".join(c) for c in characters),
        task_names=tuple(alphabets),
    )


def _archives(searched: list[Path]) -> list[Path]:
    for names in (FULL, SMALL):
        for folder in searched:
            if found := [folder / n for n in names if (folder / n).is_file()]:
                return found
    return []


def _read(archive: Path, size: int, drawings: dict[tuple[str, str, str], Tensor]) -> None:
    """Add the drawings of one zip. Raises UserError when it cannot be read or has none."""
    try:
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                alphabet, character, file = ("", "", *name.split("/"))[-3:]
                if alphabet and file.endswith(".png"):
                    drawings[alphabet, character, file] = _drawing(packed.read(name), size)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, SyntaxError) as error:
        raise UserError(f"{archive} cannot be read: {error}; {HOW}", key="data.root", seen=str(archive)) from None
    if not drawings:
        raise UserError(f"{archive} holds no ALPHABET/CHARACTER/*.png; {HOW}", key="data.root", seen=str(archive))


def _drawing(png: bytes, size: int) -> Tensor:
    """(size, size) uint8: printed black on white, turned to bright ink on dark as MNIST has it."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("L").resize((size, size), Image.Resampling.BOX)
    return 255 - torch.from_numpy(np.array(image))
