"""A user's own arrays as a stream, and what is said when they do not fit."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from nested.errors import UserError
from nested.streams.tensors import tensors

RNG = np.random.default_rng(0)
X = RNG.random((60, 5))
Y = np.arange(60) % 6


@pytest.fixture(params=[".npz", ".safetensors"])
def save(request, tmp_path):
    def write(**arrays):
        path = tmp_path / f"mine{request.param}"
        if request.param == ".npz":
            np.savez(path, **arrays)
        else:
            save_file({k: np.asarray(v) for k, v in arrays.items()}, path)
        return str(path)

    return write


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "mine.npz", **arrays)
        return str(tmp_path / "mine.npz")

    return write


def rows(stream, part):
    return sorted(r for e in stream.experiences for r in getattr(e, part).index.tolist())


def test_labels_are_split_two_classes_each(save):
    stream = tensors(save(x=X, y=Y), shuffle_classes=False)
    assert (stream.name, stream.scenario, stream.sample_shape, stream.n_outputs) == ("split_mine", "class", (5,), 6)
    assert [e.classes for e in stream.experiences] == [(0, 1), (2, 3), (4, 5)]
    x, y, _ = stream.experiences[1].train.batch(torch.arange(14))
    assert x.dtype is torch.float32
    np.testing.assert_allclose(x.numpy(), X[stream.experiences[1].train.index].astype(np.float32))
    assert set(y.tolist()) == {2, 3}
    assert len(tensors(save(x=X, y=Y), n_experiences=6).experiences) == 6


def test_tasks_and_official_parts(save):
    part = np.array(([0] * 6 + [1] * 2 + [2] * 2) * 6)
    task = np.array([2020, 1999, 2007] * 20)
    stream = tensors(save(x=X, y=Y, task=task, split=part), scenario="domain", n_experiences=None)
    assert [e.name for e in stream.experiences] == ["task 1999", "task 2007", "task 2020"]
    assert rows(stream, "validation") == np.flatnonzero(part == 1).tolist()
    assert rows(stream, "test") == np.flatnonzero(part == 2).tolist()
    assert rows(stream, "train") == np.flatnonzero(part == 0).tolist()
    assert stream.experiences[0].train.index.remainder(3).unique().tolist() == [1]
    assert len(tensors(save(x=X, y=Y, task=task), n_experiences=2).experiences) == 2


def test_words_for_tasks_and_parts(npz):
    part = np.array(["train"] * 48 + ["test"] * 12)
    stream = tensors(npz(x=X, y=Y, task=np.array(["spring", "autumn"] * 30), split=part))
    assert [e.name for e in stream.experiences] == ["autumn", "spring"]
    assert rows(stream, "test") == list(range(48, 60))
    assert len(rows(stream, "validation")) > 0


def test_float_targets_are_regression(save):
    target = RNG.random(60)
    path = save(x=X, y=target, task=np.arange(60) % 2)
    stream = tensors(path)
    assert (stream.regression, stream.scenario, stream.n_outputs) == (True, "domain", 1)
    e = stream.experiences[1]
    np.testing.assert_allclose(e.train.targets.numpy(), target[e.train.index][:, None].astype(np.float32))
    assert tensors(save(x=X, y=RNG.random((60, 3)), task=np.arange(60) % 2)).n_outputs == 3
    with pytest.raises(UserError, match="only the domain scenario"):
        tensors(path, scenario="class")
    with pytest.raises(UserError, match="needs `task`"):
        tensors(save(x=X, y=target))


def test_images_grey_and_bytes(save):
    stream = tensors(save(x=(X * 255).astype(np.uint8).reshape(60, 5, 1), y=Y))
    assert stream.sample_shape == (1, 5, 1)
    x = stream.experiences[0].test.batch(torch.tensor([0])).x
    expected = (X * 255).astype(np.uint8)[stream.experiences[0].test.index[0]] / 255
    np.testing.assert_allclose(x.flatten().numpy(), expected, rtol=1e-6)
    whole = tensors(save(x=np.full((60, 3), 300), y=Y)).experiences[0].test.batch(torch.tensor([0])).x
    assert whole.tolist() == [[300.0, 300.0, 300.0]]  # integers that are not bytes keep their values


def test_a_relative_path_is_also_looked_for_in_the_data_directory(npz, tmp_path):
    npz(x=X, y=Y)
    assert tensors("mine.npz", root=str(tmp_path)).n_outputs == 6
    with pytest.raises(UserError, match=r"other\.npz") as refused:
        tensors("other.npz", root=str(tmp_path))
    assert refused.value.key == "stream.path"


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"data": X, "labels": Y}, "no array x and no array y; found: data, labels"),
        ({"x": X, "y": Y[:-1]}, "x has 60 samples and y has 59"),
        ({"x": X, "y": Y - 1}, "label -1 of sample 0 is negative"),
        ({"x": X, "y": Y * 10}, "label 10 of sample 1 is out of range: 6 different labels"),
        ({"x": np.where(X > 0.99, np.nan, X), "y": Y}, "x holds NaN"),
        ({"x": X * 1e300, "y": Y}, "NaN or infinite"),
        ({"x": X, "y": np.eye(6, dtype=int)[Y]}, r"y is int64 of shape \(60, 6\); integer labels"),
        ({"x": X[:, 0], "y": Y}, r"x has shape \(60,\)"),
        ({"x": np.zeros((60, 8, 8, 3)), "y": Y}, r"channels last; x\.transpose\(0, 3, 1, 2\)"),
        ({"x": X, "y": Y, "task": Y[:-1]}, "task has 59 entries for 60"),
        ({"x": X, "y": Y, "task": X[:, 0]}, "task is float64"),
        ({"x": X, "y": Y, "split": Y}, "split holds 3, 4, 5; allowed: 0, 1, 2"),
        ({"x": X, "y": Y, "split": Y[:3]}, r"split has shape \(3,\) for 60"),
        ({"x": X[:0], "y": Y[:0]}, "no samples"),
        ({"x": X[:, :0], "y": Y}, "no values"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(save, arrays, said):
    with pytest.raises(UserError, match=said):
        tensors(save(**arrays))


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_python_objects_are_never_unpickled(npz):
    with pytest.raises(UserError, match="never unpickled"):
        tensors(npz(x=X, y=np.array([Trap()] * 60, dtype=object)))


def test_files_that_are_cut_or_something_else(npz, tmp_path):
    path = tmp_path / "mine.npz"
    npz(x=X, y=Y)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"x,y\n1,2\n", whole[:100] + bytes(400) + whole[500:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"mine\.npz: it is truncated") as refused:
            tensors(str(path))
        assert refused.value.key == "stream.path"
    np.save(tmp_path / "mine.npy", X)
    with pytest.raises(UserError, match=r"numpy\.savez"):
        tensors(str(tmp_path / "mine.npy"))
    other = tmp_path / "mine.safetensors"
    save_file({"x": X, "y": Y}, other)
    other.write_bytes(other.read_bytes()[:200])
    with pytest.raises(UserError, match="truncated"):
        tensors(str(other))
