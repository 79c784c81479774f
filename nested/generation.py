"""`nested generate`: an exported language model reads a text, learning as it goes, and writes on.

Shapes: B samples, n tokens.
"""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nested import exported, reading
from nested.computing import check_device, device_of
from nested.errors import UserError
from nested.inner import Mode
from nested.levels import Level, token_levels
from nested.sequences.text import as_bytes
from nested.settings import Accelerator

Say = Callable[[str], None]
EVERY_SECONDS = 5.0  # between two sentences about how far a long text is read
PIECE = 16_384  # tokens read between two looks at the clock


@dataclass(frozen=True)
class Asked:
    """What is to be written, and how."""

    tokens: int = 200
    temperature: float = 1.0
    top_p: float = 1.0
    samples: int = 1  # continuations, each with weights of its own
    seed: int = 0
    frozen: bool = False  # learn nothing, neither from the text nor from what is written
    keep: int = 0  # updates that can be undone later
    shift_norm: float | None = None  # how far reading may move the weights of a level
    undo: int = 0  # updates to undo before anything is read
    accelerator: Accelerator | None = None  # None: that of the export's run, or the processor where it is not here

    @property
    def mode(self) -> Mode:
        return "off" if self.frozen else "full"


class Writer:
    """An exported language model in the middle of a text.

    Raises UserError for an export of anything else, a GPU that is not here, and what only levels that learn while they
    read could do.
    """

    def __init__(self, export: Path, asked: Asked):
        found = exported.read(export)
        check_device(asked.accelerator, "accelerator", "--accelerator ")
        self.asked, self.device = asked, device_of(asked.accelerator or found.config["trainer"]["accelerator"])
        self.model = _language_model(found, self.device)
        _check_learns(found.path, self.model, asked)
        self.tokenizer = found.tokenizer()  # None: bytes
        self.reading: reading.Reading | None = None
        if asked.shift_norm is not None:
            self.model.levels = _bounded(self.model.levels, asked.shift_norm)

    def restore(self, file: Path) -> None:
        """Go on from a state that was saved, with as many samples as are asked for. Raises UserError."""
        self.reading = reading.load(file, self.model)
        if self.asked.undo:
            self.reading = self._undone(self.reading)
        held, wanted = len(self.reading.logits), self.asked.samples
        if held != wanted:
            if held > 1:
                text = f"the state holds {held} samples; ask for as many"
                raise UserError(text, key="samples", seen=wanted, allowed=held)
            self.reading = reading.repeated(self.reading, wanted)

    def _undone(self, before: reading.Reading) -> reading.Reading:
        try:
            return reading.roll_back(self.model, before, self.asked.undo)
        except UserError as error:
            raise error.at("undo") from None

    def read(self, text: bytes, say: Say) -> None:
        """Read a text on from where it is. Raises UserError for an empty one where nothing was read before."""
        if not text and self.reading is not None:
            return
        if not text:
            why = "there is nothing to go on from; give a --prompt, a --file with something in it, or --state-in"
            raise UserError(why, key="prompt")
        tokens = self.tokenizer.tokens(text, "the text") if self.tokenizer else as_bytes(text)
        tokens = tokens.long().to(self.device)
        told, copies = time.monotonic(), self.asked.samples if self.reading else 1
        for done, piece in zip(range(0, len(tokens), PIECE), tokens.split(PIECE)):
            batch = piece.expand(copies, -1)
            self.reading = reading.prefill(self.model, batch, self.reading, self.asked.mode, self.asked.keep)
            if time.monotonic() - told > EVERY_SECONDS:
                told = time.monotonic()
                say(f"read {done + len(piece)} of {len(tokens)} tokens")
        assert self.reading is not None, "there is at least one piece"
        if copies < self.asked.samples:
            self.reading = reading.repeated(self.reading, self.asked.samples)

    def write(self) -> Iterator[list[str]]:
        """With each new token the text of each sample that is whole characters then; at the end what is cut off."""
        assert self.reading is not None, "read first"
        draw = torch.Generator(self.device).manual_seed(self.asked.seed)
        spell = self.tokenizer.spell if self.tokenizer else lambda token: bytes([token])
        decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(self.asked.samples)]
        made = reading.generate(
            self.model, self.reading, self.asked.tokens, self.asked.temperature, self.asked.top_p, draw,
            self.asked.mode, self.asked.keep,
        )  # fmt: skip
        for token, self.reading in made:
            yield [d.decode(spell(int(t))) for d, t in zip(decoders, token)]
        yield [d.decode(b"", final=True) for d in decoders]

    def save(self, file: Path) -> None:
        """Write the state, for another time. Raises UserError."""
        assert self.reading is not None, "read first"
        reading.save(file, self.model, self.reading)

    def about(self) -> dict[str, Any]:
        """What was read and learned so far, for programs."""
        assert self.reading is not None, "read first"
        state, start = self.reading.state, dict(self.model.named_parameters())
        if not self.reading.updates:
            return {"tokens_read": self.reading.tokens, "updates": 0, "shift_norm": [0.0] * len(self.reading.logits)}
        moved = [(w - start[n]).square().flatten(1).sum(1) for n, w in state.fast.items()]  # (B,) each
        shift = torch.stack(moved).sum(0).sqrt().tolist() if moved else [0.0] * len(self.reading.logits)
        return {"tokens_read": self.reading.tokens, "updates": self.reading.updates, "shift_norm": shift}


def text_of(file: str | None, prompt: str | None) -> bytes:
    """The bytes of the file, then those of the prompt. Raises UserError for a file that cannot be read."""
    try:
        read = Path(file).expanduser().read_bytes() if file else b""
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", key="file", seen=file) from None
    return read + (prompt or "").encode("utf-8", "surrogateescape")


def target(file: str) -> Path:
    """The file that a state will be written to. Raises UserError where it cannot be, before anything is read."""
    path = Path(file).expanduser()
    text = None
    if path.is_dir():
        text = f"{path} is a directory; give a file"
    elif not path.parent.is_dir():
        text = f"{path.parent} is no directory; make it, or write elsewhere"
    elif not os.access(path.parent, os.W_OK):
        text = f"nothing can be written in {path.parent}; write elsewhere"
    if text:
        raise UserError(text, key="state_out", seen=file)
    return path


def _check_learns(export: Path, model: Any, asked: Asked) -> None:
    """Raise UserError for what is asked of updates where a model makes none."""
    given = next((name for name in ("keep", "shift_norm") if getattr(asked, name) != getattr(Asked, name)), None)
    if given and not token_levels(model.levels):
        text = f"no level of {export} learns while it reads; leave --{given.replace('_', '-')} out"
        raise UserError(text, key=given, seen=getattr(asked, given))


def _bounded(levels: Sequence[Level], shift_norm: float) -> tuple[Level, ...]:
    """The levels, moved no further than so much. Raises UserError for a norm that is not above zero."""
    try:
        return tuple(replace(level, shift_norm=shift_norm) for level in levels)
    except UserError as error:
        raise error.at("shift_norm") from None


def _language_model(found: exported.Export, device: torch.device) -> Any:
    stream = found.about["stream"]
    vocabulary, outputs = stream.get("vocabulary"), stream.get("n_outputs")
    if vocabulary is None or outputs != vocabulary or not stream.get("per_position"):
        what = "images or numbers" if vocabulary is None else "tokens for another task than saying the next one"
        text = f"{found.path} reads {what}; a model that was trained on stream=text can generate"
        raise UserError(text, key="export", seen=found.config["model"]["_target_"])
    model = found.model(device)
    if not all(hasattr(model, name) for name in ("prepare", "features", "logits", "levels")):
        text = f"{found.path} is a {type(model).__name__}, which cannot be read token by token; model=ttt_e2e and its "
        raise UserError(text + "baselines, and hope, can", key="export", seen=type(model).__name__)
    return model
