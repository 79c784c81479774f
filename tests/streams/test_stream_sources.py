"""Digits, CIFAR and Omniglot as sources."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from nested.errors import UserError
from nested.streams.arrange import by_task, split
from nested.streams.cifar import cifar10, cifar100
from nested.streams.digits import digits
from nested.streams.omniglot import omniglot


def test_digits_are_scaled_to_0_to_1():
    from sklearn.datasets import load_digits

    source, known = digits(), load_digits()
    assert tuple(source.x.shape) == (1797, 1, 8, 8)
    np.testing.assert_array_equal(source.x[:, 0].numpy() * 16, known["images"])
    np.testing.assert_array_equal(source.y.numpy(), known["target"])


@pytest.fixture
def cifar_root(tmp_path, monkeypatch):
    """CIFAR-10's file layout with 20 images a file: red planes hold the number of the image."""
    import torchvision.datasets.cifar

    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: True)
    folder = tmp_path / "below" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    for k, name in enumerate(names):
        data = np.zeros((20, 3072), dtype=np.uint8)
        data[:, :1024] = np.arange(20 * k, 20 * k + 20)[:, None]
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [i % 10 for i in range(20)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return tmp_path


def test_cifar_is_read_through_torchvision_one_folder_down(cifar_root):
    source = cifar10(root=str(cifar_root))
    assert tuple(source.x.shape) == (120, 3, 32, 32)
    assert source.x[:, 0, 5, 7].tolist() == list(range(120))
    assert int(source.x[:, 1:].max()) == 0
    assert source.y.tolist() == [i % 10 for i in range(20)] * 6
    assert source.test_index is not None
    assert source.test_index.tolist() == list(range(100, 120))
    assert split(source, shuffle_classes=False).experiences[1].name == "c d"


def test_missing_or_damaged_cifar_is_named(tmp_path):
    with pytest.raises(UserError, match="cifar-100-python") as refused:
        cifar100(root=str(tmp_path))
    assert "stream.source.download=true" in str(refused.value)
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UserError, match="cannot be read") as refused:
        cifar10(root=str(tmp_path))
    assert str(tmp_path / "cifar-10-batches-py") in str(refused.value)


def drawing(row: int) -> bytes:
    """White paper of 105 x 105 with one black line."""
    image = Image.new("1", (105, 105), 1)
    image.paste(0, (0, row, 105, row + 15))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def pack(path, alphabets: dict[str, int], folder="images"):
    with zipfile.ZipFile(path, "w") as packed:
        for alphabet, characters in alphabets.items():
            for c in range(characters):
                for i in range(6):
                    packed.writestr(f"{folder}/{alphabet}/character{c:02}/{c:04}_{i:02}.png", drawing(15 * c))


def test_omniglot_from_small_zips_one_folder_down(tmp_path):
    (tmp_path / "omni").mkdir()
    pack(tmp_path / "omni" / "images_background_small1.zip", {"Greek": 2, "Latin": 1})
    pack(tmp_path / "omni" / "images_background_small2.zip", {"Latin": 1, "Tagalog": 2})
    source = omniglot(root=str(tmp_path), size=7)
    assert source.name == "omniglot_small"
    assert source.task_names == ("Greek", "Latin", "Tagalog")
    assert len(source.y) == 30  # Latin, which both have, once
    assert source.class_names == (
        "Greek/character00", "Greek/character01", "Latin/character00", "Tagalog/character00", "Tagalog/character01",
    )  # fmt: skip
    ink = torch.zeros(7, 7, dtype=torch.uint8)
    ink[1] = 255
    second = (source.y == 1).nonzero()[0].item()
    assert torch.equal(source.x[second, 0], ink)  # bright ink, where it was drawn
    stream = by_task(source)
    assert [e.classes for e in stream.experiences] == [(0, 1), (2,), (3, 4)]
    assert [e.name for e in stream.experiences] == ["Greek", "Latin", "Tagalog"]


def test_whole_omniglot_goes_before_the_small_zips(tmp_path):
    pack(tmp_path / "images_background_small1.zip", {"Greek": 1})
    pack(tmp_path / "images_background.zip", {"Korean": 2})
    pack(tmp_path / "images_evaluation.zip", {"Tengwar": 1})
    source = omniglot(root=str(tmp_path))
    assert (source.name, source.task_names) == ("omniglot", ("Korean", "Tengwar"))
    assert tuple(source.x.shape) == (18, 1, 28, 28)


def test_unusable_omniglot_is_named(tmp_path):
    with pytest.raises(UserError, match=r"images_background\.zip") as refused:
        omniglot(root=str(tmp_path))
    assert "github.com/brendenlake/omniglot" in str(refused.value)
    path = tmp_path / "images_background_small1.zip"
    path.write_bytes(b"not a zip")
    with pytest.raises(UserError, match=r"small1\.zip cannot be read"):
        omniglot(root=str(tmp_path))
    pack(path, {"Greek": 1})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"small1\.zip cannot be read"):
        omniglot(root=str(tmp_path))
    path.write_bytes(whole.replace(b"IDAT", b"IDAX", 1))  # the checksum of that entry no longer fits
    with pytest.raises(UserError, match=r"small1\.zip cannot be read"):
        omniglot(root=str(tmp_path))
    pack(path, {})
    with pytest.raises(UserError, match="holds no ALPHABET"):
        omniglot(root=str(tmp_path))


def test_the_real_small_zips(data_root):
    if not (data_root / "omniglot").is_dir():
        pytest.skip("no omniglot/ in the data directory")
    source = omniglot(root=str(data_root))
    assert source.task_names == (
        "Balinese", "Early_Aramaic", "Greek", "Japanese_(katakana)", "Korean", "Latin", "Sanskrit", "Tagalog",
    )  # fmt: skip
    characters = [24, 22, 24, 47, 40, 26, 42, 17]
    assert source.class_names is not None
    assert len(source.class_names) == sum(characters)
    assert len(source.y) == 20 * sum(characters)  # 20 people drew each
    stream = by_task(source, scenario="task", shuffle_tasks=True, seed=1)
    assert sorted(len(e.classes) for e in stream.experiences) == sorted(characters)
    assert all(len(e.test) == 4 * len(e.classes) for e in stream.experiences)
    ink = source.x.float().mean() / 255
    assert 0.02 < ink < 0.2
