"""Text as bytes: domains by folder, parts by file, windows from anywhere, and what is refused."""

from pathlib import Path

import pytest
import torch

from nested.errors import UserError
from nested.sequences.text import VOCABULARY, folders, manifest, parts, standard_library, windows


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Forty files in two folders, one deeper down, and one in the root itself; each file is one letter 20 times."""
    for i in range(40):
        folder = tmp_path / ("prose" if i % 2 else "verse/old")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.txt").write_bytes(bytes([60 + i]) * 20)
    (tmp_path / "alone.txt").write_bytes(b"\x00\xff")
    (tmp_path / "prose" / "picture.png").write_bytes(b"no text")
    return tmp_path


def test_domains_are_the_first_folders_with_their_files_in_order(root):
    found = folders(root, ".txt")
    assert set(found) == {"prose", "verse", "text"}
    assert found["text"] == [root / "alone.txt"]
    assert found["verse"] == sorted(root / "verse" / "old" / f"{i}.txt" for i in range(0, 40, 2))
    assert len(found["prose"]) == 20
    assert len(folders(root)["prose"]) == 21


def test_every_byte_is_in_one_part_and_every_file_whole(root):
    files = [f for domain in folders(root, ".txt").values() for f in domain]
    train, judged = parts(files)
    assert train.dtype == judged.dtype == torch.uint8
    counts = [torch.bincount(part.long(), minlength=VOCABULARY) for part in (train, judged)]
    letters = [{int(c) for c in count.nonzero() if c != 10} for count in counts]
    assert not letters[0] & letters[1]
    assert letters[0] | letters[1] == {0, 255, *range(60, 100)}
    assert all((count[60:100] % 20 == 0).all() for count in counts)
    assert 0 < len(letters[1]) < len(letters[0])


def test_a_file_stays_in_its_part_whatever_is_beside_it_and_wherever_it_lies(root, tmp_path_factory):
    files = folders(root, ".txt")["prose"] + folders(root, ".txt")["verse"]
    _, judged = parts(files)
    assert len(judged)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for file in files:
        (elsewhere / file.name).write_bytes(file.read_bytes())
        alone = parts([elsewhere / file.name])
        assert len(alone[int((judged == file.read_bytes()[0]).any())]) == 20


def test_no_file_is_no_text():
    assert [len(part) for part in parts([])] == [0, 0]


def test_a_manifest_tells_names_and_contents_apart(root):
    before = manifest(folders(root, ".txt"))
    assert manifest(folders(root, ".txt")) == before
    (root / "alone.txt").write_bytes(b"\x00\xfe")
    changed = manifest(folders(root, ".txt"))
    assert changed != before
    (root / "alone.txt").rename(root / "apart.txt")
    assert manifest(folders(root, ".txt")) not in (before, changed)


def test_a_manifest_tells_folders_apart_in_which_files_lie(tmp_path):
    files = [tmp_path / "domain" / name / "same.txt" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"same")
    before = manifest(folders(tmp_path))
    files[0].parent.rename(tmp_path / "domain" / "c")
    assert manifest(folders(tmp_path)) != before


def test_windows_are_pieces_of_the_text_from_its_first_byte_to_its_last():
    text = torch.arange(10, dtype=torch.uint8)
    x = windows(text, 4, 200, torch.Generator().manual_seed(0))
    assert (x.dtype, x.shape) == (torch.int64, (200, 4))
    assert (x.diff(dim=1) == 1).all()
    assert set(x[:, 0].tolist()) == set(range(7))
    assert torch.equal(x, windows(text, 4, 200, torch.Generator().manual_seed(0)))
    assert windows(text, 10, 1, torch.Generator()).tolist() == [list(range(10))]


def test_the_standard_library_has_packages_modules_and_no_tests():
    found = standard_library()
    assert {"modules", "json", "asyncio"} <= set(found)
    assert not {"test", "encodings", "site-packages"} & set(found)
    assert all(file.suffix == ".py" for file in found["json"])
    train, judged = parts([f for files in found.values() for f in files])
    assert 0.02 < len(judged) / len(train) < 0.3


def test_near_duplicates_tests_and_what_is_installed_are_left_out_of_every_library(tmp_path, monkeypatch):
    kept = ["json/decoder.py", "json/tool.py", "os.py", "xml/dom/minidom.py"]
    left = ["encodings/cp437.py", "lib2to3/fixes/fix_print.py", "pydoc_data/topics.py", "idlelib/run.py"]
    left += ["test/test_os.py", "json/tests/test_tool.py", "unittest/test/support.py", "site-packages/json/tool.py"]
    for name in [*kept, *left, "json/__pycache__/tool.py", "json/notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr("nested.sequences.text.library_root", lambda: tmp_path)
    found = standard_library()
    assert set(found) == {"json", "modules", "xml"}
    assert [f.relative_to(tmp_path).as_posix() for files in found.values() for f in files] == kept


def test_what_holds_no_text_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="nowhere is no directory of text files") as caught:
        folders(tmp_path / "nowhere")
    assert caught.value.key == "text"
    with pytest.raises(UserError, match=r"holds no file \*\.txt"):
        folders(tmp_path, ".txt")
    with pytest.raises(UserError, match="a text of 3 bytes is shorter than one sequence of 4"):
        windows(torch.zeros(3, dtype=torch.uint8), 4, 1, torch.Generator())
