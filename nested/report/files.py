"""The accuracy matrix of one seed as files beside matrix.json: CSV for spreadsheets, PNG for eyes."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from nested.errors import UserError
from nested.report.reading import read_json, views
from nested.report.records import METRICS, Array, number, visible


def write_matrix_files(seed_dir: Path | str) -> list[Path]:
    """Write matrix.csv and matrix.png from a seed's matrix.json; raises UserError where that is missing or damaged."""
    folder = Path(seed_dir)
    about = read_json(folder / "matrix.json")
    found = views(about, folder / "matrix.json")
    if not found:
        raise UserError(f"no accuracy matrix in {folder / 'matrix.json'}", seen=str(folder))
    matrix = next(iter(found.values()))
    names = [str(e.get("name")) for e in about["experiences"]]
    title = f"{about.get('stream')}, {about.get('scenario')} scenario"
    (folder / "matrix.csv").write_text(matrix_csv(matrix, names), encoding="utf-8")
    values = about.get("metrics") or {}
    at_once = all(number(values.get(m)) is None for m in METRICS if m in ("forgetting", "bwt"))
    alike = len(matrix) > 2 and bool((matrix[1:] == matrix[1]).all())
    measure = str(about.get("measure") or ("loss" if about.get("lower_is_better") else "accuracy"))
    matrix_png(matrix, names, folder / "matrix.png", title, measure, at_once and alike)
    return [folder / "matrix.csv", folder / "matrix.png"]


def matrix_csv(matrix: Array, names: list[str]) -> str:
    """(n + 1, n) as CSV: a row before training and one after each experience, empty where nothing was measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["after", *(f"{j}: {visible(name)}" for j, name in enumerate(names, 1))])
    for i, row in enumerate(matrix):
        writer.writerow([i or "before", *("" if np.isnan(x) else repr(float(x)) for x in row)])
    return out.getvalue()


def matrix_png(matrix: Array, names: list[str], path: Path, title: str, measure: str, at_once: bool = False) -> Path:
    """The heat map (n + 1, n) as a PNG, accuracies on a scale from 0 to 1; of any other measure less is better."""
    from nested.report.heatmap import heat_map
    from nested.report.inline import save_png

    lower = measure != "accuracy"
    known = matrix[1:][~np.isnan(matrix[1:])]
    limits = (float(known.min()), float(known.max())) if lower and len(known) else (0.0, 1.0)
    return save_png(heat_map(matrix, names, limits, title, measure, lower, at_once), path)
