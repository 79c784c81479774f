"""The page: one HTML file that needs nothing else, for one run or many."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nested.config import flatten
from nested.errors import UserError
from nested.report import pairs, sweeps, tables
from nested.report.groups import Group, Member, grouped, notes, varied
from nested.report.records import Run
from nested.report.rendering import render
from nested.report.wording import heading, metric


def page(runs: Sequence[Run], out: Path | str, baseline: str | None = None, said: Sequence[str] = ()) -> Path:
    """Write the page of one or many runs to `out`, and its figures as PNGs to `figures/` beside it; returns `out`.

    `baseline` names the run that the others are paired with, by default the first of each stream; what is `said`
    stands at the head.
    """
    if not runs:
        raise UserError("no runs to report on; give at least one run directory")
    path = Path(out)
    groups = grouped(runs)
    against = pairs.baselines(groups, baseline)
    sections = [
        _section(g, b, path.parent / "figures", k, len(groups)) for k, (g, b) in enumerate(zip(groups, against))
    ]
    return render("page.html.j2", path, **_values(sections, runs, said))


def _section(group: Group, baseline: Member, folder: Path, k: int, among: int) -> dict[str, Any]:
    from nested.report import microscope, panels

    key = "" if among == 1 else f"stream-{k + 1}-"
    lines = sweeps.sweeps(group)
    shown = sweeps.chosen(group, lines, baseline)
    several = len(group.members) > 1
    return {
        "id": f"stream-{k + 1}",
        "group": group,
        "shown": shown,
        "tiles": [] if several else _tiles(group),
        "summary": tables.summary(group, tables.known_metrics(group.runs, tables.LONG), wide=several),
        "notes": [*notes(group), *_about_choice(group, shown)],
        "baseline": baseline.label,
        "pairs": pairs.table(group, baseline),
        "lines": sweeps.table(lines, group),
        "remarks": sweeps.remarks(lines) if several else [],
        "panels": panels.draw(group, lines, shown, folder, key),
        "front": panels.on_front(group),
        "anytime": tables.anytime(shown),
        "by_seed": tables.by_seed(shown),
        "by_view": tables.by_view(shown),
        "levels": tables.levels(shown),
        "microscope": microscope.sections(shown, folder, key),
        "costs": tables.costs(shown),
        "datasets": tables.datasets(group),
    }


def _about_choice(group: Group, shown: Group) -> list[str]:
    few, all_ = len(shown.members), len(group.members)
    if few == all_:
        return []
    return [
        f"The tables and planes below are of all {all_:,}; curves, matrices, levels, costs and seeds of {few}: the "
        "baseline, and those of the best ACC, of each sweep the best one first."
    ]


def _tiles(group: Group) -> list[tuple[str, str]]:
    return [(heading(name, group.measure), metric(group.first, name)) for name in tables.SHORT]


def _values(sections: Sequence[dict[str, Any]], runs: Sequence[Run], said: Sequence[str]) -> dict[str, Any]:
    """All that the template names."""
    few = [m for s in sections for m in s["shown"].members]
    labels, shown = [m.label for m in few], [m.run for m in few]
    all_members = [m for s in sections for m in s["group"].members]
    machines = [_machine(run) for run in shown]
    several = len(runs) > 1
    return {
        "title": runs[0].label if not several else f"{sum(len(r.directories) for r in runs):,} runs compared",
        "runs": runs,
        "sections": sections,
        "config_differences": tables.differences(labels, [r.config for r in shown]) if several else None,
        "choosable": _choosable(all_members) if several else None,
        "config": tables.common([run.config for run in runs]),
        "machine_differences": tables.differences(labels, machines) if several else None,
        "machine": tables.common(machines),
        "commands": _commands(shown),
        "directories": tables.directories(few),
        "problems": [*said, *(problem for run in runs for problem in run.problems)],
        "started": _started(runs),
        "losses": sorted({s["group"].measure for s in sections if s["group"].lower}),
        "sequences": any(run.positions is not None for run in shown),
        "frozen": any(run.frozen is not None for run in shown),
    }


def _choosable(members: Sequence[Member]) -> list[tuple[str, str]] | None:
    """Every label with the config values in which not all are equal, as JSON: any two are compared on the page."""
    keys = varied([m.run.config for m in members])
    told = [{k: tables.plain(m.run.config[k]) for k in keys if k in m.run.config} for m in members]
    return [(m.label, json.dumps(values)) for m, values in zip(members, told)] if keys else None


def _machine(run: Run) -> dict[str, Any]:
    """The environment of the first seed that recorded it, the command apart."""
    known = next((s.environment for s in run.seeds if s.environment), {})
    return flatten({k: v for k, v in known.items() if k != "command"}) if known else {}


def _commands(runs: Sequence[Run]) -> list[str]:
    found = [s.environment.get("command") for run in runs for s in run.seeds]
    lines = [shlex.join(map(str, c)) if isinstance(c, list) else str(c) for c in found if c]
    return list(dict.fromkeys(lines))


def _started(runs: Sequence[Run]) -> str | None:
    begun = [s.started for run in runs for s in run.seeds if s.started is not None]
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(min(begun) / 1000)) if begun else None
