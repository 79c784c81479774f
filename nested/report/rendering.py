"""From a template to a page: one HTML file with our styles and script in it, which no other script may join."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nested
from nested.errors import UserError
from nested.report.drawing import variables
from nested.report.records import visible
from nested.rundir import replace_file

HERE = Path(__file__).parent


def render(template: str, out: Path, **values: Any) -> Path:
    """Write a template of this directory to `out`, replacing it as a whole; what a user typed is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    html = environment.get_template(template).render(
        colours=variables(),
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=nested.__version__,
        safe=Markup,
        **values,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, html.encode())
    return out


@contextmanager
def writing(file: Path, option: str = "--out") -> Iterator[None]:
    """Turn an error of the disk into one line, with the file that a user wanted written."""
    try:
        yield
    except OSError as error:
        text = f"cannot write {file}: {error.strerror}; choose another file"
        raise UserError(text, key=option, seen=str(file)) from None
