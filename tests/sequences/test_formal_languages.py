"""Six languages against recognisers that were written without the automata."""

import re
from collections import Counter
from itertools import product
from random import Random

import pytest

from nested.sequences.exact_match import IGNORED
from nested.sequences.formal_languages import (
    END,
    LANGUAGES,
    PAD,
    SETS,
    SYMBOLS,
    VOCABULARY,
    _nested_word,
    encode,
    lengths,
    strings,
)


def well_nested(text: str, pair: str) -> bool:
    own = "".join(c for c in text if c in pair)
    while pair in own:
        own = own.replace(pair, "")
    return not own


IS_IN = {
    "parity": lambda t: t.count("1") % 2 == 0,
    "aa": lambda t: re.fullmatch("(aa)*", t) is not None,
    "abab": lambda t: re.fullmatch("(abab)*", t) is not None,
    "anbn": lambda t: len(t) > 0 and t == "a" * (len(t) // 2) + "b" * (len(t) // 2),
    "anbncn": lambda t: len(t) > 0 and t == "a" * (len(t) // 3) + "b" * (len(t) // 3) + "c" * (len(t) // 3),
    "shuffle2": lambda t: well_nested(t, "()") and well_nested(t, "[]"),
}
ALPHABET = {"parity": "01", "aa": "a", "abab": "ab", "anbn": "ab", "anbncn": "abc", "shuffle2": "([])"}
ENOUGH = {"parity": 8, "aa": 12, "abab": 13, "anbn": 12, "anbncn": 9, "shuffle2": 8}  # length of all words looked at
SHORT = {"parity": 6, "aa": 10, "abab": 8, "anbn": 5, "anbncn": 2, "shuffle2": 3}  # prefixes that so can be completed
languages = pytest.mark.parametrize("name", list(LANGUAGES))


def members(name: str) -> set[str]:
    """All words of the language up to a length, found by trying all strings."""
    every = (product(ALPHABET[name], repeat=n) for n in range(ENOUGH[name] + 1))
    return {text for letters in every for text in map("".join, letters) if IS_IN[name](text)}


@languages
def test_what_may_follow_is_what_can_be_completed(name):
    words = members(name)
    begun = {word[:n] for word in words for n in range(len(word) + 1)}
    for prefix in (p for p in begun if len(p) <= SHORT[name]):
        possible = {c for c in ALPHABET[name] if prefix + c in begun} | ({END} if prefix in words else set())
        assert set(LANGUAGES[name].follows(prefix)[-1]) == possible, prefix


@languages
def test_a_string_that_cannot_be_completed_is_refused(name):
    begun = {word[:n] for word in members(name) for n in range(len(word) + 1)}
    wrong = [p + c for p in begun if len(p) <= SHORT[name] for c in SYMBOLS if p + c not in begun]
    assert wrong
    for text in wrong:
        with pytest.raises(ValueError, match="is none of"):
            LANGUAGES[name].follows(text)


def test_the_classes_are_the_sets_that_occur_and_no_others():
    found = {s for name in LANGUAGES for text in members(name) for s in LANGUAGES[name].follows(text)}
    assert found == set(SETS)
    assert len(set(SETS)) == len(SETS)


@languages
@pytest.mark.parametrize("limits", [(2, 50), (51, 100), (255, 256)])
def test_strings_belong_to_the_language_and_have_the_lengths(name, limits):
    among = lengths(name, *limits)
    drawn = strings(name, among, 80, Random(0))
    assert all(IS_IN[name](text) for text in drawn)
    assert {len(text) for text in drawn} <= set(among)
    assert all(limits[0] <= n <= limits[1] for n in among)
    assert len(drawn) == 80


@languages
def test_no_length_that_has_strings_is_left_out(name):
    known = {len(word) for word in members(name)} - {0}
    assert set(lengths(name, 1, ENOUGH[name])) == known


@pytest.mark.parametrize(
    "name, text, sets",
    [
        ("parity", "1101", ["01$", "01", "01$", "01$", "01"]),
        ("aa", "aaa", ["a$", "a", "a$", "a"]),
        ("abab", "ababa", ["a$", "b", "a", "b", "a$", "b"]),
        ("anbn", "aabb", ["a", "ab", "ab", "b", "$"]),
        ("anbn", "ab", ["a", "ab", "$"]),
        ("anbncn", "aabbcc", ["a", "ab", "ab", "b", "c", "c", "$"]),
        ("anbncn", "abc", ["a", "ab", "c", "$"]),
        ("shuffle2", "([)]", ["([$", "()[", "()[]", "([]", "([$"]),
    ],
)
def test_examples_written_by_hand(name, text, sets):
    x, y = encode(name, [text])
    assert [SETS[k] for k in y[0].tolist()] == sets
    assert x[0].tolist() == [PAD + 1 + list(LANGUAGES).index(name), *(SYMBOLS.index(c) for c in text)]


def test_parity_is_the_parity_of_the_ones_so_far():
    text = strings("parity", [60], 1, Random(3))[0]
    _, y = encode("parity", [text])
    assert y[0].tolist() == [text[:n].count("1") % 2 for n in range(61)]


def test_shorter_strings_are_padded_and_not_judged_behind_their_end():
    x, y = encode("anbn", ["ab", "aaabbb"])
    assert x.shape == y.shape == (2, 7)
    assert x[0, 3:].tolist() == [PAD] * 4
    assert y[0, 3:].tolist() == [IGNORED] * 4
    assert (y[1] != IGNORED).all()
    assert int(x.max()) < VOCABULARY


def test_new_strings_are_drawn_while_there_are_some():
    first = strings("shuffle2", [10], 300, Random(0))
    assert not {*first} & {*strings("shuffle2", [10], 100, Random(1), {*first})}
    two = strings("parity", [2], 50, Random(0))
    assert {*two} == {"00", "11"}
    assert {*strings("parity", [2], 50, Random(1), {*two})} == {"00", "11"}  # there is no other


def test_every_length_and_every_nested_word_is_equally_likely():
    drawn = Counter(map(len, strings("anbn", lengths("anbn", 2, 10), 5000, Random(0))))
    assert set(drawn) == {2, 4, 6, 8, 10}
    assert all(abs(n - 1000) < 150 for n in drawn.values())
    random = Random(0)
    words = Counter(_nested_word(3, "()", random) for _ in range(5000))
    assert set(words) == {"((()))", "(()())", "(())()", "()(())", "()()()"}
    assert all(abs(n - 1000) < 150 for n in words.values())


def test_equal_seeds_give_equal_strings():
    draws = [strings("shuffle2", range(2, 51, 2), 20, Random(seed)) for seed in (5, 5, 6)]
    assert draws[0] == draws[1] != draws[2]


def test_no_length_to_draw_from_is_an_error():
    assert not lengths("abab", 5, 7)
    with pytest.raises(ValueError, match="abab has no string"):
        strings("abab", lengths("abab", 5, 7), 1, Random(0))
