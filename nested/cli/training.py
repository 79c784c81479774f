"""Verbs that train: one run, a search, a contest."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nested.cli.options import ConfigDir, Json, Overrides, RunName, Runs
from nested.cli.output import emit, say, show
from nested.cli.reading import study_page
from nested.errors import Diverged

INCOMPLETE_TRACKING = 4


def run(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="build everything, one batch per experience, write nothing")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train on a stream of tasks, one or several seeds, and report what is forgotten."""
    from nested.config import compose

    config = compose(overrides or [], config_dir)
    if dry_run:
        from nested.dryrun import dry_run as build_all

        say("building everything and taking a step of each experience")
        found = build_all(config)
        emit(**found.as_dict()) if as_json else show(found)
        return
    from nested.run import run as run_config

    _conclude(run_config(config, say=say), as_json)


def resume(
    name: RunName, overrides: Overrides = None, runs: Runs = "runs", config_dir: ConfigDir = None, as_json: Json = False
) -> None:
    """Continue a run after a stop; it ends bit for bit as if it had never stopped (on CPU)."""
    from nested import rundir
    from nested.run import resume as resume_run

    path = rundir.find(name, runs)
    _conclude(resume_run(path, say, overrides or [], config_dir), as_json)


def _conclude(result: Any, as_json: bool) -> None:
    """Show a result and leave with its exit code."""
    from nested import report

    if as_json:
        emit(**result.as_json())
    else:
        show(report.table([report.load(result.path)]))
        show(f"{result.path}\npage: {result.path / 'report.html'}")
    for problem in result.problems:
        say(problem)
    if result.status == "diverged":
        raise typer.Exit(Diverged.exit_code)
    raise typer.Exit(INCOMPLETE_TRACKING if result.unsent else 0)


def tune(overrides: Overrides = None, config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """Search values of a config: begin a study, or continue it.

    `nested tune show STUDY` says how one stands, `nested tune best STUDY` what its best is worth on fresh seeds.
    """
    from nested.tuning import search

    words = overrides or []
    if words[:1] == ["show"]:
        study = search.named(*search.place(words[1:]))
        study_page(study.path, None, as_json)
        return
    if words[:1] == ["best"]:
        _tune_best(words[1:], config_dir, as_json)
        return
    found = search.tune(words, config_dir, say)
    emit(**found.as_json()) if as_json else show(f"{found.study.path}\npage: {found.study.path / 'report.html'}")
    raise typer.Exit(INCOMPLETE_TRACKING if found.unsent else 0)


def _tune_best(words: list[str], config_dir: str | None, as_json: bool) -> None:
    from nested.tuning.best import best
    from nested.tuning.worth import table

    found = best(words, config_dir, say)
    if as_json:
        emit(**found.as_json())
        raise typer.Exit(INCOMPLETE_TRACKING if found.unsent else 0)
    for stream in found.streams:
        show(table(stream))
    ids = " ".join(o.run_id for s in found.streams for o in s.outcomes)
    show(
        "\n".join([found.sentence, *found.notes, *(f"wrote {p}" for p in found.recipes), f"try: nested compare {ids}"])
    )
    raise typer.Exit(INCOMPLETE_TRACKING if found.unsent else 0)


def worker(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="a name, a path, or the beginning of a name")],
    runs: Runs = "runs",
    config_dir: ConfigDir = None,
    storage: Annotated[
        str | None, typer.Option(help="the study's storage with its password, which is not recorded")
    ] = None,
    as_json: Json = False,
) -> None:
    """Work on a study, beside others or alone, from anywhere that sees its directory and its storage."""
    from nested.tuning import search

    found = search.join(search.named(name, runs).path, config_dir, say, storage)
    emit(**found.as_json()) if as_json else say(search.verdict(found.study))
    raise typer.Exit(INCOMPLETE_TRACKING if found.unsent else 0)


def contest(overrides: Overrides = None, config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """The fair fight: a candidate against every control, at several rates over ten class orders: who forgets less?

    Beside what composes the candidate: contest.factors=[0.5,1,2] of its rate, contest.name=NAME, workers=2.
    """
    from nested.contest.run import contest as fight

    found = fight(overrides or [], config_dir, say)
    emit(**found.as_json()) if as_json else show("\n".join([*found.sentences, f"page: {found.path / 'report.html'}"]))
