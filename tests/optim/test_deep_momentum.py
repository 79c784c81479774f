"""Deep momentum: the linear memory by hand, the network's gradients by differences, and steps that lead downhill."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nested.errors import UserError
from nested.optim import DeepMomentum
from nested.optim.deep_momentum import as_gradient, deep_momentum, gradients, loss, read, start_memory, tokens
from nested.optim.newton_schulz import newton_schulz

Shapes = [(3, 4), (5,), (), (2, 3, 2, 2), (5, 2), (1, 1)]
Memories = ["linear", "mlp"]
Objectives = ["dot", "l2"]
Outputs = ["identity", "unit", "newton_schulz"]


def gradient(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def memory_of(kind: str, n: int = 6, d: int = 3, hidden: int = 4) -> list[Tensor]:
    """A memory that has already learned something."""
    shapes = [w.shape for w in start_memory(n, d, kind, hidden, 0)]
    return [gradient(tuple(s), 7 + i) for i, s in enumerate(shapes)]


@pytest.mark.parametrize("shape", Shapes)
def test_tokens_are_the_larger_side_and_come_back_in_place(shape):
    g = gradient(shape, 0)
    u = tokens(g)
    assert u.shape[0] >= u.shape[1]
    assert u.numel() == g.numel()
    assert torch.equal(as_gradient(u, g), g)


@pytest.mark.parametrize("memory", Memories)
@pytest.mark.parametrize("objective", Objectives)
def test_gradients_by_hand_are_finite_differences_of_the_loss(memory, objective):
    weights, u = memory_of(memory), gradient((6, 3), 1)
    for index, by_hand in enumerate(gradients(weights, u, objective)):
        for position in range(by_hand.numel()):
            values = []
            for sign in (1, -1):
                moved = [w.clone() for w in weights]
                moved[index].view(-1)[position] += sign * 1e-6
                values.append(loss(moved, u, objective).item())
            difference = (values[0] - values[1]) / 2e-6
            assert by_hand.reshape(-1)[position].item() == pytest.approx(difference, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (5,), ()])
@pytest.mark.parametrize("output", ["identity", "newton_schulz"])
def test_linear_dot_memory_is_an_associative_memory_of_gradients_by_hand(shape, output):
    """A <- alpha A - eta mean(u u^T), W <- W + lr |u| A u: Eq. 50, and orthogonalised Eq. 52, token by token."""
    p = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = DeepMomentum([p], 0.3, 0.8, 0.6, "linear", objective="dot", output=output)
    rows, columns = (shape[0], shape[1]) if len(shape) == 2 else (math.prod(shape), 1)
    a, w = None, torch.zeros(rows, columns, dtype=torch.float64)
    for step in range(6):
        p.grad = gradient(shape, step)
        optimizer.step()
        g = p.grad.reshape(rows, columns)
        us = [list(r) for r in (g if rows >= columns else g.mT).tolist()]
        n, d = len(us), len(us[0])
        size = math.sqrt(sum(v * v for u in us for v in u) / n)
        a = a or [[0.0] * d for _ in range(d)]
        a = [[0.8 * a[i][j] - 0.6 * sum(u[i] * u[j] for u in us) / size**2 / n for j in range(d)] for i in range(d)]
        said = torch.tensor([[sum(a[i][j] * u[j] for j in range(d)) for i in range(d)] for u in us]).double()
        said = said if rows >= columns else said.mT
        if output == "newton_schulz":
            said = newton_schulz(said) * math.sqrt(max(1, rows / columns))
        w = w + 0.3 * said
    assert_close(p.detach().reshape(rows, columns), w, rtol=1e-6, atol=1e-6)


def test_without_memory_newton_schulz_has_the_directions_of_muons_first_step():
    """At alpha = 0 the read is -g (g^T g): the singular vectors of g, which orthogonalisation keeps."""
    u, _, v = torch.linalg.svd(gradient((6, 4), 0), full_matrices=False)
    g = u @ torch.diag(torch.tensor([1.5, 1.2, 1.0, 0.7]).double()) @ v
    start = start_memory(6, 4, "linear", 1, 0)[0].double()
    _, step = deep_momentum([start], [None], g, 1.0, 0.0, 1.0, "dot", "newton_schulz")
    values = -u.mT @ step @ v.mT / math.sqrt(6 / 4)
    assert_close(values, torch.diag(values.diag()), rtol=0, atol=1e-12)
    assert 0.6 < values.diag().min() <= values.diag().max() < 1.25


def test_linear_l2_memory_learns_to_say_the_gradient_back():
    """The same gradient over and over: the fixed point of a = alpha a - eta (a + 1) is -eta / (1 - alpha + eta)."""
    g, a = torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1, dtype=torch.float64)
    for _ in range(300):
        (a,), step = deep_momentum([a], [None], g, 1.0, 0.9, 0.5, "l2", "identity")
    assert_close(step, -g * 0.5 / 0.6)


@pytest.mark.parametrize("memory", Memories)
@pytest.mark.parametrize("objective", Objectives)
def test_memory_is_odd_and_learns_the_same_from_gradients_of_any_size(memory, objective):
    weights, g = memory_of(memory, 4, 3), gradient((3, 4), 1)
    assert_close(read(weights, tokens(-g)), -read(weights, tokens(g)))
    rule = (1.0, 0.9, 0.5, objective)
    learned, step = deep_momentum(weights, [None] * len(weights), g, *rule)
    same, longer = deep_momentum(weights, [None] * len(weights), 1000 * g, *rule)
    assert_close(learned, same)
    assert_close(longer, 1000 * step)
    opposite, back = deep_momentum(weights, [None] * len(weights), -g, *rule)
    assert_close(opposite, learned)
    assert_close(back, -step)


@pytest.mark.parametrize("shape", Shapes)
def test_unit_steps_are_as_long_as_the_gradient_times_the_rate(shape):
    p = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    p.grad = gradient(shape, 3)
    DeepMomentum([p], 0.2).step()
    assert_close(p.detach().norm(), 0.2 * p.grad.norm())


@pytest.mark.parametrize("memory", Memories)
@pytest.mark.parametrize("objective", Objectives)
@pytest.mark.parametrize("output", Outputs)
def test_the_first_step_leads_downhill_for_every_shape(memory, objective, output):
    for shape in Shapes:
        p = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        p.grad = gradient(shape, 4)
        DeepMomentum([p], 0.1, memory=memory, objective=objective, output=output).step()
        assert (p.detach() * p.grad).sum() < 0


@pytest.mark.parametrize("memory", Memories)
@pytest.mark.parametrize("objective", Objectives)
@pytest.mark.parametrize("output", Outputs)
def test_descends_a_quadratic_of_every_shape(memory, objective, output):
    goals = [gradient(shape, 5) for shape in Shapes]
    params = [torch.zeros_like(g, requires_grad=True) for g in goals]
    optimizer = DeepMomentum(params, 0.05, memory=memory, objective=objective, output=output)
    for _ in range(60):
        for p, goal in zip(params, goals):
            p.grad = p.detach() - goal
        optimizer.step()
    assert all((p - goal).norm() < 0.6 * goal.norm() for p, goal in zip(params, goals))


def test_the_first_layer_decays_towards_its_start_and_not_to_zero():
    """Printed, alpha scales all parameters: after 300 zero gradients nothing could ever be learned again."""
    p = torch.zeros(4, 3, requires_grad=True)
    optimizer = DeepMomentum([p], 0.1)
    p.grad = gradient((4, 3), 0).float()
    optimizer.step()
    p.grad = torch.zeros(4, 3)
    for _ in range(300):
        optimizer.step()
    state = optimizer.state[p]
    assert_close(state["input_weights"], start_memory(4, 3, "mlp", 32, 0)[1])
    assert state["output_weights"].abs().max() < 1e-6


def test_seed_draws_the_memory_and_nothing_else_is_drawn():
    ends = []
    for seed, elsewhere in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(elsewhere)
        before = torch.get_rng_state()
        p = torch.zeros(4, 3, requires_grad=True)
        optimizer = DeepMomentum([p], 0.1, seed=seed)
        for step in range(4):
            p.grad = gradient((4, 3), step).float()
            optimizer.step()
        assert torch.equal(torch.get_rng_state(), before)
        ends.append(p.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("shape", [(), (7,), (300, 2), (2, 300), (40, 50), (8, 3, 3, 3)])
def test_memory_is_never_larger_than_three_times_its_parameter(shape):
    p = torch.zeros(shape, requires_grad=True)
    p.grad = torch.ones(shape)
    optimizer = DeepMomentum([p], 0.1, hidden=1000)
    optimizer.step()
    assert sum(v.numel() for v in optimizer.state[p].values()) <= 3 * p.numel()


@pytest.mark.parametrize("memory", Memories)
@pytest.mark.parametrize("repeated", [True, False])
def test_inside_the_stable_region_memory_stays_small_and_steps_lead_downhill(memory, repeated):
    p, first = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True), gradient((6, 1), 0) @ gradient((1, 4), 1)
    optimizer = DeepMomentum([p], 0.1, 0.9, 1.85, memory)
    for step in range(400):
        p.grad = first if repeated else gradient((6, 4), step)
        before = p.detach().clone()
        optimizer.step()
        assert ((p.detach() - before) * p.grad).sum() < 0
    assert all(w.abs().max() < 5 for w in optimizer.state[p].values())


def test_outside_the_stable_region_the_linear_memory_overshoots_more_at_every_step():
    ends = {}
    for eta in (1.4, 1.6):
        a = torch.zeros(1, 1, dtype=torch.float64)
        for _ in range(200):
            (a,), _ = deep_momentum([a], [None], torch.ones(3).double(), 1.0, 0.5, eta, "l2", "identity")
        ends[eta] = a.abs().item()
    assert ends[1.4] < 1
    assert ends[1.6] > 1e3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"memory_lr": 0.0}, "memory_lr: 0.0 is not allowed; allowed: float > 0"),
        (
            {"memory_lr": 1.5, "momentum": 0.5},
            r"memory_lr: 1.5 is not allowed .*1 \+ momentum = 1.5",
        ),
        ({"hidden": 0}, "hidden: 0 is not allowed; allowed: int >= 1"),
        ({"objective": "L2"}, "objective: 'L2' is not allowed; allowed: dot | l2"),
        ({"output": "muon"}, "allowed: identity | unit | newton_schulz"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(values, words):
    with pytest.raises(UserError, match=words):
        DeepMomentum([torch.zeros(2, requires_grad=True)], **values)
