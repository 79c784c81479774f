"""The command line, called in this process or in one of its own: what it says, and how it ends."""

import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nested.cli import main

QUICK = ("trainer.epochs=1", "trainer.progress=false", "tracking=off")


@dataclass(frozen=True)
class Said:
    """Exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def object(self) -> dict[str, Any]:
        """The JSON object in the last line of standard output."""
        found = json.loads(self.out.splitlines()[-1], parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        assert isinstance(found, dict)
        return found


def nested(*arguments: str) -> Said:
    """`nested ARGUMENTS`, in this process and the current directory."""
    out, err, path = io.StringIO(), io.StringIO(), list(sys.path)
    importlib.invalidate_caches()  # a test may just have written a module
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            main(list(arguments))
    finally:
        sys.path[:] = path
    assert isinstance(end.value.code, int)
    return Said(end.value.code, out.getvalue(), err.getvalue())


def done(*arguments: str) -> Said:
    """`nested ARGUMENTS`, which must succeed."""
    said = nested(*arguments)
    assert said.code == 0, said.err
    return said


def process(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """`nested ARGUMENTS` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "nested", *arguments], cwd=cwd, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}, **options,
    )  # fmt: skip
