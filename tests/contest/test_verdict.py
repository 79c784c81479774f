"""Frontiers, comparisons and their words: by hand, and against scipy."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from nested.config import compose
from nested.contest import wording
from nested.contest.arms import EMA, Arm, with_method
from nested.contest.verdict import Comparison, Curve, compare, compared, forgetting_at, frontier, holm
from nested.metrics import paired_p

NAN = float("nan")


def curve(learning: Any, forgetting: Any) -> Curve:
    """From rows, one for each rate; a row of one number is the same in both of two orders."""
    return Curve(*(np.array([r if isinstance(r, list) else [r, r] for r in v], float) for v in (learning, forgetting)))


# -- frontier ----------------------------------------------------------------------------------------------------------


def test_a_rate_that_another_beats_in_both_is_not_on_the_frontier():
    assert frontier(curve([0.5, 0.7, 0.9, 0.8], [0.1, 0.2, 0.3, 0.4])) == [0, 1, 2]
    assert frontier(curve([0.5, 0.7, 0.9], [0.3, 0.2, 0.1])) == [2]
    assert frontier(curve([0.5, 0.5], [0.1, 0.2])) == [0]
    assert frontier(curve([0.5, 0.5], [0.1, 0.1])) == [0, 1]


def test_a_rate_at_which_an_order_diverged_is_not_on_the_frontier():
    assert frontier(curve([0.5, [0.9, NAN]], [0.1, [0.0, NAN]])) == [0]
    assert frontier(curve([NAN], [NAN])) == []


def test_the_frontier_is_that_of_the_means():
    assert frontier(curve([[0.5, 0.9], [0.8, 0.4]], [[0.2, 0.2], [0.1, 0.1]])) == [0, 1]  # means .7 and .6


def test_forgetting_is_interpolated_between_rates_in_whatever_order_they_are():
    x, y = np.array([0.9, 0.5, 0.7]), np.array([0.4, 0.1, 0.2])
    assert forgetting_at(x, y, 0.6) == pytest.approx(0.15)
    assert forgetting_at(x, y, 0.85) == pytest.approx(0.35)
    assert forgetting_at(x, y, 0.9) == pytest.approx(0.4)
    assert forgetting_at(np.array([0.5, 0.5, 0.7]), np.array([0.1, 0.3, 0.4]), 0.5) == pytest.approx(0.2)


# -- comparison --------------------------------------------------------------------------------------------------------


def test_two_arms_meet_where_the_candidates_own_rate_has_learned():
    """Order 0: at .7 the control forgets (.3 + .5) / 2 = .4, the candidate .2; order 1: at .75 .45 and .1."""
    ours = curve([[0.5, 0.5], [0.7, 0.75], [0.9, 0.9]], [[0.1, 0.05], [0.2, 0.1], [0.4, 0.4]])
    theirs = curve([[0.6, 0.6], [0.8, 0.8]], [[0.3, 0.3], [0.5, 0.5]])
    c = compare(ours, theirs, 1)
    assert c is not None
    assert c.at is not None
    assert c.differences is not None
    assert c.at.tolist() == [0.7, 0.75]
    assert c.differences == pytest.approx([0.2, 0.35])
    assert (c.orders, c.learning, c.difference) == (2, pytest.approx(0.725), pytest.approx(0.275))
    assert c.half == pytest.approx(stats.t.ppf(0.975, 1) * np.std([0.2, 0.35], ddof=1) / np.sqrt(2))
    assert c.p == pytest.approx(stats.ttest_rel([0.4, 0.45], [0.2, 0.1]).pvalue)


def test_beyond_the_controls_frontier_both_are_taken_where_it_ends():
    ours, theirs = curve([0.5, 0.9], [0.1, 0.5]), curve([0.4, 0.7], [0.2, 0.6])
    c = compare(ours, theirs, 1)
    assert c is not None
    assert c.learning == pytest.approx(0.7)
    assert c.difference == pytest.approx(0.6 - 0.3)


def test_orders_that_do_not_meet_are_left_out_while_half_of_them_do():
    ours = curve([[0.5] * 4, [0.7] * 4], [[0.1] * 4, [0.2] * 4])
    theirs = curve([[0.6, 0.6, 0.6, 0.8], [0.9] * 4], [[0.3] * 4, [0.5] * 4])
    c = compare(ours, theirs, 1)
    assert c is not None
    assert c.at is not None
    assert c.orders == 3
    assert np.isnan(c.at[3])


@pytest.mark.parametrize(
    "learning, forgetting, outcome",
    [
        ([0.8, 0.9], [[0.1, 0.101], 0.4], "more"),  # learned more, and forgets .1 less
        ([0.8, 0.9], [[0.1, 0.29], 0.4], "even"),  # learned more, and perhaps forgets less
        ([0.8, 0.9], [[0.3, 0.31], 0.4], "apart"),  # learned more and forgets more
        ([0.8, 0.9], [[0.2, 0.31], 0.4], "even"),  # learned more, and perhaps forgets more
        ([0.1, 0.2], [0.3, [0.3, 0.31]], "less"),
        ([0.1, 0.2], [0.0, [0.05, 0.051]], "apart"),
    ],
)
def test_frontiers_that_do_not_meet_are_compared_at_their_nearest_ends(learning: Any, forgetting: Any, outcome: str):
    """The candidate's: learning .4 and .6, forgetting .1 and .2, a little different in the second order."""
    ours = curve([0.4, 0.6], [[0.1, 0.1001], [0.2, 0.2001]])
    c = compared(ours, {"control": curve(learning, forgetting)}, 0)["control"]
    assert c is not None
    assert not c.meet
    assert abs(c.gap) == pytest.approx(0.2)
    at = forgetting[0] if c.gap > 0 else forgetting[1]
    assert c.difference == pytest.approx(np.mean(at) - (0.20005 if c.gap > 0 else 0.10005))
    assert c.outcome == outcome


def test_there_is_no_comparison_without_a_frontier_or_where_orders_cross():
    ours = curve([0.4, 0.6], [0.1, 0.2])
    assert compare(ours, curve([NAN], [NAN]), 0) is None
    crossed = curve([[0.1, 0.9]], [[0.1, 0.1]])  # its mean lies within, no order does
    assert compare(ours, crossed, 0) is None


def test_what_diverged_at_the_candidates_own_rate_is_compared_at_its_most():
    ours = curve([0.4, 0.6, [NAN, NAN]], [0.1, 0.2, [NAN, NAN]])
    c = compare(ours, curve([0.4, 0.8], [0.2, 0.4]), 2)
    assert c is not None
    assert c.learning == pytest.approx(0.6)


def test_losses_are_compared_with_their_sign_turned():
    ours, theirs = curve([-0.9, -0.5], [0.1, 0.3]), curve([-0.8, -0.6], [0.4, 0.5])
    c = compare(ours, theirs, 1)
    assert c is not None
    assert c.learning == pytest.approx(-0.6)
    assert c.difference == pytest.approx(0.5 - 0.25)


def test_p_is_scipys():
    rng = np.random.default_rng(0)
    for n in (2, 5, 10):
        a, b = rng.normal(size=(2, n))
        assert paired_p(a - b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_p(np.array([0.2, 0.2])) is None
    assert paired_p(np.array([0.1])) is None


def test_equal_in_every_order_is_even_and_as_unequal_in_every_order_is_not():
    ours = curve([0.4, 0.6], [0.1, 0.2])
    same = compared(ours, {"x": ours}, 1)["x"]
    other = compared(ours, {"x": curve([0.4, 0.6], [0.2, 0.3])}, 1)["x"]
    assert same is not None
    assert other is not None
    assert (same.p, same.outcome) == (1.0, "even")
    assert (other.p, other.outcome) == (0.0, "less")


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


# -- words -------------------------------------------------------------------------------------------------------------

CONFIG = compose(["seeds=2"])


def against(title: str, difference: float, p: float, average: bool = False, **more: Any) -> wording.Against:
    config = with_method(CONFIG, EMA) if average else CONFIG
    values = {"orders": 10, "learning": 0.93, "half": 0.02, "holm": p, **more}
    found = Comparison(difference=difference, p=p, **values)
    return wording.Against(Arm(title, title, "", config), found, 1.01)


def test_the_closest_control_is_named_first_where_none_matches():
    said = wording.verdict("HOPE", [against("EMA", 0.04, 0.01, average=True), against("naive", 0.3, 1e-4)], "accuracy")
    assert said[0] == (
        "At equal learning accuracy 0.93 and equal FLOPs, HOPE forgets 0.040 ± 0.020 less than EMA, p = 0.01, "
        "10 orders; it is the closest of 2 controls."
    )
    assert said[1] == "It forgets less than: naive (0.300 ± 0.020 less at 0.93, p < 0.001)."
    assert "Holm for 2 controls" in said[-1]


def test_one_control_is_the_closest_of_nothing():
    first, last = wording.verdict("HOPE", [against("naive", 0.3, 1e-4)], "accuracy")
    assert first.endswith("less than naive, p < 0.001, 10 orders.")
    assert "Holm for 1 control;" in last


def test_a_plain_average_that_matches_is_said_first_even_where_another_control_is_better():
    fights = [
        against("head", -0.5, 1e-6, orders=7),
        against("EMA, period 8", 0.01, 0.4, average=True),
        against("naive", 0.2, 0.0),
    ]
    said = wording.verdict("HOPE", fights, "accuracy")
    assert said[0].startswith(
        "A plain average of weights matches HOPE: at equal learning accuracy 0.93 and equal FLOPs"
    )
    assert said[1] == "It is beaten by: head (0.500 ± 0.020 more at 0.93, p < 0.001, 7 orders)."
    assert said[2].startswith("It forgets less than: naive")
    beaten = wording.verdict("HOPE", [against("EMA, period 8", -0.1, 0.01, average=True)], "accuracy")
    assert beaten[0].startswith("A plain average of weights beats HOPE: ")
    assert "forgets 0.100 ± 0.020 more than EMA, period 8, p = 0.01" in beaten[0]


def test_any_control_that_matches_or_beats_is_said_first():
    said = wording.verdict("HOPE", [against("same drift", 0.001, 0.9), against("replay", -0.4, 0.0)], "accuracy")
    assert said[0].startswith("Replay beats HOPE: ")
    assert said[1].startswith("It is matched by: same drift (0.001")


def test_what_does_not_overlap_is_said_and_other_costs_are_named():
    apart = against("slow learner", 0.2, 0.3, learning=None, gap=-0.25)
    other = wording.Against(against("dear", 0.2, 0.01).arm, against("dear", 0.2, 0.01).found, 1.8)
    none = wording.Against(apart.arm, None, 1.0)
    said = wording.verdict("HOPE", [apart, other, none], "accuracy")
    assert "and 1.8 times its FLOPs, HOPE forgets" in said[0]
    assert said[1] == (
        "At equal learning no comparison, since nothing is extrapolated: it learns more than slow learner, by 0.25 or "
        "more, and forgets 0.200 ± 0.020 less where they are nearest, at equal FLOPs, p = 0.30."
    )
    assert "too few orders" in said[2]
    assert wording.verdict("HOPE", [none], "accuracy")[0] == (
        "No control can be compared with HOPE: none has learned equally well."
    )


def test_a_single_level_few_rates_and_few_orders_are_said():
    assert wording.caveats(5, 10, 3) == []
    said = wording.caveats(2, 3, 1)
    assert said[0].startswith("The candidate has one level: nothing here is about levels")
    assert len(said) == 3
