"""Metrics of hand-made matrices, with the answers written out."""

import numpy as np
import pytest
import torch

from nested import metrics
from nested.score_matrix import ScoreMatrix

# rows: after experience 0, 1, 2
R = np.array([[0.9, 0.2, 0.1], [0.5, 0.8, 0.3], [0.6, 0.4, 1.0]])
R0 = np.array([0.1, 0.1, 0.2])
# mean squared errors of the same shape: lower is better
L = np.array([[1.0, 4.0, 5.0], [3.0, 1.0, 4.0], [2.0, 2.0, 1.0]])
L0 = np.array([6.0, 5.0, 6.0])


def test_accuracies() -> None:
    assert metrics.acc(R) == pytest.approx((0.6 + 0.4 + 1.0) / 3)
    assert metrics.learning_acc(R) == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    assert metrics.forgetting(R) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.4)) / 2)
    assert metrics.bwt(R) == pytest.approx(((0.6 - 0.9) + (0.4 - 0.8)) / 2)
    assert metrics.fwt(R, R0) == pytest.approx(((0.2 - 0.1) + (0.3 - 0.2)) / 2)
    assert metrics.gain(R, np.array([0.8, 0.9, 0.9])) == pytest.approx((0.1 - 0.1 + 0.1) / 3)


def test_forgetting_looks_back_to_the_best_row_and_bwt_to_the_diagonal() -> None:
    r = np.array([[0.5, 0.0, 0.0], [0.7, 0.6, 0.0], [0.4, 0.6, 0.9]])
    assert metrics.forgetting(r) == pytest.approx(((0.7 - 0.4) + 0.0) / 2)
    assert metrics.bwt(r) == pytest.approx(((0.4 - 0.5) + 0.0) / 2)


def test_losses_have_the_same_signs_of_meaning() -> None:
    assert metrics.acc(L) == pytest.approx(5 / 3)
    assert metrics.learning_acc(L) == pytest.approx(1.0)
    assert metrics.forgetting(L, True) == pytest.approx(((2 - 1) + (2 - 1)) / 2)  # lost: positive
    assert metrics.bwt(L, True) == pytest.approx(((1 - 2) + (1 - 2)) / 2)  # worse later: negative
    assert metrics.fwt(L, L0, True) == pytest.approx(((5 - 4) + (6 - 4)) / 2)  # better than before training: positive
    assert metrics.gain(L, np.array([2.0, 2.0, 2.0]), True) == pytest.approx(1.0)


def test_one_experience_has_no_forgetting_and_no_transfer() -> None:
    one = np.array([[0.7]])
    assert metrics.summarise(one, np.array([0.1]), False) == {
        "acc": 0.7, "forgetting": None, "bwt": None, "fwt": None, "learning_acc": 0.7,
    }  # fmt: skip


def test_a_joint_fit_has_no_order() -> None:
    values = metrics.summarise(np.tile([0.9, 0.8, 1.0], (3, 1)), R0, False, joint=True)
    assert values["acc"] == pytest.approx(0.9)
    assert values["learning_acc"] == pytest.approx(0.9)
    assert values["forgetting"] is values["bwt"] is values["fwt"] is None


def test_anytime_by_hand() -> None:
    # evaluations: one while learning experience 0, two in experience 1, two in experience 2
    experience = [0, 1, 1, 2, 2]
    scores = np.array([[0.9, 0.1, 0.0], [0.3, 0.5, 0.0], [0.6, 0.8, 0.0], [0.5, 0.2, 0.4], [0.7, 0.6, 0.9]])
    low, worst = metrics.anytime(experience, scores)
    assert low == pytest.approx((0.3 + 0.2) / 2)
    assert worst == pytest.approx(0.9 / 3 + (1 - 1 / 3) * 0.25)


def test_anytime_of_losses_takes_the_largest() -> None:
    low, worst = metrics.anytime([0, 1, 1], np.array([[1.0, 9.0], [5.0, 2.0], [3.0, 1.0]]), lower_is_better=True)
    assert low == pytest.approx(5.0)
    assert worst == pytest.approx(1.0 / 2 + 5.0 / 2)


def test_anytime_in_the_first_experience() -> None:
    assert metrics.anytime([-1, 0], np.array([[0.1, 0.1], [0.8, 0.2]])) == (None, pytest.approx(0.8))


def test_interval_is_students_t() -> None:
    mean, half = metrics.interval([0.7, 0.8, 0.9])
    assert mean == pytest.approx(0.8)
    assert half == pytest.approx(4.302652729911275 * 0.1 / 3**0.5)  # t(0.975, 2 degrees of freedom)
    assert metrics.interval([0.7]) == (0.7, None)
    assert metrics.interval([0.7, None]) == (None, None)


def test_the_matrix_is_exact_and_reduces_by_sums() -> None:
    one, two = ScoreMatrix(2, 2), ScoreMatrix(2, 2)
    one.update(1, 0, 3, 4)
    two.update(1, 0, 4, 5)
    assert all(f is not None and f(torch.tensor([[1, 2], [3, 4]])).tolist() == [4, 6] for f in one._reductions.values())
    one.update(1, 0, 4, 5)  # what the other process counted
    assert one.sums[1, 0].item() == 7
    assert one.sums.dtype is torch.int64
    assert float(one.compute()[1, 0]) == 7 / 9
    assert torch.isnan(one.compute()[0, 0])


def _reduce(rank: int, port: int, out: str) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    matrix = ScoreMatrix(1, 2)
    matrix.update(0, 0, 3 + rank, 5)
    scores = matrix.compute()
    if rank == 0:
        torch.save(scores, out)


def test_two_processes_agree_on_the_sum(tmp_path) -> None:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(_reduce, (port, str(tmp_path / "scores.pt")), nprocs=2)
    assert float(torch.load(tmp_path / "scores.pt")[0, 0]) == 7 / 10
