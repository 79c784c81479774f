"""Associative heads: what is written and when, what stays frozen, and that the model is what it was after a view."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_run import batches, begin, end, equal, small_learner, train, weights, whole
from torch import nn
from torch.testing import assert_close

from nested.errors import Diverged, UserError
from nested.memory import heads

HEAD = "method=associative_head"
RULES = ["hebb", "delta", "dgd", "own_class", "class_means", "least_squares"]
MODELS = ["mlp", "transformer", "hope_attention", "random_features"]


def learner_of(*overrides: str, seed: int = 0):
    return small_learner(HEAD, *overrides, seed=seed)


def features_of(learner, examples) -> torch.Tensor:
    """What the model's last layer sees."""
    seen = []
    handle = learner.model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    learner.model(learner.fetch(examples, torch.arange(len(examples))).x)
    handle.remove()
    return seen[0]


def all_keys(learner, experiences: int) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [learner.curriculum[i].train for i in range(experiences)]
    h = torch.cat([heads.keys(features_of(learner, p)) for p in parts])
    return h, F.one_hot(torch.cat([p.targets for p in parts]), learner.stream.n_outputs).double()


def logits(learner, view: str, examples) -> torch.Tensor:
    with learner.method.views()[view], torch.no_grad():
        return learner.logits(*learner.fetch(examples, torch.arange(len(examples)))[::2], training=False)


def score(learner, view: str, experiences: int) -> float:
    with learner.method.views()[view]:
        pairs = [learner.evaluate(learner.stream.experiences[i].test, 512) for i in range(experiences)]
    return sum(c for c, _ in pairs) / sum(n for _, n in pairs)


# -- what is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_the_view_answers_by_ridge_regression_on_the_features_of_every_example(model):
    learner = learner_of(f"model={model}", "method.features=fixed")
    whole(learner, range(2))
    h, y = all_keys(learner, 2)
    weight = torch.linalg.solve(h.mT @ h + 0.01 * torch.eye(h.shape[1], dtype=h.dtype), h.mT @ y)
    test = learner.stream.experiences[1].test
    expected = heads.keys(features_of(learner, test)) @ weight
    assert_close(logits(learner, "memory", test), expected.float(), rtol=1e-4, atol=1e-4)
    assert score(learner, "memory", 2) > 0.6  # of four classes, on features nobody trained


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_learns_the_two_classes_it_was_shown(rule):
    learner = learner_of("model=random_features", f"method.rule={rule}")
    assert score(learner, "memory", 1) < 0.7  # nothing is written yet
    whole(learner, [0])
    assert score(learner, "memory", 1) > 0.9


def test_each_example_is_written_once_in_an_order_of_the_seeds_own():
    memories = []
    for seed in (0, 0, 1):
        learner = learner_of("method.rule=delta", "model=random_features", "stream.seed=0", seed=0)
        learner.method.seed = seed
        whole(learner, [0])
        memories.append(learner.method.memory["weight"])
    assert torch.equal(memories[0], memories[1])
    assert not torch.equal(memories[0], memories[2])
    learner = learner_of("method.rule=class_means")
    whole(learner, range(2))
    assert learner.method.memory["counts"].sum() == sum(len(learner.curriculum[i].train) for i in range(2))


def epoch(learner, experience: int, size: int = 32) -> list[torch.Tensor]:
    return batches(learner, experience, n=10**6, size=size)


@pytest.mark.parametrize("period", [1, 3, 10**6])
def test_online_writes_the_first_epoch_whatever_the_period(period):
    """Fixed features: online and afterwards the same sums, and nothing more in a second epoch."""
    online = learner_of("method.when=online", "method.features=fixed", f"method.period_steps={period}")
    after = learner_of("method.features=fixed")
    for learner in (online, after):
        begin(learner, 0)
        train(learner, epoch(learner, 0) * 2)
        end(learner, 0)
    for name, value in after.method.memory.items():
        assert_close(online.method.memory[name], value, rtol=1e-6, atol=1e-6)
    assert not online.method.gathered


def test_online_writes_at_every_period_and_not_between():
    learner = learner_of("method.when=online", "method.rule=delta", "method.period_steps=3")
    begin(learner, 0)
    written = []
    for rows in batches(learner, 0, n=7):
        before = learner.method.memory["weight"]
        train(learner, [rows])
        written.append(not torch.equal(learner.method.memory["weight"], before))
    assert written == [False, False, True, False, False, True, False]


def test_online_writes_the_features_that_the_step_was_made_from():
    learner = learner_of("method.when=online", "method.rule=delta", "method.features=learned", "model.hidden=[20]")
    begin(learner, 0)
    expected = torch.zeros(10, 21, dtype=torch.float64)
    for rows in batches(learner, 0, n=3):
        examples = learner.examples.subset(rows)
        y = F.one_hot(examples.targets, 10).double()
        expected = heads.delta(expected, heads.keys(features_of(learner, examples)), y, 0.5)
        train(learner, [rows])
    assert_close(learner.method.memory["weight"], expected, rtol=1e-6, atol=1e-7)


def test_whitened_keys_of_the_first_experience_have_covariance_of_the_identity():
    learner = learner_of("method.whiten=true", "method.rule=delta", "model=random_features", "model.features=20")
    whole(learner, [0])
    whitening = learner.method.whitening
    h, _ = all_keys(learner, 1)
    variances = torch.linalg.eigvalsh(heads.whiten(h, whitening).mT.cov(correction=0))
    kept = torch.linalg.eigvalsh(h.mT.cov(correction=0))
    assert_close(variances, (kept / (kept + 1e-3)).sort().values, rtol=1e-6, atol=1e-7)
    whole(learner, [1])
    assert learner.method.whitening is whitening


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.dropout(x.flatten(1)))


def test_the_pass_after_an_experience_sees_features_without_dropout():
    plain, dropping = learner_of(), learner_of()
    dropping.model = Dropping()
    dropping.method.attach(dropping)
    for learner in (plain, dropping):
        end(learner, 0)
        assert learner.model.training
    assert equal(list(dropping.method.memory.values()), list(plain.method.memory.values()))


# -- what learns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["learned", "frozen_after_first", "fixed"])
@pytest.mark.parametrize("optim", ["adamw", "muon", "delta_momentum"])
def test_features_change_exactly_where_they_learn(features, optim):
    learner = learner_of(f"method.features={features}", f"optim={optim}", "model.hidden=[20]")
    moved = []
    for i in range(3):
        before = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
        whole(learner, [i])
        moved.append({n: not torch.equal(p, before[n]) for n, p in learner.model.named_parameters()})
    learns = {"learned": [True] * 3, "frozen_after_first": [True, False, False], "fixed": [False] * 3}[features]
    assert [m["layers.0.weight"] for m in moved] == [m["layers.0.bias"] for m in moved] == learns
    assert all(m["head.weight"] and m["head.bias"] for m in moved)
    assert learner.optimizer.updates == {"all": 24}


def test_what_a_slow_level_has_gathered_does_not_move_frozen_features():
    slow = "levels={all: {params: rest, period_steps: 5}}"
    learner = learner_of(slow, "model.hidden=[20]")
    whole(learner, [0])
    assert learner.optimizer.count == {"all": 3}
    before = learner.model.layers[0].weight.detach().clone()
    whole(learner, [1])
    assert torch.equal(learner.model.layers[0].weight, before)
    assert learner.optimizer.updates == {"all": 3}


@pytest.mark.parametrize("when", ["online", "after_experience"])
def test_the_memory_has_no_influence_on_the_model(when):
    head, naive = learner_of("method.features=learned", f"method.when={when}"), small_learner("method=naive")
    for learner in (head, naive):
        for i in range(2):
            whole(learner, [i])
            score(learner, next(iter(learner.method.views())), 1)
    assert equal(weights(head), weights(naive))


# -- views -------------------------------------------------------------------------------------------------------------


def test_views_and_the_model_after_them_also_after_an_error():
    learner = learner_of()
    assert list(learner.method.views()) == ["memory", "head"]
    whole(learner, [0])
    test = learner.stream.experiences[0].test
    before, modules = weights(learner), list(learner.model.modules())
    plain = learner.model(learner.fetch(test, torch.arange(5)).x)
    assert torch.equal(logits(learner, "head", test)[:5], plain)
    assert not torch.allclose(logits(learner, "memory", test)[:5], plain)

    def fail() -> None:
        with learner.method.views()["memory"]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(learner.model(learner.fetch(test, torch.arange(5)).x), plain)
    assert equal(weights(learner), before)
    assert all(a is b for a, b in zip(learner.model.modules(), modules))


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_other_scenarios_mask_the_memory_as_they_mask_the_head(scenario):
    learner = learner_of(f"stream.scenario={scenario}", "model=random_features")
    whole(learner, range(3))
    for i in range(3):
        test = learner.stream.experiences[i].test
        masked = {v: logits(learner, v, test).isinf() for v in ("memory", "head")}
        assert torch.equal(masked["memory"], masked["head"])
        assert masked["memory"].any() == (scenario == "task")
    assert score(learner, "memory", 3) > 0.9


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("when", ["online", "after_experience"])
def test_other_precisions(precision, when):
    learner = learner_of(f"trainer.precision={precision}", f"method.when={when}", "model=random_features")
    begin(learner, 0)
    train(learner, epoch(learner, 0))
    end(learner, 0)
    assert all(t.dtype is torch.float64 for t in learner.method.memory.values())
    assert score(learner, "memory", 1) > 0.9


def as_numbers(learner):
    """The same stream with its one-hot targets as numbers."""
    stream = learner.stream
    experiences = tuple(
        replace(e, **{p: replace(x, targets=F.one_hot(x.targets, 10).float())})
        for e in stream.experiences
        for p, x in [("train", e.train)]
    )
    learner.stream = replace(stream, regression=True, experiences=experiences)
    learner.curriculum = list(experiences)
    return learner


@pytest.mark.parametrize("rule", ["delta", "least_squares"])
def test_numbers_as_targets_are_written_as_they_are(rule):
    classes, numbers = (learner_of(f"method.rule={rule}", "method.features=fixed") for _ in range(2))
    numbers = as_numbers(numbers)
    for learner in (classes, numbers):
        end(learner, 0)
    for name, value in classes.method.memory.items():
        assert torch.equal(numbers.method.memory[name], value)


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [["method.whiten=true", "method.rule=delta"], ["method.when=online"]])
def test_continues_inside_an_experience_to_the_last_bit(given):
    given = [*given, "method.features=frozen_after_first", "model.hidden=[20]"]
    if "method.when=online" in given:
        given.append("method.period_steps=3")
    straight, second = learner_of(*given), learner_of(*given)
    whole(straight, [0])
    begin(straight, 1)
    train(straight, epoch(straight, 1)[:5])
    second.model.load_state_dict(straight.model.state_dict())
    second.optimizer.load_state_dict(straight.optimizer.state_dict())
    second.method.load_state_dict(straight.method.state_dict())
    second.cursor.experience, second.examples = 1, second.curriculum[1].train
    for learner in (straight, second):
        train(learner, epoch(learner, 1)[5:] + epoch(learner, 1))  # over the first epoch's end
        end(learner, 1)
    assert equal(weights(second), weights(straight))
    assert equal(list(second.method.memory.values()), list(straight.method.memory.values()))
    test = straight.stream.experiences[0].test
    assert torch.equal(logits(second, "memory", test), logits(straight, "memory", test))


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["hebb", "dgd", "own_class", "class_means"])
def test_rules_that_rank_classes_are_refused_for_numbers(rule):
    learner = as_numbers(learner_of(f"method.rule={rule}"))
    with pytest.raises(UserError, match=f"{rule} ranks classes .* use delta or least_squares"):
        learner.method.attach(learner)


def test_a_target_for_each_position_is_refused():
    learner = learner_of()
    first = learner.stream.experiences[0]
    train = replace(first.train, targets=first.train.targets.unsqueeze(1).expand(-1, 3))
    learner.stream = replace(learner.stream, experiences=(replace(first, train=train),))
    with pytest.raises(UserError, match="one for each position"):
        learner.method.attach(learner)


@pytest.mark.parametrize(
    ("override", "key"),
    [("method.whiten=true", "method.whiten"), ("method.period_steps=4", "method.period_steps")],
)
def test_what_has_no_meaning_at_that_time_is_refused(override, key):
    when = "online" if "whiten" in override else "after_experience"
    with pytest.raises(UserError, match="use when: ") as error:
        learner_of(override, f"method.when={when}")
    assert error.value.key == key


def test_a_rate_outside_the_stable_region_is_refused_with_the_bound():
    with pytest.raises(UserError, match="< 2") as error:
        learner_of("method.eta=2")
    assert error.value.key == "method.eta"


class NoHead(nn.Module):
    def forward(self, x):
        return x.flatten(1)


class TwiceHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(x.flatten(1)) + self.head(-x.flatten(1))


@pytest.mark.parametrize(
    ("model", "said"), [(NoHead(), "NoHead has no linear layer"), (TwiceHead(), "TwiceHead calls")]
)
def test_a_model_without_one_last_layer_is_refused_by_name(model, said):
    learner = learner_of()
    learner.model = model
    with pytest.raises(UserError, match=said):
        learner.method.attach(learner)


def test_features_that_are_not_finite_end_the_run_by_name():
    learner = learner_of("model.hidden=[20]")
    with torch.no_grad():
        learner.model.layers[0].weight.fill_(torch.nan)
    with pytest.raises(Diverged, match="features are not finite when the memory is written"):
        end(learner, 0)
