import pytest

from nested.errors import UserError
from nested.tuning.objective import BETTER, Unavailable, objective

RUN = {"acc": 0.5, "learning_acc": 0.7, "forgetting": 0.2, "cost": {"flops": 100, "train_seconds": 2.0}}


def test_values_are_means_over_seeds_in_the_order_asked_for():
    sought = objective(["learning_acc", "forgetting", "flops", "seconds"], None, 5, True)
    other = {**RUN, "forgetting": 0.4, "cost": {"flops": 300, "train_seconds": 4.0}}
    assert sought.of_runs([RUN, other]) == pytest.approx([0.7, 0.3, 200, 3.0])
    assert sought.directions == ("maximize", "minimize", "minimize", "minimize")


def test_losses_turn_the_scores_round_and_nothing_else():
    turned = objective(list(BETTER), None, 5, True, lower_is_better=True)
    assert {n for n, d in zip(turned.names, turned.directions) if d != BETTER[n]} == {"acc", "learning_acc"}


def test_a_budget_is_kept_where_the_excess_is_at_most_zero():
    sought = objective("acc", {"flops": 80}, 5, True)
    assert sought.excess([RUN]) == {"flops": pytest.approx(0.25)}
    assert objective("acc", {"flops": 100}, 5, True).excess([RUN]) == {"flops": 0.0}


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_value_that_there_is_not_is_named(value: float | None):
    with pytest.raises(Unavailable, match="acc"):
        objective("acc", None, 5, True).of_runs([RUN, {**RUN, "acc": value}])


@pytest.mark.parametrize(
    "wanted, n, ordered, said",
    [
        ("forgetting", 1, True, "one experience alone"), (["acc", "bwt"], 5, False, "everything is learned at once"),
        ("accuracy", 5, True, "unknown objective"), ([], 5, True, "one or more"),
        (["acc", "acc"], 5, True, "different"),
    ],
)  # fmt: skip
def test_an_objective_that_the_stream_cannot_give_is_refused(wanted, n, ordered, said):
    with pytest.raises(UserError, match=said) as error:
        objective(wanted, None, n, ordered)
    assert error.value.key == "tune.objective"


@pytest.mark.parametrize("bound", [0, -1, "many", True, None])
def test_a_budget_is_a_number_above_zero(bound):
    with pytest.raises(UserError, match="above 0"):
        objective("acc", {"flops": bound}, 5, True)
