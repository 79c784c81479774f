"""What the controls depend on and a config does not say: sizes and costs of the candidate, measured once."""

from __future__ import annotations

from dataclasses import replace

import torch

from nested import cost
from nested.computing import computing
from nested.config import Config
from nested.contest.arms import NAIVE, Facts, bare
from nested.learner import Learner
from nested.prepare import prepare
from nested.streams.stream import Examples, Stream

FEW = 32  # examples of an experience, where only the size of what a method keeps is asked for


def measure(candidate: Config) -> tuple[Facts, Stream]:
    """The facts of a candidate on its first seed's stream. Raises UserError as a run does."""
    seed = candidate.seed_list()[0]
    learner = prepare(candidate, seed)
    members = learner.optimizer.members
    flops = _flops(learner, candidate)
    facts = Facts(
        parameters={name: sum(p.numel() for p in params) for name, params in members.items()},
        bytes={name: cost.tensor_bytes([p.detach() for p in params]) for name, params in members.items()},
        sample_bytes=_sample_bytes(learner.stream.train),
        experiences=len(learner.stream.experiences),
        flops=flops,
        bare_flops=flops,
        method_bytes=0 if candidate.method["_target_"] == NAIVE else _kept(candidate, learner.stream),
    )
    if learner.reading:  # levels on the token clock cost more than the network they are in
        ordinary = prepare(bare(candidate, facts), seed, learner.stream)
        facts = replace(facts, bare_flops=_flops(ordinary, candidate))
    return facts, learner.stream


def _flops(learner: Learner, config: Config) -> float:
    """Forward and backward, per example, as the run computes them."""
    rows = torch.arange(min(config.trainer.batch_size, len(learner.examples)))
    with computing(config.trainer):
        return cost.step_flops(learner, learner.fetch(learner.examples, rows)) / len(rows)


def _sample_bytes(examples: Examples) -> int:
    """Of one stored example with its target."""
    first = examples.index[:1]
    x = examples.base[first]
    return cost.tensor_bytes([x, examples.targets[:1]])


def _kept(config: Config, stream: Stream) -> int:
    """Bytes of what the method keeps when every experience is over, on a few examples of each."""
    few = [replace(e, train=e.train.subset(torch.arange(min(FEW, len(e.train))))) for e in stream.experiences]
    learner = prepare(config, config.seed_list()[0], replace(stream, experiences=tuple(few)))
    learner.model.train()
    for i, experience in enumerate(learner.curriculum):
        learner.examples, learner.cursor.experience = experience.train, i
        learner.method.before_experience(learner, experience)
        learner.learn(torch.arange(len(experience.train)))
        learner.method.after_experience(learner, experience)
    return cost.tensor_bytes(learner.method.state_dict())
