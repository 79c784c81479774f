"""Streams of text: sequences that follow each other, files that stay whole, where it comes from, what is refused."""

import platform
from pathlib import Path

import pytest
import torch

from nested.config import compose
from nested.errors import UserError
from nested.sequences.text import PARTS, divided, sequences
from nested.signature import build
from nested.streams.stream import Examples, Stream


def fill(root: Path, domain: str, files: int = 12, size: int = 90) -> None:
    """Files of different sizes, each made of a letter of its own and its number."""
    folder = root / domain
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        (folder / f"{i}.txt").write_bytes((chr(97 + i) + f"{domain} {i} ").encode() * (size // 6 + i))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    fill(root, "verse", size=60)
    fill(root, "prose")
    return root


def stream(data: Path | None, *overrides: str, seed: int = 0, root: Path | None = None) -> Stream:
    path = [] if data is None else [f"stream.path={data}"]
    config = compose(["stream=text", *path, "stream.length=8", *overrides])
    return build(config.stream, "stream", seed=seed, root=None if root is None else str(root))


def whole(examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    x, y, _ = examples.batch(torch.arange(len(examples)))
    return x, y


def text_of(data: Path, domain: str, part: str) -> bytes:
    files = divided(sorted((data / domain).glob("*.txt")), data)[part]
    return b"\n".join(f.read_bytes() for f in files)


# -- sequences ---------------------------------------------------------------------------------------------------------


def test_sequence_i_is_the_tokens_from_i_t_on_and_its_targets_are_the_next_ones(data):
    made = stream(data)
    assert [e.name for e in made.experiences] == ["prose", "verse"]
    for e in made.experiences:
        for part in PARTS:
            text = text_of(data, e.name, part)
            x, y = whole(getattr(e, part))
            n = (len(text) - 1) // 8
            assert x.dtype == y.dtype == torch.int64
            assert x.shape == y.shape == (n, 8)
            assert bytes(x.flatten().tolist()) == text[: 8 * n]
            assert bytes(y.flatten().tolist()) == text[1 : 8 * n + 1]


def test_a_stream_says_what_it_is(data):
    made = stream(data)
    assert (made.language, made.measure, made.lower_is_better) == (True, "bits per byte", True)
    assert (made.vocabulary, made.n_outputs, made.sample_shape, made.scenario) == (256, 256, (8,), "domain")
    assert made.per_position
    assert not made.regression
    assert made.token_bytes is None


def test_all_parts_are_views_of_one_text_a_byte_for_each_token(data):
    made = stream(data)
    held = [getattr(e, part) for e in made.experiences for part in PARTS]
    places = {t.untyped_storage().data_ptr() for h in held for t in (h.base, h.targets)}
    assert len(places) == 1
    assert held[0].base.dtype is torch.uint8
    length = sum(len(text_of(data, e.name, part)) for e in made.experiences for part in PARTS)
    assert held[0].base.untyped_storage().nbytes() <= length + 8 * len(held) + 1


@pytest.mark.parametrize("lengths", [(9, 17, 24), (100,), (10, 10)])
@pytest.mark.parametrize("t", [1, 3, 8])
def test_texts_of_any_length_are_cut_without_a_gap(lengths, t):
    texts = [torch.randint(0, 256, (n,), dtype=torch.uint8) for n in lengths]
    x, y, rows = sequences(texts, t)
    for text, own in zip(texts, rows, strict=True):
        n = (len(text) - 1) // t
        assert torch.equal(x[own.start : own.stop].flatten(), text[: n * t])
        assert torch.equal(y[own.start : own.stop].flatten(), text[1 : n * t + 1])
    with pytest.raises(UserError, match="a text of 8 tokens is shorter than one sequence of 8"):
        sequences([torch.zeros(8)], 8)


def test_a_limit_keeps_so_many_evenly_over_the_text(data):
    all_of, some = (stream(data, *o).experiences[0] for o in ([], ["stream.n_train=5", "stream.n_test=1"]))
    n = len(all_of.train)
    assert (len(some.train), len(some.test), len(some.validation)) == (5, 1, len(all_of.validation))
    kept = torch.tensor([i * n // 5 for i in range(5)])
    for a, b in zip(whole(some.train), whole(all_of.train), strict=True):
        assert torch.equal(a, b[kept])
    assert len(stream(data, "stream.n_train=999999").experiences[0].train) == n


def test_fewer_sequences_than_asked_for_are_recorded(data):
    prose, verse = ((len(e.train), len(e.test)) for e in stream(data).experiences)
    assert verse[0] < prose[0]
    asked = stream(data, f"stream.n_train={prose[0]}", "stream.n_test=9999")
    tests = f"n_test=9999, and prose has {prose[1]}, verse has {verse[1]}"
    assert asked.about["fewer_sequences"] == f"n_train={prose[0]}, and verse has {verse[0]}; {tests}"
    assert "fewer_sequences" not in stream(data, "stream.n_train=3").about


def test_borders_replay_and_joint_training_find_whole_sequences(data):
    plain, blurry = stream(data), stream(data, "stream.boundary=blurry", "stream.blur=0.5", "stream.repeats=2")
    assert len(plain.train) == sum(len(e.train) for e in plain.experiences)
    assert plain.train.targets.dtype is torch.uint8
    texts = {bytes(row) for row in torch.cat(whole(plain.train), 1).tolist()}
    assert len(blurry.experiences) == 4
    mixed = {bytes(row) for e in blurry.experiences for row in torch.cat(whole(e.train), 1).tolist()}
    assert mixed == texts
    assert blurry.experiences[0].train.task.unique().tolist() == [0, 1]


# -- files -------------------------------------------------------------------------------------------------------------


def test_every_file_is_in_one_part_and_a_tenth_of_the_bytes_judges(tmp_path):
    fill(tmp_path, "many", files=80)
    files = sorted((tmp_path / "many").iterdir())
    parts = divided(files, tmp_path)
    assert list(parts) == list(PARTS)
    assert sorted(f for part in parts.values() for f in part) == files
    sizes = {part: sum(f.stat().st_size for f in held) for part, held in parts.items()}
    total = sum(sizes.values())
    assert 0.08 * total < sizes["test"] <= 0.1 * total
    assert 0.08 * total < sizes["validation"] <= 0.1 * total


def test_the_parts_hang_on_the_paths_below_the_directory_alone(data, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    for file in data.rglob("*.txt"):
        place = elsewhere / file.relative_to(data)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    here, there = stream(data), stream(elsewhere, seed=5)
    assert here.digest == there.digest
    assert here.about == there.about
    (elsewhere / "prose" / "0.txt").rename(elsewhere / "prose" / "z.txt")
    assert stream(elsewhere).digest != here.digest
    assert stream(elsewhere).about["manifest"] != here.about["manifest"]


def test_one_large_file_is_trained_on_and_three_files_are_enough(tmp_path):
    (tmp_path / "few").mkdir()
    for name, size in (("a", 10), ("b", 1000), ("c", 20)):
        (tmp_path / "few" / name).write_bytes(b"x" * size)
    parts = divided((tmp_path / "few").iterdir(), tmp_path)
    assert {part: [f.name for f in files] for part, files in parts.items()} in (
        {"train": ["b"], "validation": ["a"], "test": ["c"]},
        {"train": ["b"], "validation": ["c"], "test": ["a"]},
    )


def test_domains_come_as_listed_or_the_largest_by_name_or_as_the_seed_draws(data):
    fill(data, "a_small_one", size=6)

    def names(*overrides, seed=0):
        return [e.name for e in stream(data, *overrides, seed=seed).experiences]

    assert names() == ["a_small_one", "prose", "verse"]
    assert names("stream.n_experiences=2") == ["prose", "verse"]
    assert names("stream.domains=[verse,a_small_one]") == ["verse", "a_small_one"]
    orders = {tuple(names("stream.shuffle_domains=true", seed=s)) for s in range(6)}
    assert len(orders) > 1
    assert names("stream.shuffle_domains=true", "stream.seed=3") == names("stream.shuffle_domains=true", seed=3)


def test_bytes_are_what_they_are_and_hidden_files_are_no_text(data):
    (data / "prose" / "raw.bin").write_bytes(bytes(range(256)) * 20)
    (data / ".git").mkdir()
    (data / ".git" / "index").write_bytes(b"hidden")
    found = stream(data)
    assert [e.name for e in found.experiences] == ["prose", "verse"]
    assert set(torch.cat([whole(getattr(found.experiences[0], p))[0].flatten() for p in PARTS]).tolist()) == {
        *range(256)
    }


def test_empty_files_are_left_out_and_named(data):
    (data / "verse" / "nothing.txt").touch()
    found = stream(data)
    assert found.about["empty_files"] == "verse/nothing.txt"
    assert found.digest == stream(data, "stream.domains=[prose,verse]").digest


def test_a_directory_below_the_data_root_is_found(data):
    assert stream(Path("texts"), root=data.parent).digest == stream(data).digest


def test_without_a_path_it_is_the_standard_library_with_its_version():
    made = stream(None, "stream.domains=[json,email]", "stream.length=256")
    assert made.name == "standard_library"
    assert [e.name for e in made.experiences] == ["json", "email"]
    assert made.about["python"] == platform.python_version()
    assert len(made.about["manifest"]) == 16
    x, _ = whole(made.experiences[1].train)
    assert b"import" in bytes(x.flatten().tolist())


def test_the_default_is_five_packages_of_some_size():
    made = stream(None, "stream.length=256")
    assert len(made.experiences) == 5
    assert not {"modules", "encodings", "test"} & {e.name for e in made.experiences}
    assert all(len(e.train) > 5 * len(e.test) > 0 and len(e.validation) > 10 for e in made.experiences)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_text_shorter_than_a_sequence_is_named_with_the_length_that_would_do(data):
    with pytest.raises(UserError, match=r"part of verse has \d+ bytes, and a sequence of 5000 needs 5001") as refused:
        stream(data, "stream.length=5000")
    assert refused.value.key == "stream.length"
    would_do = int(refused.value.allowed.removeprefix("<= "))
    assert f"stream.length={would_do} would do" in str(refused.value)
    stream(data, f"stream.length={would_do}")
    with pytest.raises(UserError, match=f"needs {would_do + 2}"):
        stream(data, f"stream.length={would_do + 1}")


def test_a_domain_of_empty_files_or_of_too_few_is_refused_by_name(data):
    (data / "void").mkdir()
    for name in "abc":
        (data / "void" / name).touch()
    with pytest.raises(UserError, match="void: all of its 3 files are empty") as refused:
        stream(data)
    assert refused.value.key == "stream.path"
    (data / "void" / "a").write_bytes(b"text")
    with pytest.raises(UserError, match=r"void: 1 with something in them; .* three files"):
        stream(data)
    with pytest.raises(UserError, match="three files") as refused:
        stream(None, "stream.domains=[collections]")
    assert refused.value.key == "stream.domains"


@pytest.mark.parametrize(
    "overrides, key, said",
    [
        (["stream.domains=[prosa]"], "stream.domains", "did you mean 'prose'"),
        (["stream.domains=[]"], "stream.domains", "at least one"),
        (["stream.domains=[prose,prose]"], "stream.domains", "each domain once"),
        (["stream.n_experiences=3"], "stream.n_experiences", "there are 2 domains: prose, verse"),
        (["stream.length=0"], "stream.length", ">= 1"),
        (["stream.path=/nowhere"], "stream.path", "no such directory"),
        (["stream.tokenizer=nowhere.json"], "stream.tokenizer", "no such tokenizer file: .* give stream.tokenizer="),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(data, overrides, key, said):
    with pytest.raises(UserError, match=said) as refused:
        stream(data, *overrides)
    assert refused.value.key == key


def test_a_file_or_a_directory_without_any_is_no_text(data, tmp_path):
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="holds no file") as refused:
        stream(tmp_path / "bare")
    assert refused.value.key == "stream.path"
    with pytest.raises(UserError, match="is no directory of text files"):
        stream(data / "prose" / "0.txt")
