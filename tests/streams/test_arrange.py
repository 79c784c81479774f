"""The arrangers: which classes, targets, outputs and rows each experience has, and what is refused."""

import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nested.errors import UserError
from nested.streams.arrange import by_task, permuted, rotated, split
from nested.streams.digits import digits
from nested.streams.stream import Source, Stream
from nested.streams.transforms import Permutation, Rotation, pixel_order

PARTS = ("train", "validation", "test")


def toy(n_classes: int = 6, each: int = 10, **more) -> Source:
    """x tells the row, y cycles through the classes."""
    rows = torch.arange(n_classes * each)
    return Source("toy", rows.float().unsqueeze(1), rows % n_classes, **more)


def images(n: int = 40, side: int = 4) -> Source:
    x = torch.rand(n, 2, side, side, generator=torch.Generator().manual_seed(0))
    return Source("images", x, torch.arange(n) % 4)


def batch_of(examples):
    return examples.batch(torch.arange(len(examples)))


def all_rows(stream: Stream) -> list[int]:
    return sorted(r for e in stream.experiences for p in PARTS for r in getattr(e, p).index.tolist())


def same(a: Stream, b: Stream) -> bool:
    pairs = [(getattr(e, p), getattr(f, p)) for e, f in zip(a.experiences, b.experiences) for p in PARTS]
    return all(torch.equal(getattr(e, n), getattr(f, n)) for e, f in pairs for n in ("index", "targets", "task"))


@pytest.mark.parametrize("scenario", ["class", "domain", "task"])
def test_split_without_shuffle_written_out(scenario):
    stream = split(toy(), n_experiences=3, scenario=scenario, shuffle_classes=False)
    assert [e.classes for e in stream.experiences] == [(0, 1), (2, 3), (4, 5)]
    assert [e.name for e in stream.experiences] == ["0 1", "2 3", "4 5"]
    assert [(e.index, e.task) for e in stream.experiences] == [(0, 0), (1, 1), (2, 2)]
    assert [[len(getattr(e, p)) for p in PARTS] for e in stream.experiences] == [[14, 2, 4]] * 3
    assert all_rows(stream) == list(range(60))
    for k, e in enumerate(stream.experiences):
        for part in PARTS:
            x, y, task = batch_of(getattr(e, part))
            label = x.squeeze(1).long() % 6
            assert set(label.tolist()) == set(e.classes)
            assert torch.equal(y, label - 2 * k if scenario == "domain" else label)
            assert task.tolist() == [k] * len(y)
    assert stream.n_outputs == (2 if scenario == "domain" else 6)
    own = [[c in e.classes for c in range(6)] for e in stream.experiences]
    everything = [[True] * stream.n_outputs] * 3
    assert stream.task_outputs.tolist() == (own if scenario == "task" else everything)
    assert (stream.name, stream.sample_shape, stream.regression) == ("split_toy", (1,), False)


@given(st.integers(0, 2**31), st.sampled_from(["class", "domain", "task"]), st.sampled_from(["hard", "blurry", "none"]))
@settings(max_examples=20)
def test_equal_seeds_are_equal_streams_and_every_training_sample_occurs_once(seed, scenario, boundary):
    torch.rand(1)
    first = split(toy(), n_experiences=3, scenario=scenario, boundary=boundary, seed=seed)
    again = split(toy(), n_experiences=3, scenario=scenario, boundary=boundary, seed=seed)
    assert same(first, again)
    assert first.digest == again.digest
    assert all_rows(first) == list(range(60))
    classes = [e.classes for e in first.experiences]
    assert sorted(c for own in classes for c in own) == list(range(6))
    assert classes == [e.classes for e in split(toy(), n_experiences=3, seed=seed).experiences]


def test_other_seeds_are_other_orders_and_other_parts():
    streams = [split(toy(), n_experiences=3, seed=s) for s in range(6)]
    assert len({tuple(e.classes for e in s.experiences) for s in streams}) > 1
    assert len({s.digest for s in streams}) == 6


def test_the_digest_covers_data_and_split():
    plain, other = toy(), toy()
    other.x[7] += 1
    digest = split(plain, n_experiences=3).digest
    assert split(other, n_experiences=3).digest != digest
    assert split(plain, n_experiences=3, boundary="blurry").digest != digest
    assert split(plain, n_experiences=3, scenario="domain").digest != digest
    assert permuted(plain, seed=1).digest != permuted(plain, seed=2).digest


def test_domain_targets_of_a_shuffled_split_are_ranks_in_the_experience():
    stream = split(toy(), n_experiences=2, scenario="domain", seed=3)
    for e in stream.experiences:
        x, y, _ = batch_of(e.train)
        assert y.tolist() == [e.classes.index(int(v) % 6) for v in x.squeeze(1).tolist()]


def test_samples_from_over_the_border_keep_task_and_target():
    stream = split(toy(each=20), n_experiences=3, scenario="task", boundary="blurry", blur=0.5, seed=0)
    mixed = 0
    for e in stream.experiences:
        x, y, task = batch_of(e.train)
        assert torch.equal(y, x.squeeze(1).long() % 6)
        assert bool(stream.task_outputs[task, y].all())
        mixed += int((task != e.task).sum())
        assert set(batch_of(e.test).task.tolist()) == {e.task}
    assert mixed > 0


def test_repeats_visit_the_sequence_again_with_the_same_data():
    once = split(toy(), n_experiences=3, boundary="blurry", seed=1)
    twice = split(toy(), n_experiences=3, boundary="blurry", seed=1, repeats=2)
    assert [e.index for e in twice.experiences] == [0, 1, 2, 3, 4, 5]
    assert [e.task for e in twice.experiences] == [0, 1, 2, 0, 1, 2]
    assert twice.experiences[4].name == f"{once.experiences[1].name}, visit 2"
    for k, e in enumerate(twice.experiences):
        assert e.train is twice.experiences[k % 3].train
        assert torch.equal(e.train.index, once.experiences[k % 3].train.index)
    assert twice.n_tasks == 3


@pytest.mark.parametrize("n, why", [(4, "do not divide"), (7, "more experiences than classes")])
def test_classes_that_do_not_divide_are_refused_with_what_would(n, why):
    with pytest.raises(UserError, match=why) as refused:
        split(toy(), n_experiences=n)
    assert refused.value.key == "stream.n_experiences"
    assert refused.value.allowed == [1, 2, 3, 6]
    assert "1, 2, 3, 6" in str(refused.value)


@pytest.mark.parametrize("kind", [permuted, rotated])
def test_transformed_tasks_have_no_class_scenario(kind):
    with pytest.raises(UserError, match=r"domain .* or task") as refused:
        kind(images(), scenario="class")
    assert refused.value.key == "stream.scenario"


@pytest.mark.parametrize("scenario", ["domain", "task"])
def test_permuted_tasks_written_out(scenario):
    source = images()
    stream = permuted(source, n_experiences=3, scenario=scenario, seed=5)
    for k, e in enumerate(stream.experiences):
        x, y, task = batch_of(e.train)
        order = torch.arange(16) if k == 0 else pixel_order(5, k, 16)
        plain = source.x[e.train.index]
        assert torch.equal(x.flatten(2), plain.flatten(2)[:, :, order])
        assert torch.equal(x.flatten(2)[:, :, order.argsort()].reshape(plain.shape), plain)  # it can be undone
        assert torch.equal(y, source.y[e.train.index] + (4 * k if scenario == "task" else 0))
        assert task.unique().tolist() == [k]
        assert e.train.index is stream.experiences[0].train.index  # one copy for all tasks
    assert not torch.equal(pixel_order(5, 1, 16), pixel_order(5, 2, 16))
    assert stream.n_outputs == (12 if scenario == "task" else 4)
    heads = [[c // 4 == k or scenario == "domain" for c in range(stream.n_outputs)] for k in range(3)]
    assert stream.task_outputs.tolist() == heads


def test_permuted_tasks_mixed_over_a_border_each_keep_their_own_permutation():
    source = images()
    stream = permuted(source, n_experiences=3, boundary="none", seed=2)
    x, y, task = batch_of(stream.experiences[1].train)
    assert len(task.unique()) == 3
    for i, row in enumerate(stream.experiences[1].train.index.tolist()):
        assert torch.equal(x[i], Permutation(2, int(task[i]))(source.x[row : row + 1])[0])
        assert y[i] == source.y[row]


@given(st.integers(0, 2**40), st.integers(1, 10**6), st.integers(1, 100))
def test_a_permutation_is_one(seed, task, places):
    x = torch.arange(places, dtype=torch.float32).unsqueeze(0)
    assert sorted(Permutation(seed, task)(x)[0].tolist()) == list(range(places))


@pytest.mark.parametrize("shape", [(3, 2, 5, 5), (3, 1, 4, 6)])
def test_quarter_and_half_turns_are_exact(shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(Rotation(180.0)(x), x.rot90(2, (2, 3)))
    assert torch.equal(Rotation(0.0)(x), x)
    if shape[2] == shape[3]:
        torch.testing.assert_close(Rotation(90.0)(x), x.rot90(1, (2, 3)))
        torch.testing.assert_close(Rotation(270.0)(x), x.rot90(3, (2, 3)))


@pytest.mark.parametrize("shape", [(2, 1, 9, 9), (2, 1, 8, 12)])
def test_a_turn_agrees_with_another_library(shape):
    from torchvision.transforms.functional import InterpolationMode, rotate

    x = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    expected = rotate(x, 35.0, InterpolationMode.BILINEAR)
    torch.testing.assert_close(Rotation(35.0)(x), expected, atol=1e-5, rtol=1e-5)


def test_rotated_steps_are_equal():
    source = images()
    stream = rotated(source, n_experiences=3, max_degrees=180.0)
    assert [e.name for e in stream.experiences] == ["0 degrees", "90 degrees", "180 degrees"]
    for k, e in enumerate(stream.experiences):
        torch.testing.assert_close(batch_of(e.test).x, source.x[e.test.index].rot90(k, (2, 3)))
    assert rotated(source, n_experiences=1).experiences[0].name == "0 degrees"
    with pytest.raises(UserError, match="cannot be turned"):
        rotated(toy())


def tasked(labels: list[int], tasks: list[int], **more) -> Source:
    """Ten samples of every (label, task) pair."""
    y, task = torch.tensor(labels).repeat_interleave(10), torch.tensor(tasks).repeat_interleave(10)
    return Source("tasked", torch.arange(len(y)).float().unsqueeze(1), y, task=task, **more)


def test_tasks_with_classes_of_their_own():
    source = tasked([0, 1, 2, 3], [0, 1, 0, 1], task_names=("a", "b"))
    streams = {s: by_task(source, scenario=s) for s in ("class", "domain", "task")}
    for scenario, stream in streams.items():
        assert [e.name for e in stream.experiences] == ["a", "b"]
        assert [e.classes for e in stream.experiences] == [(0, 2), (1, 3)]
        wanted = {"class": {0, 2}, "task": {0, 2}, "domain": {0, 1}}[scenario]
        assert set(stream.experiences[0].train.targets.tolist()) == wanted
        assert all_rows(stream) == list(range(40))
    assert streams["domain"].n_outputs == 2
    assert streams["task"].task_outputs.tolist() == [[True, False, True, False], [False, True, False, True]]


def test_tasks_that_share_labels():
    source = tasked([0, 1, 0, 1, 1], [0, 0, 1, 1, 2])
    domain, task = by_task(source, scenario="domain"), by_task(source, scenario="task")
    assert domain.n_outputs == 2
    assert set(domain.experiences[2].train.targets.tolist()) == {1}
    assert task.n_outputs == 6
    assert [set(e.train.targets.tolist()) for e in task.experiences] == [{0, 1}, {2, 3}, {5}]
    assert task.task_outputs.sum(1).tolist() == [2, 2, 1]
    for e in task.experiences:
        assert bool(task.task_outputs[e.task, e.train.targets].all())


def test_the_first_tasks_are_taken_and_their_classes_counted_anew():
    source = tasked([4, 3, 2, 1, 0, 0], [0, 1, 2, 3, 4, 0])
    stream = by_task(source, n_experiences=2)
    assert stream.n_outputs == 3
    assert [e.classes for e in stream.experiences] == [(0, 2), (1,)]
    assert set(stream.experiences[0].train.targets.tolist()) == {0, 2}
    assert all(source.task[r] in (0, 1) for r in all_rows(stream))
    shuffled = [by_task(source, shuffle_tasks=True, seed=s) for s in range(5)]
    assert len({tuple(e.name for e in s.experiences) for s in shuffled}) > 1
    with pytest.raises(UserError, match="6 experiences, but the data have 5 tasks"):
        by_task(source, n_experiences=6)
    with pytest.raises(UserError, match="says of no sample"):
        by_task(toy())


def test_unequal_tasks_have_no_domain_scenario():
    with pytest.raises(UserError, match="1 to 2; use class or task"):
        by_task(tasked([0, 1, 2], [0, 0, 1]), scenario="domain")


def test_regression_by_task():
    y = torch.rand(40, 2)
    source = Source("r", torch.rand(40, 3), y, task=torch.arange(40) % 2, regression=True)
    stream = by_task(source, scenario="domain")
    assert (stream.n_outputs, stream.regression, stream.lower_is_better) == (2, True, True)
    assert [e.classes for e in stream.experiences] == [(), ()]
    for e in stream.experiences:
        assert torch.equal(batch_of(e.train).y, y[e.train.index])
        assert [len(getattr(e, p)) for p in PARTS] == [14, 2, 4]
    with pytest.raises(UserError, match="only the domain scenario"):
        by_task(source, scenario="class")
    with pytest.raises(UserError, match="no classes to split"):
        split(source)


def test_an_empty_part_is_named():
    source = Source("few", torch.zeros(40, 1), torch.arange(40) % 2, test_index=torch.tensor([0, 2]))
    with pytest.raises(UserError, match="the test part of experience '1' is empty") as refused:
        split(source, n_experiences=2, shuffle_classes=False)
    assert refused.value.key == "stream.test"
    with pytest.raises(UserError, match="the validation part of experience '0' is empty") as refused:
        split(Source("few", torch.zeros(4, 1), torch.tensor([0, 0, 1, 1])), n_experiences=2, shuffle_classes=False)
    assert refused.value.key == "stream.validation"


NAN = torch.tensor([[0.0], [float("nan")], [1.0], [float("inf")]])


@pytest.mark.parametrize(
    "source, said",
    [
        (Source("s", torch.zeros(3, 1), torch.tensor([0, 1])), "x has 3 samples and y has 2"),
        (Source("s", torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64)), "no samples"),
        (Source("s", torch.zeros(3, 1), torch.tensor([0, -2, 1])), "label -2 of sample 1 is negative"),
        (Source("s", torch.zeros(3, 1), torch.tensor([0, 1, 7])), "label 7 of sample 2 is out of range: 3 different"),
        (Source("s", torch.zeros(2, 1), torch.tensor([0, 2]), class_names=("a", "b")), "must be 0 to 1"),
        (Source("s", torch.zeros(2, 1), torch.tensor([0, 2]), class_names=("a", "b", "c")), "no sample has label 1"),
        (
            Source("s", NAN, torch.tensor([0, 1, 0, 1])),
            "x holds NaN or infinite values in 2 of 4 samples, the first is 1",
        ),
        (Source("s", torch.zeros(2, 1), torch.tensor([0, 1]), task=torch.tensor([0])), "task has 1 entries for 2"),
        (Source("s", torch.zeros(2, 1), torch.tensor([0, 1]), task=torch.tensor([0, 2])), "numbered 0, 1, 2"),
        (Source("s", torch.zeros(2, 1), torch.tensor([0, 1]), torch.zeros(0, dtype=torch.int64)), "test part is empty"),
        (Source("s", torch.zeros(4, 1), NAN, task=torch.zeros(4).long(), regression=True), "y holds NaN"),
    ],
)
def test_unusable_data_is_refused(source, said):
    with pytest.raises(UserError, match=said):
        by_task(source, scenario="domain") if source.regression else split(source, n_experiences=1)


def test_800_permuted_tasks_hold_one_copy():
    source = digits()
    tracemalloc.start()
    stream = permuted(source, n_experiences=800)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    parts = [getattr(e, p) for e in stream.experiences for p in PARTS]
    assert all(p.base is source.x for p in parts)
    tensors = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for p in parts
        for t in (p.index, p.targets, p.task)
    }
    assert held < 10e6  # Python objects
    assert sum(tensors.values()) < 200e3  # bytes, besides the data
    assert len(stream.experiences[799].train.batch(torch.arange(32)).x) == 32
