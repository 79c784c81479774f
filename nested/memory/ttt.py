"""TTT layers: the state is a small network per head that learns each token's value from its key by gradient descent.

"Learning to (Learn at Test Time)" (arXiv 2407.04620): f(x; W) = x + LN(net(x; W)), where net is one linear layer
(TTT-Linear) or two with a GELU between them, the hidden one four times as wide (TTT-MLP). The loss of a token is
|f(k; W) - v|^2 / 2, its gradient g_i. All gradients of a mini-batch are taken at the W it began with,
    W_j = W_0 - scale_j sum_{i <= j} eta_i g_i,      y_j = f(q_j; W_j),      j = 1 to 16 in the mini-batch
eta_i = base_rate sigmoid(w x_i + b) / K is learned from the token, scale_j = max(0, 1 / j + a learned offset) from its
place. The next mini-batch begins with the last W_j. The dual form gets y without any W_j but the last: what W_j x says
beside W_0 x is a masked product of x with the inputs of the layer, times their errors.

Choices: the frame of the paper's Transformer backbone (no convolution or gate of its own), with rotary positions within
the mini-batch, as its code; the exact GELU; the factor 2 of the squared error is left to the rate, as in its code. The
tokens of an open mini-batch are held as they are, and read again with those that follow. The op of this name in
`flash-linear-attention` (0.6) is another rule and not used on a GPU: what a token reads is written at its own rate, not
at the writers', a mini-batch ends with all its writes at the last token's, and y adds net(q) where the paper adds q.

Shapes: B batch, T tokens, D width, H heads, K = D / H, I and O in and out of a layer, C tokens of a mini-batch.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nested.errors import UserError
from nested.layers.rotary import rotate
from nested.memory.state import check_state, check_tokens, head_size
from nested.precision import wide
from nested.signature import Bound, checked

THETA = 10000.0  # of the rotary positions


class Layer(NamedTuple):
    """One layer of fast weights."""

    weight: Tensor  # (B, H, O, I)
    bias: Tensor  # (B, H, 1, O)


class Norm(NamedTuple):
    """Scale and shift of each head's layer norm."""

    scale: Tensor  # (H, 1, K)
    shift: Tensor  # (H, 1, K)


class TTTState(NamedTuple):
    """The weights with which the open mini-batch began, and its tokens: fewer than a mini-batch."""

    layers: tuple[Layer, ...]
    keys: Tensor  # (B, H, p, K)
    values: Tensor  # (B, H, p, K)
    rates: Tensor  # (B, H, p)


# -- the network and its gradients -------------------------------------------------------------------------------------


def standard(z: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """z (..., K) at mean 0 and variance 1, and one over the deviation that it had (..., 1)."""
    centred = z - z.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return centred * inverse, inverse


def error(z: Tensor, target: Tensor, norm: Norm) -> Tensor:
    """The gradient of |LN(z) - target|^2 / 2 in z, of its shape (..., K)."""
    normal, inverse = standard(z)
    g = (normal * norm.scale + norm.shift - target) * norm.scale
    return inverse * (g - g.mean(-1, keepdim=True) - normal * (g * normal).mean(-1, keepdim=True))


def gelu_slope(z: Tensor) -> Tensor:
    """The derivative of the exact GELU."""
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)


def gradients(layers: tuple[Layer, ...], k: Tensor, v: Tensor, norm: Norm) -> list[tuple[Tensor, Tensor]]:
    """Of each layer its inputs (B, H, C, I) and errors (B, H, C, O): the gradient of token i is error_i input_i^T."""
    inputs, sums = [k], []
    for layer in layers:
        sums.append(inputs[-1] @ layer.weight.mT + layer.bias)
        inputs.append(F.gelu(sums[-1]))
    errors = [error(sums[-1], v - k, norm)]  # the network learns what is left of v beside its input
    for layer, z in zip(reversed(layers[1:]), reversed(sums[:-1])):
        errors.insert(0, errors[0] @ layer.weight * gelu_slope(z))
    return list(zip(inputs, errors))


def mini_batch(
    layers: tuple[Layer, ...], q: Tensor, k: Tensor, v: Tensor, rates: Tensor, scale: Tensor, norm: Norm
) -> tuple[Tensor, tuple[Layer, ...]]:
    """q, k, v (B, H, C, K), rates (B, H, C), scale (C,) -> y (B, H, C, K) and the layers after the last token."""
    steps = (scale.unsqueeze(-1) * rates.unsqueeze(-2)).tril()  # (B, H, C, C): what token i adds to the W of token j
    learned = gradients(layers, k, v, norm)
    x, after = q, []
    for depth, (layer, (inputs, errors)) in enumerate(zip(layers, learned)):
        x = F.gelu(x) if depth else x
        x = x @ layer.weight.mT + layer.bias - (steps * (x @ inputs.mT + 1)) @ errors
        last = steps[..., -1, :].unsqueeze(-1) * errors  # (B, H, C, O)
        after.append(Layer(layer.weight - last.mT @ inputs, layer.bias - last.sum(-2, keepdim=True)))
    return q + standard(x)[0] * norm.scale + norm.shift, tuple(after)


# -- the memories ------------------------------------------------------------------------------------------------------


class TTTLinear(nn.Module):
    """TTT-Linear: a linear layer per head that learns while it reads, by gradient descent over mini-batches of tokens.

    Raises UserError for a value out of its range, and for heads that do not divide the width into even sizes.
    """

    hidden: tuple[int, ...] = ()  # widths between the layers, in sizes of a head

    def __init__(
        self,
        width: Annotated[int, Bound(ge=1)],
        heads: Annotated[int, Bound(ge=1)],
        mini_batch: Annotated[int, Bound(ge=1)] = 16,
        base_rate: Annotated[float, Bound(gt=0)] = 1.0,
    ):
        super().__init__()
        given = {"width": width, "heads": heads, "mini_batch": mini_batch, "base_rate": base_rate}
        checked(TTTLinear, given, "model")
        self.heads, self.size = heads, head_size(width, heads, rotary=True)
        self.mini_batch, self.base_rate = mini_batch, base_rate
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.rate = nn.Linear(width, heads)
        nn.init.zeros_(self.rate.bias)  # half the base rate, before training
        self.offset = nn.Parameter(torch.zeros(mini_batch))  # of the scale of each place in a mini-batch
        sizes = [self.size * n for n in (1, *self.hidden, 1)]
        self.weights = nn.ParameterList(0.02 * torch.randn(heads, o, i) for i, o in pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(heads, 1, o) for o in sizes[1:])
        self.scale = nn.Parameter(torch.ones(heads, 1, self.size))
        self.shift = nn.Parameter(torch.zeros(heads, 1, self.size))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.output = nn.Linear(width, width, bias=False)

    def initial_state(self, batch: int) -> TTTState:
        """The learned weights for each of `batch` sequences, and no open tokens."""
        layers = tuple(
            Layer(*(wide(p).expand(batch, -1, -1, -1) for p in layer)) for layer in zip(self.weights, self.biases)
        )
        none = layers[0].weight.new_zeros(batch, self.heads, 0, self.size)
        return TTTState(layers, none, none, none[..., 0])

    def forward(self, x: Tensor, state: TTTState | None = None) -> tuple[Tensor, TTTState]:
        """x (B, T, D) -> y (B, T, D) and the state after it. Raises UserError for other tokens, or a state not of x."""
        check_tokens(x, self.heads * self.size)
        start = self.initial_state(len(x))
        state = start if state is None else state
        self._check(state, start, x)
        open_ = state.keys.shape[2]
        places = torch.arange(open_, open_ + x.shape[1], device=x.device) % self.mini_batch
        q, k, v = (wide(project(x)).unflatten(-1, (self.heads, -1)) for project in (self.query, self.key, self.value))
        q, k, v = (s.transpose(1, 2) for s in (rotate(q, places, THETA), rotate(k, places, THETA), v))  # (B, H, T, K)
        rates = self.base_rate * torch.sigmoid(wide(self.rate(x))).mT / self.size  # (B, H, T)
        with torch.autocast(x.device.type, enabled=False):
            y, state = self._read(q, k, v, rates, state)
        return self.output(self.norm(y.transpose(1, 2).flatten(2).to(x.dtype))), state

    def _read(self, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, state: TTTState) -> tuple[Tensor, TTTState]:
        """One mini-batch after another, from the first token of the open one."""
        layers, *held = state
        open_ = held[0].shape[2]
        q = F.pad(q, (0, 0, open_, 0))  # nothing is asked by the tokens that are read again
        k, v, rates = (torch.cat(pair, 2) for pair in zip(held, (k, v, rates)))
        places = torch.arange(1, self.mini_batch + 1, dtype=q.dtype, device=q.device)
        scale = (1 / places + wide(self.offset)).clamp(min=0)  # (C,)
        norm = Norm(wide(self.scale), wide(self.shift))
        ys = []
        for q_c, k_c, v_c, rates_c in zip(*(s.split(self.mini_batch, 2) for s in (q, k, v, rates))):
            count = q_c.shape[2]
            y, after = mini_batch(layers, q_c, k_c, v_c, rates_c, scale[:count], norm)
            ys.append(y)
            layers = after if count == self.mini_batch else layers
        first = k.shape[2] - k.shape[2] % self.mini_batch
        open_tokens = (s[:, :, first:].clone() for s in (k, v, rates))  # a view would keep all tokens
        return torch.cat(ys, 2)[:, :, open_:], TTTState(layers, *open_tokens)

    def _check(self, state: TTTState, start: TTTState, x: Tensor) -> None:
        for depth, (layer, new) in enumerate(zip(state.layers, start.layers, strict=True)):
            for part, held, wanted in zip(Layer._fields, layer, new):
                check_state(f"{part} of layer {depth}", held, wanted, x)
        for part, held, wanted in zip(TTTState._fields[1:], state[1:], start[1:]):
            check_state(part, held[:, :, :0], wanted, x)  # however many are open
        open_ = state.keys.shape[2]
        if open_ >= self.mini_batch:
            text = f"{open_} open tokens are too many for mini-batches of {self.mini_batch}; start from initial_state"
            raise UserError(text, key="state", seen=open_, allowed=self.mini_batch - 1)


class TTTMLP(TTTLinear):
    """TTT-MLP: as TTT-Linear, with two layers per head, the hidden one four times as wide as the head."""

    hidden = (4,)

    def __init__(
        self,
        width: Annotated[int, Bound(ge=1)],
        heads: Annotated[int, Bound(ge=1)],
        mini_batch: Annotated[int, Bound(ge=1)] = 16,
        base_rate: Annotated[float, Bound(gt=0)] = 0.1,
    ):
        super().__init__(width, heads, mini_batch, base_rate)
