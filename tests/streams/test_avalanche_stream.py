"""To Avalanche and back: equal sample by sample."""

import pytest
import torch

from nested.errors import UserError
from nested.streams.arrange import by_task, permuted, split
from nested.streams.avalanche import from_avalanche
from nested.streams.digits import digits
from nested.streams.stream import Source

PARTS = {"train": "train", "validation": "valid", "test": "test"}


@pytest.fixture(scope="module")
def source():
    whole = digits()
    return Source("digits", whole.x[:300], whole.y[:300])


def make(source, kind, **options):
    return (split if kind == "split" else permuted)(source, n_experiences=5, **options)


STREAMS = [
    ("split", {"scenario": "class"}),
    ("split", {"scenario": "domain"}),
    ("split", {"scenario": "task"}),
    ("split", {"scenario": "task", "boundary": "blurry", "blur": 0.4}),
    ("permuted", {"scenario": "domain"}),
    ("permuted", {"scenario": "task"}),
]


@pytest.mark.parametrize("kind, options", STREAMS)
def test_the_benchmark_equals_the_stream_sample_by_sample(source, kind, options):
    stream = make(source, kind, **options)
    benchmark = stream.avalanche()
    for part, name in PARTS.items():
        assert len(benchmark.streams[name]) == 5
        for ours, theirs in zip(stream.experiences, benchmark.streams[name]):
            x, y, task = getattr(ours, part).batch(torch.arange(len(getattr(ours, part))))
            dataset = theirs.dataset
            assert len(dataset) == len(y)
            for i in range(len(y)):
                sample, label, number = dataset[i]
                assert torch.equal(sample, x[i])
                assert label == dataset.targets[i] == int(y[i])
                assert number == (int(task[i]) if stream.scenario == "task" else 0)
            assert set(theirs.classes_in_this_experience) == set(y.tolist())


@pytest.mark.parametrize("kind, options", STREAMS[:3] + STREAMS[4:])
def test_there_and_back_is_the_same_stream(source, kind, options):
    stream = make(source, kind, **options)
    back = from_avalanche(stream.avalanche(), scenario=stream.scenario)
    assert len(back.experiences) == 5
    assert back.sample_shape == stream.sample_shape
    for ours, theirs in zip(stream.experiences, back.experiences):
        for part in PARTS:
            a, b = getattr(ours, part), getattr(theirs, part)
            x, y, task = b.batch(torch.arange(len(b)))
            expected = a.batch(torch.arange(len(a)))
            assert torch.equal(x, expected.x)
            assert torch.equal(task, expected.task)
            assert torch.equal(y, expected.y)
    assert back.n_outputs == stream.n_outputs
    assert torch.equal(back.task_outputs, stream.task_outputs)
    assert from_avalanche(stream.avalanche()).scenario == stream.scenario  # read off


def test_avalanche_trains_on_it(source):
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    torch.manual_seed(0)
    benchmark = split(source, n_experiences=5).avalanche()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    strategy = Naive(
        model=model, optimizer=optimizer, train_mb_size=16, train_epochs=5, eval_mb_size=64, evaluator=evaluator
    )
    strategy.train(benchmark.train_stream[0], num_workers=0)
    result = strategy.eval(benchmark.test_stream, num_workers=0)
    assert result["Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"] > 0.9
    assert result["Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp001"] == 0


def data_sets(n: int = 60):
    from torch.utils.data import TensorDataset

    x = torch.arange(n * 3, dtype=torch.float32).reshape(n, 3)
    train, test = TensorDataset(x, torch.arange(n) % 6), TensorDataset(x[:12] + 0.5, torch.arange(12) % 6)
    train.targets, test.targets = (torch.arange(n) % 6).tolist(), (torch.arange(12) % 6).tolist()
    return train, test


def new_classes(n_experiences: int, task_labels: bool = False):
    from avalanche.benchmarks import nc_benchmark

    train, test = data_sets()
    order = [3, 5, 0, 1, 4, 2]
    return nc_benchmark(train, test, n_experiences, task_labels, fixed_class_order=order, shuffle=False)


def instances(n_experiences: int = 3):
    from avalanche.benchmarks import ni_benchmark

    return ni_benchmark(*data_sets(), n_experiences)


HERE = __name__


@pytest.fixture
def here(monkeypatch):
    """This module under an importable name."""
    import sys

    monkeypatch.setitem(sys.modules, "my_benchmarks", sys.modules[HERE])
    return "my_benchmarks"


def test_a_benchmark_by_dotted_path(here):
    stream = from_avalanche(f"{here}.new_classes", arguments={"n_experiences": 3}, validation=0.2)
    assert stream.scenario == "class"
    assert [e.classes for e in stream.experiences] == [(3, 5), (0, 1), (2, 4)]
    for e in stream.experiences:
        x, y, _ = e.test.batch(torch.arange(len(e.test)))
        assert torch.equal(y, ((x[:, 0] - 0.5) / 3).long() % 6)
        assert [len(e.train), len(e.validation), len(e.test)] == [16, 4, 4]
    labelled = from_avalanche(f"{here}.new_classes", arguments={"n_experiences": 3, "task_labels": True})
    assert labelled.scenario == "task"


def test_one_test_experience_counts_for_all_and_draws_are_seeded(here):
    streams = []
    for seed in (1, 1, 2):
        torch.rand(1)  # what was drawn before does not matter
        streams.append(from_avalanche(f"{here}.instances", seed=seed))
    assert streams[0].scenario == "domain"
    assert [len(e.test) for e in streams[0].experiences] == [12, 12, 12]
    firsts = [s.experiences[0] for s in streams]
    drawn = [
        {x for p in (e.train, e.validation) for x in p.batch(torch.arange(len(p))).x[:, 0].tolist()} for e in firsts
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(firsts[0].train.index, firsts[1].train.index)


def test_unusable_benchmarks_are_refused(here):
    with pytest.raises(UserError, match="missing a required argument: 'n_experiences'") as refused:
        from_avalanche(f"{here}.new_classes", arguments={"n_classes": 3})
    assert refused.value.key == "stream.arguments"
    with pytest.raises(UserError, match="train and a test stream"):
        from_avalanche("collections.Counter")
    with pytest.raises(UserError, match="new_classes"):
        from_avalanche(f"{here}.new_clases")
    with pytest.raises(UserError, match="made no benchmark"):
        from_avalanche(f"{here}.new_classes", arguments={"n_experiences": 4})
    regression = Source("r", torch.rand(40, 2), torch.rand(40, 1), task=torch.arange(40) % 2, regression=True)
    with pytest.raises(UserError, match="no float targets"):
        by_task(regression, scenario="domain").avalanche()


def test_samples_that_are_no_tensors_are_refused():
    from avalanche.benchmarks import nc_benchmark
    from torch.utils.data import Dataset

    class Pictures(Dataset):
        targets = (0, 1, 0, 1)

        def __len__(self):
            return 4

        def __getitem__(self, i):
            return "picture", self.targets[i]

    with pytest.raises(UserError, match="samples are str, not tensors"):
        from_avalanche(nc_benchmark(Pictures(), Pictures(), 2, False, shuffle=False))
