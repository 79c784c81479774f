"""The page of a contest: the verdict, the frontier of every arm, the differences at equal learning, tables and cost.

Made from `contest.json` alone. Shapes: F rates, S orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nested.report import tables
from nested.report.drawing import INK, MUTED, blank, colour, drawn, marker, shorten, wrapped
from nested.report.inline import inline_svg, save_png
from nested.report.pairs import p_value
from nested.report.planes import Cloud, Point, forgetting_against_learning
from nested.report.rendering import render
from nested.report.tables import Cell, Grid
from nested.report.wording import NONE, heading, large, memory, plus_minus, score, seconds

Json = dict[str, Any]
WIDEST = 78  # characters of a line below the differences
OUTCOMES = {"less": "the candidate", "more": "this control", "even": "neither", "apart": "no comparison"}


def page(record: Json, out: Path) -> Path:
    """Write the page to `out`, and its figures as PNGs to `figures/` beside it; returns `out`."""
    measure = measured(record)
    panels = []
    for name, figure, description in _figures(record, measure):
        save_png(figure, out.parent / "figures" / f"{name}.png")
        panels.append(inline_svg(figure, name, description))
    rates = ", ".join(f"{factor:g}" for factor in record["factors"])
    return render(
        "contest.html.j2", out, title=f"Contest: {record['candidate']} on {record['stream']}", record=record,
        measure=measure, panels=panels, rates=rates, arms=summary(record), points=points(record), who=who(record),
        configs=configs(record), costs=costs(record), spent=seconds(record["train_seconds"]),
        absent=_plain(("control", "why"), [(a["title"], a["why"]) for a in record["absent"]]),
    )  # fmt: skip


def measured(record: Json) -> str:
    """What its scores are."""
    return record.get("measure") or ("loss" if record["lower_is_better"] else "accuracy")


# -- figures -----------------------------------------------------------------------------------------------------------


def _figures(record: Json, measure: str) -> list[tuple[str, Any, str]]:
    clouds = [_cloud(slot, arm) for slot, arm in enumerate(record["arms"])]
    known = [c for c in clouds if c.points]
    found = []
    if known:
        figure = forgetting_against_learning(known, measure, record["lower_is_better"])
        found.append(("frontier", figure, f"Forgetting against learning {measure} at every rate, all arms"))
    against = [(slot, a) for slot, a in enumerate(record["arms"]) if a["against"]]
    if against:
        figure = differences(against, record["candidate"])
        found.append(("differences", figure, "Forgetting of each control minus the candidate's at equal learning"))
    return found


def _cloud(slot: int, arm: Json) -> Cloud:
    """The rates of an arm, from slow to fast; those at which an order is missing have no mean."""
    whole = [p for p in arm["points"] if p["learning_acc"]["mean"] is not None]
    if not arm["ordered"]:  # the best of its rates alone: a ceiling
        best = max(whole, key=lambda p: p["acc"]["mean"], default=None)
        whole = [] if best is None else [best]
    dots = [
        Point(*(p[n][k] for k in ("mean", "half") for n in ("learning_acc", "forgetting")))
        for p in whole
    ]  # fmt: skip
    return Cloud(arm["title"], slot, dots, line=True)


@drawn
def differences(arms: Sequence[tuple[int, Json]], candidate: str) -> Any:
    """One row for each control: single orders faint, the mean with its interval; hollow where frontiers do not meet."""
    figure, axes = blank(6.4, 1.25 + 0.27 * len(arms))
    for row, (slot, arm) in enumerate(arms):
        c, shade = arm["against"], colour(slot)
        dots = [d for d in c["differences"] if d is not None]
        axes.plot(dots, [row] * len(dots), linestyle="none", marker="|", markersize=8, color=shade, alpha=0.45)
        axes.errorbar(
            c["difference"], row, xerr=c["half"], linestyle="none", marker=marker(slot), markersize=7, color=shade,
            markerfacecolor=shade if c["learning"] is not None else "none", capsize=2.5, elinewidth=1.3,
        )  # fmt: skip
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(arms)), [shorten(a["title"], 42) for _, a in arms], color=INK)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    below = f"{wrapped(f'forgets more than {candidate}', WIDEST)}\n(left of 0: less)"
    figure.supxlabel(below, fontsize=9.5, color=INK)  # below the names, too: a long one has no room below the axes
    return figure


# -- tables ------------------------------------------------------------------------------------------------------------


def summary(record: Json) -> Grid:
    """Each arm at the candidate's rate, and its forgetting minus the candidate's at equal learning."""
    lower, own = record["lower_is_better"], record["factors"].index(1.0)
    rows = []
    for slot, arm in enumerate(record["arms"]):
        point, c = arm["points"][own], arm["against"]
        values = [_value(point[n], lower) for n in ("learning_acc", "forgetting", "acc")]
        rows.append((Cell(arm["title"], slot=slot, head=True), *values, *_against(c, lower), _times(arm, "flops")))
    head = (
        "arm", *(heading(n, measured(record)) for n in ("learning_acc", "forgetting", "acc")),
        f"at learning {measured(record)}", "forgets more than the candidate", "p", "p, Holm", "orders",
        "who forgets less", "FLOPs",
    )  # fmt: skip
    remark = (
        "Left, at the candidate's rate; right, at equal learning, order by order. Mean ± 95 percent interval over "
        "orders (Student t). p: two-sided paired t-test, alone and corrected for all controls by Holm. FLOPs: times "
        "the candidate's."
    )
    return Grid(head, tuple(rows), remark)


def _against(c: Json | None, lower: bool) -> list[Cell]:
    if c is None:
        return [Cell(NONE)] * 6
    signed = plus_minus(c["difference"], c["half"])
    return [
        Cell(NONE if c["learning"] is None else score(c["learning"], lower), c["learning"]),
        Cell(signed if signed.startswith("-") else f"+{signed}", c["difference"]),
        Cell(p_value(c["p"]), c["p"]),
        Cell(p_value(c["holm"]), c["holm"]),
        Cell(str(c["orders"]), c["orders"]),
        Cell(OUTCOMES[c["outcome"]]),
    ]


def _value(found: Json, lower: bool) -> Cell:
    return Cell(plus_minus(found["mean"], found["half"], lower), found["mean"])


def _times(arm: Json, name: str) -> Cell:
    ratio = arm["times"][name]
    return Cell(NONE if ratio is None else f"× {ratio:.3g}", ratio)


def points(record: Json) -> Grid:
    """Every arm at every rate."""
    lower = record["lower_is_better"]
    rows = [
        (
            Cell(arm["title"], slot=slot, head=True),
            Cell(f"× {point['factor']:g}", point["factor"]),
            *(_value(point[n], lower) for n in ("learning_acc", "forgetting", "acc")),
            Cell("yes" if point["frontier"] else "no" if arm["ordered"] else NONE),
            Cell(directory),
        )
        for slot, arm in enumerate(record["arms"])
        for point, directory in zip(arm["points"], arm["directories"])
    ]
    names = (heading(n, measured(record)) for n in ("learning_acc", "forgetting", "acc"))
    return Grid(("arm", "rate", *names, "on its frontier", "directory"), tuple(rows))


def costs(record: Json) -> Grid:
    """What each arm cost at the candidate's rate."""
    rows = []
    for slot, arm in enumerate(record["arms"]):
        cost = arm["cost"]
        rows.append(
            (
                Cell(arm["title"], slot=slot, head=True),
                Cell(large(cost["flops"]), cost["flops"]),
                _times(arm, "flops"),
                Cell(large(cost["parameter_updates"]), cost["parameter_updates"]),
                _times(arm, "parameter_updates"),
                Cell(memory(cost["state_bytes"]), cost["state_bytes"]),
                Cell(seconds(cost["train_seconds"]), cost["train_seconds"]),
                Cell(str(arm["diverged"]), arm["diverged"]),
            )
        )
    head = ("arm", "FLOPs", "times", "parameter updates", "times", "state", "training, s", "diverged")
    remark = "Means over orders, at the candidate's rate. State: model, optimizer and method; replay's examples apart."
    return Grid(head, tuple(rows), remark)


def who(record: Json) -> Grid:
    """What each arm is."""
    return _plain(("arm", "what it is"), [(arm["title"], arm["what"]) for arm in record["arms"]])


def configs(record: Json) -> Grid:
    """The config values in which each control differs from the candidate."""
    told = [
        (arm["title"], "; ".join(_changed(k, *both) for k, both in arm["differs"].items()))
        for arm in record["arms"]
        if arm["differs"]
    ]
    return _plain(("arm", "candidate → arm"), told)


def _changed(key: str, before: Any, after: Any) -> str:
    one, two = (NONE if v is None else tables.plain(v) for v in (before, after))
    return f"{key}: {one} → {two}"


def _plain(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Grid:
    return Grid(head, tuple((Cell(first, head=True), *(Cell(c) for c in rest)) for first, *rest in rows))
