"""The toy problems of Eq. 45 and 53 are what they say."""

import math

import pytest
import torch
from torch.testing import assert_close

from nested.toys import START, orthogonal_tasks, valley


def test_gradients_of_different_tasks_are_orthogonal_and_lie_along_the_inputs():
    tasks = orthogonal_tasks(4, 8, 3, seed=1)
    w = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    gs = [torch.autograd.grad(tasks.loss(w, i), w)[0] for i in range(4)]
    for i, g in enumerate(gs):
        assert g.norm() > 0.1
        assert_close(torch.outer(tasks.inputs[i], tasks.inputs[i] @ g), g)
        for other in gs[:i]:
            assert_close((g.mT @ other).norm().item(), 0.0, rtol=0, atol=1e-12)


def test_a_step_on_one_task_leaves_the_others_as_they_were_and_no_axis_is_special():
    tasks = orthogonal_tasks()
    w = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    before = [tasks.loss(w, i).item() for i in range(4)]
    (g,) = torch.autograd.grad(tasks.loss(w, 0), w)
    after = [tasks.loss(w - 0.5 * g, i).item() for i in range(4)]
    assert after[0] == pytest.approx(0.0, abs=1e-12)
    assert after[1:] == pytest.approx(before[1:])
    assert (tasks.inputs.abs() > 1e-3).all()


def test_more_tasks_than_directions_are_refused():
    with pytest.raises(ValueError, match="9 orthogonal tasks need a width of at least 9; it is 8"):
        orthogonal_tasks(9, 8)


def test_valley_is_equation_53_and_its_minimum_is_the_origin():
    r, theta = START
    expected = r**2 + 3.0 * (r - theta + 0.5 * math.sin(4.0 * r)) ** 2
    assert valley(torch.tensor(START).double(), 3.0, 0.5, 4.0).item() == pytest.approx(expected)
    points = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)).double()
    assert valley(torch.zeros(2)).item() == 0.0
    assert (valley(points) > 0).all()


def test_floor_of_the_valley_is_the_curve_where_only_r_counts():
    r = torch.linspace(-3.5, 0, 20).double()
    floor = torch.stack([r, r + torch.sin(2 * r)], dim=1)
    assert_close(valley(floor), r.square())
    theta = floor[:, 1]
    turns = ((theta[2:] - theta[1:-1]) * (theta[1:-1] - theta[:-2]) < 0).sum()
    assert turns == 2
