"""naive and EWC against Avalanche's own loop: same start, order and optimizer give the same weights to the last bit."""

import warnings
from pathlib import Path

import pytest
import torch

from nested.config import compose
from nested.loop import Loop
from nested.plan import order
from nested.run import prepare
from nested.rundir import SeedDir, as_stored

Epochs, Batch, Seed, Strength = 3, 32, 0, 0.5  # at strength 20 both explode, and equal infinities would prove nothing


class Order(torch.utils.data.Sampler):
    """The order of our own loop, epoch after epoch."""

    def __init__(self, experience: int, n: int):
        self.experience, self.n, self.epoch = experience, n, 0

    def __iter__(self):
        self.epoch += 1
        return iter(order(Seed, self.experience, self.epoch - 1, self.n).tolist())

    def __len__(self) -> int:
        return self.n


def ours(tmp_path: Path, *method: str):
    """A finished run of the real loop: (learner, matrix (n, n) of accuracies)."""
    config = compose(
        ["stream=split_digits", "model=mlp", "optim=sgd", "optim.lr=0.05", f"trainer.epochs={Epochs}", "seed=0",
         f"trainer.batch_size={Batch}", "trainer.progress=false", "tracking.enabled=false", *method]
    )  # fmt: skip
    learner = prepare(config, Seed)
    loop = Loop(learner, config, SeedDir.open(tmp_path, as_stored(config.to_dict())), Seed)
    loop.run()
    return learner, loop.matrices["model"]["test"].compute()[1:]


def avalanches(plugins: list, *method: str):
    """The same by Avalanche: (model, matrix (n, n) of accuracies)."""
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    class Ordered(Naive):
        def make_train_dataloader(self, **_):
            data, i = self.adapted_dataset, self.experience.current_experience
            self.dataloader = torch.utils.data.DataLoader(
                data, Batch, sampler=Order(i, len(data)), collate_fn=data.collate_fn
            )

    config = compose(["stream=split_digits", "model=mlp", "optim=sgd", "optim.lr=0.05", *method])
    learner = prepare(config, Seed)
    model = learner.model
    strategy = Ordered(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=Batch,
        train_epochs=Epochs,
        plugins=plugins,
        evaluator=EvaluationPlugin(),
    )
    benchmark, rows = learner.stream.avalanche(), []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        rows.append([accuracy(model, e.dataset) for e in benchmark.test_stream])
    return model, torch.tensor(rows, dtype=torch.float64)


@torch.no_grad()
def accuracy(model: torch.nn.Module, data) -> float:
    x, y = torch.stack([d[0] for d in data]), torch.tensor([d[1] for d in data])
    return (model(x).argmax(1) == y).double().mean().item()


def assert_equal_runs(learner, matrix, model, reference) -> None:
    assert matrix.shape == (5, 5)
    assert torch.equal(matrix, reference)
    assert all(torch.equal(p, q) for p, q in zip(learner.model.parameters(), model.parameters(), strict=True))


@pytest.fixture(scope="module")
def naive_run(tmp_path_factory):
    return ours(tmp_path_factory.mktemp("naive"), "method=naive")


@pytest.mark.filterwarnings("ignore")
def test_naive_is_avalanches_naive(naive_run):
    assert_equal_runs(*naive_run, *avalanches([]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("mode", "decay"), [("separate", None), ("online", 0.7)])
def test_ewc_is_avalanches_ewc(mode, decay, naive_run, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from avalanche.training.plugins import EWCPlugin

    method = ["method=ewc", f"method.strength={Strength}", f"method.mode={mode}", f"method.fisher_batch_size={Batch}"]
    learner, matrix = ours(tmp_path, *method, *([f"method.decay={decay}"] if decay else []))
    model, reference = avalanches([EWCPlugin(Strength, mode, decay)])
    assert_equal_runs(learner, matrix, model, reference)
    differs = max(
        (p - q).abs().max() for p, q in zip(learner.model.parameters(), naive_run[0].model.parameters(), strict=True)
    )
    assert differs > 0.01  # the penalty did something
    assert all(p.isfinite().all() for p in learner.model.parameters())
