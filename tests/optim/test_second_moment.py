"""Division by the root of a second moment, where the moment has directions that no gradient ever had."""

import pytest
import torch
from torch.testing import assert_close

from nested.optim import AssociativeAdam, PreconditionedMomentum
from nested.optim.second_moment import divided_by_root, second_moment


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns", "rank"), [(2, 2, 1), (40, 3, 3), (40, 30, 1), (3, 40, 3)])
def test_directions_that_are_zero_to_rounding_are_left_out(dtype, rows, columns, rank):
    """What remains is U V^T of the gradient's own rank, of norm sqrt(rank)."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(s, rank, generator=generator, dtype=dtype) for s in (rows, columns))
    g = left @ right.mT
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    found = divided_by_root(g, second_moment(g, "left"), "left", 1e-8)
    assert_close(found, u[:, :rank] @ v[:rank], rtol=0, atol=1e-3 if dtype is torch.float32 else 1e-6)


def test_nothing_is_divided_where_nothing_was_seen():
    zero = torch.zeros(3, 4)
    assert torch.equal(divided_by_root(zero, torch.zeros(3, 3), "left", 1e-8), zero)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: PreconditionedMomentum(p, 0.1, momentum=0.0, precondition="left"),
        lambda p: AssociativeAdam(p, 0.1, form="left", momentum=False),
    ],
)
def test_steps_of_a_tall_float32_matrix_stay_of_unit_size(make):
    """Ten columns in forty rows: the moment has rank ten at first."""
    p, generator = torch.zeros(40, 10, requires_grad=True), torch.Generator().manual_seed(0)
    optimizer = make([p])
    for _ in range(8):
        before = p.detach().clone()
        p.grad = torch.randn(40, 10, generator=generator)
        optimizer.step()
        values = torch.linalg.svdvals((p.detach() - before) / 0.1)
        assert 0.3 < values.min() <= values.max() < 10
