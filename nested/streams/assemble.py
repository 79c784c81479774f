"""From parts, tasks and targets to the finished stream: borders, visits, what must not be empty, and the digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nested.errors import UserError
from nested.streams.boundaries import Boundary, rearranged
from nested.streams.stream import Examples, Experience, Indexable, Scenario, Source, Stream

Transforms = tuple[Callable[[Tensor], Tensor], ...]


def shared_head(n_tasks: int, n_outputs: int) -> Tensor:
    """All outputs for every task: (tasks, outputs) bool."""
    return torch.ones(n_tasks, n_outputs, dtype=torch.bool)


def own_heads(outputs: Sequence[Sequence[int]], n_outputs: int) -> Tensor:
    """Outputs outputs[t] for task t alone: (tasks, outputs) bool."""
    allowed = torch.zeros(len(outputs), n_outputs, dtype=torch.bool)
    for task, own in enumerate(outputs):
        allowed[task, list(own)] = True
    return allowed


def assemble(
    name: str,
    source: Source,
    experiences: list[Experience],
    task_outputs: Tensor,
    *,
    scenario: Scenario,
    boundary: Boundary,
    blur: float,
    repeats: int,
    seed: int,
) -> Stream:
    """The stream of these experiences, hard-bordered as given, with the borders and repeats that were asked for.

    Borders are treated first: every visit of an experience has the same samples. Raises UserError for an empty part.
    """
    for experience in experiences:
        _check_parts(source, experience)
    train = rearranged([e.train for e in experiences], boundary, blur, seed)
    visited = _visits([replace(e, train=t) for e, t in zip(experiences, train)], repeats)
    return Stream(
        name=name,
        scenario=scenario,
        experiences=tuple(visited),
        n_outputs=task_outputs.shape[1],
        sample_shape=tuple(source.x.shape[1:]),
        regression=source.regression,
        digest=digest(source.x, visited),
        task_outputs=task_outputs,
        vocabulary=source.vocabulary,
    )


def _check_parts(source: Source, experience: Experience) -> None:
    for part in ("train", "validation", "test"):
        if len(getattr(experience, part)) == 0:
            others = {p: len(getattr(experience, p)) for p in ("train", "validation", "test") if p != part}
            held = " and ".join(f"{n} to {p}" for p, n in others.items())
            raise UserError(
                f"{source.name}: the {part} part of experience {experience.name!r} is empty ({held}); give it more "
                "samples, or use fewer experiences",
                key="stream" if part == "train" else f"stream.{part}",
                seen=0,
            )


def _visits(experiences: list[Experience], repeats: int) -> list[Experience]:
    return [
        replace(
            e, index=visit * len(experiences) + e.index, name=f"{e.name}, visit {visit + 1}" if repeats > 1 else e.name
        )
        for visit in range(repeats)
        for e in experiences
    ]


def digest(base: Tensor | Indexable, experiences: Sequence[Experience]) -> str:
    """A hash (32 hex digits) of the data and of which rows, targets, tasks and transforms every part has.

    A base that is read lazily gives its own digest instead of its bytes.
    """
    total = hashlib.blake2b(digest_size=16)
    total.update(_hash(base) if isinstance(base, Tensor) else base.digest().encode())
    known: dict[tuple[int, tuple[int, ...], tuple[int, ...]], bytes] = {}
    for experience in experiences:
        total.update(f"{experience.name}/{experience.task}/{experience.classes}".encode())
        for part in (experience.train, experience.validation, experience.test):
            for values in (part.index, part.targets, part.task):
                key = (values.data_ptr(), tuple(values.shape), values.stride())
                if key not in known:  # tasks made of one data set share most of their tensors
                    known[key] = _hash(values)
                total.update(known[key])
    total.update(repr(experiences[0].train.transforms).encode())
    return total.hexdigest()


def _hash(values: Tensor) -> bytes:
    found = hashlib.blake2b(f"{values.dtype}{tuple(values.shape)}".encode(), digest_size=16)
    found.update(values.contiguous().numpy().data)
    return found.digest()


def examples(
    base: Tensor | Indexable, rows: Tensor, targets: Tensor, task: int, transforms: Transforms | None
) -> Examples:
    """Rows of one task; the task of each row costs no memory."""
    return Examples(base, rows, targets, torch.tensor(task).expand(len(rows)), transforms)
