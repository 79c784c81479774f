"""Every level's weights after each experience, as files that can be put back bit for bit.

`levels/before.safetensors` holds the state before the first experience whole, `levels/exp-<i>.safetensors` the tensors
that experience i changed, whole: a tensor of state i is in the last file up to i that has it. Each file's header has a
fingerprint of every tensor of its state, which is checked when the state is read.

What is kept is what the matrix judges: the weights of the method's main view (weight averages, say), and the model's
buffers as they are then. Where the main view is no set of weights (a memory that answers in the head's place), it is
that of the first view that is one; its name is in the header.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nested.cost import tensor_bytes
from nested.errors import NestedError, UserError
from nested.levels import assign
from nested.rundir import standing, write_atomic
from nested.wording import counted

if TYPE_CHECKING:
    from nested.config import Config
    from nested.learner import Learner

State = dict[str, Tensor]
BEFORE = -1  # the state before the first experience


class Snapshots:
    """The snapshots of one seed, in `levels/` of its directory."""

    def __init__(self, path: Path):
        self.folder = path / "levels"
        self._view: str | None = None
        self._headers: dict[int, dict[str, Any]] = {}

    def file(self, experience: int) -> Path:
        name = "before" if experience == BEFORE else f"exp-{experience}"
        return self.folder / f"{name}.safetensors"

    @property
    def bytes(self) -> int:
        """What the files take."""
        return sum(file.stat().st_size for file in self._files)

    @property
    def _files(self) -> list[Path]:
        return list(self.folder.glob("*.safetensors"))

    def said(self) -> str:
        """What there is, in a sentence."""
        from nested.housekeeping import size

        return f"{len(self._files)} snapshots of the levels, {size(self.bytes)}, in {self.folder}"

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(self, learner: Learner, experience: int) -> None:
        """Keep the present weights as those after `experience`; again, where a resumed run comes by again."""
        self._view = self._view or weights_view(learner)
        with learner.method.views()[self._view]:
            state = {name: t.detach().cpu().clone() for name, t in tensors(learner.model).items()}
        marks = {name: fingerprint(t) for name, t in state.items()}
        old = {} if experience == BEFORE else self.header(experience - 1)["fingerprints"]
        changed = {name: t.contiguous() for name, t in state.items() if old.get(name) != marks[name]}
        levels = assign(learner.optimizer.levels, learner.model)
        header = {
            "format": 1, "view": self._view, "levels": levels, "updates": learner.optimizer.updates,
            "fingerprints": marks,
        }  # fmt: skip
        self.folder.mkdir(exist_ok=True)
        write_atomic(self.file(experience), save(changed, {"nested": json.dumps(header)}))
        self._headers[experience] = json.loads(json.dumps(header))

    # -- reading -------------------------------------------------------------------------------------------------------

    def header(self, experience: int) -> dict[str, Any]:
        """View, levels {name: parameters}, updates of each so far, fingerprints. Raises NestedError."""
        if experience not in self._headers:
            with self._opened(experience) as file:
                self._headers[experience] = json.loads(file.metadata()["nested"])
        return self._headers[experience]

    def state(self, experience: int) -> State:
        """Every tensor as it was, bit for bit. Raises NestedError where a file is missing or damaged."""
        wanted = dict(self.header(experience)["fingerprints"])
        state: State = {}
        for i in range(experience, BEFORE - 1, -1):
            with self._opened(i) as file:
                for name in set(file.keys()) & set(wanted):
                    state[name] = file.get_tensor(name)
                    if fingerprint(state[name]) != wanted.pop(name):
                        raise NestedError(f"{self.file(i)} is damaged: {name!r} is not what was written")
        if wanted:
            raise NestedError(f"{self.folder} has no {next(iter(wanted))!r}; train the run again")
        return state

    @contextmanager
    def _opened(self, experience: int) -> Iterator[Any]:
        path = self.file(experience)
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except FileNotFoundError:
            raise NestedError(f"{path} is missing; train the run again") from None
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise NestedError(f"{path} is damaged: {error}; train the run again") from None

    @property
    def last(self) -> int:
        """The last experience that has one."""
        return max((int(f.stem[4:]) for f in self._files if f.stem.startswith("exp-")), default=BEFORE)


def tensors(model: nn.Module) -> State:
    """Parameters, a shared one once, and the buffers that a checkpoint has."""
    own = dict(model.named_parameters())
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {n: t for n, t in model.state_dict().items() if n not in aliases and isinstance(t, Tensor)}
    return {**own, **buffers}


@torch.no_grad()
def put(model: nn.Module, state: State) -> None:
    """Write a state into the model, in place."""
    for name, t in tensors(model).items():
        t.copy_(state[name])


def fingerprint(t: Tensor) -> str:
    """A hash of type, shape and every bit."""
    mark = hashlib.blake2b(f"{t.dtype} {tuple(t.shape)} ".encode(), digest_size=16)
    mark.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return mark.hexdigest()


def weights_view(learner: Learner) -> str:
    """The first of the method's views that is a set of weights: put into the model, they answer as the view does.

    Raises UserError where there is none.
    """
    names = list(learner.method.views())
    for name in names:
        context = learner.method.views()[name]
        if isinstance(context, nullcontext) or _is_weights(learner, context):
            return name
    text = f"none of the method's views ({', '.join(names)}) is a set of weights; leave it false"
    raise UserError(text, key="evaluate.snapshots", seen=True, allowed=False)


def _is_weights(learner: Learner, context: Any) -> bool:
    model = learner.model

    def held() -> State:
        return {name: t.detach().clone() for name, t in tensors(model).items()}

    x, _, _ = learner.fetch(learner.examples, torch.arange(min(2, len(learner.examples))))
    training, own = model.training, held()
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[learner.where] if learner.where.type == "cuda" else []):
        with context:
            state, wanted = held(), model(x)
        put(model, state)
        same = torch.equal(model(x), wanted)
        put(model, own)
    model.train(training)
    return same


def check_room(config: Config, learner: Learner) -> None:
    """Raise UserError where the snapshots of all seeds may not find room beside the runs."""
    if not config.evaluate.snapshots:
        return
    from nested.housekeeping import size

    states, seeds = len(learner.curriculum) + 1, len(config.seed_list())
    needed = tensor_bytes(tensors(learner.model)) * states * seeds
    free = shutil.disk_usage(standing(Path(config.runs).expanduser())).free
    if needed > free:
        text = (
            f"{states} snapshots of {counted(seeds, 'seed')} may take {size(needed)}, and {size(free)} are free in "
            f"{config.runs}: make room, choose another directory with runs=..., or leave it false"
        )
        raise UserError(text, key="evaluate.snapshots", seen=needed, allowed=free)
