"""The ways to make a stream of experiences out of a source of data.

Whatever is drawn (class order, parts, borders, permutations) depends on the seed alone, so that every method meets the
same stream. M rows of the source, K classes, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from nested.config import Bound
from nested.errors import UserError
from nested.sequences.exact_match import IGNORED
from nested.streams.assemble import Transforms, assemble, examples, own_heads, shared_head
from nested.streams.boundaries import Boundary
from nested.streams.check import check
from nested.streams.parts import Parts, divide
from nested.streams.seeding import generator
from nested.streams.stream import Experience, Indexable, Scenario, Source, Stream
from nested.streams.transforms import Permutation, Rotation

__all__ = ["Source", "by_task", "permuted", "rotated", "split"]

Count = Annotated[int, Bound(ge=1)]
Share = Annotated[float, Bound(gt=0, lt=1)]
Seed = Annotated[int, Bound(ge=0)] | None  # None: the run's seed, 0 outside of a run


def split(
    source: Source,
    *,
    n_experiences: Count = 5,
    scenario: Scenario = "class",
    boundary: Boundary = "hard",
    blur: Share = 0.2,
    repeats: Count = 1,
    validation: Share = 0.1,
    test: Share = 0.2,
    shuffle_classes: bool = True,
    seed: Seed = None,
) -> Stream:
    """The classes of a data set, dealt out equally over experiences in an order drawn from the seed.

    Targets are the labels; in the domain scenario the rank of the class within its experience. Raises UserError when
    the classes do not divide.
    """
    seed, n_classes = seed or 0, check(source)
    if source.regression or source.per_position:
        what = "float targets" if source.regression else "targets for each position"
        raise UserError(f"{what} have no classes to split; use a `task` for each sample", key="stream.scenario")
    each = _classes_each(n_classes, n_experiences)
    order = (
        torch.randperm(n_classes, generator=generator(seed, "classes")) if shuffle_classes else torch.arange(n_classes)
    )
    place = torch.empty_like(order).index_copy_(0, order, torch.arange(n_classes))[
        source.y
    ]  # (M,) in the stream's order
    targets = place % each if scenario == "domain" else source.y
    groups = order.view(n_experiences, each).tolist()
    names = [_class_names(source, group) for group in groups]
    parts = divide(source, source.y, validation, test, seed)
    made = _experiences(source, parts, place // each, targets, names, groups)
    if scenario == "domain":
        heads = shared_head(n_experiences, each)
    elif scenario == "class":
        heads = shared_head(n_experiences, n_classes)
    else:
        heads = own_heads(groups, n_classes)
    return assemble(
        f"split_{source.name}", source, made, heads,
        scenario=scenario, boundary=boundary, blur=blur, repeats=repeats, seed=seed,
    )  # fmt: skip


def by_task(
    source: Source,
    *,
    n_experiences: Count | None = None,
    scenario: Scenario = "class",
    boundary: Boundary = "hard",
    blur: Share = 0.2,
    repeats: Count = 1,
    validation: Share = 0.1,
    test: Share = 0.2,
    shuffle_tasks: bool = False,
    seed: Seed = None,
) -> Stream:
    """The tasks that the data bring along, one experience each, the first `n_experiences` of them (null: all).

    Classes that occur in the tasks used are numbered anew, in the order of their labels. In the domain scenario targets
    are the labels where tasks share some, else the rank of the class within its task. In the task scenario tasks that
    share labels get outputs of their own (target = task * K + label). Float targets need the domain scenario. Of
    sequences with a target for each position, every part is as wide as its longest.
    """
    seed, n_labels, task = seed or 0, check(source), source.task
    if task is None:
        raise UserError(f"{source.name} says of no sample to which task it belongs", key="stream")
    order = _task_order(int(task.max()) + 1, n_experiences, generator(seed, "tasks") if shuffle_tasks else None)
    position = torch.full((int(task.max()) + 1,), -1).index_copy_(0, order, torch.arange(len(order)))
    task = position[task]  # (M,) place in the stream, -1 where left out
    strata = task if source.regression or source.per_position else task * n_labels + source.y
    parts = divide(source, strata, validation, test, seed)
    if source.regression:
        _check_domain(scenario)
        targets, members, heads = source.y, [[] for _ in order], shared_head(len(order), n_labels)
    else:
        labels, members = _renumbered(source.y, task, len(order))
        targets, heads = _task_targets(labels, task, members, scenario)
    made = _experiences(source, parts, task, targets, [_task_name(source, t) for t in order.tolist()], members)
    return assemble(
        source.name, source, made, heads, scenario=scenario, boundary=boundary, blur=blur, repeats=repeats, seed=seed
    )


def permuted(
    source: Source,
    *,
    n_experiences: Count = 10,
    scenario: Scenario = "domain",
    boundary: Boundary = "hard",
    blur: Share = 0.2,
    repeats: Count = 1,
    validation: Share = 0.1,
    test: Share = 0.2,
    seed: Seed = None,
) -> Stream:
    """All classes in every task, the pixels moved by a permutation of the task's own; the first task is left as it is.

    Permutations are made from the seed and the task's number when they are needed: any number of tasks holds one copy
    of the data. In the task scenario task k has outputs of its own (target = k * K + label).
    """
    transforms = tuple(Permutation(seed or 0, k) for k in range(n_experiences))
    names = [f"permutation {k}" for k in range(n_experiences)]
    return _transformed(
        "permuted", source, transforms, names, validation, test,
        scenario=scenario, boundary=boundary, blur=blur, repeats=repeats, seed=seed or 0,
    )  # fmt: skip


def rotated(
    source: Source,
    *,
    n_experiences: Count = 5,
    max_degrees: Annotated[float, Bound(gt=0, le=360)] = 180.0,
    scenario: Scenario = "domain",
    boundary: Boundary = "hard",
    blur: Share = 0.2,
    repeats: Count = 1,
    validation: Share = 0.1,
    test: Share = 0.2,
    seed: Seed = None,
) -> Stream:
    """All classes in every task, the images turned in equal steps from 0 to `max_degrees` (counter-clockwise).

    Images are turned when they are read. In the task scenario task k has outputs of its own (target = k * K + label).
    """
    if len(source.x.shape) != 4:
        raise UserError(
            f"samples of shape {tuple(source.x.shape[1:])} cannot be turned; images (C, H, W) can", key="stream"
        )
    degrees = [max_degrees * k / max(1, n_experiences - 1) for k in range(n_experiences)]
    return _transformed(
        "rotated", source, tuple(map(Rotation, degrees)), [f"{d:g} degrees" for d in degrees], validation, test,
        scenario=scenario, boundary=boundary, blur=blur, repeats=repeats, seed=seed or 0,
    )  # fmt: skip


def _transformed(
    kind: str,
    source: Source,
    transforms: Transforms,
    names: list[str],
    validation: float,
    test: float,
    *,
    scenario: Scenario,
    boundary: Boundary,
    blur: float,
    repeats: int,
    seed: int,
) -> Stream:
    """One task for each transform of the same data; tasks share tensors of rows and, where they can, of targets."""
    n, n_tasks = check(source), len(transforms)
    if source.vocabulary is not None or source.per_position:
        raise UserError(f"sequences cannot be {kind}; images and flat samples can", key="stream", seen=source.name)
    if scenario == "class":
        raise UserError(
            f"a {kind} stream has the same classes in every task, so no class is ever new; use domain (one head) "
            "or task (a head for each task)",
            key="stream.scenario", seen="class", allowed=["domain", "task"],
        )  # fmt: skip
    if source.regression:
        _check_domain(scenario)
    strata = torch.zeros(len(source.y), dtype=torch.int64) if source.regression else source.y
    own = [(rows, source.y[rows]) for rows in divide(source, strata, validation, test, seed)]
    made = [
        Experience(k, name, k, () if source.regression else tuple(range(n)), *(
            examples(source.x, rows, y + k * n if scenario == "task" else y, k, transforms) for rows, y in own
        ))
        for k, name in enumerate(names)
    ]  # fmt: skip
    if scenario == "task":
        heads = own_heads([range(k * n, (k + 1) * n) for k in range(n_tasks)], n_tasks * n)
    else:
        heads = shared_head(n_tasks, n)
    return assemble(
        f"{kind}_{source.name}", source, made, heads,
        scenario=scenario, boundary=boundary, blur=blur, repeats=repeats, seed=seed,
    )  # fmt: skip


def _experiences(
    source: Source, parts: Parts, task: Tensor, targets: Tensor, names: list[str], classes: Sequence[Sequence[int]]
) -> list[Experience]:
    """One experience for each task: its rows of every part. task (M,), targets (M,), (M, K) or (M, T)."""
    used = [rows[task[rows] >= 0] for rows in parts]
    data = [_as_wide_as_needed(source, targets, rows) for rows in used]
    made = []
    for k, name in enumerate(names):
        mine = [(rows[task[rows] == k], x, y) for rows, (x, y) in zip(used, data)]
        made.append(
            Experience(k, name, k, tuple(classes[k]), *(examples(x, rows, y[rows], k, None) for rows, x, y in mine))
        )
    return made


def _as_wide_as_needed(source: Source, targets: Tensor, rows: Tensor) -> tuple[Tensor | Indexable, Tensor]:
    """Samples and targets; of sequences the columns up to the last that is judged in any of `rows`: views, no copies.

    Long strings that only judge so cost nothing in training.
    """
    if not source.per_position or not isinstance(source.x, Tensor) or len(rows) == 0:
        return source.x, targets
    width = int((targets[rows] != IGNORED).any(0).nonzero().max()) + 1
    return source.x[:, :width], targets[:, :width]


def _classes_each(n_classes: int, n_experiences: int) -> int:
    fits = [n for n in range(1, n_classes + 1) if n_classes % n == 0]
    if n_experiences not in fits:
        more = "there are more experiences than classes" if n_experiences > n_classes else "the classes do not divide"
        raise UserError(
            f"{n_classes} classes cannot be dealt out equally over {n_experiences} experiences: {more}; what divides: "
            f"{', '.join(map(str, fits))}",
            key="stream.n_experiences", seen=n_experiences, allowed=fits,
        )  # fmt: skip
    return n_classes // n_experiences


def _task_order(n_tasks: int, wanted: int | None, draw: torch.Generator | None) -> Tensor:
    if wanted is not None and wanted > n_tasks:
        raise UserError(
            f"{wanted} experiences, but the data have {n_tasks} tasks; at most {n_tasks}",
            key="stream.n_experiences", seen=wanted, allowed=list(range(1, n_tasks + 1)),
        )  # fmt: skip
    order = torch.arange(n_tasks) if draw is None else torch.randperm(n_tasks, generator=draw)
    return order[:wanted]


def _renumbered(y: Tensor, task: Tensor, n_tasks: int) -> tuple[Tensor, list[list[int]]]:
    """Labels (M,) or (M, T) counted over the tasks in use (0 elsewhere), and the labels of each task."""
    used = _judged(y[task >= 0])
    labels = torch.searchsorted(used, y.contiguous()).clamp(max=len(used) - 1)
    labels = labels.where(y != IGNORED, IGNORED)
    return labels, [_judged(labels[task == k]).tolist() for k in range(n_tasks)]


def _judged(labels: Tensor) -> Tensor:
    """The different labels that occur, in order."""
    return labels[labels != IGNORED].unique()


def _task_targets(labels: Tensor, task: Tensor, members: list[list[int]], scenario: Scenario) -> tuple[Tensor, Tensor]:
    """Targets (M,) or (M, T) and the outputs of each task."""
    n_tasks, n_classes, counts = len(members), max(map(max, members)) + 1, sorted({len(m) for m in members})
    shared = sum(map(len, members)) > n_classes
    if scenario == "class" or (scenario == "domain" and shared):
        return labels, shared_head(n_tasks, n_classes)
    if scenario == "task" and shared:
        outputs = [[k * n_classes + c for c in own] for k, own in enumerate(members)]
        first = (task.clamp(min=0) * n_classes).reshape(-1, *[1] * (labels.ndim - 1))
        return (first + labels).where(labels != IGNORED, IGNORED), own_heads(outputs, n_tasks * n_classes)
    if scenario == "task":
        return labels, own_heads(members, n_classes)
    if len(counts) > 1:
        raise UserError(
            f"the domain scenario needs equally many classes in every task; here they have {counts[0]} to "
            f"{counts[-1]}; use class or task",
            key="stream.scenario", seen="domain", allowed=["class", "task"],
        )  # fmt: skip
    rank = torch.zeros(n_classes, dtype=torch.int64)
    for own in members:
        rank[own] = torch.arange(len(own))
    return rank[labels.clamp(min=0)].where(labels != IGNORED, IGNORED), shared_head(n_tasks, counts[0])


def _check_domain(scenario: Scenario) -> None:
    if scenario != "domain":
        raise UserError(
            "float targets have no classes; only the domain scenario applies",
            key="stream.scenario", seen=scenario, allowed=["domain"],
        )  # fmt: skip


def _class_names(source: Source, group: Sequence[int]) -> str:
    names = [source.class_names[c] if source.class_names else str(c) for c in group]
    return " ".join(names) if len(names) <= 4 else f"{' '.join(names[:3])} and {len(names) - 3} more"


def _task_name(source: Source, task: int) -> str:
    return source.task_names[task] if source.task_names else f"task {task}"
