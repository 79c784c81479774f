"""Run directories read back into records: everything but FORMAT may still be missing, nothing may be damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nested import metrics
from nested.errors import UserError
from nested.metrics import FROZEN, POSITIONS
from nested.report.records import METRICS, Array, Run, Seed, number
from nested.rundir import check_format, read_config, read_events

Json = dict[str, Any]
LOCAL = "http://127.0.0.1:5000"  # where `nested ui` serves unless told otherwise


def load(run_dir: Path | str, whole: bool = True) -> Run:
    """Read a run directory; raises UserError where it is none, is damaged, or is of an unknown format.

    Not `whole`: of one that is done nothing but result.json is read, which lacks curves, environment and data sizes.
    """
    path = Path(run_dir)
    check_format(path)
    result = read_json(path / "result.json")
    folders = _folders(path) if whole or result.get("status") != "done" else {}
    summaries = _summaries(result, folders)
    abouts = {s: found for s, folder in folders.items() if (found := read_json(folder / "matrix.json"))}
    seeds = tuple(
        _seed(s, folders.get(s), summaries.get(s, {}), abouts.get(s, {})) for s in sorted({*summaries, *folders})
    )
    config = result.get("config") or _config(path)
    about, summary = next(iter(abouts.values()), {}), next(iter(summaries.values()), {})
    told = about if whole else {}  # one name of a stream for all runs, whatever was read of each
    choices = result.get("choices") or {k[8:]: v for k, v in config.items() if k.startswith("choices.")}
    mean, ci95 = _means(result, seeds)
    lower = bool(summary.get("lower_is_better", about.get("lower_is_better", any(s.losses for s in seeds))))
    return Run(
        path=path,
        run_id=str(result.get("run_id") or path.resolve().name),
        label=str(result.get("label") or summary.get("label") or config.get("label") or path.resolve().name),
        status=str(result.get("status") or _ending(path)),
        stream=str(told.get("stream") or result.get("stream") or choices.get("stream") or "unknown stream"),
        scenario=str(told.get("scenario") or result.get("scenario") or config.get("stream.scenario") or ""),
        lower_is_better=lower,
        measure=str(_measure(summary, about, seeds) or ("loss" if lower else "accuracy")),
        experiences=_names(summaries.values(), abouts.values(), seeds),
        planned=_planned(result, config, len(seeds)),
        seeds=seeds,
        config={k: v for k, v in config.items() if not k.startswith("choices.")},
        choices=choices,
        mean=mean,
        ci95=ci95,
        problems=tuple(map(str, result.get("problems") or [])),
        tracked=_tracked(path) if whole else None,
    )


def _measure(summary: Json, about: Json, seeds: Sequence[Seed]) -> Any:
    """What the scores are called, where it is recorded."""
    data = next((s.datasets[0] for s in seeds if s.datasets), {})
    return next((found for known in (summary, about, data) if (found := known.get("measure"))), None)


def _folders(path: Path) -> dict[int, Path]:
    """Seed -> its directory."""
    return {int(p.name[5:]): p for p in path.glob("seed-*") if p.is_dir() and p.name[5:].isdigit()}


def _tracked(path: Path) -> str | None:
    """The page of the tracker: on its server, or where `nested ui` shows a database on this machine."""
    try:
        stores = [(where, about.get("run")) for where, about in read_json(path / "tracking.json")["stores"].items()]
    except (UserError, KeyError, AttributeError):
        return None  # it only saves time: a tracker's memory is no result
    known = [(where, run) for where, run in stores if isinstance(run, str) and run.isalnum()]
    if not known:
        return None
    where, run = known[-1]
    server = re.match(r"(https?://)(?:[^/@\s]*@)?([^\s]+)", where)
    return f"{server[1] + server[2].rstrip('/') if server else LOCAL}/#/runs/{run}"


def read_json(path: Path) -> Json:
    """A JSON object from a file, empty where there is no file; raises UserError where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}", seen=str(path)) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object", seen=str(path))
    return value


def views(about: Json, path: Path, beside: str = "") -> dict[str, Array]:
    """{view: (n + 1, n) sum / count} of a matrix.json, over the test part or, where it was not judged, validation.

    `beside` names the matrix beside that of the score, if any.
    """
    n = len(about.get("experiences") or [])
    found = about.get("views") or {}
    judged = {name: parts.get("test" + beside) or parts.get("validation" + beside) for name, parts in found.items()}
    try:
        return {name: _quotient(part["sum"], part["count"], n) for name, part in judged.items() if part}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no matrix of {n} experiences: {error!r}", seen=str(path)) from error


def _quotient(sums: Any, counts: Any, n: int) -> Array:
    """sum / count, in n + 1 rows; NaN where nothing was counted."""
    above = np.asarray(sums, dtype=np.float64).reshape(-1, n)
    below = np.asarray(counts, dtype=np.float64).reshape(-1, n)
    matrix = np.full((max(n + 1, len(above)), n), np.nan)
    np.divide(above, below, out=matrix[: len(above)], where=below > 0)
    return matrix


def _summaries(result: Json, folders: dict[int, Path]) -> dict[int, Json]:
    """{seed: summary}: the result's, or a seed's own where it went on since the result was written."""
    found = {int(s["seed"]): s for s in result.get("runs") or []}
    for seed, folder in folders.items():
        if found.get(seed, {}).get("status") != "done" and (newer := read_json(folder / "summary.json")):
            found[seed] = newer
    return dict(sorted(found.items()))


def _seed(seed: int, folder: Path | None, summary: Json, about: Json) -> Seed:
    log = _Log.of(read_events(folder / "events.jsonl")) if folder else _Log()
    values = {**log.final, **(about.get("metrics") or {}), **summary}
    known, fine, frozen = (
        views(about, folder / "matrix.json", b) if folder and about else {} for b in ("", POSITIONS, FROZEN)
    )
    main = next(iter((about.get("views") or log.views).values()), {})
    datasets = tuple(log.datasets[i] for i in sorted(log.datasets))
    return Seed(
        seed=seed,
        status=str(summary.get("status") or log.status),
        metrics={name: number(values.get(name)) for name in METRICS},
        views=known or _plain_matrix(summary) or log.matrices(),
        judged_on=str(summary.get("judged_on") or ("validation" if main and "test" not in main else "test")),
        levels=tuple(summary.get("levels") or ()),
        cost=dict(summary.get("cost") or {}),
        seconds=number(values.get("seconds")),
        anytime=about.get("anytime"),
        datasets=datasets,
        digest=summary.get("digest") or next((d.get("digest") for d in datasets), None),
        environment=read_json(folder / "environment.json") if folder else {},
        started=log.started,
        losses=log.losses,
        positions=next(iter((fine or log.matrices(POSITIONS)).values()), None),
        frozen=next(iter((frozen or log.matrices(FROZEN)).values()), None),
        training=log.training,
        remarks=tuple(log.remarks),
    )


def _plain_matrix(summary: Json) -> dict[str, Array]:
    if not summary.get("matrix"):
        return {}
    rows = np.array(summary["matrix"], dtype=np.float64)  # (n, n)
    first = np.array(summary.get("initial") or [np.nan] * rows.shape[1], dtype=np.float64)
    return {"model": np.vstack([first, rows])}


@dataclass
class _Log:
    """What a seed's events say."""

    status: str = "unfinished"
    started: float | None = None
    final: Json = field(default_factory=dict)
    datasets: dict[int, Json] = field(default_factory=dict)
    views: dict[str, dict[str, dict[int, Json]]] = field(default_factory=dict)  # view -> part -> row -> event
    training: dict[int, float] = field(default_factory=dict)  # step -> loss
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, events: Sequence[Json]) -> _Log:
        log = cls()
        for event in events:
            log._take(event.get("event"), event)
        return log

    def _take(self, kind: Any, event: Json) -> None:
        if kind in ("start", "resume"):
            self.status, self.started = "unfinished", self.started or number(event.get("t"))
        elif kind == "dataset":
            self.datasets[int(event["experience"])] = event
        elif kind == "row":
            self.views.setdefault(event["view"], {}).setdefault(event["part"], {})[int(event["row"])] = event
        elif kind == "metrics" and (loss := number((event.get("values") or {}).get("train/loss"))) is not None:
            self.training[int(event["step"])] = loss
        elif kind == "remark":
            self.remarks.append(str(event.get("text")))
        elif kind == "end":
            self.status, self.final = str(event.get("status")), event.get("values") or {}

    @property
    def losses(self) -> bool:
        """Whether scores are losses: right answers are counted in whole numbers."""
        rows = (event for parts in self.views.values() for rows in parts.values() for event in rows.values())
        return any(isinstance(x, float) for event in rows for x in event["sum"])

    def matrices(self, beside: str = "") -> dict[str, Array]:
        """{view: (n + 1, n)} from the rows recorded so far; `beside` as in `views`."""
        judged = {n: parts.get("test" + beside) or parts.get("validation" + beside) for n, parts in self.views.items()}
        return {name: _from_rows(rows) for name, rows in judged.items() if rows}


def _from_rows(rows: dict[int, Json]) -> Array:
    n = len(next(iter(rows.values()))["sum"])
    matrix = np.full((n + 1, n), np.nan)
    for row, event in rows.items():
        matrix[row] = _quotient(event["sum"], event["count"], n)[0]
    return matrix


def _names(summaries: Any, abouts: Any, seeds: Sequence[Seed]) -> tuple[str, ...]:
    """The experiences' names where all seeds agree on them, else their positions from 1."""
    known = [tuple(map(str, s["experiences"])) for s in summaries if s.get("experiences")]
    known += [tuple(str(e.get("name")) for e in a["experiences"]) for a in abouts if a.get("experiences")]
    if not known:
        known = [tuple(str(d.get("name")) for d in s.datasets) for s in seeds if s.datasets]
    n = max([*map(len, known), *(s.matrix.shape[1] for s in seeds if s.matrix is not None)], default=0)
    agreed = {names for names in known if len(names) == n}
    return agreed.pop() if len(agreed) == 1 else tuple(str(j + 1) for j in range(n))


def _planned(result: Json, config: Json, begun: int) -> int:
    asked = result.get("seeds") or config.get("seeds")
    return max(begun, len(asked) if isinstance(asked, list) else asked if isinstance(asked, int) else 1)


def _config(path: Path) -> Json:
    if not (path / "config.yaml").is_file():
        return {}
    from nested.config import flatten

    try:
        return flatten(read_config(path))
    except Exception as error:  # yaml's and omegaconf's errors have no common class
        raise UserError(f"{path / 'config.yaml'} cannot be read: {error}", seen=str(path)) from error


def _ending(path: Path) -> str:
    """How a trial of a study ended, which has events of its own in place of a result."""
    ends = [e.get("status") for e in read_events(path / "events.jsonl") if e.get("event") == "end"]
    return str(ends[-1]) if ends else "unfinished"


def _means(result: Json, seeds: Sequence[Seed]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Means and half widths: the recorded ones, else those over the seeds that are done."""
    done = [s for s in seeds if s.status == "done"]
    if result.get("mean") and {s.seed for s in done} == {s["seed"] for s in result["runs"] if s["status"] == "done"}:
        mean, ci95 = result["mean"], result.get("ci95") or {}
        return {k: number(v) for k, v in mean.items()}, {k: number(v) for k, v in ci95.items()}
    return over_seeds(seeds)


def over_seeds(seeds: Sequence[Seed]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Means and half widths over the seeds that are done."""
    done = [s for s in seeds if s.status == "done"]
    if not done:
        return {}, {}
    if len(done) == 1:
        return {**done[0].metrics, "seconds": done[0].seconds}, {}
    return metrics.over_seeds([{**s.metrics, "seconds": s.seconds} for s in done], (*METRICS, "seconds"))
