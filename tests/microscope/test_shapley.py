"""Shapley shares equal the mean over all orders of joining, and what is computed by hand."""

import itertools

import numpy as np
import pytest

from nested.microscope.shapley import ends, every_set, rollbacks, shapley


def worths(rule, players: int, members=every_set) -> np.ndarray:
    """The worth of each set, as a rule over the set of players."""
    return np.array([float(rule({int(p) for p in np.flatnonzero(row)})) for row in members(players)])


@pytest.mark.parametrize("players", [1, 2, 3, 5])
def test_shares_are_the_mean_contribution_over_all_orders(players: int) -> None:
    values = np.random.default_rng(players).normal(size=2**players)
    sums = np.zeros(players)
    orders = list(itertools.permutations(range(players)))
    for order in orders:
        inside = 0
        for player in order:
            sums[player] += values[inside | 1 << player] - values[inside]
            inside |= 1 << player
    shares = shapley(values)
    np.testing.assert_allclose(shares, sums / len(orders), atol=1e-12)
    np.testing.assert_allclose(shares.sum(), values[-1] - values[0], atol=1e-12)


def test_by_hand() -> None:
    assert shapley(np.array([0.0, 1.0])).tolist() == [1.0]
    assert shapley(worths(lambda s: {0, 1} <= s, 3)).tolist() == [0.5, 0.5, 0.0]  # both are needed, the third never
    majority = worths(lambda s: 0 in s and (1 in s or 2 in s), 3)
    np.testing.assert_allclose(shapley(majority), [2 / 3, 1 / 6, 1 / 6], atol=1e-15)


def test_shares_of_counts_are_exact() -> None:
    values = np.random.default_rng(0).integers(0, 10_000, size=2**5).astype(float)
    assert (shapley(values) * 120 == np.round(shapley(values) * 120)).all()


def test_another_number_of_worths_is_refused() -> None:
    with pytest.raises(ValueError, match="3 worths"):
        shapley(np.zeros(3))


def test_rollbacks_by_hand() -> None:
    found = rollbacks(worths(lambda s: 6 * (len(s) == 4) + (0 in s), 4, ends))
    assert found.single.tolist() == [1, 0, 0, 0]
    assert found.all_but_one.tolist() == [7, 6, 6, 6]
    assert found.interaction == 6


def test_no_player_has_no_share() -> None:
    assert shapley(np.array([3.0])).shape == (0,)
    assert rollbacks(np.array([3.0, 3.0])).interaction == 0
