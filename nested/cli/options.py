"""Arguments and options that several verbs have."""

from __future__ import annotations

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[group=choice] [key=value]", help="what differs from the defaults")
]
ConfigDir = Annotated[
    str | None, typer.Option("--config-dir", help="a directory of your own choices, laid out like conf/")
]
Json = Annotated[bool, typer.Option("--json", help="end with one JSON object on standard output")]
Runs = Annotated[str, typer.Option("--runs", help="directory of run directories")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="an id, a path, or the beginning of an id")]
ExportName = Annotated[
    str, typer.Argument(metavar="EXPORT|RUN", help="the folder that `nested export` wrote, or the run it is of")
]

Names = Annotated[list[str], typer.Argument(metavar="RUN...", help="ids, paths, or beginnings of ids")]
Out = Annotated[str | None, typer.Option("--out", help="file of the page")]
