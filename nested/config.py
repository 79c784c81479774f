"""The schema of conf/ and the way from overrides to a checked `Config`.

A component (stream, model, optim, method) is a mapping with a `_target_`; the signature of what it names is its schema
(`signature.py`). Everything else is a dataclass here. One dotted path names a value in config, tuner and tracker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from nested.errors import UserError, unknown
from nested.signature import Bound, arguments, build, checked, locate, wants_maker

__all__ = ["Bound", "Config", "build", "compose", "conf_dirs", "flatten", "from_dict"]

Positive = Annotated[int, Bound(ge=1)]
Seed = Annotated[int, Bound(ge=0, lt=2**63)]  # what torch takes
Components = ("stream", "model", "optim", "method")
Groups = (*Components, "levels", "trainer", "tracking", "recipe")


@dataclass(frozen=True)
class Trainer:
    """How long and in what pieces a run trains."""

    epochs: Positive = 10  # passes over each experience
    joint_epochs: Positive | None = None  # passes of a method that trains on everything at once; null = epochs
    batch_size: Positive = 32
    eval_batch_size: Positive = 512
    clip_norm: Annotated[float, Bound(gt=0)] | None = None  # norm of a level's gathered gradient when it is due
    at_border: Literal["carry", "flush", "drop"] = "carry"  # a partly gathered gradient at an experience border
    allow_idle: bool = False  # let a level tick fewer than 10 times in the run
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    batches_per_block: Positive = 1  # mini-batches handed to Lightning at once; the numbers do not change by a bit
    threads: Positive | None = None  # torch threads; null = torch's own choice
    devices: Positive = 1
    accelerator: Literal["cpu", "gpu", "auto"] = "cpu"
    progress: bool = True


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every level as a pure function of its own ticks."""

    shape: Literal["constant", "linear", "cosine"] = "constant"
    scope: Literal["stream", "experience"] = "stream"
    warmup: Annotated[float, Bound(ge=0, lt=1)] = 0.0  # share of the scope's ticks
    final: Annotated[float, Bound(ge=0, le=1)] = 0.0  # last rate / rate, for linear and cosine


@dataclass(frozen=True)
class Checkpoint:
    """When a run can be continued from."""

    every_seconds: Annotated[float, Bound(ge=0)] = 30.0
    keep: Annotated[int, Bound(ge=2)] = 2


@dataclass(frozen=True)
class Evaluate:
    """What is measured besides the accuracy matrix; its cost is accounted apart."""

    parts: list[Literal["test", "validation"]] = field(default_factory=lambda: ["test", "validation"])
    gain: bool = False  # train each experience alone from the initial state as well
    anytime_steps: Positive | None = None  # evaluate every k optimizer steps
    anytime_ticks: bool = False  # evaluate just before and after each tick of a level slower than the fastest


@dataclass(frozen=True)
class Head:
    """Which outputs compete in the class-incremental scenario."""

    mask: Literal["none", "seen", "experience"] = "none"


@dataclass(frozen=True)
class Data:
    """Where the user's data lies."""

    root: str | None = None


@dataclass(frozen=True)
class Tracking:
    """MLflow: which store, which experiment."""

    enabled: bool = True
    uri: str | None = None  # null = a SQLite file in the runs directory
    experiment: str = "nested"
    timeout_seconds: Annotated[float, Bound(gt=0)] = 20.0


@dataclass(frozen=True)
class LevelConfig:
    """One level: which parameters, on which clock, by which rule."""

    params: list[str] | str  # globs over parameter names, or `rest`: all that no other level names
    period_steps: Positive | None = None  # stream clock: optimizer steps between two updates
    chunk_tokens: Positive | None = None  # token clock: observed tokens between two updates
    eta: Annotated[float, Bound(ge=0)] | None = None  # token clock: inner rate, needed there
    clip_norm: Annotated[float, Bound(gt=0)] | None = None  # token clock: norm of a sequence's gathered gradient
    reset: bool = False  # token clock: back to the initial state when the next slower level learns
    gather: Literal["mean", "sum"] | None = None  # gradients of a period; null = mean, or sum on the token clock
    lr_scale: Annotated[float, Bound(gt=0)] = 1.0  # stream clock: the level's rate as a multiple of its rule's
    optim: dict[str, Any] | None = None  # stream clock: null = the run's optimizer


@dataclass(frozen=True)
class Config:
    """One run, completely: what `nested run` composed and what `config.yaml` holds."""

    stream: dict[str, Any]
    model: dict[str, Any]
    optim: dict[str, Any]
    method: dict[str, Any]
    levels: dict[str, LevelConfig]
    trainer: Trainer = field(default_factory=Trainer)
    schedule: Schedule = field(default_factory=Schedule)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    evaluate: Evaluate = field(default_factory=Evaluate)
    head: Head = field(default_factory=Head)
    data: Data = field(default_factory=Data)
    tracking: Tracking = field(default_factory=Tracking)
    seed: Seed = 0
    seeds: Positive | list[Seed] | None = None  # a number n: seeds 0 to n-1; a list: exactly those
    label: str | None = None  # how pages call the run
    runs: str = "runs"  # directory of run directories
    choices: dict[str, str] = field(default_factory=dict)  # group -> choice, for labels and grouping

    def seed_list(self) -> list[int]:
        if self.seeds is None:
            return [self.seed]
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def name(self) -> str:
        """The label, or one made of the choices."""
        return self.label or " ".join(self.choices.get(g, "custom") for g in ("model", "method", "levels"))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Sections = {
    "trainer": Trainer,
    "schedule": Schedule,
    "checkpoint": Checkpoint,
    "evaluate": Evaluate,
    "head": Head,
    "data": Data,
    "tracking": Tracking,
}
Plain = ("seed", "seeds", "label", "runs")


def conf_dirs(config_dir: str | Path | None = None) -> list[Path]:
    """Where choices are looked for: the user's directory and ours (in a wheel, or in the checkout).

    Raises UserError when the user's does not exist, or has a choice with the name of one of ours.
    """
    here = Path(__file__).resolve().parent
    ours = next(p for p in (here / "conf", here.parent / "conf") if p.is_dir())
    if config_dir is None:
        return [ours]
    user = Path(config_dir).resolve()
    if not user.is_dir():
        raise UserError(f"no such directory: {user}", key="--config-dir", seen=str(config_dir))
    for file in user.glob("*/*.yaml"):
        if user != ours and (ours / file.relative_to(user)).is_file():
            text = f"{file} has the name of one of ours; give it another, so that a name always means one thing"
            raise UserError(text, key="--config-dir", seen=str(file.relative_to(user)))
    return [user, ours]


def options(group: str, config_dir: str | Path | None = None) -> list[str]:
    """The choices of one group, by name."""
    return sorted({f.stem for d in conf_dirs(config_dir) for f in (d / group).glob("*.yaml")})


def compose(overrides: Iterable[str] = (), config_dir: str | Path | None = None) -> Config:
    """`["stream=split_digits", "optim.lr=0.1"]` -> a checked Config. Raises UserError."""
    groups, values = _split(list(overrides), config_dir)
    raw, choices = _compose_groups(groups, config_dir)
    _check_keys(raw, values)
    return from_dict(_apply(raw, values), choices)


def amend(config: Config, overrides: Iterable[str], config_dir: str | Path | None = None) -> Config:
    """A config with sections chosen again and values replaced. Raises UserError."""
    groups, values = _split(list(overrides), config_dir)
    fresh, choices = _compose_groups(groups, config_dir)
    chosen = {g.partition("=")[0] for g in groups}
    anew = set(fresh) if "recipe" in chosen else chosen
    recorded = {k: v for k, v in config.to_dict().items() if k != "choices"}
    raw = {k: fresh[k] if k in anew else v for k, v in recorded.items()}
    _check_keys(raw, values)
    return from_dict(_apply(raw, values), {**config.choices, **{g: choices[g] for g in chosen}})


def _split(overrides: list[str], config_dir: str | Path | None) -> tuple[list[str], dict[str, Any]]:
    """Group choices (as Hydra wants them) and values by dotted path."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    groups, values = [], {}
    for text in overrides:
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException:
            raise UserError(
                f"cannot read {text!r}: write key=value, with quotes around text that has spaces or commas", seen=text
            ) from None
        key, value = parsed.key_or_group, parsed.value()
        if parsed.is_delete() or parsed.is_sweep_override():
            raise UserError(
                f"{text!r}: one plain key=value at a time; for several values start several runs", key=key, seen=text
            )
        if key in Groups and not isinstance(value, dict):
            found = options(key, config_dir)
            if value not in found:
                raise unknown(key, str(value), found, key)
            groups.append(f"{key}={value}")
        else:
            values[key] = value
    return groups, values


def composed(root: str | None, overrides: list[str], config_dir: str | Path | None) -> dict[str, Any]:
    """What Hydra makes of our directory and the user's, unresolved. Raises UserError for a file it cannot read."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    *user, ours = conf_dirs(config_dir)
    quoted = [str(p).replace("'", r"\'") for p in user]  # a path may hold commas, equal signs, brackets
    search = [f"hydra.searchpath=['file://{q}']" for q in quoted]
    try:
        with initialize_config_dir(version_base=None, config_dir=str(ours)):
            found = hydra_compose(root, overrides=[*search, *overrides], return_hydra_config=root is not None)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:  # a file of the user's
        raise UserError(f"{', '.join(overrides)} cannot be read: {' '.join(str(error).split())}") from None
    values = OmegaConf.to_container(found, resolve=False)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def _compose_groups(groups: list[str], config_dir: str | Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The sections of these choices, and which choice each group has."""
    raw = composed("config", groups, config_dir)
    choices = raw.pop("hydra")["runtime"]["choices"]
    return raw, {str(k): str(v) for k, v in choices.items() if k in Groups and v}


def _check_keys(raw: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Every overridden path must lead to a key that exists or that a signature allows."""
    for path in values:
        head, *rest = path.split(".")
        if head not in raw and head not in Plain and head not in Sections:
            raise unknown("key", path, {*flatten(raw), *Groups, *Plain})
        if rest and not _exists(raw.get(head, {}), rest, head):
            where, section = _innermost(raw, path)
            near = [f"{where}.{k}" for k in _keys(section, where)] if where else []
            raise unknown("key", path, near or list(flatten(raw)))


def _innermost(raw: Mapping[str, Any], path: str) -> tuple[str, Mapping[str, Any]]:
    """The last section on the way to `path`, with its own path."""
    where, section = [], raw
    for name in path.split("."):
        if not isinstance(section.get(name), Mapping):
            break
        where, section = [*where, name], section[name]
    return ".".join(where), section


def _keys(section: Any, where: str) -> list[str]:
    if not isinstance(section, Mapping):
        return []
    own = [k for k in flatten(section) if k != "_target_" and not k.endswith("._target_")]
    parts = {n: v for n, v in section.items() if isinstance(v, Mapping) and "_target_" in v}
    own += [f"{name}.{key}" for name, part in parts.items() for key in _keys(part, f"{where}.{name}")]
    if where in Sections:
        own += [f.name for f in fields(Sections[where])]
    elif where.startswith("levels.") and where.count(".") == 1:
        own += [f.name for f in fields(LevelConfig)]
    elif where == "levels":
        own += [f"{level}.{f.name}" for level in section for f in fields(LevelConfig)]
    elif "_target_" in section:
        own += list(arguments(locate(section["_target_"], f"{where}._target_")))
    return sorted(set(own))


def _exists(section: Any, path: list[str], where: str) -> bool:
    if not path:
        return True
    if not isinstance(section, Mapping):
        return section is None and where.endswith("optim")  # a level's own optimizer, given key by key
    name, *rest = path
    if name == "_target_" or (where == "levels" and not rest):
        return True
    if name in section:
        return _exists(section[name], rest, f"{where}.{name}")
    if where.startswith("levels.") and where.count(".") == 1 and name == "optim":
        return True
    return not rest and name in _keys(section, where)


def _apply(raw: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = OmegaConf.create(raw)
    try:
        for path, value in values.items():
            OmegaConf.update(config, path, value, merge=False, force_add=True)
        resolved = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from None
    assert isinstance(resolved, dict)
    return {str(k): v for k, v in resolved.items()}


def from_dict(raw: Mapping[str, Any], choices: Mapping[str, str] | None = None) -> Config:
    """A checked Config from plain values (a composed one, or a `config.yaml`). Raises UserError."""
    raw = dict(raw)
    choices = dict(raw.pop("choices", {}) or {}) if choices is None else dict(choices)
    sections = {n: c(**checked(c, raw.pop(n, None) or {}, n)) for n, c in Sections.items()}
    levels = {n: _level(n, section) for n, section in (raw.pop("levels", None) or {}).items() if section is not None}
    if not levels:
        raise UserError("at least one level is needed, for example levels=single", key="levels")
    components = {n: _component(n, raw.pop(n, None)) for n in Components}
    plain = {n: raw.pop(n) for n in Plain if n in raw}
    if raw:
        raise unknown("key", next(iter(raw)), {*Groups, *Sections, *Plain})
    config = Config(**components, **sections, levels=levels, choices=choices)
    everything = {f.name: getattr(config, f.name) for f in fields(Config)}
    return Config(**{**everything, **_plain_values(plain)})


def _plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    from nested.signature import value_of

    known = arguments(Config)
    plain = {n: value_of(v, known[n].annotation, n) for n, v in values.items()}
    seeds = plain.get("seeds")
    if isinstance(seeds, list) and len(set(seeds)) != max(1, len(seeds)):
        raise UserError("one or more seeds are needed, all different", key="seeds", seen=seeds)
    return plain


def _level(name: str, section: Any) -> LevelConfig:
    key = f"levels.{name}"
    if not isinstance(section, Mapping):
        raise UserError(
            f"{section!r} is not allowed; a level is a mapping with params and period_steps", key=key, seen=section
        )
    level = LevelConfig(**checked(LevelConfig, section, key))
    if (level.period_steps is None) == (level.chunk_tokens is None):
        raise UserError(
            "give period_steps (stream clock) or chunk_tokens (token clock), and not both", key=key, seen=section
        )
    _one_clock(level, key)
    if isinstance(level.params, str) and level.params != "rest":
        raise UserError(
            f"{level.params!r} is not allowed; a list of globs, or the word rest",
            key=f"{key}.params",
            seen=level.params,
        )
    if level.optim is not None:
        _component(f"{key}.optim", level.optim)
    return level


def _one_clock(level: LevelConfig, key: str) -> None:
    """Raise UserError for a key of the other clock, or an inner rate that is missing."""
    here, there = ("stream", "token") if level.period_steps else ("token", "stream")
    foreign = {"stream": ("eta", "clip_norm", "reset"), "token": ("lr_scale", "optim")}[here]
    plain = {f.name: f.default for f in fields(LevelConfig)}
    for name in foreign:
        if getattr(level, name) != plain[name]:
            text = f"belongs to the {there} clock, and this level is on the {here} clock; leave it out"
            raise UserError(text, key=f"{key}.{name}", seen=getattr(level, name))
    if here == "token" and level.eta is None:
        raise UserError("a level on the token clock needs its inner rate, a number >= 0", key=f"{key}.eta")


def _component(name: str, section: Any, whole: bool = True) -> dict[str, Any]:
    """Check names, types and bounds of a component's values without building it; not `whole`: some come later."""
    if not isinstance(section, Mapping) or "_target_" not in section:
        raise UserError("a section with a _target_ is needed", key=name, seen=section)
    function = locate(section["_target_"], f"{name}._target_")
    known = arguments(function)
    values = checked(function, {k: v for k, v in section.items() if k != "_target_"}, name, () if whole else known)
    for key, value in values.items():
        if isinstance(value, Mapping) and "_target_" in value:
            values[key] = _component(f"{name}.{key}", value, not wants_maker(known[key]))
    return {"_target_": section["_target_"], **values}


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`: the dotted paths of a config."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        k: v
        for name, value in values.items()
        for k, v in flatten(value, f"{prefix}.{name}" if prefix else str(name)).items()
    }
