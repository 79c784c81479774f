"""How configurations compare over the seeds they have in common: a table for each stream, and one sentence.

Intervals are Student's t over seeds, p two-sided of a paired t-test. The first outcome is the one that was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from nested import metrics
from nested.tuning.objective import Objective, Unavailable, mean
from nested.wording import counted

if TYPE_CHECKING:
    from rich.table import Table

    from nested.report.tables import Grid
    from nested.tuning.study import Study

SHOWN = ("learning_acc", "acc", "forgetting")  # always: forgetting is never read alone
NONE = "–"
REMARK = (
    "Means over seeds ± 95 percent interval (Student t), test part. Differences are paired over the seeds that both "
    "have done: positive where the first row is better; p of a two-sided paired t-test. Neither intervals nor p are "
    "corrected for the number of comparisons."
)


class Pair(NamedTuple):
    """How much better the one is than the other: mean over common seeds, half width of its interval, p."""

    seeds: int
    mean: float
    half: float | None
    p: float | None

    @property
    def word(self) -> str:
        """What an interval allows to say."""
        if self.half is None:
            return "cannot be told from"
        if abs(self.mean) <= self.half:
            return "not told apart from"
        return "better than" if self.mean > 0 else "worse than"

    def __str__(self) -> str:
        half = "one seed, no interval" if self.half is None else f"± {_figures(self.half)}"
        p = "" if self.p is None else f", p = {self.p:.2g}" if self.p >= 0.001 else ", p < 0.001"
        plus = "+" if self.mean >= 0 else ""
        return f"{plus}{_figures(self.mean, self.half)} {half}{p}"


@dataclass(frozen=True)
class Outcome:
    """One configuration on one stream: its run, and the summaries of its seeds that are done."""

    name: str
    run_id: str
    runs: Mapping[int, Mapping[str, Any]]

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> value, of the seeds that came to one."""
        found = {}
        for seed, summary in sorted(self.runs.items()):
            try:
                found[seed] = mean(metric, [summary])
            except Unavailable:
                continue
        return found


@dataclass(frozen=True)
class Stream:
    """Every outcome on one stream; the first is the one that was chosen."""

    name: str
    other: bool  # than that of the study
    seeds: Sequence[int]
    outcomes: tuple[Outcome, ...]
    objective: Objective

    @property
    def title(self) -> str:
        """For a heading."""
        return f"{self.name}{', another stream' if self.other else ''}, {counted(len(self.seeds), 'seed')}"

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """(headings, rows of [text, number])."""
        others = [n for n in self.objective.names if n not in (*SHOWN, "flops")]
        head = ["configuration", "seeds", *SHOWN, *others, "flops"]
        head += [f"{n}: the first is better by" for n in self.objective.names]
        rows = []
        for k, outcome in enumerate(self.outcomes):
            cells = [[outcome.name, None], [str(len(outcome.runs)), len(outcome.runs)]]
            for metric in [*SHOWN, *others, "flops"]:
                values = list(outcome.values(metric).values())
                middle, half = metrics.interval(values)
                cells.append([_shown(middle, half), middle])
            for metric in self.objective.names:
                pair = better_by(self.objective, metric, self.outcomes[0], outcome) if k else None
                cells.append([str(pair) if pair else NONE, pair and pair.mean])
            rows.append(cells)
        return head, rows

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        head, rows = self.table()
        first = self.outcomes[0] if self.outcomes else None
        return {
            "stream": self.name, "title": self.title, "other": self.other, "seeds": list(self.seeds),
            "head": head, "rows": rows, "remark": REMARK, "runs": {o.name: o.run_id for o in self.outcomes},
            "values": {
                o.name: {m: o.values(m) for m in dict.fromkeys((*SHOWN, "flops", *self.objective.names))}
                for o in self.outcomes
            },
            "pairs": {
                o.name: {m: p and p._asdict() for m in self.objective.names
                         for p in [better_by(self.objective, m, first, o)]}
                for o in self.outcomes[1:] if first
            },
        }  # fmt: skip


def better_by(objective: Objective, metric: str, one: Outcome, other: Outcome) -> Pair | None:
    """How much better `one` is; None without a common seed."""
    ours, theirs = one.values(metric), other.values(metric)
    sign = 1.0 if objective.directions[objective.names.index(metric)] == "maximize" else -1.0
    found = [sign * (ours[s] - theirs[s]) for s in ours if s in theirs]
    return Pair(len(found), *metrics.paired(found)) if found else None


def sentence(study: Study, streams: Sequence[Stream]) -> str:
    """Which is better, by how much, on each stream: one sentence."""
    return "; ".join(_about(study, stream) for stream in streams) + "."


def compared(study: Study, streams: Sequence[Stream], name: str) -> list[str]:
    """The same about one configuration, for its recipe; nothing where it could be run on none."""
    there = [s for s in streams if any(o.name == name for o in s.outcomes)]
    first = [replace(s, outcomes=tuple(sorted(s.outcomes, key=lambda o: o.name != name))) for s in there]
    said = sentence(study, first)
    return [said[0].upper() + said[1:]] if there else []


def shown_better(stream: Stream) -> bool:
    """Whether the first is better than the defaults in something that was sought, by its interval."""
    defaults = [o for o in stream.outcomes[1:] if o.name == "defaults"]
    pairs = [better_by(stream.objective, m, stream.outcomes[0], o) for o in defaults for m in stream.objective.names]
    return any(p and p.word == "better than" for p in pairs)


def _about(study: Study, stream: Stream) -> str:
    seeds = counted(len(stream.seeds), "fresh seed")
    where = f"on {stream.name} ({'another stream, ' if stream.other else ''}test part, {seeds})"
    if not stream.outcomes or not stream.outcomes[0].name.startswith("tuned"):
        return f"{where} the tuned configuration could not be run"
    first, said = stream.outcomes[0], []
    for other in stream.outcomes[1:]:
        if other.name.startswith("tuned"):
            continue
        pairs = [(m, better_by(study.objective, m, first, other)) for m in study.objective.names]
        told = [f"{p.word} {{}} in {m} ({p})" for m, p in pairs if p]
        if not told:
            said.append(f"not compared with the {_called(other)}: they have no seed in common")
            continue
        head, *rest = (t.format(f"the {_called(other)}") if k == 0 else t.format("it") for k, t in enumerate(told))
        said.append(", ".join([head, *rest]))
    number = first.name.rpartition(", ")[2]
    return f"{where} the tuned configuration ({number}) is {' and '.join(said) or 'alone'}"


def _called(outcome: Outcome) -> str:
    return outcome.name if outcome.name == "defaults" else f"tuned single level ({outcome.name.rpartition(', ')[2]})"


def measured(stream: Stream, name: str) -> list[str]:
    """What one configuration came to, as lines of a comment."""
    found = [o for o in stream.outcomes if o.name == name and o.runs]
    if not found:
        return []
    parts = []
    for metric in SHOWN:
        middle, half = metrics.interval(list(found[0].values(metric).values()))
        if middle is not None:
            parts.append(f"{metric} {_shown(middle, half)}")
    flops = found[0].values("flops").values()
    parts += [f"{fmean(flops):.3g} FLOPs"] if flops else []
    return [f"On {counted(len(found[0].runs), 'fresh seed')}, test part: {', '.join(parts)}."]


def table(stream: Stream) -> Table:
    """The same for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    head, rows = stream.table()
    out = Table(title=stream.title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1),
                caption=REMARK, caption_justify="left")  # fmt: skip
    for k, name in enumerate(head):
        out.add_column(name, justify="right" if k else "left")
    for row in rows:
        out.add_row(*(Text(text.replace(" ± ", "\n± ")) for text, _ in row))
    return out


def grid(rows: Sequence[Sequence[Sequence[Any]]], head: Sequence[str], remark: str) -> Grid:
    """A table of ours for a page."""
    from nested.report.tables import Cell, Grid

    cells = [tuple(Cell(text, number, head=not k) for k, (text, number) in enumerate(row)) for row in rows]
    return Grid(tuple(head), tuple(cells), remark)


def _shown(middle: float | None, half: float | None) -> str:
    if middle is None:
        return NONE
    return _figures(middle, half) + (f" ± {_figures(half)}" if half else "")


def _figures(value: float, half: float | None = None) -> str:
    """Three decimals for what lies between 0 and 1, else three figures, four beside an interval."""
    if value == 0 or 1e-3 <= abs(value) < 10 or (half is not None and 1e-3 <= half < 1):
        return f"{value:.3f}"
    return f"{value:.3g}" if math.isfinite(value) else str(value)
