"""Levels that learn in the first experience alone: their weights stay to the last bit, all others go on as ever."""

import pytest
import torch
from small_run import begin, small_learner, train, whole
from torch import Tensor

from nested.errors import UserError
from nested.learner import Learner

LEVELS = "levels={fast: {params: rest, period_steps: 1}, slow: {params: ['*.weight'], period_steps: 3}}"
TOKENS = ["model=hope", "model.width=8", "model.hidden=16", "model.heads=2", "model.patch=2", "levels=tokens"]


def named(learner: Learner) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in learner.model.named_parameters()}


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_a_frozen_level_stays_where_the_first_experience_left_it(optim: str):
    """Momentum and what was gathered over the border move it neither; the first experience is naive's."""
    learner = small_learner(LEVELS, "method=frozen", "method.levels=[slow]", f"optim={optim}")
    naive = small_learner(LEVELS, f"optim={optim}")
    for one in (learner, naive):
        whole(one, [0])
    after, same = named(learner), named(naive)
    assert all(torch.equal(after[n], same[n]) for n in after)
    assert learner.optimizer.count["slow"] == 2  # of 8 steps, since the 6th
    whole(learner, [1, 2])
    later = named(learner)
    assert torch.equal(later["head.weight"], after["head.weight"])
    assert not torch.equal(later["head.bias"], after["head.bias"])
    assert learner.optimizer.updates["slow"] == 8  # clocks go on: 24 steps


def test_without_names_everything_stays():
    learner = small_learner(LEVELS, "method=frozen")
    whole(learner, [0])
    before = named(learner)
    whole(learner, [1])
    assert all(torch.equal(before[n], p) for n, p in named(learner).items())


def test_of_a_level_on_the_token_clock_the_initial_state_stays():
    learner = small_learner(*TOKENS, "method=frozen", "method.levels=[reading]")
    begin(learner, 0)
    begin(learner, 1)
    before = named(learner)
    train(learner, [torch.arange(8)])
    changed = {n for n, p in named(learner).items() if not torch.equal(p, before[n])}
    assert changed
    assert not [n for n in changed if ".continuum.0." in n]
    assert [n for n in changed if ".continuum.1." in n]


def test_an_unknown_level_is_refused_with_those_there_are():
    with pytest.raises(
        UserError, match=r"unknown level 'slwo' \(did you mean 'slow'\?\); allowed: fast, slow"
    ) as error:
        small_learner(LEVELS, "method=frozen", "method.levels=[slwo]")
    assert error.value.key == "method.levels"
