"""Multi-query associative recall."""

import pytest
import torch

from nested.sequences.exact_match import IGNORED
from nested.sequences.recall import associative_recall

KEYS, VALUES = torch.arange(1, 21), torch.arange(30, 45)


def made(n: int, seed: int = 0, **sizes) -> tuple[torch.Tensor, torch.Tensor]:
    return associative_recall(n, torch.Generator().manual_seed(seed), KEYS, VALUES, **sizes)


@pytest.mark.parametrize(("pairs", "length"), [(4, 64), (1, 4), (15, 60), (5, 23)])
def test_each_key_is_asked_for_once_and_answered_by_its_value(pairs, length):
    x, y = made(60, pairs=pairs, length=length)
    assert x.shape == y.shape == (60, length)
    for told, asked in zip(x.tolist(), y.tolist(), strict=True):
        facts = dict(zip(told[0 : 2 * pairs : 2], told[1 : 2 * pairs : 2], strict=True))
        assert len(facts) == len(set(facts.values())) == pairs
        assert set(facts) <= set(KEYS.tolist())
        assert set(facts.values()) <= set(VALUES.tolist())
        questions = {told[i]: asked[i] for i in range(length) if asked[i] != IGNORED}
        assert questions == facts
        assert sum(a != IGNORED for a in asked) == pairs
        assert all(a == IGNORED for a in asked[: 2 * pairs])
        assert all(t == 0 for t, a in zip(told[2 * pairs :], asked[2 * pairs :], strict=True) if a == IGNORED)


def test_near_places_are_asked_at_more_often():
    _, y = made(2000, pairs=2, length=64)
    counts = (y[:, 4::2] != IGNORED).sum(0)
    weights = 1 / torch.arange(1.0, 31) ** 0.99
    assert counts[0] > 8 * counts[-1] > 0
    first = weights[0] / weights.sum()  # the first of two draws, then the second given that it was another
    expected = first + (weights[1:] / weights.sum() * weights[0] / (weights.sum() - weights[1:])).sum()
    assert abs(counts[0] / 2000 - expected) < 0.05


def test_equal_seeds_give_equal_data():
    assert torch.equal(made(9, 1)[0], made(9, 1)[0])
    assert not torch.equal(made(9, 1)[0], made(9, 2)[0])


@pytest.mark.parametrize("sizes", [{"pairs": 16, "length": 200}, {"pairs": 5, "length": 19}, {"pairs": 4, "length": 3}])
def test_pairs_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="pairs do not fit into 20 keys, 15 values"):
        made(1, **sizes)
