"""Images in folders, read from disk when a batch asks for them. B batch, images (3, size, size)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from nested.config import Bound
from nested.errors import UserError
from nested.streams.arrange import Count, Seed, Share, by_task, split
from nested.streams.boundaries import Boundary
from nested.streams.files import user_path
from nested.streams.stream import Scenario, Source, Stream

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def image_folder(
    path: str,
    *,
    tasks: Literal["classes", "folders"] = "classes",
    size: Annotated[int, Bound(ge=1)] = 32,
    n_experiences: Count | None = None,
    scenario: Scenario = "class",
    boundary: Boundary = "hard",
    blur: Share = 0.2,
    repeats: Count = 1,
    validation: Share = 0.1,
    test: Share = 0.2,
    shuffle_classes: bool = True,
    seed: Seed = None,
    root: str | None = None,
) -> Stream:
    """Your own images: PATH/CLASS/*.png split by class, or PATH/TASK/CLASS/*.png with a folder for each task.

    Images are read when a batch asks for them, as RGB resized to (3, size, size); no more than a batch is in memory.
    Without task folders, `n_experiences` null is two classes for each experience. Equal class names in several tasks
    are one class. Raises UserError for a folder without such images, and on reading for a damaged image.
    """
    source = _source(user_path(path, root, "directory"), tasks, size)
    shared = {
        "boundary": boundary,
        "blur": blur,
        "repeats": repeats,
        "validation": validation,
        "test": test,
        "seed": seed,
    }
    if tasks == "folders":
        return by_task(source, n_experiences=n_experiences, scenario=scenario, **shared)
    n_experiences = n_experiences or max(1, (int(source.y.max()) + 1) // 2)
    return split(source, n_experiences=n_experiences, scenario=scenario, shuffle_classes=shuffle_classes, **shared)


@dataclass(frozen=True)
class Images:
    """Image files as an indexable base: uint8 (B, 3, size, size) for the rows asked for."""

    folder: Path
    names: tuple[str, ...]  # paths relative to the folder
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.names), 3, self.size, self.size)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Tensor) -> Tensor:
        out = torch.empty(len(rows), 3, self.size, self.size, dtype=torch.uint8)
        for i, row in enumerate(rows.tolist()):
            out[i] = self._image(self.folder / self.names[row])
        return out

    def _image(self, path: Path) -> Tensor:
        from PIL import Image

        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR))
        except (OSError, SyntaxError) as error:  # PIL says SyntaxError of some broken PNG files
            raise UserError(f"{path} cannot be read as an image: {error}", key="stream.path", seen=str(path)) from None
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def digest(self) -> str:
        """A hash of the files' names and sizes in bytes (their contents are not read) and of the image size."""
        listed = [f"{name}:{(self.folder / name).stat().st_size}" for name in self.names]
        return hashlib.blake2b("\n".join([str(self.size), *listed]).encode(), digest_size=16).hexdigest()


def _source(folder: Path, tasks: Literal["classes", "folders"], size: int) -> Source:
    pattern = ("task", "class") if tasks == "folders" else ("class",)
    files = sorted(p for p in folder.glob("/".join("*" * (len(pattern) + 1))) if p.suffix.lower() in SUFFIXES)
    if not files:
        wanted = "/".join([str(folder), *(p.upper() for p in pattern), "*.png"])
        other = "classes" if tasks == "folders" else "folders"
        raise UserError(
            f"no images: looked for {wanted} (also {', '.join(s[1:] for s in SUFFIXES[1:])}); for the other layout set "
            f"stream.tasks={other}", key="stream.path", seen=str(folder),
        )  # fmt: skip
    where = [p.relative_to(folder).parts for p in files]
    class_names, y = np.unique([parts[-2] for parts in where], return_inverse=True)
    task_names, task = np.unique([parts[0] for parts in where], return_inverse=True)
    with_tasks = tasks == "folders"
    return Source(
        folder.name,
        Images(folder, tuple("/".join(parts) for parts in where), size),
        torch.from_numpy(y).long(),
        task=torch.from_numpy(task).long() if with_tasks else None,
        class_names=tuple(class_names.tolist()),
        task_names=tuple(task_names.tolist()) if with_tasks else None,
    )
