"""The heat map of an accuracy matrix, as a figure.

Shapes: n experiences; a matrix is (n + 1, n), row 0 before training, NaN where nothing was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nested.report.drawing import PAPER, blank, drawn, wrapped
from nested.report.records import Array, visible

CELLS = 12  # up to here numbers are written into the cells
PIXELS = 200  # larger matrices are averaged down to this many rows and columns
Limits = tuple[float, float]


@drawn
def heat_map(
    matrix: Array, columns: Sequence[str], limits: Limits, title: str, measure: str, lower: bool, at_once: bool = False
) -> Any:
    """R as a picture, the row before training on top; `at_once` says that one fit stands for every row."""
    shown = matrix[:2] if at_once else matrix
    n = matrix.shape[1]
    heading = wrapped(title, 36)
    height = 0.98 + 0.17 * len(heading.split("\n")) + (0.3 * len(shown) if n <= CELLS else 2.9)
    figure, axes = blank(3.7, height)
    scale = "viridis_r" if lower else "viridis"
    small, step = _averaged(shown)
    edges = np.arange(small.shape[1] + 1) * step + 0.5, np.arange(small.shape[0] + 1) * step - 0.5
    if n <= CELLS:
        mesh = axes.pcolormesh(*edges, np.ma.masked_invalid(small), cmap=scale, vmin=limits[0], vmax=limits[1])
        _write_cells(axes, small, mesh, at_once)
        axes.axhline(0.5, color=PAPER, linewidth=4)
    else:
        extent = (edges[0][0], edges[0][-1], edges[1][-1], edges[1][0])
        mesh = axes.imshow(
            small, cmap=scale, vmin=limits[0], vmax=limits[1], aspect="auto", extent=extent, interpolation="nearest"
        )
    axes.set_ylim(edges[1][-1], edges[1][0])
    _name_cells(axes, len(shown), n, columns, at_once)
    axes.set_title(heading)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.06, pad=0.03, aspect=30 if n > CELLS else 18)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label(measure)
    return figure


def _averaged(matrix: Array) -> tuple[Array, int]:
    """Means over k x k blocks, k the least that leaves at most PIXELS columns; and k."""
    k = -(-matrix.shape[1] // PIXELS)
    if k == 1:
        return matrix, 1
    rows, columns = (np.arange(0, size, k) for size in matrix.shape)
    known = ~np.isnan(matrix)
    total = np.add.reduceat(np.add.reduceat(np.where(known, matrix, 0), rows, 0), columns, 1)
    count = np.add.reduceat(np.add.reduceat(known.astype(float), rows, 0), columns, 1)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0), k


def _write_cells(axes: Any, matrix: Array, mesh: Any, at_once: bool) -> None:
    rows, n = matrix.shape
    size = 8.5 if n <= 6 else 7.5 if n <= 9 else 6.2
    for i in range(rows):
        for j in range(n):
            if np.isnan(matrix[i, j]):
                continue
            red, green, blue, _ = mesh.cmap(mesh.norm(matrix[i, j]))
            bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            text = axes.text(j + 1, i, score(matrix[i, j], 2), ha="center", va="center", fontsize=size)
            text.set_color("#101114" if bright else "#ffffff")
            if i == j + 1 and not at_once:
                text.set_fontweight("bold")


def _name_cells(axes: Any, rows: int, n: int, columns: Sequence[str], at_once: bool) -> None:
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if n <= CELLS:
        named = all(len(name) <= 5 for name in columns)
        axes.set_xticks(range(1, n + 1), [visible(c) for c in columns] if named else [str(j + 1) for j in range(n)])
        after = ["before", "at once"] if at_once else ["before", *(f"after {i}" for i in range(1, rows))]
        axes.set_yticks(range(rows), after)
    else:
        axes.set_ylabel("experiences learned")
    axes.set_xlabel("judged on experience")


def score(value: float, digits: int) -> str:
    """A score in few characters: `.93`, `1.0`, and for losses three figures."""
    if not 0 <= value <= 1:
        return f"{value:#.3g}".rstrip(".")
    text = f"{value:.{digits}f}"
    return text[:3] if text.startswith("1") else text[1:]
