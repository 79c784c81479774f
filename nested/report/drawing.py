"""How figures look: colours for light and dark, one style whatever the user's matplotlibrc says.

A figure is drawn once, in the light colours; on a page each of them becomes a CSS variable (`inline.py`), so the same
SVG follows the reader's light or dark scheme. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from nested.report.records import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")

# name -> (light, dark)
THEME = {
    "ink": ("#1b1f24", "#e9ebee"),
    "muted": ("#5a626c", "#a3abb6"),
    "rule": ("#d9dee4", "#353b44"),
    "paper": ("#fffffe", "#14171b"),
}
INK, MUTED, RULE, PAPER = (THEME[name][0] for name in ("ink", "muted", "rule", "paper"))
# One colour per run, chosen by search: apart from each other for normal and for colour-blind sight, contrast of at
# least 3 on the paper.
PALETTE = (
    ("#006fa2", "#1b7bff"),
    ("#f15b00", "#e3b53b"),
    ("#01a158", "#20af8c"),
    ("#cc79a7", "#cebee6"),
    ("#5d13cb", "#b547cc"),
    ("#a43d18", "#cf6d21"),
    ("#8b80f9", "#a48bd2"),
    ("#623f62", "#8ffaff"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
RAMP = 24  # colours for things in order
STYLE: Any = {
    "text.usetex": False,
    "text.parse_math": False,  # what a user typed is text: `$x_` is no formula
    "svg.fonttype": "none",
    "svg.hashsalt": "nested",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def drawn(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the style above, whatever the user's matplotlibrc says, and lay out once for all files made of it."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style(), quiet():
            figure = function(*args, **kwargs)
            _lay_out(figure)
            figure.set_layout_engine("none")
            return figure

    return inside


def _lay_out(figure: Figure) -> None:
    """Constrained layout alone: a whole drawing would cost as much again as each file that is made of it."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)


def colour(slot: int) -> str:
    """The colour of the run in a slot; beyond eight they repeat, with other dashes."""
    return PALETTE[slot % len(PALETTE)][0]


def marker(slot: int) -> str:
    """The marker of the run in a slot."""
    return MARKERS[(slot + slot // len(PALETTE)) % len(MARKERS)]


def dashes(slot: int) -> Any:
    """The line style of the run in a slot."""
    return DASHES[slot // len(PALETTE) % len(DASHES)]


@cache
def ramp() -> tuple[tuple[str, str], ...]:
    """(light, dark) colours for things in order, from first to last; none is on the scale of the heat maps."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    plasma = colormaps["plasma"]
    share = [k / (RAMP - 1) for k in range(RAMP)]
    return tuple((to_hex(plasma(0.8 * s)), to_hex(plasma(0.3 + 0.7 * s))) for s in share)


def variables() -> dict[str, tuple[str, str]]:
    """{CSS variable: (light, dark)} of every colour that a figure may hold."""
    runs = {f"run-{k}": pair for k, pair in enumerate(PALETTE)}
    return {**THEME, **runs, **{f"order-{k}": pair for k, pair in enumerate(ramp())}}


def shorten(label: str, length: int = 34) -> str:
    """A label that fits beside a plot: the middle left out, since names of one family differ at their ends."""
    label = visible(label)
    head = (length - 1) * 2 // 3
    return label if len(label) <= length else f"{label[:head]}…{label[head + 1 - length :]}"


def wrapped(label: str, width: int) -> str:
    """A label in at most two lines."""
    lines = textwrap.wrap(visible(label), width) or [""]
    return "\n".join(lines) if len(lines) <= 2 else f"{lines[0]}\n{shorten(' '.join(lines[1:]), width)}"


def style() -> AbstractContextManager[None]:
    """The style, while something is drawn or written."""
    import matplotlib as mpl

    return mpl.rc_context(STYLE)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warning for a glyph that the PNG's font lacks (a page uses the reader's fonts)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def blank(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def legend_height(labels: Sequence[str], width: float) -> float:
    """Inches that a legend takes under a figure `width` inches wide; one label needs none."""
    if len(labels) < 2:
        return 0.0
    texts, columns = _legend_texts(labels, width)
    lines = [text.count("\n") + 1 for text in texts]
    return 0.1 + sum(0.07 + 0.15 * max(lines[k : k + columns]) for k in range(0, len(lines), columns))


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], width: float) -> None:
    """Labels under a figure `width` inches wide, unless there is one alone."""
    if len(labels) < 2:
        return
    texts, columns = _legend_texts(labels, width)
    numbers = [str(k) for k in range(len(labels))]  # set afterwards: matplotlib hides labels that begin with `_`
    drawn = figure.legend(handles, numbers, loc="outside lower center", ncols=columns)
    for place, text in zip(drawn.get_texts(), texts):
        place.set_text(text)


def _legend_texts(labels: Sequence[str], width: float) -> tuple[list[str], int]:
    """Labels in lines of which two fit side by side, and how many columns there are."""
    texts = [wrapped(label, int((width / 2 - 0.45) / 0.067)) for label in labels]
    return texts, legend_columns([line for text in texts for line in text.split("\n")], width)


def legend_columns(labels: Sequence[str], width: float) -> int:
    """How many labels fit side by side under a figure `width` inches wide."""
    longest = max(map(len, labels), default=1)
    return max(1, int(width / (0.067 * longest + 0.45)))
