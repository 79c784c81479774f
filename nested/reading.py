"""Run directories read back into records; everything but FORMAT may be missing, nothing may be damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nested.errors import UserError
from nested.records import METRICS, Array, Run, Seed, number

FORMAT = "1"


def load(run_dir: Path | str) -> Run:
    """Read a run directory; raises UserError where it is none, is damaged, or is of an unknown format."""
    path = Path(run_dir)
    _check_format(path)
    result = read_json(path / "result.json") or {}
    summaries = {int(s["seed"]): s for s in result.get("runs") or [] if s.get("seed") is not None}
    folders = {int(p.name[5:]): p for p in path.glob("seed-*") if p.is_dir() and p.name[5:].isdigit()}
    seeds = tuple(_seed(s, folders.get(s), summaries.get(s, {})) for s in sorted({*summaries, *folders}))
    matrices = [read_json(folders[s] / "matrix.json") or {} for s in sorted(folders)]
    about = next((m for m in matrices if m), {})
    first = next(iter(summaries.values()), {})
    config = result.get("config") or _config(path, folders)
    tags = next((s.tags for s in seeds if s.tags), {})
    mean, ci95 = _over_seeds(result, seeds)
    return Run(
        path=path,
        run_id=str(result.get("run_id") or path.resolve().name),
        label=str(result.get("label") or config.get("label") or path.resolve().name),
        status=str(result.get("status") or "unfinished"),
        stream=str(result.get("stream") or about.get("stream") or tags.get("stream") or "unknown stream"),
        scenario=str(result.get("scenario") or about.get("scenario") or config.get("stream.scenario") or ""),
        lower_is_better=bool(first.get("lower_is_better", about.get("lower_is_better", False))),
        experiences=_names(list(summaries.values()), matrices, seeds),
        planned=_planned(result, config, len(seeds)),
        seeds=seeds,
        config=config,
        mean=mean,
        ci95=ci95,
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file, None where there is no file; raises UserError where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}", seen=str(path)) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object", seen=str(path))
    return value


def score_matrix(part: dict[str, Any], n: int, path: Path) -> Array:
    """sum / count (n + 1, n) of one part of matrix.json; rows that are missing or not counted are NaN."""
    matrix = np.full((n + 1, n), np.nan)
    try:
        sums = np.array(part["sum"], dtype=np.float64).reshape(-1, n)
        counts = np.array(part["count"], dtype=np.float64).reshape(-1, n)
        with np.errstate(invalid="ignore", divide="ignore"):
            matrix[: len(sums)] = np.where(counts > 0, sums / counts, np.nan)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no accuracy matrix of {n} experiences: {error!r}", seen=str(path)) from error
    return matrix


def views(about: dict[str, Any], path: Path) -> dict[str, Array]:
    """{view: test matrix} of a matrix.json."""
    n = len(about.get("experiences") or [])
    parts = {name: parts.get("test") for name, parts in (about.get("views") or {}).items()}
    return {name: score_matrix(part, n, path) for name, part in parts.items() if part}


def _check_format(path: Path) -> None:
    if not path.is_dir():
        raise UserError(f"no run directory {path}", seen=str(path))
    marker = path / "FORMAT"
    if not marker.is_file():
        raise UserError(f"{path} is no run directory: it has no file FORMAT", seen=str(path))
    seen = marker.read_text(encoding="utf-8", errors="replace").strip()
    if seen != FORMAT:
        message = f"{path} has format {seen!r}; this version of nested reads format {FORMAT!r}"
        raise UserError(message, seen=seen, allowed=[FORMAT])


def _seed(seed: int, folder: Path | None, summary: dict[str, Any]) -> Seed:
    events = list(_events(folder / "events.jsonl")) if folder else []
    about = (read_json(folder / "matrix.json") if folder else None) or {}
    log = _Log.of(events)
    metrics = {**log.final, **(about.get("metrics") or {}), **summary}
    return Seed(
        seed=seed,
        status=str(summary.get("status") or log.status),
        metrics={name: number(metrics.get(name)) for name in METRICS},
        views=(views(about, folder / "matrix.json") if folder else {}) or _plain_matrix(summary) or log.matrix(),
        levels=tuple(summary.get("levels") or ()),
        cost=dict(summary.get("cost") or {}),
        seconds=number(summary.get("seconds")),
        anytime=about.get("anytime"),
        datasets=tuple(log.datasets[i] for i in sorted(log.datasets)),
        environment=(read_json(folder / "environment.json") if folder else None) or {},
        tags=log.tags,
        started=log.started,
    )


def _plain_matrix(summary: dict[str, Any]) -> dict[str, Array]:
    if not summary.get("matrix"):
        return {}
    rows = np.array(summary["matrix"], dtype=np.float64)
    first = np.array(summary.get("initial") or [np.nan] * rows.shape[1], dtype=np.float64)
    return {"model": np.vstack([first, rows])}


def _events(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the line being written when the run was stopped
        if isinstance(event, dict):
            yield event


@dataclass
class _Log:
    """What a seed's events say."""

    status: str = "unfinished"
    started: float | None = None
    tags: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    datasets: dict[int, dict[str, Any]] = field(default_factory=dict)
    cells: dict[tuple[int, int], float] = field(default_factory=dict)  # (row, experience) -> score

    @classmethod
    def of(cls, events: Sequence[dict[str, Any]]) -> _Log:
        log = cls()
        for event in events:
            log._take(event)
        return log

    def _take(self, event: dict[str, Any]) -> None:
        kind, values = event.get("event"), event.get("values") or {}
        if kind in ("start", "resume"):
            self.status = "unfinished"
            self.started = self.started or number(event.get("t"))
        elif kind == "tags":
            self.tags.update(values)
        elif kind == "dataset":
            self.datasets[int(event["experience"])] = event
        elif kind == "metrics":
            for name, value in values.items():
                if found := re.fullmatch(r"experience/test/exp-(\d+)", name):
                    self.cells[int(event["step"]), int(found[1])] = value
        elif kind == "end":
            self.status, self.final = str(event.get("status")), values

    def matrix(self) -> dict[str, Array]:
        if not self.cells:
            return {}
        n = max([*self.datasets, *(j for _, j in self.cells)]) + 1
        matrix = np.full((n + 1, n), np.nan)
        for (row, column), value in self.cells.items():
            if row <= n and number(value) is not None:
                matrix[row, column] = value
        return {"model": matrix}


def _names(
    summaries: Sequence[dict[str, Any]], abouts: Sequence[dict[str, Any]], seeds: Sequence[Seed]
) -> tuple[str, ...]:
    """The experiences' names where all seeds agree on them, else their positions from 1."""
    known = [tuple(map(str, s["experiences"])) for s in summaries if s.get("experiences")]
    known += [tuple(str(e.get("name")) for e in a["experiences"]) for a in abouts if a.get("experiences")]
    known += [tuple(str(d.get("name")) for d in s.datasets) for s in seeds if not known and s.datasets]
    n = max([*map(len, known), *(s.matrix.shape[1] for s in seeds if s.matrix is not None)], default=0)
    agreed = {names for names in known if len(names) == n}
    return agreed.pop() if len(agreed) == 1 else tuple(str(j + 1) for j in range(n))


def _planned(result: dict[str, Any], config: dict[str, Any], begun: int) -> int:
    asked = result.get("seeds") or config.get("seeds")
    return max(begun, len(asked) if isinstance(asked, list) else asked if isinstance(asked, int) else 1)


def _config(path: Path, folders: dict[int, Path]) -> dict[str, Any]:
    import yaml

    from nested.config import flatten

    for file in (path / "config.yaml", *(folders[s] / "config.yaml" for s in sorted(folders))):
        if file.is_file():
            try:
                return flatten(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
            except (yaml.YAMLError, ValueError) as error:
                raise UserError(f"{file} cannot be read: {error}", seen=str(file)) from error
    return {}


def _over_seeds(result: dict[str, Any], seeds: Sequence[Seed]) -> tuple[dict[str, Any], dict[str, Any]]:
    if result.get("mean"):
        return {k: number(v) for k, v in result["mean"].items()}, {
            k: number(v) for k, v in (result.get("ci95") or {}).items()
        }
    if len(result.get("runs") or []) == 1:
        return dict(seeds[0].metrics), {}
    done = [s.metrics for s in seeds if s.status == "done"]
    if not done:
        return {}, {}
    from nested.metrics import over_seeds

    return over_seeds(done, METRICS)
