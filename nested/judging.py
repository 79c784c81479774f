"""How a model is judged on some examples: by right answers, by squared error, or by the bits that a text costs it.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from nested.metrics import FROZEN, POSITIONS
from nested.sequences.bits import bits
from nested.sequences.exact_match import exact_match, positions_right

if TYPE_CHECKING:
    from nested.learner import Learner
    from nested.streams.stream import Examples


class Judged(NamedTuple):
    """What a model made of some examples."""

    total: float  # correct answers, summed mean squared error, or bits
    count: int  # examples, or bytes
    beside: dict[str, tuple[float, int]]  # the end of a part's name -> another total and count

    def parts(self, part: str) -> dict[str, tuple[float, int]]:
        """The names of all that was counted on a part, with totals and counts."""
        return {part: (self.total, self.count), **{part + name: pair for name, pair in self.beside.items()}}


def judged(learner: Learner, examples: Examples, batch_size: int, beside: bool) -> Judged:
    """Judge the model as it is, and `beside` that in a second way. Raises Diverged for scores that are no numbers.

    A sequence with a target for each position is one answer: correct when every judged position is. That is zero for
    long while a model learns, so its positions are counted too. Of text every token is judged; where levels learn while
    the model reads, it is also read without.
    """
    if not learner.stream.language:
        return _answers(learner, examples, batch_size)
    count, total = learner.count(examples), _bits(learner, examples, batch_size)
    frozen = beside and learner.freezes
    return Judged(total, count, {FROZEN: (_bits(learner, examples, batch_size, frozen), count)} if frozen else {})


def _bits(learner: Learner, examples: Examples, batch_size: int, frozen: bool = False) -> float:
    """What all tokens cost together."""
    total = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(len(examples)).split(batch_size):
        x, y, _ = learner.fetch(examples, rows)
        total += learner.nll(x, y, frozen).sum(dtype=torch.float64).cpu()
    learner.check_scores(bool(total.isfinite()), f"the loss is {total.item()}")
    return bits(total.item())


def _answers(learner: Learner, examples: Examples, batch_size: int) -> Judged:
    """Right answers, or summed squared error."""
    stream = learner.stream
    total = torch.zeros((), dtype=torch.float64 if stream.regression else torch.int64)
    lost = torch.zeros((), dtype=torch.bool, device=learner.where)
    right = positions = 0
    for rows in torch.arange(len(examples)).split(batch_size):
        x, y, task = learner.fetch(examples, rows)
        out = learner.logits(x, task, training=False)
        lost |= out.isnan().any()
        if stream.regression:
            total += F.mse_loss(out.double(), y.double(), reduction="none").flatten(1).mean(1).sum().cpu()
        elif stream.per_position:
            answers = out.argmax(-1)
            total += exact_match(answers, y).sum().cpu()
            right, positions = (a + b for a, b in zip((right, positions), positions_right(answers, y)))
        else:
            total += (out.argmax(1) == y).sum().cpu()
    learner.check_scores(not lost, "outputs are NaN")
    return Judged(total.item(), len(examples), {POSITIONS: (right, positions)} if stream.per_position else {})
