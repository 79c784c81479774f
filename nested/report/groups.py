"""Which runs may stand side by side, in which colour, and what a reader must know before comparing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from nested.report.records import Run
from nested.report.wording import NONE, count, listed, steps

TOLD = 3  # differences in a label; more are in the table of configs alone
UNTOLD = ("label", "runs", "seed", "data.", "tracking", "checkpoint.", "trainer.progress")  # of no influence, or known


class Member(NamedTuple):
    """A run with its colour, the same for equal labels in every group; equal labels in one group tell what differs."""

    run: Run
    slot: int
    label: str


@dataclass(frozen=True)
class Group:
    """Runs on one stream."""

    members: tuple[Member, ...]
    distinction: str = ""  # from another group of the same name

    @property
    def runs(self) -> list[Run]:
        """The runs alone."""
        return [m.run for m in self.members]

    @property
    def first(self) -> Run:
        """Any run: stream, scenario and direction are the same for all."""
        return self.members[0].run

    @property
    def lower(self) -> bool:
        """Whether lower scores are better."""
        return self.first.lower_is_better

    @property
    def measure(self) -> str:
        """The word for the score."""
        return "loss" if self.lower else "accuracy"

    @property
    def title(self) -> str:
        """The stream in words."""
        scenario = f", {self.first.scenario} scenario" if self.first.scenario else ""
        return f"{self.first.stream}{scenario}, {self.first.n} experience{'s' * (self.first.n != 1)}{self.distinction}"


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs by stream, in the order given; streams that differ in their data for an equal seed are kept apart."""
    members: list[list[Run]] = []
    for run in runs:
        home = next((m for m in members if all(_same_stream(run, other) for other in m)), None)
        if home is None:
            members.append([run])
        else:
            home.append(run)
    colours: dict[tuple[str, int], int] = {}
    groups = [_group(m, colours) for m in members]
    titles = Counter(g.title for g in groups)
    return [replace(g, distinction=_distinction(g)) if titles[g.title] > 1 else g for g in groups]


def _distinction(group: Group) -> str:
    digest = next((d for run in group.runs for d in _digests(run).values()), None)
    return f", judged by {group.measure}" + (f", data and split {str(digest)[:8]}" if digest else "")


def _group(runs: Sequence[Run], colours: dict[tuple[str, int], int]) -> Group:
    seen: Counter[str] = Counter()
    labels = _labels(runs)
    repeated = {label for label, k in Counter(labels).items() if k > 1}
    members = []
    for run, label in zip(runs, labels):
        slot = colours.setdefault((label, seen[label]), len(colours))
        seen[label] += 1
        members.append(Member(run, slot, f"{label} [{run.run_id}]" if label in repeated else label))
    return Group(tuple(members))


def _labels(runs: Sequence[Run]) -> list[str]:
    """The runs' labels; equal ones with the choices they differ in or, where these are equal, a few config values."""
    alike = {label: [r for r in runs if r.label == label] for label in {r.label for r in runs}}
    return [f"{r.label}{_difference(r, alike[r.label])}" for r in runs]


def _difference(run: Run, among: Sequence[Run]) -> str:
    for of in (lambda r: r.choices, lambda r: r.config):
        keys = [k for k in sorted({k for r in among for k in of(r)}) if not k.startswith(UNTOLD)]
        unequal = [k for k in keys if len({str(of(r).get(k)) for r in among}) > 1]
        if 0 < len(unequal) <= TOLD:
            return "".join(f", {k}={of(run).get(k, NONE)}" for k in unequal)
    return ""


def _same_stream(a: Run, b: Run) -> bool:
    if (a.stream, a.scenario, a.n, a.lower_is_better) != (b.stream, b.scenario, b.n, b.lower_is_better):
        return False
    ours, theirs = _digests(a), _digests(b)
    return all(ours[s] == theirs[s] for s in ours.keys() & theirs.keys())


def _digests(run: Run) -> dict[int, object]:
    """Seed -> the hash of data and split."""
    return {s.seed: s.datasets[0]["digest"] for s in run.seeds if s.datasets and s.datasets[0].get("digest")}


def notes(group: Group) -> list[str]:
    """Sentences that keep a reader from concluding too much."""
    return [*_about_scores(group), *_about_seeds(group), *_about_budgets(group)]


def _about_scores(group: Group) -> Iterator[str]:
    if any(run.positions is not None for run in group.runs):
        yield (
            "Accuracy is exact match: a sequence counts as right only where every judged position of it is, which is "
            "zero for long while a model learns. The share of judged positions that are right is beside it."
        )
    if group.lower:
        yield "Scores are losses: lower is better. Positive BWT and FWT mean improvement nevertheless."
    if group.first.scenario == "class" and group.first.n > 1:
        yield "FWT is uninformative in the class scenario: no experience before it has shown an experience's classes."
    if group.first.n == 1:
        yield "There is one experience: forgetting, BWT and FWT are undefined."
    if at_once := [m.label for m in group.members if m.run.single_fit]:
        yield f"{listed(at_once)} learned everything at once: without an order there is no forgetting and no transfer."
    if chosen := [m.label for m in group.members if any(s.judged_on != "test" for s in m.run.seeds)]:
        yield f"{listed(chosen)}: judged on validation data, not on the test part."


def _about_seeds(group: Group) -> Iterator[str]:
    for run, _, label in group.members:
        if len(run.done) == run.planned and run.status == "done":
            continue
        states = Counter(s.status for s in run.seeds)
        parts = [f"{k} {status}" for status, k in states.items()] + [
            f"{k} not begun" for k in [run.planned - len(run.seeds)] if k
        ]
        means = "means are over the seeds that are done" if run.done else "figures show the seed that came furthest"
        yield f"{listed([label])} is {run.status} ({', '.join(parts) or 'nothing recorded'}); {means}."
    if one := [m.label for m in group.members if m.run.planned == 1]:
        yield f"{listed(one)}: one seed, hence no interval."
    if len({tuple(s.seed for s in run.seeds) for run in group.runs}) > 1:
        yield "The runs have different seeds: they did not all see the same class orders and initial weights."


def _about_budgets(group: Group) -> Iterator[str]:
    if len(group.runs) < 2:
        return
    for name, values in (("parameters", [r.parameters for r in group.runs]), ("steps", [steps(r) for r in group.runs])):
        known = [v for v in values if v]
        if known and max(known) > 1.02 * min(known):
            yield f"Unequal {name}: from {count(min(known))} to {count(max(known))}."
