"""The doctor names what is broken, says how to mend it, and never falls ill himself."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from nested import doctor, rundir
from nested.doctor import Finding, examine


def named(findings: list[Finding]) -> dict[str, Finding]:
    return {f.name: f for f in findings}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """Pretend that other versions are installed: {name: (version, requirements)}; None = not installed."""

    def pretend(**others: tuple[str, list[str]] | None) -> None:
        real = doctor.distribution

        def distribution(name: str):
            if name.replace("-", "_") not in others:
                return real(name)
            known = others[name.replace("-", "_")]
            if known is None:
                raise PackageNotFoundError(name)
            return SimpleNamespace(version=known[0], requires=known[1], metadata={"Requires-Python": ">=3.11"})

        monkeypatch.setattr(doctor, "distribution", distribution)

    return pretend


def test_this_machine_can_run_the_tests(tmp_path: Path):
    found = named(examine(tmp_path / "runs"))
    for name in ("Python", "packages", "torch and torchvision", "disk", "runs directory", "runs", "tracking"):
        assert found[name].ok, found[name]
    assert "torch 2." in found["packages"].detail
    assert all(f.mend is None for f in found.values() if f.ok)
    assert not (tmp_path / "runs").exists()


def test_a_package_out_of_range_and_a_missing_one(installed):
    installed(nested_cl=("0", ["numpy>=99", "nothing-such>=2", "rich", 'old; python_version < "3"']))
    found = named(list(doctor.packages()))
    assert found["numpy"].ok is False
    assert found["numpy"].mend == 'install "numpy>=99"'
    assert "not installed" in found["nothing-such"].detail
    assert "rich" in found["packages"].detail
    assert "old" not in found


def test_a_python_out_of_range(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.1")
    [found] = doctor.python()
    assert found.ok is False
    assert "3.9.1" in found.detail


def test_our_own_metadata_is_found_in_a_checkout_too(installed):
    declared = doctor._metadata()
    installed(nested_cl=None)
    python, packages = doctor._metadata()
    assert "3.11" in (declared[0] or "")
    assert "3.11" in (python or "")
    assert any(p.startswith("torch>=") for p in packages)


def test_torchvision_for_another_torch(installed):
    installed(torchvision=("0.26.0", ["numpy", "torch==2.11.0"]))
    [found] = doctor.torchvision()
    assert found.ok is False
    assert "made for torch ==2.11.0" in found.detail


def test_torchvision_whose_operators_do_not_load(monkeypatch: pytest.MonkeyPatch):
    import builtins

    real = builtins.__import__

    def broken(name, *rest, **named):
        if name == "torchvision.ops":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", broken)
    [found] = doctor.torchvision()
    assert found.ok is False
    assert "nms does not exist" in found.detail


def test_triton_missing_or_of_another_version(installed):
    installed(triton=None)
    assert [f.ok for f in doctor.triton()] == [None]
    installed(triton=("1.0.0", []), torch=("2.15.0", ["triton~=3.9.0"]))
    [found] = doctor.triton()
    assert found.ok is False
    assert "asks for ~=3.9.0" in found.detail


def test_a_gpu_that_only_the_driver_sees(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_driver", lambda: [("NVIDIA H200", "550.1")])
    [found] = doctor.gpu()
    assert found.ok is False
    assert "NVIDIA H200 with driver 550.1" in found.detail
    monkeypatch.setattr(doctor, "_driver", list)
    assert [f.ok for f in doctor.gpu()] == [None]


def test_nvidia_smi_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 550.54.15'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert doctor._driver() == [("NVIDIA H200", "550.54.15")]
    program.write_text("#!/bin/sh\necho failed; exit 9\n")
    assert doctor._driver() == []


def test_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    assert named(list(doctor.disk(tmp_path)))["disk"].ok is False


def test_a_directory_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("no directory")
    found = named(list(doctor.disk(tmp_path / "file" / "runs")))["runs directory"]
    assert found.ok is False
    assert "cannot be written" in found.detail


def test_runs_of_another_format_and_runs_that_can_be_continued(tmp_path: Path):
    for name, version in (("old-one", "0"), ("open-one", "1")):
        (tmp_path / name / "seed-0").mkdir(parents=True)
        for folder in (tmp_path / name, tmp_path / name / "seed-0"):
            (folder / "FORMAT").write_text(f"{version}\n")
    found = named(list(doctor.run_directories(tmp_path)))
    assert found["runs"].ok is False
    assert "old-one" in found["runs"].detail
    assert found["unfinished runs"].mend == "nested resume open-one"
    with rundir.locked(tmp_path / "open-one"):
        assert "unfinished runs" not in named(list(doctor.run_directories(tmp_path)))


def test_a_store_that_does_not_answer(tmp_path: Path):
    found = named(examine(tmp_path, "http://127.0.0.1:1"))["tracking"]
    assert found.ok is False
    assert "nested sync" in (found.mend or "")


def test_what_fails_inside_a_check_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def ill() -> None:
        raise ValueError("very\nill")

    for name in ("python", "packages", "torchvision", "gpu", "triton", "processors"):
        monkeypatch.setattr(doctor, name, ill)
    found = named(examine(tmp_path))
    assert found["GPU"] == Finding("GPU", False, "ValueError: very ill", found["GPU"].mend)
    assert found["disk"].ok
