"""The bounds of eta / alpha: the recurrence contracts at them and not beyond, and who asks for more is told why."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from nested_kernels.delta_rule import delta_rule, terms

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


def factors(objective: Any, rule: Any, values: str, alphas: Sequence[float], g: float) -> list[float]:
    """What a chunk with one unit key k leaves of M k, a token for each alpha, with M v = <v, k> M k for <v, k> of -1,
    0 and 1."""
    of, found = terms(objective, rule), []
    for along in (-1.0, 0.0, 1.0) if values == "self" else (0.0,):
        held = 1.0
        for alpha in alphas:
            held = alpha * (held - g * (of.erase * held + of.fit - of.value * along))
        found.append(held)
    return found


@pytest.mark.parametrize(("of", "values", "anchor", "monotone"), Cases)
def test_the_bound_is_the_largest_rate_without_growth_or_change_of_sign(of, values, anchor, monotone) -> None:
    least = 0.0 if monotone else -1.0
    g = bound(*of, values, anchor=anchor, monotone=monotone)
    for share in (0.05, 0.5, 0.9, 1.0):
        assert all(least - 1e-9 <= f <= 1 + 1e-9 for f in factors(*of, values, [1.0] * anchor, share * g))
    beyond = factors(*of, values, [1.0] * anchor, 1.3 * g)
    loose = g == 1 and of[1] == "dgd" and anchor % 2 == 0  # above 1, (1 - g)^C is positive where C is even
    assert loose or not all(least <= f <= 1 for f in beyond)


@pytest.mark.parametrize(("of", "values", "anchor", "monotone"), Cases)
def test_one_retention_below_one_for_a_whole_chunk_lets_nothing_grow(of, values, anchor, monotone) -> None:
    least = -1.0 if not monotone else 0.0 if anchor == 1 else -0.3  # a stale gradient corrects what is forgotten by now
    g = bound(*of, values, anchor=anchor, monotone=monotone)
    for alpha, share in itertools.product((0.0, 0.3, 0.7, 0.85, 0.9, 0.95, 0.97, 0.99), (0.05, 0.5, 1.0)):
        assert all(least - 1e-9 <= f <= 1 + 1e-9 for f in factors(*of, values, [alpha] * anchor, share * g))


@pytest.mark.parametrize(("of", "worst"), [(row[:2], w) for row, w in zip(Table, (1, 0, 4 / 3, 2, 2))])
def test_a_chunk_that_forgets_first_and_is_corrected_then_may_grow_by_what_is_said(of: Any, worst: float) -> None:
    """The limit of the bound, in the recurrence itself: alpha 0 at the first token of 16, then 1, fixed values."""
    (objective, rule), anchor = of, 16
    s, g = terms(objective, rule).fit, bound(objective, rule, anchor=anchor)
    k = torch.nn.functional.normalize(torch.randn(4, dtype=torch.float64), dim=0).expand(1, 1, anchor, 4)
    alpha = torch.ones(1, 1, anchor, dtype=torch.float64)
    alpha[..., 0] = 0.0
    memory = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    _, state = delta_rule(
        k, k, torch.zeros_like(k), g * alpha, alpha, memory, objective=objective, rule=rule, anchor=anchor
    )
    factor = -s * (1 - (1 - g) ** (anchor - 1)) if rule == "dgd" else -(anchor - 1) * g * s
    torch.testing.assert_close(state.memory @ k[0, 0, 0], factor * (memory @ k[0, 0, 0]))
    assert -worst - 1e-9 <= factor <= 0
    assert (factor < -1) == (s > 1 or rule == "gd")


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
