"""Replay: what is added to a batch, and where it comes from."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from small_run import batches, begin, end, small_learner, train

from nested.errors import UserError
from nested.streams.stream import Batch


def first_batch(learner, experience: int) -> tuple[Batch, Batch]:
    """(the batch as it came, what the method makes of it)."""
    batch = learner.fetch(learner.curriculum[experience].train, batches(learner, experience)[0])
    return batch, learner.method.batch(learner, batch)


def after_first_experience(*overrides: str):
    learner = small_learner("method=replay", *overrides)
    begin(learner, 0)
    end(learner, 0)
    begin(learner, 1)
    return learner


def test_the_first_experience_is_left_alone():
    learner = small_learner("method=replay")
    begin(learner, 0)
    batch, made = first_batch(learner, 0)
    assert made is batch


@pytest.mark.parametrize(("override", "old"), [("null", 16), ("5", 5), ("500", 40)])
def test_old_samples_come_after_the_new_ones(override, old):
    learner = after_first_experience("method.capacity=40", f"method.batch_size={override}")
    batch, made = first_batch(learner, 1)
    assert len(made.y) == 16 + old
    assert all(torch.equal(m[:16], b) for m, b in zip(made, batch, strict=True))
    assert set(made.y[16:].tolist()) <= set(learner.stream.experiences[0].train.targets.tolist())


def test_old_samples_are_different_and_are_rows_of_the_stream():
    learner = after_first_experience("method.capacity=40", "method.batch_size=40")
    _, made = first_batch(learner, 1)
    kept = learner.method.memory.kept()
    stored = learner.stream.train.batch(kept)
    assert len(set(kept.tolist())) == 40

    def rows(batch: Batch) -> list[list[float]]:
        return sorted(torch.cat([batch.x.flatten(1), batch.y.unsqueeze(1)], 1).tolist())

    assert rows(Batch(*(part[16:] for part in made))) == rows(stored)
    assert max(kept.tolist()) < len(learner.stream.experiences[0].train)


def test_each_step_draws_anew_and_every_sample_equally_often():
    learner = after_first_experience("method.capacity=20", "method.batch_size=5")
    learner.stream.train.targets[:] = torch.arange(len(learner.stream.train))  # a sample's target tells which it is
    drawn = Counter()
    for _ in range(2000):
        _, made = first_batch(learner, 1)
        assert len(set(made.y[16:].tolist())) == 5
        drawn.update(made.y[16:].tolist())
    deviation = (2000 * 0.25 * 0.75) ** 0.5
    assert len(drawn) == 20
    assert all(abs(n - 500) < 5 * deviation for n in drawn.values())


def test_old_samples_keep_their_task_and_with_it_their_mask():
    learner = after_first_experience("stream.scenario=task", "method.batch_size=4")
    _, made = first_batch(learner, 1)
    assert made.task.tolist() == [1] * 16 + [0] * 4
    out = learner.logits(made.x, made.task, training=True)
    allowed = out.isfinite()
    assert torch.equal(allowed, learner.stream.task_outputs[made.task])
    assert learner.method.loss(learner, made).isfinite()


def test_samples_are_offered_when_their_experience_ends_each_once():
    learner = small_learner("method=replay", "method.capacity=100000")
    for i in range(3):
        begin(learner, i)
        train(learner, batches(learner, i, n=2))
        end(learner, i)
    assert sorted(learner.method.memory.kept().tolist()) == list(range(learner.stream.offsets[3]))


def test_a_stream_of_one_later_experience_has_ids_of_its_own():
    learner = small_learner("method=replay", "method.capacity=100000")
    only = learner.stream.experiences[3]
    learner.stream = replace(learner.stream, experiences=(only,))
    learner.method.after_experience(learner, only)
    assert sorted(learner.method.memory.kept().tolist()) == list(range(len(only.train)))


def test_class_balanced_is_refused_where_there_are_no_classes():
    learner = small_learner("method=replay", "method.policy=class_balanced")
    learner.stream = replace(learner.stream, regression=True)
    with pytest.raises(UserError, match="use reservoir"):
        learner.method.attach(learner)


def test_seeds_draw_differently_and_equal_seeds_alike():
    kept = []
    for seed in (0, 0, 1):
        learner = small_learner("method=replay", "method.capacity=30", "stream.seed=0", seed=seed)
        end(learner, 0)
        kept.append(learner.method.memory.kept().tolist())
    assert kept[0] == kept[1] != kept[2]
