"""The page: one HTML file that needs nothing else, for one run or many."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nested
from nested.config import flatten
from nested.errors import UserError
from nested.report import tables
from nested.report.drawing import variables
from nested.report.groups import Group, grouped, notes
from nested.report.records import Run, visible
from nested.report.wording import heading, metric

HERE = Path(__file__).parent


def page(runs: Sequence[Run], out: Path | str) -> Path:
    """Write the page of one or many runs to `out`, and its figures as PNGs to `figures/` beside it; returns `out`."""
    if not runs:
        raise UserError("no runs to report on; give at least one run directory")
    path = Path(out)
    groups = grouped(runs)
    sections = [_section(g, path.parent / "figures", k, len(groups)) for k, g in enumerate(groups)]
    html = _render(sections, runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(path)
    return path


def _section(group: Group, folder: Path, k: int, among: int) -> dict[str, Any]:
    from nested.report import microscope, panels

    key = "" if among == 1 else f"stream-{k + 1}-"
    return {
        "id": f"stream-{k + 1}",
        "group": group,
        "tiles": _tiles(group) if len(group.members) == 1 else [],
        "summary": tables.summary(group, tables.known_metrics(group.runs, tables.LONG)),
        "notes": notes(group),
        "panels": panels.draw(group, folder, key),
        "anytime": tables.anytime(group),
        "by_seed": tables.by_seed(group),
        "by_view": tables.by_view(group),
        "levels": tables.levels(group),
        "microscope": microscope.sections(group, folder, key),
        "costs": tables.costs(group),
        "datasets": tables.datasets(group),
    }


def _tiles(group: Group) -> list[tuple[str, str]]:
    return [(heading(name, group.lower), metric(group.first, name)) for name in tables.SHORT]


def _render(sections: Sequence[dict[str, Any]], runs: Sequence[Run]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    values = [run.config for run in runs]
    machines = [_machine(run) for run in runs]
    labels = [m.label for s in sections for m in s["group"].members]
    ordered = [m.run for s in sections for m in s["group"].members]
    return environment.get_template("page.html.j2").render(
        title=runs[0].label if len(runs) == 1 else f"{len(runs)} runs compared",
        runs=runs,
        sections=sections,
        colours=variables(),
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        safe=Markup,
        config_differences=tables.differences(labels, [r.config for r in ordered]) if len(runs) > 1 else None,
        config=tables.common(values),
        machine_differences=tables.differences(labels, [_machine(r) for r in ordered]) if len(runs) > 1 else None,
        machine=tables.common(machines),
        commands=_commands(runs),
        problems=[problem for run in runs for problem in run.problems],
        started=_started(runs),
        version=nested.__version__,
        lower={s["group"].lower for s in sections},
        sequences=any(run.positions is not None for run in runs),
    )


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
