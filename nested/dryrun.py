"""A run rehearsed: everything is built, each experience makes one training step, and nothing is written.

Of a long step that is differentiated in parts (`trainer.micro_batch`), one part is made.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nested import cost
from nested.computing import computing
from nested.config import Config
from nested.layers.patches import Patches
from nested.layers.tokens import Tokens
from nested.learner import Learner
from nested.levels import Level, assign, assign_tokens, check_ticks, due, ticks
from nested.plan import Plan, judged, order
from nested.prepare import check, check_answers, prepare
from nested.streams.stream import Experience, Stream
from nested.timeline import timeline, token_timelines

if TYPE_CHECKING:
    from rich.console import Group

TIMED = 4  # steps a time is taken from, at least,
LONG = 5.0  # or one that took longer than so many seconds


@dataclass(frozen=True)
class DryRun:
    """What one seed of a run would be made of, and what it would cost."""

    label: str
    seeds: list[int]
    stream: str
    scenario: str
    sample_shape: list[int]
    n_outputs: int
    experiences: list[dict[str, Any]]  # index, name, task, classes, train, validation, test (samples)
    layers: list[dict[str, Any]]  # name, kind, shape (batch first; of the first call), calls, parameters
    levels: list[dict[str, Any]]  # name, clock, period, lr, eta, globs, names, parameters, share, updates
    fits: list[dict[str, Any]]  # name, steps, updates {level: n}: the experiences, or one fit of all of them
    timeline: dict[str, str]  # stream level -> a mark for each of the first steps at which it learns
    tokens: int | None  # of a training sequence; None: no token levels, or the model does not tell
    token_timeline: dict[str, str]  # token level -> the same for the first tokens of every sequence, and its resets
    fast_weights: list[dict[str, Any]]  # level, name, shape (batch first): what learns within a sequence
    steps: int
    flops_per_step: int  # forward and backward, of the task's loss
    flops: int
    evaluated: int  # samples
    step_seconds: float  # median of the steps made
    train_seconds: float
    eval_seconds: float
    alone_seconds: float  # each experience trained alone, for evaluate.gain

    @property
    def seconds(self) -> float:
        """Estimated time of the whole command: all seeds."""
        return (self.train_seconds + self.eval_seconds + self.alone_seconds) * len(self.seeds)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds}

    def __rich__(self) -> Group:
        from nested.dryrun_view import view

        return view(self)


def dry_run(config: Config) -> DryRun:
    """Build all that a run builds and make one step per experience. Raises what the run would: UserError, Diverged."""
    check(config)
    with computing(config.trainer):
        return _dry_run(config)


def _dry_run(config: Config) -> DryRun:
    t, seed = config.trainer, config.seed_list()[0]
    learner = prepare(config, seed)
    stream = learner.stream
    plan = Plan(learner, config.trainer)
    stream_levels = learner.optimizer.levels
    check_ticks(stream_levels, plan.total_steps, t.allow_idle)
    check_answers(config, learner)
    first = plan.curriculum[0].train
    batch = learner.fetch(first, order(seed, plan.curriculum[0].index, 0, len(first))[: t.batch_size])
    flops = cost.step_flops(learner, batch)
    tokens = tokens_of(learner, batch.x)
    step_seconds, sample_seconds, views = _rehearse(config, seed, stream, plan)
    planned = fits(stream_levels, plan, t.at_border == "flush")
    alone, samples = _alone_steps(config, stream), evaluated(config, stream, plan, stream_levels, views)
    return DryRun(
        label=config.name(),
        seeds=config.seed_list(),
        stream=stream.name,
        scenario=stream.scenario,
        sample_shape=list(stream.sample_shape),
        n_outputs=stream.n_outputs,
        experiences=[_described(e) for e in stream.experiences],
        layers=layers(learner.model, learner.parts(batch)[0][0].x),
        levels=_levels(learner, planned),
        fits=planned,
        timeline={level.name: timeline(level, plan.total_steps) for level in stream_levels},
        tokens=tokens,
        token_timeline=token_timelines(learner.reading, tokens),
        fast_weights=fast_weights(learner, len(batch.y)),
        steps=plan.total_steps,
        flops_per_step=flops,
        flops=round(flops / len(batch.y) * plan.examples),
        evaluated=samples,
        step_seconds=step_seconds,
        train_seconds=step_seconds * plan.total_steps,
        eval_seconds=sample_seconds * samples,
        alone_seconds=step_seconds * alone
        + sample_seconds * views * (2 * _held(stream, judged(config.evaluate.parts)) if alone else 0),
    )


def _described(e: Experience) -> dict[str, Any]:
    sizes = {part: len(getattr(e, part)) for part in ("train", "validation", "test")}
    return {"index": e.index, "name": e.name, "task": e.task, "classes": list(e.classes), **sizes}


def _rehearse(config: Config, seed: int, stream: Stream, plan: Plan) -> tuple[float, float, int]:
    """One step and one evaluation per experience, on a batch of each: (seconds a step, seconds a sample, views)."""
    thin = replace(stream, experiences=tuple(_thin(e, config, seed) for e in stream.experiences))
    learner = prepare(config, seed, thin)
    learner.model.train()
    seconds = []
    for i, (whole, experience) in enumerate(zip(plan.curriculum, learner.curriculum)):
        learner.examples, learner.cursor.experience = experience.train, i
        learner.optimizer.start_experience(plan.steps_of(whole), plan.total_steps)
        learner.method.before_experience(learner, experience)
        for _ in range(TIMED if len(plan.curriculum) < TIMED else 1):
            seconds.append(_step_seconds(learner, config.trainer.batch_size))
            if seconds[-1] > LONG:
                break
        learner.optimizer.end_experience()
        learner.method.after_experience(learner, experience)
    views = learner.method.views()
    begin, samples = time.perf_counter(), 0
    with next(iter(views.values())):
        for experience in thin.experiences:
            learner.judge(experience.test, config.trainer.eval_batch_size)
            samples += len(experience.test)
    return statistics.median(seconds[1:] or seconds), (time.perf_counter() - begin) / max(1, samples), len(views)


def _thin(e: Experience, config: Config, seed: int) -> Experience:
    """The experience with no more than the first batch of each part."""
    rows = order(seed, e.index, 0, len(e.train))[: config.trainer.batch_size]
    n = config.trainer.eval_batch_size
    parts = {part: getattr(e, part) for part in ("validation", "test")}
    judged = {part: held.subset(torch.arange(min(n, len(held)))) for part, held in parts.items()}
    return replace(e, train=e.train.subset(rows), **judged)


def _step_seconds(learner: Learner, batch_size: int) -> float:
    """Seconds of one step. Where it is made in parts and would be long, one part stands for all of them."""
    size = min(batch_size, len(learner.examples))
    if learner.micro_batch is not None and learner.micro_batch < size:
        whole = size / learner.micro_batch * _step(learner, learner.micro_batch)
        if whole > LONG:
            return whole
    return _step(learner, size)


def _step(learner: Learner, examples: int) -> float:
    begin = time.perf_counter()
    learner.learn(torch.arange(examples))
    return time.perf_counter() - begin


@torch.no_grad()
def layers(model: nn.Module, x: Tensor) -> list[dict[str, Any]]:
    """Each module that is called and has parameters or no parts of its own, with the shape of its output for x (B, *S).

    Where a model reads in chunks its modules are called once for each: the shape is that of the first call. Of an
    output with a state beside it, it is the output's. Parameters of a module that is never called (its weights are used
    by another) count for the nearest one around it.
    """
    shapes: dict[str, list[int] | None] = {}
    calls: Counter[str] = Counter()

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            shapes.setdefault(name, list(first.shape) if isinstance(first, Tensor) else None)
            calls[name] += 1

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    training = model.training
    try:
        model.eval()(x)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    owned: Counter[str] = Counter()
    for name, p in model.named_parameters():
        owned[next(above for above in _above(name) if above in shapes)] += p.numel()
    around = {above for name in shapes if name for above in _above(name)}
    return [
        {
            "name": name,
            "kind": type(module).__name__,
            "shape": shapes[name],
            "calls": calls[name],
            "parameters": owned[name],
        }
        for name, module in model.named_modules()
        if name in shapes and (owned[name] or name not in around)
    ]


def _above(name: str) -> list[str]:
    """`a.b.c` -> `a.b`, `a`, and the model itself."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, -1, -1)]


def tokens_of(learner: Learner, x: Tensor) -> int | None:
    """Tokens or patches that a model with token levels makes of samples x (B, *S), or None where it does not tell."""
    if not learner.reading:
        return None
    if learner.stream.vocabulary is not None:
        return x.shape[1]
    entry = getattr(learner.model, "entry", None)
    return entry.pieces(x).shape[1] if isinstance(entry, Tokens | Patches) else None


def fast_weights(learner: Learner, batch: int) -> list[dict[str, Any]]:
    """What `inner.initial_state` makes for so many sequences."""
    if not learner.reading:
        return []
    sizes = {name: list(p.shape) for name, p in learner.model.named_parameters()}
    members = assign_tokens(learner.reading, learner.model)
    return [
        {"level": level, "name": name, "shape": [batch, *sizes[name]]}
        for level, names in members.items()
        for name in names
    ]


def fits(levels: list[Level], plan: Plan, flush: bool) -> list[dict[str, Any]]:
    """Steps and updates per level of each fit."""
    steps = [plan.steps_of(e) for e in plan.curriculum]
    ends = list(accumulate(steps))
    return [
        {
            "name": e.name,
            "steps": n,
            "updates": {level.name: updates(level, end - n, end, flush) for level in levels},
        }
        for e, n, end in zip(plan.curriculum, steps, ends)
    ]


def updates(level: Level, first: int, last: int, flush: bool) -> int:
    """How often a level learns in steps first < t <= last, of which the last ends an experience."""
    return ticks(level, first, last) + (flush and last > first and not due(level, last))


def _levels(learner: Learner, planned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    table, names = cost.levels_table(learner), assign(learner.optimizer.levels, learner.model)
    names |= assign_tokens(learner.reading, learner.model) if learner.reading else {}
    total = sum(row["parameters"] for row in table if row["clock"] == "stream")
    return [
        {
            **row,
            "share": row["parameters"] / total,
            "globs": level.params if level.params == "rest" else list(level.params),
            "names": names[level.name],
            "updates": sum(fit["updates"][level.name] for fit in planned) if level.clock == "stream" else None,
        }
        for row, level in zip(table, (*learner.optimizer.levels, *learner.reading), strict=True)
    ]


def evaluated(config: Config, stream: Stream, plan: Plan, levels: list[Level], views: int) -> int:
    """Samples that the run evaluates: every part in every row for each set of weights, and the anytime matrix."""
    options, steps = config.evaluate, plan.total_steps
    rows = (len(plan.curriculum) + 1) * views * sum(_held(stream, part) for part in options.parts)
    moments = steps // options.anytime_steps if options.anytime_steps else 0
    if options.anytime_ticks:
        moments += 2 * sum(ticks(level, 0, steps) for level in levels if level.period > 1)
    return rows + moments * _held(stream, judged(options.parts))


def _held(stream: Stream, part: str) -> int:
    return sum(len(getattr(e, part)) for e in stream.experiences)


def _alone_steps(config: Config, stream: Stream) -> int:
    if not config.evaluate.gain:
        return 0
    t = config.trainer
    return sum(t.epochs * math.ceil(len(e.train) / t.batch_size) for e in stream.experiences)
