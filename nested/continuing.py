"""Going on with what was begun: with the same config, on the same data; what differs is told, and refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nested import rundir
from nested.config import flatten
from nested.errors import UserError

if TYPE_CHECKING:
    from nested.settings import Config
    from nested.streams.stream import Stream

FREE = ("checkpoint.", "tracking.", "trainer.progress", "runs")  # of no influence on the numbers
Difference = dict[str, tuple[Any, Any]]  # dotted path -> the two values


def config_difference(a: Config, b: Config, free: Iterable[str] = ()) -> Difference:
    """Where two configs differ, but for paths that begin with one of `free`."""
    one, two = (flatten(rundir.as_stored(c.to_dict())) for c in (a, b))
    left_out = ("choices.", *free)
    return {k: v for k, v in difference(one, two).items() if not k.startswith(left_out)}


def difference(one: Mapping[str, Any], two: Mapping[str, Any]) -> Difference:
    """Where two flat mappings differ; None stands for what is not there."""
    return {k: (one.get(k), two.get(k)) for k in sorted({*one, *two}) if one.get(k) != two.get(k)}


def told(changed: Difference, now: str = "now") -> str:
    """A difference between what is recorded and what is asked for, in words."""
    return "; ".join(f"{k}: recorded {a!r}, {now} {b!r}" for k, (a, b) in changed.items())


def check_data(seed: Path, stream: Stream, key: str) -> None:
    """Raise UserError where the run in the directory of a seed was begun on other data than those of `stream`."""
    events = rundir.read_events(seed / "events.jsonl")
    seen = {e["digest"] for e in events if e["event"] == "dataset"} - {stream.digest}
    if seen:
        text = f"the data are not those it was begun with: digest {seen.pop()} then, {stream.digest} now; restore them"
        raise UserError(text, key=key, seen=stream.digest)
