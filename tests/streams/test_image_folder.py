"""Images in folders: the two layouts, lazy reading, and unusable folders."""

import pytest
import torch
from PIL import Image

from nested.errors import UserError
from nested.streams.image_folder import Images, image_folder

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def paint(folder, colour, n=8, size=(6, 9)):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new("RGB", size, COLOURS[colour]).save(folder / f"{i}.png")


def assert_coloured(stream, names):
    for e in stream.experiences:
        for part in (e.train, e.validation, e.test):
            x, y, _ = part.batch(torch.arange(len(part)))
            for image, label in zip(x, y.tolist()):
                expected = torch.tensor(COLOURS[names[label]]) / 255
                assert torch.equal(image, expected[:, None, None].expand(3, *stream.sample_shape[1:]))


def test_class_folders_are_split(tmp_path):
    for colour in COLOURS:
        paint(tmp_path / colour, colour)
    (tmp_path / "red" / "notes.txt").write_text("not an image")
    stream = image_folder(str(tmp_path), size=4, shuffle_classes=False)
    assert (stream.sample_shape, stream.n_outputs, stream.name) == ((3, 4, 4), 4, f"split_{tmp_path.name}")
    assert [e.name for e in stream.experiences] == ["blue green", "red white"]
    assert_coloured(stream, ["blue", "green", "red", "white"])
    assert sum(len(p) for e in stream.experiences for p in (e.train, e.validation, e.test)) == 32


def test_task_folders_share_classes_of_one_name(tmp_path):
    for task, colours in {"day": ["red", "blue"], "night": ["red", "green"]}.items():
        for colour in colours:
            paint(tmp_path / task / colour, colour)
    stream = image_folder(tmp_path.name, tasks="folders", root=str(tmp_path.parent))
    assert [(e.name, e.classes) for e in stream.experiences] == [("day", (0, 2)), ("night", (1, 2))]
    assert_coloured(stream, ["blue", "green", "red"])


def test_no_more_than_the_batch_is_read(tmp_path, monkeypatch):
    for colour in COLOURS:
        paint(tmp_path / colour, colour)
    opened = []
    read = Images._image
    monkeypatch.setattr(Images, "_image", lambda self, path: opened.append(path) or read(self, path))
    stream = image_folder(str(tmp_path))
    assert opened == []
    stream.experiences[0].train.batch(torch.tensor([0, 2, 4]))
    assert len(opened) == 3


def test_the_digest_changes_with_the_files(tmp_path):
    for colour in COLOURS:
        paint(tmp_path / colour, colour)
    before = image_folder(str(tmp_path)).digest
    assert image_folder(str(tmp_path)).digest == before
    assert image_folder(str(tmp_path), size=16).digest != before
    Image.new("RGB", (20, 20), (1, 2, 3)).save(tmp_path / "red" / "0.png")
    assert image_folder(str(tmp_path)).digest != before


def test_unusable_folders_and_images_are_named(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        image_folder(str(tmp_path / "nowhere"))
    paint(tmp_path / "a" / "red", "red")
    paint(tmp_path / "a" / "blue", "blue")
    with pytest.raises(UserError, match=r"CLASS/\*\.png.*stream\.tasks=folders"):
        image_folder(str(tmp_path))
    with pytest.raises(UserError, match=r"stream\.tasks=classes"):
        image_folder(str(tmp_path / "a"), tasks="folders")
    for path in (tmp_path / "a" / "red").glob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
    stream = image_folder(str(tmp_path / "a"), n_experiences=2, shuffle_classes=False)
    with pytest.raises(UserError, match=r"red/\d\.png cannot be read as an image"):
        stream.experiences[1].train.batch(torch.tensor([0]))
