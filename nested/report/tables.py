"""What is said in tables, on the terminal and on the page: rows of cells, made from groups of runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nested.report.groups import Group, Member, grouped, text_of, varied
from nested.report.records import METRICS, Run, mean_of, on_stream, visible
from nested.report.wording import (
    IN_EACH,
    NONE,
    count,
    every,
    heading,
    large,
    memory,
    metric,
    run_seconds,
    score,
    seconds,
    seeds,
    steps,
)

if TYPE_CHECKING:
    from rich.table import Table

LONG = ("learning_acc", "acc", "forgetting", "bwt", "fwt", "gain", "positions", "frozen")
ANYTIME = ("min_acc", "wc_acc")
SHORT = ("learning_acc", "acc", "forgetting", "bwt")  # forgetting always beside learning accuracy
EXACT = "a sequence counts as right only where every judged position of it is"
ROWS = 24  # longer tables of experiences are cut here, and it is said
COSTS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("train_seconds", "training, s", seconds),
    ("eval_seconds", "evaluation, s", seconds),
    ("anytime_seconds", "anytime evaluation, s", seconds),
    ("steps", "steps", count),
    ("skipped_steps", "skipped steps", count),
    ("flops", "FLOPs", large),
    ("update_flops", "update FLOPs", large),
    ("parameter_updates", "parameter updates", large),
    ("peak_rss_bytes", "peak memory", memory),
    ("state_bytes", "state", memory),
)


INSIDE = (
    "lr: of the optimizer, which learns at steps. eta: of gradient descent within a sequence, at tokens, from initial "
    "states that are parameters: these learn at steps too, and are counted in the levels that do so."
)


@dataclass(frozen=True)
class Cell:
    """Text, what it is sorted by, a run's colour slot where it names a run, and an address of the tracker's."""

    text: str
    value: float | None = None
    slot: int | None = None
    head: bool = False
    link: str | None = None


@dataclass(frozen=True)
class Grid:
    """A table: headings, rows, and a remark below."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    remark: str = ""


def summary(group: Group, names: Sequence[str], wide: bool = False) -> Grid:
    """One row per run: seeds, metrics with intervals, steps, seconds, parameters; `wide`, FLOPs too."""
    rows = []
    for run, slot, label in group.members:
        spent, half = run_seconds(run)
        rows.append(
            (
                Cell(label if run.status == "done" else f"{label} ({run.status})", slot=slot, head=True),
                Cell(seeds(run), len(run.done)),
                *(Cell(metric(run, n), run.mean.get(n)) for n in names),
                Cell(count(steps(run)), steps(run)),
                Cell(seconds(spent, half), spent),
                Cell(count(run.parameters), run.parameters),
                *([Cell(large(flops := mean_of(run.cost("flops"))), flops)] if wide else []),
            )
        )
    return Grid((*_head(names, group.measure), *(["FLOPs"] if wide else [])), tuple(rows))


def _head(names: Sequence[str], measure: str | None) -> tuple[str, ...]:
    return ("run", "seeds", *(heading(n, measure) for n in names), "steps", "seconds", "parameters")


def known_metrics(runs: Sequence[Run], among: Sequence[str] = METRICS) -> tuple[str, ...]:
    """The metrics of the short table, and those of the others that some run has."""
    return tuple(m for m in among if m in SHORT or any(run.mean.get(m) is not None for run in runs))


def table(runs: Sequence[Run], most: int | None = None) -> Table:
    """The summary for the terminal: one row per run, a section for each stream; of each the `most` best by ACC."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    groups, names = grouped(runs), known_metrics(runs, (*SHORT, "positions", "frozen"))
    short = [best(g, most) for g in groups] if most else groups
    out = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, caption_justify="left")
    remarks = ["mean ± 95 percent interval over seeds (Student t)"] if any(r.planned > 1 for r in runs) else []
    remarks += [f"accuracy: {EXACT}"] if "positions" in names else []
    left = sum(len(g.members) - len(s.members) for g, s in zip(groups, short))
    remarks += [f"and {left:,} of lower ACC: on the page"] if left else []
    out.caption = "\n".join(remarks) or None
    measures = {g.measure for g in groups}
    for k, title in enumerate(_head(names, measures.pop() if len(measures) == 1 else None)):
        out.add_column(title.replace(" ", "\n"), justify="right" if k else "left", no_wrap=k > 0, overflow="fold")
    for group in short:
        if len(groups) > 1:
            out.add_section()
            out.add_row(Text(visible(group.title), style="italic"))
        for row in summary(group, names).rows:
            out.add_row(*(Text(visible(c.text) if c.head else stacked(c.text)) for c in row))
    return out


def best(group: Group, most: int) -> Group:
    """The `most` members of the best ACC, in their order."""
    kept = {m.label for m in sorted(group.members, key=lambda m: rank(m, group.lower))[:most]}
    return replace(group, members=tuple(m for m in group.members if m.label in kept))


def rank(member: Member, lower: bool) -> float:
    """Less is better: by ACC, unknown ones last."""
    acc = member.run.mean.get("acc")
    return float("inf") if acc is None else acc if lower else -acc


def stacked(text: str) -> str:
    """The interval below its mean: columns stay narrow, and no terminal cuts a number."""
    return text.replace(" ± ", "\n±")


def anytime(group: Group) -> Grid | None:
    """What the worst moments were, for runs that were evaluated between the borders."""
    found = [m for m in group.members if any(m.run.mean.get(name) is not None for name in ANYTIME)]
    rows = [
        (Cell(label, slot=slot, head=True), *(Cell(metric(run, n), run.mean.get(n)) for n in ANYTIME))
        for run, slot, label in found
    ]
    return Grid(("run", *(heading(n, group.measure) for n in ANYTIME)), tuple(rows)) if rows else None


def by_seed(group: Group) -> Grid:
    """One row per seed."""
    names = known_metrics(group.runs)
    rows = [
        (
            Cell(label, slot=slot, head=True),
            Cell(str(s.seed), s.seed),
            Cell(s.status),
            Cell(f"{max(0, s.rows - 1)} of {run.n}", s.rows),
            *(Cell(score(s.metrics.get(n), group.lower), s.metrics.get(n)) for n in names),
            Cell(seconds(s.seconds), s.seconds),
        )
        for run, slot, label in group.members
        for s in run.seeds
    ]
    metrics = tuple(heading(n, group.measure) for n in names)
    return Grid(("run", "seed", "status", "experiences", *metrics, "seconds"), tuple(rows))


def by_view(group: Group) -> Grid | None:
    """Runs that keep several sets of weights: each judged by itself, means over the seeds that are done."""
    several = [m for m in group.members if m.run.done and len(m.run.done[0].views) > 1]
    if not several:
        return None
    from nested import metrics

    rows = []
    for run, slot, label in several:
        for view in run.done[0].views:
            found = [metrics.summarise(s.views[view][1:], s.views[view][0], group.lower) for s in run.done]
            mean, _ = metrics.over_seeds(found, SHORT)
            cells = (Cell(score(mean[n], group.lower), mean[n]) for n in SHORT)
            rows.append((Cell(label, slot=slot, head=True), Cell(view), *cells))
    return Grid(("run", "weights", *(heading(n, group.measure) for n in SHORT)), tuple(rows))


def levels(group: Group) -> Grid | None:
    """One row per level of every run; one on the token clock has a rate of another kind, and is counted in no share."""
    rows = []
    for run, slot, label in group.members:
        for level in run.levels:
            stream, period = on_stream(level), level.get("period")
            size, outer, inner = (level.get(key) for key in ("parameters", "lr", "eta"))
            share = size / run.parameters if stream and size is not None and run.parameters else None
            rows.append(
                (
                    Cell(label, slot=slot, head=True),
                    Cell(str(level.get("name"))),
                    Cell(every(period, "step" if stream else "token"), period),
                    Cell(count(size), size),
                    Cell(NONE if share is None else f"{share:.1%}", share),
                    Cell(count(level.get("updates")) if stream else IN_EACH, level.get("updates")),
                    *(Cell(NONE if rate is None else f"{rate:g}", rate) for rate in (outer, inner)),
                )
            )
    head = ("run", "level", "learns every", "parameters", "share", "updates", "outer rate lr", "inner rate eta")
    inside = any(not on_stream(level) for run in group.runs for level in run.levels)
    return Grid(head, tuple(rows), INSIDE if inside else "") if rows else None


def costs(group: Group) -> Grid | None:
    """What every run cost: means over its seeds, those that did not end included."""
    present = [c for c in COSTS if any(run.cost(c[0]) for run in group.runs)]
    rows = []
    for run, slot, label in group.members:
        means = [(write, mean_of(run.cost(name))) for name, _, write in present]
        rows.append((Cell(label, slot=slot, head=True), *(Cell(write(mean), mean) for write, mean in means)))
    return Grid(("run", *(title for _, title, _ in present)), tuple(rows)) if present else None


def datasets(group: Group) -> Grid | None:
    """Every experience: how much data, and which classes for each seed."""
    found = {s.seed: s.datasets for run in reversed(group.runs) for s in run.seeds if s.datasets}
    if not found:
        return None
    by = dict(sorted(found.items()))
    first = next(iter(by.values()))
    classes = {seed: [_classes(d) for d in data] for seed, data in by.items()}
    alike = len({tuple(c) for c in classes.values()}) == 1
    shown = dict(list(classes.items())[:1]) if alike else classes
    rows = [
        (
            Cell(str(j + 1), j, head=True),
            *(Cell(count(d.get(part)), d.get(part)) for part in ("n_train", "n_validation", "n_test")),
            *(Cell(c[j] if j < len(c) else NONE) for c in shown.values()),
        )
        for j, d in enumerate(first[:ROWS])
    ]
    titles = ("data",) if alike else tuple(f"data, seed {seed}" for seed in shown)
    totals = {p: sum(d.get(p) or 0 for d in first) for p in ("n_train", "n_validation", "n_test")}
    more = f"The first {ROWS} of {len(first)} experiences; in" if len(first) > ROWS else "In"
    digests = ", ".join(f"seed {seed} {str(data[0].get('digest'))[:12]}" for seed, data in by.items())
    remark = (
        f"{more} all {count(totals['n_train'])} training, {count(totals['n_validation'])} validation and "
        f"{count(totals['n_test'])} test examples. Hash of data and split: {digests}."
    )
    text, empty = text_of(first), (first[0].get("about") or {}).get("empty_files")
    remark += (f" Text: {text}." if text else "") + (f" Empty files left out: {empty}." if empty else "")
    return Grid(("experience", "training", "validation", "test", *titles), tuple(rows), remark)


def _classes(data: dict[str, Any]) -> str:
    given = [str(c) for c in data.get("classes") or []]
    listed = ", ".join(given[:8]) + (f" and {len(given) - 8} more" if len(given) > 8 else "")
    return f"{data.get('name')}" + (f" (classes {listed})" if given else "")


def differences(labels: Sequence[str], values: Sequence[dict[str, Any]]) -> Grid | None:
    """The keys whose values are not the same for all; None where there are none."""
    rows = tuple((Cell(k, head=True), *(Cell(plain(v[k]) if k in v else NONE) for v in values)) for k in varied(values))
    return Grid(("key", *labels), rows) if rows else None


def common(values: Sequence[dict[str, Any]]) -> Grid | None:
    """The keys whose values are the same for all."""
    if not values:
        return None
    unequal = set(varied(values))
    rows = [(Cell(k, head=True), Cell(plain(v))) for k, v in sorted(values[0].items()) if k not in unequal]
    return Grid(("key", "value"), tuple(rows)) if rows else None


def directories(members: Sequence[Member]) -> Grid:
    """Where every run lies, and its page in the tracker."""
    rows = [
        (Cell(label, slot=slot, head=True), Cell(r.run_id, link=r.tracked), Cell(r.status), Cell(str(r.path)))
        for run, slot, label in members
        for r in run.directories
    ]
    linked = any(c.link for row in rows for c in row)
    remark = "An id leads to the run's page in MLflow; of a database on this machine, while nested ui shows it."
    return Grid(("run", "id", "status", "directory"), tuple(rows), remark if linked else "")


def plain(value: Any) -> str:
    """A config value as one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
