"""MNIST and Fashion-MNIST: where their files are looked for, and what is said of damaged ones."""

import gzip
import struct

import numpy as np
import pytest
import torch

from nested.errors import UserError
from nested.streams.arrange import split
from nested.streams.mnist import fashion_mnist, mnist


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}i", 0, 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def write(folder, part="train", n=30, suffix="", first=0):
    """n images, all pixels of image i equal to first + i, with label i % 10."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.arange(first, first + n)[:, None, None] * np.ones((1, 28, 28))
    packed = gzip.compress if suffix else bytes
    (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(packed(idx(images)))
    (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(packed(idx(np.arange(n) % 10)))


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.mark.parametrize("below", [".", "MNIST/raw", "my-digits"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_official_parts_are_kept(root, below, suffix):
    write(root / below, "train", 40, suffix)
    write(root / below, "t10k", 20, suffix, first=100)
    source = mnist(root=str(root))
    assert source.name == "mnist"
    assert (source.x.dtype, tuple(source.x.shape)) == (torch.uint8, (60, 1, 28, 28))
    assert source.x[:, 0, 13, 27].tolist() == [*range(40), *range(100, 120)]
    assert source.y.tolist() == [i % 10 for i in range(40)] + [i % 10 for i in range(20)]
    assert source.test_index is not None
    assert source.test_index.tolist() == list(range(40, 60))
    stream = split(source)
    assert sorted(r for e in stream.experiences for r in e.test.index.tolist()) == list(range(40, 60))


def test_the_test_images_alone_are_split_and_said_in_the_name(root):
    write(root, "t10k", 50)
    source = mnist(root=str(root))
    assert (source.name, source.test_index) == ("mnist_t10k", None)
    assert all(len(e.test) == 2 for e in split(source).experiences)


def test_a_folder_with_both_parts_goes_before_one_with_the_test_images(root):
    write(root / "a", "t10k", 50)
    write(root / "b", "train", 40)
    write(root / "b", "t10k", 20)
    assert mnist(root=str(root)).name == "mnist"


def test_the_two_sets_are_told_apart_by_their_folder(root):
    write(root / "FashionMNIST" / "raw", "train", 40)
    write(root / "FashionMNIST" / "raw", "t10k", 20)
    write(root / "mnist-t10k", "t10k", 30)
    write(root / "KMNIST", "t10k", 10)
    assert (len(mnist(root=str(root)).y), mnist(root=str(root)).name) == (30, "mnist_t10k")
    clothes = fashion_mnist(root=str(root))
    assert (len(clothes.y), clothes.name) == (60, "fashion_mnist")
    assert clothes.class_names is not None
    assert clothes.class_names[9] == "boot"


def test_nothing_there_says_where_what_and_how(root):
    with pytest.raises(UserError) as refused:
        mnist(root=str(root))
    for word in (str(root), "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "stream.source.download=true"):
        assert word in str(refused.value)
    assert refused.value.key == "data.root"
    write(root / "digits", "t10k", 10)
    with pytest.raises(UserError, match="fashion"):
        fashion_mnist(root=str(root))
    with pytest.raises(UserError, match="no such directory"):
        mnist(root=str(root / "nowhere"))
    with pytest.raises(UserError, match=r"set data\.root"):
        mnist()
    with pytest.raises(UserError, match=r"set data\.root"):
        mnist(download=True)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    "suffix, damage, said",
    [
        (".gz", cut, "cannot be decompressed"),
        (".gz", lambda data: b"<html>", "cannot be decompressed"),
        (".gz", lambda data: data[:30] + b"\0" * 30 + data[60:], "cannot be decompressed"),
        ("", cut, "promises 31360 bytes of data, and 15672 follow"),
        ("", lambda data: b"<html>not found</html>", "does not begin as an IDX file"),
        ("", lambda data: b"", "does not begin as an IDX file"),
    ],
)
def test_a_damaged_file_is_named(root, suffix, damage, said):
    write(root, "t10k", 40, suffix)
    path = root / f"t10k-images-idx3-ubyte{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=said) as refused:
        mnist(root=str(root))
    assert str(path) in str(refused.value)


def test_images_without_labels_are_named(root):
    write(root, "t10k", 40)
    (root / "t10k-labels-idx1-ubyte").rename(root / "labels")
    with pytest.raises(UserError, match="but not t10k-labels-idx1-ubyte"):
        mnist(root=str(root))
    write(root, "t10k", 40)
    (root / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(39)))
    with pytest.raises(UserError, match=r"40 images .* 39 labels"):
        mnist(root=str(root))


def test_a_download_goes_through_torchvision_and_its_failure_is_said(root, monkeypatch):
    import torchvision.datasets

    def fetch(folder, download):
        assert download
        write(root / "MNIST" / "raw", "train", 40)
        write(root / "MNIST" / "raw", "t10k", 20)

    monkeypatch.setattr(torchvision.datasets, "MNIST", fetch)
    assert len(mnist(root=str(root), download=True).y) == 60

    def fail(folder, download):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    with pytest.raises(UserError, match="no network"):
        mnist(root=str(root), download=True)


def test_the_real_test_images(data_root):
    if not (data_root / "mnist-t10k").is_dir():
        pytest.skip("no mnist-t10k/ in the data directory")
    source = mnist(root=str(data_root))
    assert source.name == "mnist_t10k"
    assert tuple(source.x.shape) == (10_000, 1, 28, 28)
    assert torch.bincount(source.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # as published
    stream = split(source)
    assert sum(len(e.test) for e in stream.experiences) == 2000
    x = stream.experiences[0].train.batch(torch.arange(64)).x
    assert x.dtype is torch.float32
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
