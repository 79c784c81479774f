"""How long optimizers remember, where it is known by a formula."""

import math
from functools import partial

import pytest
import torch
from torch.optim import SGD

from nested.errors import UserError
from nested.optim import AssociativeAdam, DeltaMomentum, PreconditionedMomentum
from nested.optim.horizon import crossing, horizon, influence


@pytest.mark.parametrize("background", ["zero", "noise"])
@pytest.mark.parametrize("beta", [0.5, 0.9, 0.97])
def test_momentum_forgets_after_the_logarithm_of_a_percent(beta, background):
    """beta^n = 0.01: 43.7 for 0.9; a linear optimizer does not care for the other gradients."""
    found = horizon(partial(SGD, lr=0.1, momentum=beta), steps=300, warm_up=20, background=background)
    assert found == pytest.approx(math.log(0.01) / math.log(beta), rel=1e-9)
    assert beta != 0.9 or found == pytest.approx(43.7, abs=0.05)


def test_influence_of_momentum_is_a_power_of_its_decay():
    curve = influence(partial(SGD, lr=0.1, momentum=0.9), steps=30, warm_up=5)
    torch.testing.assert_close(curve, 0.9 ** torch.arange(31, dtype=torch.float64))


def test_gradient_descent_remembers_nothing():
    assert horizon(partial(SGD, lr=0.1), steps=5, warm_up=2) == 1.0


def test_plain_sums_never_forget():
    maker = partial(AssociativeAdam, lr=0.1, accumulate="sums")
    assert horizon(maker, steps=200, warm_up=20) is None


def test_identities_remember_as_momentum_and_a_preconditioner_remembers_almost_as_long():
    plain, diagonal = (
        horizon(partial(PreconditionedMomentum, precondition=p), steps=400, warm_up=300)
        for p in ("identity", "diagonal")
    )
    assert plain == pytest.approx(43.7, abs=0.01)
    assert diagonal is not None
    assert diagonal > 40


def test_delta_momentum_erases_one_direction_in_n_at_every_step():
    """Random unit gradients each erase along themselves: a vector of N values keeps sqrt(1 - 1 / N) more or less."""
    whole = horizon(partial(DeltaMomentum, momentum=0.9, beta=0.0), steps=200, warm_up=20)
    erased = horizon(partial(DeltaMomentum, momentum=0.9, beta=0.9), steps=200, warm_up=20, shape=(3,))
    assert whole == pytest.approx(43.7, abs=0.01)
    assert erased is not None
    assert erased < 0.6 * 43.7


def test_a_later_rise_counts():
    assert crossing(torch.tensor([1.0, 0.001, 0.1, 0.001])) == pytest.approx(2.5)
    assert crossing(torch.tensor([1.0, 0.001, 0.1])) is None
    assert crossing(torch.tensor([1.0, 0.0])) == 1.0


def test_same_seed_same_influence_and_another_seed_another():
    maker = partial(PreconditionedMomentum, feature_map="sign")
    first, again, other = (influence(maker, steps=10, warm_up=10, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("lr", [0.0, math.inf])
def test_an_optimizer_that_does_not_move_or_not_finitely_is_refused(lr):
    with pytest.raises(UserError, match="must move the weights at step 0"):
        horizon(partial(SGD, lr=lr), steps=5, warm_up=2)
