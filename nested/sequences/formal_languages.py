"""Strings of six formal languages, and what may follow at each position: the task of Nested Learning's table 5.

The task is the character prediction of Bhattamishra et al. 2020 (arXiv 2009.11264), which Irie et al. 2023 (arXiv
2310.16076) and that table use. Every string belongs to its language. After each symbol the set of symbols that may come
next is asked for, END among them where the string may end there. Published models give one output per symbol (k-hot);
here each different set has a number, its class, so that one cross entropy and one argmax serve all six languages. It is
the same question: the classes are exactly the sets that occur. For parity it is the parity of the ones so far.

Protocol: train on lengths 2 to 50, judge on new strings of these lengths (bin 0), of lengths 51 to 100 (bin 1) and, for
curiosity, of about 256. A string counts only if every position is right. Its length is drawn first, uniformly from
those the language has in the range, then the string. Lengths count symbols alone.

Departures. Position 0 holds the name of the language, so that several languages share an alphabet and are still told
apart; what may follow it (what a string may begin with) is judged like the rest. (aa)*, (abab)*, a^n b^n and
a^n b^n c^n have one string of a length at most, so bin 0 repeats what was trained on; see `strings`.

Shapes: M strings, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from nested.sequences.exact_match import IGNORED

END = "$"
SYMBOLS = "01abc()[]"
PAD = len(SYMBOLS)  # tokens: the symbols, then padding, then the names of the languages
TRIES = 20  # draws of a string that has not been seen, before one that has is taken


@dataclass(frozen=True)
class Language:
    """A language as an automaton: a state, how a symbol changes it, and which symbols may follow in it."""

    start: Any
    step: Callable[[Any, str], Any]
    legal: Callable[[Any], str]  # symbols that may follow, END where the string may end
    unit: int  # every length that is a multiple of it, from `unit` on, has a string
    draw: Callable[[int, Random], str]  # a string of this length

    def follows(self, string: str) -> list[str]:
        """What may follow each prefix of the string, the empty one first: len(string) + 1 sets, their symbols in order.

        Raises ValueError where a symbol is not among those that may follow.
        """
        state, sets = self.start, [self.legal(self.start)]
        for place, symbol in enumerate(string):
            if symbol not in sets[-1]:
                raise ValueError(f"{symbol!r} at {place} of {string!r} is none of {sets[-1]!r}")
            state = self.step(state, symbol)
            sets.append(self.legal(state))
        return sets


def _parity() -> Language:
    """Bits with an even number of ones."""

    def draw(length: int, random: Random) -> str:
        bits = [random.randrange(2) for _ in range(length - 1)]
        return "".join(map(str, [*bits, sum(bits) % 2]))

    return Language(0, lambda odd, s: odd ^ (s == "1"), lambda odd: "01" if odd else "01" + END, 1, draw)


def _repeated(word: str) -> Language:
    """A word any number of times."""
    n = len(word)
    return Language(
        0,
        lambda i, _: (i + 1) % n,
        lambda i: word[i] + (END if i == 0 else ""),
        n,
        lambda length, _: word * (length // n),
    )


def _counted(letters: str) -> Language:
    """Each letter in turn, all of them equally often and at least once. State: how often each has come."""

    def step(counts: tuple[int, ...], symbol: str) -> tuple[int, ...]:
        return tuple(n + (letter == symbol) for letter, n in zip(letters, counts, strict=True))

    def legal(counts: tuple[int, ...]) -> str:
        first, *others = counts
        if not first:
            return letters[0]
        if not any(others):
            return letters[:2]
        unfinished = [letter for letter, n in zip(letters, counts, strict=True) if n < first]
        return unfinished[0] if unfinished else END

    n = len(letters)
    return Language((0,) * n, step, legal, n, lambda length, _: "".join(letter * (length // n) for letter in letters))


def _shuffle() -> Language:
    """Two kinds of brackets, each well nested by itself. State: how many of each are open.

    A string has k pairs of the first kind, k binomial, each kind uniform among its nested words, merged uniformly.
    """
    change = {"(": (1, 0), ")": (-1, 0), "[": (0, 1), "]": (0, -1)}

    def step(depths: tuple[int, int], symbol: str) -> tuple[int, int]:
        return depths[0] + change[symbol][0], depths[1] + change[symbol][1]

    def legal(depths: tuple[int, int]) -> str:
        closing = (")" if depths[0] else "") + ("]" if depths[1] else "")
        return "".join(sorted("([" + closing)) + ("" if closing else END)

    def draw(length: int, random: Random) -> str:
        pairs = [0, 0]
        for _ in range(length // 2):
            pairs[random.randrange(2)] += 1
        kinds = [0] * (2 * pairs[0]) + [1] * (2 * pairs[1])
        random.shuffle(kinds)
        words = [iter(_nested_word(pairs[0], "()", random)), iter(_nested_word(pairs[1], "[]", random))]
        return "".join(next(words[kind]) for kind in kinds)

    return Language((0, 0), step, legal, 2, draw)


def _nested_word(pairs: int, brackets: str, random: Random) -> str:
    """Uniform among the well nested words of so many pairs, by the cycle lemma.

    Of a circle of n opening and n + 1 closing brackets exactly one cut gives a word whose depth first falls below zero
    at its end: the one after the first lowest point.
    """
    steps = [1] * pairs + [-1] * (pairs + 1)
    random.shuffle(steps)
    depth = lowest = cut = 0
    for place, step in enumerate(steps):
        depth += step
        if depth < lowest:
            lowest, cut = depth, place + 1
    return "".join(brackets[step < 0] for step in (steps[cut:] + steps[:cut])[:-1])


LANGUAGES = {
    "parity": _parity(),
    "aa": _repeated("aa"),
    "abab": _repeated("abab"),
    "anbn": _counted("ab"),
    "anbncn": _counted("abc"),
    "shuffle2": _shuffle(),
}
SETS = ("01$", "01", "a$", "a", "b", "ab", "c", "$", "([$", "()[", "([]", "()[]")  # class k: what SETS[k] holds follows
_CLASS = {found: k for k, found in enumerate(SETS)}
VOCABULARY = PAD + 1 + len(LANGUAGES)


def lengths(name: str, shortest: int, longest: int) -> range:
    """The lengths in this range (both ends in it) of which the language has strings; there may be none."""
    unit = LANGUAGES[name].unit
    return range(max(1, -(-shortest // unit)) * unit, longest + 1, unit)


def strings(name: str, among: Sequence[int], n: int, random: Random, unlike: Collection[str] = ()) -> list[str]:
    """n strings of the language, the length of each drawn from `among`, each new (none of `unlike`) where one is found.

    Where `TRIES` draws of a length give none that is new, the language has few strings of that length, and a known one
    is taken. Raises ValueError when there is no length to draw from.
    """
    if not among:
        raise ValueError(f"{name} has no string of any of these lengths")
    return [_new(LANGUAGES[name], among[random.randrange(len(among))], random, unlike) for _ in range(n)]


def _new(language: Language, length: int, random: Random, unlike: Collection[str]) -> str:
    for _ in range(TRIES):
        string = language.draw(length, random)
        if string not in unlike:
            break
    return string


def encode(name: str, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Tokens and targets, both (M, T) int64, T one more than the longest: the language's name, the string, PAD.

    The target of position t is the class of what may follow the first t symbols, IGNORED behind the end.
    """
    width = 1 + max(map(len, texts))
    begin = PAD + 1 + list(LANGUAGES).index(name)
    rows = {text: _encoded(LANGUAGES[name], begin, text, width) for text in dict.fromkeys(texts)}
    x, y = torch.tensor([rows[text] for text in texts]).unbind(1)
    return x.contiguous(), y.contiguous()


def _encoded(language: Language, begin: int, text: str, width: int) -> tuple[list[int], list[int]]:
    rest = width - 1 - len(text)
    symbols = [begin, *map(SYMBOLS.index, text)]
    return symbols + [PAD] * rest, [_CLASS[found] for found in language.follows(text)] + [IGNORED] * rest
