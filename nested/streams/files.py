"""Where data files lie, and what is said when they do not."""

from __future__ import annotations

from pathlib import Path

from nested.errors import UserError


def data_directory(root: str | None, what: str, expected: str, how: str) -> Path:
    """`root` as a directory. Raises UserError, naming the files expected and how to get them, when it is none."""
    if root is None:
        raise UserError(
            f"{what} needs a data directory; set data.root=DIRECTORY to one with {expected}; {how}", key="data.root"
        )
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"no such directory: {folder}; {what} looks there for {expected}; {how}", key="data.root", seen=root
        )
    return folder


def candidates(root: Path, *below: str) -> list[Path]:
    """`root`, the named folders below it, and every folder one down, as far as they exist."""
    down = sorted(p for p in root.iterdir() if p.is_dir())
    found = [root, *(root / b for b in below), *down]
    return [p for i, p in enumerate(found) if p.is_dir() and p not in found[:i]]


def missing(what: str, root: Path, searched: list[Path], expected: str, how: str) -> UserError:
    """The error for files that are nowhere."""
    places = ", ".join(str(p) for p in searched[:6]) + (", ..." if len(searched) > 6 else "")
    return UserError(f"{what} not found: looked in {places} for {expected}; {how}", key="data.root", seen=str(root))


def user_path(path: str, root: str | None, kind: str, key: str = "stream.path") -> Path:
    """`path` as it is, or below `root`. Raises UserError when it is in neither."""
    places = [Path(path).expanduser()]
    if root is not None:
        places.append(Path(root).expanduser() / path)
    for place in places:
        if place.exists():
            return place
    tried = " and ".join(str(p) for p in dict.fromkeys(places))
    raise UserError(f"no such {kind}: looked for {tried}; give {key}=...", key=key, seen=path)
