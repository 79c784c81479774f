"""What the best of a search stands beside: one level that was tuned as long, and another stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from nested.config import composer
from nested.errors import UserError
from nested.settings import Config, Seed
from nested.tuning import search
from nested.tuning.choice import chosen
from nested.tuning.settings import Count, Request, request
from nested.tuning.space import override, read
from nested.tuning.study import Study
from nested.wording import counted

OFFLINE = {  # streams that need no download, in the order in which another one is taken
    "split_digits": "scikit-learn's digits", "permuted_digits": "scikit-learn's digits",
    "rotated_digits": "scikit-learn's digits", "recall": "key-value pairs", "mad": "MAD's token tasks",
    "formal_languages": "formal languages",
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What `nested tune best` runs again, on which seeds and streams, and beside what."""

    k: Literal[1, 2, 3] = 1  # so many of the best
    seeds: Count | list[Seed] = 5  # a number: the first ones that were not tuned on
    stream: str | bool = True  # another stream; true: one that needs no download; false: none
    single: str | bool = True  # a study of one level, by name; true: STUDY-single, begun if there is none; false: none
    recipe: str | None = None  # its name; null: the study's


@dataclass(frozen=True)
class Arm:
    """One configuration: its name, where its trial is, and the overrides that make it."""

    name: str
    key: str  # in the names of directories
    request: Request
    params: Mapping[str, Any] = field(default_factory=dict)
    trial: int | None = None

    def config(self, more: Iterable[str], other_stream: bool) -> Config:
        """As it was searched, on the whole stream and the test part. Raises UserError."""
        asked = self.request
        words = [*asked.tune.overrides, *asked.overrides, *(override(k, v) for k, v in self.params.items())]
        if other_stream:
            words = [w for w in words if not begins(w, "stream")]
        return composer([*words, "evaluate.parts=[test]", "trainer.progress=false", *more], asked.config_dir)()


def begins(word: str, group: str) -> bool:
    """Whether an override is of this group, a choice or a value."""
    return word.partition("=")[0].partition(".")[0] == group


# -- one level ---------------------------------------------------------------------------------------------------------


def one_level(
    study: Study, wanted: Wanted, seeds: Sequence[int], workers: int, notes: list[str], say: search.Say
) -> list[Arm]:
    """One level, tuned with as many trials: the study is begun, or goes on. Why there is none joins the notes."""
    if wanted.single is False:
        return []
    if wanted.single is True and has_one_level(study):
        notes.append("No tuned single level stands beside it: the study itself tuned one level that learns every step.")
        return []
    if isinstance(wanted.single, str):
        control = search.named(wanted.single, study.path.parent)
    else:
        asked = replace(single(study), workers=workers)
        say(f"one level, tuned with {counted(asked.tune.n_trials, 'trial')}: {asked.tune.study}")
        try:
            control = search.pursue(asked, say).study
        except UserError as error:
            how = "leave it out with best.single=false, or name a study of one level: best.single=NAME"
            raise UserError(f"one level cannot be tuned beside it: {error}; {how}", key="best.single") from None
    if known := sorted(set(control.seeds) & set(seeds)):
        text = f"{control.name} was tuned on seeds {known}; give others, best.seeds=[...]"
        raise UserError(text, key="best.seeds", seen=list(seeds))
    found = chosen(control)
    if not found:
        raise UserError(f"no trial of {control.name} is whole", key="best.single", seen=control.name)
    if control.objective.names != study.objective.names:
        text = f"{control.name} seeks {', '.join(control.objective.names)}, not {', '.join(study.objective.names)}"
        raise UserError(text, key="best.single", seen=control.name)
    key = f"single-trial-{found[0].number:04d}"
    return [Arm(f"one level, tuned, trial {found[0].number}", key, control.request, found[0].params, found[0].number)]


def has_one_level(study: Study) -> bool:
    """Whether every trial has the one level that the control would have."""
    ours, theirs = (list(asked.config().level_configs().values()) for asked in (study.request, single(study)))
    return ours == theirs and not any(begins(d.path, "levels") for d in study.dimensions)


def single(study: Study) -> Request:
    """The search of one level that is this study's control: all but the levels as they are, the rate as wide as either.

    As many trials, over the rate of conf/tune/rate.yaml and what else the study searches.
    """
    asked, name = study.request, f"{study.name}-single"
    space = {d.path: d.as_dict() for d in study.dimensions if not begins(d.path, "levels")}
    rate = request(["tune=rate"], asked.config_dir).tune.space
    for d in read(rate):
        mine = space.get(d.path, d.as_dict())
        if "low" in mine:
            mine = {**mine, "low": min(mine["low"], d.low), "high": max(mine["high"], d.high)}
        space[d.path] = mine
    kept = [[w for w in words if not begins(w, "levels")] for words in (asked.tune.overrides, asked.overrides)]
    tune = replace(
        asked.tune, space=space, overrides=kept[0], n_trials=study.n_trials, study=name,
        sampler="tpe" if asked.tune.sampler == "grid" else asked.tune.sampler, storage=_storage(study),
    )  # fmt: skip
    return replace(asked, tune=tune, overrides=[*kept[1], "levels=single"], launcher=None, choice="rate")


def _storage(study: Study) -> str | None:
    """The storage of the study's kind: its own file where the study has one, else the same one."""
    kept = str(study.record["storage"])
    if str(study.path) not in kept:
        return kept
    return "journal" if kept.startswith("journal") else None


# -- another stream ----------------------------------------------------------------------------------------------------


def elsewhere(study: Study, arm: Arm, wanted: Wanted, more: Sequence[str], notes: list[str]) -> str | None:
    """The other stream, by its choice; what there is to know of it joins the notes. Raises UserError."""
    own = study.record["choices"].get("stream", "")
    if wanted.stream is False:
        notes.append("On no other stream: most gains that are published vanish there.")
        return None
    if isinstance(wanted.stream, str):
        if wanted.stream == own:
            text = "it is the stream of the study; give another one, or best.stream=false"
            raise UserError(text, key="best.stream", seen=own)
        _rehearse(arm, wanted.stream, more)
        return wanted.stream
    for choice in OFFLINE:
        if choice == own:
            continue
        try:
            _rehearse(arm, choice, more)
        except UserError:
            continue
        if OFFLINE[choice] == OFFLINE.get(own):
            notes.append(
                f"{choice} is another stream of the same data, {OFFLINE[own]}: no other dataset. "
                "best.stream=split_mnist is one."
            )
        return choice
    notes.append("No other stream that needs no download suits the model: give one with best.stream=...")
    return None


def _rehearse(arm: Arm, choice: str, more: Sequence[str]) -> None:
    from nested.prepare import check, rehearse

    config = arm.config([f"stream={choice}", *more, "trainer.allow_idle=true"], True)
    check(config)
    rehearse(config)
