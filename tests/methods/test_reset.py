"""An optimizer that begins anew with every experience, against one that is made anew."""

import pytest
import torch
from small_run import batches, begin, end, equal, small_learner, train, weights, whole

LEVELS = "levels={fast: {params: rest, period_steps: 1}, slow: {params: ['*.weight'], period_steps: 3}}"


@pytest.mark.parametrize("optim", ["sgd", "adamw", "m3", "delta_momentum"])
def test_every_experience_is_learned_as_by_a_new_optimizer(optim: str):
    """With one level at every step: the second experience from the same weights, by an optimizer just made."""
    learner, fresh = (small_learner(f"method={m}", f"optim={optim}") for m in ("reset", "naive"))
    whole(learner, [0])
    fresh.model.load_state_dict(learner.model.state_dict())
    for one in (learner, fresh):
        begin(one, 1)
        train(one, batches(one, 1))
    assert equal(weights(learner), weights(fresh))


def test_without_it_momentum_would_have_made_a_difference():
    learner, fresh = (small_learner("optim=sgd") for _ in range(2))
    whole(learner, [0])
    fresh.model.load_state_dict(learner.model.state_dict())
    for one in (learner, fresh):
        whole(one, [1])
    assert not equal(weights(learner), weights(fresh))


def test_what_was_gathered_is_dropped_and_clocks_and_rates_stay():
    learner = small_learner(LEVELS, "method=reset", "optim=adamw", "schedule.shape=linear")
    learner.optimizer.start_experience(8, 40)
    begin(learner, 0)
    train(learner, batches(learner, 0))
    end(learner, 0)
    rates = [g["lr"] for g in learner.optimizer.param_groups]
    assert learner.optimizer.count["slow"] == 2
    begin(learner, 1)
    assert (learner.optimizer.tick, learner.optimizer.updates["slow"]) == (8, 2)
    assert (learner.optimizer.count["slow"], learner.optimizer.gathered["slow"]) == (0, [])
    assert [g["lr"] for g in learner.optimizer.param_groups] == rates
    assert not any(rule.state for rule in learner.optimizer.rules.values())
    train(learner, batches(learner, 1)[:1])  # the 9th step: the slow level is due
    assert learner.optimizer.updates["slow"] == 3
    assert all(p.isfinite().all() for p in learner.model.parameters())


def test_the_first_experience_is_naives():
    learner, naive = (small_learner(f"method={m}", "optim=adamw") for m in ("reset", "naive"))
    for one in (learner, naive):
        torch.manual_seed(0)
        whole(one, [0])
    assert equal(weights(learner), weights(naive))
