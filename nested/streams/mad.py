"""The five tasks of MAD as a stream: one experience for each task, in the order of the config."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from nested.config import Bound
from nested.errors import UserError
from nested.sequences import mad as task
from nested.sequences.exact_match import IGNORED
from nested.streams.arrange import Count, Seed, Share
from nested.streams.boundaries import Boundary
from nested.streams.seeding import generator
from nested.streams.sequence_source import Data, one_label_space, sequence_source
from nested.streams.stream import Stream

Task = Literal["compression", "in_context_recall", "fuzzy_in_context_recall", "selective_copying", "memorization"]
Tokens = Annotated[int, Bound(ge=8)]
ALL: tuple[Task, ...] = (
    "compression", "in_context_recall", "fuzzy_in_context_recall", "selective_copying", "memorization",
)  # fmt: skip


def mad(
    *,
    tasks: tuple[Task, ...] = ALL,
    tokens: Tokens = 16,
    recall_length: Annotated[int, Bound(ge=24)] = 32,
    copy_length: Annotated[int, Bound(ge=4)] = 32,
    copied: Count = 4,
    compression_length: Annotated[int, Bound(ge=2)] = 9,
    memory_tokens: Tokens = 64,
    memory_length: Annotated[int, Bound(ge=2)] = 16,
    n_train: Count = 2000,
    n_validation: Count = 200,
    n_test: Count = 500,
    scenario: Literal["domain", "task"] = "domain",
    boundary: Boundary = "hard",
    blur: Share = 0.2,
    repeats: Count = 1,
    seed: Seed = None,
) -> Stream:
    """Five token tasks of MAD, one after the other: compression, two kinds of recall, selective copying, memorization.

    All share tokens and one head; the first token of a sequence is the name of its task. Sizes are smaller than the
    published ones (16 tokens; lengths 128 in recall, 256 in copying with 16 copied, 32 in compression; 256 tokens and
    length 32 in memorization; 12,800 training sequences). Raises UserError for sizes that do not fit.
    """
    if not tasks or len(set(tasks)) < len(tasks):
        text = "each task once, and at least one; `stream.repeats` visits them again"
        raise UserError(text, key="stream.tasks", seen=list(tasks), allowed=list(ALL))
    if copy_length <= 2 * copied + 1:
        text = f"{copied} tokens to copy, the copy token and {copied} answers need more than {copy_length} places"
        raise UserError(text, key="stream.copy_length", seen=copy_length, allowed=f">= {2 * copied + 2}")
    facts = task.random_facts(generator(seed or 0, "facts"), memory_tokens)
    make: dict[Task, Callable[[int, torch.Generator], Data]] = {
        "compression": partial(task.compression, tokens=tokens, length=compression_length),
        "in_context_recall": partial(task.in_context_recall, tokens=tokens, length=recall_length),
        "fuzzy_in_context_recall": partial(task.fuzzy_in_context_recall, tokens=tokens, length=recall_length),
        "selective_copying": partial(task.selective_copying, tokens=tokens, length=copy_length, copied=copied),
        "memorization": partial(task.memorization, facts=facts, length=memory_length),
    }
    most, sizes = max(tokens, memory_tokens), (n_train, n_validation, n_test)
    data = {name: _parts(name, make[name], most, sizes, seed or 0) for name in tasks}
    source = sequence_source("mad", data, most + 1 + len(ALL), pad=most, n_labels=most)
    return one_label_space(source, scenario, boundary, blur, repeats, seed)


def _parts(
    name: Task, make: Callable[[int, torch.Generator], Data], most: int, sizes: tuple[int, int, int], seed: int
) -> list[Data]:
    """Train, validation and test of one task, each sequence with the name's token before it."""
    parts = []
    for part, n in zip(("train", "validation", "test"), sizes, strict=True):
        held = {"longest_keys": part != "train"} if name == "fuzzy_in_context_recall" else {}
        x, y = make(n, generator(seed, name, part), **held)
        parts.append((F.pad(x, (1, 0), value=most + 1 + ALL.index(name)), F.pad(y, (1, 0), value=IGNORED)))
    return parts
