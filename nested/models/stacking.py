"""Ad-hoc level stacking: a trained language model whose own MLPs become levels on the token clock.

"Nested Learning" (arXiv 2512.24695v1) section 7.3: MLP_0^(f_i) = MLP_pretrained_i, then Eq. 71. No MLP is inserted; the
model's own are assigned to levels by globs over its parameter names, and each sequence starts from them. With eta = 0
the function is the model's own. The paper says neither how the MLPs of Llama are shared out among levels nor which
rates and chunks it uses: all of that is the caller's.

Shapes: B batch, n tokens read, C tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from nested.errors import UserError
from nested.inner import Chunk
from nested.layers.linear import LayerNorm, Linear
from nested.levels import Level, assign_tokens
from nested.signature import accepts, pair

PerSequence = {nn.Linear: Linear, nn.LayerNorm: LayerNorm}  # torch's class -> ours, which takes (B, *shape) too


class Stacked:
    """A causal language model and the levels its own parameters are assigned to; read it with `nested.inner.read`.

    `model` shares the pretrained model's parameters; calling this object is calling it.
    """

    def __init__(self, model: nn.Module, levels: tuple[Level, ...]):
        self.model, self.levels = model, levels

    def __call__(self, tokens: Tensor, carry: Any = None) -> tuple[Tensor, Any]:
        """The static model: tokens (B, n) -> logits (B, n, V) and carry."""
        return self.model(tokens, carry)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's own, under its own names."""
        return self.model.named_parameters()

    def prepare(self, tokens: Tensor) -> Tensor:
        """The tokens themselves."""
        return tokens

    def chunk_loss(self, fast: Mapping[str, Tensor], carry: Any, chunk: Chunk) -> tuple[Tensor, Any]:
        """Next-token loss (B, C) with `fast`, (B, *shape), in place of the parameters it names, and the carry."""
        kinds = {name: p.dtype for name, p in self.model.named_parameters()}
        weights = {name: w.to(kinds[name]) for name, w in fast.items()}  # kept in float32, used in the model's own
        logits, carry = self._checked(functional_call(self.model, weights, (chunk.inputs, carry)), chunk.labels)
        wide = logits if logits.dtype.itemsize > 2 else logits.float()
        return F.cross_entropy(wide.mT, chunk.labels, reduction="none"), carry

    def _checked(self, result: Any, labels: Tensor) -> tuple[Tensor, Any]:
        """What the model returned for n tokens with labels (B, n), or UserError."""
        whose, wanted = type(self.model).__name__, "(logits (B, n, V), carry)"
        logits, carry = pair(result, whose, wanted)
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != labels.shape:
            seen = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            text = f"{whose} returned logits {seen} for tokens {tuple(labels.shape)}; {wanted} is needed"
            raise UserError(text, seen=seen, allowed=wanted)
        return logits, carry


def stack_levels(pretrained: nn.Module, levels: Sequence[Level]) -> Stacked:
    """Assign a trained model's own parameters to token levels; the model itself is left as it is.

    `pretrained(tokens, carry) -> (logits (B, n, V), carry)` is a causal language model which goes on after the tokens
    that `carry` remembers; None is the start. Assigned parameters must be those of a Linear or LayerNorm (torch's or
    ours). Raises UserError for a parameter of anything else, a model that takes no carry, and as `levels.assign_tokens`
    does; reading raises it where the model returns anything but those two.
    """
    if not accepts(pretrained.forward, 2):
        text = f"{type(pretrained).__name__}.forward does not take (tokens, carry)"
        text += "; a model that goes on after what carry remembers, None at the start, is needed"
        raise UserError(text, key="pretrained")
    tied = {id(p): p for p in (*pretrained.parameters(), *pretrained.buffers())}
    model = copy.deepcopy(pretrained, tied)  # new modules around the same tensors
    for names in assign_tokens(levels, model).values():
        for name in names:
            _take_per_sequence(model, name)
    return Stacked(model, tuple(levels))


def _take_per_sequence(model: nn.Module, name: str) -> None:
    """Make the owner of a parameter one that takes a weight of each sequence's own."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, tuple(PerSequence.values())):
        return
    if type(owner) not in PerSequence or len(getattr(owner, "normalized_shape", (1,))) > 1:
        raise UserError(
            f"parameter {name!r} belongs to a {type(owner).__name__}, which takes no weight of each sequence's own; "
            "assign those of a Linear or LayerNorm",
            key="levels",
            seen=type(owner).__name__,
            allowed=[kind.__name__ for kind in PerSequence],
        )
    owner.__class__ = PerSequence[type(owner)]  # the same module, in a copy that is ours, with the forward of ours
