"""Wrong input: one line that says key, value seen, what is allowed and how to mend it; exit code 2; nothing is left."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from command import QUICK, Said, done, nested, process

ROWS = 400


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with data that is wrong in one way each."""
    root = tmp_path_factory.mktemp("files")
    y = np.arange(ROWS) % 4
    x = np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32)
    holed = x.copy()
    holed[17, 2] = np.nan
    part = np.where(y < 2, np.arange(ROWS) // 4 % 3, np.arange(ROWS) // 4 % 2 * 2)  # no validation for classes 2 and 3
    arrays = {
        "good": (x, y, {}),
        "nan": (holed, y, {}),
        "labels": (x, np.where(y == 3, 7, y), {}),
        "negative": (x, y - 1, {}),
        "fewer": (x, y[:-1], {}),
        "unchosen": (x, y, {"split": part}),
    }
    for name, (a, b, more) in arrays.items():
        np.savez(root / f"{name}.npz", x=a, y=b, **more)
    (root / "torn.npz").write_bytes((root / "good.npz").read_bytes()[:2000])
    (root / "file").write_text("not a directory")
    (root / "empty").mkdir()
    write_mnist(root / "torn", images=50)
    write_mnist(root / "zipped", images=100)
    images = root / "zipped" / "t10k-images-idx3-ubyte"
    (root / "zipped" / f"{images.name}.gz").write_bytes(gzip.compress(images.read_bytes())[:60])
    images.unlink()
    write_mnist(root / "half", images=100)
    (root / "half" / "t10k-images-idx3-ubyte").unlink()
    return root


def write_mnist(folder: Path, images: int) -> None:
    """IDX files of 100 images, of which only some are there."""
    folder.mkdir()
    shape = b"".join(n.to_bytes(4, "big") for n in (100, 28, 28))
    (folder / "t10k-images-idx3-ubyte").write_bytes(bytes((0, 0, 8, 3)) + shape + bytes(images * 28 * 28))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(
        bytes((0, 0, 8, 1)) + (100).to_bytes(4, "big") + bytes(i % 10 for i in range(100))
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(said: Said, key: str | None, words: list[str]) -> None:
    """One line for people, one object for programs, both with these words."""
    assert said.code == 2, said.err
    assert said.err.count("\n") == 1
    assert said.err.startswith("nested: ")
    assert said.out.count("\n") == 1
    assert set(said.object) == {"error", "key", "seen", "allowed"}
    assert said.err == f"nested: {said.object['error']}\n"
    assert said.object["key"] == key
    for word in words:
        assert word in said.err


MNIST = ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "download"]
LEVEL = "levels.slow={params: ['%s'], period_steps: 2}"
WRONG = {
    "unknown key": (["optim.lrr=1"], "optim.lrr", ["'optim.lrr'", "did you mean 'optim.lr'", "optim.betas"]),
    "unknown section": (["trianer.epochs=1"], "trianer.epochs", ["'trianer.epochs'", "did you mean 'trainer.epochs'"]),
    "unknown key of a level": (["levels.all.period=2"], "levels.all.period",
                               ["did you mean 'levels.all.period_steps'"]),
    "unknown key further down": (["stream=split_mnist", "stream.source.downlod=true"], "stream.source.downlod",
                                 ["did you mean 'stream.source.download'"]),
    "unknown choice": (["stream=splt_digits"], "stream", ["'splt_digits'", "did you mean 'split_digits'", "omniglot"]),
    "unknown target": (["model._target_=nested.models.mlp.MPL"], "model._target_", ["did you mean 'MLP'"]),
    "unknown module": (["model={_target_: nowhere.Thing}"], "model._target_", ["'nowhere'", "install it"]),
    "no key": (["lr"], None, ["cannot read 'lr'", "key=value"]),
    "several values": (["optim.lr=0.1,0.2"], "optim.lr", ["one plain key=value", "several runs"]),
    "wrong type": (["optim.lr=fast"], "optim.lr", ["'fast' is not allowed", "float"]),
    "wrong word": (["trainer.at_border=cary"], "trainer.at_border", ["did you mean 'carry'", "carry | flush | drop"]),
    "not a whole number": (["trainer.epochs=2.5"], "trainer.epochs", ["2.5 is not allowed", "int >= 1"]),
    "not finite": (["optim.lr=nan"], "optim.lr", ["nan is not allowed", "finite"]),
    "too short a list": (["optim=adamw", "optim.betas=[0.9]"], "optim.betas", ["[0.9]", "[float, float]"]),
    "a value for a section": (["checkpoint=3"], "checkpoint", ["3 is not allowed"]),
    "a value for a component": (["stream.source=digits"], "stream.source", ["'digits' is not allowed", "Source"]),
    "refused by torch": (["optim.lr=-1"], "optim", ["torch.optim.AdamW", "-1"]),
    "a value that must be given": (["stream=tensors"], "stream.path", ["a value is needed"]),
    "no seed": (["seeds=[]"], "seeds", ["one or more"]),
    "a seed twice": (["seeds=[1,1]"], "seeds", ["all different"]),
    "more experiences than classes": (["stream.n_experiences=20"], "stream.n_experiences",
                                      ["20 experiences", "10 classes", "1, 2, 5, 10"]),
    "classes that do not divide": (["stream.n_experiences=3"], "stream.n_experiences", ["divide", "1, 2, 5, 10"]),
    "a glob that matches nothing": ([LEVEL % "haed.*"], "levels.slow.params", ["'haed.*'", "head.weight"]),
    "a parameter in no level": (["levels={some: {params: ['head.*'], period_steps: 1}}"], "levels",
                                ["no level", "layers.0.weight", "params: rest"]),
    "a parameter in two levels": (["levels={a: {params: ['head.*'], period_steps: 1}, "
                                   "b: {params: ['*'], period_steps: 1}}"], "levels.b.params",
                                  ["two levels", "'a' and 'b'", "head.weight"]),
    "a period below 1": (["levels.all.period_steps=0"], "levels.all.period_steps", ["0 is not allowed", ">= 1"]),
    "an idle level": (["levels.all.period_steps=5"], "levels.all.period_steps",
                      ["8 updates in 44 steps", "fewer than 10", "at most 4", "allow_idle"]),
    "no data directory": (["stream=split_mnist"], "data.root", ["data.root=", *MNIST]),
    "a data directory that is not there": (["stream=split_mnist", "data.root={files}/nowhere"], "data.root",
                                           ["{files}/nowhere", *MNIST]),
    "missing files": (["stream=split_mnist", "data.root={files}/empty"], "data.root", ["{files}/empty", *MNIST]),
    "half of the files": (["stream=split_mnist", "data.root={files}/half"], "data.root",
                          ["{files}/half", "not t10k-images-idx3-ubyte", "download"]),
    "a truncated file": (["stream=split_mnist", "data.root={files}/torn"], "data.root",
                         ["{files}/torn/t10k-images-idx3-ubyte", "truncated", "78400", "39200", "again"]),
    "a truncated gz file": (["stream=split_mnist", "data.root={files}/zipped"], "data.root",
                            ["{files}/zipped/t10k-images-idx3-ubyte.gz", "truncated"]),
    "no such file": (["stream=tensors", "stream.path={files}/no.npz"], "stream.path", ["{files}/no.npz"]),
    "a truncated npz": (["stream=tensors", "stream.path={files}/torn.npz"], "stream.path", ["torn.npz", "truncated"]),
    "labels out of range": (["stream=tensors", "stream.path={files}/labels.npz"], "stream",
                            ["label 7", "sample 3", "0 to 3"]),
    "negative labels": (["stream=tensors", "stream.path={files}/negative.npz"], "stream", ["label -1", "0 to 3"]),
    "NaN in the data": (["stream=tensors", "stream.path={files}/nan.npz"], "stream", ["NaN", "1 of 400", "17"]),
    "x and y of different length": (["stream=tensors", "stream.path={files}/fewer.npz"], "stream", ["400", "399"]),
    "an empty validation part": (["stream=tensors", "stream.path={files}/unchosen.npz", "stream.shuffle_classes=false"],
                                 "stream.validation", ["validation part", "'2 3' is empty"]),
    "a file for the runs directory": (["runs={files}/file"], "runs", ["{files}/file", "runs="]),
    "a runs directory below a file": (["runs={files}/file/runs"], "runs", ["cannot write", "runs="]),
    "more than one device": (["trainer.devices=2"], "trainer.devices", ["more than one device"]),
    "a store of plain files": (["tracking=mlflow", "tracking.uri={files}/store"], "tracking.uri", ["sqlite:///"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_one_line_and_nothing_left(case: str, files: Path, here: Path) -> None:
    arguments, key, words = WRONG[case]
    given = [a.replace("{files}", str(files)) for a in arguments]
    refused(nested("run", *QUICK, *given, "--json"), key, [w.replace("{files}", str(files)) for w in words])
    assert done("list", "runs", "--json").object["choices"] == []
    assert not list(here.rglob("events.jsonl"))
    assert not (here / "runs").exists()


def test_what_was_seen_and_what_is_allowed(here: Path) -> None:
    said = nested("run", "trainer.at_border=cary", "--json").object
    assert (said["seen"], said["allowed"]) == ("cary", "carry | flush | drop")
    said = nested("run", "stream=splt_digits", "--json").object
    assert said["seen"] == "splt_digits"
    assert "split_digits" in said["allowed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_gpu(here: Path) -> None:
    refused(nested("run", *QUICK, "trainer.accelerator=gpu", "--json"), "trainer.accelerator", ["accelerator=cpu"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_runs_directory_that_is_read_only(here: Path) -> None:
    (here / "runs").mkdir(mode=0o500)
    refused(nested("run", *QUICK, "--json"), "runs", [str(here / "runs"), "Permission denied", "runs="])


def test_a_runs_directory_that_may_not_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access = os.access
    (here / "runs").mkdir()
    monkeypatch.setattr(os, "access", lambda p, mode, **_: Path(p).name != "runs" and access(p, mode))
    refused(nested("run", *QUICK, "--json"), "runs", [str(here / "runs"), "Permission denied", "runs="])


def test_a_choice_with_the_name_of_one_of_ours(here: Path) -> None:
    (here / "mine" / "model").mkdir(parents=True)
    (here / "mine" / "model" / "mlp.yaml").write_text("_target_: nested.models.mlp.MLP\n")
    refused(nested("run", *QUICK, "--config-dir", "mine", "--json"), "--config-dir", ["model/mlp.yaml", "another"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], ["'rnu'", "Did you mean 'run'"]),
        (["run", "--jsno", "--json"], ["--jsno"]),
        (["resume"], ["Missing argument 'RUN'"]),
        (["show", "model"], ["group=choice"]),
        (["show", "model=mlpp"], ["'mlpp'", "did you mean 'mlp'"]),
        (["show", "modle=mlp"], ["'modle'", "did you mean 'model'"]),
        (["list", "streams"], ["'streams'", "did you mean 'stream'"]),
        (["run", "--config-dir", "nowhere"], ["--config-dir", "nowhere"]),
        (["claims", "no_such_claim"], ["no_such_claim"]),
        (["init", "layer", "mine"], ["'layer'", "stream"]),
        (["init", "model", "2nd"], ["'2nd'"]),
        (["resume", "2026"], ["no run '2026'", "runs"]),
        (["report", "2026"], ["no run '2026'"]),
        (["sync", "2026"], ["no run '2026'"]),
        (["ui", "--uri", "http://localhost:1"], ["http://localhost:1"]),
        (["ui", "--runs", "nowhere"], ["nowhere", "no runs to look at", "--runs DIR"]),
        (["ui"], ["no runs to look at"]),
        (["show", "checkpiont"], ["'checkpiont'", "did you mean 'checkpoint'"]),
    ],
)
def test_every_verb_is_as_clear(arguments: list[str], words: list[str], here: Path) -> None:
    said = nested(*arguments)
    assert said.code == 2
    assert said.out.count("\n") == ("--json" in arguments)
    assert said.err.count("\n") == 1
    assert said.err.startswith("nested: ")
    for word in words:
        assert word in said.err


def test_in_a_process_of_its_own_nothing_else_is_said(here: Path) -> None:
    child = process("run", "stream=splt_digits", cwd=here)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out) == (2, "")
    assert err.count("\n") == 1
    assert "did you mean 'split_digits'" in err
