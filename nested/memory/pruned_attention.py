"""Attention whose cache is pruned to a budget of tokens: a token sees what is kept and itself, then one of them goes.

`StreamingAttention`, "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453): the first tokens
(sinks) and the last ones (the window) are kept. Positions are those within the cache: the query stands behind the last
key kept, so a sink is never further away than the budget, and none beyond training is ever seen.

`HeavyHitterAttention`, "H2O" (arXiv 2306.14048): the last tokens are kept, and of those before them the ones that
gathered most attention, each head by its own count. Positions are those in the text, as there. What is kept is chosen
without a gradient: the choice is made first, token by token, from scores that one product gave for the whole block.

Both have the parameters of `nested.memory.window_attention`, which sees all: one can be trained so and read with less.
Plain products instead of a fused kernel: inner levels differentiate them twice.

Shapes: B batch, T tokens, D width, H heads, K = D / H, n tokens kept, C tokens of a block, S sinks, W window.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nested.errors import UserError
from nested.layers.rotary import rotate
from nested.memory.state import check_states, check_tokens
from nested.memory.window_attention import QKNormAttention
from nested.precision import wide
from nested.signature import Bound, checked

Size = Annotated[int, Bound(ge=1)]
BLOCK = 64  # tokens whose scores are made together, where the window is not longer


class Streamed(NamedTuple):
    """Keys before they are turned, and values: of the sinks, then of the window."""

    keys: Tensor  # (B, H, n, K)
    values: Tensor  # (B, H, n, K)


class Hitters(NamedTuple):
    """Keys turned by their position in the text, values, the attention each has gathered, and the tokens read."""

    keys: Tensor  # (B, H, n, K)
    values: Tensor  # (B, H, n, K)
    gathered: Tensor  # (B, H, n)
    read: Tensor  # (B,)


# -- sinks and a window ------------------------------------------------------------------------------------------------


def streaming(
    q: Tensor, k: Tensor, v: Tensor, state: Streamed, sinks: int, window: int, theta: float
) -> tuple[Tensor, Streamed]:
    """q, k, v (B, H, T, K) after what is kept -> y (B, H, T, K), and the S first and W last tokens.

    Entries are counted from the first one kept: entry f sees the sinks e < S, e <= f, and the window f - W <= e <= f.
    Entries from S on follow each other without a gap, whatever was pruned, so f - e is their distance in the text.
    """
    keys, values = (torch.cat([held, wide(new)], 2) for held, new in zip(state, (k, v)))  # (B, H, n + T, K)
    entries = torch.arange(keys.shape[2], device=q.device)
    ys, kept = [], state.keys.shape[2]
    for q_c in q.split(max(window, BLOCK), 2):
        f = entries[kept : kept + q_c.shape[2]]
        near = slice(max(sinks, kept - window), kept + q_c.shape[2])
        at_sinks = _turn(q_c, f.clamp(max=sinks + window), theta) @ _keys(q_c, keys[:, :, :sinks], theta).mT
        at_near = _turn(q_c, f - near.start, theta) @ _keys(q_c, keys[:, :, near], theta).mT
        e = torch.cat([entries[:sinks], entries[near]])
        seen = (e <= f.unsqueeze(-1)) & ((e < sinks) | (e >= f.unsqueeze(-1) - window))  # (C, S + W + C)
        share = _share(wide(torch.cat([at_sinks, at_near], -1)) / math.sqrt(q.shape[-1]), seen)
        ys.append(share.to(q.dtype) @ torch.cat([values[:, :, :sinks], values[:, :, near]], 2).to(q.dtype))
        kept += q_c.shape[2]
    last = max(sinks, kept - window)
    return torch.cat(ys, 2), Streamed(*(torch.cat([s[:, :, :sinks], s[:, :, last:]], 2) for s in (keys, values)))


def _keys(q: Tensor, keys: Tensor, theta: float) -> Tensor:
    """Keys (B, H, n, K), the first at position 0, for products with q."""
    return _turn(keys.to(q.dtype), torch.arange(keys.shape[2], device=q.device), theta)


def _turn(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x (B, H, T, K) at the positions (T,)."""
    return rotate(x.transpose(1, 2), positions, theta).transpose(1, 2)


def _share(scores: Tensor, seen: Tensor) -> Tensor:
    """Softmax of scores (..., n) over the entries that are seen."""
    return scores.masked_fill(~seen, -math.inf).softmax(-1)


# -- heavy hitters -----------------------------------------------------------------------------------------------------


def heavy_hitters(
    q: Tensor, k: Tensor, v: Tensor, state: Hitters, budget: int, recent: int, theta: float
) -> tuple[Tensor, Hitters]:
    """q, k, v (B, H, T, K) after what is kept -> y (B, H, T, K), and the tokens that are kept then."""
    places = state.read[0] + torch.arange(q.shape[2], device=q.device)
    q, k = (_turn(s, places, theta) for s in (q, k))
    ys, (keys, values, gathered, read) = [], state
    for q_c, k_c, v_c in zip(*(s.split(BLOCK, 2) for s in (q, k, v))):
        keys, values = torch.cat([keys, wide(k_c)], 2), torch.cat([values, wide(v_c)], 2)  # (B, H, n + C, K)
        scores = wide(q_c @ keys.to(q.dtype).mT) / math.sqrt(q.shape[-1])  # (B, H, C, n + C)
        seen, kept, gathered = _choose(scores, gathered, budget, recent)
        ys.append(_share(scores, seen).to(q.dtype) @ values.to(q.dtype))
        keys, values = (s.take_along_dim(kept.unsqueeze(-1), 2) for s in (keys, values))
    return torch.cat(ys, 2), Hitters(keys, values, gathered, read + q.shape[2])


@torch.no_grad()
def _choose(scores: Tensor, gathered: Tensor, budget: int, recent: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (B, H, C, n + C), and what the first n entries have gathered (B, H, n) -> what each token sees, as the
    scores; the entries kept after the last token, (B, H, n'), in order; and what those have gathered."""
    count, entries = scores.shape[-2:]
    kept = entries - count
    gathered = F.pad(gathered, (0, count))
    alive = torch.arange(entries, device=scores.device).expand_as(gathered) < kept
    seen = []
    for t in range(kept, entries):
        alive[..., t] = True
        seen.append(alive.clone())
        gathered += _share(scores[:, :, t - kept], alive)
        if t >= budget:  # the cache was full
            old = slice(t + 1 - recent)
            least = gathered[..., old].masked_fill(~alive[..., old], math.inf).argmin(-1, keepdim=True)
            alive.scatter_(-1, least, False)
    stay = alive.byte().argsort(dim=-1, descending=True, stable=True)[..., : min(entries, budget)]
    return torch.stack(seen, 2), stay, gathered.gather(-1, stay)


# -- the memories ------------------------------------------------------------------------------------------------------


class PrunedAttention(QKNormAttention):
    """What both have in common: the parameters of `WindowAttention` and a budget."""

    def __init__(self, width: int, heads: int, budget: int, theta: float):
        super().__init__(width, heads, theta)
        self.size, self.budget = width // heads, budget

    def initial_state(self, batch: int) -> Any:
        """Nothing kept."""
        raise NotImplementedError

    def attend(self, q: Tensor, k: Tensor, v: Tensor, state: Any) -> tuple[Tensor, Any]:
        """q, k, v (B, H, T, K) after what is kept -> y (B, H, T, K), and what is kept then."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """x (B, T, D) -> y (B, T, D) and what is kept. Raises UserError for other tokens, or a state not of x."""
        check_tokens(x, self.heads * self.size)
        start = self.initial_state(len(x))
        state = start if state is None else state
        _check_kept(state, start, x, self.budget)
        q, k, v = (self.split(project(x)).transpose(1, 2) for project in (self.query, self.key, self.value))
        y, state = self.attend(self.query_norm(q), self.key_norm(k), v, state)
        return self.out(y.transpose(1, 2).flatten(2)), state

    def _nothing(self, batch: int) -> Tensor:
        """No keys, (B, H, 0, K), at least float32."""
        return wide(self.key.weight.new_zeros(batch, self.heads, 0, self.size))


class StreamingAttention(PrunedAttention):
    """Attention over the first tokens and the last ones (StreamingLLM), `budget` of them, at positions in the cache.

    Raises UserError for a value out of its range, for a budget that leaves no window beside the sinks, and for heads
    that do not divide the width into even sizes.
    """

    def __init__(
        self,
        width: Size,
        heads: Size,
        budget: Size,
        sinks: Annotated[int, Bound(ge=0)] = 4,
        theta: Annotated[float, Bound(gt=1)] = 500_000.0,
    ):
        given = {"width": width, "heads": heads, "budget": budget, "sinks": sinks, "theta": theta}
        checked(StreamingAttention, given, "model")
        super().__init__(width, heads, budget, theta)
        if sinks >= budget:
            text = f"{sinks} sinks leave no window of a budget of {budget} tokens; take at most {budget - 1}"
            raise UserError(text, key="model.sinks", seen=sinks, allowed=budget - 1)
        self.sinks = sinks

    def initial_state(self, batch: int) -> Streamed:
        """Nothing kept."""
        return Streamed(self._nothing(batch), self._nothing(batch))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, state: Streamed) -> tuple[Tensor, Streamed]:
        """`streaming` with the window that the sinks leave."""
        return streaming(q, k, v, state, self.sinks, self.budget - self.sinks, self.theta)


class HeavyHitterAttention(PrunedAttention):
    """Attention over the last tokens and those before them that gathered most attention (H2O), `budget` in all.

    `recent` null is half the budget, as in the paper. Raises UserError for a value out of its range, for more recent
    tokens than the budget, and for heads that do not divide the width into even sizes.
    """

    def __init__(
        self,
        width: Size,
        heads: Size,
        budget: Size,
        recent: Size | None = None,
        theta: Annotated[float, Bound(gt=1)] = 500_000.0,
    ):
        given = {"width": width, "heads": heads, "budget": budget, "recent": recent, "theta": theta}
        checked(HeavyHitterAttention, given, "model")
        super().__init__(width, heads, budget, theta)
        if recent is not None and recent > budget:
            text = f"{recent} recent tokens are more than a budget of {budget}; take at most {budget}"
            raise UserError(text, key="model.recent", seen=recent, allowed=budget)
        self.recent = max(budget // 2, 1) if recent is None else recent

    def initial_state(self, batch: int) -> Hitters:
        """Nothing kept."""
        none = self._nothing(batch)
        return Hitters(none, none, none[..., 0], torch.zeros(batch, dtype=torch.int64, device=none.device))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, state: Hitters) -> tuple[Tensor, Hitters]:
        """`heavy_hitters` with the recent tokens that always stay."""
        return heavy_hitters(q, k, v, state, self.budget, self.recent, self.theta)


def _check_kept(state: Streamed | Hitters, start: Streamed | Hitters, x: Tensor, budget: int) -> None:
    """Raises UserError for a state that is not of x, or of another budget."""
    nothing = (part[:, :, :0] if part.ndim > 1 else part for part in state)  # however many tokens it keeps
    check_states(type(state)(*nothing), start, x)
    if state.keys.shape[2] > budget:
        seen = state.keys.shape[2]
        text = f"the state keeps {seen} tokens, more than a budget of {budget}; start from initial_state({len(x)})"
        raise UserError(text, key="state", seen=seen, allowed=budget)
