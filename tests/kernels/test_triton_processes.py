"""The kernels in Triton's interpreter and its compiler, each in a process of its own: see conftest.py."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed here")


def run_tests_of(folder: str, interpret: str, marked: str) -> None:
    """All tests of a folder pass, in a process with TRITON_INTERPRET set; what it said is shown where they do not."""
    chosen = [f"{marked} and not gpu", "-rs", "-p", "no:cacheprovider", "--color=no"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "NESTED_KERN"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(HERE / folder), "-m", *chosen],
        env={**environment, "TRITON_INTERPRET": interpret, "TRITON_DEFAULT_FP_FUSION": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"tests/kernels/{folder}:\n{done.stdout}\n{done.stderr}", pytrace=False)


@needs_triton
def test_kernels_compute_the_reference_in_the_interpreter() -> None:
    run_tests_of("interpreter", "1", "not slow")


@needs_triton
def test_kernels_compile_for_the_chip() -> None:
    run_tests_of("aot", "0", "not slow")


@needs_triton
@pytest.mark.slow
def test_the_others_compile_too() -> None:
    run_tests_of("aot", "0", "slow")
