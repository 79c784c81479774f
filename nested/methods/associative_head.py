"""A head that is an associative memory: a nested level of its own beside the model that trains as ever.

Its context is the input of the model's last layer, its objective and update are one of the rules of `memory/heads.py`,
its frequency is that of its writes. Gradients do not reach it and it sends none: model and memory are two problems.

Features that learn change under what has been written of them; that is measured here, not mended. Where they are
frozen, their gradients are cleared before the optimizer sees them: its levels keep their clocks, the model's own head
goes on learning, and no other parameter changes by a bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nested.config import Bound
from nested.errors import Diverged, UserError
from nested.memory import heads
from nested.methods.frozen import drop_gathered
from nested.methods.method import Method
from nested.streams.seeding import generator

if TYPE_CHECKING:
    from nested.learner import Learner
    from nested.streams.stream import Batch, Experience

CHUNK = 256  # examples read at once in the pass after an experience; what is written does not depend on it
FOR_NUMBERS = ("delta", "least_squares")  # rules that converge to the targets themselves


class MemoryHead(nn.Module):
    """A layer in whose place a memory answers: features (B, D - 1) -> (B, C), in the precision of the layer."""

    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)
    mean: Tensor | None  # (D,)
    matrix: Tensor | None  # (D, D)

    def __init__(self, layer: nn.Linear, whiten: bool):
        super().__init__()
        self.layer = layer
        width, n_outputs = layer.in_features + 1, layer.out_features
        shapes = {"weight": (n_outputs, width), "bias": (n_outputs,), "mean": (width,), "matrix": (width, width)}
        for name, shape in shapes.items():
            held = whiten or name in ("weight", "bias")
            self.register_buffer(name, layer.weight.new_zeros(shape, dtype=torch.float64) if held else None)

    def hold(self, weight: Tensor, bias: Tensor, whitening: heads.Whitening | None) -> None:
        """Answer with these from now on; keys are not whitened before there is a whitening."""
        self.weight, self.bias = weight, bias
        self.mean, self.matrix = whitening or (None, None)

    def read(self, features: Tensor) -> Tensor:
        """(B, D - 1) -> (B, C), float64."""
        whitening = None if self.mean is None or self.matrix is None else heads.Whitening(self.mean, self.matrix)
        return F.linear(heads.keys(features, whitening), self.weight, self.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.read(features).to(self.layer(features).dtype)


class AssociativeHead(Method):
    """Write features and targets into an associative memory and judge it as the model's head, beside the trained head.

    Every training example is written once and none is kept: `after_experience` in one pass in a seeded order when its
    experience is over, `online` from the training batches of the experience's first epoch as they come, those of
    `period_steps` batches together (what is left at the end of the experience is written there).
    `features` are `learned` all along, `frozen_after_first` experience, or `fixed` from the start. With `whiten` keys
    are whitened with the covariance of the first experience's. Views are `memory`, the main one, then `head`. Raises
    UserError for a model without a linear layer `head` that sees each sample once, targets that the rule cannot learn,
    `whiten` online (the covariance is known only at the end) and `period_steps` where there is one write.
    """

    def __init__(
        self,
        seed: int,
        rule: heads.Rule = "least_squares",
        when: Literal["after_experience", "online"] = "after_experience",
        features: Literal["learned", "frozen_after_first", "fixed"] = "frozen_after_first",
        period_steps: Annotated[int, Bound(ge=1)] = 1,
        eta: Annotated[float, Bound(gt=0, lt=2)] = 0.5,
        ridge: Annotated[float, Bound(gt=0)] = 0.01,
        whiten: bool = False,
    ):
        if whiten and when == "online":
            text = "the covariance is known only when the first experience is over; use when: after_experience"
            raise UserError(text, key="method.whiten", seen=True, allowed=False)
        if period_steps > 1 and when == "after_experience":
            text = f"{period_steps} is not allowed: there is one write, after the experience; use when: online"
            raise UserError(text, key="method.period_steps", seen=period_steps, allowed=1)
        self.rule: heads.Rule = rule
        self.seed, self.when, self.features = seed, when, features
        self.period_steps, self.eta, self.ridge, self.whiten = period_steps, eta, ridge, whiten
        self.memory: heads.State = {}
        self.whitening: heads.Whitening | None = None
        self.begun = 0  # experiences
        self.left = 0  # examples of this experience that are neither written nor gathered
        self.gathered: list[list[Tensor]] = []  # per batch: features, targets
        self._seen: list[Tensor] = []  # of the batch that is being learned from
        self._head: nn.Linear

    def attach(self, learner: Learner) -> None:
        stream = learner.stream
        if stream.per_position:
            text = "one target for each sample is needed and this stream has one for each position"
            raise UserError(text, key="method._target_")
        if stream.regression and self.rule not in FOR_NUMBERS:
            text = f"{self.rule} ranks classes and this stream's targets are numbers; use delta or least_squares"
            raise UserError(text, key="method.rule", seen=self.rule, allowed=list(FOR_NUMBERS))
        self._head = _head(learner)
        self.memory = heads.empty(self.rule, self._head.in_features + 1, stream.n_outputs, learner.where)

    # -- features: frozen or not ---------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Whether the features do not learn in the present experience."""
        return self.features == "fixed" or (self.features == "frozen_after_first" and self.begun > 1)

    def before_experience(self, learner: Learner, experience: Experience) -> None:
        self.begun, self.left = self.begun + 1, len(experience.train)
        if self.frozen:
            drop_gathered(learner.optimizer, self._feature_parameters(learner))

    def after_backward(self, learner: Learner) -> None:
        if self.frozen:
            for p in self._feature_parameters(learner):
                p.grad = None

    def _feature_parameters(self, learner: Learner) -> list[nn.Parameter]:
        own = {id(p) for p in self._head.parameters()}
        return [p for p in learner.model.parameters() if id(p) not in own]

    # -- writing -------------------------------------------------------------------------------------------------------

    def loss(self, learner: Learner, batch: Batch) -> Tensor:
        if self.when == "after_experience" or self.left <= 0:
            return learner.loss(batch)
        with _input_of(self._head) as seen:
            loss = learner.loss(batch)
        self._seen = [seen[0], batch.y]
        return loss

    def after_step(self, learner: Learner) -> None:
        if not self._seen:
            return
        self.left -= len(self._seen[0])
        self.gathered.append(self._seen)
        self._seen = []
        if len(self.gathered) == self.period_steps:
            self._write_gathered()

    def after_experience(self, learner: Learner, experience: Experience) -> None:
        if self.when == "online":
            self._write_gathered()
            return
        if self.whiten and self.whitening is None:
            every = [heads.keys(features) for features, _ in self._pass(learner, experience)]
            self.whitening = heads.whitening_of(torch.cat(every))
        for features, y in self._pass(learner, experience):
            self._write(features, y)

    @torch.no_grad()
    def _pass(self, learner: Learner, experience: Experience) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (N, D) and targets of every training example, in evaluation mode."""
        n, training = len(experience.train), learner.model.training
        order = torch.randperm(n, generator=generator(self.seed, "associative head", experience.index))
        learner.model.eval()
        for rows in order.split(CHUNK):
            x, y, task = learner.fetch(experience.train, rows)
            with _input_of(self._head) as seen:
                learner.logits(x, task, training=True)
            yield seen[0], y
        learner.model.train(training)

    def _write_gathered(self) -> None:
        if self.gathered:
            features, y = (torch.cat(parts) for parts in zip(*self.gathered, strict=True))
            self._write(features, y)
            self.gathered = []

    def _write(self, features: Tensor, y: Tensor) -> None:
        if not features.isfinite().all():
            raise Diverged("features are not finite when the memory is written; lower optim.lr")
        targets = y.double() if y.is_floating_point() else F.one_hot(y, self._head.out_features).double()
        self.memory = heads.write(self.rule, self.memory, heads.keys(features, self.whitening), targets, self.eta)

    # -- reading -------------------------------------------------------------------------------------------------------

    def views(self) -> dict[str, AbstractContextManager[Any]]:
        return {"memory": self._reading(), "head": nullcontext()}

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Within it the memory answers in the head's place; the head itself is not touched."""
        answer = self.exported_head(self._head)
        handle = self._head.register_forward_hook(lambda _, args, out: answer.read(args[0]).to(out.dtype))
        try:
            yield
        finally:
            handle.remove()

    def exported_head(self, layer: nn.Linear) -> MemoryHead:
        """The memory as it stands, in the place of `layer`; without values where nothing is attached."""
        head = MemoryHead(layer, self.whiten)
        if self.memory:
            head.hold(*heads.linear(self.rule, self.memory, self.ridge), self.whitening)
        return head

    def exported(self, model: nn.Module) -> nn.Module:
        model.head = self.exported_head(cast(nn.Linear, model.head))
        return model

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "memory": self.memory,
            "whitening": list(self.whitening or ()),
            "begun": self.begun,
            "left": self.left,
            "gathered": self.gathered,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self._head.weight.device
        self.memory = {n: t.to(device) for n, t in state["memory"].items()}
        whitening = [t.to(device) for t in state["whitening"]]
        self.whitening = heads.Whitening(*whitening) if whitening else None
        self.begun, self.left = state["begun"], state["left"]
        self.gathered = [[t.to(device) for t in pair] for pair in state["gathered"]]


def _head(learner: Learner) -> nn.Linear:
    """The model's last layer. Raises UserError when it has none, or does not call it once on (B, D)."""
    model = learner.model
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        text = f"{type(model).__name__} has no linear layer `head`, whose input an associative head is written from"
        raise UserError(text, key="method._target_", seen=type(head).__name__, allowed="torch.nn.Linear")
    x, _, _ = learner.fetch(learner.examples, torch.arange(1))
    training = model.training
    model.eval()
    with torch.no_grad(), _input_of(head) as seen:
        model(x)
    model.train(training)
    shapes = [tuple(s.shape) for s in seen]
    if shapes != [(1, head.in_features)]:
        text = f"{type(model).__name__} calls its `head` on {shapes} for one sample; once, on (1, features), is needed"
        raise UserError(text, key="method._target_", seen=shapes, allowed=[(1, head.in_features)])
    return head


@contextmanager
def _input_of(head: nn.Linear) -> Iterator[list[Tensor]]:
    """What the head is called on within the context, without gradients."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()
