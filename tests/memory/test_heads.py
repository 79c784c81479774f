"""Associative memories against loops over single samples, closed forms and the problems they solve; all in float64."""

import pytest
import torch
from torch.testing import assert_close

from nested.memory import heads

SEQUENTIAL = ["hebb", "delta", "dgd", "own_class"]
RULES = [*SEQUENTIAL, "class_means", "least_squares"]


def samples(n: int, width: int, outputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys (n, width) of different norms, correlated as features are, and one-hot targets (n, outputs)."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, width, generator=generator, dtype=torch.float64) + 0.7
    y = torch.randint(outputs, (n,), generator=generator)
    return h / width**0.5, torch.nn.functional.one_hot(y, outputs).double()


def start(rule: heads.Rule, width: int, outputs: int) -> heads.State:
    """A memory that is not empty."""
    h, y = samples(5, width, outputs, seed=9)
    return heads.write(rule, heads.empty(rule, width, outputs), h, y, 0.3)


def by_hand(rule: heads.Rule, w: torch.Tensor, h: torch.Tensor, y: torch.Tensor, eta: float) -> torch.Tensor:
    """One sample after another, as the rules are printed."""
    w = w.clone()
    for x, t in zip(h, y):
        if rule == "hebb":
            w = w + eta * torch.outer(t, x)
        elif rule == "delta":
            w = w - eta * torch.outer(w @ x - t, x)
        elif rule == "dgd":
            rate = eta / (1 + eta * x @ x)
            w = w @ (torch.eye(len(x), dtype=w.dtype) - rate * torch.outer(x, x)) - rate * torch.outer(w @ x - t, x)
        else:
            row = int(t.argmax())
            w[row] = w[row] - eta * (w[row] @ x - 1) * x
    return w


def same(a: heads.State, b: heads.State) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert_close(a[name], b[name], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rule", SEQUENTIAL)
@pytest.mark.parametrize(("n", "width", "outputs"), [(1, 1, 1), (7, 3, 2), (61, 13, 5), (200, 8, 3)])
def test_a_batch_is_its_samples_one_after_another(rule, n, width, outputs):
    state = start(rule, width, outputs)
    h, y = samples(n, width, outputs)
    expected = by_hand(rule, state["weight"], h, y, 0.4)
    assert not torch.equal(expected, state["weight"])
    assert_close(heads.write(rule, state, h, y, 0.4)["weight"], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pieces", [[1] * 31, [13, 18], [30, 1]])
def test_what_is_written_does_not_depend_on_how_it_is_split(rule, pieces):
    h, y = samples(31, 6, 4)
    split = start(rule, 6, 4)
    for part in zip(h.split(pieces), y.split(pieces)):
        split = heads.write(rule, split, *part, 0.4)
    same(split, heads.write(rule, start(rule, 6, 4), h, y, 0.4))


@pytest.mark.parametrize("rule", RULES)
def test_a_write_leaves_the_state_it_was_given_alone(rule):
    state = start(rule, 6, 4)
    before = {n: t.clone() for n, t in state.items()}
    heads.write(rule, state, *samples(10, 6, 4), 0.4)
    same(state, before)


def test_a_long_stream_of_unit_keys_stays_exact():
    h, y = samples(2000, 20, 10)
    h = torch.nn.functional.normalize(h, dim=1)
    state = heads.empty("delta", 20, 10)
    expected = by_hand("delta", state["weight"], h, y, 1.9)
    assert_close(heads.write("delta", state, h, y, 1.9)["weight"], expected, rtol=1e-9, atol=1e-10)


def test_dgd_is_the_minimiser_of_its_proximal_problem():
    """Eq. 56: |W h - u|^2 / 2 + |W - W_t|^2 / (2 eta) with u = y - W_t h, for a key whose norm is not 1."""
    (h, y), eta = samples(1, 6, 4), 0.7
    h = 2 * h
    before = start("dgd", 6, 4)["weight"]
    u = y[0] - before @ h[0]
    w = heads.dgd(before, h, y, eta).requires_grad_()
    (0.5 * (w @ h[0] - u).square().sum() + (w - before).square().sum() / (2 * eta)).backward()
    assert w.grad is not None
    assert w.grad.abs().max() < 1e-12
    assert (h[0] @ h[0] - 1).abs() > 0.5


def test_repeated_writes_end_at_the_target_and_for_dgd_at_half_of_it():
    h, y = samples(1, 6, 4)
    ends: dict[heads.Rule, torch.Tensor] = {"delta": y[0], "own_class": y[0], "dgd": y[0] / 2}
    for rule, reached in ends.items():
        state = heads.write(rule, heads.empty(rule, 6, 4), h.expand(300, -1), y.expand(300, -1), 0.5)
        assert_close(state["weight"] @ h[0], reached, rtol=0, atol=1e-10)


def test_own_class_leaves_the_rows_of_other_classes_alone():
    h, y = samples(20, 6, 4)
    y[:] = y.new_tensor([0, 1, 0, 0])
    before = start("own_class", 6, 4)["weight"]
    moved = (heads.own_class(before, h, y, 0.5) != before).any(1)
    assert moved.tolist() == [False, True, False, False]


# -- sums --------------------------------------------------------------------------------------------------------------


def test_least_squares_is_ridge_regression_in_any_order_and_any_batches():
    h, y = samples(300, 17, 5)
    ridge = 0.03
    rows = torch.cat([h, ridge**0.5 * torch.eye(17, dtype=torch.float64)])  # ridge as samples of their own
    expected = torch.linalg.lstsq(rows, torch.cat([y, y.new_zeros(17, 5)])).solution.mT
    for seed, size in ((0, 300), (1, 7), (2, 1)):
        order = torch.randperm(300, generator=torch.Generator().manual_seed(seed))
        state = heads.empty("least_squares", 17, 5)
        for part in order.split(size):
            state = heads.write("least_squares", state, h[part], y[part], 0.5)
        weight, bias = heads.linear("least_squares", state, ridge)
        assert_close(weight, expected, rtol=1e-10, atol=1e-11)
        assert not bias.any()


def test_least_squares_is_what_the_recursion_over_inverses_reaches():
    """P <- P - P h h^T P / (1 + h^T P h), W <- W + (y - W h) (P h)^T."""
    h, y = samples(50, 9, 3)
    p = torch.eye(9, dtype=torch.float64) / 0.5
    w = torch.zeros(3, 9, dtype=torch.float64)
    for x, t in zip(h, y):
        p = p - torch.outer(p @ x, p @ x) / (1 + x @ p @ x)
        w = w + torch.outer(t - w @ x, p @ x)
    state = heads.write("least_squares", heads.empty("least_squares", 9, 3), h, y, 0.5)
    assert_close(heads.linear("least_squares", state, 0.5)[0], w, rtol=1e-10, atol=1e-11)


def test_class_means_rank_the_nearest_mean_first_and_unseen_classes_last():
    h, y = samples(60, 6, 4)
    h, y = h[y[:, 2] == 0], y[y[:, 2] == 0]
    state = heads.write("class_means", heads.empty("class_means", 6, 4), h, y, 0.5)
    weight, bias = heads.linear("class_means", state, 0.0)
    new, _ = samples(40, 6, 4, seed=3)
    seen = [0, 1, 3]
    means = torch.stack([h[y[:, c] == 1].mean(0) for c in seen])
    scores = new @ weight.mT + bias
    assert_close(scores[:, seen].argsort(1), (-torch.cdist(new, means)).argsort(1))
    assert (scores[:, 2] == -torch.inf).all()


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_memory_reads_without_nan(rule):
    weight, bias = heads.linear(rule, heads.empty(rule, 6, 4), 0.01)
    h, _ = samples(5, 6, 4)
    assert not (h @ weight.mT + bias).isnan().any()


# -- keys --------------------------------------------------------------------------------------------------------------


def test_keys_have_norm_one_and_a_constant_and_forget_the_scale_of_features():
    features = torch.randn(20, 7)
    h = heads.keys(features)
    assert h.shape == (20, 8)
    assert h.dtype is torch.float64
    assert_close(h.norm(dim=1), torch.ones(20, dtype=torch.float64))
    assert_close(heads.keys(5 * features.double()), heads.keys(features.double()))
    constant = heads.CONSTANT / (1 + heads.CONSTANT**2) ** 0.5
    assert_close(h[:, -1], torch.full((20,), constant, dtype=torch.float64))
    assert_close(heads.keys(torch.zeros(1, 3))[0], torch.tensor([0.0, 0, 0, 1], dtype=torch.float64))


def test_whitening_gives_unit_covariance():
    h, _ = samples(400, 7, 2)
    h = h @ samples(7, 7, 2, seed=5)[0]  # of very different variances
    assert torch.linalg.cond(h.mT.cov()) > 20
    white = heads.whiten(h, heads.whitening_of(h, floor=0.0))
    assert_close(white.mT.cov(correction=0), torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-8)
    assert_close(white.mean(0), torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-9)


def test_directions_without_variance_stay_small_when_keys_are_whitened():
    h, _ = samples(50, 6, 2)
    h[:, 3] = 0.2
    white = heads.whiten(h, heads.whitening_of(h))
    assert white.isfinite().all()
    assert white.mT.cov(correction=0).diagonal()[3] < 1e-6
    again = heads.keys(torch.randn(4, 5), heads.whitening_of(heads.keys(torch.randn(30, 5))))
    assert_close(again.norm(dim=1), torch.ones(4, dtype=torch.float64))
