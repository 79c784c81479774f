"""Every choice in conf/stream says what its signature says, and builds where its data are there."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from nested.config import compose, options
from nested.errors import UserError
from nested.signature import build, locate

CHOICES = [
    "avalanche", "formal_languages", "image_folder", "mad", "omniglot", "permuted_digits", "permuted_mnist", "recall",
    "rotated_digits", "rotated_mnist", "split_cifar10", "split_cifar100", "split_digits", "split_fashion_mnist",
    "split_mnist", "tensors", "text",
]  # fmt: skip
NEEDED = {"tensors": ["stream.path=x"], "image_folder": ["stream.path=x"], "avalanche": ["stream.benchmark=x"]}


def section(*overrides):
    return compose(overrides).stream


def make(*overrides, seed=0, root=None):
    return build(section(*overrides), "stream", seed=seed, root=root)


def test_all_choices_are_there():
    assert set(CHOICES) <= set(options("stream"))


@pytest.mark.parametrize("choice", CHOICES)
def test_the_file_holds_every_key_with_the_default_of_the_signature(choice):
    values = section(f"stream={choice}", *NEEDED.get(choice, []))
    parameters = inspect.signature(locate(values["_target_"], "stream")).parameters
    assert set(values) - {"_target_"} == set(parameters) - {"root"}
    own = {"source", "path", "benchmark", "arguments", "n_experiences", "shuffle_tasks"}
    for name in set(parameters) - own - {"root"}:
        assert values[name] == parameters[name].default


@pytest.mark.parametrize("choice", CHOICES)
def test_what_must_be_given_is_asked_for(choice):
    if choice in NEEDED:
        with pytest.raises(UserError, match="a value is needed: stream"):
            section(f"stream={choice}")


@pytest.mark.parametrize(
    "override, key",
    [
        ("stream.n_experiences=0", "stream.n_experiences"),
        ("stream.scenario=classes", "stream.scenario"),
        ("stream.boundary=soft", "stream.boundary"),
        ("stream.blur=1.0", "stream.blur"),
        ("stream.validation=0", "stream.validation"),
        ("stream.test=1", "stream.test"),
        ("stream.repeats=0", "stream.repeats"),
        ("stream.seed=-1", "stream.seed"),
    ],
)
def test_values_out_of_bounds_are_refused(override, key):
    with pytest.raises(UserError) as refused:
        section("stream=split_digits", override)
    assert refused.value.key == key


def test_the_run_seed_is_used_unless_the_stream_has_one():
    orders = {
        name: [e.classes for e in make("stream=split_digits", *more, seed=seed).experiences]
        for name, more, seed in [
            ("run 1", [], 1), ("run 2", [], 2), ("own 1", ["stream.seed=1"], 2), ("null", ["stream.seed=null"], 2),
        ]
    }  # fmt: skip
    assert orders["run 1"] == orders["own 1"] != orders["run 2"] == orders["null"]


@pytest.mark.parametrize(
    "overrides, n, outputs",
    [
        (["stream=split_digits"], 5, 10),
        (["stream=split_digits", "stream.scenario=domain", "stream.n_experiences=2"], 2, 5),
        (["stream=permuted_digits", "stream.n_experiences=3", "stream.scenario=task"], 3, 30),
        (["stream=rotated_digits", "stream.repeats=2", "stream.boundary=none"], 10, 10),
        (["stream=split_digits", "stream.boundary=blurry", "stream.blur=0.5"], 5, 10),
    ],
)
def test_digits_by_config(overrides, n, outputs):
    stream = make(*overrides)
    assert (len(stream.experiences), stream.n_outputs, stream.sample_shape) == (n, outputs, (1, 8, 8))
    assert len(stream.experiences[0].train.batch(torch.arange(16)).y) == 16


@pytest.mark.parametrize(
    "choice", ["split_mnist", "split_fashion_mnist", "permuted_mnist", "split_cifar10", "omniglot"]
)
def test_data_that_are_missing_are_asked_for(choice, tmp_path):
    with pytest.raises(UserError, match=r"data\.root") as refused:
        make(f"stream={choice}", root=None)
    assert refused.value.key == "data.root"
    with pytest.raises(UserError, match="not found: looked in") as refused:
        make(f"stream={choice}", root=str(tmp_path))
    assert refused.value.key == "data.root"
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("choice, n", [("split_mnist", 5), ("rotated_mnist", 5), ("omniglot", 8)])
def test_real_data_by_config(choice, n, data_root: Path):
    if not (data_root / ("omniglot" if choice == "omniglot" else "mnist-t10k")).is_dir():
        pytest.skip("not in the data directory")
    stream = make(f"stream={choice}", root=str(data_root))
    assert (len(stream.experiences), stream.sample_shape) == (n, (1, 28, 28))


def test_own_arrays_and_a_dotted_path_by_config(tmp_path):
    np.savez(tmp_path / "mine.npz", x=np.random.default_rng(0).random((60, 4)), y=np.arange(60) % 6)
    stream = make("stream=tensors", f"stream.path={tmp_path}/mine.npz", "stream.n_experiences=2")
    assert len(stream.experiences) == 2
    with pytest.raises(UserError, match="train and a test stream") as refused:
        make("stream=avalanche", "stream.benchmark=collections.Counter", "stream.arguments={a: 4}")
    assert refused.value.key == "stream.benchmark"
