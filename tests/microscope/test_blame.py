"""On models built by hand the blame is where it was put."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gates import gates, keep, made
from small_run import small_learner

from nested.config import compose
from nested.errors import NestedError
from nested.microscope.blame import MASK, OUTSIDE, Bench, blame
from nested.run import prepare
from nested.streams.arrange import by_task
from nested.streams.stream import Source

OFF, ON = dict.fromkeys("abc", False), dict.fromkeys("abc", True)


def bench(path: Path, rule: str, *states: dict[str, bool], names: str = "abc") -> Bench:
    """Three experiences; the states before them and after each."""
    learner = made(path, names, rule)
    n = len(learner.stream.experiences[0].validation)
    return Bench(learner, keep(learner, path, [gates(s) for s in states]), 7, recorded(learner, rule, states, n))


def recorded(learner, rule: str, states, n: int) -> np.ndarray:
    """(n + 1, n) right answers: everything or nothing."""
    held = learner.model
    right = []
    for state in states:
        with torch.no_grad():
            for name, on in state.items():
                held.gates[name].fill_(1.0 if on else -1.0)
        right.append(n if held(torch.ones(1, learner.stream.n_outputs))[0, 0] > 0 else 0)
    return np.array([[r] * 3 for r in right], dtype=float)


def test_the_one_level_that_is_overwritten_gets_all_the_blame(tmp_path: Path) -> None:
    rows, found = blame(bench(tmp_path, "all", OFF, ON, ON, {**ON, "b": False}))
    assert rows == [1, 1]  # the last of the best rows
    for what in ("forgot", "backward"):
        assert found[what]["total"] == [1.0, 1.0]
        assert found[what]["shares"] == {"a": [0, 0], "b": [1, 1], "c": [0, 0], OUTSIDE: [0, 0], MASK: [0, 0]}
    assert found["learned"]["total"] == [1.0, 0.0, -1.0]
    third = pytest.approx([1 / 3, 0, 0])
    assert found["learned"]["shares"]["a"] == third
    assert found["learned"]["shares"]["c"] == third
    assert found["learned"]["shares"]["b"] == pytest.approx([1 / 3, 0, -1])
    assert found["drift"] == {"a": [2, 0, 0], "b": [2, 0, 2], "c": [2, 0, 0], OUTSIDE: [0, 0, 0]}


def test_what_two_levels_share_is_split_as_by_hand(tmp_path: Path) -> None:
    _, found = blame(bench(tmp_path, "a and b", OFF, ON, ON, {"a": False, "b": False, "c": False}))
    assert found["forgot"]["shares"]["a"] == found["forgot"]["shares"]["b"] == [0.5, 0.5]
    assert found["forgot"]["shares"]["c"] == [0.0, 0.0]  # it moved, and nothing came of it
    _, found = blame(bench(tmp_path, "a and (b or c)", OFF, ON, ON, OFF))
    for level, share in {"a": 2 / 3, "b": 1 / 6, "c": 1 / 6}.items():
        assert found["forgot"]["shares"][level] == pytest.approx([share, share], abs=1e-15)


def test_the_best_row_may_come_before_an_experience_is_learned(tmp_path: Path) -> None:
    rows, found = blame(bench(tmp_path, "a", OFF, ON, OFF, OFF))
    assert rows == [0, 0]
    assert found["forgot"]["total"] == [1.0, 1.0]
    assert found["backward"]["total"] == [1.0, 0.0]


def test_above_five_levels_each_is_rolled_back_alone_and_all_but_it(tmp_path: Path) -> None:
    off, on = dict.fromkeys("abcdef", False), dict.fromkeys("abcdef", True)
    made_ = bench(tmp_path, "all", off, on, on, off, names="abcdef")
    _, found = blame(made_)
    assert not made_.exact
    assert "shares" not in found["forgot"]
    for level in "abcdef":
        assert found["forgot"]["single"][level] == [0.0, 0.0]  # one gate back on alone restores nothing
        assert found["forgot"]["all_but_one"][level] == [1.0, 1.0]
    assert found["forgot"]["interaction"] == [1.0, 1.0]


def test_a_score_unlike_the_recorded_one_is_an_error(tmp_path: Path) -> None:
    made_ = bench(tmp_path, "all", OFF, ON, ON, OFF)
    assert made_.recorded is not None
    made_.recorded[2, 1] -= 1
    with pytest.raises(NestedError, match=r"experience 1 the score on experience 1 is 1 here and 0\.75 in the"):
        blame(made_)


def test_without_a_recorded_matrix_the_rows_are_judged_here(tmp_path: Path) -> None:
    made_ = bench(tmp_path, "a and b", OFF, ON, ON, OFF)
    known = blame(made_)
    made_.recorded = None
    assert blame(made_) == known


def test_outputs_that_come_to_compete_are_a_player_of_their_own(tmp_path: Path) -> None:
    """No weight changes: with `seen` the last class, which the bias prefers, competes only at the end."""
    learner = made(tmp_path, "abc", "all", "head.mask=seen")
    bias = torch.tensor([0.0, 0, 0, 0, 0, 5])
    held = Bench(learner, keep(learner, tmp_path, [{**gates(ON), "bias": bias}, {}, {}, {}]), 7)
    _, found = blame(held)
    assert found["forgot"]["total"] == [1.0, 1.0]
    assert found["forgot"]["shares"][MASK] == [1.0, 1.0]
    assert not any(any(found["forgot"]["shares"][level]) for level in "abc")


def test_a_buffer_that_changes_is_no_level_and_has_a_share(tmp_path: Path) -> None:
    learner = made(tmp_path, "abc", "all")
    bias = torch.tensor([0.0, 0, 0, 0, 0, 5])
    held = Bench(learner, keep(learner, tmp_path, [gates(ON), {}, {}, {"bias": bias}]), 7)
    _, found = blame(held)
    assert found["forgot"]["shares"][OUTSIDE] == [1.0, 1.0]
    assert found["drift"][OUTSIDE] == [0, 0, 5]


def test_of_a_loss_positive_is_forgetting_and_learning_too(tmp_path: Path) -> None:
    """Two levels add up to the answer 1: squared error 1 before, 0 after the first, (1 - 0.5)^2 at the end."""
    x, y = torch.zeros(60, 2), torch.ones(60, 1)
    source = Source("ones", x, y, task=torch.arange(60) % 2, regression=True)
    stream = by_task(source, n_experiences=2, scenario="domain", validation=0.2, test=0.2, seed=0)
    levels = "levels={a: {params: [a], period_steps: 1}, b: {params: [b], period_steps: 1}}"
    learner = prepare(compose(["stream=split_digits", "model={_target_: gates.Number}", levels]), 0, stream)
    states = [{"a": 0.0, "b": 0.0}, {"a": 0.5, "b": 0.5}, {"b": 0.0}]
    _, found = blame(Bench(learner, keep(learner, tmp_path, states), 7))
    assert found["forgot"]["total"] == pytest.approx([0.25])
    assert found["forgot"]["shares"]["b"] == pytest.approx([0.25])
    assert found["learned"]["total"] == pytest.approx([1.0, -0.25])
    assert found["learned"]["shares"]["a"] == pytest.approx([0.5, 0.0])


def test_only_players_that_differ_are_tried(tmp_path: Path) -> None:
    made_ = bench(tmp_path, "all", OFF, ON, ON, {**ON, "b": False})
    made_.change(2, 1, 0)
    assert made_.evaluations == 2
    made_.change(2, 1, 0)
    assert made_.evaluations == 2


def test_the_learner_of_a_task_stream_has_no_mask_that_changes(tmp_path: Path) -> None:
    learner = small_learner("stream.scenario=task")
    held = Bench(learner, keep(learner, tmp_path, [{} for _ in range(6)]), 99)
    assert blame(held)[1]["learned"]["total"] == [0.0] * 5
