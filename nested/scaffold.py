"""New components: one file, one config and one contract test, written from templates and ready to run."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import keyword
from pathlib import Path
from string import Template

from nested.config import options
from nested.errors import UserError, unknown
from nested.rundir import said

_GROUPS = {"memory": "model"}  # kind -> group of its config, where that is not its own name
Kinds = ("stream", "model", "memory", "optim", "method")
TEMPLATES = Path(__file__).resolve().parent / "templates"


def group(kind: str) -> str:
    """The config group in which a new component of this kind can be chosen."""
    return _GROUPS.get(kind, kind)


def init(kind: str, name: str, where: str | Path = ".") -> list[Path]:
    """Write `NAME.py`, `conf/GROUP/NAME.yaml` and `test_NAME.py` in a directory; nothing is ever overwritten.

    Then `nested run GROUP=NAME --config-dir conf` runs there; a memory's group is model: HOPE's frame around it. Raises
    UserError for a kind or a name that cannot be.
    """
    _check_kind(kind)
    _check_name(kind, name)
    root = Path(where).expanduser()
    files = {root / path: text for path, text in _filled(kind, name).items()}
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is no directory", key="init", seen=str(root))
    there = [path for path in files if path.exists()]
    if there:
        raise UserError(f"{there[0]} is there already; choose another name", key="init", seen=name)
    _check_free(kind, name)
    for path, text in files.items():
        with said(root):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return list(files)


def _filled(kind: str, name: str) -> dict[str, str]:
    """Path below the directory -> content."""
    words = {"name": name, "Name": class_name(name)}
    sources = {
        f"{name}.py": f"{kind}.py.txt",
        f"conf/{group(kind)}/{name}.yaml": f"{kind}.yaml.txt",
        f"test_{name}.py": f"test_{kind}.py.txt",
    }
    return {
        path: Template((TEMPLATES / file).read_text(encoding="utf-8")).substitute(words)
        for path, file in sources.items()
    }


def class_name(name: str) -> str:
    """`my_thing` -> `MyThing`."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _check_kind(kind: str) -> None:
    if kind not in Kinds:
        raise unknown("kind", kind, Kinds, "init")


def _check_name(kind: str, name: str) -> None:
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name) or name.startswith("_"):
        text = f"{name!r} cannot name a module; letters, digits and _, with a letter first, such as my_{kind}"
        raise UserError(text, key="init", seen=name)


def _check_free(kind: str, name: str) -> None:
    """Refuse a name that would hide, or be hidden by, something else."""
    if name in options(group(kind)):
        raise UserError(f"{group(kind)}={name} is there already; choose another name", key="init", seen=name)
    spec = importlib.util.find_spec(name)
    if spec is not None:
        text = f"a module {name!r} can be imported already ({spec.origin}) and would be taken instead of the new one"
        raise UserError(f"{text}; choose another name", key="init", seen=name)
    made = name if kind == "stream" else class_name(name)
    tree = ast.parse(_filled(kind, name)[f"{name}.py"])
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    used = {alias.asname or alias.name for node in imports for alias in node.names}
    if made in used or hasattr(builtins, made):
        raise UserError(f"the new file itself uses the name {made!r}; choose another name", key="init", seen=name)
