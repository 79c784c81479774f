"""What Delta Gradient Descent is: the minimum of Eq. 56, on layers that it listens to without being noticed."""

import copy
import io
import itertools
import logging
import weakref

import pytest
import torch
import torch.nn.functional as F
from language_models import reading, small, some
from small_run import begin, equal, small_learner, train, weights, whole
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from nested.errors import UserError
from nested.layers.linear import Linear
from nested.levels import Level
from nested.optim import DeltaGradientDescent
from nested.optim.delta_gradient_descent import chunk_step, per_sample_step
from nested.optim.leveled import leveled

Target = "nested.optim.delta_gradient_descent.DeltaGradientDescent"
Shapes = [(1, 5, 3), (4, 5, 3), (5, 5, 3), (9, 5, 3), (3, 1, 1), (2, 7, 1)]  # N, I, O


def problem(n: int, i: int, o: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """w (O, I), d (N, O) of a mean loss, x (N, I), lengths far from 1."""
    generator = torch.Generator().manual_seed(seed)
    w, d, x = (torch.randn(s, generator=generator, dtype=torch.float64) for s in [(o, i), (n, o), (n, i)])
    return w, d / n, 2 * x


def objective(new: Tensor, w: Tensor, d: Tensor, x: Tensor, lr: float) -> Tensor:
    """Eq. 56, term by term; u is the negative gradient of a sample's own loss."""
    n = len(x)
    terms = [0.5 * (new @ x[i] + n * d[i]).square().sum() for i in range(n)]
    return sum(terms) / n + (new - w).square().sum() / (2 * lr)  # type: ignore[return-value]


def token_loop(w: Tensor, d: Tensor, x: Tensor, lr: float) -> Tensor:
    """Eq. 57 with the exact eta', number by number."""
    n, inputs, outputs = len(x), x.shape[1], d.shape[1]
    rows = w.tolist()
    for key, gradient in zip(x.tolist(), d.tolist()):
        eta = lr / n / (1 + lr / n * sum(k * k for k in key))
        held = [sum(rows[a][b] * key[b] for b in range(inputs)) for a in range(outputs)]
        rows = [
            [rows[a][b] - eta * held[a] * key[b] - eta * n * gradient[a] * key[b] for b in range(inputs)]
            for a in range(outputs)
        ]
    return torch.tensor(rows, dtype=torch.float64)


# -- the rule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "i", "o"), Shapes)
@pytest.mark.parametrize("lr", [0.01, 0.5, 20.0])
def test_chunk_is_the_minimum_of_equation_56(n, i, o, lr):
    w, d, x = problem(n, i, o)
    new = chunk_step(w, d.mT @ x, x, lr).requires_grad_()
    (slope,) = torch.autograd.grad(objective(new, w, d, x, lr), new)
    assert slope.abs().max() < 1e-10 * (1 + d.abs().max() * n)
    lowest = objective(new.detach(), w, d, x, lr)
    for seed in range(5):
        away = 1e-3 * torch.randn(o, i, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert objective(new.detach() + away, w, d, x, lr) > lowest


@pytest.mark.parametrize(("n", "i", "o"), Shapes)
def test_chunk_is_the_closed_form(n, i, o):
    w, d, x = problem(n, i, o)
    u, lr = -n * d, 0.7
    left = w / lr + sum(torch.outer(u[k], x[k]) for k in range(n)) / n
    right = torch.eye(i, dtype=torch.float64) / lr + sum(torch.outer(x[k], x[k]) for k in range(n)) / n
    assert_close(chunk_step(w, d.mT @ x, x, lr), left @ torch.linalg.inv(right), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("n", "i", "o"), [*Shapes, (300, 3, 2)])
@pytest.mark.parametrize("lr", [0.01, 5.0])
def test_per_sample_is_the_token_loop(n, i, o, lr):
    w, d, x = problem(n, i, o)
    assert_close(per_sample_step(w, d, x, lr), token_loop(w, d, x, lr), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [0.5, 1.0, 2.0])
def test_one_sample_is_equation_57_and_its_printed_rate_is_right_at_length_one(length):
    w, d, x = problem(1, 5, 3)
    x, lr = length * F.normalize(x), 0.7
    exact, printed = lr / (1 + lr * length**2), lr / (1 + lr)
    by_hand = {eta: w - eta * torch.outer(w @ x[0], x[0]) - eta * torch.outer(d[0], x[0]) for eta in (exact, printed)}
    assert_close(chunk_step(w, d.mT @ x, x, lr), by_hand[exact])
    assert_close(per_sample_step(w, d, x, lr), by_hand[exact])
    assert torch.allclose(by_hand[exact], by_hand[printed]) == (length == 1.0)


@pytest.mark.parametrize("form", ["chunk", "per_sample"])
def test_a_small_rate_is_gradient_descent_plus_the_mean_erasure(form):
    w, d, x = problem(6, 4, 3)
    lr = 1e-6
    new = chunk_step(w, d.mT @ x, x, lr) if form == "chunk" else per_sample_step(w, d, x, lr)
    assert_close((w - new) / lr, d.mT @ x + w @ (x.mT @ x) / 6, rtol=1e-4, atol=1e-4)


def test_equal_samples_do_what_one_does():
    w, d, x = problem(1, 5, 3)
    many = chunk_step(w, d.mT @ x, x.repeat(50, 1), 0.7)
    assert_close(many, chunk_step(w, d.mT @ x, x, 0.7))


def test_a_huge_rate_stays_finite_and_solves_the_association():
    """W x = u for every sample, where that can be."""
    w, d, x = problem(3, 5, 2)
    new = chunk_step(w, d.mT @ x, x, 1e8)
    assert_close(new @ x.mT, -3 * d.mT, rtol=1e-5, atol=1e-5)


# -- on a network ------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Two linear layers, one of them ours, with a norm between; inputs (B, T, 4), outputs (B, 3)."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(4, 6), nn.LayerNorm(6), Linear(6, 3, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head(self.norm(h).relu().mean(1).unsqueeze(1)).squeeze(1)


def network() -> Network:
    torch.manual_seed(0)
    return Network().double()


def batch(seed: int = 0, n: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 7, 4, generator=generator).double(), torch.randint(3, (n,), generator=generator)


def backward(net: nn.Module, seed: int = 0) -> None:
    x, y = batch(seed)
    F.cross_entropy(net(x), y).backward()


def of(net: nn.Module, **values) -> DeltaGradientDescent:
    return DeltaGradientDescent(net.parameters(), model=net, **{"normalise": False, **values})


def seen(net: Network, seed: int = 0) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Weight, d (N, O) and x (N, I) of both layers, without any hook."""
    inputs, y = batch(seed)
    h = net.first(inputs)
    pooled = net.norm(h).relu().mean(1)
    out = F.linear(pooled, net.head.weight, net.head.bias)
    d_first, d_head = torch.autograd.grad(F.cross_entropy(out, y), (h, out))
    return {
        "first": (net.first.weight.detach().clone(), d_first.reshape(-1, 6), inputs.reshape(-1, 4)),
        "head": (net.head.weight.detach().clone(), d_head, pooled.detach()),
    }


@pytest.mark.parametrize("form", ["chunk", "per_sample"])
@pytest.mark.parametrize("normalise", [False, True])
def test_serves_linear_layers_and_leaves_the_rest_to_gradient_descent(form, normalise):
    net, other = network(), network()
    optimizer = of(net, lr=0.3, form=form, normalise=normalise)
    for seed in range(3):
        expected = {}
        for name, (w, d, x) in seen(other, seed).items():
            lengths = x.norm(dim=1, keepdim=True) if normalise else torch.ones(len(x), 1).double()
            keys, ds = x / lengths.clamp_min(1e-300), d * lengths  # d x^T = ds keys^T
            exact = chunk_step(w, ds.mT @ keys, keys, 0.3) if form == "chunk" else token_loop(w, ds, keys, 0.3)
            expected[name] = exact
        backward(other, seed)
        with torch.no_grad():
            for p in other.parameters():
                p.sub_(0.3 * p.grad)  # type: ignore[arg-type]
            for name, w in expected.items():
                other.get_submodule(name).weight.copy_(w)  # type: ignore[union-attr]
        optimizer.zero_grad()
        other.zero_grad()
        backward(net, seed)
        optimizer.step()
    assert_close(list(net.parameters()), list(other.parameters()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["chunk", "per_sample"])
def test_normalised_inputs_give_equation_57_as_printed(form):
    layer = nn.Linear(4, 3, bias=False).double()
    w, x = layer.weight.detach().clone(), 3 * torch.randn(1, 4).double()
    d, unit, eta = 2 * (w @ x[0]), x[0] / x[0].norm(), 0.7 / 1.7
    optimizer = of(layer, lr=0.7, form=form, normalise=True)
    layer.zero_grad()
    layer(x).square().sum().backward()
    optimizer.step()
    expected = w - eta * torch.outer(w @ unit, unit) - eta * torch.outer(d, x[0])
    assert_close(layer.weight.detach(), expected)


@pytest.mark.parametrize("form", ["chunk", "per_sample"])
def test_a_penalty_in_the_gradient_counts(form):
    """A penalty's gradient is in no sample: in the chunk form it is part of G, in the other it is descended plainly."""
    net = network()
    optimizer = of(net, lr=0.3, form=form)
    w, d, x = seen(net)["head"]
    inputs, y = batch()
    (F.cross_entropy(net(inputs), y) + net.head.weight.square().sum()).backward()
    optimizer.step()
    exact = chunk_step(w, d.mT @ x + 2 * w, x, 0.3) if form == "chunk" else token_loop(w, d, x, 0.3) - 0.3 * 2 * w
    assert_close(net.head.weight.detach(), exact)


@pytest.mark.parametrize("form", ["chunk", "per_sample"])
def test_a_layer_called_twice_has_the_inputs_of_both_calls(form):
    layer = nn.Linear(4, 4, bias=False).double()
    optimizer = of(layer, lr=0.3, form=form)
    w, x = layer.weight.detach().clone(), batch()[0][0]
    once = layer(x)
    twice = layer(once.relu())
    (twice.square().sum() + once.sum()).backward()
    d_twice = 2 * twice.detach()
    d_once = (d_twice @ w) * (once.detach() > 0) + 1
    xs, ds = torch.cat([once.detach().relu(), x]), torch.cat([d_twice, d_once])  # in the order of the backward pass
    optimizer.step()
    expected = chunk_step(w, ds.mT @ xs, xs, 0.3) if form == "chunk" else token_loop(w, ds, xs, 0.3)
    assert_close(layer.weight.detach(), expected)


def test_float32_and_bfloat16_follow_float64():
    nets = {t: network().to(t) for t in (torch.float64, torch.float32, torch.bfloat16)}
    for dtype, net in nets.items():
        optimizer = of(net)
        x, y = batch()
        F.cross_entropy(net(x.to(dtype)), y).backward()
        optimizer.step()
    exact, single, half = ([p.detach().double() for p in net.parameters()] for net in nets.values())
    assert_close(single, exact, rtol=1e-4, atol=1e-5)
    assert_close(half, exact, rtol=0.05, atol=0.02)


# -- what it cannot serve ----------------------------------------------------------------------------------------------


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.conv = nn.Embedding(5, 4), nn.Conv1d(4, 4, 1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.position, self.norm, self.frozen = nn.Parameter(torch.ones(4)), nn.LayerNorm(4), nn.Linear(4, 4)
        self.frozen.weight.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.conv(self.embedding(tokens).mT).mT + self.position
        return self.frozen(self.two(self.one(self.norm(self.attention(x, x, x)[0]))))


def test_what_it_cannot_serve_is_named_and_learns_by_gradient_descent(caplog):
    net = Odd()
    with caplog.at_level(logging.WARNING):
        optimizer = of(net, lr=0.1)
        of(net, lr=0.1)
    assert optimizer.fallback == {
        "embedding.weight": "Embedding is no linear layer",
        "conv.weight": "Conv1d is no linear layer",
        "conv.bias": "Conv1d is no linear layer",
        "attention.in_proj_weight": "MultiheadAttention is no linear layer",
        "attention.in_proj_bias": "MultiheadAttention is no linear layer",
        "attention.out_proj.weight": "NonDynamicallyQuantizableLinear is no linear layer",
        "attention.out_proj.bias": "NonDynamicallyQuantizableLinear is no linear layer",
        "one.weight": "it is shared by one and two",
        "one.bias": "it is a bias",
        "two.bias": "it is a bias",
        "position": "Odd is no linear layer",
        "norm.weight": "LayerNorm is no linear layer",
        "norm.bias": "LayerNorm is no linear layer",
        "frozen.weight": "it is frozen",
        "frozen.bias": "it is a bias",
    }
    (said,) = caplog.messages  # once
    assert "one.bias, two.bias, frozen.bias (it is a bias)" in said
    expected = {n: p.detach().clone() for n, p in net.named_parameters()}
    net(torch.tensor([[0, 1, 2]])).square().sum().backward()
    optimizer.step()
    for name, p in net.named_parameters():
        assert_close(p.detach(), expected[name] if p.grad is None else expected[name] - 0.1 * p.grad)


def test_without_a_model_it_refuses():
    with pytest.raises(UserError, match="give it model="):
        DeltaGradientDescent(network().parameters())


@pytest.mark.parametrize("values", [{"lr": -1.0}, {"form": "batch"}])
def test_wrong_values_are_refused(values):
    ((name, seen),) = values.items()
    with pytest.raises(UserError, match=f"optim.{name}: {seen!r} is not allowed"):
        of(network(), **values)


@pytest.mark.parametrize("form", ["chunk", "per_sample"])
def test_a_batch_of_no_samples_moves_nothing(form):
    net = network()
    optimizer, before = of(net, form=form), [p.detach().clone() for p in net.parameters()]
    net(batch()[0][:0]).sum().backward()
    optimizer.step()
    assert_close([p.detach() for p in net.parameters()], before, rtol=0, atol=1e-15)


def test_a_parameter_of_another_model_is_named():
    net, stranger = network(), nn.Linear(2, 2)
    assert DeltaGradientDescent(stranger.parameters(), model=net).fallback == {
        "parameter 6": "it is in no layer of the model",
        "parameter 7": "it is in no layer of the model",
    }


def test_a_layer_whose_weight_is_used_without_calling_it_is_an_error():
    net = network()
    optimizer = of(net)
    F.linear(batch()[0], net.first.weight).sum().backward()
    with pytest.raises(UserError, match=r"'first\.weight' has a gradient, but its layer was not called"):
        optimizer.step()


@pytest.mark.parametrize("how", ["chunk", "group"])
def test_a_layer_that_is_computed_again_in_the_backward_pass_is_an_error_that_says_so(how):
    model, tokens = small(reading(), checkpoint=how), some(13)
    optimizer = of(model)
    model.nll(tokens[:, :-1], tokens[:, 1:]).mean().backward()
    with pytest.raises(UserError, match=r"'blocks.*' has a gradient, .* computed again; .* take checkpoint=none"):
        optimizer.step()


def test_a_layer_that_runs_with_other_weights_falls_back_by_name(caplog):
    net = network()
    optimizer = of(net, lr=0.1)
    fast = {"first.weight": (2 * net.first.weight)}
    x, y = batch()
    F.cross_entropy(functional_call(net, fast, x), y).backward()
    expected = net.first.weight.detach() - 0.1 * net.first.weight.grad  # type: ignore[operator]
    optimizer.step()
    assert_close(net.first.weight.detach(), expected)
    assert optimizer.fallback["first.weight"] == "other weights are put in its place"
    assert "head.weight" not in optimizer.fallback


# -- listening without being noticed -----------------------------------------------------------------------------------


def unused(optimizer: DeltaGradientDescent) -> int:
    return sum(len(c.passes) + len(c._pending) for c in optimizer._captures.values())


def test_only_passes_that_reach_the_gradient_count():
    net, alone = network(), network()
    ours, theirs = of(net), of(alone)
    x, y = batch(1)
    with torch.no_grad():
        net(x)
    net(x)  # never goes back
    torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    torch.autograd.grad(net(x.requires_grad_()).sum(), x)
    assert all(not c.passes for c in ours._captures.values())
    backward(net)
    backward(alone)
    ours.step()
    theirs.step()
    assert unused(ours) == 0
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), alone.parameters()))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state"])
def test_copies_of_the_model_tell_it_nothing(how):
    net = network()
    optimizer = of(net)
    if how == "deepcopy":
        other = copy.deepcopy(net)
    elif how == "pickle":
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = network()
        other.load_state_dict(net.state_dict())
    backward(other)
    assert all(p.grad is not None for p in other.parameters())
    assert unused(optimizer) == 0


def test_a_forgotten_optimizer_is_freed_and_stops_listening():
    net = network()
    optimizer = of(net)
    gone = weakref.ref(optimizer)
    assert net.first._forward_hooks
    del optimizer
    assert gone() is None
    assert not net.first._forward_hooks
    backward(net)


def test_a_group_added_later_is_listened_to():
    net = network()
    optimizer = DeltaGradientDescent(net.first.parameters(), lr=0.3, normalise=False, model=net)
    optimizer.add_param_group({"params": [net.head.weight], "lr": 0.1})
    w, d, x = seen(net)["head"]
    backward(net)
    optimizer.step()
    assert_close(net.head.weight.detach(), chunk_step(w, d.mT @ x, x, 0.1))


# -- as the rule of a level --------------------------------------------------------------------------------------------


def as_level(net: nn.Module, period: int, **values):
    return leveled(
        [Level("all", "rest", period=period)], net, {"_target_": Target, "lr": 0.3, "normalise": False, **values}
    )


def test_gathered_gradients_are_served_with_the_inputs_of_all_their_passes():
    net, other = network(), network()
    optimizer = as_level(net, 2)
    parts = [seen(other, seed)["head"] for seed in range(2)]
    for seed in range(2):
        backward(net, seed)
        optimizer.step()
    w, g = parts[0][0], sum(d.mT @ x for _, d, x in parts) / 2
    assert_close(net.head.weight.detach(), chunk_step(w, g, torch.cat([x for _, _, x in parts]), 0.3))


def test_gathered_gradients_are_refused_sample_by_sample():
    net = network()
    optimizer = as_level(net, 2, form="per_sample")
    backward(net)
    optimizer.step()
    backward(net)
    with pytest.raises(UserError, match=r"optim\.form: per_sample needs a step after every backward pass"):
        optimizer.step()


@pytest.mark.parametrize("form", ["chunk", "per_sample"])
def test_a_step_skipped_for_its_gradient_does_no_harm(form):
    net = network()
    optimizer = as_level(net, 1, form=form)
    backward(net)
    optimizer.step()
    x, y = batch()
    x[0, 0, 0] = torch.nan
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    backward(net, 1)
    optimizer.step()
    assert optimizer.skipped == 1
    assert all(p.isfinite().all() for p in net.parameters())


def test_the_inputs_of_a_skipped_step_are_not_forgotten_along():
    """All inputs are finite there: it is the gradient of the output that tells."""
    ends = []
    for skip in (False, True):
        net = network()
        optimizer = as_level(net, 1)
        if skip:
            (net(batch()[0]) * torch.tensor([1.0, torch.nan, 1.0])).sum().backward()
            optimizer.step()
        backward(net, 1)
        optimizer.step()
        assert optimizer.skipped == int(skip)
        ends.append(list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize(("form", "period"), [("chunk", 1), ("chunk", 3), ("per_sample", 1)])
def test_continues_from_its_state_to_the_last_bit(form, period, tmp_path):
    straight, halved = network(), network()
    first, whole = as_level(halved, period, form=form), as_level(straight, period, form=form)
    for seed in range(7):
        backward(straight, seed)
        whole.step()
    for seed in range(4):  # with period 3, inside a gathering
        backward(halved, seed)
        first.step()
    torch.save({"model": halved.state_dict(), "optimizer": first.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = network()
    second = as_level(again, period, form=form)
    again.load_state_dict(state["model"])
    second.load_state_dict(state["optimizer"])
    for seed in range(4, 7):
        backward(again, seed)
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), again.parameters()))


def test_a_methods_own_backward_passes_do_not_disturb_it():
    """EWC takes gradients of single samples between the experiences; only its penalty may change what is learned."""
    plain = small_learner("optim=delta_gradient_descent", "method=naive")
    silent = small_learner("optim=delta_gradient_descent", "method=ewc", "method.strength=0.0")
    for learner in (plain, silent):
        whole(learner, range(2))
    assert equal(weights(plain), weights(silent))


@pytest.mark.parametrize("form", ["chunk", "per_sample"])
def test_learns_a_stream(form):
    learner = small_learner("optim=delta_gradient_descent", f"optim.form={form}", "optim.lr=0.1", "model.hidden=[16]")
    begin(learner, 0)
    experience, before = learner.stream.experiences[0], weights(learner)
    order = torch.randperm(len(experience.train), generator=torch.Generator().manual_seed(0))
    train(learner, itertools.chain.from_iterable(order.split(16) for _ in range(4)))
    assert learner.evaluate(experience.test, 64)[0] > 0.9
    assert all(not torch.equal(a, b) for a, b in zip(weights(learner), before))
