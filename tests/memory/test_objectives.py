"""The bounds of eta / alpha: the recurrence contracts at them and not beyond, and who asks for more is told why."""

import itertools
import math
from typing import Any

import pytest
import torch
from nested_kernels.delta_rule import terms

from nested.errors import UserError
from nested.memory.objectives import bound, check_rate, erase

Table = [  # objective, rule, eigenvalue's slope, bound for fixed values, bound for self-generated unit values
    ("l2", "dgd", 2, 1, 2 / 3),
    ("dot", "dgd", 1, 2, 1),
    ("l2_doubled", "dgd", 3, 2 / 3, 2 / 5),
    ("l2", "gd", 1, 2, 1),
    ("l2_doubled", "gd", 2, 1, 1 / 2),
]
Cases = list(itertools.product([row[:2] for row in Table], ["fixed", "self"], [1, 2, 5, 16], [False, True]))


@pytest.mark.parametrize(("objective", "rule", "slope", "fixed", "own"), Table)
def test_the_table(objective: Any, rule: Any, slope: float, fixed: float, own: float) -> None:
    assert erase(objective, rule) == slope
    assert bound(objective, rule) == fixed
    assert bound(objective, rule, "self") == own
    assert bound(objective, rule, monotone=True) == fixed / 2
    assert bound(objective, rule, "self", monotone=True) == own / 2


def factors(objective: Any, rule: Any, values: str, anchor: int, g: float) -> list[float]:
    """What a chunk with one unit key k leaves of M k at alpha 1, with M v = <v, k> M k for <v, k> of -1, 0 and 1."""
    of, found = terms(objective, rule), []
    for along in (-1.0, 0.0, 1.0) if values == "self" else (0.0,):
        held = 1.0
        for _ in range(anchor):
            held = held - g * (of.erase * held + of.fit - of.value * along)
        found.append(held)
    return found


@pytest.mark.parametrize(("of", "values", "anchor", "monotone"), Cases)
def test_the_bound_is_the_largest_rate_without_growth_or_change_of_sign(of, values, anchor, monotone) -> None:
    least = 0.0 if monotone else -1.0
    g = bound(*of, values, anchor=anchor, monotone=monotone)
    for share in (0.05, 0.5, 0.9, 1.0):
        assert all(least - 1e-9 <= f <= 1 + 1e-9 for f in factors(*of, values, anchor, share * g))
    beyond = factors(*of, values, anchor, 1.3 * g)
    loose = g == 1 and of[1] == "dgd" and anchor % 2 == 0  # above 1, (1 - g)^C is positive where C is even
    assert loose or not all(least <= f <= 1 for f in beyond)


def test_products_of_many_contracting_writes_stay_bounded_with_fixed_values() -> None:
    generator = torch.Generator().manual_seed(0)
    for objective, rule, slope, g, _ in Table:
        M = torch.eye(6, dtype=torch.float64)
        for _ in range(500):
            k = torch.nn.functional.normalize(torch.randn(6, generator=generator, dtype=torch.float64), dim=0)
            M = M - g * slope * torch.outer(M @ k, k)
            assert torch.linalg.matrix_norm(M, 2) <= 1 + 1e-9, (objective, rule)


def test_what_erases_nothing_has_no_bound_or_is_refused() -> None:
    assert bound("dot", "gd") == math.inf
    assert bound("dot", "gd", anchor=8) == math.inf
    check_rate(1.0, "dot", "gd")
    with pytest.raises(UserError, match=r"no stable rate for self-generated values.*choose rule 'dgd'"):
        bound("dot", "gd", "self")


@pytest.mark.parametrize("wrong", [1.01, 0.0, -1.0, math.nan, math.inf])
def test_a_rate_beyond_its_bound_is_named_with_the_bound_and_why(wrong: float) -> None:
    check_rate(1.0, "l2")
    with pytest.raises(UserError) as caught:
        check_rate(wrong, "l2")
    assert (caught.value.key, caught.value.allowed) == ("model.eta_max", "(0, 1]")
    for word in (f"{wrong:g} is not allowed", "at most 1", "'l2'", "'dgd'", "does not grow"):
        assert word in str(caught.value)
    with pytest.raises(UserError, match=r"keeps its sign along a key that is repeated over chunks of 4 tokens"):
        check_rate(wrong, "l2", monotone=True, anchor=4)
