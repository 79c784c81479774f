"""EWC by hand: the Fisher information of a linear model in closed form, the penalty written out."""

import pytest
import torch
from small_run import batches, begin, end, equal, small_learner, train, weights
from torch.testing import assert_close

from nested.errors import UserError
from nested.methods.ewc import EWC, fisher


def linear_fisher(learner, experience) -> dict[str, torch.Tensor]:
    """Mean over examples of the squared gradient of the cross entropy of W x + b: (p - e_y) x^T and p - e_y."""
    model = learner.model.head
    x, y, _ = experience.train.batch(torch.arange(len(experience.train)))
    x = x.flatten(1).double()
    p = torch.softmax(x @ model.weight.double().mT + model.bias.double(), 1)
    error = p - torch.nn.functional.one_hot(y, 10)  # (N, 10)
    return {
        "head.weight": (error.unsqueeze(2) * x.unsqueeze(1)).square().mean(0).detach(),
        "head.bias": error.square().mean(0).detach(),
    }


def test_fisher_of_single_examples_is_the_closed_form():
    learner = small_learner("method=ewc")
    train(learner, batches(learner, 0))
    experience = learner.stream.experiences[0]
    found = fisher(learner, experience, 1)
    for name, expected in linear_fisher(learner, experience).items():
        assert_close(found[name].double(), expected, rtol=1e-3, atol=1e-8)


def test_fisher_of_batches_squares_the_mean_gradient():
    learner = small_learner("method=ewc")
    experience = learner.stream.experiences[0]
    n = len(experience.train)
    learner.loss(learner.fetch(experience.train, torch.arange(n))).backward()
    assert_close(fisher(learner, experience, n)["head.weight"], learner.model.head.weight.grad.square())


def test_fisher_leaves_gradients_and_mode_alone():
    learner = small_learner("method=ewc")
    for training in (True, False):
        learner.model.train(training)
        fisher(learner, learner.stream.experiences[0], 64)
        assert learner.model.training is training
    assert all(p.grad is None for p in learner.model.parameters())


def test_penalty_written_out():
    learner = small_learner("method=ewc", "method.strength=3")
    method = learner.method
    batch = learner.fetch(learner.examples, torch.arange(8))
    assert method.loss(learner, batch) == learner.loss(batch)  # nothing to hold on to yet
    learned, importances = [], []
    for i in range(2):
        learned.append(weights(learner))
        end(learner, i)
        importances.append(list(fisher(learner, learner.curriculum[i], 1).values()))
        train(learner, batches(learner, i, n=2))
    expected = learner.loss(batch)
    for anchor, importance in zip(learned, importances):
        for w, a, f in zip(learner.model.parameters(), anchor, importance):
            expected = expected + 3 * (f * (w - a) ** 2).sum()
    assert_close(method.loss(learner, batch), expected)
    assert method.loss(learner, batch) > learner.loss(batch)


def test_online_keeps_one_importance_that_decays():
    learner = small_learner("method=ewc", "method.mode=online", "method.decay=0.25", "method.fisher_batch_size=32")
    seen = []
    for i in range(3):
        train(learner, batches(learner, i, n=2))
        end(learner, i)
        seen.append(fisher(learner, learner.curriculum[i], 32)["head.weight"])
    method = learner.method
    assert len(method.anchors) == len(method.importances) == 1
    expected = 0.25 * (0.25 * seen[0] + seen[1]) + seen[2]
    assert_close(method.importances[0]["head.weight"], expected)
    assert equal(list(method.anchors[0].values()), weights(learner))


def test_strength_zero_is_naive():
    ewc, naive = small_learner("method=ewc", "method.strength=0"), small_learner("method=naive")
    for learner in (ewc, naive):
        for i in range(2):
            begin(learner, i)
            train(learner, batches(learner, i))
            end(learner, i)
    assert equal(weights(ewc), weights(naive))


def test_decay_without_online_is_refused():
    with pytest.raises(UserError, match="mode online only"):
        EWC(decay=0.5)
