"""What a user should be told of a run that is possible and yet cannot be meant: it learned nothing, or reading hurts.

Each remark is a sentence: what it is, a colon, what was seen, a semicolon, what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nested.levels import eta_at

if TYPE_CHECKING:
    from nested.loop import Loop
    from nested.streams.stream import Stream

MARGIN = 0.05  # bits per byte: where reading with updates costs more than so much above without, it diverges
IDLE = 1e-4  # bits per byte that updates change at least, where they do anything


def kind(remark: str) -> str:
    """What a remark says whichever run it is of."""
    return remark.partition(":")[0]


def before(loop: Loop) -> list[str]:
    """What can be said before anything is trained."""
    found = [fewer_sequences(loop.stream), *(look(loop) for look in (_never_warm, _unread))]
    own = getattr(loop.learner.model, "remarks", ())  # what a model has found out when it was built
    return [*own, *(sentence for sentence in found if sentence)]


def after(loop: Loop, summary: dict[str, Any]) -> list[str]:
    """What is to be said of a run that ended well."""
    found = [look(loop, summary) for look in (_nothing_learned, _reading_hurts, _reading_idle)]
    return [sentence for sentence in found if sentence]


def fewer_sequences(stream: Stream) -> str | None:
    """Of a text that is shorter than what is asked for."""
    there = stream.about.get("fewer_sequences")
    return there and f"the text has fewer sequences than asked for: {there}; give more text, or ask for fewer"


def _never_warm(loop: Loop) -> str | None:
    """Of an inner rate that training never sees, while judging takes it whole."""
    steps = loop.plan.total_steps
    rising = [level for level in loop.learner.reading if level.eta and level.eta_warmup_steps > steps]
    if not rising or getattr(loop.learner.model, "inner", None) == "off":
        return None
    slowest = max(rising, key=lambda level: level.eta_warmup_steps)
    key, share = f"levels.{slowest.name}.eta", eta_at(slowest, steps - 1) / (slowest.eta or 1)
    text = f"it rises over {slowest.eta_warmup_steps} optimizer steps, and the last of this run's {steps} takes "
    text += f"{share:.2g} of it, but judging takes all"
    return f"the inner rate never reaches {key}: {text}; lower {key}_warmup_steps"


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
    return f"learning while it reads makes it worse by more than {MARGIN} bits per byte: {text}; lower {keys}"


def _reading_idle(loop: Loop, summary: dict[str, Any]) -> str | None:
    frozen, reading = summary.get("frozen"), summary["acc"]
    if frozen is None or reading is None or abs(reading - frozen) >= IDLE:
        return None
    text = f"learning while it reads changes nothing: {reading:.5f} bits per byte with updates and {frozen:.5f} without"
    if idle := [f"levels.{level.name}.eta" for level in loop.learner.reading if not level.eta]:
        return f"{text}; {' and '.join(idle)} is 0, and a larger one learns"
    why = "after a warm start prime MLPs say nothing at first, and have to learn to"
    return f"{text}; train longer or raise optim.lr ({why})"


def _unread(loop: Loop) -> str | None:
    names = (name for name, _ in loop.learner.model.named_parameters())
    if loop.learner.reading or not any(".prime." in name for name in names):
        return None
    return "the model has prime MLPs that learn nothing while it reads: no level names them; take levels=reading"
