"""Streams of sequences: what their experiences hold, and what they refuse."""

import pytest
import torch

from nested.config import compose
from nested.errors import UserError
from nested.sequences import formal_languages as language
from nested.sequences.exact_match import IGNORED
from nested.signature import build
from nested.streams.arrange import by_task, permuted, split
from nested.streams.sequence_source import sequence_source
from nested.streams.stream import Source, Stream

SMALL = ["stream.n_train=40", "stream.n_validation=12", "stream.n_test=20"]
CHOICES = ["formal_languages", "mad", "recall"]
PARTS = ("train", "validation", "test")


def stream(choice: str, *overrides: str, seed: int = 0) -> Stream:
    return build(compose([f"stream={choice}", *SMALL, *overrides]).stream, "stream", seed=seed)


def parts(made: Stream) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """x and y of every part of every experience."""
    held = [getattr(e, part) for e in made.experiences for part in PARTS]
    return [tuple(h.batch(torch.arange(len(h))))[:2] for h in held]  # type: ignore[misc]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("scenario", ["domain", "task"])
def test_tokens_and_targets_fit_what_the_stream_says(choice, scenario):
    made = stream(choice, f"stream.scenario={scenario}")
    assert made.per_position
    assert made.vocabulary is not None
    assert made.task_outputs.shape == (len(made.experiences), made.n_outputs)
    answers = set()
    for e, experience in enumerate(made.experiences):
        allowed = set(made.task_outputs[e].nonzero().flatten().tolist())
        for part, size in zip(PARTS, (40, 12, 20), strict=True):
            x, y, task = getattr(experience, part).batch(torch.arange(size))
            assert len(getattr(experience, part)) == size
            assert x.dtype == y.dtype == torch.int64
            assert x.shape == y.shape
            assert x.shape[1] <= made.sample_shape[0]
            assert 0 <= int(x.min()) <= int(x.max()) < made.vocabulary
            judged = y != IGNORED
            assert judged.any(1).all()
            assert set(y[judged].tolist()) <= allowed
            assert task.tolist() == [e] * size
            answers |= set(y[judged].tolist())
    assert answers == set(range(made.n_outputs)) if scenario != "task" else len(answers) <= made.n_outputs


@pytest.mark.parametrize("choice", CHOICES)
def test_the_seed_fixes_everything(choice):
    one, same, other = stream(choice), stream(choice), stream(choice, seed=1)
    assert one.digest == same.digest != other.digest
    assert all(torch.equal(a, b) for p, q in zip(parts(one), parts(same), strict=True) for a, b in zip(p, q))
    assert stream(choice, "stream.seed=1").digest == other.digest


@pytest.mark.parametrize("choice", CHOICES)
def test_data_are_held_once_and_every_part_is_as_wide_as_it_needs(choice):
    made = stream(choice)
    bases = [getattr(e, part).base for e in made.experiences for part in PARTS]
    assert len({b.data_ptr() for b in bases}) == 1
    for part in PARTS:
        widths = {getattr(e, part).base.shape[1] for e in made.experiences}
        y = torch.cat([getattr(e, part).targets for e in made.experiences])
        assert widths == {y.shape[1]}
        assert (y[:, -1] != IGNORED).any()
    assert len(made.train) == sum(len(e.train) for e in made.experiences)


def test_scenarios_change_the_targets_and_nothing_else():
    plain, masked = stream("mad"), stream("mad", "stream.scenario=task")
    n = plain.n_outputs
    for k, (p, m) in enumerate(zip(plain.experiences, masked.experiences, strict=True)):
        rows = torch.arange(40)
        (x, y, _), (x2, y2, _) = p.train.batch(rows), m.train.batch(rows)
        assert torch.equal(x, x2)
        assert torch.equal(y2, (y + k * n).where(y != IGNORED, IGNORED))
    assert masked.n_outputs == n * len(masked.experiences)


# -- formal languages --------------------------------------------------------------------------------------------------


def texts(x: torch.Tensor) -> list[str]:
    return ["".join(language.SYMBOLS[t] for t in row[1:] if t != language.PAD) for row in x.tolist()]


def test_languages_come_in_the_order_asked_for_with_the_lengths_asked_for():
    lengths = ["stream.train_lengths=[3,9]", "stream.test_lengths=[10,13]"]
    made = stream("formal_languages", "stream.languages=[anbn,parity]", *lengths)
    assert [e.name for e in made.experiences] == ["anbn", "parity"]
    assert made.sample_shape == (14,)
    found = [{len(t) for t in texts(x)} for x, _ in parts(made)]
    assert found[:3] == [{4, 6, 8}, {4, 6, 8}, {10, 12}]
    assert found[3] == set(range(3, 10)) >= found[4]
    assert found[5] == set(range(10, 14))


def test_targets_are_the_sets_of_the_languages_that_are_used():
    made = stream("formal_languages", "stream.languages=[anbn,parity]")
    used = sorted(language.SETS.index(s) for s in ("01$", "01", "a", "ab", "b", "$"))
    assert made.n_outputs == len(used)
    for k, (x, y) in enumerate(parts(made)):
        follows = language.LANGUAGES[made.experiences[k // 3].name].follows
        answers = [[language.SETS[used[v]] for v in row if v != IGNORED] for row in y.tolist()]
        assert answers == [follows(text) for text in texts(x)]


@pytest.mark.parametrize("name", ["parity", "shuffle2"])
def test_no_string_that_judges_was_trained_on(name):
    made = stream("formal_languages", f"stream.languages=[{name}]", "stream.n_train=400", "stream.n_validation=200")
    trained, chosen, judged = ({*texts(parts(made)[k][0])} for k in range(3))
    short = {t for t in trained & chosen if len(t) > 4}  # of length 4 and less there are too few to be new
    assert not short
    assert not judged & (trained | chosen)
    few = sum(1 for t in parts(made)[1][0] if int((t != language.PAD).sum()) < 12)
    assert few > 10  # short strings are there all the same


@pytest.mark.parametrize("choice", ["mad", "recall"])
def test_sequences_that_judge_were_not_trained_on(choice):
    made = stream(
        choice, *(["stream.tasks=[compression,in_context_recall,selective_copying]"] if choice == "mad" else [])
    )
    for k in range(len(made.experiences)):
        trained, chosen, judged = ({tuple(row) for row in parts(made)[3 * k + p][0].tolist()} for p in range(3))
        assert not trained & judged
        assert not chosen & judged


def test_a_language_by_itself_has_the_outputs_it_needs():
    made = stream("formal_languages", "stream.languages=[parity]")
    assert made.n_outputs == 2
    x, y, _ = made.experiences[0].test.batch(torch.arange(20))
    ones = (x[:, 1:] == language.SYMBOLS.index("1")).cumsum(1) % 2
    assert torch.equal(y[:, 1:], ones.where(y[:, 1:] != IGNORED, IGNORED))


# -- MAD and recall ----------------------------------------------------------------------------------------------------


def test_what_is_to_be_memorized_is_the_same_in_all_parts_and_hangs_on_the_seed():
    def facts(seed: int) -> list[dict[int, int]]:
        made = stream("mad", "stream.tasks=[memorization]", "stream.n_train=200", seed=seed)
        return [dict(zip(x[:, 1::2].flatten().tolist(), y[:, 2::2].flatten().tolist())) for x, y in parts(made)]

    train, validation, test = facts(0)
    assert validation.items() <= train.items()
    assert test.items() <= train.items()
    assert len(set(train.values())) == len(train) == 31
    assert facts(1)[0] != train


def test_fuzzy_keys_that_judge_have_the_full_length():
    x, _ = parts(stream("mad", "stream.tasks=[fuzzy_in_context_recall]"))[2]
    for row in x.tolist():
        keys = "".join("k" if t < 7 else "v" for t in row[1:]).split("v")
        assert {len(k) for k in keys if k} == {3}


def test_recall_has_tokens_and_answers_of_its_own_in_each_experience():
    made = stream("recall", "stream.n_experiences=3", "stream.keys=5", "stream.values=6")
    told = [set(e.train.batch(torch.arange(40)).x.flatten().tolist()) - {0} for e in made.experiences]
    assert all(len(t) == 11 for t in told)
    assert len(set.union(*told)) == 33
    assert made.vocabulary == 34
    assert [e.classes for e in made.experiences] == [tuple(range(6 * k, 6 * k + 6)) for k in range(3)]
    ranks = stream("recall", "stream.n_experiences=3", "stream.keys=5", "stream.values=6", "stream.scenario=domain")
    assert ranks.n_outputs == 6


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice, override, key, said",
    [
        ("formal_languages", "stream.languages=[parity,shufle2]", "stream.languages[1]", "did you mean 'shuffle2'"),
        ("formal_languages", "stream.languages=[]", "stream.languages", "at least one"),
        ("formal_languages", "stream.languages=[aa,aa]", "stream.languages", "each language once"),
        ("formal_languages", "stream.train_lengths=[50,2]", "stream.train_lengths", r"shortest comes first: \[2, 50\]"),
        ("formal_languages", "stream.test_lengths=[53,54]", "stream.test_lengths", "abab has strings of lengths 4, 8"),
        ("formal_languages", "stream.test_lengths=[0,54]", "stream.test_lengths[0]", ">= 1"),
        ("formal_languages", "stream.scenario=class", "stream.scenario", "allowed: domain | task"),
        ("formal_languages", "stream.n_train=0", "stream.n_train", ">= 1"),
        ("mad", "stream.tasks=[memorisation]", "stream.tasks[0]", "did you mean 'memorization'"),
        ("mad", "stream.tasks=[]", "stream.tasks", "at least one"),
        ("mad", "stream.tokens=4", "stream.tokens", ">= 8"),
        ("mad", "stream.copied=20", "stream.copy_length", "need more than 32 places"),
        ("mad", "stream.recall_length=10", "stream.recall_length", ">= 24"),
        ("recall", "stream.pairs=9", "stream.pairs", "9 pairs do not fit into 8 keys, 8 values"),
        ("recall", "stream.length=14", "stream.pairs", "3 places"),
        ("recall", "stream.power=0", "stream.power", "> 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(choice, override, key, said):
    with pytest.raises(UserError, match=said) as refused:
        stream(choice, override)
    assert refused.value.key == key


X = torch.tensor([[1, 2, 0], [3, 1, 2]])
Y = torch.tensor([[0, 1, IGNORED], [IGNORED, 1, 1]])


def tokens(**changes) -> Source:
    return Source(**{"name": "mine", "x": X, "y": Y, "task": torch.tensor([0, 0]), "vocabulary": 4, **changes})


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"vocabulary": 3}, "token 3 of sample 1 is out of range: the vocabulary has 0 to 2"),
        ({"x": X - 1}, "token -1 of sample 0"),
        ({"x": X.float()}, r"x is torch.float32 of shape \(2, 3\)"),
        ({"x": X[:, :2]}, r"x \(2, 2\) and y \(2, 3\) differ"),
        ({"y": torch.tensor([[IGNORED] * 3, [0, 0, 0]])}, "no position of sample 0 is judged, and of 1 in all"),
        ({"y": Y.where(Y != 0, -1)}, "label -1 is negative"),
        ({"class_names": ("a",)}, "label 1 is out of range: 1 classes are named"),
    ],
)
def test_sequences_that_cannot_be_learned_from_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        by_task(tokens(**changes))


def test_sequences_are_neither_split_by_class_nor_turned():
    with pytest.raises(UserError, match="targets for each position have no classes to split"):
        split(tokens())
    with pytest.raises(UserError, match="sequences cannot be permuted"):
        permuted(tokens())


def test_avalanche_takes_no_sequences():
    with pytest.raises(UserError, match="this stream has sequences"):
        stream("recall").avalanche()


def test_a_source_of_several_widths_is_padded_to_the_widest():
    one, two = (torch.tensor([[1, 2]]), torch.tensor([[IGNORED, 1]])), (torch.tensor([[3]]), torch.tensor([[0]]))
    made = sequence_source("mine", {"long": (one, one, two), "short": (two, two, one)}, 10, pad=9, n_labels=2)
    assert made.x[2].tolist() == [3, 9]
    assert made.y[2].tolist() == [0, IGNORED]
    experiences = by_task(made).experiences
    assert [e.name for e in experiences] == ["long", "short"]
    assert experiences[1].train.batch(torch.tensor([0])).x.tolist() == [[3, 9]]
