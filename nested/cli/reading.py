"""Verbs that read what was trained: tables and pages, the microscope, exports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nested.cli.options import ConfigDir, ExportName, Json, Names, Out, RunName, Runs
from nested.cli.output import emit, say, show
from nested.settings import Accelerator


def report(names: Names, runs: Runs = "runs", out: Out = None, as_json: Json = False) -> None:
    """Table and page of one run or of many, or of a study."""
    from nested import rundir

    path = rundir.find(names[0], runs)
    if len(names) == 1 and (path / "study.json").is_file():
        study_page(path, out, as_json)
        return
    _pages(names, runs, out, as_json)


def _pages(names: list[str], runs: str, out: str | None, as_json: bool) -> None:
    from nested import report, rundir
    from nested.compare import home
    from nested.report.rendering import writing

    paths = [rundir.find(n, runs) for n in names]
    loaded = [report.load(p) for p in paths]
    target = (paths[0] if len(paths) == 1 else home(paths)) / "report.html"
    target = Path(out).expanduser() if out else target
    with writing(target):
        page = report.page(loaded, target)
    if as_json:
        emit(page=str(page), runs=[p.name for p in paths])
        return
    show(report.table(loaded))
    show(f"page: {page}")


def study_page(path: Path, out: str | None, as_json: bool) -> None:
    """Write the page of a study, and say how it stands."""
    from nested.report.rendering import writing
    from nested.tuning import page as pages
    from nested.tuning import search
    from nested.tuning.study import Study

    study = Study(path)
    target = Path(out).expanduser() if out else path / "report.html"
    with writing(target):
        page = pages.write(study, target)
    if as_json:
        emit(page=str(page), **search.found(study).as_json())
        return
    show("\n".join([*search.show(study), f"page: {page}"]))


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


def evaluate(
    name: ExportName,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[stream=choice] [stream.key=value]", help="by default as it was run")
    ] = None,
    runs: Runs = "runs",
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """Judge an exported model on a stream, its own or another one that fits."""
    from nested import exported
    from nested.evaluation import evaluate as judge

    found = judge(exported.find(name, runs), overrides or [], config_dir)
    emit(**found.as_dict()) if as_json else show(found)


def generate(
    name: ExportName,
    prompt: Annotated[str | None, typer.Option(help="text to go on from")] = None,
    file: Annotated[str | None, typer.Option(help="file to read first, before the prompt")] = None,
    tokens: Annotated[int, typer.Option(min=0, help="how many to write")] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest")] = 1.0,
    top_p: Annotated[float, typer.Option(help="draw from the likeliest tokens that hold this share")] = 1.0,
    samples: Annotated[int, typer.Option(min=1, help="continuations, each learning for itself")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="of the draws")] = 0,
    frozen: Annotated[bool, typer.Option("--frozen", help="learn nothing while reading and writing")] = False,
    shift_norm: Annotated[
        float | None, typer.Option(help="how far reading may move the weights, a norm; the same for a state throughout")
    ] = None,
    state_in: Annotated[str | None, typer.Option(help="state to go on from")] = None,
    state_out: Annotated[str | None, typer.Option(help="file to keep the state in afterwards")] = None,
    keep: Annotated[int, typer.Option(min=0, help="last updates that --undo can undo in --state-out")] = 0,
    undo: Annotated[
        int, typer.Option(min=0, help="last updates of --state-in to undo first; later text is unread")
    ] = 0,
    accelerator: Annotated[
        Accelerator | None,
        typer.Option(help="auto: a GPU where there is one; by default as it was run"),
    ] = None,
    runs: Runs = "runs",
    as_json: Json = False,
) -> None:
    """Read a text with an exported language model, which learns as it reads, and write on."""
    from nested import exported
    from nested.errors import UserError
    from nested.generation import Asked, Writer, target, text_of

    if undo and not state_in:
        raise UserError("there is nothing to undo; give the state with --state-in", key="undo", seen=undo)
    if keep and not state_out:
        text = "what is kept is written with the state; name its file with --state-out, or leave --keep out"
        raise UserError(text, key="keep", seen=keep, allowed=0)
    state_file = target(state_out) if state_out else None
    asked = Asked(tokens, temperature, top_p, samples, seed, frozen, keep, shift_norm, undo, accelerator)
    text = text_of(file, prompt)
    writer = Writer(exported.find(name, runs), asked)
    if state_in:
        writer.restore(Path(state_in).expanduser())
    writer.read(text, say)
    written = [""] * samples
    for pieces in writer.write():
        written = [text + piece for text, piece in zip(written, pieces)]
        if samples == 1 and not as_json:
            print(pieces[0], end="", flush=True)
    if state_file:
        writer.save(state_file)
    if as_json:
        emit(texts=written, state=state_out, **writer.about())
        return
    show("\n" if samples == 1 else "\n\n".join(f"-- {i}\n{text}" for i, text in enumerate(written)))
    about = writer.about()
    least, most = (f"{norm(about['shift_norm']):.3g}" for norm in (min, max))
    moved = most if least == most else f"{least} to {most}"
    say(f"{about['tokens_read']} tokens read, {about['updates']} updates; weights moved by {moved}")
