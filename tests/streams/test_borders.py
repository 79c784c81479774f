"""Parts and borders: disjoint, complete, in the stated shares, and fixed by the seed."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nested.streams.boundaries import blurred, rearranged, shuffled
from nested.streams.parts import divide, share_of
from nested.streams.stream import Examples, Source

shares = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**40)


def source_of(labels: list[int], **official) -> Source:
    return Source("s", torch.zeros(len(labels), 1), torch.tensor(labels), **official)


def laid_out(sizes: list[int]) -> list[Examples]:
    """Experience k of its own task k, over rows that follow each other."""
    base, parts, start = torch.zeros(sum(sizes), 1), [], 0
    for k, n in enumerate(sizes):
        rows = torch.arange(start, start + n)
        parts.append(Examples(base, rows, rows + 1000, torch.full((n,), k)))
        start += n
    return parts


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), shares, shares, seeds)
def test_parts_are_disjoint_complete_and_stratified(labels, validation, test, seed):
    source = source_of(labels)
    parts = divide(source, source.y, validation, test, seed)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    for label in set(labels):
        n = labels.count(label)
        train, held, judged = (sum(labels[r] == label for r in part.tolist()) for part in parts)
        assert train >= 1
        assert judged == (0 if n == 1 else min(max(1, round(test * n)), n - 1))
        assert held == (0 if n - judged == 1 else min(max(1, round(validation * (n - judged))), n - judged - 1))


@pytest.mark.parametrize("share, n, found", [(0.2, 10, 2), (0.1, 3, 1), (0.9, 2, 1), (0.5, 1, 0), (0.99, 10, 9)])
def test_shares_written_out(share, n, found):
    assert share_of(share, n) == found


@given(st.lists(st.integers(0, 2), min_size=12, max_size=40), seeds)
def test_official_parts_are_used_as_they_are(labels, seed):
    source = source_of(labels, test_index=torch.tensor([1, 3]), validation_index=torch.tensor([0]))
    train, validation, test = divide(source, source.y, 0.5, 0.5, seed)
    assert (validation.tolist(), test.tolist()) == ([0], [1, 3])
    assert train.tolist() == [2, *range(4, len(labels))]


def test_parts_depend_on_the_seed_and_on_nothing_drawn_before():
    source = source_of([0, 1] * 50)
    torch.manual_seed(1)
    first = divide(source, source.y, 0.1, 0.2, 5)
    torch.rand(3)
    again, other = divide(source, source.y, 0.1, 0.2, 5), divide(source, source.y, 0.1, 0.2, 6)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first.test, other.test)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), shares, seeds)
def test_blurred_moves_the_stated_number_over_each_border(sizes, blur, seed):
    parts = laid_out(sizes)
    found = blurred(parts, blur, seed)
    assert [len(p) for p in found] == sizes
    assert sorted(torch.cat([p.index for p in found]).tolist()) == list(range(sum(sizes)))
    crossing = [round(blur / 2 * min(a, b)) for a, b in pairwise(sizes)]
    for k, part in enumerate(found):
        assert torch.equal(part.targets, part.index + 1000)  # targets and tasks travel with their rows
        tasks = part.task.tolist()
        assert tasks.count(k - 1) == (crossing[k - 1] if k else 0)
        assert tasks.count(k + 1) == (crossing[k] if k + 1 < len(sizes) else 0)
        assert set(tasks) <= {k - 1, k, k + 1}


def test_the_share_of_an_inner_experience_is_the_stated_one():
    found = blurred(laid_out([100, 100, 100, 100]), 0.3, seed=0)
    assert [int((p.task != k).sum()) for k, p in enumerate(found)] == [15, 30, 30, 15]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), seeds)
def test_without_boundary_every_sample_occurs_once_in_pieces_of_the_old_sizes(sizes, seed):
    found = shuffled(laid_out(sizes), seed)
    assert [len(p) for p in found] == sizes
    assert sorted(torch.cat([p.index for p in found]).tolist()) == list(range(sum(sizes)))


def test_without_boundary_tasks_are_mixed_evenly():
    found = shuffled(laid_out([300, 300, 300]), seed=0)
    counts = torch.stack([torch.bincount(p.task, minlength=3) for p in found])
    assert (counts - 100).abs().max() < 40  # 5 standard deviations


def test_hard_borders_change_nothing():
    parts = laid_out([3, 4])
    assert rearranged(parts, "hard", 0.5, 0) is parts
