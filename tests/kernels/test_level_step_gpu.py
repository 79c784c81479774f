"""The two launches on the device: the rule in float64, the same bits twice, no waiting; and the optimizers."""

from typing import Any

import pytest
import torch
from nested_kernels import LevelRule, level_step, newton_schulz, newton_schulz_each
from nested_kernels.level_step.reference import level_step_reference
from torch import Tensor

from nested.optim import M3, DeltaMomentum, Muon

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

SHAPES = [(1000, 1000), (4097,), (), (3, 5, 7), (1 << 20,), (1,), (777, 333), (0, 4)] + [(64, 64)] * 100
RULES = [
    LevelRule(0.1, 0.9, 0.7, weight_decay=0.1, scale=0.5),
    LevelRule(0.01, 0.8, 0.5, "printed"),
    LevelRule(0.1, 0.9),
]
LEVELS = [i % 3 for i in range(len(SHAPES))]


def draw(dtype: torch.dtype = torch.float32) -> list[list[Any]]:
    """params, grads, momenta, gathered; every fifth does not gather, and every seventh lies at an odd place."""
    g = torch.Generator("cuda").manual_seed(0)

    def tensor(i: int, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
        shift = 1 if i % 7 == 0 else 0
        flat = torch.randn(torch.Size(shape).numel() + shift, generator=g, device="cuda") / 30
        return flat.to(kind)[shift:].view(shape)

    kinds = (dtype, dtype, torch.float32, torch.float32)
    found: list[list[Any]] = [[tensor(i, s, kind) for i, s in enumerate(SHAPES)] for kind in kinds]
    found[3] = [None if i % 5 == 0 else x for i, x in enumerate(found[3])]
    return found


def step(x: list[list[Any]], due: Any, backend: Any = "triton") -> None:
    level_step(*x[:3], RULES, levels=LEVELS, gathered=x[3], due=due, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("due", [[True, True, True], [False, True, False]])
def test_it_is_the_rule_in_float64(dtype: torch.dtype, due: list[bool]) -> None:
    x = draw(dtype)
    exact: Any = [[None if t is None else t.double() for t in ts] for ts in x]
    level_step_reference(*exact, LEVELS, RULES, due)
    step(x, due)
    bounds = (1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps, 0, 1e-5, 1e-5)
    for found, wanted, bound in zip(x, exact, bounds):
        for a, b in zip(found, wanted):
            if b is not None and b.numel():
                assert (a.double() - b).norm() <= bound * b.norm() + 1e-12


def test_auto_is_triton_here_and_gives_the_same_bits_twice() -> None:
    ends = []
    for backend in ("triton", "triton", "auto"):
        x = draw()
        step(x, [True] * 3, backend)
        ends.append([*x[0], *x[2]])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*ends))


def test_the_host_waits_for_nothing() -> None:
    x, due = draw(), torch.tensor([True, False, True], device="cuda")
    step(x, due)  # compiled, and its tables made
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(x, due)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("make", [lambda p: DeltaMomentum(p, 0.01, weight_decay=0.1), lambda p: M3(p, frequency=2),
                                  lambda p: DeltaMomentum(p, 0.01, shape="matrix"), Muon])  # fmt: skip
def test_optimizers_step_as_on_the_processor(make: Any) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        g = torch.Generator().manual_seed(0)
        params = [torch.randn(s, generator=g).to(device).requires_grad_() for s in [(24, 96), (24, 96), (96, 24), (7,)]]
        optimizer = make(params)
        for _ in range(5):
            for p in params:
                p.grad = torch.randn(p.shape, generator=g).to(device)
            optimizer.step()
        ends.append([p.detach().cpu() for p in params])
    for a, b in zip(*ends):
        assert (a - b).norm() < 1e-2 * a.norm()  # bfloat16 in M3 and Muon


def test_newton_schulz_takes_the_gram_form_where_it_is_shorter() -> None:
    wide, square = (torch.randn(s, device="cuda") for s in [(64, 192), (64, 64)])
    assert torch.equal(newton_schulz(wide), newton_schulz(wide, backend="gram"))
    assert torch.equal(newton_schulz(square), newton_schulz(square, backend="reference"))
    gs = [torch.randn(s, device="cuda").bfloat16() for s in [(64, 256), (256, 64), (64, 256), (32, 32)]]
    for g, found in zip(gs, newton_schulz_each(gs)):
        exact = newton_schulz(g.double(), backend="reference")
        assert (found.double() - exact).norm() < 5e-2 * exact.norm()
