"""What a search is asked for: `conf/tune/*.yaml`, `tune.*` on the command line, and which words are the run's own.

`nested tune tune=frequencies tune.n_trials=20 workers=4 launcher=slurm model=mlp`: whatever begins with `tune`,
`workers` or `launcher` is read here, all else composes the config that the trials start from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from nested.config import chosen, composed, composer, options, read_override
from nested.errors import UserError, unknown
from nested.settings import Config, Seed
from nested.signature import Bound, arguments, checked, value_of
from nested.tuning.space import BOUNDS

Count = Annotated[int, Bound(ge=1)]
Seconds = Annotated[float, Bound(gt=0)]
VALIDATION = ("evaluate.parts=[validation]", "trainer.progress=false")  # of every trial: test data is not looked at


@dataclass(frozen=True)
class Tune:
    """What is searched, by what, and how long."""

    space: dict[str, Any]  # config path -> {low, high, log, step} or {choices: [...]}
    overrides: list[str] = field(default_factory=list)  # choices that the space needs, before the user's own
    objective: str | list[str] = "acc"  # one of a run's values, or several: then a Pareto front is searched
    budget: dict[str, Any] | None = None  # {flops: most} or {seconds: most} of training, for each seed
    n_trials: Count = 40  # may grow later; a grid has as many as it has points
    sampler: Literal["tpe", "gp", "nsga2", "cmaes", "random", "grid"] = "tpe"  # that proposes trials
    seed: Seed = 0  # of the sampler; the runs' seeds are the config's
    pruner: Literal["median", "hyperband", "wilcoxon", "none"] = "median"  # that ends trials early
    startup: Count = 5  # median: whole trials before any is pruned
    warmup: Annotated[int, Bound(ge=0)] | None = None  # median: experiences left alone; null: a seed's, alone half
    reduction: Annotated[int, Bound(ge=2)] = 3  # hyperband: one in so many goes on
    p_value: Annotated[float, Bound(gt=0, lt=1)] = 0.1  # wilcoxon: how sure it must be that the best is better
    prefix: Count | None = None  # tune on the first so many experiences alone
    study: str | None = None  # its name; null = tune-<space>-<stream>-<model>
    storage: str | None = None  # null = a SQLite file in the study; journal, postgresql://..., grpc://host:port
    grace_seconds: Seconds = 60.0  # a worker not heard of for so long is dead, and its trial is run again


@dataclass(frozen=True)
class Launcher:
    """Where workers run that are no processes of this command: jobs by submitit."""

    cluster: Literal["local", "slurm"]  # local: processes of this machine, as jobs
    timeout_min: Count = 1440  # of a job; one that runs out is queued again and goes on
    options: dict[str, Any] = field(default_factory=dict)  # as submitit names them: slurm_partition, cpus_per_task


@dataclass(frozen=True)
class Request:
    """One command: the search, the config it starts from, and who works on it."""

    tune: Tune
    overrides: list[str]  # the user's, of the config
    workers: int = 1
    launcher: Launcher | None = None  # None: processes of this machine
    choice: str = "own"  # of conf/tune
    config_dir: str | None = None

    def config(self, params: Iterable[str] = ()) -> Config:
        """The config that the trials start from, with `params` (overrides) on top. Raises UserError."""
        return self._composed(params)

    @cached_property
    def _composed(self) -> Callable[..., Config]:
        prefix = [] if self.tune.prefix is None else [f"prefix={self.tune.prefix}"]
        return composer([*self.tune.overrides, *self.overrides, *prefix, *VALIDATION], self.config_dir)

    def name(self, config: Config) -> str:
        """The study's name. Raises UserError for one that is no name of a directory."""
        words = ("tune", self.choice, *(config.word(g) for g in ("stream", "model")))
        name = self.tune.study or "-".join(words)
        if not re.fullmatch(r"[\w][\w.\- ]*", name) or len(name) > 200:
            text = f"{name!r} is not allowed; up to 200 letters, digits, dots, dashes and spaces"
            raise UserError(text, key="tune.study", seen=name)
        return name

    def as_dict(self) -> dict[str, Any]:
        """What a worker needs to know, as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Request:
        """The request that `as_dict` was of."""
        launcher = values["launcher"] and Launcher(**values["launcher"])
        return cls(**{**values, "tune": Tune(**values["tune"]), "launcher": launcher})


def request(words: Iterable[str], config_dir: str | Path | None = None) -> Request:
    """The command line in its two parts, checked. Raises UserError."""
    words = list(words)
    mine = [w for w in words if re.match(r"\+*(tune|workers|launcher)(?=[.=]|$)", w)]
    values = dict(map(read_override, mine))
    choice = _choice(values.pop("tune", None), "tune", config_dir)
    launcher = _choice(values.pop("launcher", None), "launcher", config_dir)
    workers = value_of(values.pop("workers", 1), Count, "workers")
    for word in values:
        if not word.startswith("tune.") and (launcher is None or word.startswith("workers.")):
            text = "nothing takes it: workers=4 stands alone, and launcher.KEY=VALUE beside launcher=slurm or local"
            raise UserError(text, key=word, seen=values[word])
    section = _changed(_file("tune", choice, config_dir), _below(values, "tune"))
    if not section.get("space"):
        text = "nothing is searched; choose a space, such as tune=rate, or tune.space.optim.lr.low=0.01 and .high=1"
        raise UserError(text, key="tune.space", seen={}, allowed=options("tune", config_dir))
    tune = Tune(**checked(Tune, section, "tune"))
    job = None
    if launcher is not None:
        job = {**_file("launcher", launcher, config_dir), **_below(values, "launcher")}
        job = Launcher(**checked(Launcher, job, "launcher"))
    where = None if config_dir is None else str(Path(config_dir).resolve())
    return Request(tune, [w for w in words if w not in mine], workers, job, choice or "own", where)


def _choice(value: Any, group: str, config_dir: str | Path | None) -> str | None:
    """The name of a choice in conf/<group>/. Raises UserError."""
    if value is None:
        return None
    found = options(group, config_dir)
    if str(value) not in found:
        raise unknown(group, str(value), found, group)
    return str(value)


def _file(group: str, choice: str | None, config_dir: str | Path | None) -> dict[str, Any]:
    """What a file of conf/<group>/ says."""
    return {} if choice is None else dict(composed(None, [f"+{chosen(group, choice)}"], config_dir)[group])


def _below(values: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The values of one group by the rest of their path. Raises UserError for other words."""
    return {k.removeprefix(f"{group}."): v for k, v in values.items() if k.startswith(f"{group}.")}


def _changed(section: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A search with values replaced; a dimension is a path of its own, so `space.optim.lr.low` has two ends.

    The space as a whole comes before its dimensions, wherever it stands. Raises UserError for what would be dropped.
    """
    space = {k: v for k, v in (section.get("space") or {}).items() if v is not None}
    for path, value in sorted(values.items(), key=lambda item: item[0] != "space"):
        head, _, rest = path.partition(".")
        if path == "space":
            space = dict(_section(value, "tune.space"))
            continue
        if not rest:
            section[head] = value
            continue
        if head == "budget":
            section[head] = {**(section.get(head) or {}), rest: value}
            continue
        if head != "space":
            raise unknown("key", f"tune.{path}", [f"tune.{name}" for name in arguments(Tune)])
        dimension, _, bound = rest.rpartition(".")
        if value is None and rest in space:
            del space[rest]
        elif isinstance(value, Mapping):
            space[rest] = value
        elif bound in BOUNDS and dimension:
            bounds = {**_section(space.get(dimension), f"tune.space.{dimension}"), bound: value}
            space[dimension] = {k: v for k, v in bounds.items() if v is not None}
        else:
            text = f"{value!r} is not allowed; write tune.space.{rest}.low=1 and .high=8, or .choices=[1,2]"
            raise UserError(text, key=f"tune.space.{rest}", seen=value, allowed=list(BOUNDS))
    return {**section, "space": space}


def _section(value: Any, key: str) -> Mapping[str, Any]:
    """A part of a space, empty where there is none yet. Raises UserError for what is no section."""
    if value is not None and not isinstance(value, Mapping):
        text = f"{value!r} is not allowed; write tune.space.optim.lr.low=0.01 and .high=1, or .choices=[0.1,1]"
        raise UserError(text, key=key, seen=value, allowed=list(BOUNDS))
    return value or {}
