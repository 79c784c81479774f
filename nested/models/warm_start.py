"""The start from an export's weights: only where they mean what they did there.

A warm start is meant to change how much of the text a token sees (a window, or none; a budget), how many prime MLPs
there are, and all that decides how a model is trained: levels, `inner`, `truncate`, `checkpoint`, `segment`, the
length of a text. Where a token sees further than it did, theta of its rotary positions may rise, as full attention's
does when it is extended ("End-to-End Test-Time Training for Long Context", arXiv 2512.23675): that is remarked, since
the function is another one from the start. Whatever else decides the function must be the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nested.errors import UserError
from nested.memory.window_attention import WindowAttention

if TYPE_CHECKING:
    from nested.models.language import LanguageModel

EMBEDDING, BLOCK = "embedding.weight", "blocks.0.feedforward.mlp.w1.weight"  # in every model of this kind
TOLD = 3  # parameters in a message
SEEN = ("window", "budget", "recent")  # of a mixer: how much of the text a token sees


def load_weights(model: LanguageModel, export: Path) -> list[str]:
    """Start from the weights of an exported language model; prime MLPs that it lacks say nothing at first.

    Their last norm is scaled by 0, and learns first. Returns what to remark. Raises UserError for a folder that holds
    no such weights, for weights of other names or shapes, and where they would make another function.
    """
    from nested.exported import WEIGHTS, read, read_weights

    try:
        found = read(export)
        given, own = read_weights(found.path / WEIGHTS), model.state_dict()
        new = [name for name in own if name not in given and ".prime." not in name]
        odd = [name for name in given if name not in own or given[name].shape != own[name].shape]
        if new or odd:
            raise UserError(f"{export} does not fit: {_difference(given, own, (*odd, *new))}", seen=str(export))
        with torch.random.fork_rng(devices=[]), torch.device("meta"):  # nothing is drawn or kept
            remarks = _checked(export, found.untrained(), model)
    except UserError as error:
        raise error.at("model.warm_start") from None
    model.load_state_dict(given, strict=False)
    if any(given[name].dtype.itemsize > own[name].dtype.itemsize for name in given):
        remarks.append("the warm start is rounded: its weights are float64, and a model is made in float32")
    for name, p in model.named_parameters():
        if name not in given and name.endswith(".prime.post_norm.weight"):
            nn.init.zeros_(p)
    return remarks


# -- sizes -------------------------------------------------------------------------------------------------------------


def _difference(given: Mapping[str, Tensor], own: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """Sizes in which weights differ from the model's own or, where these are equal, parameters of different shapes."""
    if EMBEDDING not in given or BLOCK not in given:
        held = ", ".join(f"{name} {tuple(w.shape)}" for name, w in list(given.items())[:TOLD])
        needed = " and ".join(f"{name} {tuple(own[name].shape)}" for name in (EMBEDDING, BLOCK))
        return f"it holds {held} and so on, and {needed} are needed; take the export of a language model of this kind"
    then, now = _sizes(given), _sizes(own)
    sizes = [f"{name} is {then[name]} there and {now[name]} here" for name in now if then[name] != now[name]]
    shapes = [[tuple(t[name].shape) if name in t else "absent" for t in (given, own)] for name in names[:TOLD]]
    said = sizes or [f"{name} is {a} there and {b} here" for name, (a, b) in zip(names, shapes)]
    return f"{', '.join(said)}; all but prime MLPs must be the same"


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    (vocabulary, width), hidden = weights[EMBEDDING].shape, len(weights[BLOCK])
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    return {"vocabulary": vocabulary, "model.width": width, "model.depth": depth, "model.hidden": hidden}


# -- the function ------------------------------------------------------------------------------------------------------


def _checked(export: Path, then: nn.Module, now: LanguageModel) -> list[str]:
    """What to remark. Raises UserError for what a warm start is not meant to change."""
    remarks = []
    for name, before, after in _changes(then, now):
        said = f"{name} is {before} there and {after} here"
        if not (name.endswith(".theta") and _rises(name, then, now)):
            text = f"{export} is another function: {said}; take the same. A warm start may change how much a token sees"
            text += f" ({', '.join(SEEN)}), and raise theta where that is further than it was"
            raise UserError(text, seen=after, allowed=before)
        mend = f"set it back to {before} unless a longer context is meant"
        remarks.append(f"the warm start begins with another function: {said}; {mend}")
    return remarks[:1]  # of the first block, for all


def _changes(then: nn.Module, now: LanguageModel) -> Iterator[tuple[str, str, str]]:
    """What decides the function of two models with parameters of equal names: its name, and how it is in each."""
    from nested.reading import settings

    if type(then) is not type(now):
        yield "model._target_", type(then).__name__, type(now).__name__
        return
    for name, key in (("tokenizer_mark", "stream.tokenizer"), ("other_every", "model.other_every")):
        before, after = getattr(then, name), getattr(now, name)
        if before != after and (name == "tokenizer_mark" or None not in (before, after)):
            yield key, str(before), str(after)
    before, after = (settings(model) for model in (then, now))
    for name in dict.fromkeys((*before, *after)):
        mixer = name.split(".")[2:3] == ["mixer"]
        if mixer and name.split(".")[3:] not in [[key] for key in SEEN] and before.get(name) != after.get(name):
            yield name, before.get(name, "absent"), after.get(name, "absent")


def _rises(name: str, then: Any, now: Any) -> bool:
    """Whether a theta is higher than it was, and of attention that reaches further."""
    before, after = (model.get_submodule(name.removesuffix(".theta")) for model in (then, now))
    if not isinstance(before, WindowAttention) or not isinstance(after, WindowAttention):
        return False
    return after.theta > before.theta and _reach(after, now.length) > _reach(before, then.length)


def _reach(mixer: WindowAttention, length: int) -> int:
    """Tokens that the last token of a text sees."""
    return length if mixer.window is None else min(mixer.window, length)
