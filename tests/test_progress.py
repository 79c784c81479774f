"""The line after each experience says what is judged, and of sequences also what is right of them."""

import io
from typing import Any

from rich.console import Console

from nested.progress import Bar

SEQUENCES = {"experience/test/mean": 0.0, "experience/test/positions/mean": 0.25}


def said(row: int, values: Any) -> str:
    console = Console(file=io.StringIO(), width=40)
    Bar("mine", 10, console).row(row, values)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_scores_of_samples_and_the_loss_they_were_learned_with():
    values = {"experience/test/mean": 0.5, "experience/test/seen": 0.75, "train/loss": 1.23456}
    assert said(1, values) == "mine · after experience 1: test mean 0.500, over those seen 0.750; training loss 1.23\n"


def test_sequences_are_judged_by_exact_match_with_positions_beside():
    values = {**SEQUENCES, "experience/test/seen": 0.0, "experience/test/positions/seen": 0.5, "train/loss": 2.0}
    assert said(2, values) == (
        "mine · after experience 2: test exact match 0.000, over those seen 0.000; "
        "positions right 0.250, over those seen 0.500; training loss 2\n"
    )


def test_the_first_line_says_what_exact_match_is_and_no_loss():
    assert said(0, {**SEQUENCES, "train/loss": None}) == (
        "mine · before training: test exact match 0.000; positions right 0.250; "
        "exact match is every judged position of a sequence right\n"
    )


def test_validation_data_are_named():
    assert said(0, {"experience/validation/mean": 0.1}) == "mine · before training: validation mean 0.100\n"
