"""Sweeps: configurations that differ only in a rate or in a period make one line of the frontier.

Rates and periods are known by the names of their config values. Values that go up together (the periods of several
levels) are one sweep; where two go their own ways, there is a line along one of them for each value of the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

from nested.report.groups import UNTOLD, Group, Member, labelled
from nested.report.records import mean_of
from nested.report.tables import Cell, Grid, plain, rank
from nested.report.wording import NONE, heading, large, listed, score
from nested.wording import counted

RATES = ("lr", "lr_scale", "lr_ratio", "eta")
PERIODS = ("period_steps", "chunk_tokens", "base", "ratio")
ENOUGH = 5  # points of a frontier
MANY = 12  # configurations up to which every one has curves and a matrix
FEW = 4  # of more than these
REACHED = ("learning_acc", "forgetting", "acc")
COMMON = ("model", "method", "levels")  # choices by which a sweep of several labels is called


@dataclass(frozen=True)
class Sweep:
    """Members in the order of what is swept; a configuration by itself has no keys."""

    label: str
    slot: int
    members: tuple[Member, ...]
    keys: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What is swept: `optim.lr`, or `levels.*.period_steps`."""
        parts = [k.split(".") for k in self.keys]
        if len({len(p) for p in parts}) > 1:
            return ", ".join(self.keys)
        return ".".join(a.pop() if len(a) == 1 else "*" for a in map(set, zip(*parts)))

    @property
    def values(self) -> list[Any]:
        """The swept values, in order."""
        return [m.run.config.get(self.keys[0]) for m in self.members] if self.keys else []

    @property
    def flops(self) -> list[float]:
        """FLOPs of every member that knows them, means over its seeds."""
        return [f for m in self.members if (f := mean_of(m.run.cost("flops"))) is not None]


def span(line: Sweep) -> str:
    """`lr 0.01 to 0.3`."""
    return f"{line.name.rpartition('.')[2]} {_written(line.values[0])} to {_written(line.values[-1])}"


def flops_of(line: Sweep) -> str:
    """`3.2 G FLOPs`, or from the least to the most."""
    low, high = (large(f(line.flops, default=None)) for f in (min, max))
    return "" if low == NONE else f"{low} FLOPs" if low == high else f"{low} to {high} FLOPs"


def table(lines: Sequence[Sweep], group: Group) -> Grid | None:
    """Every sweep: what is swept, at which FLOPs, and what it reaches."""
    rows = []
    for line in lines:
        if line.keys:
            reached = [_range([m.run.mean.get(name) for m in line.members], group.lower) for name in REACHED]
            values = ", ".join(map(_written, line.values))
            cells = (Cell(line.name), Cell(values), Cell(str(len(line.members)), len(line.members)))
            flops = Cell(flops_of(line).removesuffix(" FLOPs") or NONE, min(line.flops, default=None))
            rows.append((Cell(line.label, slot=line.slot, head=True), *cells, flops, *reached))
    head = ("line", "swept", "values", "points", "FLOPs", *(heading(name, group.measure) for name in REACHED))
    return Grid(head, tuple(rows)) if rows else None


def _range(values: Sequence[float | None], lower: bool) -> Cell:
    known = [v for v in values if v is not None]
    return Cell(
        f"{score(min(known), lower)} to {score(max(known), lower)}" if known else NONE, min(known, default=None)
    )


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else plain(value)


def remarks(lines: Sequence[Sweep]) -> list[str]:
    """Sentences on what is no frontier yet."""
    if not any(line.keys for line in lines):
        return [
            "No two configurations differ only in a rate or in a period: these are points, no frontier. One method "
            f"is judged by a line of at least {ENOUGH}, from a sweep of one rate or period."
        ]
    few = [line for line in lines if line.keys and len(line.members) < ENOUGH]
    return [
        f"{listed([line.label])} has {counted(len(line.members), 'point')} of {line.name}: "
        f"a frontier needs at least {ENOUGH}."
        for line in few[:MANY]
    ]


def sweeps(group: Group) -> list[Sweep]:
    """Every member of the group in exactly one sweep, in the order of the first of each."""
    families: dict[str, list[Member]] = {}
    for member in group.members:
        families.setdefault(_rest(member), []).append(member)
    found = [line for members in families.values() for line in _lines(members)]
    order = {m.label: k for k, m in enumerate(group.members)}
    return _named(sorted(found, key=lambda s: min(order[m.label] for m in s.members)))


def _rest(member: Member) -> str:
    """All of a config that is neither rate nor period, nor of no influence."""
    config = member.run.config
    if not config:
        return member.label
    kept = {k: v for k, v in config.items() if v is not None and not k.startswith(UNTOLD) and not swept(k)}
    return json.dumps(kept, sort_keys=True, default=str)


def swept(key: str) -> bool:
    """Whether a config value is a rate or a period."""
    name = key.rpartition(".")[2]
    return name in RATES or (name in PERIODS and key.startswith("levels."))


def _lines(members: Sequence[Member]) -> Iterator[Sweep]:
    """Members that are equal but for rates and periods, as lines along the one that has the most values."""
    keys = sorted({k for m in members for k in m.run.config if swept(k)})
    columns = {k: [_plain(m.run.config.get(k)) for m in members] for k in keys}
    varied = {k: column for k, column in columns.items() if len(set(column)) > 1}
    if not varied:
        yield from map(_alone, members)
        return
    axis = max(varied, key=lambda k: len(set(varied[k])))
    tied = tuple(k for k in varied if k == axis or _tied(axis, k, members))
    others = [k for k in varied if k not in tied]
    lines: dict[tuple[str, ...], list[Member]] = {}
    for member in members:
        lines.setdefault(tuple(_plain(member.run.config.get(k)) for k in others), []).append(member)
    for line in lines.values():
        yield from _line(line, axis, (axis, *(k for k in tied if k != axis)))


def _line(members: Sequence[Member], axis: str, keys: tuple[str, ...]) -> Iterator[Sweep]:
    """One line; where a value is there twice (under two labels), one for each label."""
    values = [_plain(m.run.config.get(axis)) for m in members]
    if len(members) > 1 and len(set(values)) == len(values):
        ordered = tuple(sorted(members, key=lambda m: _place(m.run.config.get(axis))))
        yield Sweep(_called(ordered), ordered[0].slot, ordered, keys)
        return
    by: dict[str, list[Member]] = {}
    for member in members:
        by.setdefault(member.run.label, []).append(member)
    for same in by.values():
        yield from _line(same, axis, keys) if 1 < len(same) < len(members) else map(_alone, same)


def _tied(axis: str, key: str, members: Sequence[Member]) -> bool:
    """Whether two values of one name go up together, and nowhere apart."""
    if axis.rpartition(".")[2] != key.rpartition(".")[2]:
        return False
    pairs = sorted({(_place(m.run.config.get(axis)), _place(m.run.config.get(key))) for m in members})
    return all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(pairs))


def _place(value: Any) -> tuple[float, str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (float(value), "") if number else (float("inf"), str(value))


def _plain(value: Any) -> str:
    return json.dumps(value, default=str)


def _alone(member: Member) -> Sweep:
    return Sweep(member.label, member.slot, (member,))


def _called(members: Sequence[Member]) -> str:
    run = members[0].run
    if len({m.run.label for m in members}) == 1:
        return run.label
    return " ".join(str(run.choices[g]) for g in COMMON if g in run.choices) or run.label


def _named(found: Sequence[Sweep]) -> list[Sweep]:
    """Equal names told apart by what else differs."""
    lines = [s for s in found if s.keys]
    names = iter(labelled([replace(s.members[0].run, label=s.label, config=_without(s)) for s in lines]))
    return [replace(s, label=next(names)) if s.keys else s for s in found]


def _without(line: Sweep) -> dict[str, Any]:
    return {k: v for k, v in line.members[0].run.config.items() if k not in line.keys}


def chosen(group: Group, lines: Sequence[Sweep], baseline: Member) -> Group:
    """The group, or where it is large a few of it: the baseline and the best ACC, one of each sweep first."""
    if len(group.members) <= MANY:
        return group

    better = partial(rank, lower=group.lower)
    first = sorted((min(line.members, key=better) for line in lines), key=better)
    order = [baseline, *first, *sorted(group.members, key=better)]
    kept = {m.label for m in list({m.label: m for m in order}.values())[:FEW]}
    return replace(group, members=tuple(m for m in group.members if m.label in kept))


def front(points: Iterable[tuple[float, float]], lower: bool) -> list[tuple[float, float]]:
    """The Pareto front of (cost, score), from cheap to dear: no other is as cheap and as good, and better in one."""
    kept: list[tuple[float, float]] = []
    for cost, reached in sorted(points, key=lambda p: (p[0], p[1] if lower else -p[1])):
        if not kept or (reached < kept[-1][1] if lower else reached > kept[-1][1]):
            kept.append((cost, reached))
    return kept
