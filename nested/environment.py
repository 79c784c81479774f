"""What a run was made with: code version, packages, machine, threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nested

PACKAGES = (
    "torch", "torchvision", "triton", "fla-core", "lightning", "torchmetrics", "avalanche-lib", "mlflow", "numpy",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """All that may explain why two runs differ."""
    import torch

    return {
        "packages": {"nested": nested.__version__, **{p: package_version(p) for p in PACKAGES}},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "git": git_state(Path(nested.__file__).resolve().parent),
        "command": sys.argv,
    }


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_state(where: Path) -> dict[str, Any]:
    """Commit and whether the tree has uncommitted changes; None for both outside a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(where), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def difference(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> (before, now) of what can change the numbers: threads, versions, processor."""
    before, now = ({**e, "code": e["git"]["commit"]} for e in (before, now))
    found = {
        k: (before.get(k), now.get(k))
        for k in ("threads", "python", "processor", "gpu", "code")
        if before.get(k) != now.get(k)
    }
    packages = {p: (before["packages"].get(p), v) for p, v in now["packages"].items() if before["packages"].get(p) != v}
    return {**found, **packages}
