"""A user's own arrays: one `.npz` or `.safetensors` file with x, y and, if wanted, task and split. M rows."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nested.errors import UserError
from nested.streams.arrange import Count, Seed, Share, by_task, split
from nested.streams.boundaries import Boundary
from nested.streams.check import check
from nested.streams.files import user_path
from nested.streams.stream import Scenario, Source, Stream

Arrays = Mapping[str, np.ndarray]
KEYS = ("x", "y", "task", "split")
PARTS = {0: "train", 1: "validation", 2: "test"}


def tensors(
    path: str,
    *,
    n_experiences: Count | None = None,
    scenario: Scenario | None = None,
    boundary: Boundary = "hard",
    blur: Share = 0.2,
    repeats: Count = 1,
    validation: Share = 0.1,
    test: Share = 0.2,
    shuffle_classes: bool = True,
    seed: Seed = None,
    root: str | None = None,
) -> Stream:
    """Your own `.npz` or `.safetensors` file with arrays x, y and, if wanted, task and split.

    x (M, F), (M, H, W) grey or (M, C, H, W), uint8 scaled to 0..1, other numbers as they are; y (M,) integer labels
    0..K-1, or floats for regression (M,) or (M, K); task (M,) of any sortable values, one experience each in sorted
    order; split (M,) of 0, 1, 2 or "train", "validation", "test". Without task, classes are split (null: two for each
    experience). `scenario` null is domain for float targets and class for labels. Raises UserError for unusable data.
    """
    source = read(user_path(path, root, "file"))
    shared = {
        "boundary": boundary,
        "blur": blur,
        "repeats": repeats,
        "validation": validation,
        "test": test,
        "seed": seed,
    }
    scenario = scenario or ("domain" if source.regression else "class")
    if source.task is not None:
        return by_task(source, n_experiences=n_experiences, scenario=scenario, **shared)
    if source.regression:
        raise UserError(
            f"{path}: y is of floats, so this is regression, which needs `task`, the experience of each sample; found "
            "x and y without it (class labels must be of an integer type: y.astype('int64'))", key="stream.path",
        )  # fmt: skip
    if n_experiences is None:
        n_experiences = max(1, check(source) // 2)
    return split(source, n_experiences=n_experiences, scenario=scenario, shuffle_classes=shuffle_classes, **shared)


def read(path: Path) -> Source:
    """The file as a Source. Raises UserError for files that cannot be read and arrays that do not fit."""
    arrays = _safetensors(path) if path.suffix == ".safetensors" else _npz(path)
    if lacking := [k for k in ("x", "y") if k not in arrays]:
        raise _refused(
            path, f"no array {' and no array '.join(lacking)}; found: {', '.join(sorted(arrays)) or 'nothing'}"
        )
    y, regression = _targets(path, arrays["y"])
    task, names = _tasks(path, arrays["task"]) if "task" in arrays else (None, None)
    validation, test = _official(path, arrays["split"], len(y)) if "split" in arrays else (None, None)
    return Source(path.stem, _samples(path, arrays["x"]), y, test, validation, task, regression, task_names=names)


def _needed(path: Path, found: Sequence[str]) -> list[str]:
    """Which of the arrays found are read. Raises UserError when x or y is not among them."""
    if lacking := [k for k in ("x", "y") if k not in found]:
        raise _refused(
            path, f"no array {' and no array '.join(lacking)}; found: {', '.join(sorted(found)) or 'nothing'}"
        )
    return [k for k in KEYS if k in found]


def _npz(path: Path) -> Arrays:
    if not zipfile.is_zipfile(path):
        raise _refused(path, "it is truncated or not an .npz file; write it with numpy.savez(path, x=..., y=...)")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in _needed(path, file.files)}
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise _refused(path, f"it cannot be read ({error})") from None
        raise _refused(
            path, "it holds Python objects, which are never unpickled; write plain arrays of numbers (or of words)"
        ) from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _refused(path, f"it is truncated or damaged ({error})") from None


def _safetensors(path: Path) -> Arrays:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: _array(file.get_tensor(name)) for name in _needed(path, list(file.keys()))}
    except (SafetensorError, OSError) as error:
        raise _refused(path, f"it is truncated or not a .safetensors file ({error})") from None


def _array(value: Tensor) -> np.ndarray:
    return (value.float() if value.dtype is torch.bfloat16 else value).numpy()


def _samples(path: Path, x: np.ndarray) -> Tensor:
    """(M, F) or (M, C, H, W): uint8 as it is, everything else float32."""
    if x.dtype.kind not in "buif":
        raise _refused(path, f"x is of type {x.dtype}; numbers are needed")
    if x.ndim not in (2, 3, 4):
        raise _refused(
            path, f"x has shape {x.shape}; (samples, features), (samples, H, W) or (samples, C, H, W) is needed"
        )
    if 0 in x.shape[1:]:
        raise _refused(path, f"x has shape {x.shape}: its samples have no values")
    if x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        raise _refused(path, f"x of shape {x.shape} seems to have its channels last; x.transpose(0, 3, 1, 2) is needed")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused with its row
        kept = torch.from_numpy(np.ascontiguousarray(x if x.dtype == np.uint8 else x.astype(np.float32)))
    return kept.unsqueeze(1) if x.ndim == 3 else kept


def _targets(path: Path, y: np.ndarray) -> tuple[Tensor, bool]:
    """Labels (M,) int64 and False, or values (M, K) float32 and True."""
    if y.dtype.kind == "f" and y.ndim in (1, 2):
        values = torch.from_numpy(y.astype(np.float32))
        return (values.unsqueeze(1) if y.ndim == 1 else values), True
    if y.dtype.kind not in "biu" or y.ndim != 1:
        raise _refused(
            path, f"y is {y.dtype} of shape {y.shape}; integer labels (M,), or floats (M,) or (M, K), are needed"
        )
    return torch.from_numpy(y.astype(np.int64)), False


def _tasks(path: Path, task: np.ndarray) -> tuple[Tensor, tuple[str, ...]]:
    if task.dtype.kind not in "iuUS" or task.ndim != 1:
        raise _refused(path, f"task is {task.dtype} of shape {task.shape}; integers or words (M,) are needed")
    names, number = np.unique(task, return_inverse=True)
    words = [n.decode() if isinstance(n, bytes) else str(n) for n in names.tolist()]
    return torch.from_numpy(number.astype(np.int64)), tuple(
        f"task {w}" if task.dtype.kind in "iu" else w for w in words
    )


def _official(path: Path, part: np.ndarray, n: int) -> tuple[Tensor | None, Tensor | None]:
    """Rows of validation and of test, None for a part that does not occur."""
    if part.shape != (n,):
        raise _refused(path, f"split has shape {part.shape} for {n} targets; it must be ({n},)")
    known = {**PARTS, **{str(k): v for k, v in PARTS.items()}, **{v: v for v in PARTS.values()}}
    values = [v.decode() if isinstance(v, bytes) else v for v in part.tolist()]
    if strange := sorted({str(v) for v in values if v not in known}):
        raise _refused(path, f"split holds {', '.join(strange[:5])}; allowed: 0, 1, 2, or train, validation, test")
    words = np.array([known[v] for v in values])
    validation, test = (torch.from_numpy(np.flatnonzero(words == w)) for w in ("validation", "test"))
    return (validation if len(validation) else None), (test if len(test) else None)


def _refused(path: Path, message: str) -> UserError:
    return UserError(f"{path}: {message}", key="stream.path", seen=str(path))
