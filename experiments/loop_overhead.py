"""What the loop costs: time per mini-batch of ours and of Avalanche's, as ratios to a bare torch loop.

MLP 784-100-10, SGD with momentum, random images in memory, one thread. Rounds are interleaved: in each, every loop runs
once, in a new random order, and its time per iteration inside the epoch is divided by the bare loop's (with DataLoader)
of the same round. What is paid once per experience (a Trainer, the first
batch) is reported apart; the sender starts up beside it. Run: make bench
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

if TYPE_CHECKING:
    from nested.config import Config

ROUNDS = 15
SIZES = {10: 300, 128: 100}  # batch size -> iterations in an epoch
LR, MOMENTUM = 0.01, 0.9


@dataclass
class Timed:
    """One epoch of one loop: seconds per iteration inside it, seconds around it, and the weights it ended with."""

    per_iteration: float
    setup: float
    weights: torch.Tensor | None = None


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))


def data(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    n = batch * SIZES[batch]
    return torch.randn(n, 1, 28, 28, generator=g), torch.randint(0, 10, (n,), generator=g)


def bare(batch: int) -> Timed:
    """The loop that everybody writes."""
    start = time.perf_counter()
    model, (x, y) = mlp(), data(batch)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
    loader = DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True)
    ready = time.perf_counter()
    for xb, yb in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(xb), yb).backward()
        optimizer.step()
    end = time.perf_counter()
    return Timed((end - ready) / SIZES[batch], ready - start)


def avalanche(batch: int) -> Timed:
    """Avalanche's Naive with an empty evaluator, timed by a plugin around its epoch."""
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.core import SupervisedPlugin
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    class Clock(SupervisedPlugin):
        first = last = 0.0

        def before_training_epoch(self, strategy, *args, **kwargs):
            self.first = time.perf_counter()

        def after_training_epoch(self, strategy, *args, **kwargs):
            self.last = time.perf_counter()

    start = time.perf_counter()
    model, (x, y) = mlp(), data(batch)
    clock = Clock()
    benchmark = tensors_benchmark(train_tensors=[(x, y)], test_tensors=[(x[:10], y[:10])], task_labels=[0])
    strategy = Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM),
        criterion=nn.CrossEntropyLoss(), train_mb_size=batch, train_epochs=1, evaluator=EvaluationPlugin(),
        plugins=[clock],
    )  # fmt: skip
    strategy.train(benchmark.train_stream[0])
    return Timed((clock.last - clock.first) / SIZES[batch], clock.first - start)


def ours(batch: int, per_block: int = 1, defaults: bool = False) -> Timed:
    """Our loop on one experience: quiet, or with progress and tracking on, as a user has it."""
    from nested import rundir, tracking
    from nested.config import compose
    from nested.loop import Display, Loop
    from nested.run import prepare
    from nested.streams.stream import Examples, Experience, Stream

    start = time.perf_counter()
    x, y = data(batch)
    rows, task = torch.arange(len(y)), torch.zeros(len(y), dtype=torch.long)
    part = Examples(x, rows, y, task)
    few = part.subset(rows[:10])
    stream = Stream(
        "bench",
        "class",
        (Experience(0, "0", 0, tuple(range(10)), part, few, few),),
        10,
        (1, 28, 28),
        False,
        "",
        torch.ones(1, 10, dtype=torch.bool),
    )
    config = compose(
        [
            "model=mlp",
            "model.hidden=[100]",
            "optim=sgd",
            f"optim.lr={LR}",
            f"optim.momentum={MOMENTUM}",
            "trainer.epochs=1",
            f"trainer.batch_size={batch}",
            f"trainer.batches_per_block={per_block}",
        ]
    )
    clock = [0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        display: Display = Display()
        if defaults:
            stack.enter_context(tracking.sender(Path(folder), config.tracking))
            display = stack.enter_context(_bar(SIZES[batch]))
        learner = prepare(config, 0, stream)
        learner.model.load_state_dict(
            {k2: v for (k2, _), v in zip(learner.model.state_dict().items(), mlp().state_dict().values(), strict=True)}
        )
        directory = rundir.SeedDir.open(Path(folder) / "seed-0", {"seed": 0})
        directory.event("start", run_id="bench", seed=0, label="bench")
        if defaults:
            start += _settled(Path(folder), config)
        learner.on_train_epoch_start = lambda: clock.__setitem__(0, time.perf_counter())
        learner.on_train_epoch_end = lambda: clock.__setitem__(1, time.perf_counter())
        loop = Loop(learner, config, directory, 0, display)
        learner.cursor.experience, learner.cursor.phase = 0, "fit"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loop._fit(stream.experiences[0])
        weights = torch.cat([p.detach().flatten() for p in learner.model.parameters()])
    return Timed((clock[1] - clock[0]) / SIZES[batch], clock[0] - start, weights)


def _settled(run: Path, config: Config) -> float:
    """Wait until the sender, a process of its own, has imported what it needs and sent the first event: seconds waited.

    It does so beside the training of a real run; an epoch of a tenth of a second would measure nothing else.
    """
    from nested import tracking

    begun = time.perf_counter()
    while tracking.pending(run, config.tracking) and time.perf_counter() - begun < 60:
        time.sleep(0.05)
    return time.perf_counter() - begun


@contextlib.contextmanager
def _bar(total: int) -> Iterator:
    """The progress bar as on a terminal, drawn into nothing."""
    import os

    from rich.console import Console

    from nested.progress import Bar

    with Path(os.devnull).open("w") as nothing, Bar("bench", total, Console(file=nothing, force_terminal=True)) as bar:
        yield bar


LOOPS: dict[str, Callable[[int], Timed]] = {
    "bare torch, DataLoader": bare,
    "Avalanche Naive, empty evaluator": avalanche,
    "ours, quiet": ours,
    "ours, defaults on (progress, tracking)": lambda b: ours(b, defaults=True),
    "ours, 32 mini-batches per Lightning step": lambda b: ours(b, per_block=32),
}


def measure(batch: int, rounds: int) -> dict[str, list[Timed]]:
    """`rounds` interleaved rounds after one that is thrown away."""
    times: dict[str, list[Timed]] = {name: [] for name in LOOPS}
    for r in range(rounds + 1):
        for name in random.Random(r).sample(list(LOOPS), len(LOOPS)):
            timed = LOOPS[name](batch)
            if r:
                times[name].append(timed)
        print(f"batch {batch}: round {r}/{rounds}", end="\r", file=sys.stderr, flush=True)
    return times


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median and its 95 percent interval from the order statistics (binomial, distribution-free)."""
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    k = max(1, int(binom.ppf(0.025, n, 0.5)))
    return statistics.median(ordered), ordered[k - 1], ordered[n - k]


def table(batch: int, times: dict[str, list[Timed]]) -> list[dict]:
    reference = [t.per_iteration for t in times["bare torch, DataLoader"]]
    rows = []
    for name, timed in times.items():
        ratios = [t.per_iteration / r for t, r in zip(timed, reference, strict=True)]
        middle, low, high = interval(ratios)
        rows.append(
            {
                "loop": name, "batch": batch, "ratio": middle, "low": low, "high": high,
                "microseconds": 1e6 * statistics.median(t.per_iteration for t in timed),
                "setup_ms": 1e3 * statistics.median(t.setup for t in timed),
            }
        )  # fmt: skip
    return rows


def main(rounds: int = ROUNDS) -> list[dict]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for batch in SIZES:
        times = measure(batch, rounds)
        quiet, block = (times[n][0].weights for n in ("ours, quiet", "ours, 32 mini-batches per Lightning step"))
        assert quiet is not None
        assert block is not None
        assert torch.equal(quiet, block), "blocks changed the numbers"
        rows += table(batch, times)
    print(f"{'loop':44} {'batch':>5} {'ratio':>6} {'95 % interval':>15} {'us/it':>7} {'set-up ms':>9}")
    for r in rows:
        print(
            f"{r['loop']:44} {r['batch']:>5} {r['ratio']:6.2f} {r['low']:6.2f} to {r['high']:5.2f} "
            f"{r['microseconds']:7.0f} {r['setup_ms']:9.1f}"
        )
    print("weights with and without blocks are equal to the last bit")
    return rows


if __name__ == "__main__":
    found = main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
    Path("reports/loop_overhead.json").write_text(
        json.dumps({"python": sys.version.split()[0], "torch": torch.__version__, "rows": found}, indent=1)
    )
