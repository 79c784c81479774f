"""The rules of Gated DeltaNet and Mamba-2 by the kernels of flash-linear-attention (package `fla`), where it is there.

It computes on a CUDA device where q, k and v are bfloat16; float32 it would multiply in TF32. A form of our kernels
that is named (`trainer.kernels`, NESTED_KERNELS_BACKEND) goes before it. So do our kernels for few tokens, as in
decoding, which they read in one launch, and in compiled code.

It is differentiable once. Its backward pass is opaque to autograd, which would take a gradient for a constant: here the
gradient knows all that it depends on, and a second derivative raises NotImplementedError.

A decay is handed over as its logarithm. One of 0 counts as the least normal float32, 1.2e-38: differences of logarithms
stay finite, nothing that bfloat16 shows is left of what was before, and its own gradient is 0.

Shapes: B batch, T tokens, H heads, K key, V value.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from nested_kernels.backend import EVERYWHERE, chosen, transformed, without_triton
from torch import Tensor

LEAST = torch.finfo(torch.float32).tiny  # of a decay
FEW = 8  # tokens
WIDEST = 256  # K
Two = tuple[Tensor, Tensor]


def serves(q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> bool:
    """Whether `fla` computes. Raises ValueError for a form in NESTED_KERNELS_BACKEND that there is not."""
    if not q.is_cuda or not q.dtype == k.dtype == v.dtype == torch.bfloat16:
        return False
    key, value = q.shape[-1], v.shape[-1]
    fits = q.shape[2] > FEW and key <= WIDEST and key % 2 == value % 2 == 0  # it has no backward pass for odd sizes
    free = not torch.compiler.is_compiling() and transformed(q, k, v, *others) is None
    named = chosen("delta_rule", "auto", EVERYWHERE) != "auto"
    return fits and free and not named and _installed() and without_triton(q.device) is None


@cache
def _installed() -> bool:
    return importlib.util.find_spec("fla") is not None


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, memory: Tensor) -> Two:
    """As the function of this name in `nested.memory.gated_delta_net`."""
    op = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    return _read(op, (q, k, v), a, (b,), memory)


def decaying_sum(q: Tensor, k: Tensor, v: Tensor, step: Tensor, kept: Tensor, memory: Tensor) -> Two:
    """As the function of this name in `nested.memory.mamba2`; step times v is rounded as v is."""
    op = importlib.import_module("fla.ops.simple_gla").chunk_simple_gla
    return _read(op, (q, k, (step.unsqueeze(-1) * v).to(v.dtype)), kept, (), memory)


def _read(op: Callable[..., Two], qkv: Sequence[Tensor], kept: Tensor, rates: Sequence[Tensor], memory: Tensor) -> Two:
    """In the layout of `fla`: time before heads, the logarithm of the decay, a state of (B, H, K, V)."""
    operands = (*qkv, kept.clamp_min(LEAST).log(), *rates)
    operands = [*(x.transpose(1, 2).contiguous() for x in operands), memory.mT.contiguous()]
    call = partial(_call, op)
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in operands)
    y, after = _Once.apply(call, *operands) if recorded else call(*operands)
    return y.transpose(1, 2), after.mT.contiguous()


def _call(op: Callable[..., Two], *operands: Tensor) -> Two:
    *tokens, start = operands
    return op(*tokens, scale=1.0, initial_state=start, output_final_state=True)


class _Once(torch.autograd.Function):
    """Outputs of a function of tensors, whose gradient is `_Gradients`."""

    @staticmethod
    def forward(ctx: Any, call: Callable[..., Two], *operands: Tensor) -> tuple[Tensor, ...]:
        given = [x.detach().requires_grad_(x.requires_grad) for x in operands]
        with torch.enable_grad():
            outputs = call(*given)
        ctx.save_for_backward(*operands)
        ctx.made = given, outputs
        return tuple(x.detach() for x in outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Gradients.apply(ctx.made, *cotangents, *ctx.saved_tensors)


class _Gradients(torch.autograd.Function):
    """Of the operands, by the call's own graph: a function of cotangents and operands that has no derivative."""

    @staticmethod
    def forward(ctx: Any, made: tuple[list[Tensor], Two], *tensors: Tensor) -> tuple[Tensor | None, ...]:
        given, outputs = made
        wanted = [x for x in given if x.requires_grad]
        keep = torch._C._autograd._get_current_graph_task_keep_graph()  # type: ignore
        found = iter(torch.autograd.grad(outputs, wanted, tensors[: len(outputs)], retain_graph=keep))
        return tuple(next(found) if x.requires_grad else None for x in given)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> None:
        raise NotImplementedError(
            "flash-linear-attention is differentiable once, and a second derivative is asked for; our own kernels have "
            "every order: take trainer.kernels=triton (or chunked) in a run, or set NESTED_KERNELS_BACKEND=triton"
        )
