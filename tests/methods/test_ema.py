"""Weight averages: the recursion by hand, and that nobody who looks at them leaves a trace."""

import pytest
import torch
from small_run import batches, begin, equal, small_learner, train, weights, whole
from torch.testing import assert_close

from nested.errors import UserError
from nested.methods.ema import EMA


def held(learner, view: str) -> list[torch.Tensor]:
    with learner.method.views()[view]:
        return weights(learner)


def test_averages_by_hand():
    learner = small_learner("method=ema", "method.periods=[4,1,2.5]")
    expected = {p: weights(learner) for p in (4, 1, 2.5)}
    begin(learner, 0)
    for rows in batches(learner, 0, n=5):
        train(learner, [rows])
        expected = {
            p: [(1 - 1 / p) * a + (1 / p) * w for a, w in zip(average, weights(learner))]
            for p, average in expected.items()
        }
    for p, average in expected.items():
        assert_close(held(learner, f"ema-{p:g}"), average)
    assert equal(held(learner, "ema-1"), weights(learner))
    assert equal(held(learner, "raw"), weights(learner))
    assert not equal(held(learner, "ema-4"), weights(learner))


def test_views_are_named_in_order_and_the_raw_weights_come_last():
    learner = small_learner("method=ema", "method.periods=[100,10]")
    assert list(learner.method.views()) == ["ema-100", "ema-10", "raw"]
    begin(learner, 0)
    assert list(learner.method.views()) == ["ema-100", "ema-10", "raw"]


def test_before_training_every_view_is_the_initial_model():
    learner = small_learner("method=ema")
    assert equal(held(learner, "ema-100"), weights(learner))
    start = weights(learner)
    begin(learner, 0)
    assert equal(held(learner, "ema-100"), start)


def test_weights_come_back_to_the_last_bit_also_after_an_error():
    learner = small_learner("method=ema", "method.periods=[3]")
    whole(learner, [0])
    before = weights(learner)
    held(learner, "ema-3")
    assert equal(weights(learner), before)

    def fail() -> None:
        with learner.method.views()["ema-3"]:
            assert not equal(weights(learner), before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert equal(weights(learner), before)


def test_training_does_not_see_the_averages():
    ema, naive = small_learner("method=ema"), small_learner("method=naive")
    for learner in (ema, naive):
        for i in range(2):
            begin(learner, i)
            for rows in batches(learner, i):
                train(learner, [rows])
                held(learner, next(iter(learner.method.views())))
    assert equal(weights(ema), weights(naive))


def test_averages_go_on_over_borders():
    learner = small_learner("method=ema", "method.periods=[50]")
    whole(learner, [0])
    kept = held(learner, "ema-50")
    begin(learner, 1)
    assert equal(held(learner, "ema-50"), kept)


def test_loaded_averages_share_no_memory_with_the_state():
    learner = small_learner("method=ema", "method.periods=[2]")
    begin(learner, 0)
    state = learner.method.state_dict()
    kept = [a.clone() for a in state["averages"][0]]
    other = small_learner("method=ema", "method.periods=[2]")
    other.method.load_state_dict(state)
    train(other, batches(other, 0))
    assert equal(state["averages"][0], kept)


def test_bfloat16_weights_have_float32_averages():
    learner = small_learner("method=ema", "method.periods=[1000]")
    learner.model.to(torch.bfloat16)
    begin(learner, 0)
    with torch.no_grad():
        for p in learner.model.parameters():
            p.add_(1.0)
    start = [a.clone() for a in learner.method.averages[0]]
    learner.method.after_step(learner)
    for a, s in zip(learner.method.averages[0], start):
        assert a.dtype is torch.float32
        assert not torch.equal(a, s)  # a step of 1/1000 would be lost in bfloat16


@pytest.mark.parametrize("periods", [(), (10.0, 10.0)])
def test_no_period_and_equal_periods_are_refused(periods):
    with pytest.raises(UserError, match="different periods"):
        EMA(periods)
