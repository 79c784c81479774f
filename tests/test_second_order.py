"""The guard against compiled code that returns first-order gradients without a word, beside the trap itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from nested.errors import UserError
from nested.inner import Chunk
from nested.levels import Level
from nested.second_order import check_outer_gradient, read_losses

LEVELS = [Level("reading", ("table",), 3, "token", gather="mean", eta=2.0)]


class Next(nn.Module):
    """Which token follows which: a table of squared errors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.read = (nn.Parameter(torch.randn(5, 5)) for _ in range(2))

    def prepare(self, tokens: Tensor) -> Tensor:
        return self.read[tokens]

    def chunk_loss(self, fast: dict[str, Tensor], carry: None, chunk: Chunk) -> tuple[Tensor, None]:
        said = torch.bmm(chunk.inputs, fast["table"]).tanh()
        return (said - nn.functional.one_hot(chunk.labels, 5)).square().mean(-1), None


MODEL = Next()
TOKENS = torch.randint(5, (2, 10), generator=torch.Generator().manual_seed(0))


def by_hand(tokens: Tensor, second: bool = True) -> Tensor:
    """The loop of three chunks with the inner gradient as a user would write it."""
    table, losses = MODEL.table.expand(2, 5, 5), []
    for c in (0, 3, 6):
        chunk = Chunk(MODEL.prepare(tokens[:, c : c + 3]), tokens[:, c + 1 : c + 4])
        found, _ = MODEL.chunk_loss({"table": table}, None, chunk)
        losses.append(found)
        (grad,) = torch.autograd.grad(found.mean(1).sum(), table, create_graph=second, retain_graph=True)
        table = table - 2.0 * grad
    return torch.cat(losses, 1)


def after_an_update(table: Tensor, tokens: Tensor) -> Tensor:
    """Losses of a second chunk after an update on the first; compiled, their gradient is the first-order one."""
    inputs, labels = MODEL.read.detach()[tokens[:, :-1]], nn.functional.one_hot(tokens[:, 1:], 5)
    first = (torch.bmm(inputs[:, :3], table).tanh() - labels[:, :3]).square().mean(-1)
    (grad,) = torch.autograd.grad(first.mean(1).sum(), table, create_graph=True)
    return (torch.bmm(inputs[:, 3:], table - 2.0 * grad).tanh() - labels[:, 3:]).square().mean(-1)


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_the_right_gradient_passes() -> None:
    check_outer_gradient(by_hand, MODEL, LEVELS, TOKENS)
    check_outer_gradient(read_losses(MODEL, LEVELS, "full"), MODEL, LEVELS, TOKENS)


def test_the_first_order_gradient_is_named() -> None:
    with pytest.raises(UserError, match="is the first-order one"):
        check_outer_gradient(lambda x: by_hand(x, second=False), MODEL, LEVELS, TOKENS)


def test_other_losses_and_tokens_that_cannot_tell_are_named() -> None:
    with pytest.raises(UserError, match="losses are not those"):
        check_outer_gradient(lambda x: 2 * by_hand(x), MODEL, LEVELS, TOKENS)
    with pytest.raises(UserError, match="take longer tokens"):
        check_outer_gradient(by_hand, MODEL, LEVELS, TOKENS[:, :4])


def test_the_trap_is_real_and_the_guard_sees_it(compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled around an inner gradient: equal losses, no error, and another outer gradient."""
    monkeypatch.setattr(MODEL.read, "requires_grad", False)
    tokens, table = TOKENS[:, :7], MODEL.table.expand(2, 5, 5)
    compiled = torch.compile(after_an_update, backend="aot_eager")

    def losses(step: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        first = read_losses(MODEL, LEVELS, "full")
        return lambda x: torch.cat([first(x[:, :4]), step(MODEL.table.expand(2, 5, 5), x)], 1)

    assert torch.allclose(compiled(table, tokens), after_an_update(table, tokens))
    check_outer_gradient(losses(after_an_update), MODEL, LEVELS, tokens)
    with pytest.raises(UserError, match="is the first-order one"):
        check_outer_gradient(losses(compiled), MODEL, LEVELS, tokens)


def test_a_compiled_reading_loop_of_ours_is_exact(compiler: None) -> None:
    compiled = torch.compile(read_losses(MODEL, LEVELS, "full"), backend="aot_eager")
    check_outer_gradient(compiled, MODEL, LEVELS, TOKENS)
