"""What a contest is asked for: `contest.*` and `workers` on the command line; all else composes the candidate.

`nested contest stream=split_digits model=hope_attention levels=continuum contest.factors=[0.5,1,2] workers=4`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from nested.config import Config, compose, read_override
from nested.contest.arms import REPLAY
from nested.errors import UserError
from nested.signature import Bound, checked, locate, value_of

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
WORKERS = 2
OURS = ("seeds=10", "evaluate.parts=[test]", "trainer.threads=1", "trainer.progress=false")  # before the user's own


@dataclass(frozen=True)
class Contest:
    """Which rates, and under which name."""

    factors: list[Annotated[float, Bound(gt=0)]] | None = None  # times the candidate's rate; null = 0.25, 0.5, 1, 2, 4
    name: str | None = None  # of its directory; null = contest-<stream>-<model>-<levels>


@dataclass(frozen=True)
class Request:
    """One command: the candidate, at which rates, by how many processes, and where."""

    candidate: Config
    factors: tuple[float, ...]
    workers: int
    path: Path
    command: str


def request(words: Iterable[str], config_dir: str | Path | None = None) -> Request:
    """The command line in its two parts, checked. Raises UserError."""
    words = list(words)
    mine = [w for w in words if re.match(r"(contest|workers)(?=[.=]|$)", w)]
    values: dict[str, Any] = {k.removeprefix("contest."): v for k, v in map(read_override, mine)}
    workers = value_of(values.pop("workers", WORKERS), Annotated[int, Bound(ge=1)], "workers")
    asked = Contest(**checked(Contest, values, "contest"))
    theirs = [w for w in words if w not in mine]
    if any(w.startswith("seed=") for w in theirs):
        raise UserError("orders are paired, and one is no pair; write seeds=10", key="seed", seen=1, allowed=">= 2")
    candidate = compose([*OURS, *theirs], config_dir)
    _check_candidate(candidate)
    path = Path(candidate.runs).expanduser().resolve() / _name(asked.name, candidate)
    if (path / "FORMAT").exists():
        text = f"{path} is a run or a study, not a contest; name the contest otherwise: contest.name=..."
        raise UserError(text, key="contest.name", seen=path.name)
    where = [] if config_dir is None else ["--config-dir", str(config_dir)]
    return Request(
        candidate, _factors(asked.factors), workers, path,
        shlex.join(["nested", "contest", *words, *where]),
    )  # fmt: skip


def _factors(given: list[float] | None) -> tuple[float, ...]:
    """Raises UserError for factors that make no frontier, or without the candidate's own rate."""
    found = tuple(sorted({float(f"{f:g}") for f in (FACTORS if given is None else given)}))  # as directories are called
    if 1.0 not in found or len(found) < 2:
        text = "two or more different factors of the rate are needed, one of them 1, the candidate's own"
        raise UserError(text, key="contest.factors", seen=given, allowed=list(FACTORS))
    return found


def _check_candidate(config: Config) -> None:
    """Raise UserError where there is nothing to compare."""
    target = config.method["_target_"]
    if target == REPLAY:
        text = "replay is one of the controls; leave it out, and whatever the candidate is will meet it"
        raise UserError(text, key="method", seen=config.word("method"))
    if not getattr(locate(target, "method._target_"), "ordered", True):
        text = "it learns everything at once, so that nothing can be forgotten; it is one of the controls: leave it out"
        raise UserError(text, key="method", seen=config.word("method"))
    if len(config.seed_list()) < 2:
        text = "orders are paired, and two are the fewest; ten are the default"
        raise UserError(text, key="seeds", seen=config.seeds, allowed=">= 2")


def _name(given: str | None, config: Config) -> str:
    """The directory's name. Raises UserError for one that is no name of a directory."""
    words = [config.word(g) for g in ("stream", "model", "levels")]
    method = config.word("method")
    name = given or "-".join(["contest", *words, *([] if method == "naive" else [method])])
    if not re.fullmatch(r"[\w][\w.\- ]*", name) or len(name) > 200:
        text = f"{name!r} is not allowed; up to 200 letters, digits, dots, dashes and spaces"
        raise UserError(text, key="contest.name", seen=name)
    return name
