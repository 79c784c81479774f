"""A configuration as a file of conf/recipe/: the choices it is made of, and what differs from them."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nested import rundir
from nested.config import compose, conf_dirs, flatten
from nested.errors import NestedError, UserError
from nested.settings import Config
from nested.tuning.study import Study

OWN = ("seed", "seeds", "label", "runs", "prefix", "tracking", "checkpoint", "data", "choices", "evaluate")  # of a run
MARK = "# Written by nested tune best"
GROUPS = ("stream", "model", "optim", "levels", "method", "trainer")


def names(name: str, k: int, study: Study) -> list[Path]:
    """The files of k recipes, below --config-dir or ./conf. Raises UserError for one that somebody else wrote."""
    place = Path(study.request.config_dir or "conf").expanduser().resolve() / "recipe"
    stem = re.sub(r"[^\w-]+", "-", name)
    found = [place / f"{stem}{'' if i == 0 else f'-{i + 1}'}.yaml" for i in range(k)]
    for file in found:
        ours = conf_dirs()[0] / "recipe" / file.name
        taken = next((f for f in (file, ours) if f.is_file() and f"{MARK} {study.name}\n" not in f.read_text()), None)
        if taken:
            text = f"{taken} is there, and not of this study; name the recipe otherwise: best.recipe=NAME"
            raise UserError(text, key="best.recipe", seen=file.stem)
    return found


def write(file: Path, config: Config, said: Sequence[str], study: str) -> Path:
    """Write a config as a recipe below the directory of the user's choices.

    Raises NestedError, with no file left, where it would compose another config.
    """
    place = file.parent.parent
    with rundir.said(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    choices = {g: config.choices[g] for g in GROUPS if g in config.choices}
    wanted, base = (_values(c) for c in (config, compose([f"{g}={c}" for g, c in choices.items()], place)))
    differs = {k: v for k, v in wanted.items() if k not in base or base[k] != v}
    comment = [f"# {line}" for text in said for line in textwrap.wrap(text, 116)]
    lines = ["# @package _global_", *comment, f"{MARK} {study}", "defaults:"]
    lines += [f"  - override /{group}: {_quoted(choice)}" for group, choice in choices.items()]
    text = "\n".join(lines) + "\n" + "".join(_lines(_nested(differs)))
    rundir.write_atomic(file, text.encode())
    made = _values(compose([f"recipe={file.stem}"], place))
    if other := sorted(k for k in {*made, *wanted} if made.get(k) != wanted.get(k)):
        file.unlink()
        raise NestedError(f"no recipe can say this configuration: {', '.join(other)} would come out otherwise")
    return file


def _quoted(choice: str) -> str:
    """A name as YAML reads it back, whatever it looks like."""
    words = ("null", "true", "false", "yes", "no", "on", "off")
    return choice if re.fullmatch(r"[a-z]\w+", choice) and choice not in words else json.dumps(choice)


def _lines(values: dict[str, Any]) -> list[str]:
    """Each section as one line of YAML."""
    import yaml

    return [
        f"{k}: {yaml.safe_dump(v, default_flow_style=True, width=10_000, sort_keys=False)}" for k, v in values.items()
    ]


def _values(config: Config) -> dict[str, Any]:
    """What a recipe says: all but what is a run's own."""
    kept = {k: v for k, v in rundir.as_stored(config.to_dict()).items() if k not in OWN}
    trainer = {k: v for k, v in kept["trainer"].items() if k != "progress"}
    return flatten({**kept, "trainer": trainer})


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` -> `{"a": {"b": 1}}`."""
    made: dict[str, Any] = {}
    for path, value in values.items():
        *above, last = path.split(".")
        section = made
        for name in above:
            section = section.setdefault(name, {})
        section[last] = value
    return made
