"""Data that cannot be learned from is refused before anything is built on it."""

from __future__ import annotations

import torch
from torch import Tensor

from nested.errors import UserError
from nested.sequences.exact_match import IGNORED
from nested.streams.stream import Source


def check(source: Source) -> int:
    """The number of classes of the source, or for regression of target values. Raises UserError for unusable data.

    Of targets for each position it is the highest label and one: not every token need be an answer.
    """
    if len(source.x) != len(source.y):
        raise _refused(source, f"x has {len(source.x)} samples and y has {len(source.y)}; they must be equally many")
    if len(source.y) == 0:
        raise _refused(source, "there are no samples")
    for name in ("task", "validation_index", "test_index"):
        _check_rows(source, name)
    if isinstance(source.x, Tensor):
        _check_finite(source, source.x, "x")
    if source.vocabulary is not None:
        _check_tokens(source, source.vocabulary)
    if source.regression:
        _check_finite(source, source.y, "y")
        return source.y.shape[1]
    return _check_positions(source, source.y) if source.per_position else _check_labels(source, source.y)


def _check_tokens(source: Source, vocabulary: int) -> None:
    x = source.x
    if not isinstance(x, Tensor) or x.dtype is not torch.int64 or x.ndim != 2:
        seen = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise _refused(source, f"x is {seen}; with a vocabulary a tensor of int64 tokens (M, T) is needed")
    if strange := ((x < 0) | (x >= vocabulary)).any(1).nonzero().flatten().tolist():
        row = x[strange[0]]
        token = int(row[(row < 0) | (row >= vocabulary)][0])
        raise _refused(
            source, f"token {token} of sample {strange[0]} is out of range: the vocabulary has 0 to {vocabulary - 1}"
        )


def _check_positions(source: Source, y: Tensor) -> int:
    if tuple(source.x.shape[:2]) != tuple(y.shape):
        shapes = f"x {tuple(source.x.shape)} and y {tuple(y.shape)}"
        raise _refused(source, f"{shapes} differ in samples or positions; each position needs one target")
    judged = y != IGNORED
    if silent := (~judged.any(1)).nonzero().flatten().tolist():
        raise _refused(
            source, f"no position of sample {silent[0]} is judged, and of {len(silent)} in all; leave it out"
        )
    if (judged & (y < 0)).any():
        seen = int(y[judged & (y < 0)][0])
        raise _refused(source, f"label {seen} is negative; labels are 0, 1, 2, ..., or {IGNORED} where none is judged")
    highest = int(y.max())
    if source.class_names and highest >= len(source.class_names):
        raise _refused(source, f"label {highest} is out of range: {len(source.class_names)} classes are named")
    return len(source.class_names) if source.class_names else highest + 1


def _check_rows(source: Source, name: str) -> None:
    values: Tensor | None = getattr(source, name)
    if values is None:
        return
    if name == "task" and len(values) != len(source.y):
        raise _refused(source, f"task has {len(values)} entries for {len(source.y)} samples; they must be equally many")
    if name == "task" and values.unique().tolist() != list(range(int(values.max()) + 1)):
        raise _refused(source, f"tasks must be numbered 0, 1, 2, ...; seen: {values.unique().tolist()[:20]}")
    if len(values) == 0:
        raise _refused(source, f"the {name.removesuffix('_index')} part is empty; leave it out to have one split off")


def _check_finite(source: Source, values: Tensor, what: str) -> None:
    if not values.is_floating_point():
        return
    finite = values.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = (~finite).nonzero().squeeze(1)
        raise _refused(
            source,
            f"{what} holds NaN or infinite values in {len(bad)} of {len(finite)} samples, the first is {int(bad[0])};"
            " remove or repair these",
        )


def _check_labels(source: Source, y: Tensor) -> int:
    labels = y.unique()
    lowest, highest, n = int(labels[0]), int(labels[-1]), len(labels)
    allowed = len(source.class_names) if source.class_names else n
    if lowest < 0:
        row = int((y < 0).nonzero()[0])
        raise _refused(
            source, f"label {int(y[row])} of sample {row} is negative; labels are 0 to {n - 1} for {n} classes"
        )
    if highest >= allowed:
        row = int((y >= allowed).nonzero()[0])
        raise _refused(
            source,
            f"label {int(y[row])} of sample {row} is out of range: {n} different labels occur, so they must be 0 to "
            f"{allowed - 1}; numpy.unique(y, return_inverse=True)[1] renumbers them",
        )
    if n < allowed:
        missing = sorted(set(range(allowed)) - set(labels.tolist()))
        raise _refused(source, f"no sample has label {missing[0]}, though {allowed} classes are named")
    return n


def _refused(source: Source, message: str) -> UserError:
    return UserError(f"{source.name}: {message}", key="stream")
