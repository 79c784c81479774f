"""A comparison: runs gathered into configurations, the baseline of each stream, and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nested.report import pairs, sheets, tables
from nested.report.document import page
from nested.report.groups import Group, Member, grouped
from nested.report.pooling import pooled
from nested.report.records import Run, visible
from nested.report.tables import Grid, stacked

if TYPE_CHECKING:
    from rich.table import Table

ROWS = 40  # of a table in the terminal


@dataclass(frozen=True)
class Comparison:
    """Configurations in groups by stream, each with its baseline."""

    runs: list[Run]
    groups: list[Group]
    baselines: list[Member]
    named: str | None

    @classmethod
    def of(cls, runs: Sequence[Run], baseline: str | None = None) -> Comparison:
        """Gather run directories. Raises UserError for a baseline that is not among them."""
        gathered = pooled(runs)
        groups = grouped(gathered)
        return cls(gathered, groups, pairs.baselines(groups, baseline), baseline)

    def page(self, out: Path, notes: Sequence[str] = ()) -> Path:
        """Write the page, with `notes` at its head."""
        return page(self.runs, out, self.named, notes)

    def tables(self) -> list[Table]:
        """For the terminal: all configurations, and each against its stream's baseline."""
        compared = zip(self.groups, self.baselines)
        found = [_printed(grid, f"against “{b.label}”", ROWS) for g, b in compared if (grid := pairs.table(g, b))]
        return [tables.table(self.runs, ROWS), *found]

    def sheet(self, kind: str) -> str:
        """The table as "csv" or "latex"."""
        return sheets.csv_table(self.groups, self.baselines) if kind == "csv" else sheets.latex_table(self.groups)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return sheets.as_dict(self.groups, self.baselines)


def _printed(grid: Grid, title: str, most: int) -> Table:
    """Any table for the terminal, cut after `most` rows."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, title=Text(visible(title)), title_justify="left")
    for k, name in enumerate(grid.head):
        out.add_column(name.replace(" ", "\n"), justify="right" if k else "left", no_wrap=k > 0, overflow="fold")
    for row in grid.rows[:most]:
        out.add_row(*(Text(visible(c.text) if c.head else stacked(c.text)) for c in row))
    left = len(grid.rows) - most
    out.caption = Text(f"{grid.remark}\nand {left:,} more: on the page" if left > 0 else grid.remark)
    out.caption_justify = "left"
    return out
