"""A matrix memory per head, written by DGD, whose keys, values, queries and rates are projections of the token.

"Nested Learning" (arXiv 2512.24695v1) Eq. 76-78 with the learning rule of Eq. 88, 92 and 93. The same recurrence is
linear attention (Eq. 15-16) with rule "gd" and objective "dot", and the delta rule of DeltaNet with rule "gd" and
objective "l2", each from an empty memory (conf/model/linear_attention.yaml, conf/model/delta_net.yaml).

What the paper leaves open, and what is done here:
- stability: keys and queries of unit length, eta = eta_max alpha gate with the contractive bound as eta_max, states in
  float32;
- reads of a memory with a double erase are scaled (what is written once and again is read as v / 2), and their size
  tells how full the memory is: each head's read is normalised, and the output projection learns the scale;
- Eq. 78 reads after the write, Eq. 83 before it: `read` chooses, and the printed one of this memory is the default;
- retention towards zero is the paper's; towards the initial memory is a choice.

Shapes: B batch, T tokens, D width, H heads, K = V = D / H.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from nested_kernels.delta_rule import Objective, Read, Retain, Rule, State, delta_rule
from torch import Tensor, nn

from nested.errors import UserError
from nested.memory.gates import Gate, gate, gate_bias, rate, read_norm, unit
from nested.memory.objectives import bound, check_rate, check_rates
from nested.memory.state import check_length, check_state, check_tokens
from nested.precision import wide, wide_dtype
from nested.signature import Bound, checked


class DeltaMemory(nn.Module):
    """A matrix memory per head that learns each token's key and value by (delta) gradient descent.

    eta_max None is the contractive bound of the objective and rule (halved by `monotone`), or 1 where there is none.
    `alpha` "one" never forgets; `eta` "constant" is eta_max alpha at every token. `alpha_start` is the gate before
    training. `start` "learned" is an initial memory drawn from N(0, 1 / K) and learned, "zero" is none. `anchor`: the
    length of chunks whose gradients are taken at their start. Raises UserError for a value outside its words or range,
    heads that do not divide the width, an eta_max beyond the bound, and retention towards an initial memory that is not
    there.
    """

    def __init__(
        self,
        width: Annotated[int, Bound(ge=1)],
        heads: Annotated[int, Bound(ge=1)],
        objective: Objective = "l2",
        rule: Rule = "dgd",
        retain: Retain = "zero",
        anchor: Annotated[int, Bound(ge=1)] = 1,
        read: Read = "after",
        gates: Gate = "sigmoid",
        alpha: Literal["gate", "one"] = "gate",
        alpha_start: float = 0.99,
        eta: Literal["gate", "constant"] = "gate",
        eta_max: Annotated[float, Bound(gt=0)] | None = None,
        monotone: bool = False,
        start: Literal["learned", "zero"] = "learned",
    ):
        super().__init__()
        given = {"width": width, "heads": heads, "objective": objective, "rule": rule, "retain": retain, "read": read}
        given |= {"gates": gates, "alpha": alpha, "eta": eta, "start": start, "anchor": anchor}
        checked(DeltaMemory, given, "model")
        if width % heads:
            raise UserError(f"{heads} heads do not divide a width of {width}", key="model.heads", seen=heads)
        if retain == "initial" and start == "zero":
            raise UserError("'initial' needs start: learned, since there is no initial memory", key="model.retain")
        if eta_max is None:
            most = bound(objective, rule, anchor=anchor, monotone=monotone)
            eta_max = most if math.isfinite(most) else 1.0
        check_rate(eta_max, objective, rule, anchor=anchor, monotone=monotone)
        self.heads, self.size = heads, width // heads
        self.objective: Objective = objective
        self.rule: Rule = rule
        self.retain: Retain = retain
        self.anchor = anchor
        self.when_read: Read = read
        self.gates: Gate = gates
        self.eta_max = eta_max
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.eta = nn.Linear(width, heads) if eta == "gate" else None
        self.alpha = nn.Linear(width, heads) if alpha == "gate" else None
        if self.alpha is not None:
            nn.init.zeros_(self.alpha.weight)  # at first every token is retained alike
            nn.init.constant_(self.alpha.bias, gate_bias(alpha_start, gates))
        self.initial: Tensor  # (H, V, K)
        if start == "learned":
            self.initial = nn.Parameter(torch.randn(heads, self.size, self.size) / math.sqrt(self.size))
        else:
            self.register_buffer("initial", torch.zeros(heads, self.size, self.size), persistent=False)

    def initial_state(self, batch: int) -> State:
        """The learned initial memory for each of `batch` sequences."""
        return State(self._initial(batch))

    def _initial(self, batch: int) -> Tensor:
        return wide(self.initial).expand(batch, -1, -1, -1)  # (B, H, V, K)

    def read(self, state: State, q: Tensor) -> Tensor:
        """q (B, H, T, K) -> y (B, H, T, V): the memory's answers, not normalised; nothing is written."""
        return q.to(state.memory.dtype) @ state.memory.mT

    def write(self, state: State, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor) -> State:
        """k (B, H, T, K) of length 1, v (B, H, T, V), eta and alpha (B, H, T) are learned one after the other.

        Raises UserError for rates at which the memory does not contract.
        """
        check_rates(eta, alpha, self.objective, self.rule, anchor=self.anchor)
        return self._run(k, k, v, eta, alpha, state)[1]

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x (B, T, D) -> y (B, T, D) and the state after the last token.

        Raises UserError for tokens of another width, a state that is not of x, and a sequence shorter than a chunk
        where no state is given.
        """
        check_tokens(x, self.heads * self.size)
        if state is None:
            check_length(self, x.shape[1])
            state = self.initial_state(len(x))
        check_state("memory", state.memory, self._initial(len(x)), x)
        q, k, v = (self._split(project(x)) for project in (self.query, self.key, self.value))
        eta, alpha = self.rates(x)
        y, state = self._run(unit(q), unit(k), v, eta, alpha, state)
        y = read_norm(y).transpose(1, 2).flatten(2)  # (B, T, D)
        return self.output(y.to(x.dtype)), state

    def rates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D) -> eta and alpha, (B, H, T), at least float32."""
        shape = (len(x), self.heads, x.shape[1])
        one = self.initial.new_ones((), dtype=wide_dtype(x.dtype)).expand(shape)
        alpha = one if self.alpha is None else gate(self.alpha(x).mT, self.gates)
        eta = self.eta_max * alpha if self.eta is None else rate(self.eta(x).mT, alpha, self.eta_max, self.gates)
        return eta, alpha

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.size)).transpose(1, 2)  # (B, H, T, K)

    def _run(self, q: Tensor, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, state: State) -> tuple[Tensor, State]:
        return delta_rule(
            q, k, v, eta, alpha, state,
            objective=self.objective, rule=self.rule, anchor=self.anchor, read=self.when_read,
            retain=self.retain, initial=self._initial(len(q)) if self.retain == "initial" else None,
        )  # fmt: skip
