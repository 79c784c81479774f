"""One layer of a memory: tokens at once, in pieces where there are many, give what they give one after the other."""

import itertools

import pytest
import torch
from nested_kernels.mlp_memory.chunked import LONG, Steps, advance
from nested_kernels.mlp_memory.rule import Read
from torch import Tensor
from torch.testing import assert_close

Found = list[Tensor | None]


def drawn(tokens: int) -> tuple[Steps, list[Tensor]]:
    """Steps with unit keys, and the layer (Y, O, I), what it decays towards and its momentum; all leaves."""
    g = torch.Generator().manual_seed(tokens)

    def leaf(x: Tensor) -> Tensor:
        return x.requires_grad_()

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=g, dtype=torch.float64)

    def rate(least: float) -> Tensor:
        return least + (1 - least) * torch.rand(2, tokens, 1, generator=g, dtype=torch.float64)

    key, query = (torch.nn.functional.normalize(normal(tokens, 3), dim=-1) for _ in range(2))
    rates = [rate(least) for least in (0.0, 0.9, 0.0)]  # eta, alpha, beta
    steps = Steps(*(leaf(x) for x in (key, normal(tokens, 4), *rates, query)))
    return steps, [leaf(normal(4, 3)) for _ in range(3)]


def at_once(steps: Steps, erase: float, held: tuple[Tensor, Tensor | None, Tensor | None], read: Read) -> Found:
    return list(advance(steps, erase, *held, read))


def one_by_one(steps: Steps, erase: float, held: tuple[Tensor, Tensor | None, Tensor | None], read: Read) -> Found:
    weight, initial, momentum = held
    reads = []
    for t in range(steps.key.shape[1]):
        token = Steps._make(None if x is None else x[:, t : t + 1] for x in steps)
        asked, weight, momentum = advance(token, erase, weight, initial, momentum, read)
        assert asked is not None
        reads.append(asked)
    return [torch.cat(reads, 1), weight, momentum]


@pytest.mark.parametrize("tokens", [2, 7, LONG + 1, 2 * LONG + 5])
@pytest.mark.parametrize("read", ["cumulative", "after"])
@pytest.mark.parametrize("erase", [0.0, 1.0])
def test_many_tokens_are_what_they_are_one_by_one_with_every_gradient(erase: float, read: Read, tokens: int) -> None:
    for retain, gather in itertools.product((False, True), repeat=2):
        steps, (weight, initial, momentum) = drawn(tokens)
        steps = steps if gather else steps._replace(beta=None)
        held = weight, initial if retain else None, momentum if gather else None
        leaves = [x for x in (*steps, *held) if x is not None]
        results = []
        for way in (at_once, one_by_one):
            found = [x for x in way(steps, erase, held, read) if x is not None]
            grads = torch.autograd.grad(torch.stack([x.square().sum() for x in found]).sum(), leaves)
            results.append([*found, *grads])
        assert len(results[0]) == 2 + gather + len(leaves)
        for a, b in zip(*results):
            assert_close(a, b, rtol=1e-9, atol=1e-9)
