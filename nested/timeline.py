"""When levels learn, drawn: one character for each of the first steps, or tokens of a sequence."""

from __future__ import annotations

from collections.abc import Sequence

from nested.levels import Level, due, next_slower

TIMELINE = 64  # steps or tokens drawn
RESET = "↺"  # the mark of a token level that goes back to its initial state


def timeline(level: Level, steps: int) -> str:
    """One character for each of the first steps: a mark where the level learns."""
    return "".join("█" if due(level, t) else "·" for t in range(1, min(steps, TIMELINE) + 1))


def token_timelines(levels: Sequence[Level], tokens: int | None) -> dict[str, str]:
    """By level, as `timeline`, for one sequence; where its length is not known, for two ticks of the slowest level.

    The last token has no label, so that nothing learns there (`inner.read`). A reset is in place of an update.
    """
    if not levels:
        return {}
    last = tokens or 2 * max(level.period for level in levels) + 1
    return {level.name: "".join(_mark(level, levels, t, last) for t in _drawn(last)) for level in levels}


def _drawn(tokens: int) -> range:
    return range(1, min(tokens, TIMELINE) + 1)


def _mark(level: Level, levels: Sequence[Level], token: int, last: int) -> str:
    if token == last or not due(level, token):
        return "·"
    slower = next_slower(level, levels)
    return RESET if level.reset and slower is not None and due(slower, token) else "█"
