"""Paired differences: a configuration against the baseline over the seeds that both have done.

An equal seed means an equal class order, split and initial weights, so the difference of two runs of one seed is free
of what the seeds themselves make different.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nested import metrics
from nested.errors import UserError, nearest
from nested.report.groups import Group, Member
from nested.report.records import Run, mean_of
from nested.report.tables import Cell, Grid
from nested.report.wording import NONE, heading, plus_minus

PAIRED = ("learning_acc", "acc", "forgetting")


class Pair(NamedTuple):
    """The mean of the differences over `seeds` common seeds, the half width of its 95 percent interval, and p."""

    seeds: int
    difference: float
    half: float | None  # None: one common seed
    p: float | None  # two-sided, of a paired t-test; None where the differences do not vary, or there is one


def paired(run: Run, baseline: Run, metric: str) -> Pair | None:
    """`run` minus `baseline`; None without a common seed that is judged on the same part, test or validation."""
    ours, theirs = ({(s.seed, s.judged_on): s.metrics.get(metric) for s in r.done} for r in (run, baseline))
    found = [
        a - b
        for s in sorted(ours.keys() & theirs.keys())
        if (a := ours[s]) is not None and (b := theirs[s]) is not None
    ]
    return Pair(len(found), *metrics.paired(found)) if found else None


def baselines(groups: Sequence[Group], name: str | None) -> list[Member]:
    """The baseline of every group: the one that `name` (an id, a label, a beginning) means, else the first.

    Raises UserError for a name that means none of them, or several.
    """
    members = [m for g in groups for m in g.members]
    found = _called(members, name) if name else []
    if name and not found:
        there = [m.label for m in members]
        text = f"{name!r} is not among what is compared: {'; '.join(there[:8])}{nearest(name, there)}"
        raise UserError(text, key="--baseline", seen=name, allowed=there)
    if any(sum(m in found for m in g.members) > 1 for g in groups):
        labels = [m.label for m in found]
        text = f"{name!r} means {len(found)} of them: {'; '.join(labels[:5])}; give one of these, or the id of a run"
        several = "; without --baseline it is the first that is named of each stream" if len(groups) > 1 else ""
        raise UserError(text + several, key="--baseline", seen=name, allowed=labels)
    return [next((m for m in g.members if m in found), g.members[0]) for g in groups]


def _called(members: Sequence[Member], name: str) -> list[Member]:
    """Those that a name means: exactly, else by their beginning."""

    def names(member: Member) -> list[str]:
        return [
            member.label,
            member.run.label,
            *(r.run_id for r in member.run.directories),
            *(str(r.path) for r in member.run.directories),
        ]

    exact = [m for m in members if name == m.label] or [m for m in members if name.rstrip("/") in names(m)]
    return exact or [m for m in members if any(n.startswith(name) for n in names(m))]


def table(group: Group, baseline: Member) -> Grid | None:
    """Every configuration against the baseline; None where there is no other."""
    others = [m for m in group.members if m is not baseline]
    rows = [_row(m, baseline.run, group.lower) for m in others]
    if not rows:
        return None
    names = [text for metric in PAIRED for text in (heading(metric, group.measure), "p")]
    tests = f", not corrected for there being {len(rows)} comparisons: one in twenty is below 0.05 by chance"
    remark = (
        "Each minus the baseline, seed by seed, over the seeds that both have done, judged on the same part: mean ± 95 "
        f"percent interval (Student t). p: two-sided paired t-test{tests if len(rows) > 1 else ''}. FLOPs: times the "
        "baseline's."
    )
    return Grid(("run", "common seeds", *names, "FLOPs"), tuple(rows), remark)


def _row(member: Member, baseline: Run, lower: bool) -> tuple[Cell, ...]:
    found = [paired(member.run, baseline, metric) for metric in PAIRED]
    cells = [Cell(member.label, slot=member.slot, head=True), Cell(str(n := _common(found)), n)]
    for pair in found:
        if pair is None:
            cells += [Cell(NONE), Cell(NONE)]
            continue
        text = plus_minus(pair.difference, pair.half, lower)
        cells += [Cell(text if text.startswith("-") else f"+{text}", pair.difference), Cell(p_value(pair.p), pair.p)]
    ratio = cost_ratio(member.run, baseline)
    return (*cells, Cell(NONE if ratio is None else f"× {ratio:.3g}", ratio))


def _common(found: Sequence[Pair | None]) -> int:
    return max((pair.seeds for pair in found if pair), default=0)


def cost_ratio(run: Run, baseline: Run) -> float | None:
    """FLOPs, times the baseline's."""
    ours, theirs = (mean_of(r.cost("flops")) for r in (run, baseline))
    return ours / theirs if ours is not None and theirs else None


def p_value(p: float | None) -> str:
    """Two figures, and never a plain zero."""
    return NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"
