"""Sequences of several tasks as one source: padded to one width, with their parts and tasks marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nested.sequences.exact_match import IGNORED
from nested.streams.arrange import by_task
from nested.streams.boundaries import Boundary
from nested.streams.stream import Source, Stream

Data = tuple[Tensor, Tensor]  # tokens and targets, both (M, T) int64
PARTS = ("train", "validation", "test")


def sequence_source(name: str, tasks: Mapping[str, Sequence[Data]], vocabulary: int, pad: int, n_labels: int) -> Source:
    """Tasks by name, each with its data for train, validation and test, as a source of tokens.

    Labels are 0 to n_labels - 1 in all tasks; sequences are padded on the right with the token `pad`.
    """
    pieces = [
        (k, part, *data) for k, parts in enumerate(tasks.values()) for part, data in zip(PARTS, parts, strict=True)
    ]
    width = max(x.shape[1] for _, _, x, _ in pieces)
    part = torch.cat([torch.full((len(x),), PARTS.index(which)) for _, which, x, _ in pieces])
    return Source(
        name,
        torch.cat([F.pad(x, (0, width - x.shape[1]), value=pad) for _, _, x, _ in pieces]),
        torch.cat([F.pad(y, (0, width - y.shape[1]), value=IGNORED) for _, _, _, y in pieces]),
        test_index=(part == 2).nonzero().squeeze(1),
        validation_index=(part == 1).nonzero().squeeze(1),
        task=torch.cat([torch.full((len(x),), k) for k, _, x, _ in pieces]),
        class_names=tuple(map(str, range(n_labels))),
        task_names=tuple(tasks),
        vocabulary=vocabulary,
    )


def one_label_space(
    source: Source, scenario: Literal["domain", "task"], boundary: Boundary, blur: float, repeats: int, seed: int | None
) -> Stream:
    """The stream of tasks whose labels mean the same in all of them, so that ranks within a task would mean nothing.

    In the domain scenario one head has every label that occurs in a task used; in the task scenario heads are separate.
    What is asked for at a position follows from what stands up to it, and in most tasks shows in what comes next.
    """
    shared = "class" if scenario == "domain" else scenario
    made = by_task(source, scenario=shared, boundary=boundary, blur=blur, repeats=repeats, seed=seed)
    return replace(made, scenario=scenario, causal=True)
