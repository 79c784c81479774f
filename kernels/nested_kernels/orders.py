"""Orders of differentiation: what an opaque backward pass has, what it refuses, and what compiled code would lose.

A Triton backward pass is an op of its own and opaque to autograd: of itself it would have no second derivative and no
forward-mode one, and what has none counts as a constant. And code compiled around an op loses the second derivative of
anything: where no operand of the compiled region is kept for its backward pass, `torch.autograd.grad` does not find the
way through `create_graph=True`, and takes the gradient for a constant. Neither passes here without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import CGradInterpreterPtr, TransformType, get_interpreter_stack
from torch._library.custom_ops import CustomOpDef

from nested_kernels.backend import transformed, without_autocast

InTorch = Callable[..., Sequence[Tensor]]


def differentiable(op: str, forward: CustomOpDef, backward: CustomOpDef, in_torch: InTorch, ends: int) -> None:
    """Register the gradients of `forward(*operands, *options, again)` and of its `backward`.

    `backward(*cotangents, *operands, *options, again)` has one cotangent for each of the `ends` outputs and returns a
    list: the gradients of the operands that are not None. All else, that is a second derivative and any that is not
    made by a backward pass, is taken from `in_torch(operands, *options)`, the forward pass in plain torch, where
    `again` (what backend "auto" asks for); without it NotImplementedError names the backend that has it.
    """

    def keep(ctx: Any, inputs: tuple, output: Any) -> None:
        tensors = next(i for i, x in enumerate(inputs) if not isinstance(x, Tensor | None))
        ctx.save_for_backward(*inputs[:tensors])
        ctx.options = inputs[tensors:]

    def first(ctx: Any, *cotangents: Tensor) -> tuple:
        operands = ctx.saved_tensors
        if why := transformed(*cotangents, *operands):
            found = pulled_back(again(why, *ctx.options), operands)(*cotangents, *_given(operands))
        else:
            found = backward(*cotangents, *operands, *ctx.options)
        return *_placed(found, operands), *(None for _ in ctx.options)

    def second(ctx: Any, u: Sequence[Tensor]) -> tuple:
        operands, options = ctx.saved_tensors[ends:], again("a second derivative is asked for", *ctx.options)
        inputs = *ctx.saved_tensors[:ends], *_given(operands)
        with without_autocast(inputs[0]):
            found = torch.func.vjp(pulled_back(options, operands), *inputs)[1](tuple(u))
        return *found[:ends], *_placed(found[ends:], operands), *(None for _ in ctx.options)

    def pulled_back(options: tuple, operands: tuple[Tensor | None, ...]) -> Callable[..., tuple[Tensor, ...]]:
        """Cotangents and given operands -> gradients, in plain torch."""

        def outputs(*given: Tensor) -> tuple[Tensor, ...]:
            return tuple(in_torch(_placed(given, operands), *options))

        def gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
            with without_autocast(inputs[0]):
                return torch.func.vjp(outputs, *inputs[ends:])[1](inputs[:ends])

        return gradients

    def again(why: str, *options: Any) -> tuple:
        if not options[-1]:
            raise NotImplementedError(
                f'{op}: backend "triton" is differentiable once, by a backward pass, and {why}; '
                'backend "chunked" has every order, and "auto" takes what is missing from it'
            )
        return options[:-1]

    forward.register_autograd(first, setup_context=keep)
    backward.register_autograd(second, setup_context=keep)


def _given(operands: Sequence[Tensor | None]) -> list[Tensor]:
    return [x for x in operands if x is not None]


def _placed(found: Sequence[Tensor], operands: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """One for each operand: the next of `found` where it is given."""
    rest = iter(found)
    return tuple(None if x is None else next(rest) for x in operands)


def once_if_compiled(x: Tensor) -> Tensor:
    """x, an output of an op. In compiled code, its gradient refuses a backward pass that keeps its graph.

    Inside a gradient or a forward-mode derivative of torch.func nothing can be put that autograd outside would pass
    through: there RuntimeError, unless autograd does not record outside.
    """
    if not torch.compiler.is_compiling():
        return x
    recorded, vectorised = _outside()
    if not recorded or not (x.requires_grad or transformed(x)):
        return x
    if not vectorised:
        raise RuntimeError(
            "nested_kernels: an op is called inside a gradient or forward-mode derivative of torch.func, in code that "
            "is compiled while autograd records outside, which would take some second derivatives for zero without a "
            "word: call the compiled code under torch.no_grad(), or do not compile it"
        )
    return checked(x)


@torch.compiler.assume_constant_result
def _outside() -> tuple[bool, bool]:
    """Does autograd record outside of all transforms of torch.func, and are those that are active vmap alone?

    Asked as a compiler reads the code; it reads it again where the mode of autograd is another one.
    """
    stack = get_interpreter_stack() or []  # the outermost first
    before = [CGradInterpreterPtr(t).prevGradMode() for t in stack if t.key() == TransformType.Grad]
    return (before or [torch.is_grad_enabled()])[0], all(t.key() == TransformType.Vmap for t in stack)


@torch.library.custom_op("nested_kernels::checked", mutates_args=())
def checked(x: Tensor) -> Tensor:
    """x, whose gradients are checked, too; opaque to a compiler, so that it is asked when compiled code runs."""
    if torch._C._current_graph_task_id() != -1 and torch._C._autograd._get_current_graph_task_keep_graph():  # type: ignore
        raise NotImplementedError(
            "nested_kernels: a gradient of compiled code was asked for with create_graph=True or retain_graph=True; "
            "compiled code has no second derivative, and the gradient would be taken for a constant without a word: "
            "differentiate twice outside torch.compile"
        )
    return x.clone()


@checked.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


checked.register_autograd(lambda ctx, gradient: checked(gradient))
checked.register_vmap(lambda info, places, x: (checked(x), places[0]))
