"""A seed's final model as a folder that stands alone: what it is made of, and what is needed to judge it again.

EXPORT/{config.yaml, model.safetensors, export.json}, and tokenizer.json of a text that was read with one. The weights
are those that the run judges first: the method's main view, be it an average of weights or a memory in the head's
place. Nothing is pickled. `export.json` is written last and holds the digests of the others, the shapes the model was
built for, the layout of its outputs and the last row of the run's matrix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from nested import rundir
from nested.continuing import check_data
from nested.environment import environment, package_version
from nested.errors import UserError
from nested.exported import ABOUT, CONFIG, FORMAT, TOKENIZER, WEIGHTS, sha256
from nested.model_context import model_context
from nested.signature import build
from nested.streams.files import user_path

if TYPE_CHECKING:
    from nested.learner import Learner
    from nested.streams.stream import Batch, Stream

ELSEWHERE = ("tracking", "checkpoint", "runs", "seeds")  # of the config: about the machine and the run, not the model
COMPARED = 64  # examples of each experience; sequences of text one by one


def export(run: Path, seed: int | None = None, to: Path | None = None) -> Path:
    """Write the final model of a run's seed to `to`, by default `export/` in the seed's directory; returns the folder.

    It is read back and compared with what the run judges before anything is written for good. Raises UserError for a
    seed that has not ended well, for data that are not the run's, and for a model that cannot be told in tensors.
    """
    directory = _seed_directory(run, seed)
    target = to or directory / "export"
    _check_ended(directory)
    _check_free(target, directory)
    learner = _final(directory)
    view, context = next(iter(learner.method.views().items()))
    with context:
        weights = _tensors(learner.model.state_dict())
    about = _about(directory, learner, view)
    config = {k: v for k, v in rundir.read_config(directory).items() if k not in ELSEWHERE}
    model = _standalone(learner, config, weights)
    _check_equal(learner, model)
    _write(target, _tensors(model.state_dict()), config, about, _tokenizer(learner.stream, config))
    return target


def _seed_directory(run: Path, seed: int | None) -> Path:
    """The directory of one seed. Raises UserError where there are several and none is named."""
    if run.name.startswith("seed-") and seed is None:
        return run
    found = {int(p.name.removeprefix("seed-")): p for p in run.glob("seed-*") if (p / "FORMAT").is_file()}
    if seed is None and len(found) == 1:
        return next(iter(found.values()))
    if seed not in found:
        there = sorted(found)
        text = f"{run.name} has no seed {seed}" if seed is not None else f"{run.name} has {len(there)} seeds; name one"
        raise UserError(
            f"{text}: {', '.join(map(str, there)) or 'none has begun'}", key="seed", seen=seed, allowed=there
        )
    return found[seed]


def _check_ended(directory: Path) -> None:
    run, file = directory.parent.name, directory / "summary.json"
    status = rundir.read_json(file)["status"] if file.is_file() else "interrupted"
    if status == "done":
        return
    what = {
        "interrupted": f"has not ended; nested resume {run} continues it",
        "diverged": "diverged: there are no final weights; train it again with a lower rate",
        "pruned": "was pruned: there are no final weights; train its config with nested run",
    }
    raise UserError(f"{run} {directory.name} {what.get(status, status)}", key="run", seen=status, allowed="done")


def _check_free(target: Path, directory: Path) -> None:
    """Raise UserError for a folder that holds anything but an earlier export of the same seed."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; choose another folder", key="--to", seen=str(target))
    if not target.is_dir() or not any(target.iterdir()):
        return
    try:
        about = json.loads((target / ABOUT).read_text())
        same = (about["run"], about["seed"]) == (directory.parent.name, rundir.read_config(directory)["seed"])
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise UserError(f"{target} is not empty; choose another folder", key="--to", seen=str(target))


def _final(directory: Path) -> Learner:
    """The learner of a seed that has ended, as it was when it judged last. Raises UserError."""
    from nested.config import from_dict
    from nested.loop import Loop
    from nested.prepare import prepare
    from nested.rundir import SeedDir

    config = from_dict(rundir.read_config(directory))
    learner = prepare(config, config.seed)
    seed_dir = SeedDir(directory)
    complaints = Loop(learner, config, seed_dir, config.seed).restore()
    if complaints or learner.cursor.experience < len(learner.curriculum):
        why = "; ".join(complaints) or "it has no checkpoint of its end"
        raise UserError(f"{directory} does not hold the final weights: {why}; train it again", key="run")
    check_data(directory, learner.stream, "run")
    return learner


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies, each with memory of its own. Raises UserError for state that is no tensor."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            text = f"its state {name!r} is a {type(value).__name__}; an export holds tensors, and nothing is pickled"
            raise UserError(f"{text}: register it as a buffer", key="model._target_", seen=name)
    return {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()}


def _about(directory: Path, learner: Learner, view: str) -> dict[str, Any]:
    from nested.methods.method import Method

    config = rundir.read_config(directory)
    matrix, here = rundir.read_json(directory / "matrix.json"), environment()
    row = {part: {k: m[k][-1] for k in ("sum", "count")} for part, m in matrix["views"][view].items()}
    return {
        "format": FORMAT,
        "run": directory.parent.name,
        "seed": config["seed"],
        "label": rundir.read_json(directory / "summary.json")["label"],
        "view": view,
        "by_method": type(learner.method).exported is not Method.exported,
        "stream": layout(learner.stream),
        "competing": _outputs(learner.competing()),
        "row": row,
        "components": {g: _origin(config[g]["_target_"]) for g in ("model", "method")},
        "packages": here["packages"],
        "python": here["python"],
    }


def layout(stream: Stream) -> dict[str, Any]:
    """What a model's outputs stand for, and what it reads."""
    return {
        "name": stream.name,
        "scenario": stream.scenario,
        "digest": stream.digest,
        "regression": stream.regression,
        "sample_shape": list(stream.sample_shape),
        "n_outputs": stream.n_outputs,
        "vocabulary": stream.vocabulary,
        "language": stream.language,
        "tokenizer": stream.about.get("tokenizer"),
        "per_position": stream.per_position,
        "experiences": [{"name": e.name, "task": e.task, "classes": list(e.classes)} for e in stream.experiences],
        "task_outputs": _outputs(stream.task_outputs),
    }


def _outputs(table: Tensor | None) -> list[list[int]] | None:
    """For each task its outputs, of a table (tasks, n_outputs) bool; None where every task has all."""
    return None if table is None or bool(table.all()) else [row.nonzero().flatten().tolist() for row in table]


def _origin(target: str) -> str | None:
    """The installed package that a component comes from, with its version."""
    names = packages_distributions().get(target.partition(".")[0])
    return f"{names[0]} {package_version(names[0])}" if names else None


def _standalone(learner: Learner, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """The model that is written: built anew, with the main view's weights and what the method puts in it."""
    with torch.random.fork_rng(devices=[]):
        context = model_context(learner.stream, (*learner.optimizer.levels, *learner.reading))
        model = build(config["model"], "model", **context)
    model.to(learner.where, learner.dtype_in if learner.dtype_in is torch.float64 else None)
    model.load_state_dict(weights)
    return learner.method.exported(model).to(learner.where).eval()


@torch.no_grad()
def _check_equal(learner: Learner, model: nn.Module) -> None:
    """Raise UserError where the model by itself does not answer as the run judged it: a view we cannot write."""
    learner.model.eval()
    for experience in learner.stream.experiences:
        for rows in torch.arange(min(COMPARED, len(experience.test))).split(1 if learner.stream.language else COMPARED):
            batch = learner.fetch(experience.test, rows)
            with next(iter(learner.method.views().values())):
                judged = _answers(learner, learner.model, batch)
            if not torch.equal(judged, _answers(learner, model, batch)):
                text = f"the model alone does not answer as {type(learner.method).__name__} judges it"
                mend = "let the method's `exported` put into the model what its main view adds"
                raise UserError(f"{text}: {mend}", key="method._target_", seen=experience.name)


def _answers(learner: Learner, model: nn.Module, batch: Batch) -> Tensor:
    """What a model is judged by: the losses of a text where it gives them, as its outputs may not fit into memory."""
    own = getattr(model, "nll", None) if learner.stream.language else None
    return model(batch.x) if own is None else own(batch.x, batch.y)


def _tokenizer(stream: Stream, config: Mapping[str, Any]) -> dict[str, bytes]:
    """The tokenizer file of a text that was read with one, a moment ago."""
    if "tokenizer" not in stream.about:
        return {}
    file = user_path(config["stream"]["tokenizer"], config["data"]["root"], "tokenizer file")
    return {TOKENIZER: file.read_bytes()}


def _write(
    target: Path, weights: dict[str, Tensor], config: dict[str, Any], about: dict[str, Any], more: dict[str, bytes]
) -> None:
    from omegaconf import OmegaConf

    files = {WEIGHTS: to_bytes(weights), CONFIG: OmegaConf.to_yaml(OmegaConf.create(config)).encode(), **more}
    with rundir.said(target):
        target.mkdir(parents=True, exist_ok=True)
    (target / ABOUT).unlink(missing_ok=True)  # from here on it is no export, until it is a whole one
    for name, data in files.items():
        rundir.write_atomic(target / name, data)
    digests = {name: sha256(data) for name, data in files.items()}
    rundir.write_json(target / ABOUT, {**about, "files": digests})
