"""Lookahead: the recursion by hand, the degenerate case, and a k that is never reached."""

import pytest
import torch
from small_run import batches, begin, equal, small_learner, train, weights, whole
from torch.testing import assert_close

from nested.config import compose
from nested.errors import UserError
from nested.run import run


def held(learner, view: str) -> list[torch.Tensor]:
    with learner.method.views()[view]:
        return weights(learner)


def test_slow_weights_by_hand():
    """Against plain gradient descent whose weights are set back every three steps; the clock runs on over borders."""
    learner = small_learner("method=lookahead", "method.k=3", "method.alpha=0.3", "optim=sgd")
    other = small_learner("method=naive", "optim=sgd")
    slow, step = weights(other), 0
    for i in range(2):
        begin(learner, i)
        begin(other, i)
        for rows in batches(learner, i, n=4):
            train(learner, [rows])
            train(other, [rows])
            step += 1
            if step % 3 == 0:
                slow = [s + 0.3 * (f - s) for s, f in zip(slow, weights(other))]
                with torch.no_grad():
                    for p, s in zip(other.model.parameters(), slow):
                        p.copy_(s)
            assert_close(held(learner, "slow"), slow)
            assert_close(held(learner, "raw"), weights(other))
    assert step % 3 == 2
    assert not equal(held(learner, "slow"), held(learner, "raw"))


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_alpha_one_is_naive_to_the_last_bit(optim):
    ahead = small_learner("method=lookahead", "method.k=3", "method.alpha=1", f"optim={optim}")
    naive = small_learner("method=naive", f"optim={optim}")
    for learner in (ahead, naive):
        whole(learner, range(2))
    assert equal(weights(ahead), weights(naive))


def test_after_every_kth_step_both_sets_of_weights_are_equal():
    learner = small_learner("method=lookahead", "method.k=2")
    begin(learner, 0)
    for step, rows in enumerate(batches(learner, 0), 1):
        train(learner, [rows])
        assert equal(held(learner, "slow"), held(learner, "raw")) is (step % 2 == 0)


def test_the_model_comes_back_to_the_last_bit_also_after_an_error():
    learner = small_learner("method=lookahead", "method.k=20")
    begin(learner, 0)
    train(learner, batches(learner, 0))
    before, places = weights(learner), [p.data_ptr() for p in learner.model.parameters()]

    def fail() -> None:
        with learner.method.views()["slow"]:
            assert not equal(weights(learner), before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert equal(weights(learner), before)
    assert [p.data_ptr() for p in learner.model.parameters()] == places


def test_loaded_slow_weights_share_no_memory_with_the_state():
    learner = small_learner("method=lookahead", "method.k=2")
    begin(learner, 0)
    state = learner.method.state_dict()
    kept = [t.clone() for t in state["slow"]]
    other = small_learner("method=lookahead", "method.k=2")
    other.method.load_state_dict(state)
    train(other, batches(other, 0))
    assert equal(state["slow"], kept)


def test_a_k_that_the_run_never_reaches_is_refused_with_the_number_of_steps(tmp_path):
    given = ["model.hidden=[]", "trainer.epochs=1", "tracking=off", "trainer.progress=false", f"runs={tmp_path}"]
    with pytest.raises(UserError, match=r"never move in a run of 44 steps; lower it, or train longer") as error:
        run(compose([*given, "method=lookahead", "method.k=1000"]))
    assert error.value.key == "method.k"
