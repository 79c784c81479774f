"""The settings of a run: a dataclass for each section of a config that is ours, and the whole config.

A component (stream, model, optim, method) has no dataclass here: it is a mapping with a `_target_`, and the signature
of what it names is its schema (`signature.py`). From overrides to these: `config.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from nested.errors import UserError
from nested.levels import LevelConfig, Positive, level_config
from nested.signature import Bound, build

Seed = Annotated[int, Bound(ge=0, lt=2**63)]  # what torch takes
Components = ("stream", "model", "optim", "method")
Accelerator = Literal["cpu", "gpu", "auto"]
Groups = (*Components, "levels", "trainer", "tracking", "recipe")


@dataclass(frozen=True)
class Trainer:
    """How long and in what pieces a run trains."""

    epochs: Positive = 10  # passes over each experience
    joint_epochs: Positive | None = None  # passes of a method that trains on everything at once; null = epochs
    batch_size: Positive = 32  # examples of a step
    micro_batch: Positive | None = None  # examples of a step differentiated at once; null = all. Memory, not numbers
    eval_batch_size: Positive = 512  # examples judged at once. Memory and speed, not numbers
    clip_norm: Annotated[float, Bound(gt=0)] | None = None  # norm of a level's gathered gradient when it is due
    at_border: Literal["carry", "flush", "drop"] = "carry"  # a partly gathered gradient at an experience border
    allow_idle: bool = False  # let a level tick fewer than 10 times in the run
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"  # of weights and sums; bf16-mixed: autocast
    batches_per_block: Positive = 1  # mini-batches handed to Lightning at once; the numbers do not change by a bit
    threads: Positive | None = None  # torch threads; null = torch's own choice
    kernels: Literal["auto", "reference", "chunked", "triton"] = "auto"  # form of the fast recurrences
    devices: Positive = 1  # more than one is refused so far
    accelerator: Accelerator = "cpu"  # auto: a GPU where there is one
    progress: bool = True  # a bar on standard error


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every level as a pure function of its own ticks."""

    shape: Literal["constant", "linear", "cosine"] = "constant"  # of the rate after the warm-up
    scope: Literal["stream", "experience"] = "stream"  # over which it runs its course: once, or in each experience
    warmup: Annotated[float, Bound(ge=0, lt=1)] = 0.0  # share of the scope's ticks
    final: Annotated[float, Bound(ge=0, le=1)] = 0.0  # last rate / rate, for linear and cosine


@dataclass(frozen=True)
class Checkpoint:
    """When a run can be continued from."""

    every_seconds: Annotated[float, Bound(ge=0)] = 30.0  # between two checkpoints; 0: after every block
    keep: Annotated[int, Bound(ge=2)] = 2  # newest ones on disk; where one is damaged, the one before it serves


@dataclass(frozen=True)
class Evaluate:
    """What is measured besides the accuracy matrix; its cost is accounted apart."""

    parts: list[Literal["test", "validation"]] = field(default_factory=lambda: ["test", "validation"])  # held out
    gain: bool = False  # train each experience alone from the initial state as well
    anytime_steps: Positive | None = None  # evaluate every k optimizer steps
    anytime_ticks: bool = False  # evaluate just before and after each tick of a level slower than the fastest
    snapshots: bool = False  # keep every level's weights after each experience, for nested microscope


@dataclass(frozen=True)
class Head:
    """Which outputs compete in the class-incremental scenario."""

    mask: Literal["none", "seen", "experience"] = "none"  # all; classes met so far; in training the experience's own


@dataclass(frozen=True)
class Data:
    """Where the user's data lies."""

    root: str | None = None  # directory of data sets that a stream reads or downloads


@dataclass(frozen=True)
class Tracking:
    """MLflow: which store, which experiment."""

    enabled: bool = True  # false: tracking=off
    uri: str | None = None  # null = a SQLite file in the runs directory
    experiment: str = "nested"  # name in MLflow
    timeout_seconds: Annotated[float, Bound(gt=0)] = 20.0  # that the end of a run waits for the store
    system_metrics: bool = False  # processor and memory every ten seconds


@dataclass(frozen=True)
class Config:
    """One run, completely: what `nested run` composed and what `config.yaml` holds."""

    stream: dict[str, Any]
    model: dict[str, Any]
    optim: dict[str, Any]
    method: dict[str, Any]
    levels: dict[str, Any]  # name -> LevelConfig, or a component that makes such a mapping: see `level_configs`
    trainer: Trainer = field(default_factory=Trainer)
    schedule: Schedule = field(default_factory=Schedule)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    evaluate: Evaluate = field(default_factory=Evaluate)
    head: Head = field(default_factory=Head)
    data: Data = field(default_factory=Data)
    tracking: Tracking = field(default_factory=Tracking)
    seed: Seed = 0  # of class order, split, initial weights and sample order
    seeds: Positive | list[Seed] | None = None  # a number n: seeds 0 to n-1; a list: exactly those
    prefix: Positive | None = None  # train and judge only so many experiences of the stream; null = all
    label: str | None = None  # how pages call the run
    runs: str = "runs"  # directory of run directories
    choices: dict[str, str] = field(default_factory=dict)  # group -> choice, for labels and grouping

    def seed_list(self) -> list[int]:
        if self.seeds is None:
            return [self.seed]
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def level_configs(self) -> dict[str, LevelConfig]:
        """The levels by name, made where `levels` is a component. Raises UserError for one that makes none."""
        return level_configs(self.levels)

    def name(self) -> str:
        """The label, or one made of the choices."""
        return self.label or " ".join(self.word(g) for g in ("model", "method", "levels"))

    def word(self, group: str) -> str:
        """How a section is called: by its choice, by the component it was exchanged for, or as custom."""
        target = getattr(self, group).get("_target_", "custom")
        return self.choices.get(group) or target.rpartition(".")[2]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def level_configs(section: Mapping[str, Any]) -> dict[str, LevelConfig]:
    """A config's section `levels`, recorded or checked, as levels by name. Raises UserError."""
    if "_target_" in section:
        section = build(section, "levels")
        if not isinstance(section, Mapping) or not section:
            text = f"it made {section!r}; a mapping from names to levels is needed"
            raise UserError(text, key="levels._target_", seen=section)
    return {
        name: level if isinstance(level, LevelConfig) else level_config(name, level)
        for name, level in section.items()
        if level is not None
    }


Sections = {
    "trainer": Trainer,
    "schedule": Schedule,
    "checkpoint": Checkpoint,
    "evaluate": Evaluate,
    "head": Head,
    "data": Data,
    "tracking": Tracking,
}
Plain = ("seed", "seeds", "prefix", "label", "runs")
