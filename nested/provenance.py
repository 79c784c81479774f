"""Where the numbers of a seed come from: machine, config and data, recorded before anything is trained."""

from __future__ import annotations

from dataclasses import replace

from nested import rundir
from nested.config import Config, flatten
from nested.environment import difference, environment
from nested.rundir import SeedDir
from nested.streams.stream import Stream


def record_environment(directory: SeedDir) -> list[str]:
    """Record the environment; on a resumed run, sentences about what has changed since."""
    here = environment()
    file = directory.path / "environment.json"
    if not file.exists():
        rundir.write_json(file, here)
        return []
    changed = difference(rundir.read_json(file), here)
    directory.event("resume", changed=changed)
    return [
        f"resumed with another {k}: {a} before, {b} now; bitwise equality is not promised"
        for k, (a, b) in changed.items()
    ]


def describe(directory: SeedDir, config: Config, run_id: str, seed: int, stream: Stream) -> None:
    """The events that come before any training: who, with what, on which data."""
    directory.event("start", run_id=run_id, seed=seed, label=config.name())
    directory.event("params", values=flatten(rundir.as_stored(replace(config, seed=seed, seeds=None).to_dict())))
    info = rundir.read_json(directory.path / "environment.json")
    git = {k: str(v) for k, v in info["git"].items() if v is not None}
    about = {**config.choices, "scenario": stream.scenario, "nested": info["packages"]["nested"], **stream.about}
    directory.event("tags", values={**git, **about})
    more = {"measure": stream.measure, "about": dict(stream.about)} if stream.about else {}
    for e in stream.experiences:
        directory.event(
            "dataset", experience=e.index, name=f"{stream.name} {e.name}", digest=stream.digest,
            n_train=len(e.train), n_validation=len(e.validation), n_test=len(e.test), classes=list(e.classes), **more,
        )  # fmt: skip
