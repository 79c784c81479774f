"""To and from Avalanche (Lomonaco et al. 2021, avalanche-lib 0.6); it is imported when it is needed."""

from __future__ import annotations

import hashlib
import inspect
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nested.errors import UserError
from nested.signature import locate
from nested.streams.arrange import Count, Seed, Share, by_task
from nested.streams.boundaries import Boundary
from nested.streams.stream import Examples, Scenario, Source, Stream


def to_avalanche(stream: Stream) -> Any:
    """The stream as an Avalanche benchmark with the streams train, valid and test, equal sample by sample.

    The task label of a sample is its task in the task scenario and 0 otherwise, as Avalanche has it. Raises UserError
    for regression and for sequences.
    """
    if stream.regression:
        raise UserError("Avalanche's classification benchmarks take no float targets", key="stream", seen=stream.name)
    if stream.vocabulary is not None or stream.per_position:
        text = "Avalanche's classification benchmarks take one label for a sample of floats; this stream has sequences"
        raise UserError(text, key="stream", seen=stream.name)
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels

    labelled = stream.scenario == "task"
    parts = {
        "train": [_dataset(e.train, labelled) for e in stream.experiences],
        "valid": [_dataset(e.validation, labelled) for e in stream.experiences],
        "test": [_dataset(e.test, labelled) for e in stream.experiences],
    }
    benchmark: Any = benchmark_from_datasets(**parts)
    return with_classes_timeline(with_task_labels(benchmark))


@dataclass(frozen=True, eq=False)
class _Samples:
    """Examples one by one, as a torch data set gives them: (x (*S), label)."""

    examples: Examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        x, y, _ = self.examples.batch(torch.tensor([range(len(self))[i]]))
        return x[0], int(y)


def _dataset(examples: Examples, labelled: bool) -> Any:
    from avalanche.benchmarks.utils import DataAttribute, TaskAwareSupervisedClassificationDataset, TaskLabels

    labels = examples.task.tolist() if labelled else [0] * len(examples)
    targets: Any = examples.targets.tolist()
    attributes = [DataAttribute(targets, "targets"), TaskLabels(labels)]
    return TaskAwareSupervisedClassificationDataset([_Samples(examples)], data_attributes=attributes)


def from_avalanche(
    benchmark: Any,
    *,
    arguments: dict[str, Any] | None = None,
    scenario: Scenario | None = None,
    boundary: Boundary = "hard",
    blur: Share = 0.2,
    repeats: Count = 1,
    validation: Share = 0.1,
    seed: Seed = None,
) -> Stream:
    """Any Avalanche classification benchmark: the dotted path of what makes it, called with `arguments`, or the thing.

    Samples are read from it one by one when a batch asks for them, with the train transforms in train and in what is
    split off from it for validation (where it has no valid stream), with the eval transforms elsewhere. `scenario` null
    is task when its experiences have task labels of their own, class when no class comes twice, else domain. The digest
    covers the split, not the pixels. Raises UserError for a path that makes no such benchmark.
    """
    made = _made(benchmark, arguments or {}, seed or 0) if isinstance(benchmark, str) else benchmark
    parts = _parts(made)
    held_out = [*parts["valid"], *parts["test"]]
    labels = [torch.tensor(list(d.targets)) for d in (*parts["train"], *held_out)]
    n = len(parts["train"])
    tasks = [torch.full((len(y),), i % n) for i, y in enumerate(labels)]
    classes, y = np.unique(torch.cat(labels).numpy(), return_inverse=True)
    base = _Lazy.over([*(_mode(d, "train") for d in parts["train"]), *(_mode(d, "eval") for d in held_out)])
    ends = list(accumulate(sum(len(d) for d in parts[p]) for p in ("train", "valid", "test")))
    source = Source(
        "avalanche",
        base,
        torch.from_numpy(y).long(),
        torch.arange(ends[1], ends[2]),
        torch.arange(ends[0], ends[1]) if parts["valid"] else None,
        torch.cat(tasks),
        class_names=tuple(map(str, classes.tolist())),
        task_names=tuple(f"experience {k}" for k in range(n)),
    )
    found = scenario or _scenario(parts["train"], labels[:n])
    return by_task(
        source, scenario=found, boundary=boundary, blur=blur, repeats=repeats, validation=validation, seed=seed
    )


def _made(path: str, arguments: dict[str, Any], seed: int) -> Any:
    function = locate(path, "stream.benchmark")
    try:
        inspect.signature(function).bind(**arguments)
    except (TypeError, ValueError) as error:  # ValueError: a builtin that shows no signature
        raise UserError(f"{path}: {error}", key="stream.arguments", seen=arguments) from None
    with torch.random.fork_rng(devices=[]):  # generators that draw without a seed of their own draw the same each time
        torch.manual_seed(seed)
        try:
            return function(**arguments)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{path} made no benchmark: {error}", key="stream.benchmark", seen=path) from error


def _parts(benchmark: Any) -> dict[str, list[Any]]:
    """The data sets of each stream; a single test experience counts for every training experience."""
    streams = getattr(benchmark, "streams", None)
    if not isinstance(streams, dict) or not {"train", "test"} <= set(streams):
        raise UserError(
            f"an Avalanche benchmark with a train and a test stream is needed; seen: {type(benchmark).__name__} with "
            f"{sorted(streams) if isinstance(streams, dict) else 'no streams'}", key="stream.benchmark",
        )  # fmt: skip
    parts = {name: [e.dataset for e in streams.get(name, ())] for name in ("train", "valid", "test")}
    n = len(parts["train"])
    if len(parts["test"]) == 1:
        parts["test"] = parts["test"] * n
    for name in ("valid", "test") if parts["valid"] else ("test",):
        if len(parts[name]) != n:
            raise UserError(
                f"{n} train experiences, but {len(parts[name])} in the {name} stream; equally many are needed",
                key="stream.benchmark",
            )
    if not all(hasattr(d, "targets") for datasets in parts.values() for d in datasets):
        raise UserError("its data sets have no `targets`: a classification benchmark is needed", key="stream.benchmark")
    return parts


def _mode(dataset: Any, mode: str) -> Any:
    return getattr(dataset, mode)() if hasattr(dataset, mode) else dataset


def _scenario(train: list[Any], labels: list[Tensor]) -> Scenario:
    own = [set(d.targets_task_labels) if hasattr(d, "targets_task_labels") else {0} for d in train]
    if len(train) > 1 and all(len(o) == 1 for o in own) and len(set.union(*own)) == len(train):
        return "task"
    classes = [set(y.tolist()) for y in labels]
    return "class" if sum(map(len, classes)) == len(set.union(*classes)) else "domain"


@dataclass(frozen=True, eq=False)
class _Lazy:
    """Data sets end to end as an indexable base: each sample is asked for when a batch needs it."""

    datasets: Sequence[Any]
    starts: list[int]  # of each data set, and the end
    shape: tuple[int, ...]

    @staticmethod
    def over(datasets: Sequence[Any]) -> _Lazy:
        """Raises UserError when samples are not tensors."""
        first = datasets[0][0][0]
        if not isinstance(first, Tensor):
            raise UserError(
                f"its samples are {type(first).__name__}, not tensors; give the benchmark a transform such as "
                "torchvision.transforms.ToTensor", key="stream.benchmark",
            )  # fmt: skip
        starts = [0, *accumulate(len(d) for d in datasets)]
        return _Lazy(datasets, starts, (starts[-1], *first.shape))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.stack([self._sample(row) for row in rows.tolist()])

    def _sample(self, row: int) -> Tensor:
        k = bisect_right(self.starts, row) - 1
        return self.datasets[k][row - self.starts[k]][0]

    def digest(self) -> str:
        return hashlib.blake2b(repr((self.shape, self.starts)).encode(), digest_size=16).hexdigest()
