"""From overrides to a checked `Config`: choices below conf/ and the user's directory, and values by dotted path.

One dotted path names a value in config, tuner and tracker. The settings themselves: `settings.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from nested.errors import UserError, unknown
from nested.levels import LevelConfig, level_config, unknown_key
from nested.settings import Components, Config, Groups, Plain, Sections
from nested.signature import Bound, arguments, build, checked, locate, value_of, wants_maker

__all__ = ["Bound", "Config", "build", "compose", "conf_dirs", "flatten", "from_dict"]


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
    return composer(overrides, config_dir)()


def composer(overrides: Iterable[str], config_dir: str | Path | None = None) -> Callable[..., Config]:
    """What composes these overrides with more values at their end, each time anew, having read the choices once."""
    first = list(overrides)
    groups, values = _split(first, config_dir)
    raw, choices = _compose_groups(groups, config_dir)

    def composed_with(more: Iterable[str] = ()) -> Config:
        other, changed = _split(list(more), config_dir)
        if other:
            return compose([*first, *more], config_dir)
        return _changed(raw, {**values, **changed}, choices)

    return composed_with


def amend(config: Config, overrides: Iterable[str], config_dir: str | Path | None = None) -> Config:
    """A config with sections chosen again and values replaced. Raises UserError."""
    groups, values = _split(list(overrides), config_dir)
    fresh, choices = _compose_groups(groups, config_dir)
    again = {g.partition("=")[0] for g in groups}
    anew = set(fresh) if "recipe" in again else again
    recorded = {k: v for k, v in config.to_dict().items() if k != "choices"}
    raw = {k: fresh[k] if k in anew else v for k, v in recorded.items()}
    return _changed(raw, values, {**config.choices, **{g: choices[g] for g in again}})


def _split(overrides: list[str], config_dir: str | Path | None) -> tuple[list[str], dict[str, Any]]:
    """Group choices (as Hydra wants them) and values by dotted path."""
    groups, values = [], {}
    for text in overrides:
        key, value = read_override(text)
        if key in Groups and not isinstance(value, dict):
            # a choice is a name, even one that reads as a number, such as levels=inf
            choice = value if isinstance(value, str) else text.partition("=")[2].strip()
            found = options(key, config_dir)
            if choice not in found:
                raise unknown(key, choice, found, key)
            groups.append(chosen(key, choice))
        else:
            values[key] = value
    return groups, values


def read_override(text: str) -> tuple[str, Any]:
    """`"optim.lr=0.1"` -> its path and its value. Raises UserError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException:
        raise UserError(
            f"cannot read {text!r}: write key=value, with quotes around text that has spaces or commas", seen=text
        ) from None
    if parsed.is_delete() or parsed.is_sweep_override():
        raise UserError(
            f"{text!r}: one plain key=value at a time; for several values start several runs",
            key=parsed.key_or_group,
            seen=text,
        )
    return parsed.key_or_group, parsed.value()


def chosen(group: str, choice: str) -> str:
    """A choice as Hydra is told of it: quoted, so that no name is taken for a number or for null."""
    return f"{group}='{choice}'"


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


def _check_key(raw: Mapping[str, Any], path: str) -> None:
    """An overridden path must lead to a key that exists or that a signature allows."""
    head, *rest = path.split(".")
    if head not in raw and head not in Plain and head not in Sections:
        raise unknown("key", path, {*flatten(raw), *Groups, *Plain})
    if rest and not _exists(raw.get(head, {}), rest, head):
        raise _stray(raw, path)


def _check_exchange(raw: Mapping[str, Any], path: str, target: Any) -> None:
    """Another `_target_` alone would keep the options of the component before it."""
    where, section = _innermost(raw, path)
    if path != f"{where}._target_" or target == section.get("_target_"):
        return
    known = arguments(locate(str(target), path))
    left = [name for name in section if name not in ("_target_", *known)]
    if left:
        text = f"{target} has no {', '.join(left)}, which {section.get('_target_')} was given; "
        text += f"exchange the whole section: '{where}={{_target_: {target}}}'"
        raise UserError(text, key=path, seen=target)


def _stray(raw: Mapping[str, Any], path: str) -> UserError:
    """The error for a path that leads nowhere: what there is in the last section on the way."""
    where, section = _innermost(raw, path)
    above, _, name = where.rpartition(".")
    if where == "levels" and "_target_" not in section:
        return unknown("level", path.split(".")[1], [n for n, level in section.items() if level is not None], path)
    if above == "levels":
        return unknown_key(name, section, path)
    near = [f"{where}.{k}" for k in _keys(section, where)] if where else []
    return unknown("key", path, near or list(flatten(raw)))


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
    elif "_target_" in section:
        own += list(arguments(locate(section["_target_"], f"{where}._target_")))
    return sorted(set(own))


def _exists(section: Any, path: list[str], where: str) -> bool:
    if not path:
        return True
    if not isinstance(section, Mapping):
        return section is None and where.endswith("optim")  # a level's own optimizer, given key by key
    name, *rest = path
    if name == "_target_" or (where == "levels" and not rest and "_target_" not in section):
        return True
    if name in section:
        return _exists(section[name], rest, f"{where}.{name}")
    if where.startswith("levels.") and where.count(".") == 1 and name == "optim":
        return True
    return not rest and name in _keys(section, where)


def _apply(raw: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections with the values put in, one after the other. Raises UserError for one that leads nowhere."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

    config = OmegaConf.create(raw)
    try:
        for path, value in values.items():
            before = cast(dict[str, Any], OmegaConf.to_container(config))
            _check_key(before, path)
            _check_exchange(before, path, value)
            OmegaConf.update(config, path, value, merge=False, force_add=True)
        resolved = OmegaConf.to_container(config, resolve=True)
    except InterpolationKeyError as error:
        text = f"{error.full_key} takes its value from another key: {error.msg}; give it a value, or choose otherwise"
        raise UserError(" ".join(text.split()), key=error.full_key) from None
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from None
    assert isinstance(resolved, dict)
    return {str(k): v for k, v in resolved.items()}


def _changed(raw: dict[str, Any], values: Mapping[str, Any], choices: Mapping[str, str]) -> Config:
    """The config of these sections and values. A section exchanged as a whole is no longer what its choice names."""
    made = _apply(raw, values)
    exchanged = {g for g in Components if raw[g].get("_target_") != made[g].get("_target_")}
    return from_dict(made, {g: c for g, c in choices.items() if g not in exchanged and g not in values})


def from_dict(raw: Mapping[str, Any], choices: Mapping[str, str] | None = None) -> Config:
    """A checked Config from plain values (a composed one, or a `config.yaml`). Raises UserError."""
    raw = dict(raw)
    choices = dict(raw.pop("choices", {}) or {}) if choices is None else dict(choices)
    sections = {n: c(**checked(c, raw.pop(n, None) or {}, n)) for n, c in Sections.items()}
    levels = _levels(raw.pop("levels", None) or {})
    components = {n: _component(n, raw.pop(n, None)) for n in Components}
    plain = {n: raw.pop(n) for n in Plain if n in raw}
    if raw:
        raise unknown("key", next(iter(raw)), {*Groups, *Sections, *Plain})
    config = Config(**components, **sections, levels=levels, choices=choices)
    config.level_configs()  # a component that makes them says now what is wrong
    everything = {f.name: getattr(config, f.name) for f in fields(Config)}
    return Config(**{**everything, **_plain_values(plain)})


def _plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    known = arguments(Config)
    plain = {n: value_of(v, known[n].annotation, n) for n, v in values.items()}
    seeds = plain.get("seeds")
    if isinstance(seeds, list) and len(set(seeds)) != max(1, len(seeds)):
        raise UserError("one or more seeds are needed, all different", key="seeds", seen=seeds)
    return plain


def _levels(section: Mapping[str, Any]) -> dict[str, Any]:
    """Levels by name, or the component that makes them."""
    if "_target_" in section:
        return _component("levels", section)
    levels = {name: _level(name, level) for name, level in section.items() if level is not None}
    if not levels:
        raise UserError("at least one level is needed, for example levels=single", key="levels")
    return levels


def _level(name: str, section: Any) -> LevelConfig:
    level = level_config(name, section)
    if level.optim is not None:
        _component(f"levels.{name}.optim", level.optim)
    return level


def _component(name: str, section: Any, whole: bool = True) -> dict[str, Any]:
    """Check names, types and bounds of a component's values without building it; not `whole`: some come later."""
    if not isinstance(section, Mapping) or "_target_" not in section:
        raise UserError("a section with a _target_ is needed", key=name, seen=section)
    function = locate(section["_target_"], f"{name}._target_")
    known = arguments(function)
    for key, value in section.items():
        if key in known and wants_maker(known[key]) and not (isinstance(value, Mapping) and "_target_" in value):
            raise _no_section(f"{name}.{key}", value)
    values = checked(function, {k: v for k, v in section.items() if k != "_target_"}, name, () if whole else known)
    for key, value in values.items():
        if isinstance(value, Mapping) and "_target_" in value:
            values[key] = _component(f"{name}.{key}", value, not wants_maker(known[key]))
    return {"_target_": section["_target_"], **values}


def _no_section(where: str, value: Any) -> UserError:
    """The error for a component's component that is none, with those that our choices name."""
    group = where.partition(".")[0]
    files = [flatten(composed(None, [f"+{chosen(group, name)}"], None)) for name in options(group)]
    there = sorted({str(file[f"{where}._target_"]) for file in files if f"{where}._target_" in file})
    near = [target for target in there if str(value).lower() in target.lower()]
    text = f"{value!r} is not allowed; a section with a _target_ is"
    if there:
        text += f", such as '{where}={{_target_: {(near or there)[0]}}}'; there are {', '.join(there)}"
    return UserError(text, key=where, seen=value, allowed=there)


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`: the dotted paths of a config."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        k: v
        for name, value in values.items()
        for k, v in flatten(value, f"{prefix}.{name}" if prefix else str(name)).items()
    }
