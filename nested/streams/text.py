"""Streams of text: one folder is one domain and one experience, and the next token is to be predicted.

Without a path it is the one text that is on every machine, the Python standard library's own sources by package. They
differ from one version of Python to the next, so version and a hash of names and contents (the manifest) are recorded.

Shapes: R rows, N sequences, T tokens.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from nested.config import Bound
from nested.errors import UserError, unknown
from nested.sequences import text as corpus
from nested.sequences.text import PARTS
from nested.sequences.tokenizer import KEY as TOKENIZER
from nested.sequences.tokenizer import TokenizerFile
from nested.streams.arrange import Count, Seed, Share
from nested.streams.assemble import assemble, shared_head
from nested.streams.boundaries import Boundary
from nested.streams.files import user_path
from nested.streams.seeding import generator
from nested.streams.stream import Examples, Experience, Source, Stream

Domains = dict[str, list[Path]]
Reads = Callable[[bytes, str], Tensor]  # the text of a file, and its name -> tokens (n,)
PACKAGES = 5  # of the standard library, where none are named
NO_SUBJECT = ("modules", "distutils")  # what is in no package; what later versions of Python do not have
NAMED = 5  # files or domains named in a sentence


def text(
    *,
    path: str | None = None,
    domains: tuple[str, ...] | None = None,
    tokenizer: str | None = None,
    length: Annotated[int, Bound(ge=1)] = 256,
    n_experiences: Count | None = None,
    n_train: Count | None = None,
    n_validation: Count | None = None,
    n_test: Count | None = None,
    shuffle_domains: bool = False,
    boundary: Boundary = "hard",
    blur: Share = 0.2,
    repeats: Count = 1,
    seed: Seed = None,
    root: str | None = None,
) -> Stream:
    """A directory of text files, one folder = one domain = one experience, judged in bits per byte.

    Without `path`, the Python standard library's own sources by package, without tests, tables and near-duplicates
    (encodings, lib2to3, idlelib, pydoc_data, distutils). Files are read as bytes, whatever they hold, or as tokens of a
    `tokenizer` file, for which they must be UTF-8. Each is in one part: in the order of the hashes of their paths, a
    tenth of a domain's bytes judges, and a tenth chooses. The files of a part, a newline between them, are cut into
    sequences of `length` tokens that follow each other without a gap; `n_train` and the others keep so many, spread
    evenly over the part, or all where it has fewer, which is recorded. Without `domains`, the `n_experiences` largest
    (null: all, or 5 packages), in order of their names. Empty files are left out and recorded.
    Raises UserError for a domain that there is not, that has too few files, or too little text.
    """
    folder = corpus.library_root() if path is None else user_path(path, root, "directory")
    chosen = _chosen(_found(path, folder), domains, n_experiences, path is None)
    if shuffle_domains:
        drawn = torch.randperm(len(chosen), generator=generator(seed or 0, "domains")).tolist()
        chosen = dict(list(chosen.items())[i] for i in drawn)
    key = "stream.domains" if path is None else "stream.path"
    parts = {name: _divided(name, files, folder, key) for name, files in chosen.items()}
    reader = None if tokenizer is None else TokenizerFile(user_path(tokenizer, root, "tokenizer file", TOKENIZER))
    reads = _bytes if reader is None else reader.tokens
    texts = {(n, part): _tokens(files, reads) for n, own in parts.items() for part, files in own.items()}
    _check_length(texts, parts, length)
    limits = (n_train, n_validation, n_test)
    x, made = _experiences(list(chosen), texts, length, limits)
    vocabulary = corpus.VOCABULARY if reader is None else reader.vocabulary
    name = "standard_library" if path is None else folder.name
    stream = assemble(
        name, Source(name, x, x, vocabulary=vocabulary), made, shared_head(len(made), vocabulary),
        scenario="domain", boundary=boundary, blur=blur, repeats=repeats, seed=seed or 0,
    )  # fmt: skip
    about = {**_about(chosen, path is None, reader), **_fewer(made, limits)}
    return replace(stream, language=True, token_bytes=reader and reader.token_bytes, about=about)


# -- which files -------------------------------------------------------------------------------------------------------


def _found(path: str | None, folder: Path) -> Domains:
    if path is None:
        return corpus.standard_library()
    try:
        return corpus.folders(folder)
    except UserError as error:
        raise error.at("stream.path") from None


def _chosen(found: Domains, wanted: Sequence[str] | None, n: int | None, library: bool) -> Domains:
    """The domains asked for, in order; else the n largest, by name."""
    if wanted is not None:
        if not wanted or len(set(wanted)) < len(wanted):
            text = "each domain once, and at least one; `stream.repeats` visits them again"
            raise UserError(text, key="stream.domains", seen=list(wanted), allowed=sorted(found))
        for name in wanted:
            if name not in found:
                raise unknown("domain", name, found, "stream.domains")
    there = list(wanted) if wanted is not None else [name for name in found if not (library and name in NO_SUBJECT)]
    if n is not None and n > len(there):
        text = f"{n} experiences, and there are {len(there)} domains: {', '.join(there[:20])}"
        raise UserError(text, key="stream.n_experiences", seen=n, allowed=f"<= {len(there)}")
    if wanted is None:
        largest = sorted(there, key=lambda name: (-sum(f.stat().st_size for f in found[name]), name))
        there = sorted(largest[: n or (PACKAGES if library else None)])
    return {name: found[name] for name in there[:n]}


def _divided(name: str, files: Sequence[Path], folder: Path, key: str) -> dict[str, list[Path]]:
    """Part -> files, the empty ones left out."""
    held = [f for f in files if f.stat().st_size]
    if not held:
        raise UserError(f"{name}: all of its {len(files)} files are empty", key=key, seen=name)
    try:
        return corpus.divided(held, folder)
    except UserError as error:
        raise UserError(f"{name}: {error.message}", key=key, seen=name) from None


def _about(chosen: Domains, library: bool, reader: TokenizerFile | None) -> dict[str, str]:
    """Where the text comes from: what must be equal for numbers to be comparable, and what was left out."""
    empty = [f"{name}/{f.name}" for name, files in chosen.items() for f in files if not f.stat().st_size]
    return {
        **({"python": platform.python_version()} if library else {}),
        "manifest": corpus.manifest(chosen),
        **({"tokenizer": reader.mark} if reader else {}),
        **({"empty_files": _few(empty)} if empty else {}),
    }


def _fewer(experiences: Sequence[Experience], limits: Sequence[int | None]) -> dict[str, str]:
    """The parts that have fewer sequences than asked for, with how many."""
    found = []
    for part, most in zip(PARTS, limits):
        held = {e.name: len(getattr(e, part)) for e in experiences}
        short = [f"{name} has {n}" for name, n in held.items() if most is not None and n < most]
        found += [f"n_{part}={most}, and {_few(short)}"] if short else []
    return {"fewer_sequences": "; ".join(found)} if found else {}


def _few(named: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return ", ".join(named[:NAMED]) + more


# -- what is in them ---------------------------------------------------------------------------------------------------


def _bytes(text: bytes, _: str) -> Tensor:
    return corpus.as_bytes(text)


def _tokens(files: Sequence[Path], reads: Reads) -> Tensor:
    """All files one after another, a newline between them: (n,) uint8 or int32."""
    return torch.cat([reads(_content(f) + b"\n" * (f != files[-1]), str(f)) for f in files])


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", key="stream.path", seen=str(file)) from None


def _check_length(
    texts: Mapping[tuple[str, str], Tensor], parts: Mapping[str, Mapping[str, Sequence[Path]]], length: int
) -> None:
    """Raise UserError where the shortest text has not one sequence and the token after it."""
    name, part = min(texts, key=lambda key: len(texts[key]))
    tokens = len(texts[name, part])
    if tokens > length:
        return
    size = sum(f.stat().st_size for f in parts[name][part])
    held = f"{size} bytes" + (f" in {tokens} tokens" if texts[name, part].dtype is not torch.uint8 else "")
    mend = f"stream.length={tokens - 1} would do for this text, or more of it" if tokens > 1 else "more text is needed"
    what = f"the {part} part of {name} has {held}, and a sequence of {length} needs {length + 1} with the one after it"
    raise UserError(f"{what}; {mend}", key="stream.length", seen=length, allowed=f"<= {tokens - 1}")


def _experiences(
    names: Sequence[str], texts: Mapping[tuple[str, str], Tensor], length: int, limits: Sequence[int | None]
) -> tuple[Tensor, list[Experience]]:
    """The rows (R, T) that all share, and one experience for each domain."""
    x, y, rows = corpus.sequences(list(texts.values()), length)  # (R, T) both
    held = dict(zip(texts, rows, strict=True))
    return x, [
        Experience(k, name, k, (), *(_examples(x, y, held[name, part], most, k) for part, most in zip(PARTS, limits)))
        for k, name in enumerate(names)
    ]


def _examples(x: Tensor, y: Tensor, rows: range, most: int | None, task: int) -> Examples:
    """The sequences of one part, (N, T): all of them as views, or so many of them, evenly over the text."""
    n = len(rows)
    if most is None or most >= n:
        index, targets = torch.arange(rows.start, rows.stop), y[rows.start : rows.stop]
    else:
        index = rows.start + torch.arange(most) * n // most
        targets = y[index]
    return Examples(x, index, targets, torch.tensor(task).expand(len(index)), tokens=True)
