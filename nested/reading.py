"""A model in the middle of texts: prefill, decode, save, load, fork and roll back what it has learned while reading.

As TTT-E2E (arXiv 2512.23675, section 2.3) decodes: like a plain transformer until a chunk has filled, then one update
that chunk; a partial chunk updates nothing. Reading T tokens and T' more one by one equals reading all at once.

A `Reading` is never changed: whoever keeps an old one has forked it. Each sequence of a batch has weights of its own.

Shapes: B batch, n tokens read at once, p tokens of the open chunk, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nested.errors import UserError
from nested.inner import FastState, Mode, initial_state, read
from nested.levels import Level, token_levels

FORMAT = "1"  # of a saved reading


@dataclass(frozen=True)
class Reading:
    """What a model knows after some tokens, and what it expects next."""

    state: FastState
    open: Any  # the carry after the tokens of the open chunk, with its weights
    logits: Tensor  # (B, V) of the next token
    past: tuple[FastState, ...] = ()  # states right after the last updates, oldest first; as many as were asked for

    @property
    def tokens(self) -> int:
        """How many tokens each sequence has read."""
        return self.state.tick + (0 if self.state.pending is None else self.state.pending.shape[1])


@torch.no_grad()
def prefill(
    model: Any, tokens: Tensor, reading: Reading | None = None, mode: Mode = "full", keep: int = 0, piece: int = 4096
) -> Reading:
    """Read tokens (B, n), n >= 1, from the start or on from a reading, at most about `piece` at once.

    In mode "off" nothing is learned. The states after the last `keep` updates can be gone back to. Raises UserError for
    no tokens, and as `inner.read` does.
    """
    if tokens.ndim != 2 or not tokens.shape[1]:
        text = "there is nothing to read; (batch, tokens) with at least one token is needed"
        raise UserError(text, key="tokens", seen=tuple(tokens.shape))
    levels = token_levels(model.levels)
    state, past = (reading.state, reading.past) if reading else (initial_state(model, levels, len(tokens)), ())
    for part in _parts(tokens, state, levels, keep, piece):
        before = state.tick
        _, state = read(model, levels, state, part, mode)
        if levels and mode != "off" and state.tick > before:
            past = (*past, state)
        past = past[len(past) - min(keep, len(past)) :]
    assert state.pending is not None, "a token was read"
    h, carry = model.features(state.fast, state.carry, model.prepare(state.pending, state.carry))
    return Reading(state, carry, model.logits(h[:, -1:])[:, 0], past)


def _parts(tokens: Tensor, state: FastState, levels: list[Level], keep: int, piece: int) -> Iterator[Tensor]:
    """Pieces to read at once; those of the last `keep` chunks end right after an update each."""
    if not levels:
        yield from tokens.split(piece, 1)
        return
    chunk = levels[0].period
    held = 0 if state.pending is None else state.pending.shape[1]
    closes = (held + tokens.shape[1] - 1) // chunk  # chunks that these tokens close
    ends = [k * chunk + 1 - held for k in range(1, closes + 1)]  # after so many of them
    some = max(1, piece // chunk)
    cuts = [end for k, end in enumerate(ends, 1) if k > closes - keep or k % some == 0]
    for first, last in zip([0, *cuts], [*cuts, tokens.shape[1]]):
        if last > first:
            yield tokens[:, first:last]


@torch.no_grad()
def decode(model: Any, reading: Reading, token: Tensor, mode: Mode = "full", keep: int = 0) -> Reading:
    """Read one more token of each sequence, (B,): one step of the model, and an update where a chunk has filled."""
    levels = token_levels(model.levels)
    state, past, new = reading.state, reading.past, token.unsqueeze(1)
    assert state.pending is not None, "a reading has read a token"
    if not levels:
        state = replace(state, carry=reading.open, pending=new, tick=state.tick + state.pending.shape[1])
    elif state.pending.shape[1] < levels[0].period:
        state = replace(state, pending=torch.cat([state.pending, new], 1))
    else:
        _, state = read(model, levels, state, new, mode)
        past = (*past, state)[max(0, len(past) + 1 - keep) :] if mode != "off" else past
    h, carry = model.features(state.fast, reading.open, model.prepare(new, reading.open))
    return Reading(state, carry, model.logits(h)[:, 0], past)


def roll_back(model: Any, reading: Reading, updates: int = 1) -> Reading:
    """As it was before the last so many updates, right after the one before them; later tokens are unread.

    Raises UserError where that update was not kept.
    """
    kept = len(reading.past)
    if not 1 <= updates < kept:
        text = f"{kept} states are kept, each right after an update, the last one among them; read with a larger keep"
        raise UserError(text, key="updates", seen=updates, allowed=f"1 to {max(kept - 1, 0)}")
    state = reading.past[-1 - updates]
    with torch.no_grad():
        h, carry = model.features(state.fast, state.carry, model.prepare(state.pending, state.carry))
        return Reading(state, carry, model.logits(h[:, -1:])[:, 0], reading.past[: kept - updates])


def repeated(reading: Reading, samples: int) -> Reading:
    """As many copies of a reading of one sequence, which may go on differently from here."""

    def copies(tree: Any) -> Any:
        return tree_map(lambda t: t.expand(samples, *t.shape[1:]) if isinstance(t, Tensor) else t, tree)

    def state(of: FastState) -> FastState:
        return FastState(**{name: copies(value) for name, value in _plain(of).items()})

    past = tuple(state(s) for s in reading.past)
    return Reading(state(reading.state), copies(reading.open), copies(reading.logits), past)


def draw(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None = None) -> Tensor:
    """One token for each row of logits (B, V): the likeliest at temperature 0, else from the likeliest that hold top_p.

    Raises UserError for a negative temperature and a top_p outside (0, 1].
    """
    if not temperature >= 0:
        raise UserError("a temperature is at least 0", key="temperature", seen=temperature, allowed=">= 0")
    if not 0 < top_p <= 1:
        raise UserError("top_p is a share of the probability", key="top_p", seen=top_p, allowed="0 < top_p <= 1")
    if temperature == 0:
        return logits.argmax(-1)
    share, token = (logits / temperature).softmax(-1).sort(-1, descending=True)  # (B, V) each
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


def save(path: Path, model: nn.Module, reading: Reading) -> None:
    """Write a reading as safetensors, with the digest of the model's weights. Raises OSError."""
    from safetensors.torch import save as packed

    from nested.rundir import write_atomic

    tensors: dict[str, Tensor] = {}
    states = [_plain(s) for s in (reading.state, *reading.past)]
    form = _taken_apart({"states": states, "open": reading.open, "logits": reading.logits}, tensors, "reading")
    about = {"format": FORMAT, "model": digest(model), "form": json.dumps(form)}
    write_atomic(path, packed(tensors, about))


def load(path: Path, model: nn.Module) -> Reading:
    """A reading that `save` wrote for a model of equal weights. Raises UserError for any other file or model."""
    from safetensors import SafetensorError, safe_open

    device = str(next(model.parameters()).device)
    try:
        with safe_open(path, "pt", device=device) as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        text = f"{path} cannot be read ({error}); a file that --state-out wrote is needed"
        raise UserError(text, key="state", seen=str(path)) from None
    if about.get("format") != FORMAT:
        text = f"{path} is no saved reading of format {FORMAT}; write it with --state-out"
        raise UserError(text, key="state", seen=about.get("format"), allowed=FORMAT)
    if about["model"] != digest(model):
        text = f"{path} was read by a model of other weights; read the text again with this one"
        raise UserError(text, key="state", seen=about["model"], allowed=digest(model))
    found = _put_together(json.loads(about["form"]), tensors)
    state, *past = (FastState(**s) for s in found["states"])
    return Reading(state, found["open"], found["logits"], tuple(past))


def digest(model: nn.Module) -> str:
    """A hash of the names, shapes, types and values of a model's parameters and buffers."""
    found = hashlib.blake2b(digest_size=16)
    for name, value in model.state_dict().items():
        found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _plain(state: FastState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ("fast", "gathered", "carry", "pending", "tick")}


def _taken_apart(tree: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """The tree as JSON, with names of tensors in their place; the tensors are put into `tensors`."""
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().contiguous().clone()  # a file holds no tensor twice
        return {"tensor": path}
    if isinstance(tree, dict):
        return {"dict": {key: _taken_apart(value, tensors, f"{path}.{key}") for key, value in tree.items()}}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_taken_apart(value, tensors, f"{path}.{i}") for i, value in enumerate(tree)]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}
    text = f"a state may hold tensors, numbers and None, in tuples, lists and dicts, not {type(tree).__name__}"
    raise UserError(text, key="state", seen=type(tree).__name__)


def _put_together(form: Any, tensors: dict[str, Tensor]) -> Any:
    kind, value = next(iter(form.items()))
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _put_together(inner, tensors) for key, inner in value.items()}
    if kind in ("list", "tuple"):
        inner = [_put_together(v, tensors) for v in value]
        return inner if kind == "list" else tuple(inner)
    return value
