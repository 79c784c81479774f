"""What works on this machine and how to mend what does not: every check is quick, and none of them raises."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from nested import rundir
from nested.environment import usable_cores
from nested.errors import NestedError
from nested.housekeeping import unfinished

DISTRIBUTION = "nested-cl"
PROBE_SECONDS = 3.0
LEAST_FREE = 2**30  # bytes
SHOWN = 5  # names in one line


@dataclass(frozen=True)
class Finding:
    """One thing looked at: fine (True), broken (False) or only worth knowing (None), and what to do about it."""

    name: str
    ok: bool | None
    detail: str
    mend: str | None = None


def examine(runs: str | Path = "runs", uri: str | None = None) -> list[Finding]:
    """Everything that a run needs and that may be missing here; takes seconds, never raises."""
    root = Path(runs).expanduser()
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "Python": python,
        "packages": packages,
        "torchvision": torchvision,
        "GPU": gpu,
        "Triton": triton,
        "processors": processors,
        "disk": lambda: disk(root),
        "runs": lambda: run_directories(root),
        "tracking": lambda: store(root, uri),
    }
    return [finding for name, check in checks.items() for finding in _guarded(name, check)]


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return [replace(found, mend=None) if found.ok else found for found in check()]
    except Exception as error:  # whatever is broken here is what the doctor is asked about
        said = " ".join(str(error).split())
        return [
            Finding(
                name, False, f"{type(error).__name__}: {said}", "this check itself failed: the line above says on what"
            )
        ]


def _metadata() -> tuple[str | None, list[str]]:
    """(Python range, requirements) that this package declares, installed or in a checkout."""
    try:
        found = distribution(DISTRIBUTION)
        return found.metadata["Requires-Python"], list(found.requires or [])
    except PackageNotFoundError:
        file = Path(__file__).resolve().parents[1] / "pyproject.toml"
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return project["requires-python"], list(project["dependencies"])


def _installed(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def python() -> Iterator[Finding]:
    """The interpreter against the range we declare."""
    from packaging.specifiers import SpecifierSet

    wanted, here = _metadata()[0] or "", platform.python_version()
    ok = SpecifierSet(wanted).contains(here, prereleases=True)
    yield Finding("Python", ok, f"{here} on {platform.platform()}", f"Python {wanted} is needed")


def packages() -> Iterator[Finding]:
    """Each package we need against the range we declare: the good ones in one line, every other one in its own."""
    from packaging.requirements import Requirement

    good = []
    for wanted in map(Requirement, _metadata()[1]):
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        here = _installed(wanted.name)
        mend = f'install "{wanted.name}{wanted.specifier}"'
        if here is None:
            yield Finding(wanted.name, False, f"not installed; {wanted.specifier or 'any version'} is needed", mend)
        elif not wanted.specifier.contains(here, prereleases=True):
            yield Finding(wanted.name, False, f"{here} is outside of {wanted.specifier}", mend)
        else:
            good.append(f"{wanted.name} {here}")
    yield Finding("packages", True, ", ".join(good))


def _needs(package: str, other: str) -> str:
    """The version range of `other` that the installed `package` declares, "" where it declares none."""
    from packaging.requirements import Requirement

    for wanted in map(Requirement, distribution(package).requires or []):
        if wanted.name == other and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            return str(wanted.specifier)
    return ""


def torchvision() -> Iterator[Finding]:
    """Whether torchvision is made for this torch: what it declares, and whether its compiled operators load."""
    from packaging.specifiers import SpecifierSet

    torch, vision = _installed("torch"), _installed("torchvision")
    if torch is None or vision is None:
        return  # said among the packages
    name, wanted = "torch and torchvision", _needs("torchvision", "torch")
    mend = "install the two together from one index, so that their versions and their CPU or CUDA builds match"
    if not SpecifierSet(wanted).contains(torch, prereleases=True):
        yield Finding(name, False, f"torchvision {vision} is made for torch {wanted}, here is {torch}", mend)
        return
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        yield Finding(name, False, f"torchvision {vision} does not load with torch {torch}: {error}", mend)
    else:
        yield Finding(name, True, f"torchvision {vision} loads with torch {torch}")


def gpu() -> Iterator[Finding]:
    """CUDA devices that torch sees; a device that only the driver sees is a fault."""
    import torch

    seen = _driver()
    if torch.cuda.is_available():
        driver = f", driver {seen[0][1]}" if seen else ""
        for i in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(i)
            yield Finding(
                "GPU", True, f"{about.name}, {about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}{driver}"
            )
    elif seen:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        detail = f"{seen[0][0]} with driver {seen[0][1]} is here, but torch {torch.__version__} ({built}) cannot use it"
        yield Finding("GPU", False, detail, "install a torch built for a CUDA version that this driver supports")
    else:
        yield Finding("GPU", None, "no CUDA device: everything runs on the CPU")


def _driver() -> list[tuple[str, str]]:
    """(name, driver version) of each device that nvidia-smi knows."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = [line.rpartition(",") for line in done.stdout.splitlines() if done.returncode == 0]
    return [(name.strip(), version.strip()) for name, _, version in found if name]


def triton() -> Iterator[Finding]:
    """Triton against what the installed torch asks for; nothing but kernels needs it."""
    from packaging.specifiers import SpecifierSet

    here, wanted = _installed("triton"), _needs("torch", "triton")
    mend = f'install "triton{wanted}"' if wanted else None
    if here is None:
        yield Finding("Triton", None, "not installed: kernels take their torch form", mend)
    elif not SpecifierSet(wanted).contains(here, prereleases=True):
        yield Finding("Triton", False, f"{here}; torch {_installed('torch')} asks for {wanted}", mend)
    else:
        import triton as module

        yield Finding("Triton", True, module.__version__)


def processors() -> Iterator[Finding]:
    """Processors that this process may use, and torch's threads."""
    import torch

    usable, threads = usable_cores(), torch.get_num_threads()
    detail = f"{usable} of {os.cpu_count()} usable, torch uses {threads} threads"
    ok = True if threads <= usable else None
    yield Finding("processors", ok, detail, f"trainer.threads={usable}: more threads than processors only wait")


def disk(root: Path) -> Iterator[Finding]:
    """Room in the directory of runs, and whether it can be written."""
    there = rundir.standing(root)
    free = shutil.disk_usage(there).free
    enough = free >= LEAST_FREE
    yield Finding(
        "disk", enough, f"{free / 2**30:.1f} GiB free in {there}", "make room, for example with nested gc --yes"
    )
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    what = f"{there} can{'' if writable else 'not'} be written" + (
        "" if root.exists() else f"; {root} is made by the first run"
    )
    yield Finding("runs directory", writable, what, "choose another directory with runs=...")


def run_directories(root: Path) -> Iterator[Finding]:
    """Run directories of a format that this version does not read, and runs that can be continued."""
    known, foreign, open_runs = rundir.all_runs(root), [], []
    for path in known:
        try:
            rundir.check_format(path)
            if unfinished(path):
                open_runs.append(path.name)
        except (NestedError, OSError) as error:
            foreign.append(f"{path.name} ({error})")
    if foreign:
        yield Finding(
            "runs",
            False,
            f"{len(foreign)} of {len(known)} cannot be read: {_some(foreign)}",
            "read them with the version that wrote them, or move them away",
        )
    else:
        yield Finding("runs", True, f"{len(known)} in {root}")
    if open_runs:
        yield Finding("unfinished runs", None, _some(open_runs), f"nested resume {open_runs[-1]}")


def _some(names: list[str]) -> str:
    return ", ".join(names[-SHOWN:]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def store(root: Path, uri: str | None) -> Iterator[Finding]:
    """Whether the tracker's store answers; without it runs go on and are sent later."""
    from nested import tracking
    from nested.settings import Tracking

    address = tracking.store_uri(Tracking(uri=uri), root)
    try:
        yield Finding("tracking", True, tracking.probe(address, PROBE_SECONDS))
    except tracking.TrackerError as error:
        yield Finding(
            "tracking",
            False,
            str(error),
            "start it, or give another with tracking.uri=...; nested sync sends what is missing",
        )
