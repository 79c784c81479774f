"""What M3 and Muon share: AdamW beside a rule for matrices, in every group and in every copy."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from nested.errors import UserError
from nested.optim import M3, Muon

rules = pytest.mark.parametrize("rule", [M3, Muon])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))


def give_gradients(params, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


def rates(optimizer: torch.optim.Optimizer) -> list[tuple[float, list[int]]]:
    return [(group["lr"], [p.ndim for p in group["params"]]) for group in optimizer.param_groups]


@rules
def test_every_group_becomes_two_with_the_rates_that_it_gives(rule):
    net = network()
    optimizer = rule([{"params": net[0].parameters(), "lr": 0.5}, {"params": net[1].weight, "adamw_lr": 0.3}], lr=0.1)
    optimizer.add_param_group({"params": [net[1].bias], "adamw_lr": 0.2})
    assert rates(optimizer) == [(0.5, [2]), (1e-3, [1]), (0.1, [2]), (0.2, [1])]
    before = [p.detach().clone() for p in net.parameters()]
    give_gradients(net.parameters(), 0)
    optimizer.step()
    assert all(not torch.equal(p, q) for p, q in zip(net.parameters(), before))


@rules
def test_vectors_of_every_group_follow_torchs_adamw(rule):
    net, other = network(), network()
    ours = rule([{"params": net[0].parameters()}, {"params": net[1].parameters(), "weight_decay": 0.1}], adamw_lr=0.01)
    torchs = AdamW([{"params": other[0].bias}, {"params": other[1].bias, "weight_decay": 0.1}], 0.01, weight_decay=0.0)
    for step in range(5):
        give_gradients(net.parameters(), step)
        give_gradients(other.parameters(), step)
        ours.step()
        torchs.step()
    assert all(torch.equal(net.get_parameter(name), other.get_parameter(name)) for name in ("0.bias", "1.bias"))


@rules
def test_named_parameters_keep_their_names(rule):
    optimizer = rule(network().named_parameters())
    names = [group["param_names"] for group in optimizer.param_groups]
    assert names == [["0.weight", "1.weight"], ["0.bias", "1.bias"]]


@rules
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_goes_on_as_the_original_does(rule, how):
    net = network()
    optimizer = rule(net.parameters())
    give_gradients(net.parameters(), 0)
    optimizer.step()
    if how == "deepcopy":
        other = copy.deepcopy(optimizer)
    else:
        file = io.BytesIO()
        torch.save(optimizer, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    ends = []
    for each in (optimizer, other):
        params = [p for group in each.param_groups for p in group["params"]]
        for step in range(1, 4):
            give_gradients(params, step)
            each.step()
        ends.append(params)
    assert all(torch.equal(p, q) and p is not q for p, q in zip(*ends, strict=True))


@rules
@pytest.mark.parametrize("values", [{"lr": -1.0}, {"adamw_lr": -0.1}, {"weight_decay": -0.1}])
def test_values_are_checked_in_every_group(rule, values):
    net = network()
    ((name, seen),) = values.items()
    with pytest.raises(UserError, match=f"optim.{name}: {seen} is not allowed"):
        rule([{"params": net[0].parameters()}, {"params": net[1].parameters(), **values}])


@rules
def test_a_matrix_without_elements_is_left_alone(rule):
    params = [torch.zeros(s, requires_grad=True) for s in [(3, 0), (0, 3)]]
    optimizer = rule(params)
    give_gradients(params, 0)
    optimizer.step()
