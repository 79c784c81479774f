"""What a run is made of: checked, built from a config and a seed, and rehearsed before anything is trained."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nested.causality import first_peek
from nested.computing import check_device, device_of
from nested.config import Config, build, flatten
from nested.errors import UserError
from nested.learner import Learner
from nested.levels import assign_tokens, check_ticks, from_config, token_levels
from nested.microscope.snapshots import check_room
from nested.model_context import model_context
from nested.optim.leveled import leveled
from nested.plan import Plan
from nested.sequences.exact_match import IGNORED
from nested.signature import locate, takes
from nested.streams.stream import Examples, Stream


def check(config: Config) -> None:
    """Whatever can be refused before the data is read. Raises UserError."""
    t = config.trainer
    if t.devices > 1:
        text = "more than one device is refused until a test covers it; start one run per device"
        raise UserError(text, key="trainer.devices", seen=t.devices, allowed=1)
    check_device(t.accelerator, "trainer.accelerator", "trainer.accelerator=")
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
    learner = fitting(config)
    check_answers(config, learner)
    return learner.stream


def fitting(config: Config, stream: Stream | None = None) -> Learner:
    """The first seed, built and not yet asked: its levels learn often enough, its snapshots have room.

    `stream` is that seed's, where it has been built already. Raises UserError.
    """
    learner = prepare(config, config.seed_list()[0], stream)
    check_periods(config, learner)
    check_room(config, learner)
    return learner


def check_answers(config: Config, learner: Learner) -> None:
    """Let the model answer, untrained. Raises UserError for what no run could train or judge.

    That is outputs of another shape than the stream's targets need and, where later inputs give answers away, answers
    that depend on them.
    """
    training = learner.model.training
    learner.model.eval()
    try:
        for examples in _of_each_shape(learner.stream):
            _check_shape(config, learner, examples)
        if learner.stream.causal or learner.stream.language:
            _check_causal(config, learner)
    finally:
        learner.model.train(training)


def check_periods(config: Config, learner: Learner) -> None:
    check_ticks(learner.optimizer.levels, Plan(learner, config.trainer).total_steps, config.trainer.allow_idle)


def _of_each_shape(stream: Stream) -> list[Examples]:
    """The first part of every length of sequence: those of other experiences, and those that only judge, may differ."""
    found: dict[tuple[int, ...], Examples] = {}
    for part in (part for e in stream.experiences for part in (e.train, e.validation, e.test)):
        found.setdefault(tuple(part.base.shape[1:]), part)
    return list(found.values())


def _check_shape(config: Config, learner: Learner, examples: Examples) -> None:
    """Raise UserError for outputs of another shape than the targets of one small batch need.

    That is one sequence of text, whose outputs alone may be gigabytes, or two examples of anything else.
    """
    x, y, _ = learner.fetch(examples, torch.arange(min(1 if learner.stream.language else 2, len(examples))))
    with torch.no_grad():
        out = learner.model(x)
        if learner.stream.language:
            learner.nll(x, y)  # which checks its own shape
    positions = y.shape[1:] if learner.stream.per_position else ()
    n = learner.stream.n_outputs
    wanted = (len(x), *positions, n)
    seen = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if seen == wanted:
        return
    form = "(batch, T, n_outputs)" if positions else "(batch, n_outputs)"
    text = f"the output of {config.model['_target_']} for {tuple(x.shape)} is {seen}; {form} = {wanted} is needed"
    if seen[:-1] == wanted[:-1]:
        text += f": {seen[-1]} outputs for the {n} of {learner.stream.name}, which a model is told as `n_outputs`"
    raise UserError(text, key="model._target_", seen=seen, allowed=wanted)


def _check_causal(config: Config, learner: Learner) -> None:
    """Raise UserError for a model whose answers depend on inputs after them, where these give the answers away."""
    stream, model = learner.stream, learner.model
    x, y, _ = learner.fetch(stream.experiences[0].train, torch.arange(1))
    if stream.language:  # which need not hold all outputs at once; the loss of a token stands where that token does
        text = torch.cat([x, y[:, -1:]], 1)  # (1, T + 1)
        judged = torch.ones(text.shape[1], dtype=torch.bool, device=text.device)
        peek = first_peek(lambda t: F.pad(learner.nll(t[:, :-1], t[:, 1:]), (1, 0)), text, judged, stream.vocabulary)
        peek = peek and peek._replace(position=peek.position - 1)
    else:
        peek = first_peek(model, x, y[0] != IGNORED, stream.vocabulary)
    if peek is None:
        return
    targets = {k.rpartition(".")[0]: v for k, v in flatten(config.model).items() if k.endswith("_target_")}
    whose = " with ".join([targets.pop(""), *([", ".join(targets.values())] if targets else [])])
    text = (
        f"the answer of {whose} at position {peek.position} changed with the inputs from position {peek.changed} on; "
    )
    text += f"{stream.name} asks for what follows from the inputs up to a position, and later ones give it away: mask "
    text += "them, or read token by token"
    key = f"model.{next(iter(targets))}" if len(targets) == 1 else "model._target_"
    raise UserError(text, key=key, seen=peek.position)


def prepare(config: Config, seed: int, stream: Stream | None = None) -> Learner:
    """Seed everything, then build stream, model, levels and method. Raises UserError."""
    t = config.trainer
    device = device_of(t.accelerator)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    built: Stream = stream or _prefix(build(config.stream, "stream", seed=seed, root=config.data.root), config.prefix)
    torch.manual_seed(seed)  # after the stream: equal initial weights whatever it drew
    _check_reads_tokens(config, built)
    levels = from_config(config.level_configs())
    reading = tuple(token_levels(levels))
    model = build(config.model, "model", **model_context(built, levels))
    model.to(device, torch.float64 if t.precision == "64-true" else None)
    if reading:
        assign_tokens(reading, model)  # whatever is wrong with them is said before anything is trained
    method = build(config.method, "method", seed=seed)
    optimizer = leveled(levels, model, config.optim, t.clip_norm, t.at_border, config.schedule)
    return Learner(model, built, optimizer, method, config.head.mask, t.precision, device, reading, t.micro_batch)


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
