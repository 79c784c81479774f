"""Which runs are meant: by id, path, beginning of an id, study, recipe, or a filter that the tracker understands."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nested import rundir
from nested.errors import UserError, nearest

Say = Callable[[str], None]
FILTER = re.compile(r"[=<>]|\b(I?LIKE|IN)\b", re.IGNORECASE)  # what no id and no name of a recipe has
TOLD = 8  # names in a message


def selected(words: Sequence[str], runs: str | Path, uri: str | None, say: Say) -> list[Path]:
    """Run directories, each once, in the order of the words. Raises UserError for a word that means none."""
    found = [path for word in words for path in _meant(word, Path(runs).expanduser(), uri, say)]
    return list(dict.fromkeys(found))


def _meant(word: str, runs: Path, uri: str | None, say: Say) -> list[Path]:
    for path in (Path(word).expanduser(), runs / word):
        if (path / "FORMAT").is_file():
            return _of(path.resolve())
    prefix, _, name = word.partition("=")
    recipe = name if prefix == "recipe" else word
    if FILTER.search(recipe):
        return _matching(word, runs, uri, say)
    made = {path: used for path, used in _recipes(runs) if used}
    if prefix == "recipe" or recipe in made.values():
        if recipe not in made.values():
            there = sorted(set(made.values()))
            text = f"no run in {runs} was made from {recipe!r}{nearest(recipe, there)}; recipes used: {_listed(there)}"
            raise UserError(text, key="recipe", seen=recipe, allowed=there)
        return [path for path, used in made.items() if used == recipe]
    try:
        return _of(rundir.find(word, runs, "run, study or recipe"))
    except UserError as error:
        studies = [p.name for p in rundir.all_runs(runs) if (p / "study.json").is_file()]
        there = {"studies": studies, "recipes used": sorted(set(made.values()))}
        used = "".join(f"; {kind}: {_listed(names)}" for kind, names in there.items() if names)
        seen = _no_run(Path(word).expanduser()) or error.message
        more = f"{seen}{used}; or a filter such as \"tags.method = 'replay'\""
        raise UserError(more, key=error.key, seen=word, allowed=error.allowed) from None


def _no_run(path: Path) -> str | None:
    """What is wrong with a directory that is there, and no run."""
    if not path.is_dir():
        return None
    inside = [p.name for p in rundir.all_runs(path)]
    return f"{path.resolve()} is a directory and no run: it has no FORMAT file; runs in it: {_listed(inside)}"


def _of(path: Path) -> list[Path]:
    """What a directory stands for: a study for its chosen trials, a seed for its run."""
    rundir.check_format(path)
    if path.name.startswith("seed-") and (path.parent / "FORMAT").is_file():
        return [path.parent]
    return _chosen(path) if (path / "study.json").is_file() else [path]


def _chosen(study: Path) -> list[Path]:
    """The best trial of a study, or its Pareto front, behind the defaults where they are its first trial."""
    result = _read(study / "result.json")
    best = [int(b["trial"]) for b in result.get("best") or []]
    if not best:
        text = f"{study.name} has no chosen trial yet; nested tune show {study.name} says how it stands"
        raise UserError(text, key="study", seen=study.name)
    first = [0] if _read(study / "study.json").get("defaults_first") else []
    return [study / f"trial-{number:04d}" for number in dict.fromkeys([*first, *best])]


def _recipes(runs: Path) -> Iterator[tuple[Path, str | None]]:
    """Every run with the recipe that it was made from, if any."""
    for path in rundir.all_runs(runs):
        if (path / "study.json").is_file():
            continue
        result = _read(path / "result.json")
        made = result or (rundir.read_config(path) if (path / "config.yaml").is_file() else {})
        yield path.resolve(), (made.get("choices") or {}).get("recipe")


def _read(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none that can be read."""
    try:
        found = rundir.read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _matching(words: str, runs: Path, uri: str | None, say: Say) -> list[Path]:
    """The runs whose records in the tracker a filter matches. A seed or a trial's child stands for all of its run."""
    from nested import tracking_search

    ids = tracking_search.search(words, runs, uri)
    # a run with one matching seed is taken with all of them: the seeds that do well are no sample
    paths = {i: (runs / re.sub(r"/seed-\d+$", "", i)).resolve() for i in ids}
    here = [p for p in dict.fromkeys(paths.values()) if (p / "FORMAT").is_file() and not (p / "study.json").is_file()]
    gone = sorted({i for i, p in paths.items() if not (p / "FORMAT").is_file()})
    if gone:
        are = "is" if len(gone) == 1 else "are"
        say(f"{len(gone)} of {len(ids)} that match {are} not in {runs}: {_listed(gone)}")
    if not here:
        raise UserError(f"what matches is not in {runs}: {_listed(gone)}; give --runs", key="filter", seen=words)
    return sorted(here)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:TOLD]) + (f" and {len(names) - TOLD} more" if len(names) > TOLD else "") or "none"
