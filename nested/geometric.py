"""Levels whose periods form a geometric sequence: two numbers that a tuner can model, and periods that always nest.

Sources: "Nested Learning" (arXiv 2512.24695v1) section 7.1 (levels ordered by frequency, each period a multiple of the
one before). Level l learns every base * ratio^l ticks at the rate scale * rate_ratio^l; all else learns at every step.
"""

from __future__ import annotations

from typing import Annotated, Any

from nested.errors import UserError
from nested.signature import Bound

Positive = Annotated[int, Bound(ge=1)]
Factor = Annotated[float, Bound(gt=0)]
Sections = dict[str, dict[str, Any]]


def steps(
    n_levels: Positive,
    base: Positive = 4,
    ratio: Positive = 4,
    lr_scale: Factor = 1.0,
    lr_ratio: Factor = 1.0,
    glob: str = "*.continuum.{level}.*",
) -> Sections:
    """A chain on the stream clock: level l every base * ratio^l steps, its rate lr_scale * lr_ratio^l times the run's.

    `glob` names a level's parameters, {level} standing for its number. Raises UserError for one without it.
    """
    rest = {"params": "rest", "period_steps": 1}
    return {"fast": rest, **_chain(n_levels, glob, period_steps=(base, ratio), lr_scale=(lr_scale, lr_ratio))}


def tokens(
    n_levels: Positive,
    base: Positive = 4,
    ratio: Positive = 2,
    eta: Annotated[float, Bound(ge=0)] = 0.05,
    eta_ratio: Factor = 1.0,
    glob: str = "*.continuum.{level}.*",
) -> Sections:
    """A chain on the token clock: level l every base * ratio^l tokens read, its inner rate eta * eta_ratio^l.

    Initial states learn at every step, with all else. Raises UserError for a `glob` without {level}.
    """
    rest = {"params": "rest", "period_steps": 1}
    return {"all": rest, **_chain(n_levels, glob, chunk_tokens=(base, ratio), eta=(eta, eta_ratio))}


def _chain(n_levels: int, glob: str, **sequences: tuple[float, float]) -> Sections:
    """Levels l0, l1, ...; each key a geometric sequence over them, from its (first value, ratio)."""
    return {
        f"l{level}": {
            "params": [_glob(glob, level)],
            **{key: first * ratio**level for key, (first, ratio) in sequences.items()},
        }
        for level in range(n_levels)
    }


def _glob(glob: str, level: int) -> str:
    if "{level}" not in glob:
        text = f"{glob!r} names the same parameters for every level; write {{level}} where its number stands"
        raise UserError(text, key="levels.glob", seen=glob)
    return glob.replace("{level}", str(level))
