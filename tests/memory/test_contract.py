"""A memory that does not keep to its contract is named with what is needed; one that does is left as it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nested.errors import UserError
from nested.memory.contract import ask
from nested.models.hope import Hope

WIDTH, HEADS = 8, 2


class Fading(nn.Module):
    """The mean of what it has read so far, as a user would write it."""

    def __init__(self, **_: Any):
        super().__init__()
        self.project = nn.Linear(WIDTH, WIDTH)
        self.anchor = None  # a name that our memories give to a number of tokens

    def initial_state(self, batch: int) -> Any:
        return {"sum": torch.zeros(batch, WIDTH), "read": 0}

    def forward(self, x: Tensor, state: Any) -> Any:
        sums = state["sum"].unsqueeze(1) + self.project(x).cumsum(1)
        return sums, {"sum": sums[:, -1], "read": state["read"] + x.shape[1]}


class NoModule:
    def __init__(self, **_: Any):
        pass


class NoStart(Fading):
    initial_state: Any = None


class StartWithoutBatch(Fading):
    def initial_state(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {"sum": torch.zeros(1, WIDTH), "read": 0}


class NoStateTaken(Fading):
    def forward(self, x: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x


class HeadsFirst(Fading):
    def initial_state(self, batch: int) -> Any:
        return (torch.zeros(HEADS, batch, WIDTH),)


class Scalar(Fading):
    def initial_state(self, batch: int) -> Any:
        return torch.zeros(())


class OtherWidth(Fading):
    def forward(self, x: Tensor, state: Any) -> Any:
        y, state = super().forward(x, state)
        return y[..., :5], state


class NoTensor(Fading):
    def forward(self, x: Tensor, state: Any) -> Any:
        return [x], state


class NoStateReturned(Fading):
    def forward(self, x: Tensor, state: Any) -> Any:
        return super().forward(x, state)[0]


class StateNone(Fading):
    def forward(self, x: Tensor, state: Any) -> Any:
        return super().forward(x, state)[0], None


class HeadsFirstAfter(Fading):
    def forward(self, x: Tensor, state: Any) -> Any:
        return super().forward(x, state)[0], torch.zeros(HEADS, len(x), WIDTH)


def read(memory: Callable[..., Any], batch: int = 4) -> Tensor:
    model = Hope((6,), 5, memory, vocabulary=5, width=WIDTH, heads=HEADS, hidden=6, n_levels=1, depth=1)
    return model(torch.randint(5, (batch, 6)))


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (NoModule, ["a NoModule is no memory", "initial_state(batch)"]),
        (NoStart, ["NoStart has no initial_state(batch)"]),
        (StartWithoutBatch, ["StartWithoutBatch has no initial_state(batch)"]),
        (NoStateTaken, ["NoStateTaken.forward does not take (x, state)", "forward(x, state) -> (y, state)"]),
        (HeadsFirst, ["initial_state(3)", "a tensor (2, 3, 8)", "the batch comes first: (3, ...)"]),
        (Scalar, ["initial_state(2)", "a tensor ()", "the batch comes first"]),
        (OtherWidth, ["OtherWidth.forward returned y (4, 6, 5)", "(4, 6, 8), is needed"]),
        (NoTensor, ["returned y list"]),
        (NoStateReturned, ["NoStateReturned.forward returned a Tensor; (y, state) is needed"]),
        (StateNone, ["StateNone.forward returned no state"]),
        (HeadsFirstAfter, ["of 4 sequences", "a tensor (2, 4, 8)", "(4, ...)"]),
    ],
)
def test_a_memory_that_does_not_keep_to_its_contract_is_refused_in_one_line(memory: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read(memory)
    assert caught.value.key == "model.memory"
    assert "\n" not in str(caught.value)
    for word in ("model.memory: ", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_one_that_keeps_to_it_is_asked_and_nothing_else_happens(batch: int) -> None:
    memory, x = Fading(), torch.randn(batch, 3, WIDTH)
    y, state = memory(x, memory.initial_state(batch))
    answer, after = ask(memory, x, memory.initial_state(batch))
    assert torch.equal(answer, y)
    assert torch.equal(after["sum"], state["sum"])
    assert read(Fading, batch).shape == (batch, 5)


def test_a_memory_without_a_state_serves() -> None:
    class Nothing(Fading):
        def initial_state(self, batch: int) -> None:
            return None

        def forward(self, x: Tensor, state: None) -> Any:
            return self.project(x), None

    assert read(Nothing).isfinite().all()
