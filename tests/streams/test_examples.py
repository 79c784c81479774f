"""Examples: batches, subsets and joins agree with indexing by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nested.streams.stream import Examples, Experience, Stream


class Times:
    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


BASE = torch.arange(60, dtype=torch.float32).reshape(20, 3)
FACTORS = (Times(1), Times(10), Times(100))
rows_in_base = st.lists(st.integers(0, 19), min_size=1, max_size=30)


def make(rows: list[int], tasks: list[int], transforms=FACTORS) -> Examples:
    index = torch.tensor(rows)
    return Examples(BASE, index, index * 2, torch.tensor(tasks), transforms)


def by_hand(examples: Examples, rows: list[int]) -> tuple[list[list[float]], list[int], list[int]]:
    x, y, t = [], [], []
    for r in rows:
        i, task = int(examples.index[r]), int(examples.task[r])
        factor = (1, 10, 100)[task] if examples.transforms else 1
        x.append([float((3 * i + k) * factor) for k in range(3)])
        y.append(2 * i)
        t.append(task)
    return x, y, t


@given(st.data(), rows_in_base, st.booleans(), st.booleans())
def test_batch_is_indexing_by_hand(data, rows, one_task, transformed):
    task = st.just(2) if one_task else st.integers(0, 2)
    tasks = data.draw(st.lists(task, min_size=len(rows), max_size=len(rows)))
    examples = make(rows, tasks, FACTORS if transformed else None)
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=40))
    batch = examples.batch(torch.tensor(wanted, dtype=torch.int64))
    x, y, t = by_hand(examples, wanted)
    assert batch.x.tolist() == x
    assert batch.y.tolist() == y
    assert batch.task.tolist() == t
    assert (batch.x.dtype, batch.y.dtype, batch.task.dtype) == (torch.float32, torch.int64, torch.int64)


@given(st.data(), rows_in_base, rows_in_base)
def test_subset_and_concat_are_indexing_by_hand(data, first, second):
    parts = [make(r, data.draw(st.lists(st.integers(0, 2), min_size=len(r), max_size=len(r)))) for r in (first, second)]
    joint = Examples.concat(parts)
    assert joint.base is BASE
    assert joint.index.tolist() == first + second
    wanted = data.draw(st.lists(st.integers(0, len(joint) - 1), min_size=1))
    chosen = joint.subset(torch.tensor(wanted))
    direct, indirect = joint.batch(torch.tensor(wanted)), chosen.batch(torch.arange(len(chosen)))
    assert all(torch.equal(a, b) for a, b in zip(direct, indirect))


def test_bytes_are_read_as_0_to_1():
    base = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    x = Examples(base, torch.tensor([0]), torch.tensor([0]), torch.tensor([0])).batch(torch.tensor([0, 0])).x
    assert x.dtype is torch.float32
    assert torch.equal(x[1], torch.tensor([0.0, 0.2, 1.0]))


def test_a_base_read_on_demand_is_asked_for_the_rows_of_the_batch_alone():
    class Asked:
        shape = (20, 3)
        seen: tuple[int, ...] = ()

        def __len__(self) -> int:
            return 20

        def __getitem__(self, rows):
            self.seen = tuple(rows.tolist())
            return BASE[rows]

        def digest(self) -> str:
            return ""

    base = Asked()
    examples = Examples(base, torch.tensor([7, 3, 5]), torch.tensor([0, 1, 2]), torch.tensor([1, 1, 1]), FACTORS)
    assert examples.batch(torch.tensor([2, 0])).x.tolist() == [[150, 160, 170], [210, 220, 230]]
    assert base.seen == (5, 7)


def test_only_examples_of_one_base_join():
    ours, other = make([1], [0]), Examples(BASE.clone(), *(torch.tensor([0]) for _ in range(3)), FACTORS)
    with pytest.raises(ValueError, match="one base"):
        Examples.concat([ours, other])
    with pytest.raises(ValueError, match="one base"):
        Examples.concat([ours, make([1], [0], None)])
    with pytest.raises(ValueError, match="nothing"):
        Examples.concat([])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 rows, 1 targets, 2 tasks"):
        Examples(BASE, torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([0, 0]))


def test_a_stream_numbers_its_training_samples():
    sizes = [2, 3, 1]
    made, start = [], 0
    for k, n in enumerate(sizes):
        part = make(list(range(start, start + n)), [k] * n)
        made.append(Experience(k, str(k), k, (k,), part, part, part))
        start += n
    stream = Stream("s", "class", tuple(made), 3, (3,), False, "", torch.ones(3, 3, dtype=torch.bool))
    assert stream.offsets == (0, 2, 5, 6)
    assert stream.train.index.tolist() == [0, 1, 2, 3, 4, 5]
    assert stream.train.task.tolist() == [0, 0, 1, 1, 1, 2]
    assert stream.n_tasks == 3
    assert not stream.lower_is_better
