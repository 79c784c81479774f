"""A model whose answers are known by hand: right where a rule over its gates says so, each gate a level of its own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nested.config import Config, compose
from nested.learner import Learner
from nested.microscope.snapshots import Snapshots
from nested.run import prepare

RULES: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "all": lambda g: torch.stack(list(g.values())).amin(0),
    "a": lambda g: g["a"],
    "a and b": lambda g: torch.minimum(g["a"], g["b"]),
    "a and (b or c)": lambda g: torch.minimum(g["a"], torch.maximum(g["b"], g["c"])),
}


class Gates(nn.Module):
    """x, one-hot of the class, times +1 (right) or -1 (wrong): what the rule makes of the gates; `bias` is a buffer."""

    def __init__(self, sample_shape: tuple[int, ...], n_outputs: int, names: str = "abc", rule: str = "all"):
        super().__init__()
        self.rule = rule
        self.gates = nn.ParameterDict({name: nn.Parameter(-torch.ones(())) for name in names})
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(n_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x * RULES[self.rule](dict(self.gates.items())) + self.bias


class Number(nn.Module):
    """The same number for every sample: its squared error on targets of 1 is known."""

    def __init__(self, sample_shape: tuple[int, ...], n_outputs: int):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return (self.a + self.b).expand(len(x), 1)


def one_hot(path: Path, experiences: int = 3) -> Path:
    """Twice as many classes as experiences, 20 samples of each."""
    y = np.arange(experiences * 2).repeat(20)
    np.savez(path / "one_hot.npz", x=np.eye(experiences * 2, dtype=np.float32)[y], y=y)
    return path / "one_hot.npz"


def config_of(path: Path, names: str, rule: str, *overrides: str) -> Config:
    levels = ", ".join(f"{n}: {{params: ['gates.{n}'], period_steps: 1}}" for n in names)
    return compose(
        [
            "stream=tensors", f"stream.path={one_hot(path)}", "stream.shuffle_classes=false", "tracking=off",
            f"model={{_target_: gates.Gates, names: {names}, rule: '{rule}'}}", f"levels={{{levels}}}", *overrides,
        ]
    )  # fmt: skip


def keep(learner: Learner, path: Path, states: list[Mapping[str, Any]]) -> Snapshots:
    """Snapshots of states that are written into the model by hand; what a state does not name stays."""
    snapshots = Snapshots(path)
    held = dict(learner.model.named_parameters()) | dict(learner.model.named_buffers())
    for i, state in enumerate(states, -1):
        with torch.no_grad():
            for name, value in state.items():
                held[name].copy_(torch.as_tensor(value))
        snapshots.write(learner, i)
    return snapshots


def gates(values: Mapping[str, bool]) -> dict[str, float]:
    return {f"gates.{name}": 1.0 if on else -1.0 for name, on in values.items()}


def made(path: Path, names: str, rule: str, *overrides: str) -> Learner:
    return prepare(config_of(path, names, rule, *overrides), 0)


@contextmanager
def interrupted_at(step: int, monkeypatch: Any) -> Iterator[None]:
    """A user's Ctrl-C before that step, once."""
    inner = Learner.learn

    def learn(self: Learner, rows: Tensor) -> None:
        if self.step == step:
            raise KeyboardInterrupt
        inner(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", learn)
        yield
