"""How a dry run looks on a terminal."""

from __future__ import annotations

import re
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nested.timeline import RESET
from nested.wording import counted

if TYPE_CHECKING:
    from nested.dryrun import DryRun

LISTED = 12  # experiences
NAMED = 3  # parameters of a level


def view(found: DryRun) -> Group:
    """Stream, layers, levels, timeline and cost, one below the other."""
    parts = [_stream(found), _layers(found), _levels(found), _timeline(found), _token_levels(found), _cost(found)]
    return Group(*(line for part in parts if part for line in (*part, Text())))


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _row(table: Table, *cells: Any) -> None:
    table.add_row(*(Text(str(cell)) for cell in cells))


def _more(table: Table, total: int) -> None:
    if total > LISTED:
        _row(table, "", f"... and {total - LISTED} more")


def _stream(found: DryRun) -> list[Any]:
    n = len(found.experiences)
    what = f"samples {_times(found.sample_shape)}, {found.n_outputs} outputs"
    head = f"{found.stream}, {found.scenario}-incremental: {n} experiences, {what}"
    parts = ("train", "validation", "test")
    table = _table("", "experience", "classes", *parts, right=("", *parts))
    for e in found.experiences[:LISTED]:
        _row(table, e["index"], e["name"], _classes(e["classes"]), *(e[part] for part in parts))
    _more(table, n)
    return [Text(head, style="bold"), table]


def _classes(classes: list[int]) -> str:
    return " ".join(map(str, classes[:LISTED])) + (f" ... ({len(classes)})" if len(classes) > LISTED else "")


def _layers(found: DryRun) -> list[Any]:
    total = sum(row["parameters"] for row in found.layers)
    chunked = found.tokens is not None and any(row["calls"] > 1 for row in found.layers)
    head = "output (batch first)" if not chunked else "output of the first call (batch first)"
    calls = ("calls",) if chunked else ()
    table = _table("layer", "kind", head, *calls, "parameters", right=(*calls, "parameters"))
    for row in found.layers:
        shape = _times(row["shape"]) if row["shape"] is not None else "no tensor"
        times = (row["calls"],) if chunked else ()
        _row(table, row["name"] or "(model)", row["kind"], shape, *times, f"{row['parameters']:,}")
    return [Text(f"{found.label}: {total:,} parameters", style="bold"), table]


def _times(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def _levels(found: DryRun) -> list[Any]:
    names = list(found.timeline)
    right = ("period", "lr", "parameters", "share", "updates")
    table = _table("level", "period", "lr", "parameters", "share", "updates", "which", right=right)
    for row in _on(found, "stream"):
        share, count = f"{row['share']:.1%}", f"{row['parameters']:,}"
        _row(table, row["name"], row["period"], f"{row['lr']:g}", count, share, row["updates"], _which(row))
    steps = _table("", "fit", "steps", *(f"updates of {n}" for n in names), right=("", "steps"))
    for i, fit in enumerate(found.fits[:LISTED]):
        _row(steps, i, fit["name"], fit["steps"], *(fit["updates"][n] for n in names))
    _more(steps, len(found.fits))
    return [Text("levels", style="bold"), table, Text(), steps]


def _on(found: DryRun, clock: str) -> list[dict[str, Any]]:
    return [row for row in found.levels if row["clock"] == clock]


def _which(row: dict[str, Any]) -> str:
    globs, names = row["globs"], row["names"]
    some = ", ".join(names[:NAMED]) + (f", ... ({len(names)} tensors)" if len(names) > NAMED else "")
    return f"{globs if isinstance(globs, str) else ' '.join(globs)}: {some}"


def _marks(unit: str, timeline: dict[str, str]) -> tuple[int, int, list[str]]:
    """Width of the names, ticks drawn, and the lines below each other."""
    width, drawn = max(len("border"), *map(len, timeline)), len(next(iter(timeline.values())))
    ruler = "".join(f"{t:>8}" for t in range(8, drawn + 1, 8))
    lines = [f"{name:<{width}}  {marks}" for name, marks in timeline.items()]
    return width, drawn, [f"{unit:<{width}}  {ruler}", *lines]


def _timeline(found: DryRun) -> list[Any]:
    width, drawn, lines = _marks("step", found.timeline)
    ends = set(accumulate(fit["steps"] for fit in found.fits))
    if any(end <= drawn for end in ends):
        lines.append(f"{'border':<{width}}  {''.join('|' if t in ends else ' ' for t in range(1, drawn + 1))}")
    head = Text(f"when levels learn, the first {drawn} of {found.steps:,} steps", style="bold")
    return [head, *(Text(line, no_wrap=True) for line in lines)]


def _token_levels(found: DryRun) -> list[Any]:
    """What learns within every sequence, from its initial state on."""
    if not found.token_timeline:
        return []
    right = ("tokens", "eta", "parameters", "share")
    table = _table("level", "tokens", "eta", "parameters", "share", "which", right=right)
    for row in _on(found, "token"):
        share, count = f"{row['share']:.1%}", f"{row['parameters']:,}"
        _row(table, row["name"], row["period"], f"{row['eta']:g}", count, share, _which(row))
    head = Text("levels on the token clock, which learn within every sequence as far as it goes", style="bold")
    return [head, table, Text(), *_fast_weights(found), Text(), *_token_timeline(found)]


def _fast_weights(found: DryRun) -> list[Any]:
    """Those of all blocks in one line."""
    alike = Counter((w["level"], _any_block(w["name"]), *w["shape"]) for w in found.fast_weights)
    table = _table("level", "fast weight", "shape (batch first)", "tensors", right=("tensors",))
    for (level, name, *shape), n in alike.items():
        _row(table, level, name, _times(shape), n)
    return [Text("fast weights, each sequence's own", style="bold"), table]


def _any_block(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name, count=1)


def _token_timeline(found: DryRun) -> list[Any]:
    _, drawn, lines = _marks("token", found.token_timeline)
    of = "a sequence" if found.tokens is None else f"the {found.tokens} of a sequence"
    tokens = f"all {drawn} tokens of a sequence" if drawn == found.tokens else f"the first {drawn} tokens of {of}"
    resets = any(RESET in marks for marks in found.token_timeline.values())
    legend = f"; {RESET}: back to the initial state" if resets else ""
    head = Text(f"when they learn, {tokens}{legend}", style="bold")
    return [head, *(Text(line, no_wrap=True) for line in lines)]


def _cost(found: DryRun) -> list[Any]:
    times = {"training": found.train_seconds, "evaluation": found.eval_seconds, "gain": found.alone_seconds}
    spent = ", ".join(f"{name} {duration(seconds)}" for name, seconds in times.items() if seconds)
    whole = f"{duration(found.seconds)} for {counted(len(found.seeds), 'seed')}"
    return [
        Text("estimated cost", style="bold"),
        Text(f"{found.steps:,} steps of {si(found.flops_per_step)}FLOP (forward and backward): {si(found.flops)}FLOP"),
        Text(f"{found.step_seconds * 1000:.2f} ms a step here: {spent}; {whole}"),
    ]


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def si(value: float) -> str:
    """A number with its unit's prefix: `12.3 G`."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 1000:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} E"
