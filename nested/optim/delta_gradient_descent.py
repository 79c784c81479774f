"""Delta Gradient Descent: a linear layer forgets what it holds along its inputs before it learns their gradient.

"Nested Learning" (arXiv 2512.24695v1) Eq. 56, for one input x (I,) with output gradient d (O,) and u = -d:
    W' = argmin_W |W x - u|^2 / 2 + |W - W_t|^2 / (2 eta) = W (I - eta' x x^T) - eta' d x^T
with eta' = eta / (1 + eta |x|^2). Eq. 57 prints eta' = eta / (1 + eta), which is right for inputs of length 1 only.

What the paper leaves open, and what is done here:
- a batch: it has a rule for one sample only. Of N samples the first term of Eq. 56 is the mean, as the loss is, so
  that eta means what it means for gradient descent and N equal samples do what one does: "chunk" is the exact minimum,
  "per_sample" takes the samples one after another, each at eta / N. All gradients are those of the batch's start.
- the gradient is the parameter's own: a clipped one, or one with a penalty in it, counts as it is.
- `normalise`, the paper's condition: the term |W x|^2 / 2, which makes it forget, sees x / |x|. One sample then follows
  Eq. 57 with the printed eta', and how much is forgotten does not depend on the size of the inputs.
- a bias has no place in Eq. 56: biases, and whatever is no linear layer, take plain gradient descent.
What the rule itself brings: |W x|^2 / 2 weighs as much as the loss, so a layer at rest says minus its own gradient,
W x = -d, and no more. A deep network, whose inner gradients are small, is emptied so: on the transformer here its first
layer ends near zero and nothing is learned at rates that suit gradient descent, in both forms, normalised or not.

Shapes: N samples (batch and tokens together), I inputs, O outputs.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nested.config import Bound
from nested.errors import UserError
from nested.layers.linear import Linear
from nested.optim.rule import Rule
from nested.precision import wide_dtype

Form = Literal["chunk", "per_sample"]
Pass = tuple[Tensor, Tensor]  # x (N, I) and d (N, O) of one backward pass
PIECE = 256  # samples of one triangular system


def chunk_step(w: Tensor, g: Tensor, x: Tensor, lr: float) -> Tensor:
    """(W / eta - G) (I / eta + X^T X / N)^-1, the minimum of Eq. 56 over a batch; w and g (O, I), x (N, I).

    G is the gradient of the mean loss, the sum of d x^T; the inverse is taken on the smaller of N and I.
    """
    share, v = lr / max(1, len(x)), w - lr * g
    if len(x) >= x.shape[1]:
        factor = torch.linalg.cholesky(_one_plus(share * (x.mT @ x)))  # (I, I)
        return torch.cholesky_solve(v.mT, factor).mT
    factor = torch.linalg.cholesky(_one_plus(share * (x @ x.mT)))  # (N, N)
    return v - share * torch.cholesky_solve(x @ v.mT, factor).mT @ x


def per_sample_step(w: Tensor, d: Tensor, x: Tensor, lr: float) -> Tensor:
    """Eq. 57 for sample after sample, each at eta / N; w (O, I), d (N, O) gradients of the mean loss, x (N, I).

    Sample i adds r_i x_i^T with r_i = -eta' (W_{i-1} x_i + N d_i), and W_{i-1} x_i holds the r_j before it: a
    triangular system for all r at once.
    """
    n = max(1, len(x))
    for some_d, some_x in zip(d.split(PIECE), x.split(PIECE)):
        square = some_x.square().sum(1, keepdim=True)  # (N, 1)
        rate = (lr / n) / (1 + (lr / n) * square)  # (N, 1): eta'
        before = _one_plus((rate * (some_x @ some_x.mT)).tril(-1))  # (N, N)
        right = -rate * (some_x @ w.mT + n * some_d)  # (N, O)
        w = w + torch.linalg.solve_triangular(before, right, upper=False, unitriangular=True).mT @ some_x
    return w


def _one_plus(square: Tensor) -> Tensor:
    square.diagonal().add_(1)
    return square


class Capture:
    """What one linear layer has seen since its last step: its inputs and the gradients of its outputs.

    Only passes that end in the weight's `.grad` count, so evaluation and `torch.autograd.grad` leave nothing here.
    """

    def __init__(self, weight: nn.Parameter):
        self.weight = weight
        self.replaced = False  # called with other weights in the place of its own
        self.elsewhere = False  # its outputs had their gradients in other backward passes than its weight
        self.passes: list[Pass] = []
        self._task, self._pending = -1, list[Pass]()

    def called(self, module: nn.Module, x: Tensor, output: Tensor) -> None:
        if module.weight is not self.weight:
            self.replaced = True
        elif output.requires_grad:
            output.register_hook(partial(self._went_back, x.detach()))

    def _went_back(self, x: Tensor, d: Tensor) -> None:
        task = torch._C._current_graph_task_id()  # of this backward pass
        if task != self._task:
            self._task, self._pending = task, []
        self._pending.append((self._rows(x), self._rows(d)))

    def _rows(self, t: Tensor) -> Tensor:
        return t.detach().reshape(-1, t.shape[-1]).to(wide_dtype(self.weight.dtype))

    def accumulated(self) -> None:
        self.elsewhere = bool(self._pending) and self._task != torch._C._current_graph_task_id()
        if self._pending and not self.elsewhere:
            xs, ds = zip(*self._pending)
            self.passes.append((torch.cat(xs), torch.cat(ds)))
        self._pending = []


class Hook:
    """Tells a capture, which it does not keep alive, of a layer's calls and gradients; a copy of it tells nobody."""

    def __init__(self, capture: Capture | None = None):
        self._capture: Callable[[], Capture | None] = weakref.ref(capture) if capture else lambda: None

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, ()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if capture := self._capture():
            capture.called(module, args[0] if args else kwargs["input"], output)

    def accumulated(self, _: Tensor) -> None:
        if capture := self._capture():
            capture.accumulated()


class DeltaGradientDescent(Rule):
    """Gradient descent that first forgets along each linear layer's inputs ("Nested Learning" Eq. 56-57).

    `form` says how a batch is served: chunk, the exact minimum over the whole batch, or per_sample, one sample after
    another. Served are the weights of linear layers; all other parameters take plain gradient descent, and `fallback`
    says by name which and why. A layer called several times per step has the inputs of all its calls. The chunk form
    also learns from gradients gathered over several backward passes, with the inputs of all of them, which are kept
    until then. Raises UserError without a model, for a value outside these ranges, for a served layer that has a
    gradient but no inputs (as where `nested.recompute` computes it again), and for gathered gradients in the per_sample
    form.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Annotated[float, Bound(ge=0)] = 0.05,
        form: Form = "chunk",
        normalise: bool = True,
        model: nn.Module | None = None,
    ):
        if model is None:
            raise UserError("it learns from the inputs of the model's layers: give it model=", key="optim", seen=None)
        self._model, self._stepped = model, False
        self._captures: dict[Any, Capture] = {}
        self.fallback: dict[str, str] = {}
        self._names: dict[Any, str] = {p: name for name, p in model.named_parameters()}
        super().__init__(params, {"lr": lr, "form": form, "normalise": normalise})
        _say_once(_in_words(self.fallback))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the linear layers of the group's weights are listened to."""
        super().add_param_group(param_group)
        owners = _owners(self._model)
        for p in self.param_groups[-1]["params"]:
            name = self._names.setdefault(p, f"parameter {len(self._names)}")
            reason = _unserved(p, owners.get(p, []))
            if reason:
                self.fallback[name] = reason
            else:
                self._listen(owners[p][0][1], p)

    def _listen(self, layer: nn.Module, weight: nn.Parameter) -> None:
        capture = self._captures[weight] = Capture(weight)
        hook = Hook(capture)
        handles = [
            layer.register_forward_hook(hook, with_kwargs=True),
            weight.register_post_accumulate_grad_hook(hook.accumulated),
        ]
        weakref.finalize(self, _remove, handles)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update; returns what `closure` returns."""
        loss = super().step(closure)
        self._stepped = True
        return loss

    def step_group(self, group: dict[str, Any]) -> None:
        """One update of the group's parameters that have a gradient."""
        for p in group["params"]:
            if p.grad is not None:
                p.copy_(self._next(p, p.grad, group))

    def _next(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        w, g = p.to(wide_dtype(p.dtype)), grad.to(wide_dtype(p.dtype))
        passes = self._taken(p, group["form"]) if p in self._captures else []
        if not passes:
            return w - group["lr"] * g
        if group["form"] == "chunk":
            x = torch.cat([x for x, _ in passes])
            return chunk_step(w, g, _unit(x)[0] if group["normalise"] else x, group["lr"])
        x, d = passes[-1]
        beside = g - d.mT @ x  # what these samples do not account for: a penalty, clipping
        if group["normalise"]:
            x, length = _unit(x)
            d = d * length
        return per_sample_step(w, d, x, group["lr"]) - group["lr"] * beside

    def _taken(self, p: Tensor, form: Form) -> list[Pass]:
        """The passes since the last step; none for a layer that cannot be served after all."""
        capture, name = self._captures[p], self._names[p]
        passes, capture.passes = capture.passes, []
        if len(passes) > 1:  # without those of a step that was skipped
            passes = [(x, d) for x, d in passes if x.isfinite().all() and d.isfinite().all()]
        if not passes and not capture.replaced:
            raise UserError(f"{name!r} has a gradient, but {_missing(capture)}", key="optim", seen=name)
        if not passes and name not in self.fallback:
            self.fallback[name] = "other weights are put in its place"
            _say_once(_in_words({name: self.fallback[name]}))
        if form == "per_sample" and len(passes) > 1 and not self._stepped:  # later it is a step that was skipped
            raise UserError(
                f"per_sample needs a step after every backward pass, and {name!r} has had {len(passes)}; "
                "use optim.form=chunk, or a level with period_steps 1",
                key="optim.form",
                seen="per_sample",
                allowed=["chunk"],
            )
        return passes

    def state_dict(self) -> dict[str, Any]:
        """As in torch, with the passes that no step has used yet."""
        for p, capture in self._captures.items():
            if capture.passes:
                self.state[p]["passes"] = list(capture.passes)
        saved = super().state_dict()
        self.state.clear()
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        super().load_state_dict(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(saved, (p for group in self.param_groups for p in group["params"])):
            if p in self._captures:
                held = state_dict["state"].get(i, {}).get("passes", [])
                self._captures[p].passes = [(x.to(p.device), d.to(p.device)) for x, d in held]
        self.state.clear()
        self._stepped = True


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1 (zeros stay) and their lengths (N, 1)."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / length.clamp_min(torch.finfo(x.dtype).tiny), length


def _missing(capture: Capture) -> str:
    """Why nothing is known of a layer's inputs, and what to do."""
    if not capture.elsewhere:
        return "its layer was not called: its weights are used elsewhere; give it a level with another optimizer"
    text = "its layer's outputs had theirs in a backward pass within that one, where a part of the model is computed "
    text += "again; there they cannot be told from inner gradients: take checkpoint=none (model.checkpoint), or give "
    return text + "it a level with another optimizer"


Owner = tuple[str, nn.Module, str]  # a module's name, the module, the parameter's name in it


def _owners(model: nn.Module) -> dict[Any, list[Owner]]:
    found: dict[Any, list[Owner]] = {}
    for name, module in model.named_modules():
        for attribute, p in module.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(p, []).append((name, module, attribute))
    return found


def _unserved(p: Tensor, owners: list[Owner]) -> str | None:
    """Why `p` takes plain gradient descent, if it does."""
    if not owners:
        return "it is in no layer of the model"
    if len(owners) > 1:
        return f"it is shared by {' and '.join(name for name, _, _ in owners)}"
    if not p.requires_grad:
        return "it is frozen"
    _, module, attribute = owners[0]
    if type(module) not in (nn.Linear, Linear):  # a subclass may not multiply its input by its weight
        return f"{type(module).__name__} is no linear layer"
    return "it is a bias" if attribute == "bias" else None


def _in_words(fallback: Mapping[str, str]) -> str:
    reasons: dict[str, list[str]] = {}
    for name, reason in fallback.items():
        reasons.setdefault(reason, []).append(name)
    parts = [f"{', '.join(names)} ({reason})" for reason, names in reasons.items()]
    return f"plain gradient descent instead of delta gradient descent for {'; '.join(parts)}" if parts else ""


@cache
def _say_once(text: str) -> None:
    if text:
        logging.getLogger(__name__).warning(text)


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
