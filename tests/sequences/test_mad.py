"""MAD's tasks: what is asked for can be told from what was shown, by rules written down again here."""

import pytest
import torch

from nested.sequences import mad
from nested.sequences.exact_match import IGNORED


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(data: mad.Data) -> list[tuple[list[int], list[int]]]:
    x, y = data
    assert x.shape == y.shape
    assert x.dtype == y.dtype == torch.int64
    return list(zip(x.tolist(), y.tolist(), strict=True))


@pytest.mark.parametrize(("tokens", "length"), [(16, 128), (9, 10), (32, 64)])
def test_recall_asks_for_the_value_of_each_key_that_came_before(tokens, length):
    for x, y in rows(mad.in_context_recall(50, draw(), tokens, length)):
        assert len(x) == length - 1
        known: dict[int, int] = {}
        for i in range(0, length - 1, 2):
            assert y[i] == known.get(x[i], IGNORED)
            assert x[i] < tokens // 2
            if i + 1 < len(x):
                assert y[i + 1] == IGNORED
                assert tokens // 2 <= x[i + 1] < tokens
                assert known.setdefault(x[i], x[i + 1]) == x[i + 1]
        assert y[-1] != IGNORED


def test_recall_maps_keys_anew_in_each_sequence():
    maps = [{x[i]: x[i + 1] for i in range(0, 126, 2)} for x, _ in rows(mad.in_context_recall(20, draw()))]
    assert len({m[0] for m in maps}) > 4


@pytest.mark.parametrize(
    ("tokens", "length", "most", "longest"), [(16, 128, 3, False), (16, 40, 3, True), (11, 21, 2, False)]
)
def test_fuzzy_recall_asks_for_all_of_the_value(tokens, length, most, longest):
    half, pad, asked = (tokens - 1) // 2, tokens - 1, 0
    for x, y in rows(mad.fuzzy_in_context_recall(40, draw(), tokens, length, most, longest)):
        assert len(x) == length - 1
        text = x[: x.index(pad)] if pad in x else x
        assert y[len(text) :] == [IGNORED] * (len(x) - len(text))
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        i = 0
        while i < len(text):
            start = i
            while i < len(text) and text[i] < half:
                i += 1
            key, middle = tuple(text[start:i]), i
            assert y[start : middle - 1] == [IGNORED] * (middle - 1 - start)
            while i < len(text) and text[i] >= half:
                i += 1
            value = tuple(text[middle:i])
            assert 0 < len(set(key)) == len(key) <= most
            assert not longest or len(key) == most
            last = i == len(text)  # its last token is asked for, not shown
            answers = y[middle - 1 : i - 1 if not last else i]
            if key in known:
                assert tuple(answers) == known[key]
                asked += 1
            else:
                assert not last
                assert set(answers) == {IGNORED}
                known[key] = value
            if not last:
                assert y[i - 1] == IGNORED
        assert y[len(text) - 1] != IGNORED
    assert asked >= 40


@pytest.mark.parametrize(("tokens", "length", "copied"), [(16, 256, 16), (8, 12, 5), (5, 4, 1)])
def test_selective_copying_asks_for_what_is_no_blank_in_its_order(tokens, length, copied):
    for x, y in rows(mad.selective_copying(50, draw(), tokens, length, copied)):
        assert len(x) == length
        body = x.index(tokens - 1)
        assert x[body + 1 :] == [tokens - 2] * copied
        assert y == [IGNORED] * (body + 1) + [t for t in x[:body] if t < tokens - 2]
        assert len(x) - body - 1 == copied


def test_selective_copying_strews_its_tokens_everywhere():
    x, _ = mad.selective_copying(400, draw(), 16, 16, 4)
    assert ((x[:, :11] < 14).sum(0) > 80).all()  # 4 of 11 places: 145 expected


@pytest.mark.parametrize(("tokens", "length"), [(16, 32), (9, 2)])
def test_compression_asks_for_everything_after_it_has_been_shown(tokens, length):
    for x, y in rows(mad.compression(50, draw(), tokens, length)):
        n = length - 1
        assert x[n:] == [tokens - 1] * n
        assert max(x[:n]) < tokens - 1
        assert y == [IGNORED] * n + x[:n]


@pytest.mark.parametrize(("tokens", "length"), [(256, 32), (9, 6)])
def test_memorization_asks_for_facts_that_are_never_shown(tokens, length):
    facts = mad.random_facts(draw(1), tokens)
    keys = len(facts)
    assert 2 * keys + 1 <= tokens
    assert sorted(facts.tolist()) == list(range(keys, 2 * keys))
    for x, y in rows(mad.memorization(50, draw(), facts, length)):
        assert len(x) == length
        assert x[1::2] == [2 * keys] * (length // 2)
        assert y[0::2] == [IGNORED] * (length // 2)
        assert y[1::2] == [facts[k] for k in x[0::2]]


@pytest.mark.parametrize(
    "make",
    [
        mad.in_context_recall, mad.fuzzy_in_context_recall, mad.selective_copying, mad.compression,
        lambda n, d: mad.memorization(n, d, torch.arange(20, 40)),
    ],
)  # fmt: skip
def test_equal_seeds_give_equal_data(make):
    first, second, other = make(10, draw(1)), make(10, draw(1)), make(10, draw(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
