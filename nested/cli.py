"""The command line: one function per verb, which imports what it needs when it is called: --help is instant."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nested.errors import Diverged, NestedError, UserError

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Continual-learning experiments built around nested learning.\n\nnested VERB [group=choice] [key=value]",
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[group=choice] [key=value]", help="what differs from the defaults")
]
ConfigDir = Annotated[
    str | None, typer.Option("--config-dir", help="a directory of your own choices, laid out like conf/")
]
Json = Annotated[bool, typer.Option("--json", help="end with one JSON object on standard output")]
Runs = Annotated[str, typer.Option("--runs", help="directory of run directories")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="an id, a path, or the beginning of an id")]

INCOMPLETE_TRACKING = 4
INTERRUPTED = 130


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


@app.command()
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

        found = build_all(config)
        emit(**found.as_dict()) if as_json else show(found)
        return
    from nested.run import run as run_config

    _conclude(run_config(config, say=say), as_json)


@app.command()
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


@app.command("list")
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


@app.command("show")
def show_choice(
    choice: Annotated[str, typer.Argument(metavar="group=choice", help="for example model=hope_attention")],
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """Explain one choice: keys, values, types, bounds, source."""
    from nested import catalog

    group, _, name = choice.partition("=")
    if not name:
        raise UserError("write group=choice, for example model=hope_attention", key="show", seen=choice)
    shown, plain = catalog.describe(group, name, config_dir)
    emit(**plain) if as_json else show(shown)


@app.command()
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


@app.command()
def init(kind: Annotated[str, typer.Argument(help="stream, model, memory, optim or method")], name: str) -> None:
    """Write a new component: one file, one config, one contract test, ready to run."""
    from nested import scaffold

    for path in scaffold.init(kind, name, Path.cwd()):
        show(f"wrote {path}")
    show(f"try: nested run {scaffold.group(kind)}={name} --config-dir conf")


def _pages(names: list[str], runs: str, out: str | None, as_json: bool) -> None:
    from nested import report, rundir

    paths = [rundir.find(n, runs) for n in names]
    loaded = [report.load(p) for p in paths]
    target = (
        Path(out)
        if out
        else (paths[0] / "report.html" if len(paths) == 1 else paths[0].parent / "compare" / "report.html")
    )
    try:
        page = report.page(loaded, target)
    except OSError as error:
        text = f"cannot write {target}: {error.strerror}; choose another file"
        raise UserError(text, key="--out", seen=str(target)) from None
    if as_json:
        emit(page=str(page), runs=[p.name for p in paths])
        return
    show(report.table(loaded))
    show(f"page: {page}")


Names = Annotated[list[str], typer.Argument(metavar="RUN...", help="ids, paths, or beginnings of ids")]
Out = Annotated[str | None, typer.Option("--out", help="file of the page")]


@app.command()
def report(names: Names, runs: Runs = "runs", out: Out = None, as_json: Json = False) -> None:
    """Table and page of one run or of many, or of a study."""
    from nested import rundir

    path = rundir.find(names[0], runs)
    if len(names) == 1 and (path / "study.json").is_file():
        _study_page(path, out, as_json)
        return
    _pages(names, runs, out, as_json)


def _study_page(path: Path, out: str | None, as_json: bool) -> None:
    from nested.tuning import page as pages
    from nested.tuning import search
    from nested.tuning.study import Study

    study = Study(path)
    page = pages.write(study, Path(out).expanduser() if out else None)
    if as_json:
        emit(page=str(page), **search.found(study).as_json())
        return
    show("\n".join([*search.show(study), f"page: {page}"]))


@app.command()
def microscope(name: RunName, runs: Runs = "runs", as_json: Json = False) -> None:
    """Which level forgot, which one learned, and when: for a run with evaluate.snapshots=true."""
    from nested import report as pages
    from nested import rundir
    from nested.microscope.examine import examine
    from nested.report.microscope import table

    path = rundir.find(name, runs)
    found = examine(path, say)
    page = pages.page([pages.load(path)], path / "report.html")
    if as_json:
        emit(run_id=path.name, page=str(page), **found)
        return
    show(table(found))
    show(f"page: {page}")


@app.command()
def tune(overrides: Overrides = None, config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """Search values of a config: begin a study, or continue it.

    `nested tune show STUDY` says how one stands, `nested tune best STUDY` what its best is worth on fresh seeds.
    """
    from nested.tuning import search

    words = overrides or []
    if words[:1] == ["show"]:
        study = search.named(*search.place(words[1:]))
        _study_page(study.path, None, as_json)
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


@app.command()
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


@app.command()
def contest(overrides: Overrides = None, config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """The fair fight: a candidate against every control, at several rates over ten class orders: who forgets less?

    Beside what composes the candidate: contest.factors=[0.5,1,2] of its rate, contest.name=NAME, workers=2.
    """
    from nested.contest.run import contest as fight

    found = fight(overrides or [], config_dir, say)
    emit(**found.as_json()) if as_json else show("\n".join([*found.sentences, f"page: {found.path / 'report.html'}"]))


@app.command()
def compare(
    words: Annotated[
        list[str],
        typer.Argument(metavar="RUN...|STUDY|RECIPE|FILTER", help="a filter is MLflow's: \"tags.method = 'replay'\""),
    ],
    runs: Runs = "runs",
    baseline: Annotated[
        str | None, typer.Option(help="an id or a label: the others are paired with it; by default the first")
    ] = None,
    csv: Annotated[str | None, typer.Option(help="file to write the table to, with every digit")] = None,
    latex: Annotated[str | None, typer.Option(help="file to write the table to, for a paper")] = None,
    uri: Annotated[str | None, typer.Option(help="MLflow store to search with a filter")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Runs by configuration over seeds: intervals, paired differences, the frontier of learning and forgetting."""
    from nested.compare import compare as compare_runs

    files = [(kind, Path(file).expanduser()) for kind, file in (("csv", csv), ("latex", latex)) if file]
    page = Path(out).expanduser() if out else None
    found = compare_runs(words, runs, page, baseline, uri, files, say)
    if as_json:
        emit(**found.as_json())
        return
    for table in found.tables():
        show(table)
    for what, file in (("page", found.page), *files):
        show(f"{what}: {file}")


@app.command()
def export(
    name: RunName,
    seed: Annotated[int | None, typer.Argument(metavar="[SEED]", help="needed where the run has several")] = None,
    to: Annotated[str | None, typer.Option("--to", help="folder to write; by default export/ beside the seed")] = None,
    runs: Runs = "runs",
    as_json: Json = False,
) -> None:
    """Write the final model of a run as a folder (safetensors, config) that `nested eval` and nested.load read."""
    from nested import rundir
    from nested.export import export as write

    folder = write(rundir.find(name, runs), seed, Path(to).expanduser() if to else None)
    emit(export=str(folder.resolve())) if as_json else show(f"wrote {folder}\ntry: nested eval {folder}")


@app.command("eval")
def evaluate(
    folder: Annotated[str, typer.Argument(metavar="EXPORT", help="what `nested export` wrote")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[stream=choice] [stream.key=value]", help="by default as it was run")
    ] = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """Judge an exported model on a stream, its own or another one that fits."""
    from nested.evaluation import evaluate as judge

    found = judge(folder, overrides or [], config_dir)
    emit(**found.as_dict()) if as_json else show(found)


@app.command()
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


@app.command()
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

    command = tracking.ui_command(Tracking(uri=uri), runs, port)
    say(f"http://127.0.0.1:{port}  (stop with Ctrl-C)")
    os.execvpe(command[0], command, tracking.environment(Tracking().timeout_seconds))


@app.command()
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


@app.command()
def gc(
    runs: Runs = "runs",
    yes: Annotated[bool, typer.Option("--yes", help="delete; without it, only say what would go")] = False,
    as_json: Json = False,
) -> None:
    """Free disk: checkpoints of finished runs and leftovers; never a result."""
    from nested import housekeeping

    cleaning = housekeeping.clean(runs, apply=yes)
    emit(**cleaning.as_dict()) if as_json else show(cleaning)


@app.command()
def version() -> None:
    """The version of this program."""
    import nested

    show(nested.__version__)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every failure is one line and an exit code, never a traceback for a user's mistake."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    sys.path.append(os.getcwd())  # a `_target_` may name a file beside the user's conf/
    sys.exit(guarded(lambda: _verb(arguments), "--json" in arguments))


def _verb(arguments: list[str]) -> Any:
    """Call the verb that is asked for; typer's own way of doing it swallows Ctrl-C."""
    command = typer.main.get_command(app)
    _check_runs(getattr(command, "commands", {}).get(arguments[0]), arguments[1:])
    with command.make_context("nested", list(arguments)) as context:
        return command.invoke(context)


def _check_runs(verb: Any, given: list[str]) -> None:
    """Raise UserError for `runs=DIR` where --runs is an option, and the reverse: a key of the config in `run` alone."""
    option = "runs" in {p.name for p in getattr(verb, "params", [])}
    if verb is None or not (option or verb.name == "run"):
        return
    wrong, right = ("runs=", "--runs ") if option else ("--runs", "runs=")
    for word, following in zip(given, [*given[1:], "DIR"]):
        if word.startswith(wrong):
            text = f"with nested {verb.name} it is written {right}{word.partition('=')[2] or following}"
            raise UserError(text, key=wrong.strip("="), seen=word)


def guarded(act: Callable[[], Any], as_json: bool) -> int:
    """Exit code of `act`: what was raised becomes a line on standard error, and a JSON object if asked for."""
    try:
        code = act()
        return code if isinstance(code, int) else 0
    except typer.Exit as error:
        return error.exit_code
    except NestedError as error:
        fields = {k: getattr(error, k, None) for k in ("key", "seen", "allowed")}
        return _failed(str(error), error.exit_code, as_json, fields)
    except typer.TyperException as error:  # an unknown verb or option, a missing argument
        return _failed(error.format_message(), UserError.exit_code, as_json)
    except (KeyboardInterrupt, typer.Abort) as stop:
        return _failed(str(stop) or "interrupted", INTERRUPTED, as_json)
    except BrokenPipeError:  # whoever read our output has gone: nothing more can be said, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NestedError.exit_code
    except Exception as error:
        traceback.print_exc()
        said = [f"unexpected {type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
        return _failed("; ".join(said), NestedError.exit_code, as_json)


def _failed(message: str, code: int, as_json: bool, fields: Mapping[str, Any] | None = None) -> int:
    line = " ".join(message.split())
    print(f"nested: {line}", file=sys.stderr)
    if as_json:
        emit(**{"error": line, "key": None, "seen": None, "allowed": None, **(fields or {})})
    return code


if __name__ == "__main__":
    main()
