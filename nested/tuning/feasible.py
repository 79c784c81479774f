"""Which points of a space can be run: a range for each dimension does not say what several forbid together.

A chain of levels has periods up to base * ratio^(n - 1), and a short stream refuses those with fewer than ten updates.
So the values that a sampler proposes are rehearsed before they are a trial's, and are drawn again where the run would
be refused: a study of forty trials has forty that can be run. The points of a grid are as they are, some of them failed
trials, and what a search begins with must be one that can be run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nested.config import flatten
from nested.errors import UserError
from nested.learner import Learner
from nested.prepare import check, check_answers, fitting
from nested.settings import Config
from nested.streams.stream import Stream
from nested.tuning.settings import Request
from nested.tuning.space import Dimension, Scalar, defaults, override, told

Values = Mapping[str, Scalar]


class Rehearsal:
    """Builds what a trial would run, on the first seed; the stream is kept for the next one that has the same."""

    def __init__(self, request: Request):
        self.request = request
        self._kept: tuple[Any, Stream] | None = None

    def of(self, values: Values) -> Stream:
        """Raises UserError as the run would."""
        config, learner = self._built(values)
        check_answers(config, learner)
        return learner.stream

    def refusal(self, values: Values) -> UserError | None:
        """Why these values cannot be run, if they cannot, as far as building shows."""
        try:
            self._built(values)
        except UserError as error:
            return error
        except Exception:  # of a component's own code: the trial itself says so
            return None
        return None

    def _built(self, values: Values) -> tuple[Config, Learner]:
        config = self.request.config([override(path, value) for path, value in values.items()])
        check(config)
        about = {k: v for k, v in flatten(config.to_dict()).items() if k.startswith(("stream.", "data.", "prefix"))}
        same = (about, config.seed_list()[0])
        known = self._kept[1] if self._kept and self._kept[0] == same else None
        learner = fitting(config, known)
        self._kept = (same, learner.stream)
        return config, learner


def first(request: Request, config: Config, dimensions: Sequence[Dimension]) -> Stream:
    """The stream of a search, what it begins with having been rehearsed: the defaults, or an end of their ranges.

    Raises UserError, in the words of the space where it is the space's values that cannot be run.
    """
    rehearsal = Rehearsal(request)
    own, _ = defaults(dimensions, config)
    left = [d for d in dimensions if d.path not in own]
    problem = None
    for end in (0, -1) if left else (0,):
        begun = {**own, **{d.path: d.ends()[end] for d in left}}
        try:
            return rehearsal.of(begun)
        except UserError as error:
            problem = problem or (error, begun)
    assert problem is not None
    raise _in_words_of_the_space(rehearsal, dimensions, *problem)


def _in_words_of_the_space(
    rehearsal: Rehearsal, dimensions: Sequence[Dimension], error: UserError, begun: Values
) -> UserError:
    """The error with the dimension that mends it, and the most that it may be; as it is where none does."""
    group = str(error.key).partition(".")[0]
    if not any(d.path.partition(".")[0] == group for d in dimensions):
        return error
    whole = [d for d in dimensions if d.choices is None and d.whole]
    found = [{d.path: most} for d in whole if (most := _most(rehearsal, d, begun)) is not None]
    lowest: dict[str, Scalar] = {d.path: int(d.low) for d in whole}
    if not found and whole and rehearsal.refusal({**begun, **lowest}) is None:
        found = [lowest]
    if not found:
        return UserError(f"{error.message}; the search begins with {told(begun)}", key=error.key, seen=error.seen)
    path, most = next(iter(found[0].items()))
    searched = {d.path: begun[d.path] for d in whole}
    mends = " or ".join(told(f) for f in found)
    text = (
        f"the search begins with {told(searched)}, and that cannot be run: {error.message}. It can begin with at most "
        f"{mends}, all else as it is; the space may stay, since what cannot be run is drawn again"
    )
    return UserError(text, key=f"tune.space.{path}", seen=begun[path], allowed=f"<= {most}")


def _most(rehearsal: Rehearsal, d: Dimension, begun: Values) -> int | None:
    """The largest value below the one begun with that can be run, all else being equal; None without one."""
    below = [v for v in d.points() if isinstance(v, int) and v < int(begun[d.path] or 0)]
    if not below or rehearsal.refusal({**begun, d.path: below[0]}):
        return None
    good, bad = 0, len(below)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if rehearsal.refusal({**begun, d.path: below[middle]}) is None else (good, middle)
    return below[good]
