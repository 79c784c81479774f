"""What a user should be told of a run that ended well and yet cannot be meant: it learned nothing, or reading hurts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nested.streams.stream import Examples

if TYPE_CHECKING:
    from nested.loop import Loop

MARGIN = 0.05  # bits per byte by which reading with updates may cost more than without


def remarks(loop: Loop, summary: dict[str, Any]) -> list[str]:
    """Sentences, each with what to do; none for a run of which nothing needs to be said."""
    return [sentence for sentence in (_nothing_learned(loop, summary), _reading_hurts(loop, summary)) if sentence]


def _nothing_learned(loop: Loop, summary: dict[str, Any]) -> str | None:
    stream, learned = loop.stream, summary["learning_acc"]
    if learned is None or stream.regression or stream.per_position:
        return None
    shares = [_constant_guess(getattr(e, loop.judged)) for e in stream.experiences]
    guess = sum(shares) / len(shares)
    if learned > guess:
        return None
    text = f"each experience is answered to {learned:.3f} right after it was learned, a constant guess to {guess:.3f}"
    return f"nothing was learned: {text}; try another rate or optimizer, such as optim=adamw"


def _constant_guess(examples: Examples) -> float:
    """The share of the commonest target."""
    return float(examples.targets.unique(return_counts=True)[1].max()) / len(examples)


def _reading_hurts(loop: Loop, summary: dict[str, Any]) -> str | None:
    frozen, reading = summary.get("frozen"), summary["acc"]
    if frozen is None or reading is None or reading <= frozen + MARGIN:
        return None
    keys = " or ".join(f"levels.{level.name}.eta" for level in loop.learner.reading)
    text = f"{reading:.3f} bits per byte with updates and {frozen:.3f} without"
    return f"learning while it reads makes it worse: {text}; lower {keys}"
