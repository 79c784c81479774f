"""Parts of a computation that are run again in the backward pass, so that only what goes into them is kept.

`torch.utils.checkpoint` does not serve here. An inner gradient within such a part asks at once for what was just thrown
away, so that it is run again in the forward pass, too; and of parts within parts all is kept, since it keeps every
argument that is no tensor. Here a part is a function of a pytree: it is run, its graph is thrown away at once, and its
backward pass runs it again. A part may be made of parts.

It equals a computation that keeps everything to the bit. Both runs are with grad, since some inner gradients are
rounded otherwise without. Parameters are handed from part to part, so that one sum of their gradients, in the order
that it would have, passes through all parts. Random numbers are drawn again as they were. Autocast is as it was, but
keeps no copies of weights between parts: there the gradients of weights are summed in float32 and not in the lower
precision, and are equal but for its rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.checkpoint import get_device_states, set_device_states

from nested.errors import UserError

Handed = Sequence[Tensor]
Function = Callable[[Handed, Any], tuple[Handed, Any]]
OTHERWISE = "take checkpoint=none"


def recomputed(function: Function, parameters: Handed, handed: Handed, given: Any) -> tuple[Handed, Any]:
    """`function(parameters, given)`, to be run again in the backward pass: parameters for the next part, and a result.

    `given` and the result are pytrees of tensors, numbers and None. `function` has no side effects, and reaches nothing
    else that needs a gradient; it hands on the parameters as it got them, or as its last part did. `handed` are the
    parameters as the part before handed them on, at first themselves. Raises UserError for other leaves and for a
    parameter with a hook on its gradient, which every part would call; and in the backward pass where a gradient of the
    gradient is asked for.
    """
    if any(p._backward_hooks for p in parameters):
        text = "a parameter has a hook on its gradient, which each part that is computed again would call"
        raise UserError(f"{text}; remove it, or {OTHERWISE}", key="checkpoint")
    tensors, form = _apart(given)
    part = _Part(function, parameters, form)
    found = _Again.apply(part, *handed, *tensors)
    return found[: len(handed)], part.result.together(found[len(handed) :])


def plain(x: Any) -> Any:
    """A leaf that is no tensor, as it is. Raises UserError for one that may hide a graph."""
    if x is None or isinstance(x, bool | int | float | str):
        return x
    text = f"a carry may hold tensors, numbers and None, in tuples, lists and dicts, not {type(x).__name__}"
    raise UserError(text, key="carry", seen=type(x).__name__)


class _Form(NamedTuple):
    """A pytree without its tensors."""

    spec: TreeSpec
    leaves: list[Any]
    places: list[int | None]  # of each leaf, the tensor's that it is

    def together(self, tensors: Sequence[Tensor]) -> Any:
        leaves = [x if i is None else tensors[i] for x, i in zip(self.leaves, self.places, strict=True)]
        return tree_unflatten(leaves, self.spec)


def _apart(tree: Any) -> tuple[list[Tensor], _Form]:
    """The tensors of a pytree, each once, and the rest."""
    leaves, spec = tree_flatten(tree)
    tensors = {id(x): x for x in leaves if isinstance(x, Tensor)}
    order = {key: i for i, key in enumerate(tensors)}
    others = [None if isinstance(x, Tensor) else plain(x) for x in leaves]
    return list(tensors.values()), _Form(spec, others, [order.get(id(x)) for x in leaves])


class _Part:
    """A function of parameters and a pytree."""

    result: _Form

    def __init__(self, function: Function, parameters: Handed, form: _Form):
        self.function, self.parameters, self.form = function, parameters, form

    def run(self, handed: Sequence[Tensor], casts: Callable[[], Any]) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters and what else it is given, as leaves of a graph of its own, and what comes of them."""
        given = [t.detach().requires_grad_(t.requires_grad) for t in handed[len(self.parameters) :]]
        with torch.enable_grad(), casts():
            parameters, result = self.function(self.parameters, self.form.together(given))
        found, self.result = _apart(result)
        return [*self.parameters, *given], [*parameters, *found]


class _Again(torch.autograd.Function):
    """A part: the parameters as handed on and what it is given -> the parameters to hand on and what it makes."""

    @staticmethod
    def forward(ctx: Any, part: _Part, *handed: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.part, ctx.casts, ctx.random = part, _autocast(handed), _random(handed)
        ctx.save_for_backward(*handed)  # parameters too: whoever changes them before the backward pass is told
        ctx.set_materialize_grads(False)
        _, found = part.run(handed, ctx.casts)
        outputs = [t.detach() for t in found]
        ctx.mark_non_differentiable(*(y for y, t in zip(outputs, found, strict=True) if not t.requires_grad))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            text = f"what is computed again has no gradient of its outer gradient; {OTHERWISE}"
            raise UserError(text, key="checkpoint")
        with ctx.random():
            given, found = ctx.part.run(ctx.saved_tensors, ctx.casts)
        # a parameter is result and input in one: the sum of its gradients begins with that of later parts
        made = [(y, g) for y, g in zip(found, grads, strict=True) if y.requires_grad and g is not None]
        wanted = [t for t in given if t.requires_grad]
        taken = torch.autograd.grad([y for y, _ in made], wanted, [g for _, g in made], allow_unused=True)
        each = iter(taken)
        return (None, *(next(each) if t.requires_grad else None for t in given))


def _autocast(tensors: Sequence[Tensor]) -> Callable[[], Any]:
    """Autocast as it is now on the tensors' devices, but without copies of weights, which would keep each part."""
    kinds = {"cpu", *(t.device.type for t in tensors)} - {"meta"}
    now = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in sorted(kinds)]

    @contextmanager
    def again() -> Iterator[None]:
        with ExitStack() as stack:
            for kind, dtype, enabled in now:
                stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            yield

    return again


def _random(tensors: Sequence[Tensor]) -> Callable[[], Any]:
    """Random numbers as they would come now, on the tensors' devices; what comes after is as if none had been drawn."""
    one_each = {t.device: t for t in tensors if t.device.type not in ("cpu", "meta")}
    kind = next((device.type for device in one_each), "cuda")
    state, (devices, states) = torch.get_rng_state(), get_device_states(*one_each.values())

    @contextmanager
    def again() -> Iterator[None]:
        with torch.random.fork_rng(devices, device_type=kind):
            torch.set_rng_state(state)
            set_device_states(devices, states, device_type=kind)
            yield

    return again
