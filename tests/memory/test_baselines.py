"""What every baseline memory does: the contract, piece by piece and sequence by sequence, differentiable twice."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from nested.config import compose
from nested.errors import UserError
from nested.inner import Mode
from nested.levels import Level
from nested.memory.contract import ask, check_memory
from nested.memory.gated_delta_net import GatedDeltaNet
from nested.memory.mamba2 import Mamba2
from nested.memory.pruned_attention import HeavyHitterAttention, StreamingAttention
from nested.memory.ttt import TTTMLP, TTTLinear
from nested.models.hope import Hope
from nested.signature import build

KINDS: dict[str, tuple[type[nn.Module], dict[str, int]]] = {
    "mamba2": (Mamba2, {"key_size": 3}),
    "gated_delta_net": (GatedDeltaNet, {"key_size": 3}),
    "ttt_linear": (TTTLinear, {"mini_batch": 3}),
    "ttt_mlp": (TTTMLP, {"mini_batch": 3}),
    "streaming_attention": (StreamingAttention, {"budget": 5, "sinks": 2}),
    "heavy_hitter_attention": (HeavyHitterAttention, {"budget": 5}),
}
each = pytest.mark.parametrize("name", KINDS)


def memory(name: str, width: int = 8) -> Any:
    kind, options = KINDS[name]
    m = kind(width=width, heads=2, **options).double()
    for p in m.parameters():  # away from where nothing depends on it
        nn.init.normal_(p, p.mean().item(), 0.3)
    return m


def tokens(t: int = 11, b: int = 2, width: int = 8) -> Tensor:
    return torch.randn(b, t, width, dtype=torch.float64)


def same_state(a: Any, b: Any) -> None:
    for ours, theirs in zip(tree_leaves(a), tree_leaves(b), strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-12)


@each
def test_it_keeps_to_the_contract(name: str) -> None:
    m, x = memory(name), tokens()
    check_memory(m)
    y, state = ask(m, x, m.initial_state(2))
    assert_close(y, m(x)[0], rtol=0, atol=0)
    assert all(isinstance(leaf, Tensor) for leaf in tree_leaves(state))  # what can be saved, forked and rolled back


@each
def test_pieces_are_the_whole_at_every_split_and_token_by_token(name: str) -> None:
    m, x = memory(name), tokens()
    y, end = m(x)
    for split in range(1, 11):
        first, state = m(x[:, :split])
        second, state = m(x[:, split:], state)
        assert_close(torch.cat([first, second], 1), y, rtol=0, atol=1e-12)
        same_state(state, end)
    state, ys = m.initial_state(2), []
    for x_t in x.split(1, 1):
        y_t, state = m(x_t, state)
        ys.append(y_t)
    assert_close(torch.cat(ys, 1), y, rtol=0, atol=1e-12)
    same_state(state, end)


@each
def test_gradients_through_a_split_are_those_of_the_whole(name: str) -> None:
    m, x = memory(name), tokens().requires_grad_()
    first, state = m(x[:, :7])
    params = [x, *m.parameters()]
    ours = torch.autograd.grad(torch.cat([first, m(x[:, 7:], state)[0]], 1).sin().sum(), params)
    for a, b in zip(ours, torch.autograd.grad(m(x)[0].sin().sum(), params)):
        assert_close(a, b, rtol=0, atol=1e-10)


@each
def test_a_batch_is_its_sequences_and_no_token_sees_a_later_one(name: str) -> None:
    m, x = memory(name), tokens(b=3)
    y, state = m(x)
    leaves, spec = tree_flatten(state)
    for b in range(3):
        alone, end = m(x[b : b + 1])
        assert_close(alone[0], y[b], rtol=0, atol=1e-12)
        same_state(end, tree_unflatten([leaf[b : b + 1] for leaf in leaves], spec))
    later = torch.cat([x[:, :6], tokens(5, b=3)], 1)
    other = m(later)[0]
    assert_close(other[:, :6], y[:, :6], rtol=0, atol=1e-12)
    assert not torch.isclose(other[:, 6:], y[:, 6:]).all(-1).any()


@each
def test_a_state_is_left_as_it_was_and_can_be_gone_on_from_twice(name: str) -> None:
    m, x = memory(name), tokens()
    _, state = m(tokens())
    before = [leaf.clone() for leaf in tree_leaves(state)]
    twice = [m(x, state)[0] for _ in range(2)]
    assert torch.equal(*twice)
    assert all(map(torch.equal, tree_leaves(state), before))
    assert not torch.isclose(twice[0], m(x)[0]).all(-1).any()  # what was read before counts


@each
def test_it_can_be_differentiated_twice_by_tokens_and_parameters(name: str) -> None:
    m, x = memory(name, width=4), tokens(t=7, b=1, width=4).requires_grad_()
    names, params = zip(*((n, p.detach().requires_grad_()) for n, p in m.named_parameters()))

    def answer(x: Tensor, *params: Tensor) -> Tensor:
        return functional_call(m, dict(zip(names, params)), (x,))[0]

    assert torch.autograd.gradgradcheck(answer, (x, *params), fast_mode=True, atol=1e-4)


@each
def test_its_state_is_float32_under_half_precision(name: str) -> None:
    m, x = memory(name).float(), tokens().float()
    wanted = m(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, state = m(x)
        first, before = m(x[:, :4])
        second, after = m(x[:, 4:], before)
    assert_close(y.float(), wanted, rtol=0.1, atol=0.1)
    assert_close(torch.cat([first, second], 1), y, rtol=0.1, atol=0.1)
    m.bfloat16()
    _, half = m(x.bfloat16(), m(x.bfloat16())[1])
    for leaf in tree_leaves([state, after, half]):
        assert leaf.dtype in (torch.float32, torch.int64)


@each
def test_other_tokens_and_a_state_of_another_batch_or_dtype_are_refused(name: str) -> None:
    m, x = memory(name), tokens()
    for wrong in (tokens()[0], tokens(width=6), tokens(0), tokens(b=0)):
        with pytest.raises(UserError, match=r"\(B, T, 8\) with B and T of at least 1"):
            m(wrong)
    with pytest.raises(UserError, match=r"has shape \(3, .*\(2, 11, 8\) need \(2, .*initial_state\(2\)"):
        m(x, m(tokens(b=3))[1])
    with pytest.raises(UserError, match=r"has dtype torch.float32, .* need torch.float64"):
        m(x, memory(name).float()(x.float())[1])
    leaves, spec = tree_flatten(m(x)[1])
    with pytest.raises(UserError, match=r"has device meta, .* need cpu"):
        m(x, tree_unflatten([leaf.to("meta") for leaf in leaves], spec))


@each
@pytest.mark.parametrize("inner", ["off", "full"])
def test_levels_that_learn_while_reading_pass_it_and_train_all_of_it(name: str, inner: Mode) -> None:
    kind, options = KINDS[name]
    section = {"_target_": f"{kind.__module__}.{kind.__name__}", **options}
    level = Level("reading", params=("blocks.*.continuum.0.*",), period=3, clock="token", eta=0.5)
    sizes = {"sample_shape": (9,), "n_outputs": 5, "vocabulary": 5, "per_position": True}
    chosen = {"_target_": "nested.models.hope.Hope", "memory": section, "width": 8, "heads": 2, "depth": 2, "hidden": 6}
    model: Hope = build({**chosen, "n_levels": 1, "inner": inner}, "model", token_levels=(level,), **sizes)
    y = model.double()(torch.randint(5, (2, 9)))
    grads = torch.autograd.grad(y.sin().sum(), [p for block in model.blocks for p in block.parameters()])
    assert all(g.isfinite().all() for g in grads)
    assert y.shape == (2, 9, 5)


@each
def test_it_is_what_its_name_in_the_catalogue_builds(name: str) -> None:
    section = compose([f"model={name}"]).model["memory"]
    assert type(build(section, "model.memory", width=48, heads=4)) is KINDS[name][0]
