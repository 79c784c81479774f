"""Which samples a bounded memory keeps of an endless stream. Only ids are kept; the data stays where it is."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class SampleMemory(Protocol):
    """A bounded set of sample ids, filled by offering every sample once."""

    def offer(self, ids: Tensor, classes: Tensor, generator: torch.Generator) -> None:
        """Consider samples `ids` (N,) of `classes` (N,), in this order."""
        ...

    def kept(self) -> Tensor:
        """(M,) int64 ids in memory, M at most the capacity."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Reservoir:
    """Every sample offered so far is kept with the same probability (Vitter 1985, algorithm R)."""

    def __init__(self, capacity: int):
        self.capacity, self.offered = capacity, 0
        self.ids: list[int] = []

    def offer(self, ids: Tensor, classes: Tensor, generator: torch.Generator) -> None:
        for sample, u in zip(ids.tolist(), _uniform(len(ids), generator)):
            self.offered += 1
            if len(self.ids) < self.capacity:
                self.ids.append(sample)
            elif (slot := int(u * self.offered)) < self.capacity:
                self.ids[slot] = sample

    def kept(self) -> Tensor:
        return torch.tensor(self.ids, dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        return {"offered": self.offered, "ids": self.kept()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.offered, self.ids = state["offered"], state["ids"].tolist()


class ClassBalanced:
    """As many samples of each class as possible, each class kept uniformly (CBRS, Chrysakis and Moens 2020).

    A sample of a class that has never been the largest takes the place of a random one of the largest classes; a class
    that has been is "full", and its further samples only replace its own, as in a reservoir.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.ids: dict[int, list[int]] = {}
        self.offered: dict[int, int] = {}
        self.full: set[int] = set()

    def offer(self, ids: Tensor, classes: Tensor, generator: torch.Generator) -> None:
        for sample, label, u in zip(ids.tolist(), classes.tolist(), _uniform(len(ids), generator)):
            self._offer_one(sample, label, u)

    def _offer_one(self, sample: int, label: int, u: float) -> None:
        own = self.ids.setdefault(label, [])
        self.offered[label] = self.offered.get(label, 0) + 1
        if sum(map(len, self.ids.values())) < self.capacity:
            own.append(sample)
            return
        most = max(map(len, self.ids.values()))
        largest = [c for c, members in self.ids.items() if len(members) == most]
        self.full.update(largest)
        if label not in self.full:
            which, slot = divmod(int(u * len(largest) * most), most)
            self.ids[largest[which]].pop(slot)
            own.append(sample)
        elif (slot := int(u * self.offered[label])) < len(own):
            own[slot] = sample

    def kept(self) -> Tensor:
        return torch.tensor([i for members in self.ids.values() for i in members], dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        return {
            "ids": {c: list(m) for c, m in self.ids.items()},
            "offered": dict(self.offered),
            "full": sorted(self.full),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ids = {c: list(members) for c, members in state["ids"].items()}
        self.offered, self.full = dict(state["offered"]), set(state["full"])


def _uniform(n: int, generator: torch.Generator) -> list[float]:
    return torch.rand(n, generator=generator, dtype=torch.float64).tolist()
