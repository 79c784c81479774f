"""A whole outer step as the forward pass of one module: what data parallelism has to wrap.

The inner gradients are `torch.autograd.grad` calls, which DDP and FSDP2 do not see; the outer gradient is an ordinary
backward pass from what `forward` returns, through all updates. Wrapped as one module, DDP averages it over processes,
and FSDP2 (`fully_shard(step, reshard_after_forward=False)`) keeps the weights whole from forward to backward, since the
inner loop and its second derivative use them many times. Each process reads sequences of its own, equally many.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from torch import Tensor, nn

from nested.models.language import LanguageModel


class OuterStep(nn.Module):
    """Mean loss of a batch, in nats: `OuterStep(model)(x, y).backward()` is the outer gradient."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Tokens (B, T) and those that follow them (B, T) -> ()."""
        return self.model.nll(x, y).mean()
