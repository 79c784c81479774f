"""What a search was worth: its best configurations again, on seeds it never saw, on the test part, beside controls.

Beside the defaults, and beside one level that was tuned with as many trials; on the study's own stream and on another
one, since most published gains vanish there (arXiv 2403.09066). The choice was made on validation data and is not made
again: the first sentence is about the first choice, whatever else turns out to be better here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nested import rundir
from nested.config import from_dict, read_override
from nested.continuing import FREE, config_difference, told
from nested.errors import UserError
from nested.settings import Config
from nested.signature import checked, value_of
from nested.tuning import recipe, search, worth
from nested.tuning.choice import chosen
from nested.tuning.controls import Arm, Wanted, begins, elsewhere, one_level
from nested.tuning.settings import Count, Request
from nested.tuning.space import override
from nested.tuning.study import Study
from nested.tuning.worth import Stream
from nested.wording import counted

RECORD = "best.json"
ITSELF = "The best trial is the defaults themselves: the search found nothing better."
Say = search.Say


@dataclass(frozen=True)
class Worth:
    """What came of it."""

    study: Study
    sentence: str
    streams: tuple[Stream, ...]
    recipes: tuple[Path, ...]
    notes: tuple[str, ...]
    unsent: bool = False

    def as_json(self) -> dict[str, Any]:
        """The object of `--json`, and what is recorded for the page."""
        return {
            "study": self.study.name, "sentence": self.sentence, "notes": list(self.notes),
            "recipes": [str(p) for p in self.recipes], "streams": [s.as_json() for s in self.streams],
        }  # fmt: skip


def best(words: Sequence[str], config_dir: str | None, say: Say) -> Worth:
    """Run the best configurations of a study again, beside its controls, and write them as recipes.

    Raises UserError before anything is trained, KeyboardInterrupt when it is stopped: the same command goes on.
    """
    study, wanted, workers, about_stream = _asked(words, config_dir)
    first = chosen(study, wanted.k)
    if not first:
        within = " and within the budget" if study.objective.budget else ""
        raise UserError(f"no trial of {study.name} is whole{within} yet", key="study", seen=study.name)
    seeds = fresh(wanted.seeds, study.seeds)
    notes = list(_about(study, wanted))
    tuned = _tuned(study, first, notes)
    names = recipe.names(wanted.recipe or study.name, len(tuned), study)
    arms = [*tuned, *([] if tuned[0].trial == default(study) else [Arm("defaults", "defaults", study.request)])]
    other = elsewhere(study, tuned[0], wanted, about_stream, notes)
    arms += one_level(study, wanted, seeds, workers, notes, say)
    streams, unsent = [], False
    try:
        for choice in [None, *([other] if other else [])]:
            told, problems = _on(study, arms, choice, seeds, about_stream, say)
            streams.append(told)
            notes += problems
            unsent |= any("nested sync" in p for p in problems)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(search.GO_ON) from None
    sentence = worth.sentence(study, streams)
    if any(arm.key == "defaults" for arm in arms) and not worth.shown_better(streams[0]):
        notes.append("Not shown to be better than the defaults: the recipe is written all the same, and says so.")
    paths = [
        recipe.write(path, arm.config([], False), _said(study, arm, k, streams), study.name)
        for k, (path, arm) in enumerate(zip(names, tuned))
    ]
    found = Worth(study, sentence, tuple(streams), tuple(paths), tuple(dict.fromkeys(notes)), unsent)
    rundir.write_json(study.path / RECORD, found.as_json())
    search.conclude(study)
    return found


def _asked(words: Sequence[str], config_dir: str | None) -> tuple[Study, Wanted, int, list[str]]:
    """The study, what is wanted, how many workers tune one level, words about the other stream."""
    mine = dict(read_override(w) for w in words if begins(w, "best") or w.startswith("workers="))
    workers = value_of(mine.pop("workers", 1), Count, "workers")
    wanted = Wanted(**checked(Wanted, {k.removeprefix("best."): v for k, v in mine.items()}, "best"))
    about_stream = [w for w in words if w.startswith(("stream.", "data.")) and "=" in w]
    if about_stream and wanted.stream is False:
        raise UserError("no other stream is wanted: best.stream=false", key=about_stream[0], seen=about_stream)
    rest = [w for w in words if not begins(w, "best") and not w.startswith("workers=") and w not in about_stream]
    study = search.named(*search.place(rest))
    if config_dir:
        where = str(Path(config_dir).resolve())
        study.request = Request.from_dict({**study.request.as_dict(), "config_dir": where})
    return study, wanted, workers, about_stream


def fresh(wanted: int | list[int], tuned: Sequence[int]) -> list[int]:
    """Seeds that were not tuned on. Raises UserError for some that were."""
    if isinstance(wanted, int):
        return [max(tuned) + 1 + i for i in range(wanted)]
    again = sorted(set(wanted) & set(tuned))
    if again or len(set(wanted)) < max(1, len(wanted)):
        text = f"one or more are needed, all different and none tuned on; tuned on were {list(tuned)}"
        raise UserError(text, key="best.seeds", seen=wanted)
    return list(wanted)


def _about(study: Study, wanted: Wanted) -> Iterable[str]:
    """What a reader must know beside the numbers."""
    ended = len(study.trials("COMPLETE", "PRUNED", "FAIL"))
    if ended < study.n_trials:
        yield f"The study goes on: {ended} of {study.n_trials} trials have ended."
    if study.request.tune.prefix:
        yield f"Tuned on the first {study.request.tune.prefix} experiences, run here on all."
    if study.request.config().stream.get("seed") is not None:
        yield "stream.seed fixes the split and the order of the experiences: fresh seeds do not draw them anew."
    if wanted.k > 1:
        yield "The sentence is about the first choice, made on validation data; the others are no further tries at it."


def default(study: Study) -> int | None:
    """The number of the trial with the default values, if there is one."""
    return 0 if study.record["defaults_first"] else None


def _tuned(study: Study, trials: Sequence[Any], notes: list[str]) -> list[Arm]:
    if trials[0].number == default(study):
        notes.append(ITSELF)
    trials = [trials[0], *(t for t in trials[1:] if t.number != default(study))]
    return [Arm(f"tuned, trial {t.number}", f"trial-{t.number:04d}", study.request, t.params, t.number) for t in trials]


# -- running -----------------------------------------------------------------------------------------------------------


def _on(
    study: Study, arms: Sequence[Arm], choice: str | None, seeds: list[int], more: Sequence[str], say: Say
) -> tuple[Stream, list[str]]:
    """Every arm on one stream: what they came to, and what went wrong with which."""
    name = choice or study.record["choices"].get("stream", "stream")
    words = [f"stream={choice}", *more] if choice else []
    found, problems = [], []
    for arm in arms:
        path = study.path.parent / f"{study.name}-{arm.key}-{name}"
        label = override("label", arm.name)
        try:
            config = arm.config([*words, label, f"seeds={_all(path, seeds)}", "prefix=null"], choice is not None)
            config = replace(config, runs=str(path.parent))
            result = _run(config, path, say)
        except UserError as error:
            problems.append(f"{arm.name} cannot be run on {name}: {error}")
            continue
        problems += [f"{arm.name} on {name}: {p}" for p in result["problems"]]
        runs = {r["seed"]: r for r in result["runs"] if r["status"] == "done" and r["seed"] in seeds}
        say(f"{arm.name} on {name}: {len(runs)} of {counted(len(seeds), 'seed')}, {path.name}")
        found.append(worth.Outcome(arm.name, path.name, runs))
    return Stream(name, choice is not None, seeds, tuple(found), study.objective), problems


def _all(path: Path, seeds: Sequence[int]) -> list[int]:
    """These seeds and those that a run has already."""
    known = rundir.read_config(path)["seeds"] if (path / "FORMAT").is_file() else []
    return sorted({*known, *seeds})


def _run(config: Config, path: Path, say: Say) -> dict[str, Any]:
    """A run at a place of its own, continued where it stands. Raises UserError where another config was run there."""
    from nested.run import run

    stored = rundir.as_stored(config.to_dict())
    if (path / "FORMAT").is_file():
        changed = config_difference(from_dict(rundir.read_config(path)), config, (*FREE, "seeds", "label"))
        if changed:
            text = f"{path.name} was run with another config: {told(changed)}. Give it as before, or remove {path}"
            raise UserError(text, key="study", seen=list(changed))
        result = path / "result.json"
        known = rundir.read_json(result) if result.is_file() else {}
        if known.get("status") == "done" and known["seeds"] == stored["seeds"]:
            return known
    rundir.found(path, stored)
    done = run(config, path, say)
    return {"runs": done.runs, "problems": done.problems}


# -- what is said ------------------------------------------------------------------------------------------------------


def _said(study: Study, arm: Arm, k: int, streams: Sequence[Stream]) -> list[str]:
    """The comment of a recipe: what it is, what it came to, and what it was worth beside the others."""
    choice = ("the best", "the second best", "the third best")[k]
    if not study.objective.single:
        choice = ("on the front, nearest to the best of everything,", *(f"best in {n}" for n in study.objective.names))[
            k
        ]
    of = counted(study.n_trials, "trial")
    first = f"Trial {arm.trial} of the study {study.name}: {choice} of {of} on validation data."
    itself = [ITSELF] if arm.trial == default(study) else []
    return [first, *itself, *worth.measured(streams[0], arm.name), *worth.compared(study, streams, arm.name)]


def recorded(path: Path) -> Any:
    """What was measured, for the study's page; None where nothing was."""
    from nested.report.trials import Fresh

    if not (path / RECORD).is_file():
        return None
    values = rundir.read_json(path / RECORD)
    tables = [(s["title"], worth.grid(s["rows"], s["head"], s["remark"])) for s in values["streams"]]
    said = [f"Written as {p}." for p in values["recipes"]]
    return Fresh(values["sentence"], [*values["notes"], *said], tables)
