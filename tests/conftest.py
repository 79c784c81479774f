"""Fixtures for all tests. Real data is optional: tests that want it skip, with a reason, where it is absent."""

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers each time; a test that never imports torch is not made to."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """A directory with the real data sets: $NESTED_DATA, or a folder beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("NESTED_DATA", beside))
    if not root.is_dir():
        pytest.skip("no real data here: set NESTED_DATA to a directory with mnist-t10k/, omniglot/, ...")
    return root
