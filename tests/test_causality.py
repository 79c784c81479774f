"""A model that sees later inputs where these give the answers away: found by asking it, refused before a run."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nested.causality import first_peek
from nested.config import compose
from nested.dryrun import dry_run
from nested.errors import UserError
from nested.prepare import rehearse

T = 33  # chunks of 16 and one token more
ALL = torch.ones(T, dtype=torch.bool)
QUIET = ("tracking=off", "stream.n_train=32", "stream.n_validation=8", "stream.n_test=8", "trainer.allow_idle=true")


def numbers(seed: int = 0) -> Tensor:
    return torch.randn(1, T, 3, generator=torch.Generator().manual_seed(seed))


def in_chunks(x: Tensor, size: int) -> Tensor:
    """Each position sees the whole of its chunk."""
    return torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in x.split(size, 1)], 1)


CAUSAL = {
    "each alone": lambda x: x.tanh(),
    "all so far": lambda x: x.cumsum(1),
    "delayed": lambda x: x.roll(1, 1) * (torch.arange(T) > 0)[:, None],
    "noisy, the same noise each time": lambda x: x + torch.rand(x.shape),
    "constant": torch.zeros_like,
    "nowhere finite": lambda x: x.cumsum(1) / 0,
}
AHEAD = {
    "all": (lambda x: x + x.mean(1, keepdim=True), 0),
    "all, beside answers that are not finite": (lambda x: torch.cat([x / 0, x + x.mean(1, keepdim=True)], 2), 0),
    "all, in few digits": (lambda x: (x + x.mean(1, keepdim=True)).bfloat16(), 0),
    "the next one": (lambda x: x.roll(-1, 1), 0),
    "the next one, near the end": (lambda x: x.where((torch.arange(T) != T - 2)[:, None], x.roll(-1, 1)), T - 2),
    "whole chunks": (lambda x: in_chunks(x, 16), 0),
    "whole chunks, from the second on": (lambda x: torch.cat([x[:, :16], in_chunks(x[:, 16:], 16)], 1), 16),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_what_reads_from_the_left_passes(name: str) -> None:
    assert first_peek(CAUSAL[name], numbers(), ALL) is None


@pytest.mark.parametrize("name", AHEAD)
def test_the_first_position_that_sees_the_future_is_found(name: str) -> None:
    model, position = AHEAD[name]
    peek = first_peek(model, numbers(), ALL)
    assert peek is not None
    assert peek.position == position < peek.changed


def test_positions_that_are_not_judged_may_see_anything() -> None:
    def ahead(x: Tensor) -> Tensor:
        return torch.cat([x.flip(1)[:, :5], x[:, 5:]], 1)

    assert first_peek(ahead, numbers(), ALL) is not None
    assert first_peek(ahead, numbers(), torch.arange(T) >= 5) is None


def test_tokens_are_changed_within_their_vocabulary() -> None:
    table = nn.Embedding(4, 2)
    x = torch.arange(T).unsqueeze(0) % 4
    assert first_peek(table, x, ALL, 4) is None
    assert first_peek(lambda x: table(x).flip(1), x, ALL, 4) is not None


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_sequences(length: int) -> None:
    some = torch.ones(length, dtype=torch.bool)
    assert first_peek(lambda x: x, numbers()[:, :length], some) is None
    found = first_peek(lambda x: x.mean(1, keepdim=True).expand_as(x), numbers()[:, :length], some)
    assert (found is None) == (length == 1)


def test_a_difference_by_rounding_is_none() -> None:
    def rounded(x: Tensor) -> Tensor:
        return 1 + x.cumsum(1).double().add(x.sum(dtype=torch.float64) * 1e-7).float()

    assert first_peek(rounded, numbers(), ALL) is None


class Peeking(nn.Module):
    """A memory of all tokens, those to come among them, with dropout that only evaluation switches off."""

    def __init__(self, width: int, heads: int, back: bool = False):
        super().__init__()
        self.mix, self.drop, self.back = nn.Linear(width, width), nn.Dropout(0.5), back

    def initial_state(self, batch: int) -> None:
        return None

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        seen = x.cumsum(1) if self.back else x.mean(1, keepdim=True)
        return self.drop(self.mix(x + seen)), None


def hope(back: bool = False) -> str:
    return f"model.memory={{_target_: test_causality.Peeking, back: {str(back).lower()}}}"


@pytest.mark.parametrize("stream", ["formal_languages", "mad", "text"])
@pytest.mark.parametrize("act", [rehearse, dry_run])
def test_a_memory_that_sees_the_future_is_refused_where_it_holds_the_answers(stream: str, act, tmp_path: Path) -> None:
    more = ["stream.n_experiences=1", "stream.length=32"] if stream == "text" else []
    config = compose(["model=causal_transformer", hope(), f"stream={stream}", *more, *QUIET, f"runs={tmp_path}"])
    with pytest.raises(UserError, match=re.escape("Hope with test_causality.Peeking at position")) as error:
        act(config)
    assert error.value.key == "model.memory"
    assert "later ones give it away" in str(error.value)
    assert isinstance(error.value.seen, int)


@pytest.mark.parametrize("stream", ["formal_languages", "mad"])
def test_one_that_looks_back_is_not(stream: str) -> None:
    rehearse(compose(["model=causal_transformer", hope(back=True), f"stream={stream}", *QUIET]))


def test_where_nothing_later_tells_the_answer_a_model_may_see_all() -> None:
    """Recall: all pairs stand before the questions."""
    rehearse(compose(["model=causal_transformer", hope(), "stream=recall", "stream.n_experiences=1", *QUIET]))


class OwnLoss(nn.Module):
    """A language model whose outputs look back and whose own loss does not."""

    def __init__(self, n_outputs: int, vocabulary: int, honest: bool = False):
        super().__init__()
        self.table, self.honest = nn.Embedding(vocabulary, n_outputs), honest

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x)

    def nll(self, x: Tensor, y: Tensor) -> Tensor:
        out = self.table(x)
        out = out if self.honest else out + out.mean(1, keepdim=True)
        return nn.functional.cross_entropy(out.mT, y, reduction="none")


@pytest.mark.parametrize("honest", [True, False])
def test_a_loss_of_the_models_own_is_asked_too(honest: bool) -> None:
    model = f"model={{_target_: test_causality.OwnLoss, honest: {str(honest).lower()}}}"
    config = compose([model, "stream=text", "stream.n_experiences=1", "stream.length=32", *QUIET])
    if honest:
        rehearse(config)
        return
    with pytest.raises(UserError, match=r"OwnLoss at position 0 changed with the inputs from position 16 on") as error:
        rehearse(config)
    assert error.value.key == "model._target_"
