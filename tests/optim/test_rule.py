"""What every rule that keeps a wide state shares: groups, weight decay, precision, and what it refuses."""

import pytest
import torch

from nested.errors import UserError
from nested.optim import AssociativeAdam, DeepMomentum, DeltaMomentum, PreconditionedMomentum

rules = pytest.mark.parametrize("rule", [AssociativeAdam, DeepMomentum, DeltaMomentum, PreconditionedMomentum])


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(s).to(dtype).requires_grad_() for s in [(), (3,), (3, 5), (2, 3, 2, 2)]]


def run(params: list[torch.Tensor], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape).to(p.dtype)
        optimizer.step()


@rules
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_state_is_at_least_float32_and_comes_back_to_the_last_bit(rule, dtype, tmp_path):
    straight, halved = parameters(dtype), parameters(dtype)
    run(straight, rule(straight, 0.01), range(6))
    first = rule(halved, 0.01)
    run(halved, first, range(3))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = rule(halved, 0.7, weight_decay=0.5)  # everything about the rule comes from the state
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(halved, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight, halved, strict=True))
    kept = [v for state in second.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    assert {v.dtype for v in kept} == {torch.promote_types(dtype, torch.float32)}


@rules
def test_loading_a_state_shares_no_memory_with_it(rule):
    params = parameters()
    first, second = rule(params, 0.1), rule(params, 0.1)
    run(params, first, range(2))
    state = first.state_dict()
    second.load_state_dict(state)
    before = [v.clone() for s in state["state"].values() for v in s.values() if isinstance(v, torch.Tensor)]
    run(params, second, range(2))
    after = [v for s in state["state"].values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@rules
def test_weight_decay_adds_to_the_gradient(rule):
    decayed, by_hand = parameters(torch.float64), parameters(torch.float64)
    first, second = rule(decayed, 0.01, weight_decay=0.3), rule(by_hand, 0.01)
    for step in range(4):
        torch.manual_seed(step)
        for p, q in zip(decayed, by_hand):
            p.grad = torch.randn_like(p)
            q.grad = p.grad + 0.3 * q.detach()
        first.step()
        second.step()
    torch.testing.assert_close(decayed, by_hand, rtol=0, atol=1e-14)


@rules
def test_groups_keep_their_own_rates(rule):
    together, apart = parameters(), parameters()
    one = rule([{"params": together[:2], "lr": 0.2}, {"params": together[2:]}], lr=0.01)
    run(together, one, range(3))
    first, second = rule(apart[:2], 0.2), rule(apart[2:], 0.01)
    for step in range(3):
        torch.manual_seed(step)
        for p in apart:
            p.grad = torch.randn(p.shape)
        first.step()
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(together, apart))


@rules
def test_zero_gradients_from_the_first_step_on_move_nothing_and_divide_nothing_by_zero(rule):
    p = torch.ones(3, 4, requires_grad=True)
    optimizer = rule([p], 0.1)
    for _ in range(3):
        p.grad = torch.zeros(3, 4)
        optimizer.step()
    assert torch.equal(p, torch.ones(3, 4))


@rules
def test_sparse_gradients_are_refused(rule):
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match=f"{rule.__name__} needs dense gradients"):
        rule(embedding.parameters(), 0.1).step()


@rules
@pytest.mark.parametrize("values", [{"lr": -1.0}, {"weight_decay": -0.1}, {"lr": "fast"}])
def test_values_are_checked_in_every_group(rule, values):
    a, b = parameters()[:2]
    ((name, seen),) = values.items()
    with pytest.raises(UserError, match=f"optim.{name}: {seen!r} is not allowed") as error:
        rule([{"params": [a]}, {"params": [b], **values}])
    assert error.value.seen == seen
