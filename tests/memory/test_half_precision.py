"""Half precision: what is multiplied is rounded, what is added up over tokens is not, and pieces stay the whole."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nested.inner import initial_state, read
from nested.levels import Level
from nested.memory.delta import DeltaMemory
from nested.memory.gated_delta_net import GatedDeltaNet
from nested.memory.mamba2 import Mamba2
from nested.memory.self_modifying import SelfModifyingTitans
from nested.models.hope import Hope
from nested.signature import build

CHUNKED = {"chunk": 4, "projection_chunk": 4, "gates": "sigmoid", "alpha_start": 0.7}
EVERY = ("q", "k", "v", "eta", "alpha")
KINDS: dict[str, tuple[type[nn.Module], dict[str, Any], str]] = {  # the last is the op that it calls
    "delta": (DeltaMemory, {"retain": "initial"}, "nested.memory.delta.delta_rule"),
    "delta_stale": (DeltaMemory, {"anchor": 4}, "nested.memory.delta.delta_rule"),
    "gated_delta_net": (GatedDeltaNet, {"key_size": 8}, "nested.memory.gated_delta_net.delta_rule"),
    "mamba2": (Mamba2, {"key_size": 8}, "nested.memory.mamba2.delta_rule"),
    "titans": (SelfModifyingTitans, CHUNKED, "nested_kernels.mlp_memory.chunked.delta_rule"),
    "titans_anchor": (
        SelfModifyingTitans,
        {**CHUNKED, "read": "anchor", "adaptive": EVERY},
        "nested_kernels.mlp_memory.chunked.delta_rule",
    ),
    "titans_mlp": (SelfModifyingTitans, {**CHUNKED, "memory": "mlp"}, "nested.memory.banks.mlp_memory"),
    "titans_mlp_momentum": (
        SelfModifyingTitans,
        {**CHUNKED, "memory": "mlp", "momentum": True, "adaptive": EVERY, "projection_chunk": 8},
        "nested.memory.banks.mlp_memory",
    ),
}
PLAIN: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {  # these call none
    "titans_token_by_token": (SelfModifyingTitans, {"gates": "sigmoid", "alpha_start": 0.7}),
    "titans_momentum": (SelfModifyingTitans, {**CHUNKED, "momentum": True}),
}
PRECISIONS = {  # of the module, of what it multiplies, and of what it adds up
    "autocast": (torch.float32, torch.bfloat16, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16, torch.float32),
    "float32": (torch.float32, torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64, torch.float64),
}
each = pytest.mark.parametrize("name", [*KINDS, *PLAIN])


def memory(name: str, width: int = 32) -> Any:
    torch.manual_seed(0)
    kind, options = (KINDS | PLAIN)[name][:2]
    return kind(**{"width": width, "heads": 2, **options})


def tokens(t: int = 18) -> Tensor:
    return torch.randn(2, t, 32, generator=torch.Generator().manual_seed(1))


def half() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def apart(x: Tensor, y: Tensor) -> float:
    return ((x.double() - y.double()).norm() / y.double().norm()).item()


def tensors(*trees: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]


def changed(m: Any, state: Any) -> Tensor:
    """What reading has made of the initial weights."""
    pairs = zip(tensors(state), tensors(m.initial_state(2)))
    return torch.cat([(after - before).flatten() for after, before in pairs if after.is_floating_point()])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", KINDS)
def test_an_op_is_given_q_k_and_v_as_they_are_projected_and_all_else_wide(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, op = KINDS[name][2].rsplit(".", 1)
    calls, module = [], importlib.import_module(place)
    inner = getattr(module, op)

    def seen(*args: Any, **options: Any) -> Any:
        calls.append((args, options))
        return inner(*args, **options)

    monkeypatch.setattr(module, op, seen)
    dtype, narrow, wide = PRECISIONS[precision]
    m, x = memory(name).to(dtype), tokens().to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        m(x)
    assert calls
    for (*operands, eta, alpha, state), options in calls:
        assert {t.dtype for t in operands if t is not None} == {narrow}
        kept = tensors(eta, alpha, state, options)
        assert len(kept) >= 3
        assert {t.dtype for t in kept} == {wide}


@each
def test_a_prompt_and_then_token_by_token_is_reading_at_once(name: str) -> None:
    m, x = memory(name), tokens()
    with half(), torch.no_grad():
        whole, end = m(x)
        y, state = m(x[:, :9])
        ys = [y]
        for token in x[:, 9:].split(1, 1):
            y, state = m(token, state)
            ys.append(y)
    assert apart(torch.cat(ys, 1), whole) < 2**-8
    assert apart(changed(m, state), changed(m, end)) < 2**-8
    assert {t.dtype for t in tensors(state, end)} <= {torch.float32, torch.int64}


@each
def test_it_says_and_learns_what_it_does_in_float32_to_the_precision_of_bfloat16(name: str) -> None:
    m, x = memory(name), tokens()

    def found(enabled: bool) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y, state = m(x)
        grads = torch.autograd.grad(y.float().sin().sum(), list(m.parameters()))
        return y, changed(m, state), torch.cat([g.flatten() for g in grads])

    for ours, exact, bound in zip(found(True), found(False), (0.015, 0.02, 0.05)):
        assert ours.isfinite().all()
        assert apart(ours, exact) < bound


@pytest.mark.parametrize("name", ["delta", "gated_delta_net", "mamba2", "titans", "titans_mlp_momentum"])
def test_levels_that_learn_while_it_reads_are_differentiated_through_it(name: str) -> None:
    """HOPE under autocast: the inner gradient passes the upper block's memory, the outer one passes that gradient."""
    kind, options, _ = KINDS[name]
    section = {"_target_": f"{kind.__module__}.{kind.__name__}", **options}
    level = Level("reading", params=("blocks.*.continuum.0.*",), period=6, clock="token", eta=0.5)
    torch.manual_seed(0)
    net = Hope(
        (18,), 7, lambda **given: build(section, "model.memory", **given), vocabulary=7, per_position=True,
        token_levels=(level,), width=16, depth=2, heads=2, hidden=16, n_levels=2, inner_loss="task",
    )  # fmt: skip
    x = torch.randint(7, (2, 19))
    held = [p for n, p in net.named_parameters() if ".memory." in n]

    def gradients(mode: Any) -> Tensor:
        loss, _ = read(net, net.levels, initial_state(net, net.levels, 2), x, mode)
        grads = torch.autograd.grad(loss.float().sum(), held)
        return torch.cat([g.flatten() for g in grads])

    exact, first_order = gradients("full"), gradients("first_order")
    with half():
        ours = gradients("full")
        with torch.no_grad():  # the inner gradient is asked for under autocast, and no outer one
            judged, _ = read(net, net.levels, initial_state(net, net.levels, 2), x, "full")
    assert ours.isfinite().all()
    assert apart(ours, exact) < 0.25 * apart(first_order, exact)
    wanted, _ = read(net, net.levels, initial_state(net, net.levels, 2), x, "full")
    torch.testing.assert_close(judged.float(), wanted, rtol=0.02, atol=0.02)
