"""A run directory told to MLflow: one parent run, one child run for each seed, or for each trial of a study.

Telling it twice changes nothing.

A run is looked up by its tag `nested.id` before it is made; metrics carry the times of their events, so that the store
knows a point it has; parameters are written once; files replace themselves.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from nested import tracking_outbox as outbox
from nested.rundir import read_json
from nested.tracking import Sent, Target, database_file
from nested.tracking_outbox import Memory, TrackerError

METRICS_A_CALL = 1000  # the store's limit
WORDS_A_CALL = 20  # params or tags: 8000 characters of up to 6 bytes each, in a request of at most 1 MB
DATASETS_A_CALL = 100
NAME, VALUE, DIGEST = 250, 6000, 36  # longest name, value of a param or tag, digest that the store takes
STATUS = {"done": "FINISHED", "interrupted": "KILLED", "pruned": "KILLED"}  # any other end is FAILED
OWN_TAGS = ("nested.status", "trial")  # of a child, that say nothing of the run
T = TypeVar("T")


@dataclass
class Batch:
    """What a block of events amounts to."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    datasets: list[DatasetInput] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    status: str | None = None
    last: int = 0
    ended: int = 0


def fold(events: Iterable[Mapping[str, Any]]) -> Batch:
    """Events in order -> one batch; kinds that are not known are passed over."""
    batch = Batch()
    for event in events:
        t, kind, values = event["t"], event.get("event"), event.get("values") or {}
        batch.last = max(batch.last, t)
        if kind == "params":
            batch.params |= params(values)
        elif kind == "tags":
            batch.tags |= tags(values)
        elif kind == "metrics":
            batch.metrics += metrics(values, t, event.get("step") or 0)
        elif kind == "dataset":
            batch.datasets.append(dataset(event))
        elif kind == "artifact":
            batch.files.append(str(event.get("path")))
        elif kind in ("start", "resume"):
            batch.status, batch.tags["nested.status"] = "RUNNING", "running"
        elif kind == "end":
            word = str(event.get("status"))
            batch.status, batch.ended = STATUS.get(word, "FAILED"), t
            batch.tags["nested.status"] = word
            batch.metrics += metrics(values, t, 0)
    return batch


def name_of(text: str) -> str:
    """`text` as the store takes a name: no sign it does not know, no path that means another one."""
    clean = posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", text).strip("/") or "_")
    return re.sub(r"^\.+$|^\.\.", "_", clean)[:NAME]


def params(values: Mapping[str, Any]) -> dict[str, str]:
    """Config values by dotted path, spelled as in YAML; where the tracker is, is no part of a run."""
    return {name_of(k): spelled(v)[:VALUE] for k, v in values.items() if not k.startswith("tracking.")}


def tags(values: Mapping[str, Any]) -> dict[str, str]:
    """Tags; the commit is also given under the name by which MLflow's pages know it."""
    found = {name_of(k): spelled(v)[:VALUE] for k, v in values.items() if v is not None}
    return {**found, "mlflow.source.git.commit": found["commit"]} if "commit" in found else found


def spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def metrics(values: Mapping[str, Any], t: int, step: int) -> list[Metric]:
    """Numbers at a time (unix ms) and step; what is no number is left out, infinities the store clips."""
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
    return [Metric(name_of(k), float(v), t, int(step)) for k, v in numbers.items()]


def dataset(event: Mapping[str, Any]) -> DatasetInput:
    """One experience of a stream as an input of the run, its context the experience."""
    sizes = {k: event[k] for k in ("n_train", "n_validation", "n_test") if k in event}
    context = f"experience {event.get('experience')}"
    classes = spelled(event.get("classes"))[:500]
    return DatasetInput(
        Dataset(
            name=str(event.get("name"))[:500],
            digest=str(event.get("digest"))[:DIGEST],
            source_type="code",
            source=json.dumps({"tags": {"stream": str(event.get("name"))[:500]}}),
            profile=json.dumps({"num_rows": sum(sizes.values()), **sizes}),
        ),
        [InputTag("mlflow.data.context", context), InputTag("classes", classes)],
    )


def pieces(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


class Replay:
    """One run directory and one store. Raises what MLflow raises, with what was taken until then remembered."""

    def __init__(self, target: Target, sent: Sent, beat: Callable[[], None]):
        self.target, self.sent, self.beat = target, sent, beat
        self.root = Path(target.run_dir)
        self.ids: dict[Path, str] = {}
        self.known: dict[Path, dict[str, str]] = {}  # params that the store has
        self.memory: dict[Path, Memory] = {}
        self.points: dict[Path, dict[str, set[tuple[int, int, float]]]] = {}  # of runs not remembered
        self.client, self.experiment = self._connect()

    def _connect(self) -> tuple[MlflowClient, str]:
        """The store, made by one process at a time, and the id of the experiment in it."""
        file = database_file(self.target.uri)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
        lock = outbox.locked(Path(f"{file}.lock"), self.target.timeout / 2, str(file)) if file else nullcontext()
        with lock:
            client = MlflowClient(self.target.uri)
            experiment = client.get_experiment_by_name(self.target.experiment)
            if experiment is None:
                return client, self._new_experiment(client)
        self.beat()
        if experiment.lifecycle_stage != "active":
            raise TrackerError(f"the experiment {self.target.experiment!r} was deleted: restore it, or choose another")
        return client, experiment.experiment_id

    def _new_experiment(self, client: MlflowClient) -> str:
        name = self.target.experiment
        try:
            return client.create_experiment(name, artifact_location=self.target.artifacts)
        except MlflowException:  # made by another machine between the two calls
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return experiment.experiment_id

    def send(self) -> None:
        """Send what is new: events of every seed or trial, then the result, then files."""
        with outbox.locked(self.root / ".tracking.lock", self.target.timeout / 2, self.root.name):
            if self.ids and not outbox.pending(self.root, self.target.store):
                return
            stamp = outbox.stamp_of(self.root / "result.json")  # looked at first: its seeds have then all been written
            found = outbox.directories(self.root)
            for directory in reversed(found):  # the run first, the others are its children
                self._open(directory)
            went_on = [d for d in found if self._events(d) == "RUNNING"]
            if self.root in self.ids:
                self._run(stamp, bool(went_on))
            for directory in found:
                self._files(directory, stamp)

    def end(self, status: str) -> None:
        """Give `status` to every run that has not ended: the command that wrote it is gone."""
        for directory, memory in self.memory.items():
            if memory.status == "RUNNING":
                self._status(directory, status, max(m.last for m in self.memory.values()))

    def _open(self, directory: Path) -> None:
        """Find or make the run of a directory, and recall what it has got."""
        if directory not in self.ids:
            identity = self._identity(directory)
            found = self.client.search_runs([self.experiment], f"tags.`nested.id` = '{identity}'", max_results=1)
            run = found[0] if found else self._new_run(directory, identity)
            if found:
                self.points[directory] = {}
            self.ids[directory], self.known[directory] = run.info.run_id, dict(run.data.params)
            self.sent.runs += 1
            self.beat()
        memory = outbox.recall(directory, self.target.store)
        if memory.run != self.ids[directory]:  # a new run, or nobody remembers what this one has got
            memory = Memory(run=self.ids[directory], status="RUNNING")
        else:
            self.points.pop(directory, None)
        self.memory[directory] = memory

    def _identity(self, directory: Path) -> str:
        return self.root.name if directory == self.root else f"{self.root.name}/{directory.name}"

    def _kind(self, directory: Path) -> str:
        """run and seed, study and trial: the list of runs is filtered and grouped by it."""
        if directory != self.root:
            return directory.name.partition("-")[0]
        return "study" if (directory / "study.json").is_file() else "run"

    def _new_run(self, directory: Path, identity: str) -> Any:
        begun = [directory, *(outbox.children(self.root) if directory == self.root else [])]
        firsts = [event for d in begun if (event := outbox.first_event(d))]
        start = min((e["t"] for e in firsts), default=None)
        label = next((str(e["label"]) for e in firsts if e.get("label")), self.root.name)
        label = self.root.name if self._kind(directory) == "study" else label
        given = {"nested.id": identity, "nested.run": self.root.name, "nested.kind": self._kind(directory)}
        given |= {"mlflow.source.name": "nested", "mlflow.source.type": "LOCAL"}
        if directory != self.root:
            label = f"{label} {directory.name}"
            given["mlflow.parentRunId"] = self.ids[self.root]
        return self.client.create_run(self.experiment, start, given, label)

    def _events(self, directory: Path) -> str | None:
        """Send the events that are new; a block is noted when all of it was taken. Returns the status they lead to."""
        memory, status = self.memory[directory], None
        for offset, events in outbox.unsent_events(directory, memory):
            batch = fold(events)
            self._batch(directory, batch)
            if batch.status:
                self._status(directory, batch.status, batch.ended)
                status = batch.status
            memory.offset, memory.seal = offset, outbox.seal(directory / outbox.EVENTS, offset)
            memory.last, memory.ended = max(memory.last, batch.last), max(memory.ended, batch.ended)
            memory.files = {**dict.fromkeys(batch.files, ""), **memory.files}
            outbox.remember(directory, self.target.store, memory)
        return status

    def _batch(self, directory: Path, batch: Batch) -> None:
        self._words(directory, batch.params, batch.tags)
        if directory != self.root:
            self._words(self.root, {}, {k: v for k, v in batch.tags.items() if k not in OWN_TAGS})
        for datasets in pieces(batch.datasets, DATASETS_A_CALL):
            for told in {directory, self.root}:  # the run's, too: by its inputs it is found and grouped in a list
                self.client.log_inputs(self.ids[told], datasets)
            self.sent.datasets += len(datasets)
            self.beat()
        self._metrics(directory, batch.metrics)

    def _metrics(self, directory: Path, points: Sequence[Metric]) -> None:
        for piece in pieces(self._unknown(directory, points), METRICS_A_CALL):
            self.client.log_batch(self.ids[directory], metrics=piece)
            self.sent.metrics += len(piece)
            self.beat()

    def _unknown(self, directory: Path, points: Sequence[Metric]) -> Sequence[Metric]:
        """Points the store has not got. It would find out itself, at 2 ms a point: asking by name is far faster."""
        has = self.points.get(directory)
        if has is None:
            return points
        for name in {p.key for p in points} - has.keys():
            history = self.client.get_metric_history(self.ids[directory], name)
            has[name] = {(m.timestamp, m.step, m.value) for m in history}
            self.beat()
        return [p for p in points if (p.timestamp, p.step, p.value) not in has[p.key]]

    def _words(self, directory: Path, values: Mapping[str, str], labels: Mapping[str, str]) -> None:
        """Params and tags. A param keeps its first value; another one is told beside it, as a tag."""
        known = self.known[directory]
        labels = {**labels, **{f"changed.{k}"[:NAME]: v for k, v in values.items() if known.get(k, v) != v}}
        new = [Param(k, v) for k, v in values.items() if k not in known]
        for piece in pieces(new, WORDS_A_CALL):
            self.client.log_batch(self.ids[directory], params=piece)
            known.update({p.key: p.value for p in piece})
            self.sent.params += len(piece)
            self.beat()
        for piece in pieces([RunTag(k, v) for k, v in labels.items()], WORDS_A_CALL):
            self.client.log_batch(self.ids[directory], tags=piece)
            self.beat()

    def _status(self, directory: Path, status: str, end: int) -> None:
        memory = self.memory[directory]
        if memory.status != status:
            if status == "RUNNING":
                self.client.update_run(self.ids[directory], status)
            else:
                self.client.set_terminated(self.ids[directory], status, end)
            memory.status = status
            outbox.remember(directory, self.target.store, memory)
            self.beat()

    def _run(self, stamp: str, went_on: bool) -> None:
        """The parent run: what `result.json` says, once it does."""
        memories = [m for d, m in self.memory.items() if d != self.root] or [self.memory[self.root]]
        memory = self.memory[self.root]
        memory.last = max(m.last for m in memories)
        if not stamp or memory.files.get("result.json") == stamp:
            if went_on and memory.status != "RUNNING":
                self._words(self.root, {}, {"nested.status": "running"})
                self._status(self.root, "RUNNING", 0)
            return
        result = read_json(self.root / "result.json")
        told = {k: result[k] for k in ("label", "stream", "scenario", "seeds") if result.get(k) is not None}
        word = str(result.get("status"))
        self._words(self.root, params(result.get("config") or {}), tags({**told, "nested.status": word}))
        t = max(m.ended for m in memories) or memory.last
        for kind in ("mean", "ci95"):
            self._metrics(self.root, metrics({f"{kind}/{k}": v for k, v in (result.get(kind) or {}).items()}, t, 0))
        self._status(self.root, STATUS.get(word, "FAILED"), t)

    def _files(self, directory: Path, result: str) -> None:
        """Send files that changed; a `result.json` newer than the one that was told waits until it has been told."""
        memory = self.memory[directory]
        for name, stamp in outbox.changed_files(directory, memory).items():
            if name == "result.json" and stamp != result:
                continue
            folder = posixpath.dirname(name)
            self.client.log_artifact(self.ids[directory], str(directory / name), folder or None)
            memory.files[name] = stamp
            self.sent.artifacts += 1
            outbox.remember(directory, self.target.store, memory)
            self.beat()
