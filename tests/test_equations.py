"""docs/equations.md says where each equation of the paper is: its names are checked, and no equation is left out."""

import ast
import re
from pathlib import Path

import pytest

from nested.signature import locate

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "equations.md"
EQUATIONS = 121  # of "Nested Learning", arXiv 2512.24695v1
Row = tuple[str, str, str, str]


def rows() -> list[Row]:
    """equation, function, test, departure of every line of every table."""
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("|") and len(cells) == 4 and cells[0] != "equation" and not set(cells[0]) <= {"-", "|"}:
            found.append(tuple(cells))
    return found


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def numbers(cell: str) -> set[int]:
    """`57`, `48-49`, `70, 71, 73` and words around them."""
    found = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", cell.split("(")[0]):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def functions_in(file: Path) -> set[str]:
    return {n.name for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef)}


def test_there_are_rows():
    assert len(rows()) > 30


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_every_function_can_be_imported(row):
    assert names(row[1]), "name the function in backticks"
    for name in names(row[1]):
        target, _, attribute = name.partition(":")  # module.Class:method
        found = locate(target, "docs/equations.md")
        assert not attribute or hasattr(found, attribute)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_every_test_exists(row):
    assert names(row[2]), "name a test in backticks"
    for name in names(row[2]):
        file, _, test = name.partition("::")
        assert test in functions_in(ROOT / "tests" / file), f"{file} has no {test}"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_every_row_says_what_was_departed_from(row):
    assert len(row[3]) > 3


def test_no_equation_is_left_out():
    text = PAGE.read_text()
    without_code = text.split("## Equations without code of their own")[1]
    told = set().union(*(numbers(row[0]) for row in rows() if row[0][0].isdigit()))
    for line in re.findall(r"^- ([\d, -]+):", without_code, re.M):
        told |= numbers(line)
    assert set(range(1, EQUATIONS + 1)) - told == set()
