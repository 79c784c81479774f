"""Who proposes the next values: Optuna's samplers, each made anew for one trial from (seed, trial number).

So what a trial is given depends on the trials before it alone, not on which worker asks or on a restart.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nested.errors import UserError, install
from nested.tuning.space import Dimension

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from nested.tuning.settings import Tune

GUIDED = 10  # draws of a trial by the sampler that is asked for, until one can be run
POPULATION = 10  # of NSGA-II: Optuna's 50 is longer than most studies, whose trials would all be random


def seed_of(seed: int, number: int, draw: int = 0) -> int:
    """A seed for one trial, unlike those of its neighbours; another one for each time that it is drawn."""
    text = f"{seed}/{number}" + (f"/{draw}" if draw else "")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def sampler(tune: Tune, number: int, draw: int = 0) -> BaseSampler:
    """The sampler of trial `number`; one that keeps proposing what cannot be run gives way to chance."""
    from optuna import samplers

    seed = seed_of(tune.seed, number, draw)
    if draw >= GUIDED:
        return samplers.RandomSampler(seed=seed)
    if tune.sampler == "tpe":
        return samplers.TPESampler(seed=seed)
    if tune.sampler == "gp":
        return samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    if tune.sampler == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
    if tune.sampler == "cmaes":
        return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return samplers.RandomSampler(seed=seed)  # also of a grid, whose trials have all their values already


def check(tune: Tune, dimensions: Sequence[Dimension], objectives: int) -> None:
    """Raise UserError for a sampler that cannot search this space, or is not installed."""
    if tune.sampler != "cmaes":
        return
    if objectives > 1:
        text = "CMA-ES knows one objective; take tpe, gp or nsga2 for several"
        raise UserError(text, key="tune.sampler", seen="cmaes", allowed=["tpe", "gp", "nsga2", "random", "grid"])
    if not any(d.choices is None for d in dimensions):
        text = "CMA-ES knows numbers only, and the space has none but choices; take tpe"
        raise UserError(text, key="tune.sampler", seen="cmaes", allowed=["tpe", "gp", "nsga2", "random", "grid"])
    if importlib.util.find_spec("cmaes") is None:
        text = f"CMA-ES needs the package cmaes: {install('cmaes')}"
        raise UserError(text, key="tune.sampler", seen="cmaes", allowed=["tpe", "gp", "nsga2", "random", "grid"])
