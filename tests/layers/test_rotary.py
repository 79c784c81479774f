"""Rotary positions turn neighbouring pairs, keep lengths, and leave products that depend on distance alone."""

import cmath

import pytest
import torch
from torch import Tensor

from nested.layers.rotary import rotate

THETA = 500.0


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_each_pair_of_neighbours_is_a_complex_number_that_is_turned() -> None:
    x, positions = vectors(2, 3, 2, 6), torch.tensor([0, 1, 7])
    y = rotate(x, positions, THETA)
    for t, position in enumerate(positions.tolist()):
        for i in range(3):
            turn = cmath.exp(1j * position * THETA ** (-2 * i / 6))
            wanted = torch.view_as_complex(x[:, t, :, 2 * i : 2 * i + 2].contiguous()) * turn
            torch.testing.assert_close(torch.view_as_complex(y[:, t, :, 2 * i : 2 * i + 2].contiguous()), wanted)


def test_products_depend_on_distance_alone() -> None:
    q, k = vectors(1, 1, 1, 8), vectors(1, 1, 1, 8)

    def product(i: float, j: float) -> Tensor:
        return (rotate(q, torch.tensor([i]), THETA) * rotate(k, torch.tensor([j]), THETA)).sum()

    for far in (5, 1000, -3, 0.5):
        torch.testing.assert_close(product(3 + far, far), product(3, 0), rtol=0, atol=1e-10)
    assert not torch.isclose(product(4, 0), product(3, 0))


def test_position_zero_changes_nothing_and_lengths_never_change() -> None:
    x = vectors(2, 5, 3, 4)
    y = rotate(x, torch.tensor([0, 1, 2, 3, 10**7]), THETA)
    assert torch.equal(y[:, 0], x[:, 0])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("first", [0, 10**7])
def test_half_precision_is_rounded_once_at_the_end(first: int) -> None:
    x, positions = vectors(1, 4, 2, 6).bfloat16(), torch.arange(first, first + 4)
    y = rotate(x, positions, THETA)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, rotate(x.float(), positions, THETA).bfloat16())
    exact = rotate(x.double(), positions, THETA)
    torch.testing.assert_close(rotate(x.float(), positions, THETA).double(), exact, rtol=1e-6, atol=1e-6)


def test_it_can_be_differentiated_twice() -> None:
    x = vectors(1, 2, 1, 4).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: rotate(x, torch.arange(2), THETA).sin(), x)


@pytest.mark.parametrize("shape, length", [((1, 3, 2, 5), 3), ((1, 3, 2, 4), 1), ((3, 2, 4), 2)])
def test_an_odd_size_and_positions_of_another_length_are_refused(shape: tuple[int, ...], length: int) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        rotate(vectors(*shape), torch.arange(length), THETA)
