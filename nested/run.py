"""The story of one run, top to bottom: Config -> Result. Command line, tuner, tests and notebooks all call it."""

from __future__ import annotations

import dataclasses
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nested import result as conclusion
from nested import rundir
from nested.config import Config, amend, build, flatten, from_dict
from nested.environment import difference, environment
from nested.errors import Diverged, Interrupted, Pruned, UserError
from nested.learner import Learner
from nested.levels import assign_tokens, check_ticks, from_config, token_levels
from nested.loop import Display, Loop, Stopped
from nested.metrics import METRICS
from nested.microscope.snapshots import check_room
from nested.optim.leveled import leveled
from nested.plan import Plan, judged
from nested.result import Result
from nested.rundir import SeedDir
from nested.settings import Evaluate
from nested.signature import locate, takes
from nested.streams.stream import Examples, Stream

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
    with _threads(config.trainer.threads):
        first = rehearse(config) if path is None else None
        made = path or rundir.create(
            config.runs, config.choices.get("stream", "stream"), rundir.as_stored(config.to_dict())
        )
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
    with _threads(config.trainer.threads), rundir.locked(path):
        _seeds(config, result, silent, after_row=after_row)
        result.average()
    if result.status == "interrupted":
        raise Interrupted(result.run_id, result.problems)
    return result


def check(config: Config) -> None:
    """Whatever can be refused before the data is read. Raises UserError."""
    t = config.trainer
    if t.devices > 1:
        text = "more than one device is refused until a test covers it; start one run per device"
        raise UserError(text, key="trainer.devices", seen=t.devices, allowed=1)
    if t.accelerator == "gpu" and not torch.cuda.is_available():
        text = "no CUDA device is visible here; use trainer.accelerator=cpu"
        raise UserError(text, key="trainer.accelerator", seen="gpu", allowed=["cpu"])
    if not config.evaluate.parts:
        raise UserError(
            "test or validation, or both, must be evaluated",
            key="evaluate.parts",
            seen=[],
            allowed=["test", "validation"],
        )
    reads = takes(locate(config.model["_target_"], "model._target_"), "token_levels")
    for name, level in config.level_configs().items():
        if level.chunk_tokens is not None and not reads:
            text = f"{config.model['_target_']} has no level on the token clock; give period_steps"
            raise UserError(text, key=f"levels.{name}.chunk_tokens", seen=level.chunk_tokens)


def rehearse(config: Config) -> Stream:
    """Build the first seed and read one batch, so that nothing wrong leaves an empty run behind. Raises UserError."""
    learner = prepare(config, config.seed_list()[0])
    _check_ticks(config, learner)
    check_room(config, learner)
    for examples in _of_each_shape(learner.stream):
        _rehearse(learner, examples)
    return learner.stream


def _check_ticks(config: Config, learner: Learner) -> None:
    check_ticks(learner.optimizer.levels, Plan(learner, config.trainer).total_steps, config.trainer.allow_idle)


def _of_each_shape(stream: Stream) -> list[Examples]:
    """The first part of every length of sequence: those of other experiences, and those that only judge, may differ."""
    found: dict[tuple[int, ...], Examples] = {}
    for part in (part for e in stream.experiences for part in (e.train, e.validation, e.test)):
        found.setdefault(tuple(part.base.shape[1:]), part)
    return list(found.values())


def _rehearse(learner: Learner, examples: Examples) -> None:
    """Read one small batch. Raises UserError for outputs of another shape than the stream's targets need."""
    x, y, _ = learner.fetch(examples, torch.arange(min(2, len(examples))))
    learner.model.eval()
    with torch.no_grad():
        out = learner.model(x)
    positions = y.shape[1:] if learner.stream.per_position else ()
    wanted = (len(x), *positions, learner.stream.n_outputs)
    seen = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
    if seen != wanted:
        form = "(batch, T, n_outputs)" if positions else "(batch, n_outputs)"
        text = f"its output for {tuple(x.shape)} is {seen}; {form} = {wanted} is needed"
        raise UserError(text, key="model._target_", seen=seen, allowed=wanted)


def prepare(config: Config, seed: int, stream: Stream | None = None) -> Learner:
    """Seed everything, then build stream, model, levels and method. Raises UserError."""
    t = config.trainer
    device = torch.device("cuda" if t.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    built: Stream = stream or _prefix(build(config.stream, "stream", seed=seed, root=config.data.root), config.prefix)
    torch.manual_seed(seed)  # after the stream: equal initial weights whatever it drew
    _check_reads_tokens(config, built)
    known = ("sample_shape", "n_outputs", "vocabulary", "per_position")  # what a model may ask of the stream, by name
    levels = from_config(config.level_configs())
    reading = tuple(token_levels(levels))
    given = {name: getattr(built, name) for name in known}
    model = build(config.model, "model", token_levels=reading, **given)
    model.to(device, torch.float64 if t.precision == "64-true" else None)
    if reading:
        assign_tokens(reading, model)  # whatever is wrong with them is said before anything is trained
    method = build(config.method, "method", seed=seed)
    optimizer = leveled(levels, model, config.optim, t.clip_norm, t.at_border, config.schedule)
    return Learner(model, built, optimizer, method, config.head.mask, t.precision, device, reading)


def _prefix(stream: Stream, experiences: int | None) -> Stream:
    """The stream's first experiences, its outputs unchanged. Raises UserError for more than it has."""
    n = len(stream.experiences)
    if experiences is not None and experiences > n:
        raise UserError(f"{stream.name} has {n} experiences", key="prefix", seen=experiences, allowed=n)
    return replace(stream, experiences=stream.experiences[:experiences])


def _check_reads_tokens(config: Config, stream: Stream) -> None:
    """Raise UserError for a model of float samples on a stream of tokens."""
    target = config.model["_target_"]
    if stream.vocabulary is None or takes(locate(target, "model._target_"), "vocabulary"):
        return
    from nested.catalog import taking

    able = taking("model", "vocabulary")
    text = f"{target} takes no `vocabulary`, and the samples of {stream.name} are tokens; models that do: "
    raise UserError(text + (", ".join(able) or "none yet"), key="model._target_", seen=target, allowed=able)


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
    _check_ticks(config, learner)
    directory = SeedDir.open(path, rundir.as_stored(replace(config, seed=seed, seeds=None).to_dict()))
    loop = Loop(learner, config, directory, seed)
    if after_row:
        loop.after_row = lambda row: after_row(seed, row, conclusion.so_far(loop))
    for sentence in [*_environment(directory), *loop.restore()]:
        say(sentence)
    _same_data(directory, learner.stream)
    _describe(directory, config, result.run_id, seed, learner.stream)
    first = learner.step
    status, problem = _trained(loop, config, seed)
    if loop.snapshots:
        say(f"seed {seed}: {loop.snapshots.said()}")
    alone = None
    if status == "done" and config.evaluate.gain:
        status, alone, problem = _alone(config, seed, path, learner.stream, say)
    summary = conclusion.summarise(config, seed, loop, result.run_id, status, alone)
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


def _trained(loop: Loop, config: Config, seed: int) -> tuple[str, str | None]:
    """Run the loop to its end: (status, what went wrong)."""
    try:
        with _stoppable(loop), _display(config, seed, loop) as loop.display:
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
        one = dataclasses.replace(stream, experiences=(experience,))
        result = Result(f"alone-{experience.index}", path)
        status = one_seed(quiet, seed, path / "alone" / f"exp-{experience.index}", result, say, one)
        if status == "interrupted":
            return status, None, None
        if status == "diverged":
            return "done", None, f"no gain: alone, {experience.name} diverged: {result.problems[0]}"
        scores.append(result.runs[0]["matrix"][0][0])
    return "done", scores, None


FREE = ("checkpoint.", "tracking.", "trainer.progress", "runs")  # what a resumed run may do otherwise


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
    changed = {k: v for k, v in config_difference(recorded, asked).items() if not k.startswith(FREE)}
    if changed:
        shown = "; ".join(f"{k}: recorded {a!r}, now {b!r}" for k, (a, b) in changed.items())
        text = f"its config differs: {shown}. Resume without these, or start a new run"
        raise UserError(text, key="resume", seen=list(changed))
    return run(replace(asked, runs=str(path.parent)), path, say)


def config_difference(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> the two values, where they differ."""
    one, two = (flatten(rundir.as_stored(c.to_dict())) for c in (a, b))
    paths = sorted(k for k in {*one, *two} if not k.startswith("choices."))
    return {k: (one.get(k), two.get(k)) for k in paths if one.get(k) != two.get(k)}


def _environment(directory: SeedDir) -> list[str]:
    """Record the environment; on a resumed run, sentences about what has changed since."""
    here = environment()
    file = directory.path / "environment.json"
    if not file.exists():
        rundir.write_json(file, here)
        return []
    changed = difference(rundir.read_json(file), here)
    directory.event("resume", changed=changed)
    return [
        f"resumed with another {k}: {a} before, {b} now; bitwise equality is not promised"
        for k, (a, b) in changed.items()
    ]


def _same_data(directory: SeedDir, stream: Stream) -> None:
    """Raise UserError when the run that is continued was begun on other data."""
    seen = {e["digest"] for e in directory.events() if e["event"] == "dataset"} - {stream.digest}
    if seen:
        text = f"the data are not those it was begun with: digest {seen.pop()} then, {stream.digest} now; restore them"
        raise UserError(text, key="resume", seen=stream.digest)


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """Torch's threads as asked for; afterwards as they were."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(wanted or before)
        yield
    finally:
        torch.set_num_threads(before)


def _describe(directory: SeedDir, config: Config, run_id: str, seed: int, stream: Stream) -> None:
    """The events that come before any training: who, with what, on which data."""
    directory.event("start", run_id=run_id, seed=seed, label=config.name())
    directory.event("params", values=flatten(rundir.as_stored(replace(config, seed=seed, seeds=None).to_dict())))
    info = rundir.read_json(directory.path / "environment.json")
    git = {k: str(v) for k, v in info["git"].items() if v is not None}
    about = {**config.choices, "scenario": stream.scenario, "nested": info["packages"]["nested"]}
    directory.event("tags", values={**git, **about})
    for e in stream.experiences:
        directory.event(
            "dataset", experience=e.index, name=f"{stream.name} {e.name}", digest=stream.digest,
            n_train=len(e.train), n_validation=len(e.validation), n_test=len(e.test), classes=list(e.classes),
        )  # fmt: skip


@contextmanager
def _noted(path: Path) -> Iterator[None]:
    """Add to any error where the results lie."""
    try:
        yield
    except Exception as error:
        error.add_note(f"what was recorded is in {path}; to go on: nested resume {path.name}")
        raise


@contextmanager
def _stoppable(loop: Loop) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops at the next step with everything saved; the second one stops at once."""

    def ask(number: int, _: Any) -> None:
        if loop.stop:
            raise KeyboardInterrupt
        loop.stop = True

    def install() -> None:
        for number in numbers:
            signal.signal(number, ask)

    numbers = (signal.SIGINT, signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's business
        return
    before = {number: signal.getsignal(number) for number in numbers}
    install()
    loop.learner.on_start = install  # again: Lightning has put its own in place by then
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _display(config: Config, seed: int, loop: Loop) -> AbstractContextManager[Display]:
    if not config.trainer.progress:
        return nullcontext(Display())
    from nested.progress import Bar

    return Bar(f"seed {seed}" if len(config.seed_list()) > 1 else config.name(), loop.plan.total_steps)
