"""The defaults of a method change nothing."""

import torch
from small_run import batches, small_learner, weights

from nested.methods.method import Method
from nested.methods.naive import Naive


def test_defaults_do_nothing():
    learner = small_learner("method=naive")
    batch = learner.fetch(learner.examples, batches(learner, 0)[0])
    for method in (Method(), Naive()):
        before = weights(learner)
        assert method.experiences(learner.stream) == list(learner.stream.experiences)
        assert method.batch(learner, batch) is batch
        assert torch.equal(method.loss(learner, batch), learner.loss(batch))
        method.attach(learner)
        method.before_experience(learner, learner.curriculum[0])
        method.after_backward(learner)
        method.after_step(learner)
        method.after_experience(learner, learner.curriculum[0])
        assert list(method.views()) == ["model"]
        assert method.state_dict() == {}
        assert all(torch.equal(a, b) for a, b in zip(before, weights(learner)))
