"""HOPE's frame: reading token by token, levels on both clocks, and what it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from nested.errors import UserError
from nested.inner import initial_state, read
from nested.levels import Level
from nested.signature import build

ATTENTION = {"_target_": "nested.memory.attention.AttentionMemory"}
FAST = Level("fast", ("*.continuum.0.*",), 2, "token", eta=0.3)
SLOW = Level("slow", ("*.continuum.1.*",), 4, "token", eta=0.2)


def hope(levels=(), memory=ATTENTION, shape=(9,), outputs=5, vocabulary: int | None = 5, per_position=True, **given):
    torch.manual_seed(0)
    small = {"width": 8, "depth": 2, "heads": 2, "hidden": 12, "n_levels": 2}
    section = {"_target_": "nested.models.hope.Hope", "memory": memory, **small, **given}
    context = {"vocabulary": vocabulary, "per_position": per_position, "token_levels": tuple(levels)}
    return build(section, "model", sample_shape=shape, n_outputs=outputs, **context).double()


def tokens(batch: int = 3, n: int = 9) -> torch.Tensor:
    return torch.randint(5, (batch, n))


def by_hand(net, x: torch.Tensor, levels) -> torch.Tensor:
    """Logits of one sequence (1, T), chunk by chunk, with weights written into a copy: no code of `inner` in it."""
    net = copy.deepcopy(net)
    net.levels = ()
    params = dict(net.named_parameters())
    members = {lv.name: [n for n in params if lv.params[0].strip("*") in n] for lv in levels}
    gathered = {n: torch.zeros_like(p) for n, p in params.items()}
    states, logits, chunk = net.initial_states(1), [], levels[0].period
    for first in range(0, x.shape[1], chunk):
        net.zero_grad()
        h, after = net.blocks(net.entry(x[:, first : first + chunk]), states)
        states = tree_map(lambda t: t.detach(), after)
        logits.append(net.outputs(h))
        labels = x[:, first + 1 : first + chunk + 1]
        if labels.shape[1] < chunk:
            continue
        F.cross_entropy(logits[-1].mT, labels, reduction="sum").backward()
        for level in levels:
            for n in members[level.name]:
                gathered[n] += params[n].grad
                if (first + chunk) % level.period == 0:
                    params[n].data -= level.eta * gathered[n]
                    gathered[n].zero_()
    return torch.cat(logits, 1)


@pytest.mark.parametrize("length", [5, 9, 10])
def test_a_language_model_is_a_loop_over_chunks_written_by_hand(length):
    net, x = hope([FAST, SLOW], shape=(length,), inner_loss="task"), tokens(1, length)
    torch.testing.assert_close(net(x), by_hand(net, x, [FAST, SLOW]), rtol=1e-10, atol=1e-12)


def test_its_loss_is_what_the_inner_loop_reads():
    net, x = hope([FAST, SLOW], inner_loss="task"), tokens()
    nll, _ = read(net, net.levels, initial_state(net, net.levels, 3), x)
    wanted = F.cross_entropy(net(x)[:, :-1].mT, x[:, 1:], reduction="none")
    torch.testing.assert_close(nll, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", ["delta.DeltaMemory", "lstm.LSTMMemory", "self_modifying.SelfModifyingTitans"])
def test_levels_of_rate_zero_leave_every_memory_what_it_says_at_once(memory):
    section = {"_target_": f"nested.memory.{memory}"}
    if memory.endswith("Titans"):
        section |= {"chunk": 6, "projection_chunk": 3}  # longer than a level's: a memory's chunks are its own
    x, frozen = tokens(), [Level("still", ("*.continuum.0.*",), 2, "token", eta=0.0)]
    torch.testing.assert_close(hope(frozen, section)(x), hope(memory=section)(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "memory",
    ["attention.AttentionMemory", "delta.DeltaMemory", "lstm.LSTMMemory", "self_modifying.SelfModifyingTitans"],
)
def test_reading_in_pieces_is_reading_at_once_at_every_split(memory):
    net, x = hope([FAST, SLOW], {"_target_": f"nested.memory.{memory}"}, inner_loss="task"), tokens(2, 9)
    with torch.no_grad():
        whole, end = read(net, net.levels, initial_state(net, net.levels, 2), x)
        for split in range(1, 9):
            first, state = read(net, net.levels, initial_state(net, net.levels, 2), x[:, :split])
            second, state = read(net, net.levels, state, x[:, split:])
            torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-12)
            torch.testing.assert_close(state.fast, end.fast, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3])
def test_the_outer_gradient_passes_levels_and_memory_and_no_other_mode_has_it(chunk):
    """Self-modifying Titans below two token levels: every parameter along a direction of its own, by differences."""
    titans = {"_target_": "nested.memory.self_modifying.SelfModifyingTitans", "gates": "sigmoid"}
    titans |= {"chunk": chunk, "projection_chunk": chunk}
    net, x = hope([FAST, SLOW], titans, depth=1, inner_loss="task"), tokens(2, 9)
    scale = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)

    def loss():
        return (F.cross_entropy(net(x)[:, :-1].mT, x[:, 1:], reduction="none") * scale).sum()

    def gradients(mode):
        net.inner = mode
        return dict(zip(names, torch.autograd.grad(loss(), params)))

    names, params = zip(*net.named_parameters())
    exact, others = gradients("full"), [gradients(mode) for mode in ("first_order", "off")]
    net.inner = "full"
    for name, p in zip(names, params):
        assert all((exact[name] - other[name]).norm() > 0.01 * exact[name].norm() for other in others), name
        direction = F.normalize(exact[name].flatten(), dim=0) + F.normalize(torch.randn_like(p).flatten(), dim=0)
        with torch.no_grad():
            kept, values = p.clone(), []
            for step in (1e-5, -1e-5):
                p.copy_(kept + step * direction.view_as(p))
                values.append(loss())
            p.copy_(kept)
        slope = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close(slope, exact[name].flatten() @ direction, rtol=1e-5, atol=0, msg=name)


@pytest.mark.parametrize("inner_loss", ["task", "next_token"])
@pytest.mark.parametrize("connection", ["sequential", "headwise"])
def test_every_parameter_learns(inner_loss, connection):
    net, x = hope([FAST, SLOW], inner_loss=inner_loss, connection=connection), tokens()
    F.cross_entropy(net(x).mT, x).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_reading_changes_what_it_says_and_rate_zero_does_not():
    x = tokens()
    still = hope()(x)
    frozen = [Level(level.name, level.params, level.period, "token", eta=0.0) for level in (FAST, SLOW)]
    torch.testing.assert_close(hope(frozen, inner_loss="task")(x), still, rtol=0, atol=1e-12)
    torch.testing.assert_close(hope([FAST], inner="off")(x), still, rtol=0, atol=1e-12)
    learned = hope([FAST, SLOW], inner_loss="task")(x)
    torch.testing.assert_close(learned[:, :2], still[:, :2], rtol=0, atol=1e-12)
    assert (learned[:, 2:] - still[:, 2:]).abs().max() > 1e-3


def test_no_position_sees_a_later_token():
    net, x = hope([FAST, SLOW], inner_loss="task"), tokens()
    changed = x.clone()
    changed[:, 6:] = (x[:, 6:] + 1) % 5
    torch.testing.assert_close(net(x)[:, :6], net(changed)[:, :6], rtol=0, atol=1e-13)
    assert not torch.allclose(net(x)[:, 6:], net(changed)[:, 6:])


def test_a_batch_is_its_sequences():
    net, x = hope([FAST, SLOW]), tokens()
    torch.testing.assert_close(net(x), torch.cat([net(row) for row in x.split(1)]), rtol=0, atol=1e-12)


def test_a_classifier_of_images_reads_patches():
    net = hope([FAST], shape=(1, 8, 8), vocabulary=None, per_position=False)
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    assert net(x).shape == (3, 5)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[:1], net(x[:1]), rtol=0, atol=1e-12)
    F.cross_entropy(net(x), torch.tensor([0, 1, 2])).backward()
    assert net.next_token.predict.weight.grad.abs().sum() > 0
    static = hope([FAST], shape=(1, 8, 8), vocabulary=None, per_position=False, inner="off")
    assert not torch.allclose(static(x), net(x))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (28, 28), (64,), (13,)])
def test_it_reads_the_samples_of_every_stream(shape):
    """Digits, MNIST and Omniglot, CIFAR, arrays without channels, rows of numbers; tokens are above."""
    net, x = hope([FAST, SLOW], shape=shape, vocabulary=None, per_position=False), torch.rand(2, *shape).double()
    y = net(x)
    assert y.shape == (2, 5)
    y.square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert not torch.allclose(hope(shape=shape, vocabulary=None, per_position=False)(x), y)


def test_evaluation_learns_within_the_sequence_too():
    net, x = hope([FAST, SLOW], inner_loss="task"), tokens()
    with torch.no_grad():
        quiet = net.eval()(x)
    torch.testing.assert_close(quiet, net.train()(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"levels": [Level("fast", ("head.*",), 2, "token", eta=0.1)]}, "levels.fast.params"),
        ({"levels": [FAST], "inner": "first_order"}, "model.inner"),
        ({"levels": [FAST], "inner_loss": "task", "outputs": 4}, "model.inner_loss"),
        ({"levels": [FAST], "inner_loss": "task", "per_position": False}, "model.inner_loss"),
        ({"patch": 3}, "model.patch"),
        ({"inner": "truncated"}, "model.truncate"),
        ({"levels": [FAST], "truncate": 2}, "model.truncate"),
        ({"truncate": 2}, "model.truncate"),
        ({"inner": "truncated", "truncate": 2}, "model.inner"),
        ({"inner": "off"}, "model.inner"),
        ({"inner_loss": "task"}, "model.inner_loss"),
        ({"memory": {"_target_": "nested.memory.delta.DeltaMemory", "eta_max": 3.0}}, "model.memory.eta_max"),
        ({"memory": {"_target_": "nested.memory.delta.DeltaMemory", "width": 4}}, "model.memory.width"),
        ({"memory": {"_target_": "nested.memory.delta.DeltaMemory"}, "heads": 3}, "model.heads"),
    ],
)
def test_what_cannot_learn_is_refused(given, key):
    with pytest.raises(UserError) as caught:
        hope(**given)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("given", "length", "key"),
    [
        ({"levels": [Level("fast", ("*.continuum.0.*",), 6, "token", eta=0.1)]}, 6, "levels.fast.chunk_tokens"),
        ({"memory": {"_target_": "nested.memory.delta.DeltaMemory", "anchor": 7}}, 6, "model.memory.anchor"),
        ({"memory": {"_target_": "nested.memory.self_modifying.SelfModifyingTitans", "chunk": 7}, "levels": [FAST]},
         6, "model.memory.chunk"),
    ],
)  # fmt: skip
def test_a_chunk_longer_than_the_sequence_is_refused_and_one_as_long_is_read(given, length, key):
    net = hope(**given)
    with pytest.raises(UserError, match="longer than the sequence") as caught:
        net(tokens(2, length))
    assert caught.value.key == key
    assert net(tokens(2, length + 1)).isfinite().all()
