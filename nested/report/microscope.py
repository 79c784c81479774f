"""The level microscope on a page and in the terminal: who forgot, who learned, when, and how far each level went.

Read from the `microscope.json` of a run and of its seeds; nothing is evaluated here.
Shapes: n experiences, L players (levels, and what is no level but differs).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nested.report.drawing import INK, MUTED, PAPER, RULE, blank, colour, drawn, legend_columns, marker, shorten
from nested.report.groups import Group
from nested.report.inline import inline_svg, save_png
from nested.report.reading import read_json
from nested.report.records import Run
from nested.report.tables import Cell, Grid
from nested.report.wording import every, plus_minus, slug

if TYPE_CHECKING:
    from rich.table import Table

Json = dict[str, Any]
QUESTIONS = {"forgot": "Who forgot", "learned": "Who learned"}
NAMED = 16  # up to here every experience has a tick of its own
ALONE, BUT_ONE = "single", "all_but_one"


def sections(group: Group, folder: Path, key: str) -> list[Json]:
    """A section for each run of the group that was looked at: label, figures, table, notes."""
    made = []
    for k, (run, _, label) in enumerate(group.members):
        found = read_json(run.path / "microscope.json")
        if not found:
            continue
        name = f"{key}microscope-{k + 1}-{slug(label)}"
        panels = []
        for part, figure, description in _figures(run, found, group.measure):
            save_png(figure, folder / f"{name}-{part}.png")
            panels.append(inline_svg(figure, f"{name}-{part}", f"{description}, {label}"))
        made.append({"label": label, "panels": panels, "table": grid(found), "notes": notes(found)})
    return made


def _figures(run: Run, found: Json, measure: str) -> Iterator[tuple[str, Any, str]]:
    players = found["players"]
    for what, question in QUESTIONS.items():
        if not found["mean"][what]["total"]:
            continue
        if found["exact"]:
            mean, half = ((found[k][what] or {}) for k in ("mean", "ci95"))
            shares, total = np.array([mean["shares"][p] for p in players]), np.array(mean["total"])
            figure = stacked(shares, total, half.get("total"), players, question, measure)
        else:
            mean, half = (found[k]["average"][what] for k in ("mean", "ci95"))
            figure = side_by_side(mean, half or {}, players, question, measure)
        yield what, figure, question
    drift = {p: np.array(v) for p, v in found["mean"]["drift"].items()}
    yield "drift", lines(drift, players), "Norm of each level's change in each experience"
    first = run.path / f"seed-{found['seeds'][0]}" / "microscope.json"
    if ticks := read_json(first).get("ticks"):
        yield "ticks", around(ticks, players, measure), f"Change of {measure} at each tick"


# -- figures -----------------------------------------------------------------------------------------------------------


@drawn
def stacked(
    shares: Any, total: Any, half: Sequence[float] | None, players: Sequence[str], title: str, measure: str
) -> Any:
    """Shapley shares (L, n) of each experience, on top of each other; the dot is their sum, the change itself."""
    n = len(total)
    figure, axes = blank(min(9.0, max(4.2, 1.6 + 0.34 * n)), 3.2)
    x = np.arange(1, n + 1)
    above, below = np.zeros(n), np.zeros(n)
    handles = []
    for k, share in enumerate(shares):
        up, down = share.clip(min=0), share.clip(max=0)
        style: dict[str, Any] = {"color": colour(k), "width": 0.72, "edgecolor": PAPER, "linewidth": 0.6}
        handles.append(axes.bar(x, up, bottom=above, **style))
        axes.bar(x, down, bottom=below, **style)
        above, below = above + up, below + down
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.errorbar(
        x, total, half, linestyle="none", marker="o", markersize=4.5, color=INK, markeredgecolor=PAPER, elinewidth=1
    )
    low, high = axes.get_ylim()
    if measure == "accuracy":  # an interval may pass 1, no change does
        axes.set_ylim(max(low, -1.02), min(high, 1.02))
    axes.set_title(title)
    axes.set_xlabel("experience")
    axes.set_ylabel(f"{measure} {'lost by the end' if title == QUESTIONS['forgot'] else 'gained'}")
    axes.grid(axis="x", visible=False)
    if n <= NAMED:
        axes.set_xticks(x)
    _legend(figure, handles, players)
    return figure


@drawn
def side_by_side(mean: Json, half: Json, players: Sequence[str], title: str, measure: str) -> Any:
    """For each level what it does alone and what all but it leave undone, means over experiences: never stacked."""
    figure, axes = blank(5.0, 1.3 + 0.32 * len(players))
    rows = np.arange(len(players))
    handles = []
    for kind, shift, fill in ((ALONE, -0.14, INK), (BUT_ONE, 0.14, PAPER)):
        values = [mean[kind][p] for p in players]
        error = [(half.get(kind) or {}).get(p) or 0.0 for p in players]
        handles.append(
            axes.errorbar(
                values, rows + shift, xerr=error, linestyle="none", marker="o", color=INK, markerfacecolor=fill,
                markersize=6, elinewidth=1.2,
            )
        )  # fmt: skip
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_yticks(rows, [shorten(p, 26) for p in players], color=INK)
    axes.set_ylim(len(players) - 0.5, -0.5)
    axes.set_title(f"{title}, level by level")
    axes.set_xlabel(f"{measure} (all {mean['total']:.3f}, interaction {mean['interaction']:.3f})")
    _legend(figure, handles, ("this level alone", "lost without it"))
    return figure


@drawn
def lines(drift: dict[str, Any], players: Sequence[str]) -> Any:
    """Norm of the change of each level (n,) in each experience; a level that did not move has no point."""
    figure, axes = blank(4.2, 3.2)
    handles, names = [], []
    for k, player in enumerate(players):
        values = drift.get(player)
        if values is None:
            continue
        y = np.where(values > 0, values, np.nan)
        style: dict[str, Any] = {"color": colour(k), "marker": marker(k), "markeredgecolor": PAPER}
        handles += axes.plot(np.arange(1, len(y) + 1), y, markersize=6, **style)
        names.append(player)
    if any((v > 0).any() for v in drift.values()):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain)
        axes.yaxis.set_minor_formatter(_plain if np.ptp(np.log10(axes.get_ylim())) < 1.5 else lambda *_: "")
    if (n := len(next(iter(drift.values())))) <= NAMED:
        axes.set_xticks(np.arange(1, n + 1))
    axes.set_title("Drift")
    axes.set_xlabel("experience")
    axes.set_ylabel("norm of the change of the weights")
    _legend(figure, handles, names)
    return figure


@drawn
def around(ticks: dict[str, Json], players: Sequence[str], measure: str) -> Any:
    """At each tick of a slow level, after less before: on the experiences learned earlier and on the present one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    both = figure.subplots(2, 1, sharex=True)
    handles, names = [], []
    for level, found in ticks.items():
        k = players.index(level) if level in players else len(players)
        style: dict[str, Any] = {"color": colour(k), "marker": marker(k), "markersize": 4, "linestyle": "none"}
        for axes, kind in zip(both, ("earlier", "current")):
            y = np.array([np.nan if v is None else v for v in found[kind]])
            drawn_line = axes.plot(found["step"], y, alpha=0.75, markeredgewidth=0, **style)
            if not np.isnan(y).all():
                axes.axhline(np.nanmean(y), color=style["color"], linewidth=1.1, linestyle=(0, (4, 2)))
        handles += drawn_line
        names.append(level)
    fastest = max(ticks.values(), key=lambda t: len(t["step"]))
    for axes, where in zip(both, ("earlier experiences", "the present one")):
        for before, after in zip(*_borders(fastest)):
            axes.axvline((before + after) / 2, color=RULE, linewidth=1, zorder=0)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_ylabel(f"change on\n{where}")
        axes.grid(axis="x", visible=False)
    both[0].set_title(f"When: {measure} just after a tick less just before it")
    both[1].set_xlabel("optimizer steps")
    _legend(figure, handles, names)
    return figure


def _plain(value: float, _: Any) -> str:
    return f"{value:g}"


def _borders(found: Json) -> tuple[Any, Any]:
    """The ticks on both sides of each border between experiences."""
    step, changes = np.array(found["step"]), np.diff(found["experience"]) != 0
    return step[:-1][changes], step[1:][changes]


def _legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    texts = [shorten(label, 30) for label in labels]
    columns = legend_columns(texts, figure.get_size_inches()[0])
    legend = figure.legend(handles, [str(k) for k in range(len(texts))], loc="outside lower center", ncols=columns)
    for place, text in zip(legend.get_texts(), texts):
        place.set_text(text)


# -- words -------------------------------------------------------------------------------------------------------------


def grid(found: Json) -> Grid:
    """One row per player: its part of forgetting, of minus BWT and of learning, drift and updates, effect of a tick."""
    kinds = ("shares",) if found["exact"] else (ALONE, BUT_ONE)
    words = {"shares": "", ALONE: ", alone", BUT_ONE: ", lost without"}
    asked = {"forgot": "forgetting", "backward": "minus BWT", "learned": "learning"}
    ticks = found["mean"].get("ticks") or {}
    head = ["level", *(f"{word}{words[k]}" for word in asked.values() for k in kinds), "drift", "updates"]
    head += ["a tick: earlier", "a tick: present"] if ticks else []
    rows = [
        (
            Cell(_name(found, p), head=True),
            *(_cell(found, ("average", what, k, p)) for what in asked for k in kinds),
            _cell(found, ("average", "drift", p), 2),
            _cell(found, ("average", "updates", p), 1),
            *((_cell(found, ("ticks", p, k)) for k in ("earlier", "current")) if ticks else ()),
        )
        for p in found["players"]
    ]
    blank_cells = [Cell("")] * (len(head) - 1 - len(asked) * len(kinds))
    for title, name in (("all together", "total"), *((("interaction", "interaction"),) if not found["exact"] else ())):
        cells = [c for what in asked for c in (_cell(found, ("average", what, name)), *[Cell("")] * (len(kinds) - 1))]
        rows.append((Cell(title, head=True), *cells, *blank_cells))
    return Grid(tuple(head), tuple(rows), _judged(found, bool(ticks)))


def _judged(found: Json, ticks: bool) -> str:
    """What the numbers of the table are of."""
    seeds = len(found["seeds"])
    spread = f" ± 95 percent interval over {seeds} seeds" if seeds > 1 else " of one seed, hence no interval"
    apart = f" (around a tick: on {found['ticks_part']} data)" if ticks and found["ticks_part"] != found["part"] else ""
    return f"Judged on {found['part']} data{apart}: means over experiences{spread}."


def _name(found: Json, player: str) -> str:
    period = found["levels"].get(player)
    return player if period is None else f"{player}, every {every(period, 'step')}"


def _cell(found: Json, path: Sequence[str], digits: int = 3) -> Cell:
    mean, half = (_at(found[k], path) for k in ("mean", "ci95"))
    if digits == 3 or mean is None:
        return Cell(plus_minus(mean, half, found["lower_is_better"]), mean)
    return Cell(f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half else ""), mean)


def _at(values: Any, path: Sequence[str]) -> float | None:
    for name in path:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def notes(found: Json) -> list[str]:
    """What a reader must know before believing the figures."""
    said = [
        f"Hybrids of the weights kept after each experience (view {found['view']}), judged on {found['part']} data. "
        "Forgetting is counted from each experience's best moment to the end, minus BWT from just after it was learned."
    ]
    if found["exact"]:
        said.append(
            "Shares are exact Shapley values: what rolling a level back restores (or carrying it forward gains), "
            "averaged over all orders of doing so. They sum to the dot. A negative share: the level's change helped."
        )
    else:
        said.append(
            f"{len(found['levels'])} levels are too many for exact shares: each is changed alone, and all but it are. "
            "These do not add up; what is missing is the interaction."
        )
    said += [
        f"{level} learns at tokens, within each sequence anew: its initial state counts for {' and '.join(homes)}."
        for level, homes in found["token_levels"].items()
    ]
    if found["mean"].get("ticks"):
        said.append(
            f"Around ticks: {found['ticks_part']} data, the first seed in the figure. The two evaluations frame one "
            "optimizer step, in which faster levels learn as well."
        )
    else:
        said.append("evaluate.anytime_ticks=true records the score around each tick of a level slower than every step.")
    return said


def table(found: Json) -> Table:
    """The same for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = grid(found)
    out = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, caption=made.remark, caption_justify="left")
    for k, title in enumerate(made.head):
        out.add_column(title.replace(", ", "\n").replace(": ", ":\n"), justify="right" if k else "left")
    for row in made.rows:
        out.add_row(*(Text(c.text if c.head else c.text.replace(" ± ", "\n±")) for c in row))
    return out
