"""The story of one run, top to bottom: Config -> Result. Command line, tuner, tests and notebooks all call it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from nested import remarks, rundir
from nested import result as conclusion
from nested.computing import computing
from nested.config import Config, amend, from_dict
from nested.continuing import FREE, check_data, config_difference, told
from nested.errors import Diverged, Interrupted, Pruned, UserError
from nested.loop import Display, Loop, Stopped
from nested.metrics import METRICS
from nested.plan import judged
from nested.prepare import check, check_periods, prepare, rehearse
from nested.provenance import describe, record_environment
from nested.result import Result
from nested.rundir import SeedDir
from nested.settings import Evaluate
from nested.stopping import stoppable
from nested.streams.stream import Stream

Say = Callable[[str], None]
AfterRow = Callable[[int, int, dict[str, Any]], None]  # seed, row (1: the first experience), what it came to so far


def silent(_: str) -> None:
    """Say nothing."""


def run(config: Config, path: Path | None = None, say: Say = silent) -> Result:
    """Train and evaluate every seed of `config`, in a new run directory or, to continue, in the one at `path`.

    Raises UserError before anything is trained, Interrupted when the user stops it; a seed that diverges ends in
    `Result.status`.
    """
    from nested import tracking

    check(config)
    rundir.check_writable(config.runs)
    tracking.check(config.tracking, config.runs)
    with computing(config.trainer):
        first = rehearse(config) if path is None else None
        made = path or rundir.create(config.runs, config.word("stream"), rundir.as_stored(config.to_dict()))
        return _run(config, made, say, first)


def _run(config: Config, made: Path, say: Say, first: Stream | None) -> Result:
    """Every seed, then the page; `first` is the first seed's stream where it has been built already."""
    from nested import tracking

    result = Result(made.name, made)
    with rundir.locked(made), _noted(made):
        with tracking.sender(made, config.tracking) as sender:
            _seeds(config, result, say, first)
            conclusion.finish(result, config)
        if sender.problem:
            result.unsent = True
            result.problems.append(sender.problem)
    if result.status == "interrupted":
        raise Interrupted(result.run_id, result.problems)
    return result


def _seeds(
    config: Config, result: Result, say: Say, first: Stream | None = None, after_row: AfterRow | None = None
) -> None:
    """Every seed in the directory of `result`, until one is interrupted or pruned; a trial's, until one diverges."""
    for seed in config.seed_list():
        stream, first = first, None
        status = one_seed(config, seed, result.path / f"seed-{seed}", result, say, stream, after_row)
        result.status = status if status != "done" else result.status
        if status in ("interrupted", "pruned") or (status == "diverged" and after_row):
            break


def run_trial(config: Config, path: Path, after_row: AfterRow) -> Result:
    """Train and evaluate every seed of `config` at `path`, new or to continue, for a tuner: no page, no tracker.

    `after_row` is told after each experience how the seed does so far, and may raise Pruned: `Result.status` is then
    "pruned", and no further seed is begun. Raises UserError, and Interrupted when the user stops it.
    """
    check(config)
    rundir.open_at(path, rundir.as_stored(config.to_dict()))
    result = Result(path.name, path)
    with computing(config.trainer), rundir.locked(path):
        _seeds(config, result, silent, after_row=after_row)
        result.average()
    if result.status == "interrupted":
        raise Interrupted(result.run_id, result.problems)
    return result


def one_seed(
    config: Config,
    seed: int,
    path: Path,
    result: Result,
    say: Say,
    stream: Stream | None = None,
    after_row: AfterRow | None = None,
) -> str:
    """Train one seed from where its directory stands; its summary joins the result. Returns its status."""
    if (path / "summary.json").exists():
        summary = rundir.read_json(path / "summary.json")
        if summary["status"] in ("done", "pruned"):
            result.runs.append(summary)
            return summary["status"]
    learner = prepare(config, seed, stream)
    check_periods(config, learner)
    directory = SeedDir.open(path, rundir.as_stored(replace(config, seed=seed, seeds=None).to_dict()))
    loop = Loop(learner, config, directory, seed)
    if after_row:
        loop.after_row = lambda row: after_row(seed, row, conclusion.so_far(loop))
    for sentence in [*record_environment(directory), *loop.restore()]:
        say(sentence)
    check_data(path, learner.stream, "resume")
    describe(directory, config, result.run_id, seed, learner.stream)
    first = learner.step
    _remark(remarks.before(loop), seed, directory, result, say)
    status, problem = _trained(loop, config, seed)
    if loop.snapshots:
        say(f"seed {seed}: {loop.snapshots.said()}")
    alone = None
    if status == "done" and config.evaluate.gain:
        status, alone, problem = _alone(config, seed, path, learner.stream, say)
    summary = conclusion.summarise(config, seed, loop, result.run_id, status, alone)
    if status == "done":
        _remark(remarks.after(loop, summary), seed, directory, result, say)
    conclusion.write_matrix(loop, alone, summary)
    if after_row is None:
        conclusion.draw_matrix(directory)  # a trial's is drawn by whoever wants to see it
    if problem:
        summary["problem"] = problem
        result.problems.append(f"seed {seed}: {problem}")
    values = {k: summary[k] for k in METRICS if summary[k] is not None}
    directory.event("end", status=status, executed_steps=learner.step - first, values=values)
    directory.write("summary.json", summary)  # last: it says that everything before it is there
    result.runs.append(summary)
    return status


def _remark(found: Iterable[str], seed: int, directory: SeedDir, result: Result, say: Say) -> None:
    """Record what is remarked of a seed; say what has not been said of another one in this command."""
    for sentence in found:
        directory.event("remark", text=sentence)
        if result.remarked is not None and (kind := remarks.kind(sentence)) not in result.remarked:
            result.remarked.add(kind)
            say(f"seed {seed}: {sentence}")


def _trained(loop: Loop, config: Config, seed: int) -> tuple[str, str | None]:
    """Run the loop to its end: (status, what went wrong)."""
    try:
        with stoppable(loop), _display(config, seed, loop) as loop.display:
            loop.run()
    except (Stopped, KeyboardInterrupt):
        return "interrupted", None
    except Pruned:
        return "pruned", None
    except Diverged as error:
        return "diverged", str(error)
    return "done", None


Alone = tuple[str, list[float] | None, str | None]


def _alone(config: Config, seed: int, path: Path, stream: Stream, say: Say) -> Alone:
    """S[j]: the same configuration on experience j alone, each a run of its own below this one.

    Returns the seed's status, the scores, and a problem: where one diverges there is no gain, and the rest stands.
    """
    quiet = replace(
        config,
        evaluate=replace(Evaluate(), parts=[judged(config.evaluate.parts)]),
        trainer=replace(config.trainer, progress=False, allow_idle=True),
    )
    scores = []
    for experience in stream.experiences:
        say(f"seed {seed}: experience {experience.name} alone, for gain")
        one = replace(stream, experiences=(experience,))
        result = Result(f"alone-{experience.index}", path, remarked=None)
        status = one_seed(quiet, seed, path / "alone" / f"exp-{experience.index}", result, say, one)
        if status == "interrupted":
            return status, None, None
        if status == "diverged":
            return "done", None, f"no gain: alone, {experience.name} diverged: {result.problems[0]}"
        scores.append(result.runs[0]["matrix"][0][0])
    return "done", scores, None


def resume(
    path: Path, say: Say = silent, overrides: Iterable[str] = (), config_dir: str | Path | None = None
) -> Result:
    """Continue the run at `path`, with the recorded config.

    Overrides may change what has no influence on the numbers (checkpoints, tracking, progress). Raises UserError with
    the difference for any other, and for a study.
    """
    if (path / "study.json").is_file():
        text = f"{path.name} is a study; the command that made it continues it, as does nested worker {path.name}"
        raise UserError(text, key="resume", seen=path.name)
    recorded = from_dict(rundir.read_config(path))
    asked = amend(recorded, overrides, config_dir)
    changed = config_difference(recorded, asked, FREE)
    if changed:
        text = f"its config differs: {told(changed)}. Resume without these, or start a new run"
        raise UserError(text, key="resume", seen=list(changed))
    return run(replace(asked, runs=str(path.parent)), path, say)


@contextmanager
def _noted(path: Path) -> Iterator[None]:
    """Add to any error where the results lie."""
    try:
        yield
    except Exception as error:
        error.add_note(f"what was recorded is in {path}; to go on: nested resume {path.name}")
        raise


def _display(config: Config, seed: int, loop: Loop) -> AbstractContextManager[Display]:
    if not config.trainer.progress:
        return nullcontext(Display())
    from nested.progress import Bar

    return Bar(f"seed {seed}" if len(config.seed_list()) > 1 else config.name(), loop.plan.total_steps)
