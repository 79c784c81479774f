"""A tokenizer file of Hugging Face (tokenizer.json): from bytes of text to tokens, and how many bytes each stands for.

Read with the package `tokenizers`, which is not needed for text as bytes. Bits per byte are right only where the bytes
of the tokens are those of the text; that is checked on every text that is read. Byte-level ones (GPT-2's and those
after it) keep every byte; those that lower-case, add a space or know not every character do not, and are refused.

Shapes: n tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nested.errors import UserError, install

KEY = "stream.tokenizer"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes one
BYTE = "<0x[0-9A-F]{2}>"


class TokenizerFile:
    """The tokenizer of one file. Raises UserError for a file that is none, and without the package that reads it."""

    def __init__(self, file: Path):
        if importlib.util.find_spec("tokenizers") is None:
            text = f"a tokenizer file needs the package tokenizers: {install('text')}; null reads bytes"
            raise UserError(text, key=KEY, seen=str(file), allowed=[None])
        from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]

        raw = _read(file)
        try:
            self._tokenizer = Tokenizer.from_str(raw.decode())
            about = json.loads(raw)
        except Exception as error:  # the package raises nothing more special
            raise UserError(f"{file} is no tokenizer.json: {error}", key=KEY, seen=str(file)) from None
        self._tokenizer.no_truncation()  # such a file may ask for either
        self._tokenizer.no_padding()
        self.file = file
        self.mark = hashlib.blake2b(raw, digest_size=8).hexdigest()
        self._spelled = spelled(self._tokenizer.get_vocab(with_added_tokens=True), about)
        self.token_bytes = torch.tensor([len(token) for token in self._spelled])  # (V,) int64

    @property
    def vocabulary(self) -> int:
        return len(self.token_bytes)

    def spell(self, token: int) -> bytes:
        """What a token stands for."""
        return self._spelled[token]

    def tokens(self, text: bytes, name: str) -> Tensor:
        """(n,) int32, without tokens that stand for no text. Raises UserError for a text that it does not keep."""
        try:
            said = text.decode()
        except UnicodeDecodeError as error:
            what = f"{name} is not UTF-8 ({error.reason} at byte {error.start}), and a tokenizer reads characters"
            raise UserError(f"{what}; convert it, or read bytes with {KEY}=null", key=KEY, seen=name) from None
        found = self._tokenizer.encode(said, add_special_tokens=False).ids
        if (kept := b"".join(self._spelled[token] for token in found)) != text:
            what = f"its tokens of {name} spell {len(kept)} bytes that are not the {len(text)} of the text"
            mend = "bits per byte would be wrong: take a tokenizer that keeps every byte"
            raise UserError(f"{what}; {mend}", key=KEY, seen=str(self.file))
        return torch.tensor(found, dtype=torch.int32)


def spelled(vocabulary: Mapping[str, int], about: Mapping[str, Any]) -> list[bytes]:
    """What each token (V,) stands for, from how a tokenizer.json, `about`, writes them.

    Byte-level: a character for each byte. Else a space is SPACE and a byte alone `<0x0A>`. Added tokens are as written.
    """
    level = "ByteLevel" in _kinds(about.get("decoder")) | _kinds(about.get("pre_tokenizer"))
    added = {entry["id"] for entry in about.get("added_tokens") or []}
    alphabet = _alphabet()
    found = [b""] * (max(vocabulary.values()) + 1)
    for token, place in vocabulary.items():
        if place in added and not re.fullmatch(BYTE, token):
            found[place] = token.encode()
        elif level and set(token) <= alphabet.keys():
            found[place] = bytes(alphabet[c] for c in token)
        elif re.fullmatch(BYTE, token):
            found[place] = bytes([int(token[3:5], 16)])
        else:
            found[place] = token.replace(SPACE, " ").encode()
    return found


def _alphabet() -> dict[str, int]:
    """Character -> byte, as GPT-2 writes bytes: those that can be seen stand for themselves, the others follow 255."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _kinds(part: Any) -> set[str]:
    """The types of a decoder or pre-tokenizer, and of those it is a sequence of."""
    if not isinstance(part, dict):
        return set()
    inside = [p for name in ("decoders", "pretokenizers") for p in part.get(name) or []]
    return {str(part.get("type"))}.union(*map(_kinds, inside))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", key=KEY, seen=str(file)) from None
