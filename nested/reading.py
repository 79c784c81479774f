"""A model in the middle of texts: prefill, decode, save, load, fork and roll back what it has learned while reading.

As TTT-E2E (arXiv 2512.23675, section 2.3) decodes: like a plain transformer until a chunk has filled, then one update
that chunk; a partial chunk updates nothing. Reading T tokens and T' more one by one equals reading all at once.

A `Reading` is never changed: whoever keeps an old one has forked it. Each sequence of a batch has weights of its own.
Rolled back it is at one of its last ticks, the moments when a chunk had filled: the update that follows is undone, and
the tokens after it are unread. The next token decides that update anew, being the last label of the chunk.

Shapes: B batch, n tokens read at once, p tokens of the open chunk, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nested.errors import Diverged, UserError
from nested.inner import FastState, Mode, initial_state, read
from nested.levels import Level, due, token_levels

FORMAT = "3"  # of a saved reading


@dataclass(frozen=True)
class Reading:
    """What a model knows after some tokens, and what it expects next."""

    state: FastState
    open: Any  # the carry after the tokens of the open chunk, with its weights
    logits: Tensor  # (B, V) of the next token
    past: tuple[FastState, ...] = ()  # at the last ticks, each before its update, oldest first; as many as asked for
    updates: int = 0  # made so far, which a frozen read does not add to

    @property
    def tokens(self) -> int:
        """How many tokens each sequence has read."""
        return self.state.tick + (0 if self.state.pending is None else self.state.pending.shape[1])


@torch.no_grad()
def prefill(
    model: Any, tokens: Tensor, reading: Reading | None = None, mode: Mode = "full", keep: int = 0, piece: int = 4096
) -> Reading:
    """Read tokens (B, n), n >= 1, from the start or on from a reading, at most about `piece` at once.

    In mode "off" nothing is learned. The last `keep` updates can be undone later. Raises UserError for no tokens, and
    as `inner.read` does; Diverged where what is expected next is not finite.
    """
    if tokens.ndim != 2 or not tokens.shape[1]:
        text = f"tokens of shape {tuple(tokens.shape)} cannot be read; (batch, tokens) with a token or more is needed"
        raise UserError(text, key="tokens", seen=tuple(tokens.shape))
    levels = token_levels(model.levels)
    state = reading.state if reading else initial_state(model, levels, len(tokens))
    past, updates = (reading.past, reading.updates) if reading else ((), 0)
    for part in _parts(tokens, state, levels, keep, piece):
        state, past, made = _advanced(model, levels, state, part, mode, past, keep)
        updates += made
    assert state.pending is not None, "a token was read"
    return _expecting(model, state, state.carry, state.pending, past, updates)


def _parts(tokens: Tensor, state: FastState, levels: list[Level], keep: int, piece: int) -> Iterator[Tensor]:
    """Pieces to read at once; each of the last `keep` chunks that these tokens close is closed by one of its own."""
    if not levels:
        yield from tokens.split(piece, 1)
        return
    chunk = levels[0].period
    held = 0 if state.pending is None else state.pending.shape[1]
    closes = (held + tokens.shape[1] - 1) // chunk  # chunks that these tokens close
    ends = [k * chunk + 1 - held for k in range(1, closes + 1)]  # after so many of them
    some = max(1, piece // chunk)
    cuts = [end for k, end in enumerate(ends, 1) if k >= closes - keep or k % some == 0]
    for first, last in zip([0, *cuts], [*cuts, tokens.shape[1]]):
        if last > first:
            yield tokens[:, first:last]


def _advanced(
    model: Any, levels: list[Level], state: FastState, part: Tensor, mode: Mode, past: tuple[FastState, ...], keep: int
) -> tuple[FastState, tuple[FastState, ...], int]:
    """The state after some tokens (B, n), the states kept then, and how many updates were made.

    A part that makes several keeps the first alone: `_parts` leaves those to be forgotten.
    """
    _, after = read(model, levels, state, part, mode)
    made = (after.tick - state.tick) // levels[0].period if levels and mode != "off" else 0
    if made and keep:
        read_on = part if state.pending is None else torch.cat([state.pending, part], 1)
        past = (*past, replace(state, pending=read_on[:, : levels[0].period]))
    return after, past[max(0, len(past) - keep) :], made


def _expecting(
    model: Any, state: FastState, carry: Any, tokens: Tensor, past: tuple[FastState, ...], updates: int
) -> Reading:
    """The reading of a state whose last tokens are (B, n), after a carry. Raises Diverged for logits not finite."""
    h, carry = model.features(state.fast, carry, model.prepare(tokens, carry))
    reading = Reading(state, carry, model.logits(h[:, -1:])[:, 0], past, updates)
    if not bool(reading.logits.isfinite().all()):
        learned = [repr(level.name) for level in token_levels(model.levels) if updates and due(level, state.tick)]
        cause = f"after {updates} updates of level {' and '.join(learned)}; take a smaller eta or clip_norm"
        cause = cause if learned else "before any update: it is the model's own"
        where = f"after token {reading.tokens - 1}, in the chunk from token {state.tick}"
        raise Diverged(f"what is expected {where} is not finite, {cause}")
    return reading


@torch.no_grad()
def decode(model: Any, reading: Reading, token: Tensor, mode: Mode = "full", keep: int = 0) -> Reading:
    """Read one more token of each sequence, (B,): one step of the model, and an update where a chunk has filled.

    Raises as `prefill` does.
    """
    levels = token_levels(model.levels)
    state, past, made, new = reading.state, reading.past, 0, token.unsqueeze(1)
    assert state.pending is not None, "a reading has read a token"
    if not levels:
        state = replace(state, carry=reading.open, pending=new, tick=state.tick + state.pending.shape[1])
    elif state.pending.shape[1] < levels[0].period:
        state = replace(state, pending=torch.cat([state.pending, new], 1))
        return _expecting(model, state, reading.open, new, past, reading.updates)
    else:
        state, past, made = _advanced(model, levels, state, new, mode, past, keep)
    return _expecting(model, state, state.carry, new, past, reading.updates + made)


@torch.no_grad()
def roll_back(model: Any, reading: Reading, updates: int = 1) -> Reading:
    """As it was before the last so many updates, when the chunk of the first of them had filled.

    With `keep` K the last K can be undone; all tokens since are unread. Raises UserError for more than were kept.
    """
    kept = len(reading.past)
    if not 1 <= updates <= kept:
        text = f"{kept} of {reading.updates} updates were kept; read again with a keep (--keep) of {updates} or more"
        raise UserError(text, key="updates", seen=updates, allowed=f"1 to {kept}" if kept else None)
    state = reading.past[-updates]
    assert state.pending is not None, "a chunk had filled"
    past = reading.past[: kept - updates]
    return _expecting(model, state, state.carry, state.pending, past, reading.updates - updates)


def repeated(reading: Reading, samples: int) -> Reading:
    """As many copies of a reading of one sequence, which may go on differently from here."""

    def copies(tree: Any) -> Any:
        return tree_map(lambda t: t.expand(samples, *t.shape[1:]) if isinstance(t, Tensor) else t, tree)

    state, *past = (FastState(**copies(vars(of))) for of in (reading.state, *reading.past))
    return Reading(state, copies(reading.open), copies(reading.logits), tuple(past), reading.updates)


def draw(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None = None) -> Tensor:
    """One token for each row of logits (B, V): the likeliest at temperature 0, else from the likeliest that hold top_p.

    Raises UserError for a negative or infinite temperature and a top_p outside (0, 1].
    """
    if not 0 <= temperature < math.inf:
        text = f"{temperature} is no temperature: 0 or more is"
        raise UserError(text, key="temperature", seen=temperature, allowed=">= 0, finite")
    if not 0 < top_p <= 1:
        text = f"{top_p} is no share of the probability: above 0, and 1 at most"
        raise UserError(text, key="top_p", seen=top_p, allowed="0 < top_p <= 1")
    if temperature == 0:
        return logits.argmax(-1)
    below = logits - logits.amax(-1, keepdim=True)  # the likeliest stay at 0, however small the temperature
    share, token = (below / temperature).where(below < 0, 0).softmax(-1).sort(-1, descending=True)  # (B, V) each
    share = share.masked_fill(share.cumsum(-1) - share >= top_p, 0.0)
    return token.gather(-1, torch.multinomial(share, 1, generator=generator)).squeeze(-1)


def generate(
    model: Any,
    reading: Reading,
    tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    mode: Mode = "full",
    keep: int = 0,
) -> Iterator[tuple[Tensor, Reading]]:
    """So many new tokens (B,), one at a time, each with the reading after it; it goes on learning from its own text."""
    for _ in range(tokens):
        token = draw(reading.logits, temperature, top_p, generator)
        reading = decode(model, reading, token, mode, keep)
        yield token, reading


# -- on disk -----------------------------------------------------------------------------------------------------------


def save(path: str | Path, model: nn.Module, reading: Reading) -> None:
    """Write a reading as safetensors, with what its model is. Raises UserError where that cannot be written."""
    from safetensors.torch import save as packed

    from nested.rundir import replace_file

    path = Path(path)
    tensors: dict[str, Tensor] = {}
    plain = {**vars(reading), "state": vars(reading.state), "past": [vars(state) for state in reading.past]}
    form = _taken_apart(plain, tensors, "reading", _tuples(model))
    about = {"format": FORMAT, "model": json.dumps(identity(model)), "form": json.dumps(form)}
    about["digest"] = digest(tensors, about["model"] + about["form"])
    try:
        replace_file(path, packed(tensors, about))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", key="state", seen=str(path)) from None


def load(path: str | Path, model: nn.Module) -> Reading:
    """A reading that `save` wrote for an equal model: weights, levels, settings. Raises UserError for any other."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    device = str(next(model.parameters()).device)
    try:
        with safe_open(path, "pt", device=device) as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        why = "it is no file" if not path.is_file() else getattr(error, "strerror", None) or error
        text = f"{path} cannot be read ({why}); a file that --state-out wrote is needed"
        raise UserError(text, key="state", seen=str(path)) from None
    if about.get("format") != FORMAT or not {"model", "form", "digest"} <= set(about):
        text = f"{path} is no saved reading of format {FORMAT}; write it with --state-out"
        raise UserError(text, key="state", seen=about.get("format"), allowed=FORMAT)
    if about["digest"] != digest(tensors, about["model"] + about["form"]):
        text = f"{path} is damaged or was changed: its digest is not that of what it holds; read the text again"
        raise UserError(text, key="state", seen=str(path))
    _check_identity(path, json.loads(about["model"]), identity(model))
    found = _put_together(json.loads(about["form"]), tensors, _tuples(model))
    state, *past = (FastState(**plain) for plain in (found["state"], *found["past"]))
    return Reading(**{**found, "state": state, "past": tuple(past)})


def identity(model: Any) -> dict[str, str]:
    """What decides how a model reads on: the token levels, the settings of its parts, and a digest of its weights."""
    found = {}
    for level in token_levels(model.levels):
        own = {"chunk_tokens" if key == "period" else key: value for key, value in asdict(level).items()}
        found |= {f"levels.{level.name}.{key}": repr(value) for key, value in own.items()}
    return {**found, **settings(model), "weights": digest(model.state_dict())}


def settings(model: nn.Module) -> dict[str, str]:
    """The kind of each part of a model and how it is set, by name."""
    found = {}
    for name, module in model.named_modules():
        if name and not type(module).__module__.startswith("torch."):  # torch's own are told by shapes
            found[name] = type(module).__qualname__
            found |= {f"{name}.{key}": repr(v) for key, v in vars(module).items() if key[0] != "_"}
    return {name: said for name, said in found.items() if " at 0x" not in said and not name.endswith(".training")}


def digest(tensors: Mapping[str, Tensor], form: str = "") -> str:
    """A hash of the names, shapes, types and values of tensors, and of how they are put together."""
    found = hashlib.blake2b(form.encode(), digest_size=16)
    for name, value in sorted(tensors.items()):
        found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _check_identity(path: Path, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise UserError that names the first thing in which the model of a file is another one."""
    name = next((name for name in (*now, *then) if now.get(name) != then.get(name)), None)
    if name is None:
        return
    what = f"{name} was {then.get(name, 'absent')} there and is {now.get(name, 'absent')} here"
    text = f"{path} was read with other settings: {what}; take those, or read the text again"
    if name == "weights":
        text = f"{path} was read by another model: its weights are others; read the text again with this one"
    raise UserError(text, key="state", seen=then.get(name), allowed=now.get(name))


def _tuples(model: Any) -> dict[str, type]:
    """The kinds of list and tuple in what a model's memories hold, by name."""

    def kinds(tree: Any) -> set[type]:
        parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
        own = {type(tree)} if isinstance(tree, list | tuple) else set()
        return own.union(*(kinds(part) for part in parts))

    return {_name(kind): kind for kind in {list, tuple, *kinds(model.initial_states(1))}}


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _taken_apart(tree: Any, tensors: dict[str, Tensor], path: str, tuples: Mapping[str, type]) -> Any:
    """The tree as JSON, with names of tensors in their place; the tensors are put into `tensors`."""
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().contiguous().clone()  # a file holds no tensor twice
        return {"tensor": path}
    if isinstance(tree, dict):
        return {"dict": [[key, _taken_apart(v, tensors, f"{path}.{key}", tuples)] for key, v in tree.items()]}
    if (kind := _name(type(tree))) in tuples:
        return {kind: [_taken_apart(value, tensors, f"{path}.{i}", tuples) for i, value in enumerate(tree)]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}
    text = f"a state may hold tensors, numbers and None, in dicts, lists and the tuples it begins with, not {kind}"
    raise UserError(text, key="state", seen=kind)


def _put_together(form: Any, tensors: Mapping[str, Tensor], tuples: Mapping[str, type]) -> Any:
    kind, value = next(iter(form.items()))
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _put_together(inner, tensors, tuples) for key, inner in value}
    if kind in tuples:
        inner = [_put_together(v, tensors, tuples) for v in value]
        make = tuples[kind]
        return make(*inner) if hasattr(make, "_fields") else make(inner)
    return value
