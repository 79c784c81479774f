"""Verbs about the program and its stores: what there is to choose, what works here, trackers, claims, disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from nested.cli.options import ConfigDir, Json, Runs
from nested.cli.output import emit, say, show
from nested.errors import UserError


def list_choices(
    group: Annotated[
        str | None,
        typer.Argument(help="stream, model, optim, levels, method, trainer, tracking, recipe, tune, launcher or runs"),
    ] = None,
    config_dir: ConfigDir = None,
    runs: Runs = "runs",
    as_json: Json = False,
) -> None:
    """What can be chosen, group by group; `nested list runs` shows the runs there are."""
    from nested import catalog

    if group == "runs":
        from nested import rundir

        rows = [("runs", p.name, rundir.status(p)) for p in rundir.all_runs(runs)]
        rows += [("contests", p.name, rundir.status(p)) for p in rundir.all_contests(runs)]
    else:
        rows = catalog.listing(group, config_dir)
    if as_json:
        emit(choices=[dict(zip(("group", "name", "what"), row, strict=True)) for row in rows])
        return
    width = max((len(name) for _, name, _ in rows), default=0)
    last = None
    for kind, name, sentence in rows:
        if kind != last:
            show(f"{kind}")
        show(f"  {name:<{width}}  {sentence}")
        last = kind


def show_choice(
    choice: Annotated[
        str | None, typer.Argument(metavar="[group=choice | section]", help="such as model=hope_attention, or trainer")
    ] = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """Explain one choice, or one section of the config: keys, values, types, bounds, source. Without one, list them."""
    from nested import catalog

    group, _, name = (choice or "").partition("=")
    if name:
        shown, plain = catalog.describe(group, name, config_dir)
    else:
        shown, plain = catalog.describe_section(group, config_dir) if group else catalog.all_sections(config_dir)
    emit(**plain) if as_json else show(shown)


def doctor(
    runs: Runs = "runs",
    uri: Annotated[str | None, typer.Option(help="MLflow store to ask")] = None,
    as_json: Json = False,
) -> None:
    """Versions, torch and torchvision, GPU, Triton, disk, stores: what works here and how to mend what does not."""
    from nested.doctor import examine

    findings = examine(runs, uri)
    if as_json:
        emit(findings=[f.__dict__ for f in findings])
    for f in [] if as_json else findings:
        mark = {True: "ok", False: "FAIL", None: "note"}[f.ok]
        show(f"{mark:>5}  {f.name}: {f.detail}" + (f"\n       {f.mend}" if f.mend and not f.ok else ""))
    if any(f.ok is False for f in findings):
        raise typer.Exit(1)


def init(kind: Annotated[str, typer.Argument(help="stream, model, memory, optim or method")], name: str) -> None:
    """Write a new component: one file, one config, one contract test, ready to run."""
    from nested import scaffold

    for path in scaffold.init(kind, name, Path.cwd()):
        show(f"wrote {path}")
    show(f"try: nested run {scaffold.group(kind)}={name} --config-dir conf")


def sync(
    names: Annotated[list[str] | None, typer.Argument(metavar="[RUN...]")] = None,
    runs: Runs = "runs",
    uri: Annotated[str | None, typer.Option(help="another store than the runs'")] = None,
    as_json: Json = False,
) -> None:
    """Send to MLflow what it has not got; without a name, of every run."""
    from dataclasses import asdict, replace

    from nested import rundir, tracking
    from nested.settings import Tracking
    from nested.signature import checked

    paths = [rundir.find(n, runs) for n in names] if names else rundir.all_runs(runs)
    sent = {}
    for path in paths:
        settings = Tracking(**checked(Tracking, rundir.read_config(path)["tracking"], "tracking"))
        patient = max(settings.timeout_seconds, Tracking().timeout_seconds)  # a short wait was for the end of the run
        settings = replace(settings, timeout_seconds=patient)
        if uri:
            settings = replace(settings, enabled=True, uri=uri)
        if not settings.enabled and not names:
            continue  # this run was not to be tracked
        sent[path.name] = tracking.sync(path, settings)
        if not as_json:
            show(f"{path.name}: {sent[path.name]}")
    if as_json:
        emit(**{name: asdict(s) for name, s in sent.items()})


def ui(
    runs: Runs = "runs",
    uri: Annotated[str | None, typer.Option(help="another store")] = None,
    port: int = 5000,
    study: Annotated[str | None, typer.Option(help="a study: optuna-dashboard on its storage instead")] = None,
) -> None:
    """Open MLflow's own pages on the store of these runs, or Optuna's on a study's, on this machine only."""
    if study:
        from nested.tuning import dashboard, search

        found = search.named(study, runs)
        dashboard.check(port)
        say(f"http://127.0.0.1:{port}  (stop with Ctrl-C)")
        dashboard.serve(found, port)
        return
    from nested import tracking
    from nested.settings import Tracking

    if uri is None and not Path(runs).expanduser().is_dir():
        text = f"no directory {Path(runs).expanduser().resolve()}, so there are no runs to look at; name the one that "
        raise UserError(text + "holds them with --runs DIR, or a store with --uri", key="--runs", seen=runs)
    command = tracking.ui_command(Tracking(uri=uri), runs, port)
    say(f"http://127.0.0.1:{port}  (stop with Ctrl-C)")
    os.execvpe(command[0], command, tracking.environment(Tracking().timeout_seconds))


def claims(
    name: Annotated[str | None, typer.Argument()] = None,
    out: Annotated[str, typer.Option(help="results are appended here")] = "claims.jsonl",
    as_json: Json = False,
) -> None:
    """List the claims of this project, or measure one again."""
    from nested import claims as claims_module

    known = claims_module.claims()
    if name is None:
        if as_json:
            emit(claims=[claim.__dict__ for claim in known])
        for claim in [] if as_json else known:
            show(f"{claim.name}: {claim.statement} (expected {claim.expected} +- {claim.tolerance})")
        return
    chosen = [c for c in known if c.name == name]
    if not chosen:
        from nested.errors import unknown

        raise unknown("claim", name, [c.name for c in known], "claims")
    outcome = claims_module.check(chosen[0], Path(out))
    emit(**outcome.__dict__) if as_json else show(str(outcome))
    if not outcome.holds:
        raise typer.Exit(1)


def gc(
    runs: Runs = "runs",
    yes: Annotated[bool, typer.Option("--yes", help="delete; without it, only say what would go")] = False,
    as_json: Json = False,
) -> None:
    """Free disk: checkpoints of finished runs and leftovers; never a result."""
    from nested import housekeeping

    cleaning = housekeeping.clean(runs, apply=yes)
    emit(**cleaning.as_dict()) if as_json else show(cleaning)


def version() -> None:
    """The version of this program."""
    import nested

    show(nested.__version__)
