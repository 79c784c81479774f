"""A learner on a real, small stream, and its training without the loop around it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from nested.config import compose
from nested.learner import Learner
from nested.run import prepare


def small_learner(*overrides: str, seed: int = 0) -> Learner:
    """Split digits with a network of 650 parameters and SGD, unless `overrides` says otherwise."""
    quick = ["stream=split_digits", "model.hidden=[]", "optim=sgd", "trainer.progress=false", "tracking.enabled=false"]
    chosen = {o.split("=")[0] for o in overrides}
    quick = [q for q in quick if q.split("=")[0] not in chosen and not (q.startswith("model.") and "model" in chosen)]
    return prepare(compose([*quick, *overrides]), seed)


def begin(learner: Learner, experience: int) -> None:
    learner.cursor.experience, learner.cursor.phase = experience, "fit"
    learner.examples = learner.curriculum[experience].train
    learner.method.before_experience(learner, learner.curriculum[experience])


def train(learner: Learner, batches: Iterable[Tensor]) -> None:
    for rows in batches:
        learner.learn(rows)


def end(learner: Learner, experience: int) -> None:
    learner.method.after_experience(learner, learner.curriculum[experience])


def batches(learner: Learner, experience: int, n: int = 8, size: int = 16) -> list[Tensor]:
    """The first n batches of one fixed order."""
    generator = torch.Generator().manual_seed(experience)
    order = torch.randperm(len(learner.curriculum[experience].train), generator=generator)
    return list(order.split(size))[:n]


def whole(learner: Learner, experiences: Iterable[int]) -> None:
    """Train on some batches of each of these experiences, with all that belongs to it."""
    for i in experiences:
        begin(learner, i)
        train(learner, batches(learner, i))
        end(learner, i)


def weights(learner: Learner) -> list[Tensor]:
    return [p.detach().clone() for p in learner.model.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))
