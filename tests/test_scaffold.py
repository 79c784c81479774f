"""What `nested init` writes is linted, runs and keeps to its contract as it stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nested.errors import UserError
from nested.scaffold import Kinds, class_name, group, init

ROOT = Path(__file__).resolve().parents[1]


def command(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m ...` in a directory of the user's, our package found wherever it lies."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=where, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a component of each kind."""
    where = tmp_path_factory.mktemp("written")
    for kind in Kinds:
        files = init(kind, f"own_{kind}", where)
        names = [f"own_{kind}.py", f"conf/{group(kind)}/own_{kind}.yaml", f"test_own_{kind}.py"]
        assert [str(p.relative_to(where)) for p in files] == names
    return where


def test_what_is_written_passes_its_own_tests(written: Path):
    done = command(written, "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "27 passed" in done.stdout


@pytest.mark.parametrize("check", [["check"], ["format", "--check"]])
@pytest.mark.parametrize("name", ["x", "a_name_that_goes_on_for_forty_characters"])
def test_what_is_written_is_linted(tmp_path: Path, name: str, check: list[str]):
    for kind in Kinds:
        init(kind, f"{name}_{kind}", tmp_path)
    done = command(tmp_path, "ruff", *check, "--no-cache", "--config", str(ROOT / "pyproject.toml"), ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_it_names_runs(tmp_path: Path):
    init("stream", "blobs", tmp_path)
    settings = ["tracking=off", "trainer.allow_idle=true", "trainer.progress=false", "trainer.epochs=1"]
    done = command(tmp_path, "nested", "run", "stream=blobs", "--config-dir", "conf", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "runs").glob("*-blobs-*/result.json"))) == 1


def test_all_that_is_written_fits_together(written: Path):
    choices = [f"{kind}=own_{kind}" for kind in Kinds if kind != "memory"]
    done = command(written, "nested", "run", *choices, "--config-dir", "conf", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "own_stream" in done.stdout


def test_a_memory_whose_state_is_not_batch_first_fails_its_own_test(tmp_path: Path):
    init("memory", "fading", tmp_path)
    file = tmp_path / "fading.py"
    text = file.read_text()
    wrong = text.replace("new_zeros(batch, width, width)", "new_zeros(width, batch, width)")
    wrong = wrong.replace(
        "if state is None else state\n", "if state is None else state\n        memory = memory.transpose(0, 1)\n"
    )
    wrong = wrong.replace("torch.stack(reads, 1)), memory", "torch.stack(reads, 1)), memory.transpose(0, 1)")
    assert wrong.count("transpose") == 2
    file.write_text(wrong)
    done = command(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "-k", "not runs")
    assert done.returncode == 1
    assert "3 failed" in done.stdout, done.stdout[-2000:]
    assert done.stdout.count("FAILED test_fading.py::test_a_batch_is_its_sequences") == 3


def test_nothing_is_overwritten(tmp_path: Path):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    precious = tmp_path / "conf" / "model" / "thing.yaml"
    precious.write_text("mine")
    with pytest.raises(UserError, match=r"thing\.yaml is there already"):
        init("model", "thing", tmp_path)
    assert precious.read_text() == "mine"
    assert not (tmp_path / "thing.py").exists()


@pytest.mark.parametrize(
    "kind, name, message",
    [
        ("memories", "thing", "did you mean 'memory'"),
        ("memory", "hope", "model=hope is there already"),
        ("modle", "thing", "did you mean 'model'"),
        ("model", "my-thing", "such as my_model"),
        ("model", "class", "such as my_model"),
        ("model", "../thing", "such as my_model"),
        ("model", "mlp", "model=mlp is there already"),
        ("model", "statistics", "can be imported already"),
        ("stream", "split", "itself uses the name 'split'"),
        ("method", "method", "itself uses the name 'Method'"),
        ("stream", "len", "itself uses the name 'len'"),
    ],
)
def test_what_cannot_be(tmp_path: Path, kind: str, name: str, message: str):
    with pytest.raises(UserError, match=message):
        init(kind, name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(UserError, match="no directory"):
        init("model", "thing", tmp_path / "file")


def test_class_names():
    assert [class_name(n) for n in ("thing", "my_own_thing", "MyThing", "x2_y")] == [
        "Thing",
        "MyOwnThing",
        "MyThing",
        "X2Y",
    ]
