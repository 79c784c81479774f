"""Which runs may stand side by side, in which colour, and what a reader must know before comparing them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from nested.remarks import kind
from nested.report.records import Run
from nested.report.wording import NONE, count, listed, steps
from nested.wording import counted

BITS = "bits per byte"
TOLD = 3  # differences in a label; more are in the table of configs alone
UNTOLD = ("label", "runs", "seed", "data.", "tracking", "checkpoint.", "trainer.progress")  # of no influence, or known


class Member(NamedTuple):
    """A run with a colour and a label of its own: equal labels tell what differs, in another group the stream."""

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
        return self.first.measure

    @property
    def title(self) -> str:
        """The stream in words."""
        scenario = f", {self.first.scenario} scenario" if self.first.scenario else ""
        return f"{self.first.stream}{scenario}, {counted(self.first.n, 'experience')}{self.distinction}"


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs by stream, in the order given; streams that differ in their data for an equal seed are kept apart."""
    homes: dict[tuple[object, ...], list[_Home]] = {}
    order: list[_Home] = []
    for run in runs:
        near = homes.setdefault((run.stream, run.scenario, run.n, run.lower_is_better), [])
        home = next((h for h in near if h.takes(run)), None)
        if home is None:
            home = _Home({k: v for k, v in run.config.items() if k.startswith("stream.")})
            near.append(home)
            order.append(home)
        home.runs.append(run)
        home.digests |= digests(run)
    groups = _apart([_group(h.runs) for h in order])
    titles = Counter(g.title for g in groups)
    return [replace(g, distinction=_distinction(g)) if titles[g.title] > 1 else g for g in groups]


def _apart(groups: Sequence[Group]) -> list[Group]:
    """The groups with a colour for every member, and with the stream in a label that another group has, too."""
    slots = itertools.count()
    there = Counter(label for g in groups for label in {m.run.label for m in g.members})

    def own(m: Member, stream: str) -> Member:
        return Member(m.run, next(slots), f"{m.label}, {stream}" if there[m.run.label] > 1 else m.label)

    streams = _streams([g.first for g in groups])
    return [replace(g, members=tuple(own(m, stream) for m in g.members)) for g, stream in zip(groups, streams)]


def _streams(runs: Sequence[Run]) -> list[str]:
    """A few words for the stream of each run: the first thing in which all differ, else all in which some do."""
    settings = [{k: v for k, v in r.config.items() if k.startswith("stream.")} for r in runs]
    keys = [k for k in varied(settings) if not k.endswith("_target_")][:TOLD]
    facts = [
        (
            r.stream, f"{r.scenario or 'no'} scenario", counted(r.n, "experience"), r.measure,
            *(f"{k}={_value(r, k)}" for k in keys), f"data {next(iter(digests(r).values()), NONE)[:8]}",
        )
        for r in runs
    ]  # fmt: skip
    columns = [column for column in zip(*facts) if len(set(column)) > 1]
    words = next((c for c in columns if len(set(c)) == len(runs)), [", ".join(row) for row in zip(*columns)])
    return list(words) if len(set(words)) == len(runs) else [f"stream {k + 1}" for k in range(len(runs))]


@dataclass
class _Home:
    """Runs on one stream while they are gathered: its settings, and its data by seed."""

    settings: dict[str, object]
    runs: list[Run] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)

    def takes(self, run: Run) -> bool:
        """Whether the run is on the same stream: by the data of a common seed, or else by the settings both have."""
        theirs = digests(run)
        if self.digests.keys() & theirs.keys():
            return not conflict(self.digests, theirs)
        return all(run.config.get(k, v) == v for k, v in self.settings.items())


def digests(run: Run) -> dict[int, str]:
    """Seed -> the hash of data and split."""
    return {s.seed: s.digest for s in run.seeds if s.digest}


def conflict(ours: Mapping[int, str], theirs: Mapping[int, str]) -> bool:
    """Whether an equal seed has had other data."""
    return any(ours[s] != theirs[s] for s in ours.keys() & theirs.keys())


def _distinction(group: Group) -> str:
    digest = next((d for run in group.runs for d in digests(run).values()), None)
    text = next((f", {t}" for run in group.runs for s in run.seeds if (t := text_of(s.datasets))), "")
    return f", judged by {group.measure}" + (f", data and split {digest[:8]}" if digest else "") + text


def text_of(datasets: Sequence[Mapping[str, Any]]) -> str:
    """Where a text comes from, in words, as far as it is recorded."""
    about = (datasets[0].get("about") if datasets else None) or {}
    names = {"python": "sources of Python", "manifest": "manifest", "tokenizer": "tokenizer"}
    return ", ".join(f"{words} {about[name]}" for name, words in names.items() if name in about)


def _group(runs: Sequence[Run]) -> Group:
    labels = labelled(runs)
    there = Counter(labels)
    told = (f"{label} [{run.run_id}]" if there[label] > 1 else label for run, label in zip(runs, labels))
    return Group(tuple(Member(run, slot, label) for slot, (run, label) in enumerate(zip(runs, told))))


def labelled(runs: Sequence[Run]) -> list[str]:
    """The runs' labels; equal ones with the choices they differ in or, where these are equal, a few config values.

    Numbers of the validation part are marked.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(run.label, []).append(run)
    told = {label: _telling(same) if len(same) > 1 else () for label, same in alike.items()}
    return [run.label + "".join(f", {k}={_value(run, k)}" for k in told[run.label]) + _part(run) for run in runs]


def _part(run: Run) -> str:
    """Said of validation numbers, which stand beside those of the test part."""
    return " (validation)" if any(s.judged_on != "test" for s in run.seeds) else ""


def _telling(runs: Sequence[Run]) -> list[str]:
    """Up to TOLD choices, else config values, in which the runs differ; none where there are more."""
    for of in (lambda r: r.choices, lambda r: r.config):
        unequal = [k for k in varied([of(r) for r in runs]) if not k.startswith(UNTOLD)]
        if 0 < len(unequal) <= TOLD:
            return unequal
    return []


def _value(run: Run, key: str) -> object:
    value = (run.choices if key in run.choices else run.config).get(key, NONE)
    return f"{value:.4g}" if isinstance(value, float) else value


def varied(values: Sequence[Mapping[str, object]]) -> list[str]:
    """The keys whose values are not the same in all, in order."""
    first = values[0] if values else {}
    keys = sorted({k for v in values for k in v})
    return [k for k in keys if any(k not in v or str(v[k]) != str(first[k]) for v in values) or k not in first]


def notes(group: Group) -> list[str]:
    """Sentences that keep a reader from concluding too much."""
    looks = (_about_scores, _about_remarks, _about_seeds, _about_sources, _about_budgets)
    return [note for look in looks for note in look(group)]


def _about_scores(group: Group) -> Iterator[str]:
    if any(run.positions is not None for run in group.runs):
        yield (
            "Accuracy is exact match: a sequence counts as right only where every judged position of it is, which is "
            "zero for long while a model learns. The share of judged positions that are right is beside it."
        )
    if group.lower:
        what = "bits per byte, 8 being an even guess" if group.measure == BITS else "losses"
        yield f"Scores are {what}: lower is better. Positive BWT and FWT mean improvement nevertheless."
    if any(run.frozen is not None for run in group.runs):
        yield "Levels learn while the model reads what it is judged on; frozen, the same weights learn nothing."
    if group.first.scenario == "class" and group.first.n > 1:
        yield "FWT is uninformative in the class scenario: no experience before it has shown an experience's classes."
    if group.first.n == 1:
        yield "There is one experience: forgetting, BWT and FWT are undefined."
    if at_once := [m.label for m in group.members if m.run.single_fit]:
        yield f"{listed(at_once)} learned everything at once: without an order there is no forgetting and no transfer."
    if chosen := [m.label for m in group.members if any(s.judged_on != "test" for s in m.run.seeds)]:
        yield f"{listed(chosen)}: judged on validation data, not on the test part."


def _about_remarks(group: Group) -> Iterator[str]:
    """What was remarked of seeds, each kind once: as of the first, and how many more it is true of."""
    said: dict[str, list[tuple[str, int, str]]] = {}
    for run, _, label in group.members:
        for seed in run.seeds:
            for remark in seed.remarks:
                said.setdefault(kind(remark), []).append((label, seed.seed, remark))
    for (label, seed, remark), *others in said.values():
        more = f" (and {counted(len(others), 'more seed')})" if others else ""
        yield f"{listed([label])}, seed {seed}{more}: {remark}."


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


def _about_sources(group: Group) -> Iterator[str]:
    """What a reader must know of configurations whose seeds come from several runs."""
    for run, _, label in group.members:
        done = [(s.seed, s.metrics.get("acc")) for r in run.sources for s in r.done]
        repeated = sorted(s for s, k in Counter(s for s, _ in done).items() if k > 1)
        if repeated:
            unequal = len({s for s, _ in set(done)}) < len(set(done))
            numbers = ", and not all came to the same" if unequal else ""
            seeds = ", ".join(map(str, repeated))
            yield f"{listed([label])}: seed {seeds} was run more than once; the last one counts{numbers}."
        commits = {
            str(s.environment.get("git", {}).get("commit"))[:8] for r in run.sources for s in r.seeds if s.environment
        }
        if len(commits) > 1:
            yield f"{listed([label])}: seeds from different versions of the code ({', '.join(sorted(commits))})."


def _about_budgets(group: Group) -> Iterator[str]:
    if len(group.runs) < 2:
        return
    for name, values in (("parameters", [r.parameters for r in group.runs]), ("steps", [steps(r) for r in group.runs])):
        known = [v for v in values if v]
        if known and max(known) > 1.02 * min(known):
            yield f"Unequal {name}: from {count(min(known))} to {count(max(known))}."
