"""Formal languages as a stream: one experience for each language, in the order of the config."""

from __future__ import annotations

from random import Random
from typing import Annotated, Literal

from nested.config import Bound
from nested.errors import UserError
from nested.sequences import formal_languages as language
from nested.streams.arrange import Count, Seed, Share
from nested.streams.boundaries import Boundary
from nested.streams.sequence_source import Data, one_label_space, sequence_source
from nested.streams.stream import Stream

Name = Literal["parity", "aa", "abab", "anbn", "anbncn", "shuffle2"]
Length = Annotated[int, Bound(ge=1)]
Lengths = tuple[Length, Length]


def formal_languages(
    *,
    languages: tuple[Name, ...] = ("parity", "aa", "abab", "anbn", "anbncn", "shuffle2"),
    train_lengths: Lengths = (2, 50),
    test_lengths: Lengths = (51, 100),
    n_train: Count = 2000,
    n_validation: Count = 200,
    n_test: Count = 500,
    scenario: Literal["domain", "task"] = "domain",
    boundary: Boundary = "hard",
    blur: Share = 0.2,
    repeats: Count = 1,
    seed: Seed = None,
) -> Stream:
    """Six formal languages, one after the other: what may follow each prefix, judged on longer strings than trained on.

    Validation strings have the lengths of training (bin 0 of Nested Learning's table 5), test strings `test_lengths`
    (bin 1). Targets number the sets of symbols that may follow; in the domain scenario one head serves all languages,
    in the task scenario each has its own. Raises UserError for lengths of which a language has no string.
    """
    if not languages or len(set(languages)) < len(languages):
        text = "each language once, and at least one; `stream.repeats` visits them again"
        raise UserError(text, key="stream.languages", seen=list(languages), allowed=list(language.LANGUAGES))
    sizes = (n_train, n_validation, n_test)
    tasks = {name: _parts(name, train_lengths, test_lengths, sizes, seed or 0) for name in languages}
    source = sequence_source(
        "formal_languages", tasks, language.VOCABULARY, pad=language.PAD, n_labels=len(language.SETS)
    )
    return one_label_space(source, scenario, boundary, blur, repeats, seed)


def _parts(name: str, train: Lengths, test: Lengths, sizes: tuple[int, int, int], seed: int) -> list[Data]:
    """Train, validation and test of one language; what is held out is new where the language has enough strings."""
    draws = [Random(f"{seed}/{name}/{part}") for part in ("train", "validation", "test")]
    short, long = _lengths(name, train, "train_lengths"), _lengths(name, test, "test_lengths")
    trained = language.strings(name, short, sizes[0], draws[0])
    chosen = language.strings(name, short, sizes[1], draws[1], {*trained})
    judged = language.strings(name, long, sizes[2], draws[2], {*trained, *chosen})
    return [language.encode(name, part) for part in (trained, chosen, judged)]


def _lengths(name: str, limits: Lengths, key: str) -> range:
    found = language.lengths(name, *limits)
    if limits[0] > limits[1]:
        text = f"the shortest comes first: [{limits[1]}, {limits[0]}]"
    elif not found:
        unit = language.LANGUAGES[name].unit
        text = f"{name} has strings of lengths {unit}, {2 * unit}, {3 * unit}, ... and none of these"
    else:
        return found
    raise UserError(text, key=f"stream.{key}", seen=list(limits))
