"""What a bounded memory keeps: the right number, of the right classes, each sample with the same probability."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nested.methods.sample_memory import ClassBalanced, Reservoir

Labels = st.lists(st.lists(st.integers(0, 5), max_size=40), min_size=1, max_size=6)


def offer(memory, experiences: list[list[int]], seed: int = 0):
    """Offer samples 0, 1, 2, ... with these labels, one experience after another; the memory."""
    generator, first = torch.Generator().manual_seed(seed), 0
    for labels in experiences:
        memory.offer(torch.arange(first, first + len(labels)), torch.tensor(labels, dtype=torch.int64), generator)
        first += len(labels)
    return memory


@pytest.mark.parametrize("kind", [Reservoir, ClassBalanced])
@given(capacity=st.integers(1, 30), experiences=Labels)
def test_keeps_as_many_different_samples_as_it_can(kind, capacity, experiences):
    kept = offer(kind(capacity), experiences).kept()
    total = sum(map(len, experiences))
    assert kept.dtype == torch.int64
    assert len(kept) == len(set(kept.tolist())) == min(capacity, total)
    assert all(0 <= i < total for i in kept.tolist())


def test_reservoir_keeps_every_sample_with_the_same_probability():
    """60 samples in three uneven experiences, 12 places, 3000 seeds: each kept 600 times, give or take 5 deviations."""
    counts = Counter()
    for seed in range(3000):
        counts.update(offer(Reservoir(12), [[0] * 5, [0] * 40, [0] * 15], seed).kept().tolist())
    deviation = (3000 * 0.2 * 0.8) ** 0.5
    assert all(abs(counts[i] - 600) < 5 * deviation for i in range(60))


@given(capacity=st.integers(1, 30), experiences=Labels)
def test_classes_are_as_equal_as_what_was_offered_allows(capacity, experiences):
    """A class has at most one sample fewer than the largest, unless all of its samples are there."""
    labels = [label for labels in experiences for label in labels]
    kept = Counter(labels[i] for i in offer(ClassBalanced(capacity), experiences).kept().tolist())
    offered, most = Counter(labels), max(kept.values(), default=0)
    assert all(kept[c] >= most - 1 or kept[c] == offered[c] for c in offered)


def test_class_balanced_by_hand():
    memory = offer(ClassBalanced(6), [[0] * 10 + [1] * 10])
    assert Counter("01"[i >= 10] for i in memory.kept().tolist()) == {"0": 3, "1": 3}
    memory = offer(ClassBalanced(6), [[0] * 10 + [1] * 10, [2] * 10])
    assert Counter(i // 10 for i in memory.kept().tolist()) == {0: 2, 1: 2, 2: 2}
    labels = [0] * 10 + [1] + [2] * 10
    memory = offer(ClassBalanced(6), [labels[:10], labels[10:11], labels[11:]])
    kept = Counter(labels[i] for i in memory.kept().tolist())
    assert kept[1] == 1  # its only sample
    assert sorted(kept.values()) == [1, 2, 3]


def test_class_balanced_keeps_every_sample_of_a_class_with_the_same_probability():
    counts = Counter()
    for seed in range(3000):
        counts.update(offer(ClassBalanced(8), [[0] * 20, [1] * 20], seed).kept().tolist())
    deviation = (3000 * 0.2 * 0.8) ** 0.5
    assert all(abs(counts[i] - 600) < 5 * deviation for i in range(40))


@pytest.mark.parametrize("kind", [Reservoir, ClassBalanced])
def test_continues_from_its_state(kind):
    generator = torch.Generator().manual_seed(0)
    first, second = kind(7), kind(7)
    first.offer(torch.arange(30), torch.arange(30) % 3, generator)
    second.load_state_dict(first.state_dict())
    random = generator.get_state()
    first.offer(torch.arange(30, 90), torch.arange(60) % 4, generator)
    again = torch.Generator()
    again.set_state(random)
    second.offer(torch.arange(30, 90), torch.arange(60) % 4, again)
    assert torch.equal(first.kept(), second.kept())
