"""What every method, model and optimizer that can be chosen must do; a new file in conf/ is tested by being there."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from small_run import batches, begin, end, equal, small_learner, train, weights, whole

from nested.catalog import sentence
from nested.config import build, conf_dirs, options
from nested.signature import arguments, locate

Shapes = [(8, 8), (1, 28, 28), (3, 32, 32), (64,)]


def section(group: str, choice: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(file_of(group, choice)))  # type: ignore[return-value]


def file_of(group: str, choice: str) -> Path:
    (file,) = [f for d in conf_dirs() if (f := d / group / f"{choice}.yaml").exists()]
    return file


def through_a_file(state: Any) -> Any:
    """As a checkpoint would bring it back: only tensors and plain values survive."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


methods = pytest.mark.parametrize("choice", options("method"))
languages = [c for c in options("model") if section("model", c)["_target_"] == "nested.models.language.LanguageModel"]
models = pytest.mark.parametrize("choice", [c for c in options("model") if c not in languages])
language_models = pytest.mark.parametrize("choice", languages)
optims = pytest.mark.parametrize("choice", options("optim"))
everything = [(g, c) for g in ("method", "model", "optim") for c in options(g)]


# -- every component ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "choice"), everything)
def test_says_in_one_sentence_what_it_is(group, choice):
    said = sentence(file_of(group, choice))
    assert 20 < len(said) < 160
    assert said[0].isupper()
    assert "_target_" not in said


@pytest.mark.parametrize(("group", "choice"), everything)
def test_its_file_says_the_defaults_or_more_and_nothing_unknown(group, choice):
    values = section(group, choice)
    known = arguments(locate(values.pop("_target_"), group))
    assert set(values) <= set(known)
    assert {n for n, a in known.items() if a.required and n != "seed"} <= set(values)


# -- methods -----------------------------------------------------------------------------------------------------------


def learner_of(choice: str, seed: int = 0):
    return small_learner(f"method={choice}", "optim=sgd", seed=seed)


@methods
def test_method_trains_on_something(choice):
    curriculum = learner_of(choice).curriculum
    assert curriculum
    assert all(len(e.train) > 0 for e in curriculum)


@methods
def test_method_makes_batches_and_losses_that_can_be_learned_from(choice):
    learner = learner_of(choice)
    last = len(learner.curriculum) - 1
    whole(learner, range(last))
    begin(learner, last)
    given = learner.fetch(learner.examples, batches(learner, last)[0])
    batch = learner.method.batch(learner, given)
    assert len(batch.x) == len(batch.y) == len(batch.task) >= len(given.y)
    assert batch.x.shape[1:] == given.x.shape[1:]
    loss = learner.method.loss(learner, batch)
    assert loss.shape == ()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.model.parameters())


@methods
def test_method_changes_no_weights_by_itself(choice):
    learner = learner_of(choice)
    begin(learner, 0)
    before = weights(learner)
    end(learner, 0)
    assert equal(weights(learner), before)
    assert learner.model.training


@methods
def test_method_views_come_before_training_too_and_leave_no_trace(choice):
    learner = learner_of(choice)
    names = list(learner.method.views())
    assert names
    whole(learner, [0])
    assert list(learner.method.views()) == names
    before, state = weights(learner), through_a_file(learner.method.state_dict())
    for context in learner.method.views().values():
        with context:
            learner.evaluate(learner.stream.experiences[0].test, 64)
    assert equal(weights(learner), before)
    assert same(learner.method.state_dict(), state)


@methods
@pytest.mark.parametrize("stop", ["inside", "border"])
def test_method_continues_from_its_state_to_the_last_bit(choice, stop):
    straight, first = learner_of(choice), learner_of(choice)
    last = min(2, len(straight.curriculum) - 1)
    for learner in (straight, first):
        whole(learner, range(last))
        begin(learner, last)
        train(learner, batches(learner, last)[:4])
        if stop == "border":
            end(learner, last)
    parts = {"model": first.model, "optimizer": first.optimizer, "method": first.method}
    state = through_a_file({n: p.state_dict() for n, p in parts.items()})
    second = learner_of(choice)
    second.cursor.experience, second.examples = last, second.curriculum[last].train
    for name, part in {"model": second.model, "optimizer": second.optimizer, "method": second.method}.items():
        part.load_state_dict(state[name])
    views = [list(learner.method.views()) for learner in (first, second)]
    assert views[0] == views[1]
    for view in views[0]:
        with straight.method.views()[view], second.method.views()[view]:
            assert equal(weights(second), weights(straight))
    for learner in (straight, second):
        train(learner, batches(learner, last)[4:])
        end(learner, last)
    assert equal(weights(second), weights(straight))
    assert same(second.method.state_dict(), straight.method.state_dict())


@methods
def test_method_is_the_same_twice(choice):
    runs = [learner_of(choice), learner_of(choice)]
    for learner in runs:
        whole(learner, range(min(2, len(learner.curriculum))))
    assert equal(weights(runs[0]), weights(runs[1]))
    assert same(runs[0].method.state_dict(), runs[1].method.state_dict())


# -- models ------------------------------------------------------------------------------------------------------------


def model_of(choice: str, shape: tuple[int, ...] = (8, 8), n_outputs: int = 7) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(section("model", choice), "model", sample_shape=shape, n_outputs=n_outputs)


@models
@pytest.mark.parametrize("shape", Shapes)
def test_model_gives_one_row_of_outputs_per_sample(choice, shape):
    net, x = model_of(choice, shape), torch.rand(3, *shape)
    assert net(x).shape == (3, 7)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))


@models
def test_model_learns_with_every_parameter(choice):
    net, x, y = model_of(choice), torch.rand(8, 8, 8), torch.arange(8) % 7
    first = F.cross_entropy(net(x), y)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        assert all(p.grad is not None for p in net.parameters())
        optimizer.step()
    assert F.cross_entropy(net(x), y) < first


@models
def test_model_is_its_state_and_its_seed(choice):
    is_its_state_and_its_seed(model_of(choice), model_of(choice), torch.rand(3, 8, 8))


def is_its_state_and_its_seed(first, second, x):
    assert torch.equal(first(x), second(x))
    with torch.no_grad():
        for p in second.parameters():
            p.add_(0.1)
    second.load_state_dict(through_a_file(first.state_dict()))
    assert torch.equal(first(x), second(x))


@models
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_model_runs_in_other_precisions(choice, dtype):
    net, x = model_of(choice), torch.rand(3, 8, 8)
    out = model_of(choice).to(dtype)(x.to(dtype))
    assert out.dtype is dtype
    torch.testing.assert_close(out.float(), net(x), rtol=0.1, atol=0.1)


def language_model_of(choice: str, vocabulary: int = 7) -> torch.nn.Module:
    torch.manual_seed(0)
    small = section("model", choice) | {"width": 16, "hidden": 16, "heads": 2}
    of_text = {"sample_shape": (20,), "n_outputs": vocabulary, "vocabulary": vocabulary, "per_position": True}
    return build(small, "model", **of_text)


@language_models
def test_language_model_says_at_every_position_what_comes_next_and_sees_no_later_token(choice):
    net, x = language_model_of(choice), torch.randint(7, (3, 20))
    assert net(x).shape == (3, 20, 7)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))
    torch.testing.assert_close(net(x)[:, :11], net(x[:, :11]))
    nll = F.cross_entropy(net(x[:, :-1]).mT, x[:, 1:], reduction="none")
    torch.testing.assert_close(net.nll(x[:, :-1], x[:, 1:]), nll)


@language_models
def test_language_model_learns_with_every_parameter(choice):
    net, x = language_model_of(choice), torch.randint(7, (4, 20))
    first = net.nll(x[:, :-1], x[:, 1:]).mean().item()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        net.nll(x[:, :-1], x[:, 1:]).mean().backward()
        assert all(p.grad is not None for p in net.parameters())
        optimizer.step()
    assert net.nll(x[:, :-1], x[:, 1:]).mean() < first


@language_models
def test_language_model_is_its_state_and_its_seed(choice):
    is_its_state_and_its_seed(language_model_of(choice), language_model_of(choice), torch.randint(7, (3, 20)))


# -- optimizers --------------------------------------------------------------------------------------------------------


def problem() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Parameters of 0 to 4 dimensions, and where they should go."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (5,), (3, 4), (2, 3, 2, 2)]
    goals = [torch.randn(s, generator=generator) for s in shapes]
    return [torch.zeros(s, requires_grad=True) for s in shapes], goals


def optimizer_of(choice: str, params: list[torch.Tensor]) -> torch.optim.Optimizer:
    """These are the parameters of no layer, so the model that a run would give with them is an empty one."""
    return build(section("optim", choice), "optim", params=params, model=torch.nn.Module())


def distance(params: list[torch.Tensor], goals: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([(p - g).square().sum() for p, g in zip(params, goals)]).sum()


def descend(optimizer: torch.optim.Optimizer, params, goals, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        distance(params, goals).backward()
        optimizer.step()


@optims
def test_optimizer_goes_downhill_with_every_parameter(choice):
    params, goals = problem()
    start = [(p - g).norm() for p, g in zip(params, goals)]
    descend(optimizer_of(choice, params), params, goals, 20)
    assert all((p - g).norm() < s for p, g, s in zip(params, goals, start))


@optims
def test_optimizer_continues_from_its_state_to_the_last_bit(choice):
    straight, goals = problem()
    halved, _ = problem()
    descend(optimizer_of(choice, straight), straight, goals, 8)
    first = optimizer_of(choice, halved)
    descend(first, halved, goals, 4)
    second = optimizer_of(choice, halved)
    second.load_state_dict(through_a_file(first.state_dict()))
    descend(second, halved, goals, 4)
    assert all(torch.equal(a, b) for a, b in zip(straight, halved))


@optims
def test_optimizer_obeys_the_rate_in_its_groups(choice):
    params, goals = problem()
    optimizer = optimizer_of(choice, params)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(params)
    for group in optimizer.param_groups:
        assert group["lr"] > 0
        group["lr"] = 0.0
    descend(optimizer, params, goals, 3)
    assert all(torch.equal(p, torch.zeros_like(p)) for p in params)


@optims
def test_optimizer_leaves_parameters_without_gradient_alone(choice):
    params, goals = problem()
    optimizer = optimizer_of(choice, params)
    distance(params[1:3], goals[1:3]).backward()
    optimizer.step()
    assert [bool((p != 0).any()) for p in params] == [False, True, True, False]


@optims
def test_optimizer_takes_a_closure(choice):
    params, goals = problem()
    optimizer = optimizer_of(choice, params)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = distance(params, goals)
        loss.backward()
        return loss

    before = distance(params, goals)
    assert optimizer.step(closure) == before
    assert distance(params, goals) < before


@optims
def test_optimizer_takes_bfloat16(choice):
    params = [p.detach().to(torch.bfloat16).requires_grad_() for p in problem()[0]]
    goals = [g.to(torch.bfloat16) for g in problem()[1]]
    before = distance(params, goals).item()
    descend(optimizer_of(choice, params), params, goals, 20)
    assert distance(params, goals) < before
    assert all(p.dtype is torch.bfloat16 for p in params)
