"""What a user should be told of a run that ended well and yet cannot be meant: it learned nothing, or reading hurts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nested.streams.stream import Stream

if TYPE_CHECKING:
    from nested.loop import Loop

MARGIN = 0.05  # bits per byte by which reading with updates may cost more than without
IDLE = 1e-4  # bits per byte that updates change at least, where they do anything


def remarks(loop: Loop, summary: dict[str, Any]) -> list[str]:
    """Sentences, each with what to do; none for a run of which nothing needs to be said."""
    found = [look(loop, summary) for look in (_nothing_learned, _reading_hurts, _reading_idle, _unread)]
    return [sentence for sentence in found if sentence]


def _nothing_learned(loop: Loop, summary: dict[str, Any]) -> str | None:
    learned, guess = summary["learning_acc"], constant_guess(loop.stream, loop.judged)
    if learned is None or guess is None or learned > guess:
        return None
    text = f"each experience is answered to {learned:.3f} right after it was learned, a constant guess to {guess:.3f}"
    return f"nothing was learned: {text}; train longer (trainer.epochs), or take another rate (optim.lr) or optimizer"


def constant_guess(stream: Stream, part: str) -> float | None:
    """The learning accuracy of the commonest target of each experience; None where answers are no classes."""
    if stream.regression or stream.per_position:
        return None
    examples = [getattr(e, part) for e in stream.experiences]
    shares = [float(x.targets.unique(return_counts=True)[1].max()) / len(x) for x in examples]
    return sum(shares) / len(shares)


def _reading_hurts(loop: Loop, summary: dict[str, Any]) -> str | None:
    frozen, reading = summary.get("frozen"), summary["acc"]
    if frozen is None or reading is None or reading <= frozen + MARGIN:
        return None
    keys = " or ".join(f"levels.{level.name}.eta" for level in loop.learner.reading)
    text = f"{reading:.3f} bits per byte with updates and {frozen:.3f} without"
    return f"learning while it reads makes it worse: {text}; lower {keys}"


def _reading_idle(loop: Loop, summary: dict[str, Any]) -> str | None:
    frozen, reading = summary.get("frozen"), summary["acc"]
    if frozen is None or reading is None or abs(reading - frozen) >= IDLE:
        return None
    text = f"learning while it reads changes nothing: {reading:.5f} bits per byte with updates and {frozen:.5f} without"
    why = "after a warm start prime MLPs say nothing at first, and have to learn to"
    return f"{text}; train longer or raise optim.lr ({why})"


def _unread(loop: Loop, summary: dict[str, Any]) -> str | None:
    names = (name for name, _ in loop.learner.model.named_parameters())
    if loop.learner.reading or not any(".prime." in name for name in names):
        return None
    return "the model has prime MLPs, but no level learns in them while it reads; take levels=reading"
