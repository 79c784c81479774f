"""What can be chosen, and what a choice means: read from conf/ and, without importing it, from the code it names."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nested.catalog_view import overview, rendered
from nested.config import chosen, composed, conf_dirs, options
from nested.errors import UserError, unknown
from nested.levels import LevelConfig
from nested.settings import Components, Config, Groups, Plain, Sections
from nested.signature import Argument, arguments, locate, spell, takes, wants_maker
from nested.tuning.settings import Launcher, Tune

if TYPE_CHECKING:
    from rich.console import Group

Schemas: dict[str, type] = {**Sections, "tune": Tune, "launcher": Launcher}
OfVerbs = {"best": "nested.tuning.controls.Wanted", "contest": "nested.contest.settings.Contest"}  # imported when shown
Known = (*Groups, "tune", "launcher")
HOPS = 4  # re-exports followed to find a definition


def listing(group: str | None = None, config_dir: str | Path | None = None) -> list[tuple[str, str, str]]:
    """(group, choice, sentence) of everything that can be chosen, no component being imported. Raises UserError."""
    if group is not None and group not in Known:
        raise unknown("group", group, Known, "list")
    return [row for g in ([group] if group else Known) for row in _sentences(g, config_dir)]


def _sentences(group: str, config_dir: str | Path | None) -> list[tuple[str, str, str]]:
    files = [(name, _file(group, name, config_dir)) for name in options(group, config_dir)]
    shared = Counter(_target(file) for _, file in files)
    return [(group, name, sentence(file, shared[_target(file)] > 1)) for name, file in files]


def sentence(file: Path, shared: bool = False) -> str:
    """One sentence on a choice: from the docstring of its `_target_`, else the first comment of its file.

    Where several choices share a target, or it is given other components, its docstring cannot tell what this choice
    is: the comment goes first.
    """
    target, comment = _target(file), _first_comment(file)
    made_of_others = re.search(r"^\s+_target_:", file.read_text(), re.MULTILINE)
    if comment and (shared or made_of_others or target is None):
        return comment
    doc = documentation(target) if target else None
    return first_sentence(doc) if doc else comment or target or _schema_doc(file.parent.name)


def taking(group: str, argument: str) -> list[str]:
    """Our choices of a group whose component asks for a context argument of this name, such as `vocabulary`."""
    targets = {name: _target(_file(group, name, None)) for name in options(group)}
    return [name for name, target in targets.items() if target and takes(locate(target, group), argument)]


def _target(file: Path) -> str | None:
    found = re.search(r"^_target_:\s*['\"]?([\w.]+)", file.read_text(), re.MULTILINE)
    return found[1] if found else None


def _schema_doc(group: str) -> str:
    return first_sentence(inspect.getdoc(Schemas[group]) or "") if group in Schemas else ""


def first_sentence(text: str) -> str:
    """Up to the first full stop that a new sentence follows, on one line."""
    paragraph = " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
    found = re.match(r".+?[.!?](?=\s+[A-Z`(])", paragraph)
    return found[0] if found else paragraph


def documentation(target: str, hops: int = HOPS) -> str | None:
    """The docstring of what a dotted path names, read from its file; None where it cannot be read."""
    module, _, name = target.rpartition(".")
    try:
        file = module_file(module)
        tree = ast.parse(file.read_text(encoding="utf-8")) if file else None
    except (OSError, SyntaxError, ValueError, ImportError):
        return None
    if tree is None:
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node)
    moved = _imported_from(tree, name, module, package=file is not None and file.name == "__init__.py")
    return documentation(moved, hops - 1) if moved and hops else None


def module_file(name: str) -> Path | None:
    """The source file of a module, no part of it (nor a package above it) being imported."""
    first, *rest = name.split(".")
    spec = importlib.util.find_spec(first) if first else None
    for i in range(len(rest)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        path = list(spec.submodule_search_locations)
        spec = importlib.machinery.PathFinder.find_spec(".".join([first, *rest[: i + 1]]), path)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _imported_from(tree: ast.Module, name: str, module: str, package: bool) -> str | None:
    """The dotted path that `from ... import name` in this module brings in."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            if (alias.asname or alias.name) == name:
                above = module.split(".") + ([""] if package else [])
                parts = above[: -node.level] if node.level else []
                return ".".join([*parts, *([node.module] if node.module else []), alias.name])
    return None


def _first_comment(file: Path) -> str:
    found = re.search(r"^#\s*(?!@package)(\S.*)$", file.read_text(), re.MULTILINE)
    return first_sentence(found[1]) if found else ""


def _file(group: str, choice: str, config_dir: str | Path | None) -> Path:
    found = options(group, config_dir)
    if choice not in found:
        raise unknown(group, choice, found, group)
    return next(f for d in conf_dirs(config_dir) if (f := d / group / f"{choice}.yaml").is_file())


def describe(group: str, choice: str, config_dir: str | Path | None = None) -> tuple[Group, dict[str, Any]]:
    """One choice for the terminal and as plain values: keys, values, types, bounds, source. Raises UserError."""
    if group not in Known:
        raise unknown("group", group, Known, "show")
    file = _file(group, choice, config_dir)
    about: dict[str, Any] = {"group": group, "choice": choice, "file": str(file), "summary": sentence(file)}
    if group == "recipe":
        about |= {"text": file.read_text()}
    else:
        about |= _explained(group, _composed(group, choice, config_dir), _comments(file.read_text()))
    return rendered(about), json.loads(json.dumps(about, default=str))


def sections() -> list[tuple[str, str]]:
    """(name, sentence) of all that is set and not chosen: sections, and keys that are in none."""
    notes = _field_comments(Config)
    docs = {**{n: inspect.getdoc(c) for n, c in Schemas.items()}, "levels": inspect.getdoc(LevelConfig)}
    docs |= {name: documentation(target) for name, target in OfVerbs.items()}
    return [*((name, first_sentence(doc or "")) for name, doc in docs.items()), *((n, notes[n]) for n in Plain)]


def all_sections(config_dir: str | Path | None = None) -> tuple[str, dict[str, Any]]:
    """What can be chosen and what can be set, for the terminal and as plain values."""
    groups = [(group, len(options(group, config_dir))) for group in Known]
    plain = {"groups": [g for g, _ in groups], "sections": [dict(zip(("name", "what"), row)) for row in sections()]}
    return overview(groups, sections()), plain


def describe_section(name: str, config_dir: str | Path | None = None) -> tuple[Group, dict[str, Any]]:
    """A section, or a key that is in none, from the dataclass that checks it. Raises UserError."""
    known = [n for n, _ in sections()]
    if name not in known and name in Known:
        text = f"{name} is chosen: write group=choice, such as {name}={options(name, config_dir)[0]}"
        raise UserError(text, key="show", seen=name, allowed=[f"{name}={c}" for c in options(name, config_dir)])
    if name not in known:
        raise unknown("section", name, [*known, *Known], "show")
    root = composed("config", [], config_dir)
    if name in Plain:
        about = {
            **_source(Config),
            "doc": "",
            "keys": _rows("", {name: arguments(Config)[name]}, root, _field_comments(Config)),
        }
    elif name == "levels":
        rows = _rows("levels.NAME", arguments(LevelConfig), {}, _field_comments(LevelConfig))
        about = {**_source(LevelConfig), "keys": rows}
    else:
        schema = Schemas[name] if name in Schemas else locate(OfVerbs[name], name)
        assert isinstance(schema, type)
        rows = _rows(name, arguments(schema), root.get(name) or {}, _field_comments(schema))
        about = {**_source(schema), "keys": rows}
    about = {"section": name, **about}
    return rendered(about), json.loads(json.dumps(about, default=str))


def _explained(group: str, section: Mapping[str, Any], comments: Mapping[str, str]) -> dict[str, Any]:
    """The source and the keys of a composed section."""
    if group == "levels" and "_target_" not in section:
        schema, notes = arguments(LevelConfig), _field_comments(LevelConfig)
        levels = {f"levels.{name}": values for name, values in section.items() if isinstance(values, Mapping)}
        keys = [row for where, values in levels.items() for row in _rows(where, schema, values, notes)]
        return {**_source(LevelConfig), "keys": keys}
    if group in Components or group == "levels":
        if "_target_" not in section:
            raise UserError("a _target_ is needed: the dotted path of what it builds", key=group, seen=dict(section))
        target = str(section["_target_"])
        function = locate(target, f"{group}._target_")
        return {"target": target, **_source(function), "keys": _component_rows(group, section, comments)}
    schema = Schemas[group]
    notes = {**comments, **_field_comments(schema)}
    return {**_source(schema), "keys": [*_rows(group, arguments(schema), section, notes), *_dimensions(section, notes)]}


def _dimensions(section: Mapping[str, Any], comments: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row for each value that a search varies."""
    return [
        {
            "key": f"tune.space.{path}", "value": bounds, "default": None, "needed": False, "type": "range or choices",
            "help": comments.get(f"space.{path}", ""),
        }
        for path, bounds in (section.get("space") or {}).items()
    ]  # fmt: skip


def _component_rows(where: str, section: Mapping[str, Any], comments: Mapping[str, str]) -> list[dict[str, Any]]:
    """The keys of a component and, each below its own, of the components it is given.

    A component that is handed over as a maker gets what its section leaves out from the one that makes it.
    """
    known = arguments(locate(str(section["_target_"]), f"{where}._target_"))
    rows = []
    for argument, row in zip(known.values(), _rows(where, known, section, comments), strict=True):
        rows.append(row)
        if isinstance(row["value"], Mapping) and "_target_" in row["value"]:
            inside = {
                k.removeprefix(f"{argument.name}."): text
                for k, text in comments.items()
                if k.startswith(f"{argument.name}.")
            }
            below = _component_rows(row["key"], row["value"], inside)
            rows += [r for r in below if not (r["needed"] and wants_maker(argument))]
    return rows


def _rows(
    where: str, schema: Mapping[str, Argument], section: Mapping[str, Any], comments: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row for each key of a schema, with what the section gives it."""
    return [
        {
            "key": f"{where}.{name}" if where else name,
            "value": section.get(name, argument.default),
            "default": argument.default,
            "needed": section.get(name) == "???" or (argument.required and name not in {*section, "seed"}),
            "type": spell(argument.annotation),
            "help": comments.get(name, ""),
        }
        for name, argument in schema.items()
    ]


def _source(function: Callable[..., Any]) -> dict[str, Any]:
    """Where it is defined, its docstring and its module's (which holds paper and equation)."""
    module = inspect.getmodule(function)
    try:
        lines = inspect.getsourcelines(function)[1]
        file = f"{inspect.getsourcefile(function)}:{lines}"
    except (OSError, TypeError):  # built in, or made at run time
        file = None
    return {"source": file, "doc": inspect.getdoc(function) or "", "module_doc": inspect.getdoc(module) or ""}


def _composed(group: str, choice: str, config_dir: str | Path | None) -> dict[str, Any]:
    """The section that a choice gives, with the choices it is built on."""
    values = composed(None, [f"+{chosen(group, choice)}"], config_dir)
    section = values.get(group)
    return {str(k): v for k, v in section.items()} if isinstance(section, dict) else {}


def _comments(text: str) -> dict[str, str]:
    """Dotted name -> the comment at the end of the line that sets it; what is indented lies below."""
    comments: dict[str, str] = {}
    path: list[tuple[int, str]] = []  # indentation and name of each section that a line is in
    for found in re.finditer(r"^( *)([\w.]+)\s*:(?:[^#\n]*?(?<=\s)#\s*(.+))?", text, re.MULTILINE):
        path = [above for above in path if above[0] < len(found[1])] + [(len(found[1]), found[2])]
        if found[3]:
            comments[".".join(name for _, name in path)] = found[3].strip()
    return comments


def _field_comments(schema: type) -> dict[str, str]:
    comments = _comments(inspect.getsource(schema))
    return {f.name: comments[f.name] for f in fields(schema) if f.name in comments}
