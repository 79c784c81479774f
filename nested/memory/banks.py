"""The memories of one head side by side: how they are read, and how one write changes all of them.

"Nested Learning" (arXiv 2512.24695v1) Eq. 83-93. Memories that share key, eta and alpha are rows of one state, so there
is one read and one write for all of them. A bank holds the main memory first, then those that make q, k and v, then
those that make eta and alpha. It writes with gradients taken at an anchor, the state at the end of the chunk before
(Eq. 90), while what is erased and what decays is the state of that very token.

`MatrixBank`: M(x) = M x. The memories of eta and alpha are single rows: their output is a scalar.
`ResidualBank`: M(x) = x + W_1 gelu(W_2 x) (Eq. 89, 91) with W_2 = `up` and W_1 = `down`. Eq. 88 multiplies a memory
from the right, which is undefined for this one. Here each linear layer is written by Eq. 88, with its own input as key
and the gradient that reaches it: the faithful form, since Eq. 57 derives the rule for one linear layer. A layer whose
input has norm lambda takes steps of eta / max(1, lambda^2), where Eq. 57 has eta / (1 + eta lambda^2): so the bound on
eta for unit keys holds for it too (for each layer while the other stands still, and for values that do not depend on
the memory; with its own ones nothing is proved, but l2 is bounded where it was tried). The identity never decays.
`erase="input"` lets only `up` erase. The memories of eta and alpha are as wide as the others, as Eq. 84 wants, and a
learned read-out makes a scalar of each.

Shapes: Z = B x H batch and heads, L tokens of a segment, K head width, E hidden, N memories, R rows of all memories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from nested_kernels.delta_rule import Objective, Rule, Terms
from nested_kernels.mlp_memory import Erase, MLPState, mlp_memory
from nested_kernels.mlp_memory import Weights as Layers
from nested_kernels.mlp_memory.chunked import Steps, advance, fan, step
from nested_kernels.mlp_memory.rule import gelu
from torch import Tensor, nn

from nested.precision import wide

Weights = tuple[Tensor, ...]  # each (Z, memories or rows of memories, ...), the main memory first
Vectors, Scalars = ("q", "k", "v"), ("eta", "alpha")  # what memories other than the main one make, in their order


class Segment(NamedTuple):
    """What tokens write and ask: k, v, q (Z, L, K), q only where it reads the weights of its own token; eta and alpha
    (Z, L, 1), and beta (Z, L, 1) where there is a momentum. k, v and q may be in half precision, rates are not."""

    k: Tensor
    v: Tensor
    eta: Tensor
    alpha: Tensor
    beta: Tensor | None = None
    q: Tensor | None = None


class Written(NamedTuple):
    """The main memory's reads (Z, L, K), each before its token's write; the last weights; the momentum, or nothing."""

    reads: Tensor | None
    weights: Weights
    momentum: Weights


class Bank(nn.Module):
    """Memories that share keys and rates: "main" first, then `names`. `initial.<name>.*` are their initial states."""

    split: int  # entries along the second axis of every weight that belong to the main memory

    def __init__(self, head_width: int, heads: int, names: Sequence[str]):
        super().__init__()
        self.head_width, self.heads = head_width, heads
        self.vectors = [name for name in Vectors if name in names]
        self.scalars = [name for name in Scalars if name in names]
        self.names = ["main", *self.vectors, *self.scalars]
        self.initial = nn.ModuleDict({name: nn.ParameterDict(self._one(name)) for name in self.names})

    def _one(self, name: str) -> dict[str, nn.Parameter]:
        raise NotImplementedError

    def initial_weights(self) -> Weights:
        """The initial states of all memories, without the batch: each (H, ...)."""
        raise NotImplementedError

    def project(self, weights: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the memories of `names` make of x (Z, L, K): vectors (Z, L, n, K) and scalars (Z, L, m), in order."""
        raise NotImplementedError

    def read(self, weights: Weights, q: Tensor) -> Tensor:
        """The main memory's M(q), q and result (Z, L, K)."""
        raise NotImplementedError

    def write(self, live: Weights, anchor: Weights, at: Segment, initial: Weights | None, momentum: Weights) -> Written:
        """All memories written by the tokens of a segment in their order, with gradients taken at `anchor`.

        `initial` is what weights decay towards, None for zero; `momentum` is empty for none.
        """
        raise NotImplementedError


class MatrixBank(Bank):
    """M(x) = M x, all of them rows of one matrix (Z, R, K)."""

    def __init__(self, head_width: int, heads: int, names: Sequence[str], terms: Terms):
        super().__init__(head_width, heads, names)
        self.split, self.terms = head_width, terms

    def _one(self, name: str) -> dict[str, nn.Parameter]:
        rows = 1 if name in Scalars else self.head_width
        return {"weight": _normal(self.heads, rows, self.head_width)}

    def initial_weights(self) -> Weights:
        return (torch.cat([self.initial[name].get_parameter("weight") for name in self.names], 1),)

    def project(self, weights: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        n = len(self.vectors)  # the main memory answers too, unheard: cutting the weights costs more
        _, vectors, scalars = (wide(x) @ weights[0].mT).split([self.split, n * self.head_width, len(self.scalars)], -1)
        return vectors.unflatten(-1, (n, self.head_width)), scalars * math.sqrt(self.head_width)

    def read(self, weights: Weights, q: Tensor) -> Tensor:
        return wide(q) @ weights[0][:, : self.split].mT

    def write(self, live: Weights, anchor: Weights, at: Segment, initial: Weights | None, momentum: Weights) -> Written:
        erase, fit, value = self.terms
        heap = momentum[0] if momentum else None
        start = initial[0] if initial else None
        k, v, q = wide(at.k), wide(at.v), None if at.q is None else wide(at.q)
        if k.shape[1] == 1 and live is anchor and q is not None and heap is None:  # one product for all there is
            both = torch.cat([(erase + fit) * k - value * v, q], 1) @ live[0].mT  # (Z, 2, R)
            reads = both[:, 1:]
            after, heap = step(Steps(k, both[:, :1], at.eta, at.alpha, None, None), 0.0, live[0], start, None)
        else:
            error = (fit * k - value * v) @ anchor[0].mT  # (Z, L, R)
            steps = Steps(k, error, at.eta, at.alpha, at.beta, q)
            if k.shape[1] > 1 and heap is None:  # the delta rule multiplies in the precision of its operands
                steps = steps._replace(key=at.k, error=error.to(at.k.dtype), query=at.q)
            reads, after, heap = advance(steps, erase, live[0], start, heap, "cumulative", "auto")
        return Written(None if reads is None else reads[..., : self.split], (after,), () if heap is None else (heap,))


class ResidualBank(Bank):
    """M(x) = x + down gelu(up x): `up` (Z, N, E, K) and `down` (Z, N, K, E)."""

    split = 1

    def __init__(
        self,
        head_width: int,
        heads: int,
        names: Sequence[str],
        objective: Objective,
        rule: Rule,
        hidden: int,
        erase: Erase = "every",
    ):
        self.hidden = hidden
        super().__init__(head_width, heads, names)
        self.objective: Objective = objective
        self.rule: Rule = rule
        self.erase: Erase = erase
        if self.scalars:
            self.readout = _normal(heads, len(self.scalars), head_width)

    def _one(self, name: str) -> dict[str, nn.Parameter]:
        return {
            "up": _normal(self.heads, self.hidden, self.head_width),
            "down": _normal(self.heads, self.head_width, self.hidden),
        }

    def initial_weights(self) -> Weights:
        up, down = (
            torch.stack([self.initial[name].get_parameter(part) for name in self.names], 1) for part in ("up", "down")
        )
        return up, down

    def project(self, weights: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        up, down = (w[:, 1:] for w in weights)
        x = wide(x)
        made = x.unsqueeze(1) + gelu(fan(x, up))[0] @ down.mT  # (Z, N - 1, L, K)
        vectors, others = made.split([len(self.vectors), len(self.scalars)], 1)
        if not self.scalars:
            return vectors.transpose(1, 2), x[..., :0]
        readout = self.readout.repeat(len(x) // self.heads, 1, 1).to(x.dtype)  # (Z, m, K)
        logits = torch.einsum("zmlk,zmk->zlm", others, readout)
        return vectors.transpose(1, 2), logits * math.sqrt(self.head_width)

    def read(self, weights: Weights, q: Tensor) -> Tensor:
        up, down = (w[:, 0] for w in weights)
        q = wide(q)
        return q + gelu(q @ up.mT)[0] @ down.mT

    def write(self, live: Weights, anchor: Weights, at: Segment, initial: Weights | None, momentum: Weights) -> Written:
        def layers(w: Weights) -> Layers:
            return Layers(*(x.unsqueeze(1) for x in w))

        stale = live is not anchor  # then these tokens are the rest of an open chunk, else a chunk
        held = layers(anchor) if stale else None, layers(momentum) if momentum else None
        y, after = mlp_memory(
            None if at.q is None else at.q.unsqueeze(1),
            at.k.unsqueeze(1),
            at.v.unsqueeze(1),
            at.eta.mT,
            at.alpha.mT,
            MLPState(layers(live), *held, position=int(stale)),
            beta=None if at.beta is None else at.beta.mT,
            objective=self.objective,
            rule=self.rule,
            erase=self.erase,
            values="own",
            anchor=at.k.shape[1] + stale,
            retain="zero" if initial is None else "initial",
            initial=layers(initial) if initial else None,
        )
        weights, gathered = (tuple(x.squeeze(1) for x in w or ()) for w in (after.weights, after.momentum))
        return Written(None if y is None else y.squeeze(1), weights, gathered)


def _normal(*shape: int) -> nn.Parameter:
    """N(0, 1 / last axis): keeps the norm of what it multiplies."""
    return nn.Parameter(torch.randn(shape) / math.sqrt(shape[-1]))
