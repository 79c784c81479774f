"""Tokenizer files: what tokens stand for, byte for byte, and what is refused."""

import importlib.util
import json

import pytest
import tokenizers as hf
import torch
from language_models import TEXT, byte_level

from nested.config import compose
from nested.errors import UserError
from nested.sequences.bits import bits, byte_count
from nested.sequences.tokenizer import TokenizerFile, spelled
from nested.signature import build

BYTE_LEVEL = {"decoder": {"type": "ByteLevel"}, "added_tokens": [{"id": 2, "content": "<|end|>"}]}


def test_bytes_of_tokens_in_the_spelling_of_byte_level_tokenizers():
    found = spelled({"a": 0, "Ġthe": 1, "<|end|>": 2, "Ċ": 3, "Ã©": 4, "Ń": 6}, BYTE_LEVEL)
    assert found == [b"a", b" the", b"<|end|>", b"\n", "é".encode(), b"", b"\xad"]


def test_bytes_of_tokens_in_the_spelling_of_sentencepiece():
    about = {"decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]}, "added_tokens": []}
    assert spelled({"▁the": 0, "<0x0A>": 1, "é": 2, "Ġ": 3}, about) == [b" the", b"\n", "é".encode(), "Ġ".encode()]
    inside = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split"}, {"type": "ByteLevel"}]}}
    assert spelled({"Ġ": 0}, inside) == [b" "]


def test_bytes_are_counted_by_the_targets_and_one_each_without_a_table():
    targets = torch.tensor([[0, 1, 1], [2, 2, 0]], dtype=torch.int32)
    assert byte_count(targets, None) == 6
    assert byte_count(targets, torch.tensor([1, 4, 0])) == 1 + 4 + 4 + 0 + 0 + 1
    assert bits(3.0) == pytest.approx(3 / 0.6931471805599453, rel=1e-15)


def test_without_the_package_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "tokenizers" else find(name, *a))
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(UserError, match=r"pip install .*\[text\]'") as refused:
        build(compose(["stream=text", f"stream.tokenizer={file}"]).stream, "stream")
    assert refused.value.key == "stream.tokenizer"


def test_every_byte_of_a_text_is_in_one_token(tmp_path):
    reader = TokenizerFile(byte_level(tmp_path))
    found = reader.tokens((TEXT + "<|end|>").encode(), "it")
    assert found.dtype is torch.int32
    assert len(found) < len(TEXT.encode())
    assert int(reader.token_bytes[found.long()].sum()) == len(TEXT.encode()) + 7
    assert reader.vocabulary == len(reader.token_bytes) > int(found.max())


def test_a_stream_of_tokens_knows_their_bytes(tmp_path):
    file = byte_level(tmp_path)
    (tmp_path / "texts" / "one").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "texts" / "one" / f"{i}.txt").write_text(TEXT * (8 + i))
    made = build(
        compose(
            ["stream=text", f"stream.path={tmp_path / 'texts'}", f"stream.tokenizer={file}", "stream.length=10"]
        ).stream,
        "stream",
    )
    assert made.vocabulary == made.n_outputs == len(made.token_bytes)
    assert len(made.about["tokenizer"]) == 16
    x, y, _ = made.experiences[0].train.batch(torch.arange(1))
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])
    (tmp_path / "texts" / "one" / "3.txt").write_bytes(b"\xff\xfe no UTF-8 here")
    with pytest.raises(UserError, match=r"3\.txt is not UTF-8 .* at byte 0\), and a tokenizer reads characters"):
        build(
            compose(["stream=text", f"stream.path={tmp_path / 'texts'}", f"stream.tokenizer={file}"]).stream, "stream"
        )


def test_a_tokenizer_that_does_not_keep_the_text_is_refused_even_where_the_number_of_bytes_is_right(tmp_path):
    made = hf.Tokenizer(hf.models.WordLevel({"[UNK]": 0, "cat": 1}, unk_token="[UNK]"))
    made.save(str(tmp_path / "words.json"))
    reader = TokenizerFile(tmp_path / "words.json")
    with pytest.raises(UserError, match="its tokens of it spell 5 bytes that are not the 5 of the text"):
        reader.tokens(b"tiger", "it")
    assert reader.tokens(b"cat", "it").tolist() == [1]


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"other\.json is no tokenizer\.json"):
        TokenizerFile(tmp_path / "other.json")
    with pytest.raises(UserError, match=r"cannot be read: No such file"):
        TokenizerFile(tmp_path / "nowhere.json")
