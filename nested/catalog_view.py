"""What a choice, a section or all that can be set looks like on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nested.config import flatten

if TYPE_CHECKING:
    from rich.console import Group


def rendered(about: Mapping[str, Any]) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    name = about["section"] if "section" in about else f"{about['group']}={about['choice']}"
    parts: list[Any] = [Text(name, style="bold"), *([Text(about["file"])] if "file" in about else [])]
    if "text" in about:
        return Group(*parts, Text(), Text(about["text"]))
    if about.get("target"):
        parts.append(Text(about["target"]))
    parts += [Text(about["source"] or ""), Text(), Text(about["doc"]), Text()]
    if about.get("target") and about["module_doc"] and about["module_doc"] != about["doc"]:
        parts += [Text("From its module:", style="dim"), Text(about["module_doc"]), Text()]
    table = Table("key", "value", "type and bounds", "default", "what it is", box=None, pad_edge=False)
    for row in about["keys"]:
        value = "(needed)" if row["needed"] else _shown(row["value"])
        table.add_row(*(Text(t) for t in (row["key"], value, row["type"], _shown(row["default"]), row["help"])))
    return Group(*parts, table)


def overview(groups: Sequence[tuple[str, int]], sections: Sequence[tuple[str, str]]) -> str:
    """The groups with the number of their choices, and the sections with a sentence each."""
    width = max(len(name) for name, _ in (*groups, *sections))
    lines = ["groups (nested list GROUP; nested show GROUP=CHOICE)"]
    lines += [f"  {name:<{width}}  {n} choices" for name, n in groups]
    lines += ["sections and keys (nested show NAME)"]
    return "\n".join([*lines, *(f"  {name:<{width}}  {what}" for name, what in sections)])


def _shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={_shown(v)}" for k, v in flatten(value).items())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _is_word(value) else str(value)


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)
