"""How verbs speak: to the user on standard error, results on standard output, one JSON object last for programs."""

from __future__ import annotations

import json
import sys
from typing import Any


def say(text: Any) -> None:
    """To the user, beside the results: standard error."""
    from rich.console import Console

    Console(stderr=True, emoji=False).print(text, markup=False, highlight=False, soft_wrap=True)


def show(value: Any) -> None:
    """A result, on standard output."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    Console(width=width, emoji=False).print(
        value, markup=not isinstance(value, str), highlight=False, soft_wrap=isinstance(value, str)
    )


def emit(**values: Any) -> None:
    """The one JSON object with which a verb ends its standard output."""
    print(json.dumps(values, default=str), flush=True)
