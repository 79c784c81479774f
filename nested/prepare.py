"""What a run is made of: checked, built from a config and a seed, and rehearsed before anything is trained."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch

from nested.config import Config, build
from nested.errors import UserError
from nested.learner import Learner
from nested.levels import assign_tokens, check_ticks, from_config, token_levels
from nested.microscope.snapshots import check_room
from nested.model_context import model_context
from nested.optim.leveled import leveled
from nested.plan import Plan
from nested.signature import locate, takes
from nested.streams.stream import Examples, Stream


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
    check_periods(config, learner)
    check_room(config, learner)
    for examples in _of_each_shape(learner.stream):
        _rehearse(learner, examples)
    return learner.stream


def check_periods(config: Config, learner: Learner) -> None:
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
        if learner.stream.language:
            learner.nll(x, y)  # which checks its own shape
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
