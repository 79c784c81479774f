"""Snapshots give back every bit, hold what changed, cost a run nothing, and survive its interruption."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from gates import interrupted_at, keep, made
from small_run import small_learner, whole

from nested import rundir
from nested.config import compose
from nested.errors import Interrupted, NestedError, UserError
from nested.microscope.snapshots import Snapshots, fingerprint, put, tensors, weights_view
from nested.run import resume, run

SMALL = [
    "stream=split_digits", "model.hidden=[8]", "trainer.epochs=1", "trainer.threads=1", "tracking=off",
    "trainer.progress=false", "evaluate.parts=[validation]", "checkpoint.every_seconds=0",
    "levels={fast: {params: rest, period_steps: 1}, slow: {params: ['layers.*'], period_steps: 20}}",
    "trainer.allow_idle=true",
]  # fmt: skip


def files(run_directory: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in (run_directory / "seed-0" / "levels").iterdir()}


def rows(run_directory: Path) -> list[tuple]:
    events = rundir.read_events(run_directory / "seed-0" / "events.jsonl")
    return [(e["row"], e["part"], e["sum"]) for e in events if e["event"] == "row"]


class Kept(NamedTuple):
    """A run that was not interrupted, and what it said."""

    path: Path
    said: list[str]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    said: list[str] = []
    config = compose([*SMALL, "evaluate.snapshots=true", f"runs={tmp_path_factory.mktemp('kept')}"])
    return Kept(run(config, say=said.append).path, said)


def test_every_bit_comes_back(tmp_path: Path) -> None:
    learner = small_learner("model.hidden=[4]")
    learner.model.register_buffer("steps", torch.tensor(3))
    first, last = learner.model.head.weight, learner.model.head.bias
    states = []
    snapshots = Snapshots(tmp_path)
    for i, value in enumerate([0.0, -0.0, float("nan"), float("nan"), 1e-45], -1):
        with torch.no_grad():
            last[0] = value
            first[i, i] += 1e-7
            learner.model.steps += 1
        states.append({n: t.detach().clone() for n, t in tensors(learner.model).items()})
        snapshots.write(learner, i)
    again = Snapshots(tmp_path)
    for i, state in enumerate(states, -1):
        back = again.state(i)
        assert back.keys() == state.keys()
        for name, t in state.items():
            assert back[name].dtype == t.dtype
            assert back[name].shape == t.shape
            assert back[name].numpy().tobytes() == t.numpy().tobytes()
    put(learner.model, again.state(0))
    assert torch.equal(learner.model.head.weight, states[1]["head.weight"])
    assert again.last == 3


def test_fingerprints_see_bits_types_and_shapes() -> None:
    zero = torch.zeros(4)
    marks = [zero, -zero, zero.double(), zero.reshape(2, 2), zero.int(), torch.zeros(4, dtype=torch.bfloat16)]
    assert len({fingerprint(t) for t in marks}) == len(marks)
    assert fingerprint(torch.arange(4).reshape(2, 2).T) == fingerprint(torch.tensor([[0, 2], [1, 3]]))


def test_a_file_holds_what_its_experience_changed(kept: Kept) -> None:
    snapshots = Snapshots(kept.path / "seed-0")
    assert snapshots.last == 4
    updates = [snapshots.header(i)["updates"]["slow"] for i in range(-1, 5)]
    assert updates[0] == 0
    assert 0 < updates[-1] < 5  # due every 20 steps, an experience has 8 or 9
    for i in range(5):
        with snapshots._opened(i) as file:
            moved = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118
        assert moved == ({"head", "layers"} if updates[i + 1] > updates[i] else {"head"})


def test_the_last_is_the_end_of_the_run_and_the_run_is_as_without(kept: Kept, tmp_path: Path) -> None:
    state, _ = rundir.SeedDir(kept.path / "seed-0").load_checkpoint()
    assert state is not None
    last = Snapshots(kept.path / "seed-0").state(4)
    assert all(torch.equal(t, last[name]) for name, t in state["model"].items())
    plain = run(compose([*SMALL, f"runs={tmp_path}"]))
    assert rows(plain.path) == rows(kept.path)
    assert not (plain.path / "seed-0" / "levels").exists()


def test_what_it_takes_is_said_at_the_end(kept: Kept) -> None:
    size = sum(map(len, files(kept.path).values()))
    assert Snapshots(kept.path / "seed-0").bytes == size
    wanted = f"seed 0: 6 snapshots of the levels, {size / 1024:.1f} KiB, in"
    assert any(sentence.startswith(wanted) for sentence in kept.said)
    assert size < 6 * 700 * 4 + 6 * 1500  # at most every parameter in every state, and the headers


@pytest.mark.parametrize("step", [0, 9, 21])
def test_an_interrupted_run_continues_to_the_same_bits(
    step: int, kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose([*SMALL, "evaluate.snapshots=true", f"runs={tmp_path}"])
    with interrupted_at(step, monkeypatch), pytest.raises(Interrupted):
        run(config)
    path = rundir.all_runs(tmp_path)[0]
    begun = files(path)
    experiences = sum(step >= end for end in (8, 16, 24))  # 8 steps each
    assert set(begun) == {"before.safetensors", *(f"exp-{i}.safetensors" for i in range(experiences))}
    resume(path)
    assert files(path) == files(kept.path)


def test_a_single_experience_for_gain_keeps_none(tmp_path: Path) -> None:
    config = compose([*SMALL, "evaluate.snapshots=true", "evaluate.gain=true", f"runs={tmp_path}"])
    path = run(config).path
    assert not list(path.glob("**/alone/**/levels"))


# -- views -------------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_what_the_matrix_judges(tmp_path: Path) -> None:
    learner = small_learner("method=ema", "model.hidden=[]")
    whole(learner, [0])
    snapshots = keep(learner, tmp_path, [{}])
    main = next(iter(learner.method.views()))
    assert snapshots.header(-1)["view"] == main
    kept_, raw = snapshots.state(-1), dict(learner.model.named_parameters())
    assert not torch.equal(kept_["head.weight"], raw["head.weight"])
    with learner.method.views()[main]:
        assert torch.equal(kept_["head.weight"], raw["head.weight"])


@pytest.mark.parametrize("trained", [False, True])
def test_a_view_that_is_no_set_of_weights_is_passed_over(trained: bool) -> None:
    learner = small_learner("method=associative_head", "model.hidden=[8]")
    if trained:
        whole(learner, [0])
    before = {n: t.detach().clone() for n, t in tensors(learner.model).items()}
    assert weights_view(learner) == "head"
    assert all(torch.equal(t, before[n]) for n, t in tensors(learner.model).items())


# -- what may be wrong -------------------------------------------------------------------------------------------------


def test_a_damaged_file_is_named(kept: Kept, tmp_path: Path) -> None:
    good = kept.path / "seed-0" / "levels" / "exp-2.safetensors"
    for damage in (lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:], lambda b: b[:-5], lambda b: b[:3], lambda b: b""):
        shutil.rmtree(tmp_path / "levels", ignore_errors=True)
        shutil.copytree(good.parent, tmp_path / "levels")
        (tmp_path / "levels" / good.name).write_bytes(damage(good.read_bytes()))
        with pytest.raises(NestedError, match=r"exp-2\.safetensors is damaged"):
            Snapshots(tmp_path).state(2)
    (tmp_path / "levels" / good.name).unlink()
    with pytest.raises(NestedError, match=r"exp-2\.safetensors is missing"):
        Snapshots(tmp_path).state(2)


def test_a_disk_too_small_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=30_000))
    config = compose([*SMALL, "evaluate.snapshots=true", "seeds=3", f"runs={tmp_path / 'runs'}"])
    with pytest.raises(UserError, match=r"6 snapshots of 3 seeds may take .* and 29.3 KiB are free") as caught:
        run(config)
    assert caught.value.key == "evaluate.snapshots"
    assert not rundir.all_runs(tmp_path / "runs")


def test_tied_parameters_are_kept_once(tmp_path: Path) -> None:
    learner = made(tmp_path, "abc", "all")
    learner.model.alias = learner.model.gates
    snapshots = keep(learner, tmp_path, [{}])
    assert set(snapshots.state(-1)) == {"gates.a", "gates.b", "gates.c", "bias"}
