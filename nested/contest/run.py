"""The story of a contest, top to bottom: command line -> candidate -> arms -> trials -> verdict -> page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nested import rundir
from nested.contest import wording
from nested.contest.arms import Absent, Arm, on_stream, on_tokens
from nested.contest.controls import arms
from nested.contest.facts import measure
from nested.contest.settings import Request, request
from nested.contest.standing import COSTS, SCORES, Standing, standing
from nested.contest.trials import Trial, check_same, fought, trials
from nested.contest.verdict import Comparison, compared, frontier
from nested.continuing import config_difference
from nested.dryrun import dry_run
from nested.errors import NestedError, UserError
from nested.plan import judged
from nested.prepare import check, prepare, rehearse
from nested.remarks import constant_guess
from nested.stopping import terminable
from nested.streams.stream import Stream

Say = Callable[[str], None]
RECORD, PAGE = "contest.json", "report.html"


@dataclass(frozen=True)
class Found:
    """What a contest came to: the content of `contest.json`."""

    path: Path
    record: dict[str, Any]

    @property
    def sentences(self) -> list[str]:
        """The verdict, the sentence that counts first."""
        return self.record["sentences"]

    def as_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        return {"path": str(self.path), "page": str(self.path / PAGE), **self.record}


def contest(words: Iterable[str], config_dir: str | Path | None, say: Say) -> Found:
    """Begin a contest or continue it, to the end.

    Raises UserError before anything is trained, KeyboardInterrupt with the command that goes on when it is stopped, and
    NestedError, with the page written, where trials failed.
    """
    asked = request(words, config_dir)
    try:
        with terminable():
            return _fought(asked, say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted, everything is saved; continue with: {asked.command}") from None


def _fought(asked: Request, say: Say) -> Found:
    """The whole of it."""
    check(asked.candidate)
    rundir.check_writable(asked.candidate.runs)
    stream = _stream(asked)
    there, absent = field(asked, stream)
    found = trials(there, asked.factors, asked.path)
    for one in absent:
        say(f"left out: {one.title}: {one.why}")
    with rundir.said(asked.path):
        asked.path.mkdir(parents=True, exist_ok=True)
    with rundir.locked(asked.path):
        check_same(found)
        cell = dry_run(asked.candidate).seconds / len(asked.candidate.seed_list())
        problems = fought(found, asked.workers, say, cell)
        result = conclude(asked, stream, there, absent, found, problems)
    if problems:
        first, why = next(iter(problems.items()))
        text = f"{len(problems)} of {len(found)} trials failed, such as {first}: {why}; the page is without them"
        raise NestedError(f"{text}: {asked.path / PAGE}. Give the same command again for them")
    return result


def _stream(asked: Request) -> Stream:
    """The first seed's stream. Raises UserError for one without forgetting, and for a candidate that cannot be run."""
    stream = rehearse(asked.candidate)
    n = len(stream.experiences)
    if n < 2:
        text = f"{stream.name} has one experience, so that nothing can be forgotten; take two or more"
        raise UserError(text, key="prefix" if asked.candidate.prefix else "stream", seen=n, allowed=">= 2")
    return stream


def field(asked: Request, stream: Stream) -> tuple[list[Arm], list[Absent]]:
    """Who fights, each having been built once; who does not, and why."""
    facts, _ = measure(asked.candidate)
    there, absent = arms(asked.candidate, facts)
    fit = there[:1]
    for arm in there[1:]:
        try:
            prepare(arm.config, arm.config.seed_list()[0], stream)
        except UserError as error:
            absent.append(Absent(arm.title, str(error)))
            continue
        fit.append(arm)
    return fit, absent


def conclude(
    asked: Request,
    stream: Stream,
    there: Sequence[Arm],
    absent: Sequence[Absent],
    found: Sequence[Trial],
    problems: dict[str, str],
) -> Found:
    """Judge what is on disk: `contest.json` and the page."""
    from nested.report import contest as pages

    table = [standing(arm, found) for arm in there]
    lower, own = stream.lower_is_better, asked.factors.index(1.0)
    curves = {s.arm.name: s.curve(lower) for s in table if s.arm.ordered}
    candidate = curves.pop("candidate")
    name, orders = there[0].title, len(asked.candidate.seed_list())
    nothing = _nothing_learned(name, table[0], stream, asked)
    against = compared(candidate, {} if nothing else curves, own)
    fights = [
        wording.Against(s.arm, against.get(s.arm.name), _ratio(s, table[0], own)) for s in table[1:] if s.arm.ordered
    ]
    levels = len(on_stream(asked.candidate)) + len(on_tokens(asked.candidate))
    record = {
        "format": 1, "name": asked.path.name, "command": asked.command, "candidate": name,
        "sentences": [nothing] if nothing else wording.verdict(name, fights, stream.measure),
        "caveats": wording.caveats(len(asked.factors), orders, levels, table[0].mean("flops", own) != 0),
        "stream": stream.name, "scenario": stream.scenario, "experiences": len(stream.experiences),
        "lower_is_better": lower, "measure": stream.measure, "parts": list(asked.candidate.evaluate.parts),
        "factors": list(asked.factors), "seeds": asked.candidate.seed_list(),
        "arms": [_recorded(s, table[0], against.get(s.arm.name), asked.factors, own, lower) for s in table],
        "absent": [vars(one) for one in absent], "problems": problems,
        "cells": sum(len(t.ended()) for t in found),
        "train_seconds": float(sum(np.nansum(s.values["train_seconds"]) for s in _trainings(table))),
    }  # fmt: skip
    rundir.write_json(asked.path / RECORD, record)
    figures = asked.path / "figures"
    if figures.is_dir():
        shutil.rmtree(figures)  # of an earlier verdict
    pages.page(record, asked.path / PAGE)
    return Found(asked.path, record)


def _nothing_learned(name: str, candidate: Standing, stream: Stream, asked: Request) -> str | None:
    """The sentence about a candidate that is no better than a constant guess at any rate."""
    guess = constant_guess(stream, judged(asked.candidate.evaluate.parts))
    means = [candidate.mean("learning_acc", factor) for factor in range(len(asked.factors))]
    learned = max((m for m in means if m is not None), default=None)
    if guess is None or learned is None or learned > guess:
        return None
    return wording.nothing(name, learned, guess)


def _trainings(table: Sequence[Standing]) -> list[Standing]:
    """One standing for each training: arms may share one."""
    return list({s.arm.home: s for s in table}.values())


def _ratio(one: Standing, candidate: Standing, own: int, name: str = "flops") -> float | None:
    """A cost at the candidate's own rate, as a multiple of the candidate's."""
    ours, theirs = (s.mean(name, own) for s in (one, candidate))
    return ours / theirs if ours is not None and theirs else None


def _recorded(
    one: Standing, candidate: Standing, against: Comparison | None, factors: Sequence[float], own: int, lower: bool
) -> dict[str, Any]:
    """An arm as plain values."""
    on_it = frontier(one.curve(lower)) if one.arm.ordered else []
    changed = config_difference(candidate.arm.config, one.arm.config)
    return {
        "name": one.arm.name, "title": one.arm.title, "what": one.arm.what, "ordered": one.arm.ordered,
        "view": one.arm.view, "directories": [f"{one.arm.home}-{f:g}" for f in factors],
        "differs": {k: list(v) for k, v in changed.items() if k != "label"},
        "points": [
            {
                "factor": factor, "frontier": f in on_it,
                **{
                    n: {"mean": one.mean(n, f), "half": one.half(n, f), "orders": one.listed(n, f)} for n in SCORES
                },
            }
            for f, factor in enumerate(factors)
        ],
        "cost": {n: one.mean(n, own) for n in COSTS},
        "times": {n: _ratio(one, candidate, own, n) for n in COSTS},
        "diverged": one.diverged, "missing": one.missing,
        "against": None if against is None else _plain(against),
    }  # fmt: skip


def _plain(c: Comparison) -> dict[str, Any]:
    return {
        "outcome": c.outcome, "orders": c.orders, "learning": None if c.learning is None else abs(c.learning),
        "difference": c.difference, "half": c.half, "p": c.p, "holm": c.holm, "gap": c.gap,
        **{
            name: None if values is None else [None if np.isnan(v) else float(v) for v in values]
            for name, values in (("at", c.at), ("differences", c.differences))
        },
    }  # fmt: skip
