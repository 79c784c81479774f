"""Runs of a store that match a filter, asked for in a process of its own: `python -m nested.tracking_search`.

Standard input: one line with address and filter. Standard output: one line with the tags `nested.id` of what matches
and, where nothing does, with what there is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nested import tracking
from nested.errors import UserError
from nested.settings import Tracking
from nested.tracking_outbox import TrackerError
from nested.wording import counted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

IMPORT = 60.0  # seconds that importing MLflow may take from a cold disk
PAGE = 1000  # runs in an answer
LOOKED_AT = 3000  # runs among which what there is is told
VALUES = 6  # told of a tag
UNTOLD = ("mlflow.", "nested.id", "nested.run", "changed.", "commit", "trial", "branch")


def search(words: str, runs: str | Path, uri: str | None = None) -> list[str]:
    """The ids of matching runs. Raises UserError where nothing matches, TrackerError where nobody answers."""
    settings = Tracking(uri=uri)
    where = tracking.store_uri(settings, runs)
    file = tracking.database_file(where)
    if file and not file.is_file():
        text = f"no run has been tracked in {file}; name runs or a recipe, or another store with --uri"
        raise UserError(text, key="filter", seen=words)
    tracking.check(settings, runs)
    found = _asked(where, words, settings.timeout_seconds)
    if found.get("refused"):
        text = f"{' '.join(found['refused'].split())}; for example \"tags.method = 'replay' and metrics.acc > 0.5\""
        raise UserError(text, key="filter", seen=words)
    if not found["ids"]:
        there = "; ".join(f"tags.{k}: {', '.join(v)}" for k, v in found["tags"].items()) or "no tags"
        text = f"nothing in {tracking.shown(where)} matches {words!r}; of its {counted(found['runs'], 'run')}: {there}"
        raise UserError(text, key="filter", seen=words, allowed=found["tags"])
    return found["ids"]


def _asked(where: str, words: str, timeout: float) -> dict[str, Any]:
    """The answer of the process that knows MLflow."""
    line = json.dumps({"uri": where, "filter": words}) + "\n"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "nested.tracking_search"],
            input=line, capture_output=True, text=True, timeout=IMPORT + timeout, env=tracking.environment(timeout),
        )  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise TrackerError(f"{tracking.shown(where)} has not answered within {IMPORT + timeout:g} s") from None
    except (ValueError, IndexError):
        said = tracking.shown((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
        raise TrackerError(f"{tracking.shown(where)} cannot be searched: {said}") from None


def main() -> None:
    """One question, one answer."""
    answers = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr  # libraries may print
    asked = json.loads(sys.stdin.readline())
    print(json.dumps(answer(asked["uri"], asked["filter"])), file=answers, flush=True)


def answer(uri: str, words: str) -> dict[str, Any]:
    """Ids of what matches and, where nothing does, what there is; or why the filter was refused."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(uri)
    try:
        found = list(_runs(client, words))
    except MlflowException as error:
        if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
            raise
        return {"refused": error.message}
    ids = sorted({r.data.tags["nested.id"] for r in found if "nested.id" in r.data.tags})
    return {"ids": ids, **({} if ids else _there(client))}


def _runs(client: MlflowClient, words: str) -> Iterator[Run]:
    """Every run that matches, in any experiment."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    token = None
    while True:
        page = client.search_runs(experiments, words, max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _there(client: MlflowClient) -> dict[str, Any]:
    """How many runs there are, and the values of those tags that have few."""
    count, seen = 0, {}
    for run in _runs(client, ""):
        tags: Mapping[str, str] = run.data.tags
        if "nested.id" in tags and (count := count + 1) <= LOOKED_AT:
            for name, value in tags.items():
                if not name.startswith(UNTOLD):
                    seen.setdefault(name, set()).add(value)
    return {"runs": count, "tags": {k: sorted(v) for k, v in sorted(seen.items()) if len(v) <= VALUES}}


if __name__ == "__main__":
    main()
