"""Self-modifying Titans: a memory whose keys, values and rates come from memories that it writes by the same rule.

"Nested Learning" (arXiv 2512.24695v1) section 8.1-8.2. For every head, with memories M_main, M_k, M_v, M_eta, M_alpha,
    k_t, v_t, eta_t, alpha_t = M_k(x_t), M_v(x_t), M_eta(x_t), M_alpha(x_t)         y_t = M_main(q_t)         (Eq. 83)
    v_hat = M(v_t) for each memory M: it generates its own values                                           (Eq. 84)
    M <- M (alpha_t I - eta_t k_t k_t^T) - eta_t grad L(M; k_t, v_hat)                                      (Eq. 88)
with every M before the write. Chunked (Eq. 90), what generates and what is differentiated is M_xi, the state at the end
of the chunk before, xi(t) = C floor((t - 1) / C); the paper's C ceil(t / C), the end of this chunk, is not known at t.
The main memory has one chunk length and the others another. Chunk lengths of 1 are the exact recurrence.

What the paper leaves open or contradicts, and what is done here:
- v_hat is a constant of the inner gradient, as Eq. 93 has it; the outer gradient flows through it;
- q is a static projection as the text says, though Eq. 85 lists it; `adaptive` chooses which of q, k, v, eta, alpha are
  memories, the rest are learned projections (Table 6);
- heads: each sees a learned projection of the whole token, at unit length (the paper writes one head, of full width);
- q, k and v have unit length: with v longer the write v_hat = M v grows what it reads, whatever eta is;
- eta = eta_max alpha gate, with the contractive bound for self-generated unit values as eta_max, and alpha is a gate;
- `read`: "anchor" is Eq. 90, M_main,xi(q_t); "cumulative" is the dual form of TTT and Titans, M_main,t-1(q_t);
- reads are normalised for each head, so that how full the memory is does not scale them, then projected;
- `retain`: towards zero is the paper's; towards the initial state is the default, since a memory that forgets towards
  zero at all has nothing left after a few hundred tokens;
- momentum: Table 6 takes one away that no equation has. This is that of Titans (arXiv 2501.00663, Eq. 13-14): S_t =
  beta_t S_{t-1} - eta_t grad is added in place of the gradient's step, decay and erase stay; its gate is a static
  projection. Token by token DGD keeps its bounds with it for the L2 objectives; with the dot product it grows along a
  key whose value v has <v, k> above 1 - beta;
- the dot product is no objective for residual memories, though it can be chosen: what a layer is told grows with the
  other one, nothing but the erase stands against it, and at the default rate it diverges within some hundred tokens;
- chunks: the bound is that of the longer one, which for self-generated values falls with its length;
- half precision: x, q, k and v are in that of the projections, those that memories make are rounded to it, and a token
  read by itself sees the same ones; rates, memories and sums are at least float32.

Shapes: B batch, T tokens, D width, H heads, K = D / H, Z = B x H, L tokens of a segment.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from nested_kernels.delta_rule import Objective, Retain, Rule, terms
from torch import Tensor, nn

from nested.errors import UserError
from nested.memory.banks import Bank, Erase, MatrixBank, ResidualBank, Scalars, Segment, Vectors, Weights
from nested.memory.gates import Gate, gate, gate_bias, read_norm, unit
from nested.memory.objectives import bound, check_rate
from nested.memory.state import check_length, check_state, check_tokens
from nested.precision import wide
from nested.signature import Bound, checked

Adaptive = Literal["q", "k", "v", "eta", "alpha"]
Memory = Literal["matrix", "mlp"]
Read = Literal["anchor", "cumulative"]
Length = Annotated[int, Bound(ge=1)]


class State(NamedTuple):
    """Fast weights between two tokens, the batch first in every tensor.

    Matrix memories: one weight (B, H, R, K), the rows of main, q, k, v, eta, alpha as far as they are memories.
    Residual ones: `up` (B, H, N, E, K) and `down` (B, H, N, K, E). `anchors` are the weights at the end of the chunk
    before (empty where both chunk lengths are 1), `momentum` has the shapes of the weights (empty where there is none),
    `position` (B,) counts the tokens read.
    """

    weights: Weights
    anchors: Weights
    momentum: Weights
    position: Tensor


class SelfModifyingTitans(nn.Module):
    """Memories that generate their own keys, values, learning rate and retention, and modify themselves while reading.

    eta_max None is the contractive bound of objective, rule and chunk length (halved by `monotone`); 0 writes nothing.
    `alpha_start` and `eta_start` are what the gates are before training; with `alpha` "one" nothing is forgotten.
    `hidden` and `erase` belong to memory "mlp": `hidden` None is the head's width; `erase` "input" leaves the rank-one
    erase to the layer that sees the key, None is "every".
    Raises UserError for a value outside its words or range, or without effect on this kind of memory, heads that do not
    divide the width, chunk lengths that do not nest, rates beyond the bound.
    """

    def __init__(
        self,
        width: Annotated[int, Bound(ge=1)],
        heads: Annotated[int, Bound(ge=1)],
        memory: Memory = "matrix",
        objective: Objective = "l2",
        rule: Rule = "dgd",
        adaptive: tuple[Adaptive, ...] = ("k", "v", "eta", "alpha"),
        chunk: Length = 1,
        projection_chunk: Length = 1,
        read: Read = "cumulative",
        retain: Retain = "initial",
        gates: Gate = "hard",
        alpha: Literal["gate", "one"] = "gate",
        alpha_start: float = 0.97,
        eta_start: float = 0.25,
        eta_max: Annotated[float, Bound(ge=0)] | None = None,
        monotone: bool = False,
        momentum: bool = False,
        hidden: Annotated[int, Bound(ge=1)] | None = None,
        erase: Erase | None = None,
    ):
        super().__init__()
        given = {"width": width, "heads": heads, "memory": memory, "objective": objective, "rule": rule, "read": read}
        given |= {"adaptive": adaptive, "chunk": chunk, "projection_chunk": projection_chunk, "retain": retain}
        given |= {"gates": gates, "alpha": alpha, "hidden": hidden, "erase": erase}
        checked(SelfModifyingTitans, given, "model")
        _check(width, heads, chunk, projection_chunk)
        _check_effect(memory, rule, hidden, erase)
        scalars = Scalars if alpha == "gate" else tuple(n for n in Scalars if n != "alpha")
        adaptive = tuple(n for n in adaptive if n in (*Vectors, *scalars))
        longest = max(chunk, projection_chunk)
        if eta_max is None:
            eta_max = bound(objective, rule, "self", anchor=longest, monotone=monotone)
        elif eta_max:
            check_rate(eta_max, objective, rule, "self", anchor=longest, monotone=monotone)
        self.heads, self.head_width = heads, width // heads
        self.chunk, self.projection_chunk = chunk, projection_chunk
        self.how_read = "cumulative" if chunk == 1 else read  # the anchor is then the token before
        self.retain, self.eta_max = retain, eta_max
        self.gates: Gate = gates
        self.memories: Bank
        if memory == "matrix":
            self.memories = MatrixBank(self.head_width, heads, adaptive, terms(objective, rule))
        else:
            E = self.head_width if hidden is None else hidden
            self.memories = ResidualBank(self.head_width, heads, adaptive, objective, rule, E, erase or "every")
        if adaptive:
            self.input = nn.Linear(width, width, bias=False)
        outs = {**dict.fromkeys(Vectors, width), **dict.fromkeys(scalars, heads)}
        self.static = nn.ModuleDict({n: nn.Linear(width, o, bias=False) for n, o in outs.items() if n not in adaptive})
        self.eta_bias = nn.Parameter(torch.full((heads,), gate_bias(eta_start, gates, "model.eta_start")))
        self.alpha_bias = nn.Parameter(torch.full((heads,), gate_bias(alpha_start, gates))) if alpha == "gate" else None
        self.beta = nn.Linear(width, heads) if momentum else None
        self.output = nn.Linear(width, width, bias=False)

    def initial_state(self, batch: int) -> State:
        """The learned initial state for each of `batch` sequences, nothing read."""
        weights = tuple(w.expand(batch, *w.shape) for w in self._initial_weights())
        chunked = max(self.chunk, self.projection_chunk) > 1
        momentum = tuple(torch.zeros_like(w) for w in weights) if self.beta is not None else ()
        position = torch.zeros(batch, dtype=torch.int64, device=weights[0].device)
        return State(weights, weights if chunked else (), momentum, position)

    def _initial_weights(self) -> Weights:
        return tuple(wide(w) for w in self.memories.initial_weights())

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x (B, T, D) -> y (B, T, D) and the state after the last token.

        Raises UserError for tokens of another width, a state that is not of x, and a sequence shorter than a chunk
        where no state is given (no token would see a write).
        """
        before = self._start(x, state)
        projected = {name: project(x) for name, project in self.static.items()}
        if hasattr(self, "input"):
            projected["x"] = self.input(x)
        if self.beta is not None:
            projected["beta"] = self.beta(x)
        with torch.autocast(x.device.type, enabled=False):
            y, after = self._run({name: self._by_head(z) for name, z in projected.items()}, before, x.shape[1])
        y = read_norm(y).unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)  # (B, T, D)
        return self.output(y.to(x.dtype)), after

    def _by_head(self, z: Tensor) -> Tensor:
        """(B, T, H n) -> (Z, T, n)."""
        return z.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)

    def _run(self, tokens: dict[str, Tensor], before: State, T: int) -> tuple[Tensor, State]:
        """Projections of the tokens (Z, T, n) -> reads (Z, T, K) and the state after them."""
        B = len(before.position)
        initial = None
        if self.retain == "initial":
            initial = tuple(w.repeat(B, *[1] * (w.ndim - 1)) for w in self._initial_weights())
        live, anchor, momentum = (tuple(w.flatten(0, 1) for w in part) for part in before[:3])
        biases = [wide(b) for b in (self.eta_bias, self.alpha_bias) if b is not None]
        bias = torch.stack(biases, -1).repeat(B, 1).unsqueeze(1)  # (Z, 1, 2), without alpha (Z, 1, 1)
        tokens = {n: unit(z) if n in ("x", *Vectors) else wide(z) for n, z in tokens.items()}
        positions, lengths = self._segments(before.position, T)
        reads = []
        for position, *piece in zip(positions, *(z.split(lengths, 1) for z in tokens.values())):
            anchor = self._anchor(live, anchor, position)
            q, at = self._generate(anchor, dict(zip(tokens, piece)), bias)
            written = self.memories.write(live, anchor, at, initial, momentum)
            reads.append(self.memories.read(anchor, q) if written.reads is None else written.reads)
            live, momentum = written.weights, written.momentum
        parts = (live, anchor if before.anchors else (), momentum)
        weights, anchors, momentum = (tuple(w.unflatten(0, (B, -1)) for w in part) for part in parts)
        return torch.cat(reads, 1), State(weights, anchors, momentum, before.position + T)

    def _segments(self, position: Tensor, T: int) -> tuple[list[int], list[int]]:
        """Where segments begin and their lengths: none crosses the end of a chunk of either kind."""
        step = min(self.chunk, self.projection_chunk)
        first = int(position[0]) if max(self.chunk, self.projection_chunk) > 1 else 0
        begins = [first, *range(first - first % step + step, first + T, step)]
        return begins, [end - begin for begin, end in zip(begins, [*begins[1:], first + T])]

    def _anchor(self, live: Weights, anchor: Weights, position: int) -> Weights:
        """The weights at the end of the chunk before: of the main memory, and of the others."""
        main, others = position % self.chunk == 0, position % self.projection_chunk == 0
        if main and others:
            return live
        n = self.memories.split
        newest = zip(live if main else anchor, live if others else anchor)
        return tuple(torch.cat([m[:, :n], o[:, n:]], 1) for m, o in newest) if main or others else anchor

    def _generate(self, anchor: Weights, tokens: dict[str, Tensor], bias: Tensor) -> tuple[Tensor, Segment]:
        """Eq. 83 at the anchor: q (Z, L, K), and what is written, from memories or static projections."""
        made = dict(tokens)
        if "x" in tokens:
            vectors, scalars = self.memories.project(anchor, tokens["x"])
            made.update(zip(self.memories.vectors, unit(vectors, tokens["x"].dtype).unbind(2)))
            made.update(zip(self.memories.scalars, scalars.split(1, -1)))
        gated = torch.cat([made[name] for name in Scalars if name in made], -1) + bias
        share, *rest = gate(gated, self.gates).split(1, -1)  # eta's, then alpha's where it is gated
        alpha = rest[0] if rest else torch.ones_like(share)
        beta = torch.sigmoid(made["beta"]) if "beta" in made else None
        asked = made["q"] if self.how_read == "cumulative" else None
        return made["q"], Segment(made["k"], made["v"], self.eta_max * alpha * share, alpha, beta, asked)

    def _start(self, x: Tensor, state: State | None) -> State:
        """The state to begin from, checked against x."""
        check_tokens(x, self.heads * self.head_width)
        wanted = self.initial_state(len(x))
        if state is None:
            check_length(self, x.shape[1])
            return wanted
        _check_state(state, wanted, x)
        return state


def _check(width: int, heads: int, chunk: int, projection_chunk: int) -> None:
    if width % heads:
        raise UserError(f"{heads} heads do not divide a width of {width}", key="model.heads", seen=heads)
    short, long = sorted((chunk, projection_chunk))
    if long % short:
        raise UserError(
            f"chunks of {chunk} and {projection_chunk} tokens do not nest; one of chunk and projection_chunk has to be "
            "a multiple of the other",
            key="model.projection_chunk",
            seen=projection_chunk,
        )


def _check_effect(memory: Memory, rule: Rule, hidden: int | None, erase: Erase | None) -> None:
    for name, value in (("hidden", hidden), ("erase", erase)):
        if value is not None and memory == "matrix":
            text = f"{value} has no effect on memory matrix, which has one layer; leave it out, or take memory mlp"
            raise UserError(text, key=f"model.{name}", seen=value)
    if erase is not None and rule == "gd":
        text = f"{erase} has no effect with rule gd, which erases nothing; leave it out, or take rule dgd"
        raise UserError(text, key="model.erase", seen=erase)


def _check_state(state: State, wanted: State, x: Tensor) -> None:
    """A state of another memory, batch, device or precision is refused by name, as are sequences out of step."""
    for part in State._fields:
        seen, allowed = getattr(state, part), getattr(wanted, part)
        seen, allowed = (one if isinstance(one, tuple) else (one,) for one in (seen, allowed))
        if len(seen) != len(allowed):
            text = f"the state has {len(seen)} {part}, this memory {len(allowed)}; start from initial_state({len(x)})"
            raise UserError(text, key="state", seen=len(seen), allowed=len(allowed))
        for have, need in zip(seen, allowed):
            check_state(part, have, need, x)
    if wanted.anchors and not bool((state.position == state.position[0]).all()):
        seen = state.position.tolist()
        raise UserError(
            f"sequences of one batch stand at different tokens: {seen}; read them apart", key="state", seen=seen
        )
