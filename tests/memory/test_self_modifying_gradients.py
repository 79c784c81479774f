"""The outer gradient of self-modifying Titans: exact, through the writes, to the second order."""

import pytest
import torch
from token_loop import token_loop

from nested.memory.self_modifying import SelfModifyingTitans

T = 11  # with chunks of 3 more than three of them
CASES = {
    "token by token": {},
    "chunks of 3": {"chunk": 3, "projection_chunk": 3},
    "two chunk lengths": {"chunk": 2, "projection_chunk": 4, "read": "anchor"},
    "momentum": {"momentum": True, "chunk": 3, "projection_chunk": 3},
    "adaptive q, static k, alpha": {"adaptive": ("q", "v", "eta"), "chunk": 3, "projection_chunk": 3},
    "static": {"adaptive": (), "chunk": 3, "projection_chunk": 3, "retain": "zero"},
}


def build(memory: str, **options) -> SelfModifyingTitans:
    torch.manual_seed(1)
    hidden = 3 if memory == "mlp" else None
    return SelfModifyingTitans(4, 2, memory=memory, gates="sigmoid", hidden=hidden, **options).double()


def loss(module: SelfModifyingTitans) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    x, scale = torch.randn(2, 2, T, 4, dtype=torch.float64, generator=generator)
    return (module(x)[0] * scale).sum()


def gradients(module: SelfModifyingTitans, value: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict(module.named_parameters())
    return dict(zip(named, torch.autograd.grad(value, list(named.values()), allow_unused=True, materialize_grads=True)))


def finite_differences(module: SelfModifyingTitans, parameter: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    entries = parameter.detach().view(-1)
    slopes = torch.empty_like(entries)
    for i, entry in enumerate(entries.tolist()):
        entries[i] = entry + step
        above = loss(module)
        entries[i] = entry - step
        slopes[i] = (above - loss(module)) / (2 * step)
        entries[i] = entry
    return slopes.view_as(parameter)


@pytest.mark.parametrize(
    ("memory", "case"),
    [
        *(("matrix", case) for case in CASES),
        *(("mlp", case) for case in CASES if case not in ("static", "two chunk lengths")),
    ],
)
@torch.no_grad()
def test_the_gradient_of_every_initial_state_and_projection_is_that_of_finite_differences(memory, case):
    module = build(memory, **CASES[case])
    with torch.enable_grad():
        exact = gradients(module, loss(module))
    for name, parameter in module.named_parameters():
        numeric = finite_differences(module, parameter)
        assert (exact[name] - numeric).norm() <= 1e-5 * numeric.norm(), name
        assert numeric.norm() > 1e-4, name  # nothing is outside the loss's reach


@pytest.mark.parametrize("memory", ["matrix", "mlp"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_the_gradient_goes_through_the_writes(memory, chunk):
    """It differs by more than 1 percent from the first-order one (writes detached) and from that without writes."""
    module = build(memory, chunk=chunk, projection_chunk=chunk)
    still = build(memory, chunk=chunk, projection_chunk=chunk, eta_max=0.0)
    generator = torch.Generator().manual_seed(2)
    x, scale = torch.randn(2, 2, T, 4, dtype=torch.float64, generator=generator)
    options = {
        "heads": 2, "memory": memory, "objective": "l2", "rule": "dgd", "adaptive": ("k", "v", "eta", "alpha"),
        "chunk": chunk, "projection_chunk": chunk, "read": "cumulative", "retain": "initial", "gates": "sigmoid",
        "alpha": "gate", "momentum": False, "erase": None,
    }  # fmt: skip
    first_order = token_loop(module, x, detach_writes=True, **options)[0]
    exact, detached = gradients(module, loss(module)), gradients(module, (first_order * scale).sum())
    for name, without in gradients(still, loss(still)).items():
        assert (exact[name] - without).norm() > 0.01 * exact[name].norm(), name
        if name not in ("static.q.weight", "output.weight"):  # these only read: nothing of theirs is written
            assert (exact[name] - detached[name]).norm() > 0.01 * exact[name].norm(), name


@pytest.mark.parametrize(
    "options", [{}, {"chunk": 2, "projection_chunk": 2}, {"memory": "mlp", "momentum": True}], ids=str
)
def test_it_can_be_differentiated_twice(options):
    module = build(**{"memory": "matrix", **options})
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: module(x)[0].sum(), x)
