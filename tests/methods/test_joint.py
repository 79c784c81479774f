"""Joint training: one experience with every example of every other, once."""

import pytest
import torch
from small_run import small_learner


@pytest.mark.parametrize("stream", ["split_digits", "permuted_digits"])
def test_one_experience_holds_all_examples(stream):
    learner = small_learner(f"stream={stream}", "stream.n_experiences=5", "method=joint")
    (joint,) = learner.curriculum
    assert joint.index == 0
    for part in ("train", "validation", "test"):
        parts = [getattr(e, part) for e in learner.stream.experiences]
        merged = getattr(joint, part)
        assert len(merged) == sum(map(len, parts))
        first, last = len(parts[0]), len(merged) - len(parts[-1])
        for rows, own in ((torch.arange(first), parts[0]), (torch.arange(last, len(merged)), parts[-1])):
            mine, theirs = merged.batch(rows), own.batch(torch.arange(len(own)))
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert sorted(joint.classes) == list(range(10))


def test_tasks_stay_with_their_samples():
    learner = small_learner("stream.scenario=task", "method=joint")
    (joint,) = learner.curriculum
    assert joint.train.task.unique().tolist() == [0, 1, 2, 3, 4]
    x, y, task = learner.fetch(joint.train, torch.arange(len(joint.train)))
    allowed = learner.logits(x, task, training=True).isfinite()
    assert allowed.sum(1).eq(2).all()
    assert allowed.gather(1, y.unsqueeze(1)).all()
