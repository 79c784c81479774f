"""Tables, figures and pages, made from run directories."""

from nested.report.comparison import Comparison
from nested.report.document import page
from nested.report.files import matrix_csv, matrix_png, write_matrix_files
from nested.report.reading import load
from nested.report.records import Run, Seed
from nested.report.tables import table

__all__ = ["Comparison", "Run", "Seed", "load", "matrix_csv", "matrix_png", "page", "table", "write_matrix_files"]
