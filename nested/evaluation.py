"""An export judged on a stream, its own or another one whose samples and outputs fit: `nested eval`.

On the stream of its run, equal by digest, it must repeat the last row of the run's matrix exactly, and says whether it
does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from nested_kernels.backend import using
from torch import Tensor, nn

from nested.computing import check_device, device_of
from nested.config import Config, amend, build, compose, from_dict
from nested.environment import environment
from nested.errors import UserError
from nested.export import layout
from nested.exported import Export, read
from nested.learner import Learner
from nested.levels import check_whole_chunks, from_config, token_levels
from nested.methods.method import Method
from nested.models.language import LanguageModel
from nested.optim.leveled import Leveled
from nested.remarks import fewer_sequences
from nested.settings import level_configs
from nested.streams.assemble import own_heads
from nested.streams.stream import Stream

if TYPE_CHECKING:
    from rich.console import Group

KEPT = ("trainer", "evaluate", "data", "seed")  # of the run's config, besides stream: what judging depends on
ASKED = ("stream", "data", "seed", "evaluate.parts", "trainer.eval_batch_size", "trainer.accelerator")


@dataclass(frozen=True)
class Scores:
    """One part of a stream: a sum (correct answers, summed loss, or bits) and a count for each experience."""

    sum: list[float]
    count: list[int]

    @property
    def scores(self) -> list[float]:
        return [s / c for s, c in zip(self.sum, self.count, strict=True)]

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Evaluation:
    """What an export came to on a stream; `repeats`: as the run's last row, bit for bit (None: another stream)."""

    export: str
    run: str
    seed: int
    label: str
    view: str
    stream: str
    digest: str
    lower_is_better: bool
    measure: str
    experiences: list[str]
    parts: dict[str, Scores]
    repeats: bool | None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        parts = {p: {**asdict(s), "scores": s.scores, "mean": s.mean} for p, s in self.parts.items()}
        return {**vars(self), "parts": parts}

    def __rich__(self) -> Group:
        return _rendered(self)


def evaluate(path: str | Path, overrides: Iterable[str] = (), config_dir: str | Path | None = None) -> Evaluation:
    """Judge the export at `path` on the stream that `overrides` choose, by default its run's. Raises UserError."""
    export = read(path)
    config = _config(export, list(overrides), config_dir)
    stream: Stream = build(config.stream, "stream", seed=config.seed, root=config.data.root)
    _check_fits(export, stream)
    with using(config.trainer.kernels):
        parts = _parts(_judge(export, config, stream), config)
    same = stream.digest == export.about["stream"]["digest"]
    repeats = _repeats(parts, export.about["row"]) if same else None
    fewer = fewer_sequences(stream)
    notes = ([fewer] if fewer else []) + ([] if repeats else _notes(export, stream))
    return Evaluation(
        str(export.path), export.about["run"], export.about["seed"], export.about["label"], export.about["view"],
        stream.name, stream.digest, stream.lower_is_better, stream.measure, [e.name for e in stream.experiences],
        parts, repeats, notes,
    )  # fmt: skip


def _config(export: Export, overrides: list[str], config_dir: str | Path | None) -> Config:
    """The run's config as far as judging depends on it, with what is asked for. Raises UserError for anything else."""
    for text in overrides:
        key = text.partition("=")[0]
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in ASKED):
            what = "an export is judged as it is"
            raise UserError(f"{what}; what can be given: {', '.join(ASKED)}", key=key, seen=text, allowed=list(ASKED))
    chosen = any(text.startswith("stream=") for text in overrides)
    kept = KEPT if chosen else (*KEPT, "stream")  # the run's need not even be importable here where another is chosen
    raw = {**compose([], config_dir).to_dict(), **{k: export.config[k] for k in kept}}
    config = amend(from_dict(raw), overrides, config_dir)
    if any(text.startswith("trainer.accelerator=") for text in overrides):  # a run's own GPU need not be here
        check_device(config.trainer.accelerator, "trainer.accelerator", "trainer.accelerator=")
    return config


def _parts(judge: Learner, config: Config) -> dict[str, Scores]:
    found: dict[str, Scores] = {}
    for part in config.evaluate.parts:
        for experience in judge.stream.experiences:
            judged = judge.judge(getattr(experience, part), config.trainer.eval_batch_size)
            for name, (total, count) in judged.parts(part).items():
                scores = found.setdefault(name, Scores([], []))
                scores.sum.append(total)
                scores.count.append(count)
    return found


def _repeats(parts: Mapping[str, Scores], row: Mapping[str, Mapping[str, list[Any]]]) -> bool:
    """Whether every part that the run judged, too, has its numbers; it may have judged the first experiences only."""
    both = parts.keys() & row.keys()
    return bool(both) and all(
        parts[p].sum[: len(row[p]["sum"])] == row[p]["sum"]
        and parts[p].count[: len(row[p]["count"])] == row[p]["count"]
        for p in both
    )


def _notes(export: Export, stream: Stream) -> list[str]:
    """What may explain that the run's last row is not repeated, and what it may mean."""
    about = export.about
    if stream.digest != about["stream"]["digest"]:
        leak = "other samples or another split than the run's, and some may have been trained on"
        return [leak] if stream.name == about["stream"]["name"] else []
    here = environment()["packages"]
    changed = {k: (v, here.get(k)) for k, v in about["packages"].items() if here.get(k) != v}
    return [f"made with {k} {a}, here {b}" for k, (a, b) in changed.items()]


# -- does the stream fit? ----------------------------------------------------------------------------------------------


def _check_fits(export: Export, stream: Stream) -> None:
    """Raise UserError for a stream whose samples or outputs are not those that the model was made for."""
    then, now = export.about["stream"], layout(stream)
    for name, key in (("regression", "stream"), ("vocabulary", "stream"), ("per_position", "stream")):
        _check_same(name, then, now, key)
    for name, before in (("language", False), ("tokenizer", None)):  # earlier exports do not say
        _check_same(name, {name: before, **then}, now, "stream")
    if stream.vocabulary is None:  # sequences may have another length: the model says whether it can read it
        _check_same("sample_shape", then, now, "stream")
    _check_same("scenario", then, now, "stream.scenario")
    _check_same("n_outputs", then, now, "stream")
    trained, asked = then["task_outputs"], now["task_outputs"]
    if asked != (trained and trained[: stream.n_tasks]):
        raise _other_outputs(export, stream, "its tasks have other outputs")
    meant = _meaning(then)
    for label, output in _meaning(now).items():
        if meant.get(label, output) != output:
            raise _other_outputs(export, stream, f"class {label} was output {meant[label]} and is {output} here")


def _check_same(name: str, then: Mapping[str, Any], now: Mapping[str, Any], key: str) -> None:
    if then[name] != now[name]:
        text = f"{now['name']} has {name} {now[name]}, and the model was made for {then[name]} ({then['name']})"
        raise UserError(f"{text}; choose a stream that fits", key=key, seen=now[name], allowed=then[name])


def _other_outputs(export: Export, stream: Stream, what: str) -> UserError:
    seed = export.config["stream"].get("seed") or export.config["seed"]
    text = f"the outputs do not fit {stream.name}: {what}; stream.seed={seed} gives the order it was trained in"
    return UserError(text, key="stream", seen=stream.digest)


def _meaning(stream: Mapping[str, Any]) -> dict[int, int]:
    """Class -> output, where an output stands for another class in every experience (its place there)."""
    classes = [e["classes"] for e in stream["experiences"]]
    ranked = stream["scenario"] == "domain" and all(len(c) == stream["n_outputs"] for c in classes)
    return {label: rank for own in classes for rank, label in enumerate(own)} if ranked else {}


# -- judging -----------------------------------------------------------------------------------------------------------


class _Stored:
    """Which outputs may compete, as when the run ended."""

    def __init__(self, export: Export, device: torch.device):
        rows, stream = export.about["competing"], export.about["stream"]
        self.table = None if rows is None else own_heads(rows, stream["n_outputs"]).to(device)
        self.by_task = stream["scenario"] == "task"

    def allowed(self, task: Tensor, experience: int, training: bool) -> Tensor | None:
        """(B, n_outputs) bool, or None."""
        if self.table is None:
            return None
        return self.table[task] if self.by_task else self.table[:1].expand(len(task), -1)


class _Judge(Learner):
    """A learner that never learns: an export's model, and the outputs that competed when its run ended.

    Raises UserError for sequences of a length that a run of a language model refuses.
    """

    def __init__(self, export: Export, model: nn.Module, stream: Stream, config: Config, device: torch.device):
        idle = cast(Leveled, None)  # nothing is optimized
        reading = token_levels(from_config(level_configs(export.config["levels"])))
        if isinstance(model, LanguageModel):  # whose own check was of the length it was trained on
            check_whole_chunks(reading, stream.sample_shape[0])
        super().__init__(model, stream, idle, Method(), "none", config.trainer.precision, device, reading)
        self._masks = cast(Any, _Stored(export, device))

    def _diagnosis(self, what: str, step: int) -> str:
        return f"{what}: the samples may be far from those that the model was trained on"


def _judge(export: Export, config: Config, stream: Stream) -> Learner:
    device = device_of(config.trainer.accelerator)
    return _Judge(export, export.model(device), stream, config, device)


def _rendered(found: Evaluation) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("experience", box=None, pad_edge=False)
    for part in found.parts:
        table.add_column(part.replace("/", " "), justify="right")
    for k, name in enumerate(found.experiences):
        table.add_row(Text(name), *(f"{s.scores[k]:.4f}" for s in found.parts.values()))
    table.add_row("mean", *(f"{s.mean:.4f}" for s in found.parts.values()))
    said = {
        True: "equal to the last row of the run's matrix",
        False: "NOT equal to the last row of the run's matrix",
        None: "another stream than the run's",
    }[found.repeats]
    title = f"{found.run} seed {found.seed} ({found.label}, {found.view}) on {found.stream}: {found.measure}"
    return Group(Text(title), table, Text(said), *map(Text, found.notes))
