"""The engine of the stream clock against torch's optimizers and against sums written out by hand."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nested.errors import Diverged, UserError
from nested.levels import Level
from nested.optim.leveled import Leveled, leveled
from nested.optim.schedule import rate_factor
from nested.settings import Schedule

SGD = {"_target_": "torch.optim.SGD", "lr": 0.1}


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def gradients(net: nn.Module, step: int) -> None:
    """Plant a gradient that depends on the step and the parameter alone."""
    for i, p in enumerate(net.parameters()):
        g = torch.Generator().manual_seed(100 * step + i)
        p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype)


def two_levels(net: nn.Module, period: int, gather: str = "mean", **options: object) -> Leveled:
    levels = [Level("fast", "rest"), Level("slow", ("2.*",), period=period, gather=gather)]  # type: ignore[arg-type]
    return leveled(levels, net, SGD, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "make"),
    [
        ({"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
        ({"_target_": "torch.optim.AdamW", "lr": 0.01}, lambda p: torch.optim.AdamW(p, 0.01)),
    ],
)
def test_one_level_of_period_one_is_torchs_optimizer_to_the_bit(target: dict, make: Callable) -> None:
    ours, theirs = model(), model()
    engine, reference = leveled([Level("all", "rest")], ours, target), make(theirs.parameters())
    for step in range(20):
        gradients(ours, step)
        gradients(theirs, step)
        engine.step()
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("gather", ["mean", "sum"])
def test_a_slow_level_moves_by_the_gathered_gradient_at_its_ticks_and_by_nothing_else(gather: str) -> None:
    net, period = model(), 3
    engine = two_levels(net, period, gather)
    slow = net[2].weight
    expected, gathered = slow.detach().clone(), torch.zeros_like(slow)
    for step in range(1, 11):
        gradients(net, step)
        assert slow.grad is not None
        gathered += slow.grad
        before, fast_before = slow.detach().clone(), net[0].weight.detach().clone()
        engine.step()
        assert not torch.equal(net[0].weight, fast_before)
        if step % period:
            assert torch.equal(slow, before)
        else:
            expected -= 0.1 * (gathered / period if gather == "mean" else gathered)  # Eq. 71 prints the sum
            torch.testing.assert_close(slow.detach(), expected, rtol=0, atol=1e-14)
            gathered.zero_()
    assert engine.updates == {"fast": 10, "slow": 3}
    assert engine.count["slow"] == 1


def test_gathered_gradients_are_copies() -> None:
    net = model()
    engine = two_levels(net, 2)
    gradients(net, 1)
    alias = net[2].weight.grad
    engine.step()
    assert alias is not None
    held = engine.gathered["slow"][0]
    assert held is not None
    before = held.clone()
    alias.zero_()
    assert torch.equal(held, before)


@pytest.mark.parametrize(("at_border", "moved", "left"), [("carry", False, 2), ("flush", True, 0), ("drop", False, 0)])
def test_the_border_of_an_experience(at_border: str, moved: bool, left: int) -> None:
    net = model()
    engine = two_levels(net, 4, at_border=at_border)
    slow, mean = net[2].weight, torch.zeros_like(net[2].weight)
    before = slow.detach().clone()
    for step in (1, 2):
        gradients(net, step)
        assert slow.grad is not None
        mean += slow.grad / 2
        engine.step()
    with torch.no_grad():
        engine.end_experience()
    torch.testing.assert_close(slow.detach(), before - 0.1 * mean if moved else before, rtol=0, atol=1e-14)
    assert engine.count["slow"] == left
    assert engine.updates["slow"] == int(moved)


def test_clipping_applies_to_the_gathered_gradient() -> None:
    net = model()
    engine = two_levels(net, 2, "sum", clip_norm=0.5)
    before = [p.detach().clone() for p in net[2].parameters()]
    for step in (1, 2):
        gradients(net, step)
        engine.step()
    moved = torch.cat([(a - b.detach()).flatten() for a, b in zip(before, net[2].parameters(), strict=True)])
    assert float(moved.norm()) == pytest.approx(0.1 * 0.5, rel=1e-5)


def test_a_step_that_is_not_finite_moves_no_clock_and_is_counted() -> None:
    net = model()
    engine = two_levels(net, 2)
    before = copy.deepcopy(net.state_dict())
    gradients(net, 1)
    net[0].weight.grad[0, 0] = float("nan")  # type: ignore[index]
    engine.step()
    assert (engine.tick, engine.skipped) == (0, 1)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    for _ in range(8):
        gradients(net, 1)
        net[0].weight.grad[0, 0] = float("inf")  # type: ignore[index]
        engine.step()
    gradients(net, 1)
    net[0].weight.grad[0, 0] = float("inf")  # type: ignore[index]
    with pytest.raises(Diverged, match="level 'fast'"):
        engine.step()


def test_ten_steps_that_are_not_finite_are_named_as_they_were_counted() -> None:
    net = model()
    engine = two_levels(net, 2)

    def step(value: float) -> None:
        gradients(net, 1)
        net[0].weight.grad[0, 0] = value  # type: ignore[index]
        engine.step()

    for value in (1.0, 1.0, float("nan"), 1.0, *[float("inf")] * 9):
        step(value)
    with pytest.raises(Diverged, match=r"level 'fast': .* in 10 steps in a row, 5 to 14, after 3 updates"):
        step(float("nan"))


def test_large_finite_gradients_are_not_called_infinite() -> None:
    net = nn.Linear(2, 1)
    engine = leveled([Level("all", "rest")], net, {"_target_": "torch.optim.SGD", "lr": 1e-30})
    for p in net.parameters():
        p.grad = torch.full_like(p, 1e30)  # its square is not a float32
    engine.step()
    assert (engine.tick, engine.skipped) == (1, 0)


@pytest.mark.parametrize("stop", range(1, 8))
def test_state_dict_continues_bit_for_bit_inside_a_gather(stop: int) -> None:
    target = {"_target_": "torch.optim.AdamW", "lr": 0.01}
    levels = [Level("fast", "rest"), Level("slow", ("2.*",), period=3, rule=SGD | {"momentum": 0.9})]
    schedule = Schedule(shape="cosine", warmup=0.2)

    def go(net: nn.Module, engine: Leveled, first: int, last: int) -> None:
        for step in range(first, last):
            gradients(net, step)
            engine.step()

    net = model()
    engine = leveled(levels, net, target, schedule=schedule)
    engine.start_experience(12, 12)
    go(net, engine, 0, stop)
    buffer = io.BytesIO()
    torch.save({"net": net.state_dict(), "engine": engine.state_dict()}, buffer)
    go(net, engine, stop, 12)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other = model(1)
    other.load_state_dict(state["net"])
    continued = leveled(levels, other, target, schedule=schedule)
    continued.load_state_dict(state["engine"])
    go(other, continued, stop, 12)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert continued.updates == engine.updates


def test_an_optimizer_that_needs_a_closure_is_refused() -> None:
    """Its step computes the loss again, as often as it likes; a tick is one backward pass."""
    needy = {"_target_": "torch.optim.LBFGS", "lr": 0.1}
    with pytest.raises(UserError, match=r"LBFGS\.step needs a closure") as error:
        leveled([Level("all", "rest")], model(), needy)
    assert error.value.key == "optim._target_"
    assert "one backward pass" in str(error.value)
    levels = [Level("slow", ("2.*",), rule=needy), Level("all", "rest")]
    with pytest.raises(UserError, match="LBFGS") as error:
        leveled(levels, model(), SGD)
    assert error.value.key == "levels.slow.optim._target_"


def test_a_closure_is_evaluated_with_gradients() -> None:
    net = model()
    engine = two_levels(net, 1)
    x = torch.ones(2, 4, dtype=torch.float64)

    def closure() -> Tensor:
        loss = net(x).square().mean()
        loss.backward()
        return loss

    assert float(engine.step(closure)) > float(engine.step(closure))


def test_rates_of_a_schedule_by_hand() -> None:
    assert [rate_factor(Schedule(), t, 5) for t in range(5)] == [1.0] * 5
    assert [rate_factor(Schedule(shape="linear"), t, 5) for t in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert rate_factor(Schedule(shape="cosine", final=0.5), 4, 5) == pytest.approx(0.5)
    assert rate_factor(Schedule(shape="cosine"), 2, 5) == pytest.approx(0.5)
    assert [rate_factor(Schedule(warmup=0.4), t, 5) for t in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]


def test_a_schedule_begins_anew_with_each_experience_when_asked() -> None:
    net = model()
    engine = leveled([Level("all", "rest", period=2)], net, SGD, schedule=Schedule(shape="linear", scope="experience"))
    seen = []
    for _ in range(2):
        engine.start_experience(8, 16)
        for step in range(8):
            gradients(net, step)
            engine.step()
            if step % 2:
                seen.append(round(engine.param_groups[0]["lr"], 6))
    one = [0.1, 0.066667, 0.033333, 0.0]
    assert seen == one + one


def test_each_level_may_have_its_own_rule_and_rate() -> None:
    net = model()
    levels = [
        Level("fast", "rest", lr_scale=0.25),
        Level("slow", ("2.*",), rule={"_target_": "torch.optim.Adagrad", "lr": 0.3}),
    ]
    engine = leveled(levels, net, SGD)
    assert isinstance(engine.rules["slow"], torch.optim.Adagrad)
    assert [g["lr"] for g in engine.param_groups] == [0.025, 0.3]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("gather", ["mean", "sum"])
@pytest.mark.parametrize("shape", ["vector", "matrix"])
def test_what_devices_do_in_one_call_is_what_levels_do_one_by_one(monkeypatch, dtype, gather, shape) -> None:
    """Also where a gradient is missing at some ticks, at a boundary, and in a state that is saved inside a period."""
    rule = {"_target_": "nested.optim.delta_momentum.DeltaMomentum", "lr": 0.1, "beta": 0.7, "shape": shape}
    periods = {"0.weight": 1, "0.bias": 3, "2.weight": 4, "2.bias": 2}
    levels = [Level(f"of {n}", (n,), period=p, gather=gather) for n, p in periods.items()]
    ends = []
    for together in (False, True):
        monkeypatch.setattr(Leveled, "_together", lambda self, together=together: together)
        net = model().to(dtype)
        engine = leveled(levels, net, rule | {"weight_decay": 0.1}, schedule=Schedule(shape="cosine"))
        engine.start_experience(14, 14)
        for step in range(14):
            gradients(net, step)
            for i, p in enumerate(net.parameters()):
                if (step + i) % 5 == 0 or (i == 1 and step < 6 and step != 1):
                    p.grad = None
            engine.step()
            assert all(p.grad is None for p in net.parameters())
            if step == 6:
                other = leveled(levels, net, rule | {"lr": 0.3})
                other.schedule = engine.schedule
                other.load_state_dict(copy.deepcopy(engine.state_dict()))
                engine = other
        ends.append((list(net.parameters()), engine.updates, engine.count, engine.tick))
    assert ends[0][1:] == ends[1][1:]
    close = {"rtol": 0, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 2e-2}  # wider sums
    torch.testing.assert_close(ends[0][0], ends[1][0], **close)
